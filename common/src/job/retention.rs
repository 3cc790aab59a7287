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
    /// How long ago it ended, as far as the clocks were right.
    pub age: Duration,
    /// How long ago it has ended for certain, by a clock that nobody can set.
    pub proven: Duration,
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
            if given_up.len() >= count_max {
                break;
            }
            // Those that follow may be older: a clock that was set puts jobs out of their places.
            if job.proven < KEPT_AT_LEAST || (job.age <= self.age && self.refusal(held).is_none()) {
                continue;
            }
            held.count = held.count.saturating_sub(1);
            held.bytes = held.bytes.saturating_sub(job.bytes);
            given_up.push(job.id);
        }
        given_up
    }
}

#[cfg(test)]
mod tests;
