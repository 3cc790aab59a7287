//! The events of a job's log, and the record they add up to.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{CallId, HostState, JobId, JobState, MinionJobId};
use crate::identity::{CallerName, MinionName};
use crate::outcome::Outcome;
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
    },
    /// It ended there, or became known never to start there, or is lost.
    Ended(Outcome),
    /// The host did not answer.
    Unreachable {
        /// Why, for a person.
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
    /// How it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
    /// Set while the host does not answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unreachable: Option<Contact>,
}

impl HostRecord {
    /// A host that has not been sent its `attempt`th call yet.
    #[must_use]
    pub fn pending(attempt: u32) -> Self {
        Self { attempt, state: HostState::Pending, minion_job_id: None, started_at: None, outcome: None, unreachable: None }
    }

    /// It has not started there. A line that says so may have been damaged, so `pending` will do.
    fn may_be_sent_again(&self) -> bool {
        matches!(self.state, HostState::Pending | HostState::Undelivered)
    }

    fn hear(&mut self, at: Timestamp, news: &News) {
        match news {
            News::Accepted { minion_job_id, state } => self.accept(minion_job_id, *state),
            News::Going { state, started_at } => self.go(*state, *started_at),
            News::Ended(outcome) => self.end(outcome),
            News::Unreachable { reason } => self.miss(at, reason),
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
        self.go(state, None);
    }

    fn go(&mut self, state: HostState, started_at: Option<Timestamp>) {
        self.unreachable = None;
        if !state.is_final() && self.state.may_become(state) {
            self.state = state;
            self.started_at = started_at.or(self.started_at);
            // That it was lost, if it was, has turned out not to be so.
            self.outcome = None;
        }
    }

    fn end(&mut self, outcome: &Outcome) {
        self.unreachable = None;
        if self.state.may_become(outcome.verdict.state()) {
            self.state = outcome.verdict.state();
            self.started_at = outcome.started_at.or(self.started_at);
            self.outcome = Some(outcome.clone());
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
    /// Every host of the header.
    pub hosts: BTreeMap<MinionName, HostRecord>,
}

impl JobRecord {
    /// The record of a job that has just been made.
    #[must_use]
    pub fn new(header: JobHeader, at: Timestamp) -> Self {
        let hosts = header.hosts.iter().map(|host| (host.clone(), HostRecord::pending(1))).collect();
        Self { header, created_at: at, changed_at: at, hosts }
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
        }
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
        JobState::of(self.hosts.values().map(|host| host.state), dispatching)
    }

    /// The bits of the exit status: what the hosts that have ended add up to.
    #[must_use]
    pub fn exit_bits(&self) -> u8 {
        self.hosts.values().fold(0, |bits, host| bits | host.state.exit_bit())
    }

    /// When the last host ended, by the hosts' clocks; none while one has not.
    #[must_use]
    pub fn finished_at(&self) -> Option<Timestamp> {
        let ended = |host: &HostRecord| host.outcome.as_ref().and_then(|outcome| outcome.finished_at);
        if self.hosts.values().all(|host| host.state.is_final()) { self.hosts.values().filter_map(ended).max() } else { None }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may panic")]
    use super::*;
    use crate::outcome::Verdict;
    use serde_json::json;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn host() -> MinionName {
        "web1".parse().unwrap()
    }

    fn header() -> JobHeader {
        JobHeader {
            job_id: "54k2-9xqd-4fz1".parse().unwrap(),
            caller: "admin".parse().unwrap(),
            target: "*".into(),
            method: "test.ping".into(),
            args: Arguments::default(),
            job_limit_ms: None,
            retry_of: None,
            hosts: vec![host()],
        }
    }

    fn heard(attempt: u32, news: News) -> Event {
        Event::Heard { host: host(), attempt, news }
    }

    fn ended(verdict: Verdict) -> Event {
        heard(1, News::Ended(Outcome::not_run(verdict, at(9))))
    }

    fn fold(events: &[Event]) -> JobRecord {
        let mut record = JobRecord::new(header(), at(0));
        for (second, event) in (1..).zip(events) {
            let line = LogLine { at: at(second), event: event.clone() };
            let text = serde_json::to_string(&line).unwrap();
            assert_eq!(serde_json::from_str::<LogLine>(&text).unwrap(), line);
            record.apply(&line);
        }
        record
    }

    fn accepted() -> Event {
        let call = CallId::new(header().job_id, 1);
        let minion_job_id = MinionJobId::derive(&host(), &header().caller, &call);
        heard(1, News::Accepted { minion_job_id, state: HostState::Queued })
    }

    fn going() -> Event {
        heard(1, News::Going { state: HostState::Running, started_at: Some(at(5)) })
    }

    fn again() -> Event {
        Event::Resumed { attempt: 2, hosts: vec![host()] }
    }

    #[test]
    fn a_result_keeps_the_minion_job_id_and_is_never_overwritten() {
        let ok = ended(Verdict::Ok { result: json!(0) });
        let record = fold(&[accepted(), going(), ok, ended(Verdict::lost("late news")), going(), accepted()]);
        let host = &record.hosts[&host()];
        assert_eq!(host.state, HostState::Ok);
        assert!(host.minion_job_id.is_some());
        assert_eq!(record.state(false), JobState::Finished);
    }

    #[test]
    fn events_in_either_order_add_up_to_the_same() {
        let ok = || ended(Verdict::Ok { result: json!(1) });
        let orders = [vec![accepted(), going(), ok()], vec![ok(), going(), accepted()], vec![going(), accepted(), ok(), ok()]];
        for events in orders {
            let record = fold(&events);
            assert_eq!(record.hosts[&host()].state, HostState::Ok);
            assert!(record.hosts[&host()].minion_job_id.is_some());
        }
    }

    #[test]
    fn lost_is_mended_by_the_result() {
        let record = fold(&[accepted(), ended(Verdict::lost("rebooted")), ended(Verdict::Ok { result: json!(1) })]);
        assert_eq!(record.hosts[&host()].state, HostState::Ok);
    }

    #[test]
    fn lost_by_silence_is_mended_by_a_host_that_comes_back_and_runs_it_still() {
        let record = fold(&[accepted(), going(), ended(Verdict::lost("silent")), going()]);
        let host = &record.hosts[&host()];
        assert_eq!((host.state, &host.outcome), (HostState::Running, &None));
        assert_eq!(record.state(false), JobState::Partial);
    }

    #[test]
    fn unreachable_is_a_note_since_the_first_time_and_goes_when_the_host_answers() {
        let miss = |why: &str| heard(1, News::Unreachable { reason: why.into() });
        let record = fold(&[accepted(), going(), miss("cut"), miss("still cut")]);
        let noted = &record.hosts[&host()];
        assert_eq!(noted.state, HostState::Running);
        assert_eq!(noted.unreachable, Some(Contact { since: at(3), reason: "cut".into() }));
        assert_eq!(fold(&[accepted(), miss("cut"), going()]).hosts[&host()].unreachable, None);
    }

    #[test]
    fn only_what_never_started_is_sent_again() {
        let record = fold(&[ended(Verdict::undelivered("fenced")), again()]);
        assert_eq!((record.hosts[&host()].state, record.hosts[&host()].attempt), (HostState::Pending, 2));
        assert_eq!(fold(&[ended(Verdict::lost("killed")), again()]).hosts[&host()].state, HostState::Lost);
        assert_eq!(fold(&[accepted(), again()]).hosts[&host()].state, HostState::Queued);
    }

    #[test]
    fn a_sending_whose_line_is_missing_is_known_by_its_news_or_doubted() {
        let fenced = || ended(Verdict::undelivered("fenced"));
        let again = |news| Event::Heard { host: host(), attempt: 2, news };
        let ok = || News::Ended(Outcome::not_run(Verdict::Ok { result: json!(1) }, at(9)));
        let record = fold(&[fenced(), again(ok())]);
        assert_eq!((record.hosts[&host()].state, record.hosts[&host()].attempt), (HostState::Ok, 2));
        assert_eq!(fold(&[accepted(), again(ok())]).hosts[&host()].state, HostState::Queued);
        assert_eq!(fold(&[self::again(), again(ok())]).hosts[&host()].state, HostState::Ok, "that it was undelivered is missing");

        let mut record = fold(&[fenced()]);
        assert_eq!(record.doubt_sending(), [host()]);
        assert_eq!((record.hosts[&host()].state, record.hosts[&host()].attempt), (HostState::Pending, 2));
        assert!(fold(&[ended(Verdict::lost("killed"))]).doubt_sending().is_empty());
    }

    #[test]
    fn what_ran_has_an_id_though_nothing_says_that_it_was_accepted() {
        let ran = Outcome { started_at: Some(at(5)), ..Outcome::not_run(Verdict::Ok { result: json!(1) }, at(9)) };
        let record = fold(&[heard(1, News::Ended(ran))]);
        let id = MinionJobId::derive(&host(), &header().caller, &CallId::new(header().job_id, 1));
        assert_eq!(record.hosts[&host()].minion_job_id, Some(id));
        assert_eq!(fold(&[ended(Verdict::undelivered("off"))]).hosts[&host()].minion_job_id, None);
    }

    #[test]
    fn late_news_of_an_earlier_sending_changes_nothing() {
        let fenced = || ended(Verdict::undelivered("fenced"));
        assert_eq!(fold(&[fenced(), again(), fenced()]).hosts[&host()].state, HostState::Pending);
    }
}
