//! The events of a job's log, and the record they add up to.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::map::{MapFold, MapTally, MapTerms};
use super::{CallId, HostState, JobId, JobState, MinionJobId};
use crate::identity::{CallerName, MinionName};
use crate::outcome::{Outcome, Progress, Verdict};
use crate::protocol::Arguments;

/// One line of a job's log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LogLine {
    /// When it was written, by the overlord's clock.
    pub at: Timestamp,
    /// What became known.
    #[serde(flatten)]
    pub event: Event,
}

/// What a job was asked to do: written once, as the first line of its log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobHeader {
    /// The job.
    pub job_id: JobId,
    /// Who started it.
    pub caller: CallerName,
    /// The target as it was typed.
    pub target: String,
    /// `module.method`, without `async.`.
    pub method: String,
    /// The arguments as they were given.
    pub args: Arguments,
    /// The time limit of the run on each host, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job_limit_ms: Option<u64>,
    /// The job whose hosts it was made for anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_of: Option<JobId>,
    /// The hosts that the target named.
    pub hosts: Vec<MinionName>,
    /// It is a map: its hosts are not each sent the job, but dealt its items.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub map: Option<MapTerms>,
}

/// Something that became known of a job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The job was made; every host is `pending`.
    Created(JobHeader),
    /// These hosts, `undelivered` until now, are sent the job again, under the call id `ID/attempt`.
    Resumed {
        /// The number of this sending; the first was 1.
        attempt: u32,
        /// The hosts it is sent to.
        hosts: Vec<MinionName>,
    },
    /// A host said something, or did not answer when asked.
    Heard {
        /// The host.
        host: MinionName,
        /// The number of the sending that it is about; news of an earlier sending changes nothing any more.
        attempt: u32,
        /// What it said.
        #[serde(flatten)]
        news: News,
    },
    /// Of a map: a chunk of its items is about to be sent.
    Dealt {
        /// Its number.
        chunk: u64,
        /// To whom.
        host: MinionName,
        /// Its first item.
        first: u64,
        /// How many follow in a row, with it.
        count: u64,
    },
    /// Of a map: what became of a chunk.
    Done {
        /// Its number.
        chunk: u64,
        /// Who had it.
        host: MinionName,
        /// The items that have ended, and how.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        ends: Vec<(u64, Verdict)>,
        /// The items that were not begun: they are dealt again.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        back: Vec<u64>,
        /// The items that may have run, and may be run again.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        doubted: Vec<u64>,
    },
    /// Of a map: these items are dealt to nobody any more.
    Left {
        /// The first.
        first: u64,
        /// How many follow in a row, with it.
        count: u64,
        /// Why.
        verdict: Verdict,
    },
    /// Of a map: it is to end.
    CancelAsked,
}

/// What became known of a job on one host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "news", rename_all = "snake_case")]
pub enum News {
    /// The host holds the job.
    Accepted {
        /// The job's id there.
        minion_job_id: MinionJobId,
        /// `queued` or `running`.
        #[serde(rename = "now")]
        state: HostState,
    },
    /// How far it is.
    Going {
        /// `queued` or `running`.
        #[serde(rename = "now")]
        state: HostState,
        /// Since when it runs.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        started_at: Option<Timestamp>,
        /// How far the method said last that it is.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        progress: Option<Progress>,
    },
    /// It ended there, or became known never to start there, or is lost.
    Ended(Outcome),
    /// The host did not answer.
    Unreachable {
        /// Why, for a person.
        reason: String,
    },
    /// It has not answered for so long that it is waited for no more: it is lost, until it says itself what became of the job.
    GivenUp {
        /// Since when, and why, for a person.
        reason: String,
    },
}

/// That a host does not answer at present: a note beside its last known state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contact {
    /// When it was first asked in vain.
    pub since: Timestamp,
    /// Why, as of the first time.
    pub reason: String,
}

/// All that is known of a job on one host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HostRecord {
    /// The number of the sending that the rest is about.
    pub attempt: u32,
    /// The last known state.
    pub state: HostState,
    /// The job's id there; written once, kept whatever becomes of the job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minion_job_id: Option<MinionJobId>,
    /// Since when it runs there, by the host's clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// How far the method said last that it is, or was when it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
    /// How it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
    /// Set while the host does not answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unreachable: Option<Contact>,
    /// That it is lost is not the host's word: it was given up.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_given_up: bool,
}

impl HostRecord {
    /// A host that has not been sent its `attempt`th call yet.
    #[must_use]
    pub fn pending(attempt: u32) -> Self {
        Self {
            attempt,
            state: HostState::Pending,
            minion_job_id: None,
            started_at: None,
            progress: None,
            outcome: None,
            unreachable: None,
            is_given_up: false,
        }
    }

    /// It has not started there. A line that says so may have been damaged, so `pending` will do.
    fn may_be_sent_again(&self) -> bool {
        matches!(self.state, HostState::Pending | HostState::Undelivered)
    }

    fn hear(&mut self, at: Timestamp, news: &News) {
        match news {
            News::Accepted { minion_job_id, state } => self.accept(minion_job_id, *state),
            News::Going { state, started_at, progress } => self.go(*state, *started_at, progress.as_ref()),
            News::Ended(outcome) => self.end(outcome),
            News::Unreachable { reason } => self.miss(at, reason),
            News::GivenUp { reason } => self.give_up(at, reason),
        }
    }

    /// What ran was accepted, and under which id follows, should the line that says so be damaged.
    fn derive_id(&mut self, host: &MinionName, header: &JobHeader) {
        if self.minion_job_id.is_none() && self.outcome.as_ref().is_some_and(|outcome| outcome.started_at.is_some()) {
            let call_id = CallId::new(header.job_id.clone(), self.attempt);
            self.minion_job_id = Some(MinionJobId::derive(host, &header.caller, &call_id));
        }
    }

    fn accept(&mut self, minion_job_id: &MinionJobId, state: HostState) {
        self.minion_job_id.get_or_insert_with(|| minion_job_id.clone());
        self.go(state, None, None);
    }

    fn go(&mut self, state: HostState, started_at: Option<Timestamp>, progress: Option<&Progress>) {
        self.unreachable = None;
        // What the host itself has called lost is no more mended by its being under way, which may be old news, but by an end.
        let is_lost_for_good = self.state == HostState::Lost && !self.is_given_up;
        if state == self.state && !state.is_final() {
            self.started_at = self.started_at.or(started_at);
            self.progress = progress.cloned().or_else(|| self.progress.take());
        } else if !state.is_final() && self.state.may_become(state) && !is_lost_for_good {
            self.state = state;
            self.started_at = started_at.or(self.started_at);
            self.progress = progress.cloned().or_else(|| self.progress.take());
            // That it was lost, if it was, has turned out not to be so.
            self.outcome = None;
            self.is_given_up = false;
        }
    }

    fn end(&mut self, outcome: &Outcome) {
        self.unreachable = None;
        if self.state.may_become(outcome.verdict.state()) || self.is_given_up {
            self.is_given_up = false;
            self.state = outcome.verdict.state();
            self.started_at = outcome.started_at.or(self.started_at);
            self.progress = outcome.progress.as_deref().cloned().or_else(|| self.progress.take());
            self.outcome = Some(outcome.clone());
        }
    }

    fn give_up(&mut self, at: Timestamp, reason: &str) {
        if self.state.may_become(HostState::Lost) && !self.state.is_final() {
            self.state = HostState::Lost;
            self.outcome = Some(Outcome::not_run(Verdict::lost(reason), at));
            self.is_given_up = true;
        }
    }

    fn miss(&mut self, at: Timestamp, reason: &str) {
        if !self.state.is_final() || self.state == HostState::Lost {
            self.unreachable.get_or_insert_with(|| Contact { since: at, reason: reason.to_owned() });
        }
    }
}

/// All that is known of a job.
#[derive(Debug, Clone, PartialEq)]
pub struct JobRecord {
    /// What was asked.
    pub header: JobHeader,
    /// When the job was made.
    pub created_at: Timestamp,
    /// When the last event was written.
    pub changed_at: Timestamp,
    /// Every host of the header; none of a map's.
    pub hosts: BTreeMap<MinionName, HostRecord>,
    /// How a map's items stand; none of another job.
    pub map: Option<MapTally>,
}

impl JobRecord {
    /// The record of a job that has just been made.
    #[must_use]
    pub fn new(header: JobHeader, at: Timestamp) -> Self {
        let sent_to = if header.map.is_some() { &[][..] } else { header.hosts.as_slice() };
        let hosts = sent_to.iter().map(|host| (host.clone(), HostRecord::pending(1))).collect();
        let map = MapFold::of(&header, at).map(|fold| fold.tally());
        Self { header, created_at: at, changed_at: at, hosts, map }
    }

    /// Adds what a later line of the log says. Lines that say nothing new, or of hosts that are not the job's, change nothing.
    /// Gives the names of the hosts that it was about.
    pub fn apply<'a>(&mut self, line: &'a LogLine) -> &'a [MinionName] {
        self.changed_at = self.changed_at.max(line.at);
        match &line.event {
            Event::Created(_) => &[],
            Event::Resumed { attempt, hosts } => {
                for host in hosts {
                    if let Some(record) = self.hosts.get_mut(host)
                        && record.may_be_sent_again()
                        && record.attempt < *attempt
                    {
                        *record = HostRecord::pending(*attempt);
                    }
                }
                hosts
            }
            Event::Heard { host, attempt, news } => {
                if let Some(record) = self.hosts.get_mut(host) {
                    // The line that told of this sending was damaged, and is not there.
                    if record.attempt < *attempt && record.may_be_sent_again() {
                        *record = HostRecord::pending(*attempt);
                    }
                    if record.attempt == *attempt {
                        record.hear(line.at, news);
                        record.derive_id(host, &self.header);
                    }
                }
                std::slice::from_ref(host)
            }
            // Of items `MapFold` knows.
            Event::Dealt { .. } | Event::Done { .. } | Event::Left { .. } | Event::CancelAsked => &[],
        }
    }

    /// Takes over what hosts have said of their progress that stands in no log: what was `heard` is newer.
    pub fn take_progress(&mut self, heard: &Self) {
        for (name, host) in &mut self.hosts {
            if let Some(other) = heard.hosts.get(name).filter(|other| other.attempt == host.attempt && host.outcome.is_none()) {
                host.progress = other.progress.clone().or_else(|| host.progress.take());
            }
        }
    }

    /// How much of the job is done, from 0 to 1: hosts that have ended count whole, others as far as they say; of a map, the items that have ended. None
    /// of a job without hosts.
    #[must_use]
    pub fn fraction(&self) -> Option<f64> {
        if let Some(tally) = &self.map {
            let count = |items: u64| u32::try_from(items).ok().map(f64::from);
            return Some(count(tally.ended())? / count(tally.items()).filter(|items| *items > 0.0)?);
        }
        let done = |host: &HostRecord| match &host.progress {
            _ if host.state.is_final() => 1.0,
            Some(progress) => progress.fraction(),
            None => 0.0,
        };
        let count = u32::try_from(self.hosts.len()).ok().filter(|count| *count > 0)?;
        Some(self.hosts.values().map(done).sum::<f64>() / f64::from(count))
    }

    /// A line of the log is damaged that may have told of a further sending: hosts that are known never to have started the job may have been
    /// sent it once more, so they are `pending` until they are asked about that sending. Gives their names.
    pub fn doubt_sending(&mut self) -> Vec<MinionName> {
        let attempt = self.hosts.values().map(|host| host.attempt).max().unwrap_or(1).saturating_add(1);
        let undelivered = self.hosts.iter_mut().filter(|(_, host)| host.state == HostState::Undelivered);
        let doubted = undelivered.map(|(name, host)| {
            *host = HostRecord::pending(attempt);
            name.clone()
        });
        doubted.collect()
    }

    /// The job's state, while its dispatcher lives (`dispatching`) or not.
    #[must_use]
    pub fn state(&self, dispatching: bool) -> JobState {
        match &self.map {
            Some(tally) => JobState::of_items(&tally.counts, dispatching),
            None => JobState::of(self.hosts.values().map(|host| host.state), dispatching),
        }
    }

    /// The bits of the exit status: what the hosts that have ended add up to.
    #[must_use]
    pub fn exit_bits(&self) -> u8 {
        let items = self.map.iter().flat_map(|tally| tally.counts.keys()).fold(0, |bits, state| bits | state.exit_bit());
        self.hosts.values().fold(items, |bits, host| bits | host.state.exit_bit())
    }

    /// When the last host ended, by the hosts' clocks; none while one has not.
    #[must_use]
    pub fn finished_at(&self) -> Option<Timestamp> {
        let ended = |host: &HostRecord| host.outcome.as_ref().and_then(|outcome| outcome.finished_at);
        if let Some(tally) = &self.map {
            return (tally.ended() == tally.items()).then_some(self.changed_at);
        }
        if self.hosts.values().all(|host| host.state.is_final()) { self.hosts.values().filter_map(ended).max() } else { None }
    }
}

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
