//! The variables that a method's process finds in its environment, by name. The minion sets them, and nobody else.

/// The host's name.
pub const NAME: &str = "MINION_NAME";
/// Of a job: the id that its caller has for it.
pub const CALL: &str = "OVERLORD_JOB_ID";
/// Of a job: its id on this host, by which what is left of it is known.
pub const JOB: &str = "MINION_JOB_ID";
/// Of a job: its caller, for whom it submits calls.
pub const CALLER: &str = "MINION_CALLER";
/// Of a job: by what it submits calls. Whoever has it may do what the job's caller may, as long as the job runs.
pub const TOKEN: &str = "MINION_JOB_TOKEN";
/// Of a job: where it submits them.
pub const SUBMIT_SOCKET: &str = "MINION_SUBMIT_SOCKET";

/// The number of the file where it says how far it is, a line `FRACTION [MESSAGE]` each time.
pub const PROGRESS_FD: &str = "MINION_PROGRESS_FD";

/// Of a worker's instance: the worker's name.
pub const WORKER: &str = "MINION_WORKER";
/// Likewise: which of its instances it is, from 1.
pub const WORKER_INSTANCE: &str = "MINION_WORKER_INSTANCE";
/// Likewise: where it fetches tasks. No two starts have the same.
pub const WORKER_SOCKET: &str = "MINION_WORKER_SOCKET";
/// Of a worker's health check: the process that it is about.
pub const WORKER_PID: &str = "MINION_WORKER_PID";

/// What a service manager tells the minion by, see sd_notify(3): nothing to a method.
pub const OF_SERVICE_MANAGER: [&str; 3] = ["NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC"];

/// All of a method, and of a worker's instance.
pub const ALL: [&str; 11] =
    [NAME, CALL, JOB, CALLER, TOKEN, SUBMIT_SOCKET, PROGRESS_FD, WORKER, WORKER_INSTANCE, WORKER_SOCKET, WORKER_PID];
