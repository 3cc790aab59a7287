//! How long jobs that have ended are kept: the rule, for the overlord's logs and for a minion's spools alike. Pure.
//!
//! A job that has not ended is never given up, nor one that ended less than [`KEPT_AT_LEAST`] ago. Where that leaves no room, new jobs are
//! refused.

use std::time::Duration;

/// So long is every job kept after its end, whatever the limits.
pub const KEPT_AT_LEAST: Duration = Duration::from_secs(60 * 60);

/// What is kept at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// So long after its end a job is given up.
    pub age: Duration,
    /// So many jobs are kept, those that have not ended included.
    pub count: usize,
    /// So many bytes of files are kept.
    pub bytes: u64,
}

/// What there is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Holdings {
    /// Jobs.
    pub count: usize,
    /// Bytes of their files.
    pub bytes: u64,
}

/// A job that has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndedJob<I> {
    /// Which.
    pub id: I,
    /// How long ago it ended.
    pub age: Duration,
    /// How many bytes its files have.
    pub bytes: u64,
}

impl Retention {
    /// Why no further job is taken on; none if there is room.
    #[must_use]
    pub fn refusal(&self, held: Holdings) -> Option<String> {
        if held.count >= self.count {
            Some(format!("{} jobs are kept, and retention.count is {}", held.count, self.count))
        } else if held.bytes >= self.bytes {
            Some(format!("the jobs that are kept have {} bytes, and retention.bytes is {}", held.bytes, self.bytes))
        } else {
            None
        }
    }

    /// The jobs of `ended`, which are given oldest end first, that are given up, so that there is room for one more, at most `count_max` at
    /// once; `held` is everything there is, what has not ended included.
    pub fn given_up<I>(&self, ended: impl IntoIterator<Item = EndedJob<I>>, mut held: Holdings, count_max: usize) -> Vec<I> {
        let mut given_up = Vec::new();
        for job in ended {
            let is_enough = given_up.len() >= count_max;
            if is_enough || job.age < KEPT_AT_LEAST || (job.age <= self.age && self.refusal(held).is_none()) {
                // Those that follow are younger. A clock that was set can put one out of its place; its turn comes later.
                break;
            }
            held.count = held.count.saturating_sub(1);
            held.bytes = held.bytes.saturating_sub(job.bytes);
            given_up.push(job.id);
        }
        given_up
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn job(id: u32, minutes: u32) -> EndedJob<u32> {
        EndedJob { id, age: MINUTE * minutes, bytes: 10 }
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
}
