//! Methods that run outside the server: synchronous calls, and jobs from their start to their report.
//!
//! The server's side of it. It asks the spawner, reads spools and answers from the status store; it forks nothing and writes no spool.

mod logs;
mod tend;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use common::identity::{CallerName, MinionName};
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
use crate::spawner::{Order, Origin, Reply, SpawnError, Spawner};
use crate::spool::{CancelRequest, Life, Spool, SpoolError, SpoolRequest};
use crate::store::{Known, Store, StoreError};

/// How long the spawner's child may take over an order that runs nothing, beyond what the disk needs.
const ORDER_TIMEOUT: Duration = Duration::from_secs(10);

/// How much longer than its limit a synchronous method may take to be killed and reported.
const CALL_MARGIN: Duration = Duration::from_secs(20);

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
    /// The store cannot be opened.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The spawner does not start.
    #[error("starting the spawner: {0}")]
    Spawner(std::io::Error),
}

/// The methods that run on this host outside the server.
#[derive(Debug)]
pub struct Jobs {
    spawner: Spawner,
    store: Store,
    spools: PathBuf,
    server_socket: PathBuf,
    limits: Limits,
    calls: AtomicUsize,
    /// The jobs that have not ended, as far as is known, and who waits for their end.
    live: Mutex<HashMap<MinionJobId, Arc<Notify>>>,
    /// The store could not be written, and is not to be relied on any more.
    store_failed: Notify,
    /// True when the server is to end.
    stopping: OnceLock<watch::Receiver<bool>>,
}

/// A place among `limits.processes_max`, given back when dropped.
struct Slot<'a>(&'a AtomicUsize);

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Jobs {
    /// Opens the store, and starts the spawner if it is to be the server's own.
    ///
    /// # Errors
    /// See [`JobsError`].
    pub fn open(config: &Config, origin: Origin) -> Result<Self, JobsError> {
        let path = config.state_dir.clone();
        let made = std::os::unix::fs::DirBuilderExt::mode(std::fs::DirBuilder::new().recursive(true), 0o700).create(&path);
        made.map_err(|source| JobsError::StateDir { path, source })?;
        // The store comes first: its lock keeps a second minion from replacing the first one's spawner.
        let (store, aside) = Store::open(&config.status_store())?;
        if let Some(aside) = aside {
            tracing::error!(aside = %aside.display(), "the status store was damaged; it is set aside and made anew from the spools");
        }
        let spawner = Spawner::open(config, origin).map_err(JobsError::Spawner)?;
        let live = store.all().filter(|known| !known.state().is_final()).map(ListedJob::from);
        let live = Mutex::new(live.map(|job| (job.minion_job_id, Arc::default())).collect());
        Ok(Self {
            spawner,
            store,
            spools: config.spool_dir(),
            server_socket: config.server_socket(),
            limits: config.limits.clone(),
            calls: AtomicUsize::new(0),
            live,
            store_failed: Notify::new(),
            stopping: OnceLock::new(),
        })
    }

    /// Runs a method and gives its outcome. Dropping the future stops the method.
    ///
    /// # Errors
    /// It was refused: nothing ran.
    pub async fn run(&self, run: MethodRun) -> Result<Outcome, Failure> {
        let _slot = self.enter().await?;
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

    /// Starts a job, unless the same caller has started one under the same call id: then that one is named again.
    ///
    /// # Errors
    /// It was refused: nothing was started. With the code `Lost` that is not known.
    pub async fn start(&self, minion: &MinionName, run: MethodRun, call: String) -> Result<Accepted, Failure> {
        let id = MinionJobId::derive(minion, &run.caller, &run.call_id);
        if let Some(report) = self.learn(&id).await.map_err(unknown)? {
            return repeated(report, &run.caller, &run.call_id);
        }
        let _slot = self.enter().await?;
        let request = request(&id, run.caller.clone(), run.call_id.clone(), Some(run.clone()), call);
        // Before the order, so that the job counts though the caller hangs up now.
        self.lock_live().entry(id.clone()).or_default();
        match self.spawner.order(&Order::Start(request.clone()), ORDER_TIMEOUT).await {
            Ok(Reply::Started) => {
                let report = request.report(JobProgress::Going { state: HostState::Running, started_at: None });
                if let Err(failure) = self.note(report).await {
                    // The spool is durable, and the job runs: that is what counts. The store is made anew from the spools.
                    tracing::error!(minion_job_id = %id, problem = %failure.message, "a job that has started is not in the store");
                }
                Ok(Accepted { minion_job_id: id, state: HostState::Running, repeated: false })
            }
            Ok(Reply::Refused(failure)) => {
                self.lock_live().remove(&id);
                Err(failure)
            }
            Err(error @ SpawnError::Unreachable { .. }) => {
                self.lock_live().remove(&id);
                Err(Failure::new(ErrorCode::Undelivered, error.to_string()))
            }
            // The same call came twice at once, or nobody answered: the spool knows.
            Ok(_) | Err(SpawnError::NoAnswer(_)) => match self.learn(&id).await.map_err(unknown)? {
                Some(report) => repeated(report, &run.caller, &run.call_id),
                None => Err(Failure::new(ErrorCode::Lost, "the spawner gave no answer; ask again with the same call id")),
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

    /// The jobs that the reader may hear of.
    pub async fn list(&self, reader: &Reader) -> JobList {
        self.take_in_live().await;
        let mut jobs: Vec<ListedJob> = self.store.all().map(ListedJob::from).filter(|job| reader.may_see(&job.caller)).collect();
        jobs.sort_by_key(|job| std::cmp::Reverse(job.accepted_at));
        let more = jobs.len().saturating_sub(LISTED_MAX);
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
        let Some(waiter) = self.waiter(id) else { return self.status(reader, id).await };
        let ended = waiter.notified();
        let wish = CancelRequest { by: reader.caller.clone(), at: Timestamp::now() };
        self.carry_out(&Order::Cancel(id.clone(), wish)).await?;
        let _ended_or_not = tokio::time::timeout(self.limits.cancel_grace + ORDER_TIMEOUT, ended).await;
        self.status(reader, id).await
    }

    /// Sees to it that the reader's call `call_id` never starts here, unless it has: then its job is reported.
    ///
    /// # Errors
    /// The fence cannot be made; whether the call may still start is not known then.
    pub async fn fence(&self, minion: &MinionName, reader: &Reader, call_id: &CallId) -> Result<JobReport, Failure> {
        let id = MinionJobId::derive(minion, &reader.caller, call_id);
        if self.learn(&id).await?.is_none() {
            let request = request(&id, reader.caller.clone(), call_id.clone(), None, String::new());
            self.carry_out(&Order::Fence(request)).await?;
        }
        self.status(reader, &id).await
    }

    /// Takes one of `limits.processes_max` places for a call or for the start of a job.
    async fn enter(&self) -> Result<Slot<'_>, Failure> {
        let slot = Slot(&self.calls);
        let calls = self.calls.fetch_add(1, Ordering::Relaxed);
        let limit = self.limits.processes_max;
        if calls + self.lock_live().len() < limit {
            return Ok(slot);
        }
        // Pokes get lost when many jobs end at once: look before refusing.
        self.take_in_live().await;
        let jobs = self.lock_live().len();
        if calls + jobs < limit {
            return Ok(slot);
        }
        let message = format!("{calls} calls and {jobs} jobs run here, and limits.processes_max is {limit}; try again later");
        Err(Failure::new(ErrorCode::LimitReached, message))
    }

    /// What is known of the job `id`, by the store if it has ended, else by its spool.
    async fn learn(&self, id: &MinionJobId) -> Result<Option<JobReport>, Failure> {
        let known = self.store.find(id);
        if let Some(known @ Known::Whole(report)) = &known
            && known.is_settled()
        {
            return Ok(Some(report.clone()));
        }
        let spool = Spool::of(&self.spools, id);
        if !spool.exists().map_err(|error| internal(error.to_string()))? {
            return Ok(known.map(|known| spool_gone(known, &spool)));
        }
        let mut life = read(&spool).await?;
        if let (_, Life::Dead(_)) = life {
            self.carry_out(&Order::Settle(id.clone())).await?;
            life = read(&spool).await?;
        }
        let (request, life) = life;
        let report = request.report(match life {
            Life::Ended(outcome) => JobProgress::Ended(outcome),
            Life::Going(started) | Life::Dead(started) => {
                JobProgress::Going { state: HostState::Running, started_at: started.map(|started| started.at) }
            }
        });
        let is_news = known.as_ref().is_none_or(|known| match known {
            Known::Whole(whole) => *whole != report,
            Known::Listed(job) => job.state != report.progress.state(),
        });
        if is_news { self.note(report).await.map(Some) } else { Ok(Some(report)) }
    }

    /// Has an order carried out that runs nothing.
    async fn carry_out(&self, order: &Order) -> Result<(), Failure> {
        match self.spawner.order(order, ORDER_TIMEOUT).await {
            Ok(Reply::Refused(failure)) => Err(failure),
            Ok(_) => Ok(()),
            Err(error) => Err(internal(error.to_string())),
        }
    }

    /// Writes down what is known of a job, and tells who waits for its end.
    async fn note(&self, report: JobReport) -> Result<JobReport, Failure> {
        let written = self.store.put(report.clone()).await;
        if written.is_err() {
            self.store_failed.notify_one();
        }
        written.map_err(|error| internal(error.to_string()))?;
        let mut live = self.lock_live();
        if report.progress.state().is_final() {
            if let Some(waiter) = live.remove(&report.minion_job_id) {
                waiter.notify_waiters();
            }
        } else {
            live.entry(report.minion_job_id.clone()).or_default();
        }
        Ok(report)
    }

    fn waiter(&self, id: &MinionJobId) -> Option<Arc<Notify>> {
        self.lock_live().get(id).cloned()
    }

    fn live_ids(&self) -> Vec<MinionJobId> {
        self.lock_live().keys().cloned().collect()
    }

    fn lock_live(&self) -> std::sync::MutexGuard<'_, HashMap<MinionJobId, Arc<Notify>>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
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

/// What is told of a job whose spool is not there. It is not written down: a disk that was not mounted may be yet.
fn spool_gone(known: Known, spool: &Spool) -> JobReport {
    let reason = format!("its spool {} is gone, and its result with it", spool.dir().display());
    let ListedJob { minion_job_id, call_id, caller, method, accepted_at, .. } = known.into();
    let progress = JobProgress::Ended(Outcome::not_run(Verdict::lost(reason), Timestamp::now()));
    JobReport { minion_job_id, call_id, caller, method, accepted_at, progress }
}

/// That it is not known whether a call has started, because its spool cannot be read.
fn unknown(failure: Failure) -> Failure {
    Failure::new(ErrorCode::Lost, format!("whether the job has started cannot be told: {}", failure.message))
}

fn request(id: &MinionJobId, caller: CallerName, call_id: CallId, run: Option<MethodRun>, call: String) -> SpoolRequest {
    SpoolRequest { minion_job_id: id.clone(), run, caller, call_id, call, accepted_at: Timestamp::now() }
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

async fn read(spool: &Spool) -> Result<(SpoolRequest, Life), Failure> {
    let spool = spool.clone();
    let read = tokio::task::spawn_blocking(move || Ok::<_, SpoolError>((spool.request()?, spool.life()?))).await;
    match read {
        Ok(Ok(read)) => Ok(read),
        Ok(Err(error)) => Err(internal(error.to_string())),
        Err(error) => Err(internal(error.to_string())),
    }
}

fn internal(problem: String) -> Failure {
    Failure::new(ErrorCode::Internal, problem)
}
