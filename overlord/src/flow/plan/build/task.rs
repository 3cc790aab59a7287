//! One task as it is written, made into what is run; and the types of values.

use serde_json::Value;

use super::{Around, LOST_AFTER};
use crate::flow::file::{HostsKind, Kind, MaxFail, Period, Step};
use crate::flow::plan::{At, Task, Undo, share};
use crate::flow::value::Template;

/// A key that only tasks have.
pub(super) fn task_key(step: &Step) -> Option<&'static str> {
    let is_sub_flow = step.flow.is_some();
    let keys = [
        ("target", step.target.is_some()),
        ("args", step.args.is_some()),
        ("hosts", step.hosts.is_some()),
        ("for_each", step.for_each.is_some()),
        ("provides", step.provides.is_some() && !is_sub_flow),
        ("undo", step.undo.is_some()),
        ("timeout", step.timeout.is_some()),
        ("max_fail", step.max_fail.is_some()),
        ("forks", step.forks.is_some()),
        ("run", step.run.is_some()),
        ("lost", step.lost.is_some()),
        ("lost_after", step.lost_after.is_some()),
        ("block", step.block.is_some() && is_sub_flow),
        ("vars", !step.vars.is_empty() && !is_sub_flow),
    ];
    keys.into_iter().find_map(|(key, is_there)| is_there.then_some(key))
}

pub(super) fn task_of(step: Step, around: &Around<'_>, at: &At) -> Result<Task, String> {
    let name = step.name.into_inner();
    let call = step.call.map(toml::Spanned::into_inner).unwrap_or_default();
    let target = step.target.map(toml::Spanned::into_inner).ok_or_else(|| format!("the task {name} has no target"))?;
    if !step.vars.is_empty() || step.block.is_some() {
        return Err(format!("the step {name} is a task, and cannot have vars or block"));
    }
    if step.forks == Some(0) {
        return Err(format!("the task {name} has forks = 0: it would never run"));
    }
    if let Some(MaxFail::Share(text)) = &step.max_fail
        && share(text).is_none()
    {
        return Err(format!("max_fail is a number or a share like \"20%\", not \"{text}\""));
    }
    let period = |period: Option<Period>| period.map(|period| period.0);
    let hosts = step.hosts.unwrap_or_default();
    let undo = step.undo.map(|undo| {
        Ok::<_, String>(Undo {
            call: undo.call.parse().map_err(|error| format!("undo: {error}"))?,
            args: arguments(undo.args.as_ref())?,
            timeout: period(undo.timeout),
            times: undo.times.unwrap_or(1).max(1),
            also_failed: undo.also_failed,
        })
    });
    Ok(Task {
        path: format!("{}{name}", around.prefix),
        scope: around.scope,
        blocks: around.blocks.clone(),
        call: call.parse().map_err(|error| format!("{error}"))?,
        is_single: hosts == HostsKind::Any || is_one_host(&target),
        target: Template::parse_text(&target).map_err(|problem| format!("target: {problem}"))?,
        args: arguments(step.args.as_ref())?,
        hosts,
        for_each: step.for_each.as_ref().map(Template::parse).transpose()?,
        when: around.when.clone(),
        requires: step.requires,
        provides: Vec::new(),
        retry: None,
        undo: undo.transpose()?,
        timeout: period(step.timeout),
        max_fail: step.max_fail.unwrap_or(MaxFail::Count(0)),
        forks: step.forks,
        run: step.run.unwrap_or_default(),
        lost: step.lost.unwrap_or_default(),
        lost_after: period(step.lost_after).unwrap_or(LOST_AFTER),
        is_finally: around.is_finally,
        at: at.clone(),
    })
}

/// Whether a target is one host by its name: what it gives is one value then, however many hosts there are.
fn is_one_host(target: &str) -> bool {
    !target.contains(['*', '?', '[', ']', '{', '}', ',', ';', '@', '!', '/', '$'])
}

fn arguments(args: Option<&Value>) -> Result<Template, String> {
    match args {
        None => Ok(Template::List(Vec::new())),
        Some(value @ (Value::Array(_) | Value::Object(_))) => Template::parse(value).map_err(|problem| format!("args: {problem}")),
        Some(_) => Err("args is a list, like [23, 45], or a table, like { a = 23 }".to_owned()),
    }
}

/// The type of a value.
pub(in crate::flow) fn kind_of(value: &Value) -> Kind {
    match value {
        Value::Null => Kind::Any,
        Value::Bool(_) => Kind::Boolean,
        Value::Number(number) if number.is_f64() => Kind::Number,
        Value::Number(_) => Kind::Integer,
        Value::String(_) => Kind::String,
        Value::Array(_) => Kind::Array,
        Value::Object(_) => Kind::Object,
    }
}

/// A value of `--var` as what it is to be: a text where a text is wanted, and else what the text says as JSON.
pub(super) fn coerced(name: &str, given: &Value, wanted: Kind) -> Result<Value, String> {
    let Value::String(text) = given else { return Ok(given.clone()) };
    if wanted == Kind::String {
        return Ok(given.clone());
    }
    let typed: Option<Value> = serde_json::from_str(text).ok();
    let fits = |value: &Value| match (wanted, kind_of(value)) {
        (Kind::Any, _) | (Kind::Number, Kind::Integer) => true,
        (wanted, is) => wanted == is,
    };
    match typed {
        Some(value) if fits(&value) => Ok(value),
        None if wanted == Kind::Any => Ok(given.clone()),
        _ => Err(format!("--var {name} wants {}, not {given}", kind_name(wanted))),
    }
}

pub(in crate::flow) fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::String => "string",
        Kind::Integer => "integer",
        Kind::Number => "number",
        Kind::Boolean => "boolean",
        Kind::Array => "array",
        Kind::Object => "object",
        Kind::Any => "any",
    }
}

/// What of a task is found once, and refers to that name all the same.
pub(super) fn found_once(task: &Task, name: &str) -> Option<&'static str> {
    let uses = |template: &Template| template.references().iter().any(|reference| reference.name == name);
    if task.for_each.as_ref().is_some_and(uses) {
        return Some("for_each");
    }
    (task.hosts == HostsKind::Each && uses(&task.target)).then_some("target")
}
