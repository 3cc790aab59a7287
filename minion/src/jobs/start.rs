//! Taking on a job: whether there is room for it, whether it runs at once or waits, and what is said of one that was asked for before.

use std::sync::Arc;
use std::time::{Duration, Instant};

use common::identity::CallerName;
use common::job::{CallId, HostState, MinionJobId};
use common::outcome::{ErrorCode, Failure, Outcome, Verdict};
use common::protocol::{Accepted, JobProgress, JobReport};
use jiff::Timestamp;

use super::queue::Phase;
use super::{Jobs, ORDER_TIMEOUT};
use crate::call::Ask;
use crate::disk::free_bytes;
use crate::spawner::{Look, Order, Place, Reply, SpawnError};

/// How long a job that finds no place waits for a server that has just started to look through the spools.
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);

/// How often, at most, a full queue has the spools looked at for ends that nobody told of.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// A job to start.
#[derive(Debug, Clone)]
pub struct JobCall {
    /// The call, as its caller wrote it.
    pub ask: Ask,
    /// Who asks.
    pub caller: CallerName,
    /// Under which call id.
    pub call_id: CallId,
    /// Until when it may come.
    pub start_before: Timestamp,
}

impl Jobs {
    /// Takes on a job, which starts at once or waits for its turn; unless the same caller has asked for it under the same call id: then
    /// that one is named again.
    ///
    /// # Errors
    /// It was refused: nothing was started, nor will be. With the code `Lost` that is not known.
    pub async fn start(self: &Arc<Self>, call: JobCall) -> Result<Accepted, Failure> {
        let jobs = Arc::clone(self);
        // In a task of its own, so that what was begun is brought to its end though the caller hangs up.
        let started = tokio::spawn(async move { jobs.start_unless_repeated(call).await });
        started.await.unwrap_or_else(|error| Err(Failure::new(ErrorCode::Lost, format!("starting the job broke off: {error}"))))
    }

    async fn start_unless_repeated(&self, call: JobCall) -> Result<Accepted, Failure> {
        let JobCall { ask, caller, call_id, start_before } = call;
        let id = MinionJobId::derive(&ask.minion, &caller, &call_id);
        if let Some(report) = self.learn(&id).await.map_err(unknown)? {
            return self.repeat(report, &caller, &call_id).await;
        }
        self.require_room().await?;
        if Timestamp::now() >= start_before {
            return Err(Failure::new(ErrorCode::TooLate, "too late: making room for it took until after its start-before"));
        }
        let accepted_at = self.lock_queue().stamp(Timestamp::now());
        let order = match self.admit(&id, accepted_at).await? {
            Phase::Running | Phase::Aside => Order::Start(Place { ask, accepted_at }),
            Phase::Waiting => Order::Enqueue(Place { ask, accepted_at }),
        };
        let accepted = |state| Ok(Accepted { minion_job_id: id.clone(), state, repeated: false });
        match self.spawner.order(&order, ORDER_TIMEOUT).await {
            Ok(Reply::Started(_)) => accepted(HostState::Running),
            Ok(Reply::Done) => {
                self.lock_queue().put_back(&id);
                self.vacancy.notify_one();
                accepted(HostState::Queued)
            }
            Ok(Reply::Refused(failure)) if !failure.is(ErrorCode::Internal) => self.settle_start(&id, &caller, &call_id, failure).await,
            Err(error @ (SpawnError::Unreachable { .. } | SpawnError::OtherVersion(_))) => {
                let failure = Failure::new(ErrorCode::Undelivered, error.to_string());
                self.settle_start(&id, &caller, &call_id, failure).await
            }
            // The same call came twice at once, or nobody answered.
            Ok(_) | Err(SpawnError::NoAnswer(_)) => {
                let failure = Failure::new(ErrorCode::Lost, "the spawner gave no answer; ask again with the same call id");
                self.settle_start(&id, &caller, &call_id, failure).await
            }
        }
    }

    /// What came of a start that did not go as ordered: the spool knows, and without one it is `failure`.
    async fn settle_start(&self, id: &MinionJobId, caller: &CallerName, call_id: &CallId, failure: Failure) -> Result<Accepted, Failure> {
        match self.learn(id).await.map_err(unknown)? {
            Some(report) => {
                if report.progress.state() == HostState::Queued {
                    self.lock_queue().put_back(id);
                    self.vacancy.notify_one();
                }
                self.repeat(report, caller, call_id).await
            }
            None => {
                self.lock_queue().end(id);
                Err(failure)
            }
        }
    }

    /// The answer to a call that came again. Its spool may have its name and lose it in a power cut: nobody is told of it before that is over.
    async fn repeat(&self, report: JobReport, caller: &CallerName, call_id: &CallId) -> Result<Accepted, Failure> {
        self.look_for(Look::Sync).await.map_err(unknown)?;
        repeated(report, caller, call_id)
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
    pub(super) async fn look_again(&self) {
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
