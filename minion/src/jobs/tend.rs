//! What the server does for jobs unasked: takes in the outcomes that job daemons tell of, starts what has waited, gives up what is old, keeps a spawner of its own alive; and
//! from time to time, and at its start, compares every spool with the store.

use std::collections::{BTreeSet, HashMap};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::job::retention::Holdings;
use common::job::{HostState, MinionJobId};
use common::outcome::ErrorCode;
use futures_util::stream::{self, StreamExt as _};
use tokio::net::UnixDatagram;

use super::{Jobs, astray};
use crate::spawner::{Look, Order, Reply};

/// The longest poke: an id and a problem.
const POKE_MAX_BYTES: usize = 4096;

/// How long a job that could not be started is left out, so that it is in nobody's way.
const FAILED_LAUNCH_AGAIN: Duration = Duration::from_secs(5);

/// How often it is looked whether jobs are to be given up; where there is no room that is done at once.
const GIVE_UP_EVERY: Duration = Duration::from_secs(600);

/// How many spools are read at once when all are looked through.
const TAKEN_IN_AT_ONCE: usize = 64;

/// How soon, while jobs wait, it is seen whether one could start, though nobody has told of a vacancy.
const LAUNCH_AGAIN: Duration = Duration::from_secs(1);

/// How soon the spools are asked after again where that failed: a spawner that is a unit of its own may be on its way.
const RECONCILE_AGAIN: Duration = Duration::from_secs(1);

impl Jobs {
    /// Tends the jobs until it is dropped.
    ///
    /// # Errors
    /// The socket that job daemons poke cannot be made.
    pub async fn tend(self: Arc<Self>) -> std::io::Result<()> {
        match std::fs::remove_file(&self.server_socket) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _gone => {}
        }
        let pokes = UnixDatagram::bind(&self.server_socket)?;
        tokio::select! {
            heard = self.hear_all(&pokes) => heard.map(|never| match never {}),
            never = self.launch_all() => match never {},
            never = self.reconcile_all() => match never {},
            never = self.spawner.keep() => match never {},
        }
    }

    async fn hear_all(&self, pokes: &UnixDatagram) -> std::io::Result<Infallible> {
        let mut poke = vec![0; POKE_MAX_BYTES];
        loop {
            let length = pokes.recv(&mut poke).await?;
            self.hear(poke.get(..length).unwrap_or_default()).await;
        }
    }

    /// A poke is a hint, and comes from a socket that others may write to: what counts is the spool.
    async fn hear(&self, poke: &[u8]) {
        let text = String::from_utf8_lossy(poke);
        let (id, problem) = text.split_once(' ').unwrap_or((&text, ""));
        let Ok(id) = id.parse::<MinionJobId>() else { return };
        if !problem.is_empty() {
            tracing::error!(minion_job_id = %id, problem = %problem.escape_debug(), "a job daemon needs help");
        }
        self.take_in(&id).await;
    }

    /// Starts jobs that wait, in order, whenever there is a place.
    async fn launch_all(&self) -> Infallible {
        // Those that could not be started are in nobody's way for a while.
        let mut failed = HashMap::<MinionJobId, Instant>::new();
        loop {
            let has_waiting = self.lock_queue().has_waiting();
            if !has_waiting {
                failed.clear();
                self.vacancy.notified().await;
            } else if tokio::time::timeout(LAUNCH_AGAIN, self.vacancy.notified()).await.is_err() {
                // Pokes get lost when many jobs end at once.
                self.look_again().await;
            }
            failed.retain(|_, since| since.elapsed() < FAILED_LAUNCH_AGAIN);
            loop {
                let next = self.lock_queue().next(|id| failed.contains_key(id));
                let Some(id) = next else { break };
                if !self.launch(&id).await {
                    failed.insert(id, Instant::now());
                }
            }
        }
    }

    /// Starts a job that has waited; `false` if it could not be started now, and waits again.
    async fn launch(&self, id: &MinionJobId) -> bool {
        let problem = match self.spawner.order(&Order::Launch(id.clone()), super::ORDER_TIMEOUT).await {
            Ok(Reply::Started(_)) => return true,
            Ok(Reply::Refused(failure)) => failure.message,
            Err(error) => error.to_string(),
            Ok(_waits_no_more) => String::new(),
        };
        if !problem.is_empty() {
            tracing::error!(minion_job_id = %id, problem, "a job that waits cannot be started");
        }
        // It may have been cancelled, or run already: its spool says where it stands.
        let still_waits = self.take_in(id).await.is_none_or(|state| state == HostState::Queued);
        if still_waits {
            self.lock_queue().put_back(id);
        }
        !still_waits
    }

    async fn reconcile_all(&self) -> Infallible {
        let mut rounds = tokio::time::interval(self.limits.reconcile_every);
        rounds.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut is_uncounted, mut given_up_at) = (true, None);
        loop {
            let _tick = rounds.tick().await;
            is_uncounted |= self.open_store();
            if !self.reconcile(is_uncounted).await {
                // What runs and waits here is not known: nothing may start.
                rounds.reset_after(RECONCILE_AGAIN);
                continue;
            }
            is_uncounted = false;
            self.lock_queue().open();
            self.opened.notify_waiters();
            self.vacancy.notify_one();
            if given_up_at.is_none_or(|at: Instant| at.elapsed() >= GIVE_UP_EVERY) {
                given_up_at = Some(Instant::now());
                self.give_up_old().await;
            }
        }
    }

    /// Compares every spool with the store; `false` if they cannot be listed. What has ended in the store is settled and not looked at again.
    async fn reconcile(&self, is_uncounted: bool) -> bool {
        let ids = match self.look_for(Look::Ids).await {
            Ok(Reply::Ids(ids)) => ids,
            Ok(reply) => {
                tracing::error!(problem = astray(&reply).message, "the spools cannot be listed");
                return false;
            }
            Err(failure) => {
                tracing::error!(problem = failure.message, "the spools cannot be listed");
                return false;
            }
        };
        let ended = if is_uncounted { self.take_stock().await } else { BTreeSet::new() };
        let (store, ended) = (&self.store, &ended);
        let to_take_in = ids.into_iter().filter(|id| !ended.contains(id) && (is_uncounted || !store.contains(id)));
        // Several at once share a sync of the store.
        let taken_in = stream::iter(to_take_in).for_each_concurrent(TAKEN_IN_AT_ONCE, |id| async move {
            let _state = self.take_in(&id).await;
        });
        taken_in.await;
        let live = self.lock_queue().ids();
        for id in live {
            if self.take_in(&id).await == Some(HostState::Queued) {
                self.lock_queue().put_back(&id);
            }
        }
        true
    }

    /// Counts the jobs that the store has whole, with when they ended and with what is told of them, and gives their ids.
    async fn take_stock(&self) -> BTreeSet<MinionJobId> {
        let (mut held, mut ended) = (Holdings::default(), BTreeSet::new());
        for end in self.store.ends() {
            if self.store.contains(&end.id) && ended.insert(end.id) {
                held.count += 1;
                held.bytes = held.bytes.saturating_add(end.kept.bytes);
            }
            tokio::task::consume_budget().await;
        }
        self.keeper.set_held(held);
        ended
    }

    /// Looks at every job that runs as far as is known.
    pub(super) async fn take_in_running(&self) {
        let ids = self.lock_queue().running_ids();
        for id in ids {
            self.take_in(&id).await;
        }
    }

    /// Looks at a job whose spool may have news, and gives its state.
    async fn take_in(&self, id: &MinionJobId) -> Option<HostState> {
        match self.look(id, None).await {
            Ok(Some(report)) => Some(report.progress.state()),
            Ok(None) => {
                self.lock_queue().miss(id);
                None
            }
            Err(failure) => {
                tracing::error!(minion_job_id = %id, problem = failure.message, "a job's spool cannot be taken in");
                if failure.is(ErrorCode::Lost) {
                    self.has_ended(id);
                }
                None
            }
        }
    }
}
