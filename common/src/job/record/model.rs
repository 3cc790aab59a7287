//! A model check: a host with its own truth, a network that delays, repeats and reorders what is said, an overlord that asks, gives up and
//! sends again; and whatever they do, what the record says is not made up.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may panic")]

use super::*;
use crate::job::CallId;
use crate::outcome::{ErrorCode, Failure, Verdict};
use proptest::prelude::*;
use serde_json::json;

/// What happens.
#[derive(Debug, Clone)]
enum Step {
    /// The call of the present attempt reaches the host, perhaps once more.
    Deliver,
    /// The host starts what waits.
    Start,
    /// What runs ends: well, badly, or killed so that nobody knows.
    End(End),
    /// The overlord is about to ask whether the call arrived; if it has not, it never will.
    Fence,
    /// The host tells how far it is; it is heard later, or never.
    Say,
    /// What was said at some time, at this index, is heard now, perhaps again.
    Hear(usize),
    /// Nobody answers.
    Miss,
    /// Nobody has answered for so long that the overlord calls it lost.
    GiveUp,
    /// `job-resume`: sent again if it never started.
    Resume,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Ok,
    Failed,
    TimedOut,
    Cancelled,
    Killed,
}

/// What is true on the host of one attempt.
#[derive(Debug, Clone, PartialEq)]
#[allow(clippy::large_enum_variant, reason = "there is one for each host of a test")]
enum Truth {
    NotHere,
    Queued,
    Running,
    Ended(Outcome),
}

fn step() -> impl Strategy<Value = Step> {
    let end = prop_oneof![Just(End::Ok), Just(End::Failed), Just(End::TimedOut), Just(End::Cancelled), Just(End::Killed)];
    prop_oneof![
        3 => Just(Step::Deliver),
        3 => Just(Step::Start),
        2 => end.prop_map(Step::End),
        1 => Just(Step::Fence),
        4 => Just(Step::Say),
        5 => any::<usize>().prop_map(Step::Hear),
        1 => Just(Step::Miss),
        1 => Just(Step::GiveUp),
        1 => Just(Step::Resume),
    ]
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn host() -> MinionName {
    "web1".parse().unwrap()
}

struct World {
    record: JobRecord,
    /// By attempt, from 1.
    truths: Vec<Truth>,
    starts: Vec<u32>,
    said: Vec<Event>,
    clock: i64,
}

impl World {
    fn new() -> Self {
        let header = JobHeader {
            job_id: "54k2-9xqd-4fz1".parse().unwrap(),
            caller: "admin".parse().unwrap(),
            target: "*".into(),
            method: "test.ping".into(),
            args: Arguments::default(),
            job_limit_ms: None,
            retry_of: None,
            map: None,
            hosts: vec![host()],
        };
        let record = JobRecord::new(header, at(0));
        Self { record, truths: vec![Truth::NotHere], starts: vec![0], said: Vec::new(), clock: 0 }
    }

    fn host(&self) -> &HostRecord {
        self.record.hosts.get(&host()).unwrap()
    }

    fn id(&self, attempt: u32) -> MinionJobId {
        MinionJobId::derive(&host(), &self.record.header.caller, &CallId::new(self.record.header.job_id.clone(), attempt))
    }

    fn now(&mut self) -> Timestamp {
        self.clock += 1;
        at(self.clock)
    }

    fn truth(&mut self) -> &mut Truth {
        self.truths.last_mut().unwrap()
    }

    fn hear(&mut self, event: Event) {
        let at = self.now();
        let before = self.host().clone();
        let line = LogLine { at, event };
        self.record.apply(&line);
        let once = self.record.clone();
        self.record.apply(&line);
        assert_eq!(self.record, once, "to fold a line twice changes nothing");
        let after = self.host();
        assert!(after.attempt >= before.attempt);
        if after.attempt == before.attempt {
            assert!(before.minion_job_id.is_none() || after.minion_job_id == before.minion_job_id, "an id is written once");
            let is_fixed = before.state.is_final() && !before.is_given_up;
            assert!(!is_fixed || (after.state, &after.outcome) == (before.state, &before.outcome), "an end is for ever");
        } else {
            assert_eq!(before.state, HostState::Undelivered, "only what never started is sent again");
        }
    }

    fn heard(&self, attempt: u32, news: News) -> Event {
        Event::Heard { host: host(), attempt, news }
    }

    fn step(&mut self, step: &Step) {
        let attempt = u32::try_from(self.truths.len()).unwrap();
        let now = self.now();
        match step {
            Step::Deliver => {
                if *self.truth() == Truth::NotHere {
                    *self.truth() = Truth::Queued;
                }
            }
            Step::Start => {
                if *self.truth() == Truth::Queued {
                    *self.truth() = Truth::Running;
                    *self.starts.last_mut().unwrap() += 1;
                }
            }
            Step::End(end) => {
                if *self.truth() == Truth::Running {
                    *self.truth() = Truth::Ended(Outcome::ran(verdict(*end), now, now));
                }
            }
            Step::Fence => {
                if *self.truth() == Truth::NotHere {
                    let error = Failure::new(ErrorCode::Fenced, "never started");
                    *self.truth() = Truth::Ended(Outcome::not_run(Verdict::Undelivered { error }, now));
                }
            }
            Step::Say => {
                let id = self.id(attempt);
                let accepted = |state| News::Accepted { minion_job_id: id.clone(), state };
                let news = match self.truth().clone() {
                    Truth::NotHere => vec![],
                    Truth::Queued => vec![accepted(HostState::Queued)],
                    Truth::Running => {
                        vec![accepted(HostState::Running), News::Going { state: HostState::Running, started_at: Some(now), progress: None }]
                    }
                    Truth::Ended(outcome) => vec![News::Ended(outcome)],
                };
                let said: Vec<Event> = news.into_iter().map(|news| self.heard(attempt, news)).collect();
                self.said.extend(said);
            }
            Step::Hear(index) => {
                if let Some(event) = self.said.get(index % self.said.len().max(1)).cloned() {
                    self.hear(event);
                }
            }
            Step::Miss => self.hear(self.heard(attempt, News::Unreachable { reason: "silence".into() })),
            Step::GiveUp => {
                self.hear(self.heard(attempt, News::GivenUp { reason: "silence".into() }));
            }
            Step::Resume => {
                if self.host().state == HostState::Undelivered {
                    self.truths.push(Truth::NotHere);
                    self.starts.push(0);
                    self.hear(Event::Resumed { attempt: attempt + 1, hosts: vec![host()] });
                }
            }
        }
        self.check();
    }

    /// What the record says is what the host is, was, or what nobody can know.
    fn check(&self) {
        let (host, truth) = (self.host(), self.truths.last().unwrap());
        let is_true = match host.state {
            HostState::Pending | HostState::Lost => true,
            HostState::Queued => *truth != Truth::NotHere,
            HostState::Running => matches!(truth, Truth::Running | Truth::Ended(_)),
            _ended => matches!(truth, Truth::Ended(outcome) if Some(outcome) == host.outcome.as_ref()),
        };
        assert!(is_true, "the record says {host:?}, and in truth it is {truth:?}");
        assert!(self.starts.iter().all(|starts| *starts <= 1), "at most one start");
        assert!(self.starts.iter().sum::<u32>() <= 1, "and that over all sendings: {:?}", self.starts);
    }
}

fn verdict(end: End) -> Verdict {
    let error = |code| Failure::new(code, "so it ended");
    match end {
        End::Ok => Verdict::Ok { result: json!(0) },
        End::Failed => Verdict::Failed { error: error(ErrorCode::Failed) },
        End::TimedOut => Verdict::TimedOut { error: error(ErrorCode::TimedOut) },
        End::Cancelled => Verdict::Cancelled { error: error(ErrorCode::Cancelled) },
        End::Killed => Verdict::lost("killed"),
    }
}

proptest! {
    #[test]
    fn whatever_happens_the_record_is_true_and_in_the_end_complete(steps in proptest::collection::vec(step(), 0..60)) {
        let mut world = World::new();
        for step in &steps {
            world.step(step);
        }
        // The host comes back for good, ends what it has, and is asked: then everything is known.
        for step in [Step::Deliver, Step::Start, Step::End(End::Ok), Step::Say] {
            world.step(&step);
        }
        let last = world.said.len() - 1;
        world.step(&Step::Hear(last));
        let truth = world.truths.last().cloned();
        prop_assert_eq!(truth, world.host().outcome.clone().map(Truth::Ended));
        prop_assert!(world.record.state(false).has_ended());
    }
}
