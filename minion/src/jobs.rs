//! Methods that run outside the server: synchronous calls, and jobs from their start to their report.
//!
//! The server's side of it. It asks the spawner, reads spools and answers from the status store; it forks nothing and writes no spool.

mod keep;
mod learn;
mod logs;
mod queue;
mod tend;

use std::fs::File;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use common::identity::{CallerName, MinionName};
use common::job::retention::Retention;
use common::job::{CallId, HostState, MinionJobId};
use common::method::MethodName;
use common::outcome::{ErrorCode, Failure, Outcome, Verdict};
use common::protocol::{Accepted, JobList, JobProgress, JobReport, LISTED_MAX, ListedJob};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::{Notify, watch};

use crate::acl::Scope;
use crate::config::{Config, Limits};
use crate::disk::free_bytes;
use crate::spawner::{Order, Origin, Reply, SpawnError, Spawner};
use crate::spool::{self, CancelRequest, SpoolError, SpoolRequest};
use crate::store::{Opening, Store, StoreError};
use keep::Keeper;
use queue::{Phase, Queue};

/// How long the spawner's child may take over an order that runs nothing, beyond what the disk needs.
const ORDER_TIMEOUT: Duration = Duration::from_secs(10);

/// How much longer than its limit a synchronous method may take to be killed and reported.
const CALL_MARGIN: Duration = Duration::from_secs(20);

/// How long a job that finds no place waits for a server that has just started to look through the spools.
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);

/// How often, at most, a full queue has the spools looked at for ends that nobody told of.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// One method to run, its arguments bound: what the spawner is told.
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
}

/// A job to start, as its caller wrote it.
#[derive(Debug, Clone)]
pub struct JobCall {
    /// What to run.
    pub run: MethodRun,
    /// The envelope, as it came.
    pub text: String,
    /// Until when it may come.
    pub start_before: Timestamp,
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
    /// What was given up cannot be read.
    #[error(transparent)]
    Forgotten(#[from] SpoolError),
    /// The kernel does not name this boot.
    #[error("reading the boot id: {0}")]
    BootId(std::io::Error),
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
    spools: PathBuf,
    boot_id: String,
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
        let made = std::os::unix::fs::DirBuilderExt::mode(std::fs::DirBuilder::new().recursive(true), 0o700).create(&path);
        made.map_err(|source| JobsError::StateDir { path, source })?;
        // The lock comes first: it keeps a second minion from replacing the first one's spawner.
        let lock = lock_state(config)?;
        let keeper = Keeper::open(&config.spool_dir())?;
        let spawner = Spawner::open(config, origin).map_err(JobsError::Spawner)?;
        let jobs = Self {
            spawner,
            store: Store::at(&config.status_store()),
            state_dir: config.state_dir.clone(),
            spools: config.spool_dir(),
            boot_id: spool::boot_id().map_err(JobsError::BootId)?,
            server_socket: config.server_socket(),
            limits: config.limits.clone(),
            retention: config.retention,
            calls: AtomicUsize::new(0),
            queue: Mutex::new(Queue::new(config.limits.jobs_max, config.limits.queue_max)),
            vacancy: Notify::new(),
            opened: Notify::new(),
            keeper,
            looked_at: tokio::sync::Mutex::default(),
            stopping: OnceLock::new(),
            _lock: lock,
        };
        jobs.open_store();
        Ok(jobs)
    }

    /// Runs a method and gives its outcome. Dropping the future stops the method.
    ///
    /// # Errors
    /// It was refused: nothing ran.
    pub async fn run(&self, run: MethodRun) -> Result<Outcome, Failure> {
        let _slot = self.enter()?;
        let patience = run.limit + self.limits.cancel_grace + CALL_MARGIN;
        match self.spawner.order(&Order::Run(run), patience).await {
            Ok(Reply::Ended(outcome)) => Ok(outcome),
            Ok(Reply::Refused(failure)) => Err(failure),
            Ok(reply) => Err(internal(format!("the spawner answered a call with {reply:?}"))),
            Err(error @ SpawnError::Unreachable { .. }) => Err(Failure::new(ErrorCode::Undelivered, error.to_string())),
            Err(SpawnError::NoAnswer(error)) => {
                let reason = format!("the process that supervised it died or fell silent ({error}): it may have run");
                Ok(Outcome::not_run(Verdict::lost(reason), Timestamp::now()))
            }
        }
    }

    /// Takes on a job, which starts at once or waits for its turn; unless the same caller has asked for it under the same call id: then
    /// that one is named again.
    ///
    /// # Errors
    /// It was refused: nothing was started, nor will be. With the code `Lost` that is not known.
    pub async fn start(self: &Arc<Self>, minion: &MinionName, call: JobCall) -> Result<Accepted, Failure> {
        let (jobs, minion) = (Arc::clone(self), minion.clone());
        // In a task of its own, so that what was begun is brought to its end though the caller hangs up.
        let started = tokio::spawn(async move { jobs.start_unless_repeated(&minion, call).await });
        started.await.unwrap_or_else(|error| Err(Failure::new(ErrorCode::Lost, format!("starting the job broke off: {error}"))))
    }

    async fn start_unless_repeated(&self, minion: &MinionName, call: JobCall) -> Result<Accepted, Failure> {
        let JobCall { run, text, start_before } = call;
        let (caller, call_id) = (run.caller.clone(), run.call_id.clone());
        let id = MinionJobId::derive(minion, &caller, &call_id);
        if let Some(report) = self.learn(&id).await.map_err(unknown)? {
            return repeated(report, &caller, &call_id);
        }
        self.keeper.require_remembered(start_before)?;
        self.require_room().await?;
        let request = SpoolRequest {
            minion_job_id: id.clone(),
            run: Some(run),
            caller: caller.clone(),
            call_id: call_id.clone(),
            call: text,
            start_before,
            accepted_at: Timestamp::now(),
            at_once_in: None,
        };
        let order = match self.admit(&id, request.accepted_at).await? {
            Phase::Running => Order::Start(request),
            Phase::Waiting => Order::Enqueue(request),
        };
        let accepted = |state| Ok(Accepted { minion_job_id: id.clone(), state, repeated: false });
        match self.spawner.order(&order, ORDER_TIMEOUT).await {
            Ok(Reply::Started(_)) => accepted(HostState::Running),
            Ok(Reply::Done) => {
                self.lock_queue().put_back(&id);
                self.vacancy.notify_one();
                accepted(HostState::Queued)
            }
            Ok(Reply::Refused(failure)) if !failure.is(ErrorCode::Internal) => {
                self.lock_queue().end(&id);
                Err(failure)
            }
            Err(error @ SpawnError::Unreachable { .. }) => {
                self.lock_queue().end(&id);
                Err(Failure::new(ErrorCode::Undelivered, error.to_string()))
            }
            // The same call came twice at once, or nobody answered: the spool knows.
            Ok(_) | Err(SpawnError::NoAnswer(_)) => match self.learn(&id).await.map_err(unknown)? {
                Some(report) => {
                    if report.progress.state() == HostState::Queued {
                        self.lock_queue().put_back(&id);
                        self.vacancy.notify_one();
                    }
                    repeated(report, &caller, &call_id)
                }
                None => {
                    self.lock_queue().end(&id);
                    Err(Failure::new(ErrorCode::Lost, "the spawner gave no answer; ask again with the same call id"))
                }
            },
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

    /// Stops the job `id`, and says what became of it: it may have ended by itself before, or not be dead yet.
    ///
    /// # Errors
    /// There is none that the reader may see, or the wish cannot be written down.
    pub async fn cancel(&self, reader: &Reader, id: &MinionJobId) -> Result<JobReport, Failure> {
        let report = self.status(reader, id).await?;
        if report.progress.state().is_final() {
            return Ok(report);
        }
        // None if it has ended between the two looks.
        let Some(waiter) = self.lock_queue().waiter(id) else { return self.status(reader, id).await };
        let ended = waiter.notified();
        let wish = CancelRequest { by: reader.caller.clone(), at: Timestamp::now() };
        self.carry_out(&Order::Cancel(id.clone(), wish)).await?;
        let report = self.status(reader, id).await?;
        if report.progress.state().is_final() {
            return Ok(report);
        }
        let _ended_or_not = tokio::time::timeout(self.limits.cancel_grace + ORDER_TIMEOUT, ended).await;
        self.status(reader, id).await
    }

    /// Sees to it that the reader's call `call_id` never starts here, unless it has been here: then its job is reported.
    ///
    /// # Errors
    /// The fence cannot be made; whether the call may still start is not known then. With the code `Lost` it may have run, and been given up.
    pub async fn fence(&self, minion: &MinionName, reader: &Reader, call_id: &CallId) -> Result<JobReport, Failure> {
        let id = MinionJobId::derive(minion, &reader.caller, call_id);
        if self.learn(&id).await?.is_none() {
            self.keeper.require_known(&reader.caller, call_id)?;
            self.require_kept_room().await?;
            let now = Timestamp::now();
            let (caller, call_id) = (reader.caller.clone(), call_id.clone());
            let request = SpoolRequest {
                minion_job_id: id.clone(),
                run: None,
                caller,
                call_id,
                call: String::new(),
                start_before: now,
                accepted_at: now,
                at_once_in: None,
            };
            self.carry_out(&Order::Fence(request)).await?;
        }
        self.status(reader, &id).await
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

    /// Gives the job a place, to run or to wait.
    async fn admit(&self, id: &MinionJobId, accepted_at: Timestamp) -> Result<Phase, Failure> {
        let admit = || self.lock_queue().admit(id, accepted_at);
        if let Ok(phase) = admit() {
            return Ok(phase);
        }
        // A server that has just started takes a moment to see what runs.
        let opened = self.opened.notified();
        if !self.lock_queue().is_open() {
            let _open_or_not = tokio::time::timeout(OPEN_TIMEOUT, opened).await;
        } else {
            // Pokes get lost when many jobs end at once: look before refusing.
            self.look_again().await;
        }
        admit().map_err(|why| Failure::new(ErrorCode::LimitReached, why))
    }

    /// Looks at the jobs that run. Who asks for that often waits a moment, and one look serves all who do.
    async fn look_again(&self) {
        let asked_at = Instant::now();
        let mut looked_at = self.looked_at.lock().await;
        if let Some(last) = *looked_at {
            if last >= asked_at {
                return;
            }
            tokio::time::sleep(LOOK_AGAIN.saturating_sub(last.elapsed())).await;
        }
        *looked_at = Some(Instant::now());
        self.take_in_running().await;
    }

    /// That there is room for one more job, on the disk and among those that are kept.
    async fn require_room(&self) -> Result<(), Failure> {
        let reserve = self.limits.disk_reserve_bytes;
        match free_bytes(&self.state_dir) {
            Ok(free) if free < reserve => {
                let dir = self.state_dir.display();
                let why =
                    format!("{free} bytes are free on the disk of {dir}, and limits.disk_reserve_bytes is {reserve}: make room there");
                Err(Failure::new(ErrorCode::LimitReached, why))
            }
            Ok(_) => self.require_kept_room().await,
            Err(error) => Err(Failure::new(ErrorCode::Undelivered, format!("looking for room in {}: {error}", self.state_dir.display()))),
        }
    }

    /// Has an order carried out that runs nothing.
    async fn carry_out(&self, order: &Order) -> Result<(), Failure> {
        match self.spawner.order(order, ORDER_TIMEOUT).await {
            Ok(Reply::Refused(failure)) => Err(failure),
            Ok(_) => Ok(()),
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
    match lock.try_lock() {
        Err(std::fs::TryLockError::WouldBlock) => Err(JobsError::InUse(path)),
        Ok(()) | Err(std::fs::TryLockError::Error(_)) => Ok(Some(lock)),
    }
}

/// That it is not known whether a call has started, because its spool cannot be read.
fn unknown(failure: Failure) -> Failure {
    Failure::new(ErrorCode::Lost, format!("whether the job has started cannot be told: {}", failure.message))
}

/// The answer to a call that came again. A fenced call is refused.
fn repeated(report: JobReport, caller: &CallerName, call_id: &CallId) -> Result<Accepted, Failure> {
    if report.caller != *caller || report.call_id != *call_id {
        // Sixty bits of a hash agree by chance; it will not happen, but it must not be an answer either.
        let message = format!("the id {} is taken by another call; send it again as a new job", report.minion_job_id);
        return Err(Failure::new(ErrorCode::LimitReached, message));
    }
    match &report.progress {
        JobProgress::Ended(Outcome { verdict: Verdict::Undelivered { error }, .. }) => Err(error.clone()),
        progress => Ok(Accepted { state: progress.state(), minion_job_id: report.minion_job_id, repeated: true }),
    }
}

fn internal(problem: String) -> Failure {
    Failure::new(ErrorCode::Internal, problem)
}
