//! Waiting for jobs to end. A job that waits for others has no place among `limits.jobs_max` meanwhile, and has one again before it hears of their ends.

use std::future::pending;
use std::time::Duration;

use common::job::MinionJobId;
use common::outcome::{ErrorCode, Failure};
use common::protocol::{JobsWaited, LOGS_WAIT_MAX_MS, WAITED_MAX};
use serde_json::json;
use tokio::sync::futures::Notified;
use tokio::time::{Instant, timeout_at};

use super::queue::Begun;
use super::{Jobs, Reader};
use crate::modules::JobsWanted;
use crate::submit::NO_PLACE;

/// How often jobs that are waited for are looked at though nobody has told of an end: pokes get lost when many jobs end at once.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Longer than anybody waits.
const FOR_EVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// Who waits.
#[derive(Clone, Copy)]
pub struct Waiter<'a> {
    /// The job that does, if it is one.
    pub job: Option<&'a MinionJobId>,
    /// Called once it is known that a job waits: whatever it has that others need goes to them.
    pub settle: &'a (dyn Fn() + Sync),
}

/// The wait of a job that goes on; it ends when this is dropped.
struct Aside<'a> {
    jobs: &'a Jobs,
    id: &'a MinionJobId,
    begun: Begun,
}

impl Drop for Aside<'_> {
    fn drop(&mut self) {
        self.jobs.lock_queue().leave(self.id, &self.begun);
        self.jobs.vacancy.notify_one();
    }
}

impl Jobs {
    /// How the jobs stand once all of them have ended, or the time is over: of who is no job that is [`LOGS_WAIT_MAX_MS`] at most.
    ///
    /// # Errors
    /// There is one that the reader may not hear of; or a job would wait for itself. With [`NO_PLACE`] in its data the server is to end, and it may be asked
    /// for again.
    pub async fn wait(
        &self,
        reader: &Reader,
        wanted: &JobsWanted,
        waiter: Waiter<'_>,
        reply_max_bytes: usize,
    ) -> Result<JobsWaited, Failure> {
        if wanted.ids.len() > WAITED_MAX {
            let message = format!("{} jobs are named, and {WAITED_MAX} is the most: wait for them one after the other", wanted.ids.len());
            return Err(Failure::new(ErrorCode::LimitReached, message));
        }
        let mut open = Vec::new();
        for id in &wanted.ids {
            if !self.status(reader, id).await?.progress.state().is_final() {
                open.push(id.clone());
            }
        }
        let wait = wanted.wait_ms.map(|wait_ms| Duration::from_millis(wait_ms.into()));
        let longest = Duration::from_millis(LOGS_WAIT_MAX_MS.into());
        match waiter.job {
            _ if open.is_empty() => {}
            Some(job) => self.wait_aside(job, &open, Instant::now() + wait.unwrap_or(FOR_EVER), waiter.settle).await?,
            None => self.wait_until(&open, Instant::now() + wait.unwrap_or(longest).min(longest)).await?,
        }
        self.waited(reader, &wanted.ids, reply_max_bytes).await
    }

    async fn wait_aside(
        &self,
        job: &MinionJobId,
        open: &[MinionJobId],
        deadline: Instant,
        settle: &(dyn Fn() + Sync),
    ) -> Result<(), Failure> {
        // A server that was started again may not know yet that it runs.
        self.learn(job).await?;
        let begun = self.lock_queue().set_aside(job, open);
        let begun = begun.map_err(|why| Failure::new(ErrorCode::InvalidRequest, why))?;
        let Some(begun) = begun else { return Ok(()) };
        let aside = Aside { jobs: self, id: job, begun };
        self.vacancy.notify_one();
        settle();
        loop {
            let changed = aside.begun.changed.notified();
            let is_over = self.lock_queue().is_over(job, &aside.begun);
            if is_over || !self.is_worth_waiting(changed, deadline).await? {
                return Ok(());
            }
        }
    }

    async fn wait_until(&self, open: &[MinionJobId], deadline: Instant) -> Result<(), Failure> {
        for id in open {
            loop {
                let Some(waiter) = self.lock_queue().waiter(id) else { break };
                let ended = waiter.notified();
                // It may have ended before it was listened for.
                if self.lock_queue().waiter(id).is_none() {
                    break;
                }
                if !self.is_worth_waiting(ended, deadline).await? {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Waits for `news`, or until it is time to look by oneself; `false` once it is `deadline`.
    async fn is_worth_waiting(&self, news: Notified<'_>, deadline: Instant) -> Result<bool, Failure> {
        let until = deadline.min(Instant::now() + LOOK_EVERY);
        let heard = tokio::select! {
            heard = timeout_at(until, news) => heard.is_ok(),
            () = self.stops() => return Err(stopping()),
        };
        if !heard && Instant::now() >= deadline {
            return Ok(false);
        }
        if !heard {
            self.look_again().await;
        }
        Ok(true)
    }

    /// Returns when the server is to end.
    async fn stops(&self) {
        match self.stopping.get() {
            // A sender that is gone stops nothing any more.
            Some(stop) => drop(stop.clone().wait_for(|stop| *stop).await),
            None => pending().await,
        }
    }

    /// How the jobs stand, as many as fit.
    async fn waited(&self, reader: &Reader, ids: &[MinionJobId], reply_max_bytes: usize) -> Result<JobsWaited, Failure> {
        let (mut jobs, mut bytes) = (Vec::new(), 0_usize);
        for id in ids {
            let report = self.status(reader, id).await?;
            bytes = bytes.saturating_add(serde_json::to_vec(&report).map_or(usize::MAX, |text| text.len()));
            if bytes > reply_max_bytes && !jobs.is_empty() {
                break;
            }
            jobs.push(report);
        }
        Ok(JobsWaited { more: ids.len() - jobs.len(), jobs })
    }
}

fn stopping() -> Failure {
    Failure::new(ErrorCode::LimitReached, "the minion is to end, or to be started again: ask again").with_data(json!({ "type": NO_PLACE }))
}
