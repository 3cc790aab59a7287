//! How long jobs that have ended are kept. The rule itself is `common::job::retention`; what is said of those that are not any more is the
//! spawner's business.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use common::job::MinionJobId;
use common::job::retention::{EndedJob, Holdings};
use common::outcome::{ErrorCode, Failure};
use common::protocol::JobReport;
use jiff::Timestamp;

use super::{Jobs, ORDER_TIMEOUT, Reader, internal};
use crate::call::Ask;
use crate::moment::Moment;
use crate::spawner::{Order, Reply};
use crate::store::{End, Kept};

/// The most jobs that are given up in one go.
const GIVEN_UP_MAX: usize = 1000;

/// How long a new job waits for others to make room.
const MAKE_ROOM_TIMEOUT: Duration = Duration::from_secs(5);

/// What is kept.
#[derive(Debug, Default)]
pub(super) struct Keeper {
    /// The jobs that have ended.
    held: Mutex<Holdings>,
    /// Jobs whose spools could not be removed: they are left alone until the next start.
    stuck: Mutex<BTreeSet<MinionJobId>>,
    /// Jobs are given up by one at a time.
    giving_up: tokio::sync::Mutex<()>,
}

impl Keeper {
    /// Counts a job that has ended.
    pub(super) fn count(&self, kept: &Kept) {
        let mut held = lock(&self.held);
        held.count += 1;
        held.bytes = held.bytes.saturating_add(kept.bytes);
    }

    pub(super) fn set_held(&self, holdings: Holdings) {
        *lock(&self.held) = holdings;
    }

    fn uncount(&self, ends: &[End]) {
        let mut held = lock(&self.held);
        held.count = held.count.saturating_sub(ends.len());
        held.bytes = ends.iter().fold(held.bytes, |bytes, end| bytes.saturating_sub(end.kept.bytes));
    }
}

impl Jobs {
    /// That one more job can be kept. Those whose time is over are given up first.
    pub(super) async fn require_kept_room(&self) -> Result<(), Failure> {
        if self.retention.refusal(self.held()).is_none() {
            return Ok(());
        }
        // Whoever is at it already makes room for all.
        if let Ok(alone) = tokio::time::timeout(MAKE_ROOM_TIMEOUT, self.keeper.giving_up.lock()).await
            && self.retention.refusal(self.held()).is_some()
        {
            self.give_up_some(&alone).await;
        }
        match self.retention.refusal(self.held()) {
            None => Ok(()),
            Some(why) => {
                let message = format!("{why}; each is kept for at least 60 minutes after its end: try again later");
                Err(Failure::new(ErrorCode::LimitReached, message))
            }
        }
    }

    /// Gives up the jobs whose time is over.
    pub(super) async fn give_up_old(&self) {
        loop {
            let alone = self.keeper.giving_up.lock().await;
            if self.give_up_some(&alone).await < GIVEN_UP_MAX {
                return;
            }
        }
    }

    /// Gives up at most [`GIVEN_UP_MAX`] of them, and says how many there were.
    async fn give_up_some(&self, _alone: &tokio::sync::MutexGuard<'_, ()>) -> usize {
        let ends = self.ends_to_give_up();
        let count = ends.len();
        if count > 0 {
            let order = Order::Remove(ends.iter().map(|end| end.id.clone()).collect());
            match self.give_up(ends, order).await {
                Ok(given_up) => tracing::info!(jobs = given_up.len(), "jobs that had ended long ago are given up"),
                Err(failure) => {
                    tracing::error!(problem = failure.message, "jobs cannot be given up");
                    return 0;
                }
            }
        }
        count
    }

    fn ends_to_give_up(&self) -> Vec<End> {
        let now = Moment::now();
        let stuck = lock(&self.keeper.stuck).clone();
        let ends = self.store.ends().filter(|end| end.kept.start_before < now.wall && !stuck.contains(&end.id));
        let ended = ends.map(|end| EndedJob {
            age: end.kept.since.age(&now),
            proven: end.kept.since.proven_age(&now),
            bytes: end.kept.bytes,
            id: end,
        });
        self.retention.given_up(ended, self.held(), GIVEN_UP_MAX)
    }

    /// Has `order` remove the spools, which it writes down as forgotten before, and then removes what the store has of them. Gives the jobs that
    /// are gone.
    async fn give_up(&self, mut ends: Vec<End>, order: Order) -> Result<Vec<MinionJobId>, Failure> {
        let removed = match self.spawner.order(&order, ORDER_TIMEOUT).await {
            Ok(Reply::Removed(removed)) => removed,
            Ok(Reply::Refused(failure)) => return Err(failure),
            Ok(reply) => return Err(internal(format!("the spawner answered a removal with {reply:?}"))),
            Err(error) => return Err(internal(error.to_string())),
        };
        let is_gone: BTreeSet<&MinionJobId> = removed.iter().collect();
        for End { id, .. } in ends.iter().filter(|end| !is_gone.contains(&end.id)) {
            tracing::error!(minion_job_id = %id, "the spool of a job whose time is over cannot be removed, and stays");
            lock(&self.keeper.stuck).insert(id.clone());
        }
        ends.retain(|end| is_gone.contains(&end.id));
        match self.store.remove(ends.clone()).await {
            Ok(()) => self.keeper.uncount(&ends),
            Err(error) => self.tell_store_error(&error),
        }
        Ok(removed)
    }

    /// Gives up the job `id` because the reader wants it, in the call `ask`, before its time.
    ///
    /// # Errors
    /// There is none that the reader may see; it has not ended, or its call could still come again; or it cannot be removed.
    pub async fn delete(&self, reader: &Reader, id: &MinionJobId, ask: Ask) -> Result<JobReport, Failure> {
        let report = self.status(reader, id).await?;
        if !report.progress.state().is_final() {
            let why = format!("the job {id} has not ended here: it is {}; cancel it first", report.progress.state());
            return Err(Failure::new(ErrorCode::TooEarly, why));
        }
        let _alone = self.keeper.giving_up.lock().await;
        let Some(end) = self.store.end(&report) else {
            let why = format!("the job {id} is not among those that can be deleted yet; try again in a minute");
            return Err(Failure::new(ErrorCode::TooEarly, why));
        };
        let until = end.kept.start_before;
        if Timestamp::now() <= until {
            let why = format!("it is kept until {until}: until then its call could come again, and would start a second time");
            return Err(Failure::new(ErrorCode::TooEarly, why));
        }
        let removed = self.give_up(vec![end], Order::Tell(ask)).await?;
        if removed.contains(id) {
            Ok(report)
        } else {
            Err(internal(format!("the spool of {id} cannot be removed; the log of the minion says more")))
        }
    }

    /// All that is kept, what has not ended included.
    fn held(&self) -> Holdings {
        let ended = *lock(&self.keeper.held);
        Holdings { count: ended.count + self.lock_queue().len(), ..ended }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
