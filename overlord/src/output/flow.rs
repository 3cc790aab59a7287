//! How a flow stands, as text and as JSON.

use std::fmt::Write as _;

use common::job::{HostState, MinionJobId};
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::job::verdict_fields;
use super::{harmless, table};
use crate::flow::log::{Cause, Event, Line};
use crate::flow::plan::Task;
use crate::flow::record::{Cell, Record, Run, TaskRecord};
use crate::flow::state::{FlowState, TaskState};
use crate::flow::{Known, Listed};

/// The exit bits of a flow that has ended.
const FAILED: u8 = 2;
const UNKNOWN: u8 = 4;

/// The flow as a document. Fields are added, never renamed.
pub(crate) fn document(record: &Record, is_at_work: bool) -> Value {
    let tasks: Vec<Value> = record.plan.tasks.iter().zip(&record.tasks).map(|(task, at)| task_document(record, task, at)).collect();
    let history =
        record.history.iter().map(|past| json!({ "name": past.path, "attempt": past.attempt, "at": past.at, "cause": past.cause }));
    let mut fields = fields(record, is_at_work);
    fields.insert("history".to_owned(), history.collect());
    fields.insert("tasks".to_owned(), Value::Array(tasks));
    fields.insert("values".to_owned(), values(record));
    Value::Object(fields)
}

/// The fields of the flow itself.
pub(crate) fn fields(record: &Record, is_at_work: bool) -> Map<String, Value> {
    let duration = record.finished_at.map(|end| end.duration_since(record.created_at).as_millis().max(0));
    let fields = [
        ("flow_id", json!(record.header.flow_id)),
        ("state", json!(record.state)),
        ("name", json!(record.header.name)),
        ("caller", json!(record.header.caller)),
        ("at_work", json!(is_at_work)),
        ("cause", json!(record.cause)),
        ("started_at", json!(record.created_at)),
        ("finished_at", json!(record.finished_at)),
        ("duration_ms", json!(duration)),
    ];
    fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// What the tasks of the flow itself have provided, by name.
fn values(record: &Record) -> Value {
    let mut values = Map::new();
    for (task, at) in record.plan.tasks.iter().zip(&record.tasks).filter(|(task, at)| task.scope == 0 && at.state == TaskState::Success) {
        let whole = at.result(task);
        for (name, path, _) in &task.provides {
            values.insert(name.clone(), crate::flow::value::part(&whole, path).cloned().unwrap_or_default());
        }
    }
    Value::Object(values)
}

fn task_document(record: &Record, task: &Task, at: &TaskRecord) -> Value {
    let cells: Vec<Value> = at.cells.iter().map(|cell| cell_document(record, at, cell)).collect();
    json!({
        "name": task.path, "call": task.call, "state": at.state, "attempt": at.attempt, "cause": at.cause, "started_at": at.begun_at,
        "finished_at": at.ended_at, "again_at": at.again_at, "runs": cells,
    })
}

fn cell_document(record: &Record, at: &TaskRecord, cell: &Cell) -> Value {
    let run = cell.runs.last();
    let mut fields = match run {
        Some(run) => run_fields(record, run),
        None => Map::from_iter([("state".to_owned(), json!(HostState::Pending)), ("host".to_owned(), json!(cell.host))]),
    };
    if let Some(item) = at.items.as_ref().zip(cell.item).and_then(|(items, item)| items.get(item)) {
        fields.insert("item".to_owned(), item.clone());
    }
    fields.insert("tries".to_owned(), json!(cell.runs.len()));
    fields.insert("undo".to_owned(), cell.undo.last().map_or(Value::Null, |run| Value::Object(run_fields(record, run))));
    Value::Object(fields)
}

fn run_fields(record: &Record, run: &Run) -> Map<String, Value> {
    let state = run.state().unwrap_or(HostState::Running);
    let mut fields = verdict_fields(state, run.outcome.as_ref().map(|outcome| &outcome.verdict));
    let id = MinionJobId::derive(&run.host, &record.header.caller, &run.call_id);
    let outcome = run.outcome.as_ref();
    for (name, value) in [
        ("host", json!(run.host)),
        ("call_id", json!(run.call_id)),
        ("minion_job_id", json!(id)),
        ("sent_at", json!(run.sent_at)),
        ("ended_at", json!(run.ended_at)),
        ("started_at", json!(outcome.and_then(|outcome| outcome.started_at))),
        ("finished_at", json!(outcome.and_then(|outcome| outcome.finished_at))),
    ] {
        fields.insert(name.to_owned(), value);
    }
    fields
}

/// The flow for a person.
pub(crate) fn shown(record: &Record, is_at_work: bool) -> String {
    let Record { header, state, .. } = record;
    let note = if state.has_ended() || is_at_work || matches!(state, FlowState::Suspended) {
        String::new()
    } else {
        format!("  (nobody works on it: `overlord flow resume {}`)", header.flow_id)
    };
    let mut text = format!("{}  {state}  {}{note}\n", header.flow_id, harmless(&header.name));
    if let Some(cause) = &record.cause {
        let _infallible = writeln!(text, "{}", harmless(&cause_line(cause)));
    }
    let rows = record.plan.tasks.iter().zip(&record.tasks).map(|(task, at)| row(task, at));
    text.push_str(&table(["TASK", "STATE", "RUNS", "TRIES", "TOOK", ""], rows));
    text
}

fn row(task: &Task, at: &TaskRecord) -> [String; 6] {
    let done = at.cells.iter().filter(|cell| cell.is_ok()).count();
    let runs = if at.cells.is_empty() { String::new() } else { format!("{done}/{}", at.cells.len()) };
    let tries = if at.attempt > 0 { at.attempt.to_string() } else { String::new() };
    let took = at.begun_at.map(|begun| {
        let seconds = at.ended_at.unwrap_or_else(Timestamp::now).duration_since(begun).as_secs_f64();
        format!("{seconds:.1}s")
    });
    let why = at.cause.as_ref().filter(|_| !at.state.is_passed()).map(cause_line);
    let why = why.map(|why| why.lines().next().unwrap_or_default().chars().take(100).collect::<String>());
    [task.path.clone(), at.state.to_string(), runs, tries, took.unwrap_or_default(), why.unwrap_or_default()]
}

/// A cause in words.
pub(crate) fn cause_line(cause: &Cause) -> String {
    let mut text = String::new();
    if let Some(task) = &cause.task {
        let undoing = if cause.undo { "undoing " } else { "" };
        let _infallible = write!(text, "{undoing}{task}");
    }
    if let Some(host) = &cause.host {
        let _infallible = write!(text, " on {host}");
    }
    if let Some(item) = &cause.item {
        let _infallible = write!(text, " for {item}");
    }
    let others = if cause.others > 0 { format!(" (and {} more)", cause.others) } else { String::new() };
    let _infallible = write!(text, "{}{}: {}{others}", if text.is_empty() { "" } else { ": " }, cause.state, cause.error.message);
    text
}

/// An event as a line of JSON, if it is one that is told: a task's new state, or the flow's.
pub(crate) fn line_document(record: &Record, line: &Line) -> Option<Value> {
    match &line.event {
        Event::Task { task, state, cause, .. } => {
            let name = record.plan.task(*task).map(|task| task.path.as_str());
            Some(json!({ "task": name, "state": state, "at": line.at, "cause": cause }))
        }
        Event::Flow { state, cause } => Some(json!({ "flow_id": record.header.flow_id, "state": state, "at": line.at, "cause": cause })),
        Event::Again { block, round, .. } => {
            let name = record.plan.blocks.get(*block).map(|block| block.path.as_str());
            Some(json!({ "block": name, "round": round + 1, "at": line.at }))
        }
        Event::Created(_) | Event::Sent { .. } | Event::Ended { .. } | Event::Retreat { .. } | Event::Wish { .. } => None,
    }
}

/// The exit status of a flow that has ended.
pub(crate) fn exit_bits(record: &Record) -> u8 {
    match (record.state, &record.cause) {
        (FlowState::Success, _) => 0,
        (_, Some(cause)) if matches!(cause.state.as_str(), "lost" | "undelivered") => UNKNOWN,
        _ => FAILED,
    }
}

/// The flows for a person, a line each.
pub(crate) fn list(flows: &[Listed]) -> String {
    let row = |(id, known): &Listed| match known {
        Ok(Known { record, is_at_work, .. }) => {
            let done = record.tasks.iter().filter(|task| task.state.is_passed()).count();
            let state = if record.state.has_ended() || *is_at_work || record.state == FlowState::Suspended {
                record.state.to_string()
            } else {
                format!("{}, and nobody works on it", record.state)
            };
            let started = record.created_at.strftime("%Y-%m-%d %H:%M:%S").to_string();
            [id.to_string(), state, format!("{done}/{}", record.tasks.len()), started, record.header.name.clone()]
        }
        Err(error) => [id.to_string(), "UNKNOWN".to_owned(), String::new(), String::new(), crate::chain(error)],
    };
    table(["FLOW", "STATE", "TASKS", "STARTED", "NAME"], flows.iter().rev().map(row))
}
