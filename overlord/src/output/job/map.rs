//! How a map stands, as text and as JSON. Pure.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use common::job::JobState;
use common::job::map::MapTally;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Map, Value, json};

use super::{harmless, job_fields, times, verdict_fields};
use crate::aggregate::counted_items;
use crate::jobs::JobStatus;
use crate::jobs::map::results::ItemStatus;

/// The fields of the job, and how many items are in which state.
pub(crate) fn summary(status: &JobStatus, tally: &MapTally, now: Timestamp) -> Map<String, Value> {
    let mut fields = job_fields(status);
    let eta_ms = time_left(status, tally, now).map(|left| left.as_millis());
    fields.insert("items".to_owned(), json!({ "count": tally.items(), "states": tally.counts, "eta_ms": eta_ms }));
    fields
}

/// The same, host by host, too.
pub(crate) fn document(status: &JobStatus, tally: &MapTally, now: Timestamp) -> Value {
    let mut fields = summary(status, tally, now);
    let none = BTreeMap::new();
    let hosts =
        status.record.header.hosts.iter().map(|host| (host.to_string(), json!({ "items": tally.hosts.get(host).unwrap_or(&none) })));
    fields.insert("hosts".to_owned(), Value::Object(hosts.collect()));
    Value::Object(fields)
}

/// Which item, where, and how it stands.
pub(crate) fn item_fields(item: &ItemStatus) -> Map<String, Value> {
    let mut fields = Map::from_iter([("index".to_owned(), json!(item.index)), ("host".to_owned(), json!(item.host))]);
    fields.extend(verdict_fields(item.state, item.verdict.as_ref()));
    fields
}

/// For a person.
pub(crate) fn shown(status: &JobStatus, tally: &MapTally, now: Timestamp) -> String {
    let header = &status.record.header;
    let (method, target) = (harmless(&header.method), harmless(&header.target));
    let left = time_left(status, tally, now).map(|left| format!(", about {} to go", times::period(left))).unwrap_or_default();
    let mut shown = format!(
        "{}  {}  map of {method} on {target}\n{}{left}\n{} items: {}\n",
        header.job_id,
        status.state(),
        times::overall(status, now),
        tally.items(),
        counted_items(&tally.counts)
    );
    for (host, counts) in &tally.hosts {
        let written = writeln!(shown, "{host}: {}", counted_items(counts));
        debug_assert!(written.is_ok(), "writing to a string cannot fail");
    }
    shown
}

/// How long it may still take, by how long the items took that have ended since it is dealt; none if nobody deals it, or none has ended.
fn time_left(status: &JobStatus, tally: &MapTally, now: Timestamp) -> Option<SignedDuration> {
    let ended = tally.ended().checked_sub(tally.ended_before).filter(|ended| *ended > 0)?;
    let left = tally.items().checked_sub(tally.ended()).filter(|_| status.state() == JobState::Running)?;
    let took = now.duration_since(tally.since).max(SignedDuration::ZERO).as_millis();
    let millis = took.checked_mul(i128::from(left))? / i128::from(ended);
    Some(SignedDuration::from_millis(i64::try_from(millis).ok()?))
}
