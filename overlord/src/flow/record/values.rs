//! What references stand for, as far as the flow has come.

use std::collections::BTreeMap;

use common::identity::MinionName;
use serde_json::{Map, Value, json};

use super::{Cell, FOLLOWED_MAX, Record, Run, TaskRecord};
use crate::flow::file::Kind;
use crate::flow::plan::build::{kind_name, kind_of};
use crate::flow::plan::{Source, Task};
use crate::flow::state::{FlowState, TaskState};
use crate::flow::value::{NoValue, Reference, Template, part};

/// Of which run a value is asked for.
#[derive(Clone, Copy)]
pub(crate) struct Seen<'a> {
    pub(crate) task: &'a TaskRecord,
    pub(crate) cell: &'a Cell,
    pub(crate) run: &'a Run,
}

impl Record {
    /// The value of a reference in `scope`, as seen by a run, which is to be sent, or is undone.
    pub(crate) fn value(&self, scope: usize, reference: &Reference, seen: Option<Seen<'_>>) -> Result<Value, NoValue> {
        let whole = match (reference.name.as_str(), seen) {
            ("host", Some(seen)) => json!(seen.run.host),
            ("item", Some(seen)) => seen.task.item(seen.cell).cloned().unwrap_or_default(),
            ("result", Some(seen)) => seen.run.result().cloned().unwrap_or_default(),
            ("flow", _) => self.own_value(),
            (name, seen) => self.named(scope, name, seen.map(|seen| seen.run.attempt), FOLLOWED_MAX)?,
        };
        part(&whole, &reference.path).cloned().ok_or_else(|| NoValue::Missing(format!("there is no {}", reference.shown())))
    }

    fn own_value(&self) -> Value {
        let error = self.cause.as_ref().map(|cause| json!(cause.error));
        let state = match (self.state, &self.cause) {
            (FlowState::Running, None) => FlowState::Success,
            (FlowState::Running | FlowState::Reverting, _) if self.reverts_failed() => FlowState::Failure,
            (FlowState::Running | FlowState::Reverting, _) => FlowState::Reverted,
            (other, _) => other,
        };
        json!({ "id": self.header.flow_id, "name": self.header.name, "state": state, "error": error })
    }

    /// Whether something could not be undone.
    pub(crate) fn reverts_failed(&self) -> bool {
        self.tasks.iter().any(|task| task.state == TaskState::RevertFailure)
    }

    fn named(&self, scope: usize, name: &str, attempt: Option<u32>, more: usize) -> Result<Value, NoValue> {
        let missing = || NoValue::Missing(format!("{name} is not there"));
        let more = more.checked_sub(1).ok_or_else(missing)?;
        match self.plan.source(scope, name).ok_or_else(missing)? {
            Source::Value(value) => Ok(value.clone()),
            Source::Bound { scope, template } => template.render(&|reference| {
                let value = if reference.name == "flow" { self.own_value() } else { self.named(*scope, &reference.name, attempt, more)? };
                part(&value, &reference.path).cloned().ok_or_else(|| NoValue::Missing(format!("there is no {}", reference.shown())))
            }),
            Source::Provided { task, path, kind } => self.provided(*task, name, path, *kind),
            Source::Alias { scope, name } => self.named(*scope, name, attempt, more),
            Source::Round(block) => {
                let round = self.blocks.get(*block).map_or(0, |block| block.round);
                let plan = self.plan.blocks.get(*block).ok_or_else(missing)?;
                let values = self.retry_values(plan.scope, plan.retry.as_ref().and_then(|retry| retry.values.as_ref()), more);
                values.and_then(|values| values.get(usize::try_from(round).ok()?).cloned()).ok_or_else(missing)
            }
            Source::Attempt(index) => {
                // What is undone was done in its own attempt, and not in the last one.
                let attempt = attempt.unwrap_or_else(|| self.tasks.get(*index).map_or(1, |task| task.attempt)).max(1);
                let task = self.plan.task(*index).ok_or_else(missing)?;
                let values = self.retry_values(task.scope, task.retry.as_ref().and_then(|retry| retry.values.as_ref()), more);
                values.and_then(|values| values.get(usize::try_from(attempt - 1).ok()?).cloned()).ok_or_else(missing)
            }
        }
    }

    /// The values of a retry for each of several.
    pub(crate) fn retry_values(&self, scope: usize, values: Option<&Template>, more: usize) -> Option<Vec<Value>> {
        let rendered = values?.render(&|reference| {
            let value = self.named(scope, &reference.name, None, more)?;
            part(&value, &reference.path).cloned().ok_or_else(|| NoValue::Missing(reference.shown()))
        });
        match rendered {
            Ok(Value::Array(values)) => Some(values),
            _ => None,
        }
    }

    fn provided(&self, index: usize, name: &str, path: &[String], kind: Option<Kind>) -> Result<Value, NoValue> {
        let missing = |why: &str| NoValue::Missing(format!("{name} is not there: {why}"));
        let (task, record) = self.plan.task(index).zip(self.tasks.get(index)).ok_or_else(|| missing("nobody provides it"))?;
        match record.state {
            TaskState::Ignore => return Err(NoValue::Ignored(format!("{}, which provides {name}, was ignored", task.path))),
            TaskState::Success | TaskState::Reverting => {}
            state => return Err(missing(&format!("{}, which provides it, is {state}", task.path))),
        }
        let whole = record.result(task);
        let value =
            part(&whole, path).cloned().ok_or_else(|| missing(&format!("the result of {} has no {}", task.path, path.join("."))))?;
        match kind {
            Some(kind) if !fits(kind, &value) => {
                Err(missing(&format!("{} gave {}, which is not {}", task.path, kind_name_of(&value), kind_name(kind))))
            }
            _ => Ok(value),
        }
    }
}

fn fits(kind: Kind, value: &Value) -> bool {
    match (kind, kind_of(value)) {
        (Kind::Any, _) | (Kind::Number, Kind::Integer) => true,
        (kind, is) => kind == is,
    }
}

fn kind_name_of(value: &Value) -> &'static str {
    kind_name(kind_of(value))
}

impl TaskRecord {
    /// What the task has given: one value; a list by items; an object by hosts; or of lists by hosts. What has failed is left out, or `null` in a list.
    pub(crate) fn result(&self, task: &Task) -> Value {
        let of = |cells: Vec<&Cell>| -> Value {
            match (&self.items, cells.as_slice()) {
                (Some(_), cells) => cells.iter().map(|cell| cell.result().cloned().unwrap_or_default()).collect(),
                (None, cells) => cells.first().and_then(|cell| cell.result().cloned()).unwrap_or_default(),
            }
        };
        if task.is_single {
            return of(self.cells.iter().collect());
        }
        let mut hosts: BTreeMap<&MinionName, Vec<&Cell>> = BTreeMap::new();
        for cell in &self.cells {
            if let Some(host) = &cell.host {
                hosts.entry(host).or_default().push(cell);
            }
        }
        let hosts = hosts.into_iter().filter(|(_, cells)| cells.iter().any(|cell| cell.is_ok()));
        Value::Object(hosts.map(|(host, cells)| (host.to_string(), of(cells))).collect::<Map<_, _>>())
    }
}
