//! Which jobs have not ended, which of them may run now, and which wait for their turn: pure, in memory, made anew from the spools at each
//! start. It knows neither files nor processes.

mod aside;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::job::MinionJobId;
use jiff::{SignedDuration, Timestamp};
use tokio::sync::Notify;

pub(super) use aside::Begun;

/// How long it may take, from its admission, until a job has a spool.
const SPOOL_TIMEOUT: Duration = Duration::from_secs(60);

/// Where a job that has not ended stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// It has one of `limits.jobs_max` places.
    Running,
    /// It is one of at most `limits.queue_max` that wait for a place.
    Waiting,
    /// It runs, and waits for others: it has no place, and takes one again before those that wait for their first. See `aside`.
    Aside,
}

#[derive(Debug, Clone)]
struct Live {
    accepted_at: Timestamp,
    /// Since when it is known here.
    since: Instant,
    phase: Phase,
    ended: Arc<Notify>,
    /// What it waits for, if it does.
    waits: aside::Waits,
}

impl Live {
    fn new(accepted_at: Timestamp, phase: Phase) -> Self {
        Self { accepted_at, since: Instant::now(), phase, ended: Arc::default(), waits: aside::Waits::default() }
    }
}

/// The jobs that have not ended.
#[derive(Debug, Clone)]
pub(super) struct Queue {
    jobs_max: usize,
    queue_max: usize,
    /// Not before the spools were looked through: until then it is not known what runs.
    is_open: bool,
    live: HashMap<MinionJobId, Live>,
    /// How many of them have a place.
    running: usize,
    /// How many run without one, and which of those wait for nothing but a place, in the order in which they were accepted.
    aside: usize,
    returning: BTreeSet<(Timestamp, MinionJobId)>,
    /// Those that can be started, in the order in which they were accepted.
    waiting: BTreeSet<(Timestamp, MinionJobId)>,
    /// The last time that was given, or seen, as one of an acceptance.
    accepted_last: Timestamp,
}

impl Queue {
    /// An empty one, in which jobs only wait until it is opened.
    pub(super) fn new(jobs_max: usize, queue_max: usize) -> Self {
        Self {
            jobs_max,
            queue_max,
            is_open: false,
            live: HashMap::new(),
            running: 0,
            aside: 0,
            returning: BTreeSet::new(),
            waiting: BTreeSet::new(),
            accepted_last: Timestamp::MIN,
        }
    }

    /// From now on jobs may run.
    pub(super) fn open(&mut self) {
        self.is_open = true;
    }

    /// Whether jobs may run.
    pub(super) fn is_open(&self) -> bool {
        self.is_open
    }

    /// The time of an acceptance at `now`: later than any before, so that jobs keep their order though the clock is set back.
    pub(super) fn stamp(&mut self, now: Timestamp) -> Timestamp {
        let next = self.accepted_last.checked_add(SignedDuration::from_nanos(1)).unwrap_or(now);
        self.accepted_last = now.max(next);
        self.accepted_last
    }

    /// Takes on a job, to run at once or to wait, which it does from when it is [put back](Self::put_back); one that it has is left where it is.
    ///
    /// # Errors
    /// There is no place; the text names the limits.
    pub(super) fn admit(&mut self, id: &MinionJobId, accepted_at: Timestamp) -> Result<Phase, String> {
        if let Some(live) = self.live.get(id) {
            return Ok(live.phase);
        }
        let (running, waiting) = (self.running, self.live.len() - self.running);
        let phase = if self.is_open && waiting == self.aside && self.has_place() {
            Phase::Running
        } else if waiting < self.queue_max {
            Phase::Waiting
        } else {
            return Err(format!(
                "{running} jobs run here and {waiting} wait for a place or for others, and limits.jobs_max is {}, limits.queue_max {}; try again later",
                self.jobs_max, self.queue_max
            ));
        };
        self.running += usize::from(phase == Phase::Running);
        self.live.insert(id.clone(), Live::new(accepted_at, phase));
        Ok(phase)
    }

    /// Takes note of where a job stands, however it came there.
    pub(super) fn see(&mut self, id: &MinionJobId, accepted_at: Timestamp, phase: Phase) {
        self.accepted_last = self.accepted_last.max(accepted_at);
        let live = self.live.entry(id.clone()).or_insert_with(|| {
            self.running += usize::from(phase == Phase::Running);
            Live::new(accepted_at, phase)
        });
        match (live.phase, phase) {
            (Phase::Waiting, Phase::Running) => self.running += 1,
            (Phase::Running, Phase::Waiting) => self.running -= 1,
            // That it runs is no news, and that it waits for others is known here alone.
            (Phase::Aside, _) | (_, Phase::Aside) => return,
            (Phase::Running, Phase::Running) | (Phase::Waiting, Phase::Waiting) => {}
        }
        live.phase = phase;
        let place = (live.accepted_at, id.clone());
        match phase {
            Phase::Running | Phase::Aside => drop(self.waiting.remove(&place)),
            Phase::Waiting => drop(self.waiting.insert(place)),
        }
        self.let_back();
    }

    /// Takes note of a job that has not started; one that is known is left where it is.
    pub(super) fn see_new(&mut self, id: &MinionJobId, accepted_at: Timestamp) {
        if !self.live.contains_key(id) {
            self.see(id, accepted_at, Phase::Waiting);
        }
    }

    /// Has a job wait for its turn: one that was admitted, or whose start came to nothing.
    pub(super) fn put_back(&mut self, id: &MinionJobId) {
        if let Some(accepted_at) = self.live.get(id).map(|live| live.accepted_at) {
            self.see(id, accepted_at, Phase::Waiting);
        }
    }

    /// The job whose turn it is, those that `cannot` be started aside; it has a place from now on.
    pub(super) fn next(&mut self, cannot: impl Fn(&MinionJobId) -> bool) -> Option<MinionJobId> {
        if !self.is_open || !self.has_place() {
            return None;
        }
        let place = self.waiting.iter().find(|(_, id)| !cannot(id)).cloned()?;
        self.waiting.remove(&place);
        let (_, id) = place;
        if let Some(live) = self.live.get_mut(&id) {
            live.phase = Phase::Running;
            self.running += 1;
        }
        Some(id)
    }

    /// Takes note that a job has ended, or never came to be, and tells who waits for that.
    pub(super) fn end(&mut self, id: &MinionJobId) {
        if let Some(Live { accepted_at, phase, ended, .. }) = self.live.remove(id) {
            self.running -= usize::from(phase == Phase::Running);
            self.aside -= usize::from(phase == Phase::Aside);
            let place = (accepted_at, id.clone());
            self.waiting.remove(&place);
            self.returning.remove(&place);
            ended.notify_waiters();
            self.wait_no_more_for(id);
        }
    }

    /// Takes note that there is no spool of a job: one that has just been admitted is still to get one.
    pub(super) fn miss(&mut self, id: &MinionJobId) {
        if self.live.get(id).is_some_and(|live| live.since.elapsed() > SPOOL_TIMEOUT) {
            self.end(id);
        }
    }

    /// Tells when the job has ended; none if it has.
    pub(super) fn waiter(&self, id: &MinionJobId) -> Option<Arc<Notify>> {
        self.live.get(id).map(|live| Arc::clone(&live.ended))
    }

    /// The jobs that have not ended.
    pub(super) fn ids(&self) -> Vec<MinionJobId> {
        self.live.keys().cloned().collect()
    }

    /// Those of them that run.
    pub(super) fn running_ids(&self) -> Vec<MinionJobId> {
        self.live.iter().filter(|(_, live)| live.phase != Phase::Waiting).map(|(id, _)| id.clone()).collect()
    }

    /// How many have not ended.
    pub(super) fn len(&self) -> usize {
        self.live.len()
    }

    /// Whether any waits.
    pub(super) fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    fn has_place(&self) -> bool {
        self.running < self.jobs_max && self.returning.is_empty()
    }
}

#[cfg(test)]
mod tests;
