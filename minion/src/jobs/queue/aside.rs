//! Jobs that wait for others, and have no place meanwhile: so however deep jobs submit jobs and wait for them, one place is enough. Pure.

use std::collections::HashSet;
use std::sync::Arc;

use common::job::MinionJobId;
use tokio::sync::Notify;

use super::{Live, Phase, Queue};

/// As many processes of one job may wait at once, each with a connection.
const WAITS_MAX: usize = 16;

/// What a job waits for.
#[derive(Debug, Clone, Default)]
pub(super) struct Waits {
    last: u64,
    /// One for each process of it that waits.
    open: Vec<Wait>,
    changed: Arc<Notify>,
}

#[derive(Debug, Clone)]
struct Wait {
    number: u64,
    /// The jobs that have not ended.
    of: HashSet<MinionJobId>,
}

/// One wait that has begun, by its number.
#[derive(Debug, Clone)]
pub(in crate::jobs) struct Begun {
    number: u64,
    /// Tells when it may be over.
    pub(in crate::jobs) changed: Arc<Notify>,
}

impl Waits {
    fn is_for_others(&self) -> bool {
        self.open.iter().any(|wait| !wait.of.is_empty())
    }
}

impl Queue {
    /// Has the job `id`, which runs, wait for those `of` them that have not ended; none if all have. Its place is free from now on.
    ///
    /// # Errors
    /// It would wait for itself, or does not run, or has too many that wait.
    pub(in crate::jobs) fn set_aside(&mut self, id: &MinionJobId, of: &[MinionJobId]) -> Result<Option<Begun>, String> {
        let of: HashSet<MinionJobId> = of.iter().filter(|other| self.live.contains_key(*other)).cloned().collect();
        if self.waits_for(&of, id) {
            return Err(format!("the job {id} would wait for itself: what it waits for waits for it"));
        }
        let open: usize = self.live.values().map(|live| live.waits.open.len()).sum();
        let most = self.jobs_max.saturating_add(self.queue_max);
        let live = self.live.get_mut(id).filter(|live| live.phase != Phase::Waiting);
        let live = live.ok_or_else(|| format!("the job {id} does not run any more"))?;
        if of.is_empty() {
            return Ok(None);
        }
        if live.waits.open.len() >= WAITS_MAX {
            return Err(format!("{WAITS_MAX} processes of the job {id} wait for others, which is the most"));
        }
        // One may always wait, or jobs that wait for each other's places would hang; the others have a connection each, too.
        if !live.waits.open.is_empty() && open >= most {
            return Err(format!(
                "{open} processes of jobs wait for others here, of which each job may have one and all together limits.jobs_max and limits.queue_max, {most}: \
                 let one process wait for several jobs"
            ));
        }
        live.waits.last += 1;
        let begun = Begun { number: live.waits.last, changed: Arc::clone(&live.waits.changed) };
        live.waits.open.push(Wait { number: begun.number, of });
        let place = (live.accepted_at, id.clone());
        if live.phase == Phase::Running {
            live.phase = Phase::Aside;
            self.running -= 1;
            self.aside += 1;
        }
        // Another of its processes may have waited for nothing but the place, and needs none now.
        live.waits.changed.notify_waiters();
        self.returning.remove(&place);
        self.let_back();
        Ok(Some(begun))
    }

    /// Whether what the wait was for has ended, and the job has a place again; or needs none, because another of its processes waits.
    pub(in crate::jobs) fn is_over(&self, id: &MinionJobId, begun: &Begun) -> bool {
        let Some(live) = self.live.get(id) else { return true };
        let is_done = live.waits.open.iter().all(|wait| wait.number != begun.number || wait.of.is_empty());
        is_done && (live.phase != Phase::Aside || live.waits.is_for_others())
    }

    /// The wait is over, or given up: then the job goes on, whether there is a place for it or not.
    pub(in crate::jobs) fn leave(&mut self, id: &MinionJobId, begun: &Begun) {
        let Some(live) = self.live.get_mut(id) else { return };
        live.waits.open.retain(|wait| wait.number != begun.number);
        let place = (live.accepted_at, id.clone());
        if live.phase != Phase::Aside || live.waits.is_for_others() {
            return;
        }
        if live.waits.open.is_empty() {
            live.phase = Phase::Running;
            self.running += 1;
            self.aside -= 1;
            self.returning.remove(&place);
        } else {
            self.returning.insert(place);
        }
        self.let_back();
    }

    /// Takes note that the job `id` has ended, for those that waited for it.
    pub(super) fn wait_no_more_for(&mut self, id: &MinionJobId) {
        for (waiter, Live { accepted_at, phase, waits, .. }) in &mut self.live {
            let mut is_meant = false;
            for wait in &mut waits.open {
                is_meant |= wait.of.remove(id);
            }
            if is_meant {
                waits.changed.notify_waiters();
                if *phase == Phase::Aside && !waits.is_for_others() {
                    self.returning.insert((*accepted_at, waiter.clone()));
                }
            }
        }
        self.let_back();
    }

    /// Gives the places that are free to those that had one before.
    pub(super) fn let_back(&mut self) {
        while self.running < self.jobs_max
            && let Some((_, id)) = self.returning.pop_first()
        {
            if let Some(live) = self.live.get_mut(&id) {
                live.phase = Phase::Running;
                self.running += 1;
                self.aside -= 1;
                live.waits.changed.notify_waiters();
            }
        }
    }

    /// Whether one of `those`, or what they wait for, waits for the job `id`, or is it.
    fn waits_for(&self, those: &HashSet<MinionJobId>, id: &MinionJobId) -> bool {
        let (mut met, mut to_meet) = (HashSet::new(), those.iter().collect::<Vec<_>>());
        while let Some(other) = to_meet.pop() {
            if other == id {
                return true;
            }
            if met.insert(other) {
                let waits = self.live.get(other).map(|live| live.waits.open.as_slice()).unwrap_or_default();
                to_meet.extend(waits.iter().flat_map(|wait| &wait.of));
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use jiff::Timestamp;

    use super::*;

    fn id(job: u8) -> MinionJobId {
        format!("0000-0000-00{job:02}").parse().unwrap()
    }

    /// A host of one place where the job 1 runs and those up to `last` wait for it.
    fn host(last: u8) -> Queue {
        let mut queue = Queue::new(1, 100);
        queue.open();
        for job in 1..=last {
            let at = Timestamp::from_second(job.into()).unwrap();
            queue.admit(&id(job), at).unwrap();
            if job > 1 {
                queue.put_back(&id(job));
            }
        }
        queue
    }

    fn next(queue: &mut Queue) -> Option<MinionJobId> {
        queue.next(|_| false)
    }

    #[test]
    fn who_waits_for_others_has_no_place_and_returns_before_those_that_wait_for_their_first() {
        let mut queue = host(3);
        assert_eq!(next(&mut queue), None);
        let begun = queue.set_aside(&id(1), &[id(2)]).unwrap().unwrap();
        assert_eq!(next(&mut queue), Some(id(2)));
        queue.see(&id(1), Timestamp::UNIX_EPOCH, Phase::Running);
        assert!(next(&mut queue).is_none() && !queue.is_over(&id(1), &begun), "that it is seen to run changes nothing");
        queue.end(&id(2));
        assert!(queue.is_over(&id(1), &begun) && next(&mut queue).is_none(), "its place is its own again before another can have it");
        queue.leave(&id(1), &begun);
        queue.end(&id(1));
        assert_eq!(next(&mut queue), Some(id(3)));
    }

    #[test]
    fn as_many_return_as_there_are_places_and_the_oldest_first() {
        let mut queue = host(4);
        let first = queue.set_aside(&id(1), &[id(3)]).unwrap().unwrap();
        assert_eq!(next(&mut queue), Some(id(2)));
        let second = queue.set_aside(&id(2), &[id(3), id(3)]).unwrap().unwrap();
        assert_eq!(next(&mut queue), Some(id(3)));
        queue.end(&id(3));
        assert_eq!((queue.is_over(&id(1), &first), queue.is_over(&id(2), &second)), (true, false));
        queue.leave(&id(1), &first);
        assert!(next(&mut queue).is_none());
        queue.end(&id(1));
        assert!(queue.is_over(&id(2), &second) && next(&mut queue).is_none());
    }

    #[test]
    fn what_has_ended_is_not_waited_for_and_nobody_waits_for_himself() {
        let mut queue = host(3);
        assert!(queue.set_aside(&id(1), &[id(9)]).unwrap().is_none());
        assert!(queue.set_aside(&id(1), &[id(1)]).is_err());
        let _begun = queue.set_aside(&id(1), &[id(2)]).unwrap().unwrap();
        assert_eq!(next(&mut queue), Some(id(2)));
        let _begun = queue.set_aside(&id(2), &[id(3)]).unwrap().unwrap();
        assert_eq!(next(&mut queue), Some(id(3)));
        assert!(queue.set_aside(&id(3), &[id(1)]).unwrap_err().contains("wait for itself"));
        assert!(queue.set_aside(&id(9), &[id(1)]).is_err(), "it is not there");
    }

    #[test]
    fn a_wait_that_is_given_up_leaves_the_job_running() {
        let mut queue = host(3);
        let begun = queue.set_aside(&id(1), &[id(3)]).unwrap().unwrap();
        assert_eq!(next(&mut queue), Some(id(2)));
        queue.leave(&id(1), &begun);
        assert!(next(&mut queue).is_none());
        queue.end(&id(2));
        assert!(next(&mut queue).is_none(), "two ran in one place, and one still does");
        queue.end(&id(1));
        assert_eq!(next(&mut queue), Some(id(3)));
    }

    #[test]
    fn a_job_has_no_place_while_any_of_its_processes_waits() {
        let mut queue = host(4);
        let first = queue.set_aside(&id(1), &[id(2)]).unwrap().unwrap();
        let second = queue.set_aside(&id(1), &[id(3)]).unwrap().unwrap();
        assert_eq!(next(&mut queue), Some(id(2)));
        queue.end(&id(2));
        assert!(queue.is_over(&id(1), &first) && !queue.is_over(&id(1), &second));
        queue.leave(&id(1), &first);
        assert_eq!(next(&mut queue), Some(id(3)), "or what it waits for would never start");
        queue.end(&id(3));
        assert!(queue.is_over(&id(1), &second) && next(&mut queue).is_none());
        queue.leave(&id(1), &second);
        for _ in 0..WAITS_MAX {
            drop(queue.set_aside(&id(1), &[id(4)]).unwrap().unwrap());
        }
        assert!(queue.set_aside(&id(1), &[id(4)]).is_err());
    }

    #[test]
    fn all_together_wait_no_more_often_than_there_are_places_but_each_once() {
        let mut queue = Queue::new(2, 2);
        queue.open();
        for job in 1..=4 {
            queue.admit(&id(job), Timestamp::from_second(job.into()).unwrap()).unwrap();
        }
        queue.put_back(&id(3));
        queue.put_back(&id(4));
        for _wait in 0..4 {
            assert!(queue.set_aside(&id(1), &[id(3)]).unwrap().is_some());
        }
        assert!(queue.set_aside(&id(1), &[id(3)]).unwrap_err().contains("let one process wait for several jobs"));
        assert!(queue.set_aside(&id(2), &[id(4)]).unwrap().is_some(), "its first");
        assert!(queue.set_aside(&id(2), &[id(4)]).is_err());
    }
}
