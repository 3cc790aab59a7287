//! The states of a host and of a job, and which may follow which.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// Where a call or a job stands on one host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HostState {
    /// Not sent yet.
    Pending,
    /// The host holds it and will run it.
    Queued,
    /// It runs.
    Running,
    /// The method gave a result.
    Ok,
    /// The method said no.
    Failed,
    /// No rule of the host allows it.
    Denied,
    /// It was stopped on request.
    Cancelled,
    /// It was stopped at its time limit.
    TimedOut,
    /// It never started.
    Undelivered,
    /// It may have run, and its end is not known.
    Lost,
}

impl HostState {
    /// Whether nothing more is waited for. `lost` is final, though a host that comes back can still mend it.
    #[must_use]
    pub fn is_final(self) -> bool {
        !matches!(self, Self::Pending | Self::Queued | Self::Running)
    }

    /// Whether a record in this state may go over to `next`. What has ended stays as it ended; `lost` alone may become
    /// what is really so, and `undelivered` may be sent again, which makes it `pending`.
    #[must_use]
    pub fn may_become(self, next: Self) -> bool {
        match self {
            Self::Pending => next != Self::Pending,
            Self::Queued => !matches!(next, Self::Pending | Self::Queued),
            Self::Running => next.is_final(),
            Self::Lost => !matches!(next, Self::Pending | Self::Lost),
            Self::Undelivered => next == Self::Pending,
            Self::Ok | Self::Failed | Self::Denied | Self::Cancelled | Self::TimedOut => false,
        }
    }

    /// The bit that a host in this state sets in the exit status of a command: 0, 2 or 4.
    #[must_use]
    pub fn exit_bit(self) -> u8 {
        match self {
            Self::Pending | Self::Queued | Self::Running | Self::Ok => 0,
            Self::Failed | Self::Denied | Self::Cancelled | Self::TimedOut => 2,
            Self::Undelivered | Self::Lost => 4,
        }
    }

    /// The word for it, as in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Ok => "ok",
            Self::Failed => "failed",
            Self::Denied => "denied",
            Self::Cancelled => "cancelled",
            Self::TimedOut => "timed_out",
            Self::Undelivered => "undelivered",
            Self::Lost => "lost",
        }
    }
}

impl fmt::Display for HostState {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(self.as_str())
    }
}

/// Where a job stands over all its hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum JobState {
    /// Dispatch is under way; the minion job ids are not all known yet.
    Running,
    /// Every host has a final state.
    Finished,
    /// No such job is known, or every host is lost.
    Lost,
    /// Dispatched, and at least one host is not final.
    Partial,
}

impl JobState {
    /// The state of a job whose hosts stand at `hosts`, while its dispatcher lives (`dispatching`) or not.
    #[must_use]
    pub fn of(hosts: impl IntoIterator<Item = HostState>, dispatching: bool) -> Self {
        let (mut total, mut pending, mut unfinished, mut lost) = (0_usize, 0_usize, 0_usize, 0_usize);
        for state in hosts {
            total += 1;
            pending += usize::from(state == HostState::Pending);
            unfinished += usize::from(!state.is_final());
            lost += usize::from(state == HostState::Lost);
        }
        if dispatching && pending > 0 {
            Self::Running
        } else if unfinished > 0 {
            Self::Partial
        } else if lost == total {
            Self::Lost
        } else {
            Self::Finished
        }
    }

    /// The state of a map whose items are in these states, so many in each, while its dispatcher lives (`dispatching`) or not.
    #[must_use]
    pub fn of_items(counts: &BTreeMap<HostState, u64>, dispatching: bool) -> Self {
        let is_there = |is_meant: fn(&HostState) -> bool| counts.iter().any(|(state, count)| *count > 0 && is_meant(state));
        match (is_there(|state| !state.is_final()), dispatching) {
            (true, true) => Self::Running,
            (true, false) => Self::Partial,
            (false, _) if is_there(|state| *state != HostState::Lost) => Self::Finished,
            (false, _) => Self::Lost,
        }
    }

    /// The number for it: RUNNING 0, FINISHED 1, LOST 2, PARTIAL 3.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::Running => 0,
            Self::Finished => 1,
            Self::Lost => 2,
            Self::Partial => 3,
        }
    }

    /// Whether the job has ended.
    #[must_use]
    pub fn has_ended(self) -> bool {
        matches!(self, Self::Finished | Self::Lost)
    }
}

impl fmt::Display for JobState {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(match self {
            Self::Running => "RUNNING",
            Self::Finished => "FINISHED",
            Self::Lost => "LOST",
            Self::Partial => "PARTIAL",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::HostState::*;
    use super::*;

    #[test]
    fn the_state_of_a_job_follows_from_its_hosts() {
        for (hosts, dispatching, state) in [
            (vec![Pending, Ok], true, JobState::Running),
            (vec![Pending, Ok], false, JobState::Partial),
            (vec![Running, Ok], true, JobState::Partial),
            (vec![Queued, Lost], false, JobState::Partial),
            (vec![Ok, Lost, Undelivered], false, JobState::Finished),
            (vec![Ok, Failed], true, JobState::Finished),
            (vec![Lost, Lost], false, JobState::Lost),
            (vec![], false, JobState::Lost),
        ] {
            assert_eq!(JobState::of(hosts.clone(), dispatching), state, "{hosts:?} {dispatching}");
        }
    }

    #[test]
    fn what_has_ended_stays_except_lost() {
        let all = [Pending, Queued, Running, Ok, Failed, Denied, Cancelled, TimedOut, Undelivered, Lost];
        for from in all.into_iter().filter(|state| state.is_final()) {
            for to in all {
                let mends = from == Lost && to != Lost && to != Pending;
                let resent = from == Undelivered && to == Pending;
                assert_eq!(from.may_become(to), mends || resent, "{from} -> {to}");
            }
        }
    }
}
