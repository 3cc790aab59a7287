//! A job's log, line by line, into its record; and what is kept of how far that came. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use common::identity::MinionName;
use common::job::map::{MapFold, MapTally};
use common::job::retention::EndedJob;
use common::job::{Event, HostState, JobId, JobRecord, LogLine};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::clock;
use crate::jobs::log::Damage;

/// How far a job's log is folded, and what that came to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Mark {
    pub(super) folded: u64,
    pub(super) changed_at: Timestamp,
    pub(super) counts: BTreeMap<HostState, usize>,
    /// The sum of the checksums of the job's records besides this: a store that was damaged may have forgotten some of them, or remember
    /// what they were before.
    pub(super) digest: u64,
    /// None while a host has not ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) ended: Option<End>,
    /// How a map's items stand; its log is folded anew each time that it has grown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) map: Option<MapTally>,
}

/// When a job ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct End {
    /// By this machine's clock, which may have been set since.
    pub(super) at: Timestamp,
    /// The boot in which that was noticed.
    boot: String,
    /// How long the machine had been up then.
    uptime_ms: u64,
}

impl End {
    /// That it ended at `at` has just been noticed.
    pub(super) fn noticed(at: Timestamp) -> Self {
        Self { at, boot: clock::boot_id().to_owned(), uptime_ms: u64::try_from(clock::uptime().as_millis()).unwrap_or(u64::MAX) }
    }

    /// How long ago that is: as long as the machine has been up since it was noticed, whatever its clock was set to; after a reboot
    /// what the clock says, and at least what is certain.
    pub(super) fn age(&self, now: &Now) -> Duration {
        let proven = self.proven(now);
        if self.boot == now.boot && !now.boot.is_empty() {
            return proven;
        }
        proven.max(Duration::try_from(now.at.duration_since(self.at)).unwrap_or_default())
    }

    /// How long ago that is for certain, whatever the clock was set to: after a reboot, as long as the machine has been up. Boots without a
    /// name may be the same.
    pub(super) fn proven(&self, now: &Now) -> Duration {
        if self.boot == now.boot { now.uptime.saturating_sub(Duration::from_millis(self.uptime_ms)) } else { now.uptime }
    }
}

/// One moment, by which several ages are told, so that they can be compared.
#[derive(Debug, Clone)]
pub(super) struct Now {
    at: Timestamp,
    boot: String,
    uptime: Duration,
}

impl Now {
    pub(super) fn read() -> Self {
        Self { at: Timestamp::now(), boot: clock::boot_id().to_owned(), uptime: clock::uptime() }
    }
}

/// The jobs that ended, and how long ago as of one moment.
pub(super) fn ages(ends: Vec<(JobId, End, u64)>) -> Vec<EndedJob<JobId>> {
    let now = Now::read();
    ends.into_iter().map(|(id, end, bytes)| EndedJob { id, age: end.age(&now), proven: end.proven(&now), bytes }).collect()
}

/// A record that is being added to.
#[derive(Debug, Default)]
pub(super) struct Fold {
    pub(super) record: Option<JobRecord>,
    /// The hosts of which something may be new.
    pub(super) changed: BTreeSet<MinionName>,
    /// When the last host ended; none while one has not.
    pub(super) ended_at: Option<Timestamp>,
    /// The hosts that have not ended.
    open: usize,
    /// The items of a map.
    map: Option<MapFold>,
}

impl Fold {
    pub(super) fn of(record: JobRecord, ended_at: Option<Timestamp>) -> Self {
        let open = record.hosts.values().filter(|host| !host.state.is_final()).count();
        let map = MapFold::of(&record.header, record.created_at);
        Self { record: Some(record), changed: BTreeSet::new(), ended_at, open, map }
    }

    /// To fold a line twice does no harm.
    pub(super) fn add(&mut self, line: &LogLine) {
        let Some(record) = self.record.as_mut() else {
            if let Event::Created(header) = &line.event {
                *self = Self::of(JobRecord::new(header.clone(), line.at), None);
            }
            return;
        };
        let named = match &line.event {
            Event::Created(_) => &[],
            Event::Resumed { hosts, .. } => hosts.as_slice(),
            Event::Heard { host, .. } => std::slice::from_ref(host),
            Event::Dealt { .. } | Event::Done { .. } | Event::Left { .. } | Event::CancelAsked => &[],
        };
        if let Some(map) = &mut self.map {
            map.add(line);
            record.changed_at = record.changed_at.max(line.at);
            return;
        }
        let states = |record: &JobRecord| -> Vec<HostState> {
            named.iter().filter_map(|name| record.hosts.get(name)).map(|host| host.state).collect()
        };
        let open = |states: &[HostState]| states.iter().filter(|state| !state.is_final()).count();
        let before = states(record);
        self.changed.extend(record.apply(line).iter().cloned());
        let after = states(record);
        self.open = self.open.saturating_sub(open(&before)) + open(&after);
        if before != after {
            // What a host that was lost has said at last is kept as long as what others said.
            self.ended_at = (self.open == 0).then_some(line.at);
        }
    }

    /// A line could not be read.
    pub(super) fn miss(&mut self, line: &Damage) {
        if line.is_unknown {
            return;
        }
        self.doubt_sending();
        if let Some(map) = &mut self.map {
            map.miss();
        }
    }

    /// What it all comes to, the hosts that may have changed, and when it ended.
    pub(super) fn close(self) -> (Option<JobRecord>, BTreeSet<MinionName>, Option<Timestamp>) {
        let Self { mut record, changed, mut ended_at, map, .. } = self;
        if let Some((record, map)) = record.as_mut().zip(map) {
            record.map = Some(map.tally());
            ended_at = map.ended_at();
        }
        (record, changed, ended_at)
    }

    /// A line is missing that may have told of a further sending.
    fn doubt_sending(&mut self) {
        let doubted = self.record.as_mut().map(JobRecord::doubt_sending).unwrap_or_default();
        if !doubted.is_empty() {
            self.open += doubted.len();
            self.ended_at = None;
            self.changed.extend(doubted);
        }
    }
}

/// How many hosts, or items of a map, are in which state.
pub(super) fn counts(record: &JobRecord) -> BTreeMap<HostState, usize> {
    if let Some(tally) = &record.map {
        return tally.counts.iter().map(|(state, count)| (*state, usize::try_from(*count).unwrap_or(usize::MAX))).collect();
    }
    let mut counts = BTreeMap::new();
    for host in record.hosts.values() {
        *counts.entry(host.state).or_default() += 1;
    }
    counts
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;
    use common::job::{JobHeader, News};
    use common::outcome::{Outcome, Verdict};
    use common::protocol::Arguments;
    use jiff::SignedDuration;
    use serde_json::json;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn ended(second: i64, host: &str, verdict: Verdict) -> LogLine {
        let news = News::Ended(Outcome::not_run(verdict, at(0)));
        LogLine { at: at(second), event: Event::Heard { host: host.parse().unwrap(), attempt: 1, news } }
    }

    fn fold(lines: &[LogLine]) -> Fold {
        let header = JobHeader {
            job_id: "54k2-9xqd-4fz1".parse().unwrap(),
            caller: "admin".parse().unwrap(),
            target: "*".into(),
            method: "test.ping".into(),
            args: Arguments::default(),
            job_limit_ms: None,
            retry_of: None,
            map: None,
            hosts: vec!["web1".parse().unwrap(), "web2".parse().unwrap()],
        };
        let mut fold = Fold::default();
        fold.add(&LogLine { at: at(0), event: Event::Created(header) });
        lines.iter().for_each(|line| fold.add(line));
        fold
    }

    #[test]
    fn a_job_ends_with_its_last_host_and_again_with_what_a_lost_one_said() {
        let ok = || Verdict::Ok { result: json!(1) };
        let lost = || Verdict::lost("gone");
        assert_eq!(fold(&[ended(5, "web1", ok())]).ended_at, None);
        assert_eq!(fold(&[ended(5, "web1", ok()), ended(7, "web2", lost()), ended(8, "web1", ok())]).ended_at, Some(at(7)));
        assert_eq!(fold(&[ended(5, "web1", ok()), ended(7, "web2", lost()), ended(9, "web2", ok())]).ended_at, Some(at(9)));
        let undelivered = || Verdict::undelivered("off");
        let mut doubted = fold(&[ended(5, "web1", ok()), ended(7, "web2", undelivered())]);
        doubted.doubt_sending();
        assert_eq!(doubted.ended_at, None);
        let again = Event::Resumed { attempt: 2, hosts: vec!["web2".parse().unwrap()] };
        let resumed = [ended(5, "web1", ok()), ended(7, "web2", undelivered()), LogLine { at: at(8), event: again }];
        assert_eq!(fold(&resumed).ended_at, None);
    }

    #[test]
    fn a_clock_that_was_set_makes_nothing_older_within_a_boot() {
        let end = End { at: at(1000), boot: "a".into(), uptime_ms: 5000 };
        let year = SignedDuration::from_hours(24 * 365);
        let age = |at, boot: &str, uptime_secs| end.age(&Now { at, boot: boot.into(), uptime: Duration::from_secs(uptime_secs) });
        let minute = Duration::from_secs(60);
        assert_eq!((age(at(1000) + year, "a", 65), age(at(1), "a", 65)), (minute, minute));
        let second = Duration::from_secs(1);
        assert_eq!((age(at(1060), "b", 1), age(at(1), "b", 1)), (minute, second), "after a reboot, at least as long as that is ago");
        let proven =
            |boot: &str, uptime_secs| end.proven(&Now { at: at(1000) + year, boot: boot.into(), uptime: Duration::from_secs(uptime_secs) });
        assert_eq!((proven("a", 65), proven("a", 1), proven("b", 1)), (minute, Duration::ZERO, second));
    }
}
