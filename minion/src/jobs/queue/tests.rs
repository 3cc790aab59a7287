#![allow(clippy::unwrap_used, reason = "a test may panic")]

use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

const JOBS_MAX: usize = 2;
const QUEUE_MAX: usize = 3;

/// What happens to a host with jobs.
#[derive(Debug, Clone)]
enum Step {
    /// Somebody asks for the job, perhaps again.
    Ask(u8),
    /// The place that is free is given away, if one is.
    Launch,
    /// A launch came to nothing: the spool still says that the job waits.
    PutBack(u8),
    /// A running job ends, or a waiting one is cancelled.
    End(u8),
    /// The minion is killed and started: it knows nothing but the spools.
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let job = 0..8_u8;
    prop_oneof![
        4 => job.clone().prop_map(Step::Ask),
        4 => Just(Step::Launch),
        1 => job.clone().prop_map(Step::PutBack),
        3 => job.prop_map(Step::End),
        1 => Just(Step::Restart),
    ]
}

/// The spools: what is true, whatever the queue believes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Spool {
    Queued,
    Running,
    Ended,
}

fn id(job: u8) -> MinionJobId {
    format!("0000-0000-00{job:02}").parse().unwrap()
}

struct Host {
    queue: Queue,
    spools: BTreeMap<u8, (Timestamp, Spool)>,
    starts: BTreeMap<u8, u32>,
    clock: i64,
}

impl Host {
    fn now(&mut self) -> Timestamp {
        self.clock += 1;
        Timestamp::from_second(self.clock).unwrap()
    }

    fn start(&mut self, job: u8) {
        *self.starts.entry(job).or_default() += 1;
        self.spools.get_mut(&job).unwrap().1 = Spool::Running;
    }

    fn count(&self, wanted: Spool) -> usize {
        self.spools.values().filter(|(_, spool)| *spool == wanted).count()
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Ask(job) if self.spools.contains_key(&job) => {}
            Step::Ask(job) => {
                let at = self.now();
                match self.queue.admit(&id(job), at) {
                    Ok(Phase::Running) => {
                        self.spools.insert(job, (at, Spool::Queued));
                        self.start(job);
                    }
                    Ok(Phase::Waiting | Phase::Aside) => {
                        assert_ne!(self.queue.clone().next(|_| false), Some(id(job)), "it has no spool yet");
                        self.spools.insert(job, (at, Spool::Queued));
                        self.queue.put_back(&id(job));
                    }
                    Err(why) => {
                        assert!(why.contains("jobs_max is 2") && why.contains("queue_max 3"), "{why}");
                        assert_eq!(self.count(Spool::Queued), QUEUE_MAX, "refused though there is room");
                    }
                }
            }
            Step::Launch => {
                let first = self.spools.iter().filter(|(_, (_, spool))| *spool == Spool::Queued).min_by_key(|(_, (at, _))| *at);
                let first = first.map(|(job, _)| *job);
                let free = self.count(Spool::Running) < JOBS_MAX;
                let next = self.queue.next(|_| false);
                assert_eq!(next, first.filter(|_| free).map(id), "in order, as soon as there is a place");
                if let Some(job) = first.filter(|_| free) {
                    self.start(job);
                }
            }
            Step::PutBack(job) => {
                if let Some((at, Spool::Queued)) = self.spools.get(&job) {
                    self.queue.see_new(&id(job), *at);
                    self.queue.put_back(&id(job));
                }
            }
            Step::End(job) => {
                if let Some((_, spool)) = self.spools.get_mut(&job) {
                    *spool = Spool::Ended;
                    self.queue.end(&id(job));
                }
            }
            Step::Restart => {
                self.queue = Queue::new(JOBS_MAX, QUEUE_MAX);
                assert_eq!(self.queue.next(|_| false), None, "nothing runs before the spools were looked through");
                for (job, (at, spool)) in &self.spools {
                    match spool {
                        Spool::Queued => self.queue.see_new(&id(*job), *at),
                        Spool::Running => self.queue.see(&id(*job), *at, Phase::Running),
                        Spool::Ended => {}
                    }
                }
                self.queue.open();
            }
        }
    }
}

proptest! {
    #[test]
    fn every_job_starts_at_most_once_in_order_and_within_the_limits(steps in proptest::collection::vec(step(), 0..80)) {
        let mut queue = Queue::new(JOBS_MAX, QUEUE_MAX);
        queue.open();
        let mut host = Host { queue, spools: BTreeMap::new(), starts: BTreeMap::new(), clock: 0 };
        for step in &steps {
            host.step(step);
            prop_assert!(host.count(Spool::Running) <= JOBS_MAX && host.count(Spool::Queued) <= QUEUE_MAX);
            prop_assert_eq!(host.queue.len(), host.count(Spool::Running) + host.count(Spool::Queued));
            prop_assert!(host.starts.values().all(|starts| *starts == 1));
        }
        // Nothing that was accepted is left behind.
        for _ in 0..20 {
            host.step(&Step::Launch);
            for job in 0..8 {
                if host.spools.get(&job).is_some_and(|(_, spool)| *spool == Spool::Running) {
                    host.step(&Step::End(job));
                }
            }
        }
        prop_assert!(host.spools.values().all(|(_, spool)| *spool == Spool::Ended) && host.queue.len() == 0);
    }
}

#[test]
fn who_waits_for_an_end_is_told() {
    let mut queue = Queue::new(1, 1);
    queue.open();
    assert_eq!(queue.admit(&id(1), Timestamp::UNIX_EPOCH), Ok(Phase::Running));
    let waiter = queue.waiter(&id(1)).unwrap();
    let told = waiter.notified();
    queue.end(&id(1));
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(told);
    assert!(queue.waiter(&id(1)).is_none());
}

#[test]
fn one_that_cannot_be_started_is_in_nobodys_way_and_a_clock_that_is_set_back_in_nobodys_place() {
    let at = |second| Timestamp::from_second(second).unwrap();
    let mut queue = Queue::new(1, 5);
    for (job, second) in [(1, 1000), (2, 500), (3, 1001)] {
        let accepted_at = queue.stamp(at(second));
        assert_eq!(queue.admit(&id(job), accepted_at), Ok(Phase::Waiting));
        queue.put_back(&id(job));
    }
    queue.open();
    assert_eq!(queue.next(|job| *job == id(1)), Some(id(2)));
    assert_eq!(queue.next(|_| false), None, "the place is taken");
    queue.end(&id(2));
    assert_eq!(queue.next(|_| false), Some(id(1)));
}
