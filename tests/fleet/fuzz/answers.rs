//! What a minion answers, as the overlord reads it, keeps it and shows it to a person.

use common::identity::MinionName;
use common::job::{Event, LogLine, News};
use common::outcome::{Outcome, Verdict};
use common::protocol::certs::Revocations;
use common::protocol::map::Chunked;
use common::protocol::{Accepted, JobList, JobLogs, JobReport};
use common::seal;
use jiff::Timestamp;
use overlord::fuzzing::{answer, harmless, harmless_json, kept, log_text, pieces, remarked, shown};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::assert_harmless;
use super::requests::block_on;

/// What is asked for of each stream at most.
const MAX_BYTES: u32 = 64;

/// The bytes as the body of an answer, and as what a job wrote.
pub fn answers(data: &[u8]) {
    let host: MinionName = "web1".parse().expect("it is a name");
    is_shown_harmless(&host, data);
    match block_on(answer::<Value>(data)) {
        Ok(_) => understood(&host, data),
        Err(verdict) => can_be_kept(&host, verdict),
    }
}

fn understood(host: &MinionName, data: &[u8]) {
    if let Some(outcome) = read::<Outcome>(data) {
        can_be_kept(host, outcome.verdict.clone());
        is_kept(host, outcome);
    }
    if let Some(report) = read::<JobReport>(data)
        && let common::protocol::JobProgress::Ended(outcome) = report.progress
    {
        is_kept(host, outcome);
    }
    if let Some(Accepted { minion_job_id, state, .. }) = read::<Accepted>(data) {
        let news = News::Accepted { minion_job_id, state };
        is_kept_as(host, news);
    }
    for outcome in read::<Chunked>(data).into_iter().flat_map(|chunked| chunked.outcomes) {
        can_be_kept(host, outcome.verdict);
    }
    read::<JobList>(data);
    read::<Revocations>(data);
    if let Some(logs) = read::<JobLogs>(data) {
        check_logs(host, logs);
    }
}

fn read<T: DeserializeOwned + Serialize + PartialEq + std::fmt::Debug>(data: &[u8]) -> Option<T> {
    let value = block_on(answer::<T>(data)).ok()?;
    super::stands_in_json(&value);
    Some(value)
}

/// Only offsets that add up are taken, and no more bytes than were asked for.
fn check_logs(host: &MinionName, logs: JobLogs) {
    let asked = (logs.call_id.job().clone(), logs.minion_job_id.clone());
    for from in [[0, 0], [logs.stdout.next, logs.stderr.next]] {
        let Ok((bytes, next)) = pieces(asked.clone(), from, MAX_BYTES, logs.clone()) else { continue };
        for ((bytes, from), next) in bytes.iter().zip(from).zip(next) {
            assert!(bytes.len() <= MAX_BYTES as usize && from.checked_add(bytes.len() as u64) == Some(next));
            is_shown_harmless(host, bytes);
        }
    }
}

/// A verdict that a host has given, or that was drawn from what it said, can be shown and kept.
fn can_be_kept(host: &MinionName, verdict: Verdict) {
    let text = shown(host, &verdict);
    assert_harmless(&text);
    let mut lines = text.lines();
    assert!(lines.next().is_some_and(|first| first.starts_with("web1")), "{text}");
    assert!(lines.all(|line| line.starts_with("  ")), "a host's line looks like ours: {text}");
    if let Some(error) = verdict.error() {
        let line = remarked(&error.message);
        assert_harmless(&line);
        assert!(line.lines().skip(1).all(|line| line.starts_with("  ")), "{line}");
    }
    is_kept(host, Outcome::not_run(verdict, Timestamp::UNIX_EPOCH));
}

fn is_kept(host: &MinionName, outcome: Outcome) {
    let json = serde_json::to_string(&outcome).expect("an outcome can be written");
    let printed = harmless_json(&json);
    assert_harmless(&printed);
    assert!(!printed.contains(['\n', '\t']), "{printed}");
    assert_eq!(serde_json::from_str::<Outcome>(&printed).ok().as_ref(), Some(&outcome), "{printed}");
    is_kept_as(host, News::Ended(outcome));
}

fn is_kept_as(host: &MinionName, news: News) {
    let line = LogLine { at: Timestamp::UNIX_EPOCH, event: Event::Heard { host: host.clone(), attempt: 1, news } };
    let text = kept(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"));
    assert_eq!(seal::open::<LogLine>(&text).ok().as_ref(), Some(&line), "what was taken is kept as it is");
}

/// However the bytes are cut into pieces, what a terminal gets of them steers it not, and of text it is all.
fn is_shown_harmless(host: &MinionName, bytes: &[u8]) {
    let (one, other) = bytes.split_at(bytes.len() / 2);
    for is_named in [false, true] {
        let whole = log_text(host, &[bytes], is_named);
        assert_harmless(&whole);
        assert_eq!(log_text(host, &[one, other], is_named), whole, "in two pieces it is another");
        assert!(!is_named || whole.lines().all(|line| line.starts_with("web1: ")), "{whole}");
    }
    let text = String::from_utf8_lossy(bytes);
    assert_harmless(&harmless(&text));
    assert_eq!(harmless(&harmless(&text)), harmless(&text), "what is harmless stays as it is");
}
