//! What becomes known of a job: by the store if it has ended, else by its spool, which is the truth.

use std::time::{Duration, Instant};

use common::job::{HostState, MinionJobId};
use common::outcome::{ErrorCode, Failure, Outcome, Verdict};
use common::protocol::{JobProgress, JobReport, ListedJob};
use jiff::Timestamp;

use super::queue::Phase;
use super::{Jobs, internal};
use crate::moment::Moment;
use crate::spawner::Order;
use crate::spool::{Life, Spool, SpoolError, SpoolRequest};
use crate::store::{Kept, Known, StoreError};

/// How long others may take to write down the end of a job that nobody runs any more.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(5);
/// How often it is looked whether they have.
const SETTLE_AGAIN: Duration = Duration::from_millis(50);

/// What a spool says.
struct Read {
    request: Result<SpoolRequest, SpoolError>,
    life: Life,
    bytes: u64,
}

impl Read {
    /// Nothing will come of it any more, and nobody has written that down.
    fn is_to_be_settled(&self) -> bool {
        match self.life {
            Life::Dead(_) | Life::Damaged(_) => true,
            Life::Queued => self.request.is_err(),
            Life::Ended(_) | Life::Running(_) => false,
        }
    }
}

impl Jobs {
    /// What is known of the job `id`; none if there is no such job.
    ///
    /// # Errors
    /// Its spool cannot be read. With the code `Lost` it never will be.
    pub(super) async fn learn(&self, id: &MinionJobId) -> Result<Option<JobReport>, Failure> {
        let known = self.store.find(id);
        if let Some(Known::Whole(report)) = known {
            return Ok(Some(report));
        }
        self.look(id, known).await
    }

    /// What the spool of the job `id` says, which is taken note of; `known` is what the store has of it.
    pub(super) async fn look(&self, id: &MinionJobId, known: Option<Known>) -> Result<Option<JobReport>, Failure> {
        let spool = Spool::of(&self.spools, id);
        if !spool.exists().map_err(|error| internal(error.to_string()))? {
            return Ok(known.map(|known| spool_gone(known, &spool)));
        }
        let mut found = Self::read(&spool).await?;
        let deadline = Instant::now() + SETTLE_TIMEOUT;
        while found.is_to_be_settled() {
            self.carry_out(&Order::Settle(id.clone())).await?;
            found = Self::read(&spool).await?;
            if found.is_to_be_settled() {
                // Somebody else works under its lock; what he makes of it is not known yet, and nothing else must be told.
                if Instant::now() >= deadline {
                    return Err(internal(format!("the end of the job {id} is being written down: ask again")));
                }
                tokio::time::sleep(SETTLE_AGAIN).await;
            }
        }
        let Read { request, life, bytes } = found;
        let request = match request {
            Ok(request) => request,
            // It was removed between the two looks.
            Err(_) if !spool.exists().unwrap_or(true) => return Ok(known.map(|known| spool_gone(known, &spool))),
            Err(damage) => return damaged(known, life, &damage).map(Some),
        };
        let kept = Kept {
            caller: request.caller.clone(),
            call_id: request.call_id.clone(),
            start_before: request.start_before,
            bytes,
            since: Moment::now(),
        };
        let report = request.report(progress(life));
        match report.progress.state() {
            // One that has a place is about to start, or is put back by who knows better.
            HostState::Queued => self.lock_queue().see_new(id, report.accepted_at),
            HostState::Running => self.lock_queue().see(id, report.accepted_at, Phase::Running),
            _ended if known.is_some() => self.has_ended(id),
            _ended => self.keep(&report, kept).await,
        }
        Ok(Some(report))
    }

    /// Takes in the end of a job.
    async fn keep(&self, report: &JobReport, kept: Kept) {
        match self.store.put(report.clone(), kept.clone()).await {
            Ok(true) => self.keeper.count(&kept),
            // It was said when it happened; the spool has all of it, and is taken in later.
            Ok(false) | Err(StoreError::Closed(_)) => {}
            Err(error) => self.tell_store_error(&error),
        }
        self.has_ended(&report.minion_job_id);
    }

    /// Gives the place of a job away, and tells who waits for its end.
    pub(super) fn has_ended(&self, id: &MinionJobId) {
        self.lock_queue().end(id);
        self.vacancy.notify_one();
    }

    async fn read(spool: &Spool) -> Result<Read, Failure> {
        let spool = spool.clone();
        let read = tokio::task::spawn_blocking(move || {
            let request = match spool.request() {
                Err(error) if !error.is_damage() => return Err(error),
                request => request,
            };
            let life = spool.life()?;
            let bytes = if matches!(life, Life::Ended(_)) { spool.disk_bytes() } else { 0 };
            Ok::<_, SpoolError>(Read { request, life, bytes })
        });
        match read.await {
            Ok(Ok(read)) => Ok(read),
            Ok(Err(error)) => Err(internal(error.to_string())),
            Err(error) => Err(internal(error.to_string())),
        }
    }

    /// The jobs that have not ended, in brief; what cannot be read is left out.
    pub(super) async fn live_jobs(&self) -> Vec<ListedJob> {
        let ids = self.lock_queue().ids();
        let mut jobs = Vec::with_capacity(ids.len());
        for id in ids {
            // One that has ended by now is among the ends.
            jobs.extend(self.learn(&id).await.ok().flatten().filter(|job| !job.progress.state().is_final()).map(ListedJob::from));
        }
        jobs
    }
}

/// How far it is; what is dead or damaged was settled before.
fn progress(life: Life) -> JobProgress {
    let going = |state, started_at| JobProgress::Going { state, started_at };
    match life {
        Life::Ended(outcome) => JobProgress::Ended(outcome),
        Life::Running(started) => going(HostState::Running, started.at),
        Life::Queued | Life::Dead(None) => going(HostState::Queued, None),
        Life::Dead(Some(started)) => going(HostState::Running, started.at),
        Life::Damaged(_) => going(HostState::Running, None),
    }
}

/// What is told of a job of which nobody can read who asked for it.
fn damaged(known: Option<Known>, life: Life, damage: &SpoolError) -> Result<JobReport, Failure> {
    match (known, life) {
        (Some(known), Life::Ended(outcome)) => Ok(of_known(known, outcome)),
        _ => Err(Failure::new(ErrorCode::Lost, format!("nothing can be told of it: {damage}; its folder stays until somebody removes it"))),
    }
}

/// What is told of a job whose spool is not there. It is not written down: a disk that was not mounted may be yet.
fn spool_gone(known: Known, spool: &Spool) -> JobReport {
    let reason = format!("its spool {} is gone, and its result with it", spool.dir().display());
    of_known(known, Outcome::not_run(Verdict::lost(reason), Timestamp::now()))
}

fn of_known(known: Known, outcome: Outcome) -> JobReport {
    let ListedJob { minion_job_id, call_id, caller, method, accepted_at, .. } = known.into();
    JobReport { minion_job_id, call_id, caller, method, accepted_at, progress: JobProgress::Ended(outcome) }
}
