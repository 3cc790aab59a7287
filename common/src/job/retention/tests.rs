#![allow(clippy::panic, reason = "a test may panic")]

use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

const MINUTE: Duration = Duration::from_secs(60);

fn job(id: u32, minutes: u32) -> EndedJob<u32> {
    EndedJob { id, age: MINUTE * minutes, proven: MINUTE * minutes, bytes: 10 }
}

fn retention(count: usize, bytes: u64) -> Retention {
    Retention { age: MINUTE * 24 * 60, count, bytes }
}

#[test]
fn the_oldest_go_first_and_none_before_its_hour() {
    let jobs = || vec![job(1, 2000), job(2, 90), job(3, 61), job(4, 59), job(5, 0)];
    let held = Holdings { count: 5, bytes: 50 };
    assert_eq!(retention(100, 1000).given_up(jobs(), held, 9), [1], "by age alone");
    assert_eq!(retention(4, 1000).given_up(jobs(), held, 9), [1, 2], "room for one more");
    assert_eq!(retention(1, 1000).given_up(jobs(), held, 9), [1, 2, 3], "and then no further");
    assert_eq!(retention(1, 1000).given_up(jobs(), held, 2), [1, 2], "at most so many at once");
    assert_eq!(retention(100, 25).given_up(jobs(), held, 9), [1, 2, 3]);
    assert!(retention(1, 1000).refusal(Holdings { count: 2, bytes: 20 }).is_some_and(|why| why.contains("retention.count is 1")));
}

#[test]
fn a_clock_that_was_wrong_gives_nothing_up_early_and_hides_nothing_old() {
    let wrong = EndedJob { proven: MINUTE * 10, ..job(1, 5_000_000) };
    let jobs = vec![wrong, job(2, 0), job(3, 2000), job(4, 90)];
    let held = Holdings { count: 4, bytes: 40 };
    assert_eq!(retention(100, 1000).given_up(jobs.clone(), held, 9), [3]);
    assert_eq!(retention(1, 1000).given_up(jobs, held, 9), [3, 4]);
}

/// What happens to the jobs that a program keeps.
#[derive(Debug, Clone)]
enum Step {
    /// A job is made, of so many bytes, unless that is refused.
    Make(u64),
    /// The oldest job that has not ended ends.
    End,
    /// Time passes.
    Pass(u32),
    /// What is old is given up.
    GiveUp,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..30_u64).prop_map(Step::Make),
        4 => Just(Step::End),
        2 => (0..90_u32).prop_map(Step::Pass),
        2 => Just(Step::GiveUp),
    ]
}

/// A job that is kept: its bytes, and the minute of its end.
#[derive(Debug, Clone, Copy)]
struct Job {
    bytes: u64,
    ended: Option<u32>,
}

fn held(jobs: &BTreeMap<u32, Job>) -> Holdings {
    Holdings { count: jobs.len(), bytes: jobs.values().filter(|job| job.ended.is_some()).map(|job| job.bytes).sum() }
}

proptest! {
    /// Whatever happens in whatever order: what runs is kept, what has ended is kept for an hour and, while there is room, until its age;
    /// and the limit of the count holds.
    #[test]
    fn nothing_is_given_up_early_and_the_limits_hold(steps in proptest::collection::vec(step(), 0..120)) {
        let rule = Retention { age: MINUTE * 240, count: 6, bytes: 60 };
        let (mut jobs, mut now) = (BTreeMap::<u32, Job>::new(), 0_u32);
        for (number, step) in (0_u32..).zip(&steps) {
            match *step {
                Step::Pass(minutes) => now += minutes,
                Step::End => {
                    if let Some(job) = jobs.values_mut().find(|job| job.ended.is_none()) {
                        job.ended = Some(now);
                    }
                }
                Step::Make(bytes) => match rule.refusal(held(&jobs)) {
                    None => drop(jobs.insert(number, Job { bytes, ended: None })),
                    Some(why) => prop_assert!(why.contains("retention."), "{why}"),
                },
                Step::GiveUp => {
                    let before = jobs.clone();
                    let mut ended: Vec<(u32, u32, u64)> =
                        before.iter().filter_map(|(id, job)| Some((job.ended?, *id, job.bytes))).collect();
                    ended.sort_unstable();
                    let ended = ended.into_iter().map(|(end, id, bytes)| EndedJob { id, age: MINUTE * (now - end), proven: MINUTE * (now - end), bytes });
                    for id in rule.given_up(ended, held(&before), 100) {
                        jobs.remove(&id);
                    }
                    for (id, job) in &before {
                        let age = job.ended.map(|end| now - end);
                        if age.is_none_or(|age| age < 60) {
                            prop_assert!(jobs.contains_key(id), "{job:?} went too early at {now}");
                        }
                        if age.is_some_and(|age| age > 240) {
                            prop_assert!(!jobs.contains_key(id), "{job:?} is too old at {now}");
                        }
                    }
                    // None goes before its age but for room, and then no more than it takes.
                    let oldest_gone = before.iter().filter(|(id, _)| !jobs.contains_key(id)).filter_map(|(_, job)| job.ended).max();
                    if oldest_gone.is_some_and(|end| now - end <= 240) {
                        prop_assert!(rule.refusal(held(&before)).is_some());
                    }
                    let can_go = jobs.values().any(|job| job.ended.is_some_and(|end| now - end >= 60));
                    prop_assert!(rule.refusal(held(&jobs)).is_none() || !can_go, "there is no room, though some could go");
                }
            }
            prop_assert!(jobs.len() <= rule.count);
        }
    }
}
