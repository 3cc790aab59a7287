//! What a job has written, a piece at a time; whoever wants more than there is may wait for it, and holds no thread meanwhile.
//!
//! The spawner reads it, for the signed call of who may see it.

use std::time::Duration;

use common::job::MinionJobId;
use common::outcome::{ErrorCode, Failure};
use common::protocol::{JobLogs, JobProgress, LOGS_WAIT_MAX_MS, logs_chunk_bytes};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::{Jobs, Reader, astray};
use crate::call::Ask;
use crate::modules::LogsWanted;
use crate::spawner::{LogsOrder, Look, Reply};
use crate::spool::Glance;

/// How often the files of a job whose output is waited for are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// How often such a job is asked after as a whole: one whose daemon was killed leaves no outcome to be seen.
const LEARN_EVERY: Duration = Duration::from_secs(1);

impl Jobs {
    /// What the job has written, in a reply of at most `reply_max_bytes`. If that is nothing beyond the offsets, it waits as long as is wanted,
    /// but no longer than [`LOGS_WAIT_MAX_MS`], for more, or for the job's end.
    ///
    /// # Errors
    /// There is no such job that the reader may hear of, or its spool is gone or cannot be read.
    pub async fn logs(&self, reader: &Reader, wanted: &LogsWanted, ask: Ask, reply_max_bytes: usize) -> Result<JobLogs, Failure> {
        let deadline = Instant::now() + Duration::from_millis(wanted.wait_ms.min(LOGS_WAIT_MAX_MS).into());
        let max_bytes = logs_chunk_bytes(reply_max_bytes);
        let (mut may_wait, mut before) = (wanted.wait_ms > 0, None);
        loop {
            // The state before the output: what is read after the end is all that there is.
            let report = self.status(reader, &wanted.id).await?;
            let state = report.progress.state();
            let has_run = matches!(&report.progress, JobProgress::Ended(outcome) if outcome.started_at.is_some());
            let order = LogsOrder { ask: ask.clone(), max_bytes, is_final: state.is_final(), has_run };
            let (glance, [stdout, stderr]) = match self.look_for(Look::Logs(order)).await {
                Ok(Reply::Logs(glance, pieces)) => (glance, pieces),
                Ok(reply) => return Err(astray(&reply)),
                // Its time was over while it waited: nothing more is said than was, and whoever wants more asks again.
                Err(failure) if failure.is(ErrorCode::TooLate) => return before.ok_or(failure),
                Err(failure) => return Err(failure),
            };
            let is_news = stdout.next > wanted.stdout || stderr.next > wanted.stderr;
            if is_news || state.is_final() || !may_wait {
                let is_read = stdout.next >= stdout.size_bytes && stderr.next >= stderr.size_bytes;
                let complete = state.is_final() && is_read;
                return Ok(JobLogs { minion_job_id: report.minion_job_id, call_id: report.call_id, state, complete, stdout, stderr });
            }
            let (minion_job_id, call_id) = (report.minion_job_id, report.call_id);
            before = Some(JobLogs { minion_job_id, call_id, state, complete: false, stdout, stderr });
            may_wait = self.wait_for_change(&wanted.id, glance, deadline).await?;
        }
    }

    /// From when `stop` is true, nobody waits for output any more: a server that is to end would wait for them.
    pub fn stop_waiting_on(&self, stop: watch::Receiver<bool>) {
        // Said twice, the first holds.
        let _said_before = self.stopping.set(stop);
    }

    fn is_stopping(&self) -> bool {
        self.stopping.get().is_some_and(|stop| *stop.borrow())
    }

    /// Waits until the spool of the job `id` looks different from `before`, or it is time to ask after the job; `false` if there is no more time to wait, or
    /// the server is to end.
    async fn wait_for_change(&self, id: &MinionJobId, before: Glance, deadline: Instant) -> Result<bool, Failure> {
        let until = deadline.min(Instant::now() + LEARN_EVERY);
        loop {
            sleep(LOOK_EVERY.min(until.saturating_duration_since(Instant::now()))).await;
            if self.is_stopping() || Instant::now() >= deadline {
                return Ok(false);
            }
            let now = match self.look_for(Look::Glance(id.clone())).await? {
                Reply::Glance(now) => now,
                reply => return Err(astray(&reply)),
            };
            // An outcome that was seen already came between the last look at the job and the one at its files.
            if now != before || before.has_ended || Instant::now() >= until {
                return Ok(true);
            }
        }
    }
}
