//! How a job stands, as text and as JSON.

pub(crate) mod map;
mod times;

use std::collections::BTreeMap;
use std::fmt::Write as _;

use common::identity::MinionName;
use common::job::{HostRecord, HostState, JobId};
use common::outcome::Verdict;
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::{harmless, text};
use crate::aggregate::fold;
use crate::jobs::JobStatus;

/// The status as a document. Fields are added, never renamed.
pub(crate) fn document(status: &JobStatus) -> Value {
    let record = &status.record;
    let hosts: Map<String, Value> = record.hosts.iter().map(|(name, host)| (name.to_string(), Value::Object(host_fields(host)))).collect();
    let mut fields = job_fields(status);
    fields.insert("hosts".to_owned(), Value::Object(hosts));
    Value::Object(fields)
}

/// The fields of the job itself.
pub(crate) fn job_fields(status: &JobStatus) -> Map<String, Value> {
    let (record, state) = (&status.record, status.state());
    let fields = [
        ("job_id", json!(record.header.job_id)),
        ("state", json!(state)),
        ("code", json!(state.code())),
        ("method", json!(record.header.method)),
        ("target", json!(record.header.target)),
        ("retry_of", json!(record.header.retry_of)),
        ("started_at", json!(record.created_at)),
        ("finished_at", json!(record.finished_at())),
        ("duration_ms", json!(record.finished_at().map(|end| end.duration_since(record.created_at).as_millis().max(0)))),
        ("progress", json!({ "fraction": record.fraction() })),
    ];
    fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// The document of a job that nobody knows, or can know, for this reason.
pub(crate) fn unknown_document(id: &str, reason: &str) -> Value {
    json!({
        "job_id": id.parse::<JobId>().map_or_else(|_| id.to_owned(), String::from), "state": "LOST", "code": 2, "method": null,
        "target": null, "retry_of": null, "started_at": null, "finished_at": null, "duration_ms": null,
        "progress": null, "hosts": {}, "reason": reason,
    })
}

/// All that is known of one host.
pub(crate) fn host_fields(host: &HostRecord) -> Map<String, Value> {
    let mut fields = verdict_fields(host.state, host.outcome.as_ref().map(|outcome| &outcome.verdict));
    let finished_at = host.outcome.as_ref().and_then(|outcome| outcome.finished_at);
    for (name, value) in [
        ("minion_job_id", json!(host.minion_job_id)),
        ("started_at", json!(host.started_at)),
        ("finished_at", json!(finished_at)),
        ("duration_ms", json!(times::took(host).map(|took| took.as_millis()))),
        ("progress", json!(host.progress)),
        ("followup", json!(host.outcome.as_ref().map_or(&[][..], |outcome| outcome.followup.as_slice()))),
        ("unreachable", json!(host.unreachable)),
    ] {
        fields.insert(name.to_owned(), value);
    }
    fields
}

/// `state`, and `result` or `error`.
pub(super) fn verdict_fields(state: HostState, verdict: Option<&Verdict>) -> Map<String, Value> {
    let mut fields = Map::from_iter([("state".to_owned(), json!(state))]);
    match verdict {
        Some(Verdict::Ok { result }) => drop(fields.insert("result".to_owned(), result.clone())),
        Some(other) => drop(fields.insert("error".to_owned(), json!(other.error()))),
        None => {}
    }
    fields
}

/// The status for a person: the job, the answers so far, and then each host that is still to answer.
pub(crate) fn shown(status: &JobStatus, now: Timestamp) -> String {
    let record = &status.record;
    let header = &record.header;
    let retry = header.retry_of.as_ref().map(|job| format!("  (retry of {job})")).unwrap_or_default();
    let (method, target) = (harmless(&header.method), harmless(&header.target));
    let mut shown = format!("{}  {}  {method} on {target}{retry}\n{}\n", header.job_id, status.state(), times::overall(status, now));
    let ended = record.hosts.iter().filter_map(|(name, host)| Some((name, &host.outcome.as_ref()?.verdict)));
    for group in fold(ended) {
        let hosts: Vec<&HostRecord> = group.hosts.iter().filter_map(|name| record.hosts.get(*name)).collect();
        shown.push_str(&text::group(&group, times::of_group(&hosts).as_deref()));
    }
    for (name, host) in record.hosts.iter().filter(|(_, host)| host.outcome.is_none()) {
        shown.push_str(&unfinished(name, host, now));
    }
    shown
}

fn unfinished(name: &MinionName, host: &HostRecord, now: Timestamp) -> String {
    let mut line = format!("{name}: {}", host.state);
    let mut put = |part: String| {
        let written = write!(line, "{part}");
        debug_assert!(written.is_ok(), "writing to a string cannot fail");
    };
    if let Some(since) = host.started_at {
        put(format!(" since {}, for {}", moment(since), times::period(now.duration_since(since))));
    }
    if let Some(progress) = &host.progress {
        put(format!(", {}", times::reached(progress)));
    }
    if let Some(id) = &host.minion_job_id {
        put(format!(" (minion job {id})"));
    }
    if let Some(contact) = &host.unreachable {
        put(format!(", unreachable since {}: {}", moment(contact.since), harmless(&contact.reason).replace('\n', " ")));
    }
    line.push('\n');
    line
}

/// A time to the second, UTC.
pub(crate) fn moment(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// How many hosts of a job are in which state.
pub(crate) fn counts(status: &JobStatus) -> BTreeMap<HostState, usize> {
    let mut counts = BTreeMap::new();
    for host in status.record.hosts.values() {
        *counts.entry(host.state).or_default() += 1;
    }
    counts
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;
    use common::job::{Event, JobHeader, JobRecord, LogLine, News};
    use common::outcome::{Outcome, Progress};
    use common::protocol::Arguments;

    fn status() -> JobStatus {
        let header = JobHeader {
            job_id: "54k2-9xqd-4fz1".parse().unwrap(),
            caller: "admin".parse().unwrap(),
            target: "web*\x1b".into(),
            method: "test.ping".into(),
            args: Arguments::default(),
            job_limit_ms: None,
            retry_of: None,
            map: None,
            hosts: vec!["web1".parse().unwrap(), "web2".parse().unwrap()],
        };
        let mut record = JobRecord::new(header, Timestamp::UNIX_EPOCH);
        let mut hear = |host: &str, news: News| {
            let event = Event::Heard { host: host.parse().unwrap(), attempt: 1, news };
            record.apply(&LogLine { at: Timestamp::UNIX_EPOCH, event });
        };
        let id = || "0000-0000-0001".parse().unwrap();
        hear("web1", News::Accepted { minion_job_id: id(), state: HostState::Queued });
        hear("web1", News::Ended(Outcome::not_run(Verdict::Ok { result: json!(0) }, Timestamp::UNIX_EPOCH)));
        hear("web2", News::Accepted { minion_job_id: id(), state: HostState::Running });
        let progress = Some(Progress::new(0.5, "half\x1b[2J", Timestamp::UNIX_EPOCH));
        hear("web2", News::Going { state: HostState::Running, started_at: None, progress });
        hear("web2", News::Unreachable { reason: "cut\nweb3  ok".into() });
        JobStatus { record, is_dispatching: false }
    }

    #[test]
    fn a_document_has_every_field() {
        let document = document(&status());
        assert_eq!(
            document,
            json!({
                "job_id": "54k2-9xqd-4fz1", "state": "PARTIAL", "code": 3, "method": "test.ping", "target": "web*\u{1b}",
                "retry_of": null, "started_at": "1970-01-01T00:00:00Z", "finished_at": null, "duration_ms": null,
                "progress": { "fraction": 0.75 },
                "hosts": {
                    "web1": {
                        "state": "ok", "result": 0, "minion_job_id": "0000-0000-0001", "started_at": null,
                        "finished_at": "1970-01-01T00:00:00Z", "duration_ms": null, "progress": null, "followup": [], "unreachable": null,
                    },
                    "web2": {
                        "state": "running", "minion_job_id": "0000-0000-0001", "started_at": null, "finished_at": null,
                        "duration_ms": null, "progress": { "fraction": 0.5, "message": "half\u{1b}[2J", "at": "1970-01-01T00:00:00Z" },
                        "followup": [], "unreachable": { "since": "1970-01-01T00:00:00Z", "reason": "cut\nweb3  ok" },
                    },
                },
            })
        );
    }

    #[test]
    fn a_person_reads_the_answers_and_who_is_still_to_answer() {
        assert_eq!(
            shown(&status(), Timestamp::from_second(70).unwrap()),
            "54k2-9xqd-4fz1  PARTIAL  test.ping on web*\\x1b\nstarted 1970-01-01T00:00:00Z, 1m 10s ago, 75 % done\nweb1  ok\n  0\n\
             web2: running, at 50 %, \"half\\x1b[2J\" (minion job 0000-0000-0001), \
             unreachable since 1970-01-01T00:00:00Z: cut web3  ok\n"
        );
        let mut again = status();
        again.record.header.retry_of = Some("0000-0000-0002".parse().unwrap());
        assert!(
            shown(&again, Timestamp::UNIX_EPOCH)
                .starts_with("54k2-9xqd-4fz1  PARTIAL  test.ping on web*\\x1b  (retry of 0000-0000-0002)\n")
        );
    }
}
