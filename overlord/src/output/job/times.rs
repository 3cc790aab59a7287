//! When a job began, how long it took, how far it is and how many jobs it has submitted, in words: over all, and host by host. Pure.

use common::job::{HostRecord, HostState};
use common::outcome::{PROGRESS_MESSAGE_MAX_LETTERS, Progress};
use common::shown::harmless_line;
use jiff::{SignedDuration, Timestamp};

use super::moment;
use crate::jobs::JobStatus;

/// The job over all, as of `now`.
pub(super) fn overall(status: &JobStatus, now: Timestamp) -> String {
    let record = &status.record;
    let began = format!("started {}", moment(record.created_at));
    match (record.finished_at(), record.fraction()) {
        (Some(end), _) => format!("{began}, took {}", period(end.duration_since(record.created_at))),
        (None, Some(fraction)) => {
            format!("{began}, {} ago, {} % done", period(now.duration_since(record.created_at)), percent(fraction))
        }
        (None, None) => began,
    }
}

/// What the hosts of a group that gave one answer have in times and in jobs of their own, and how far they came if they did not come to their end; none if
/// they never began.
pub(super) fn of_group(hosts: &[&HostRecord]) -> Option<String> {
    let from = hosts.iter().filter_map(|host| host.started_at).min().map(|at| format!("from {}", moment(at)));
    let took = span(hosts.iter().filter_map(|host| took(host)), period).map(|took| format!("took {took}"));
    let ended_well = hosts.iter().all(|host| host.state.exit_bit() == 0);
    let reports = hosts.iter().filter_map(|host| host.progress.as_ref()).filter(|_| !ended_well);
    let reached = match reports.clone().collect::<Vec<_>>().as_slice() {
        [only] => Some(reached(only)),
        _ => span(reports.map(|progress| percent(progress.fraction())), |percent| format!("{percent} %")).map(|span| format!("at {span}")),
    };
    let submitted: usize = hosts.iter().filter_map(|host| host.outcome.as_ref()).map(|outcome| outcome.followup.len()).sum();
    let submitted = (submitted > 0).then(|| format!("{submitted} jobs submitted"));
    let parts: Vec<String> = [from, took, reached, submitted].into_iter().flatten().collect();
    Some(parts.join(", ")).filter(|parts| !parts.is_empty())
}

/// How far a host says that it is.
pub(super) fn reached(progress: &Progress) -> String {
    let message = harmless_line(progress.message(), PROGRESS_MESSAGE_MAX_LETTERS);
    let quoted = if message.is_empty() { String::new() } else { format!(", \"{message}\"") };
    format!("at {} %{quoted}", percent(progress.fraction()))
}

/// How long the method ran on a host where it has ended, by that host's clock.
pub(super) fn took(host: &HostRecord) -> Option<SignedDuration> {
    // Of what is lost it is only known when that became known.
    let finished_at = host.outcome.as_ref().filter(|_| host.state != HostState::Lost)?.finished_at?;
    // A clock that was set back meanwhile says nothing.
    Some(finished_at.duration_since(host.started_at?).max(SignedDuration::ZERO))
}

/// The least and the most, or the one that is both.
fn span<T: Ord + Copy>(values: impl Iterator<Item = T> + Clone, shown: impl Fn(T) -> String) -> Option<String> {
    let (least, most) = (shown(values.clone().min()?), shown(values.max()?));
    Some(if least == most { least } else { format!("{least} to {most}") })
}

/// In hundredths; whole only where it is.
fn percent(fraction: f64) -> u8 {
    (0..=100).rev().find(|percent| f64::from(*percent) <= fraction * 100.0 + 1e-9).unwrap_or(0)
}

/// As exact as a person wants it.
pub(super) fn period(period: SignedDuration) -> String {
    let period = period.max(SignedDuration::ZERO);
    match period.as_secs() {
        0 => format!("{} ms", period.as_millis()),
        seconds @ 1..=59 => format!("{seconds}.{} s", period.subsec_millis() / 100),
        seconds => format!("{:#}", SignedDuration::from_secs(seconds)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;
    use common::outcome::{Outcome, Verdict};
    use serde_json::json;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn ended(verdict: Verdict, (from, to): (i64, i64), progress: Option<Progress>) -> HostRecord {
        let outcome = Outcome { progress: progress.clone().map(Box::new), ..Outcome::ran(verdict, at(from), at(to)) };
        let state = outcome.verdict.state();
        HostRecord { state, started_at: Some(at(from)), progress, outcome: Some(outcome), ..HostRecord::pending(1) }
    }

    #[test]
    fn a_group_says_when_it_began_and_how_long_it_took() {
        let ok = |from, to| ended(Verdict::Ok { result: json!(1) }, (from, to), Some(Progress::new(0.5, "x", at(to))));
        let (first, second) = (ok(10, 12), ok(9, 99));
        assert_eq!(of_group(&[&first]).unwrap(), "from 1970-01-01T00:00:10Z, took 2.0 s");
        assert_eq!(of_group(&[&first, &second]).unwrap(), "from 1970-01-01T00:00:09Z, took 2.0 s to 1m 30s");
        assert_eq!(of_group(&[&HostRecord { state: HostState::Lost, ..HostRecord::pending(1) }]), None);
    }

    #[test]
    fn what_failed_says_how_far_it_came() {
        let failed = |fraction, message: &str| ended(Verdict::lost("x"), (0, 7), Some(Progress::new(fraction, message, at(0))));
        let (first, second) = (failed(0.42, "copying\x1b[2J"), failed(0.999, ""));
        assert_eq!(of_group(&[&first]).unwrap(), "from 1970-01-01T00:00:00Z, at 42 %, \"copying\\x1b[2J\"");
        assert_eq!(of_group(&[&first, &second]).unwrap(), "from 1970-01-01T00:00:00Z, at 42 % to 99 %");
    }

    #[test]
    fn hundredths_are_whole_where_the_fraction_is() {
        for (fraction, shown) in [(0.0, 0), (0.29, 29), (0.57, 57), (0.994, 99), (0.9999, 99), (1.0, 100)] {
            assert_eq!(percent(fraction), shown, "{fraction}");
        }
    }
}
