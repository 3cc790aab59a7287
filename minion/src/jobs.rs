//! Methods that run outside the server: synchronous calls, and jobs from their start to their report.
//!
//! The server's side of it. It asks the spawner, what the spools say too, and answers from the status store; it forks nothing, and
//! reads and writes no spool.

mod keep;
mod learn;
mod logs;
mod queue;
mod start;
mod tend;
mod wait;

use std::fs::File;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use common::identity::CallerName;
use common::job::retention::Retention;
use common::job::{CallId, MinionJobId};
use common::method::MethodName;
use common::outcome::{ErrorCode, Failure, Outcome, Verdict};
use common::protocol::{JobList, JobReport, LISTED_MAX, ListedJob};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::{Notify, watch};

use crate::acl::Scope;
use crate::call::Ask;
use crate::config::{Config, Limits};
use crate::spawner::{Look, Order, Origin, Reply, SpawnError, Spawner};
use crate::store::{Opening, Store, StoreError};
use keep::Keeper;
use queue::Queue;
pub use start::JobCall;
pub use wait::Waiter;

/// How long the spawner's child may take over an order that runs nothing, beyond what the disk needs.
const ORDER_TIMEOUT: Duration = Duration::from_secs(10);

/// How much longer than its limit a synchronous method may take to be killed and reported.
const CALL_MARGIN: Duration = Duration::from_secs(20);

/// How long the lock of a server that was killed may be held: by what it was about to execute as a spawner, which lets go of it then.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);

/// One method to run, its arguments bound: what the spawner makes of a call.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MethodRun {
    /// What.
    pub method: MethodName,
    /// With which arguments.
    pub args: Value,
    /// Under which call id.
    pub call_id: CallId,
    /// For whom.
    pub caller: CallerName,
    /// For how long at most.
    pub limit: Duration,
    /// As which user of the host, by name; as the spawner's own if it does not say.
    #[serde(default)]
    pub run_as: Option<String>,
    /// Of `worker.*`: whose tasks it may touch.
    #[serde(default)]
    pub scope: Scope,
}

/// Who asks about jobs, and of whose he may hear.
#[derive(Debug, Clone)]
pub struct Reader {
    /// Who.
    pub caller: CallerName,
    /// Of whose.
    pub scope: Scope,
}

/// Why the jobs cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum JobsError {
    /// The folder for state cannot be made.
    #[error("making {path}: {source}")]
    StateDir {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Another server runs.
    #[error("{} is locked: another minion runs with this state_dir", .0.display())]
    InUse(PathBuf),
    /// The spawner does not start.
    #[error("starting the spawner: {0}")]
    Spawner(std::io::Error),
}

/// The methods that run on this host outside the server.
#[derive(Debug)]
pub struct Jobs {
    spawner: Spawner,
    store: Store,
    state_dir: PathBuf,
    /// Where the spools are, for messages.
    spools: PathBuf,
    server_socket: PathBuf,
    limits: Limits,
    retention: Retention,
    calls: AtomicUsize,
    queue: Mutex<Queue>,
    /// A job that waits may have a place now.
    vacancy: Notify,
    /// Jobs may run from now on.
    opened: Notify,
    keeper: Keeper,
    looked_at: tokio::sync::Mutex<Option<Instant>>,
    /// True when the server is to end.
    stopping: OnceLock<watch::Receiver<bool>>,
    /// Held for life.
    _lock: Option<File>,
}

/// A place among `limits.calls_max`, given back when dropped.
struct Slot<'a>(&'a AtomicUsize);

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Jobs {
    /// Opens the store, and starts the spawner if it is to be the server's own. Jobs only wait until [`Jobs::tend`] has looked at the spools.
    ///
    /// # Errors
    /// See [`JobsError`].
    pub fn open(config: &Config, origin: Origin) -> Result<Self, JobsError> {
        let path = config.state_dir.clone();
        // Others may go through it, to the socket where jobs submit calls.
        let made = std::os::unix::fs::DirBuilderExt::mode(std::fs::DirBuilder::new().recursive(true), 0o711).create(&path);
        made.map_err(|source| JobsError::StateDir { path, source })?;
        // The lock comes first: it keeps a second minion from replacing the first one's spawner.
        let lock = lock_state(config)?;
        let spawner = Spawner::open(config, origin).map_err(JobsError::Spawner)?;
        let jobs = Self {
            spawner,
            store: Store::at(&config.status_store()),
            state_dir: config.state_dir.clone(),
            spools: config.spool_dir(),
            server_socket: config.server_socket(),
            limits: config.limits.clone(),
            retention: config.retention,
            calls: AtomicUsize::new(0),
            queue: Mutex::new(Queue::new(config.limits.jobs_max, config.limits.queue_max)),
            vacancy: Notify::new(),
            opened: Notify::new(),
            keeper: Keeper::default(),
            looked_at: tokio::sync::Mutex::default(),
            stopping: OnceLock::new(),
            _lock: lock,
        };
        jobs.open_store();
        Ok(jobs)
    }

    /// Runs the method of the call `ask`, which may take until its `limit`, and gives its outcome. Dropping the future stops the method.
    ///
    /// # Errors
    /// It was refused: nothing ran.
    pub async fn run(&self, ask: Ask, limit: Duration) -> Result<Outcome, Failure> {
        let _slot = self.enter()?;
        let patience = limit + self.limits.cancel_grace + CALL_MARGIN;
        match self.spawner.order(&Order::Run(ask), patience).await {
            Ok(Reply::Ended(outcome)) => Ok(outcome),
            Ok(Reply::Refused(failure)) => Err(failure),
            Ok(reply) => Err(internal(format!("the spawner answered a call with {reply:?}"))),
            Err(error @ (SpawnError::Unreachable { .. } | SpawnError::OtherVersion(_))) => {
                Err(Failure::new(ErrorCode::Undelivered, error.to_string()))
            }
            Err(SpawnError::NoAnswer(error)) => {
                let reason = format!("the process that supervised it died or fell silent ({error}): it may have run");
                Ok(Outcome::not_run(Verdict::lost(reason), Timestamp::now()))
            }
        }
    }

    /// What is known of the job `id`.
    ///
    /// # Errors
    /// There is none that the reader may hear of.
    pub async fn status(&self, reader: &Reader, id: &MinionJobId) -> Result<JobReport, Failure> {
        let report = self.learn(id).await?.filter(|report| reader.may_see(&report.caller));
        report.ok_or_else(|| Failure::new(ErrorCode::UnknownJob, format!("this host knows no job {id} of {}", reader.caller)))
    }

    /// The jobs that the reader may hear of: those that have not ended, and the newest of those that have.
    pub async fn list(&self, reader: &Reader) -> JobList {
        let mut jobs = self.live_jobs().await;
        jobs.retain(|job| reader.may_see(&job.caller));
        let mut more = 0;
        for end in self.store.ends().rev().filter(|end| reader.may_see(&end.kept.caller)) {
            if jobs.len() < LISTED_MAX {
                jobs.extend(self.store.find(&end.id).map(ListedJob::from));
            } else {
                more += 1;
            }
        }
        jobs.sort_by_key(|job| std::cmp::Reverse(job.accepted_at));
        more += jobs.len().saturating_sub(LISTED_MAX);
        jobs.truncate(LISTED_MAX);
        JobList { jobs, more }
    }

    /// Stops the job `id`, as the call `ask` wants it, and says what became of it: it may have ended by itself before, or not be dead yet.
    ///
    /// # Errors
    /// There is none that the reader may see, or the wish cannot be written down.
    pub async fn cancel(&self, reader: &Reader, id: &MinionJobId, ask: Ask) -> Result<JobReport, Failure> {
        let report = self.status(reader, id).await?;
        if report.progress.state().is_final() {
            return Ok(report);
        }
        // None if it has ended between the two looks.
        let Some(waiter) = self.lock_queue().waiter(id) else { return self.status(reader, id).await };
        let ended = waiter.notified();
        self.carry_out(&Order::Tell(ask)).await?;
        let report = self.status(reader, id).await?;
        if report.progress.state().is_final() {
            return Ok(report);
        }
        let _ended_or_not = tokio::time::timeout(self.limits.cancel_grace + ORDER_TIMEOUT, ended).await;
        self.status(reader, id).await
    }

    /// Sees to it that the reader's call `call_id` never starts on the host of `ask`, which asks for that, unless it has been here: then its job is
    /// reported.
    ///
    /// # Errors
    /// The fence cannot be made; whether the call may still start is not known then. With the code `Lost` it may have run, and been given up.
    pub async fn fence(&self, reader: &Reader, call_id: &CallId, ask: Ask) -> Result<JobReport, Failure> {
        let id = MinionJobId::derive(&ask.minion, &reader.caller, call_id);
        if self.learn(&id).await?.is_none() {
            self.require_kept_room().await?;
            self.carry_out(&Order::Tell(ask)).await?;
        }
        self.status(reader, &id).await
    }

    /// Whose the call `ask` is, which a job has submitted: the caller's name, and the fingerprint of his certificate.
    ///
    /// # Errors
    /// The spawner does not believe the job; or it cannot be asked.
    pub async fn bearer(&self, ask: Ask) -> Result<(CallerName, String), Failure> {
        match self.spawner.look(Look::Bearer(ask)).await {
            Ok(Reply::Bearer(caller, fingerprint)) => Ok((caller, fingerprint)),
            Ok(Reply::Refused(failure)) => Err(failure),
            Ok(reply) => Err(astray(&reply)),
            Err(error) => Err(Failure::new(ErrorCode::Undelivered, error.to_string())),
        }
    }

    /// Takes one of `limits.calls_max` places.
    fn enter(&self) -> Result<Slot<'_>, Failure> {
        let slot = Slot(&self.calls);
        let calls = self.calls.fetch_add(1, Ordering::Relaxed);
        if calls < self.limits.calls_max {
            return Ok(slot);
        }
        let message = format!("{calls} calls run here, and limits.calls_max is {}; try again later", self.limits.calls_max);
        Err(Failure::new(ErrorCode::LimitReached, message))
    }

    /// Has an order carried out that runs nothing.
    async fn carry_out(&self, order: &Order) -> Result<(), Failure> {
        match self.spawner.order(order, ORDER_TIMEOUT).await {
            Ok(Reply::Refused(failure)) => Err(failure),
            Ok(_) => Ok(()),
            Err(error) => Err(internal(error.to_string())),
        }
    }

    /// Has the spawner look at something.
    async fn look_for(&self, look: Look) -> Result<Reply, Failure> {
        match self.spawner.look(look).await {
            Ok(Reply::Refused(failure)) => Err(failure),
            Ok(reply) => Ok(reply),
            Err(error) => Err(internal(error.to_string())),
        }
    }

    /// Opens the store if it is not open; `true` if it is now, and was not before.
    fn open_store(&self) -> bool {
        match self.store.open() {
            Ok(Opening::WasOpen) => return false,
            Ok(Opening::Opened) => {}
            Ok(Opening::Renewed(aside)) => {
                tracing::error!(aside = %aside.display(), "the status store was damaged; it is set aside and made anew from the spools");
            }
            Ok(Opening::Beside(newer)) => {
                tracing::warn!(%newer, "the status store is left alone; another is filled from the spools beside it")
            }
            Err(error) => {
                self.tell_store_error(&error);
                return false;
            }
        }
        true
    }

    fn tell_store_error(&self, error: &StoreError) {
        tracing::error!(%error, "the status store cannot be used: the spools answer until it can");
    }

    fn lock_queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reader {
    fn may_see(&self, caller: &CallerName) -> bool {
        match self.scope {
            Scope::All => true,
            Scope::Own => *caller == self.caller,
        }
    }
}

/// The lock that one server at a time has. Where the disk takes no new file there is none, and the port alone keeps a second server out.
fn lock_state(config: &Config) -> Result<Option<File>, JobsError> {
    let path = config.server_lock();
    let mut options = File::options();
    options.write(true).create(true).truncate(false);
    let Ok(lock) = std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600).open(&path).or_else(|_| File::open(&path)) else {
        return Ok(None);
    };
    let deadline = Instant::now() + LOCK_TIMEOUT;
    loop {
        match lock.try_lock() {
            Ok(()) | Err(std::fs::TryLockError::Error(_)) => return Ok(Some(lock)),
            Err(std::fs::TryLockError::WouldBlock) if Instant::now() >= deadline => return Err(JobsError::InUse(path)),
            Err(std::fs::TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

/// That the spawner has answered something else than it was asked.
fn astray(reply: &Reply) -> Failure {
    internal(format!("the spawner answered something else than it was asked: {reply:?}"))
}

fn internal(problem: String) -> Failure {
    Failure::new(ErrorCode::Internal, problem)
}
