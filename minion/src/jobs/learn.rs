//! What becomes known of a job: by the store if it has ended, else by its spool, which is the truth.

use std::time::{Duration, Instant};

use common::job::{HostState, MinionJobId};
use common::outcome::{ErrorCode, Failure, Outcome, Progress, Verdict};
use common::protocol::{JobProgress, JobReport, ListedJob};
use jiff::Timestamp;

use super::queue::Phase;
use super::{Jobs, astray, internal};
use crate::moment::Moment;
use crate::spawner::{Look, Order, Reply};
use crate::spool::{Life, Seen};
use crate::store::{Kept, Known, StoreError};

/// How long others may take to write down the end of a job that nobody runs any more.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(5);
/// How often it is looked whether they have.
const SETTLE_AGAIN: Duration = Duration::from_millis(50);

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
        let Some(mut found) = self.see(id).await? else { return Ok(known.map(|known| self.spool_gone(known))) };
        let deadline = Instant::now() + SETTLE_TIMEOUT;
        while found.is_to_be_settled() {
            self.carry_out(&Order::Settle(id.clone())).await?;
            let Some(settled) = self.see(id).await? else { return Ok(known.map(|known| self.spool_gone(known))) };
            found = settled;
            if found.is_to_be_settled() {
                // Somebody else works under its lock; what he makes of it is not known yet, and nothing else must be told.
                if Instant::now() >= deadline {
                    return Err(internal(format!("the end of the job {id} is being written down: ask again")));
                }
                tokio::time::sleep(SETTLE_AGAIN).await;
            }
        }
        let Seen { brief, life, progress: said, bytes } = found;
        let brief = match brief {
            Ok(brief) => brief,
            Err(damage) => return damaged(known, life, &damage).map(Some),
        };
        let kept = Kept {
            caller: brief.caller.clone(),
            call_id: brief.call_id.clone(),
            start_before: brief.start_before,
            bytes,
            since: Moment::now(),
        };
        let report = brief.report(progress(life, said));
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

    /// What the spool of the job `id` says; none if there is none.
    async fn see(&self, id: &MinionJobId) -> Result<Option<Seen>, Failure> {
        match self.look_for(Look::Spools(vec![id.clone()])).await? {
            Reply::Seen(seen) => seen.into_iter().next().unwrap_or(Ok(None)).map_err(internal),
            reply => Err(astray(&reply)),
        }
    }

    /// What is told of a job whose spool is not there. It is not written down: a disk that was not mounted may be yet.
    fn spool_gone(&self, known: Known) -> JobReport {
        let listed = ListedJob::from(known.clone());
        let reason = format!("its spool {} is gone, and its result with it", self.spools.join(listed.minion_job_id.as_str()).display());
        of_known(known, Outcome::not_run(Verdict::lost(reason), Timestamp::now()))
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

/// How far it is, and how far it said that it is; what is dead or damaged was settled before.
fn progress(life: Life, said: Option<Progress>) -> JobProgress {
    let going = |state, started_at| JobProgress::Going { state, started_at, progress: said };
    match life {
        Life::Ended(outcome) => JobProgress::Ended(outcome),
        Life::Running(started) => going(HostState::Running, started.at),
        Life::Queued | Life::Dead(None) => going(HostState::Queued, None),
        Life::Dead(Some(started)) => going(HostState::Running, started.at),
        Life::Damaged(_) => going(HostState::Running, None),
    }
}

/// What is told of a job of which nobody can read who asked for it.
fn damaged(known: Option<Known>, life: Life, damage: &str) -> Result<JobReport, Failure> {
    match (known, life) {
        (Some(known), Life::Ended(outcome)) => Ok(of_known(known, outcome)),
        _ => Err(Failure::new(ErrorCode::Lost, format!("nothing can be told of it: {damage}; its folder stays until somebody removes it"))),
    }
}

fn of_known(known: Known, outcome: Outcome) -> JobReport {
    let ListedJob { minion_job_id, call_id, caller, method, accepted_at, .. } = known.into();
    JobReport { minion_job_id, call_id, caller, method, accepted_at, progress: JobProgress::Ended(outcome) }
}
