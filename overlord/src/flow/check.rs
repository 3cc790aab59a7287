//! Whether arguments fit their methods, before anything runs: literal values by the method's schema, and references by the types that are known of
//! what provides them. Pure: which methods there are is given.

use common::method::{MethodName, MethodSpec};
use common::protocol::Arguments;
use serde_json::{Map, Value, json};

use super::file::Kind;
use super::plan::build::{kind_name, kind_of};
use super::plan::{At, Plan, Source, Task};
use super::value::{Reference, Template, part};
use crate::config::ConfigError;

/// How many names a reference is followed through.
const FOLLOWED_MAX: usize = 64;

/// What is wrong with the calls of the plan. Of methods that `find` does not know nothing is said.
pub(crate) fn problems(plan: &Plan, find: &dyn Fn(&MethodName) -> Option<MethodSpec>) -> Vec<ConfigError> {
    let mut problems = Vec::new();
    let mut tell = |at: &At, problem: String| problems.push(ConfigError::Content { path: at.path.clone(), line: at.line, problem });
    for (index, task) in plan.tasks.iter().enumerate() {
        let kinds = Kinds { plan, task: index };
        let calls = [Some(("", &task.call, &task.args)), task.undo.as_ref().map(|undo| ("undo: ", &undo.call, &undo.args))];
        for (what, call, args) in calls.into_iter().flatten() {
            if let Some(name) = shell_line(call, args).and_then(|line| said_by_a_host(plan, task, line)) {
                let advice = "give it in `env`, where a shell takes it for nothing but a text, or say in `provides` that it is a number";
                tell(
                    &task.at,
                    format!(
                        "the task {}: {what}${{{name}}} is what a host says, and would be run by the shell of others: {advice}",
                        task.path
                    ),
                );
            }
            let Some(spec) = find(call) else { continue };
            if let Err(problem) = fits(&spec, args, &kinds) {
                tell(&task.at, format!("the task {}: {what}{problem}", task.path));
            }
        }
        if let Some(items) = &task.for_each
            && !may_be(kinds.of(task.scope, items), "array")
        {
            tell(
                &task.at,
                format!("the task {}: for_each wants a list, and this is {}", task.path, kind_name(kinds.of(task.scope, items))),
            );
        }
        if !may_be(kinds.of(task.scope, &task.target), "string") {
            tell(&task.at, format!("the task {}: its target wants a string", task.path));
        }
    }
    problems
}

/// What a call has a shell run.
fn shell_line<'a>(call: &MethodName, args: &'a Template) -> Option<&'a Template> {
    match (call.as_str(), args) {
        ("command.run", Template::List(args)) => args.first(),
        ("command.run", Template::Object(args)) => args.iter().find_map(|(name, value)| (name == "line").then_some(value)),
        _ => None,
    }
}

/// What in a template is a text that a host has given. Numbers and decisions are no danger, and are checked when they are there; and an undo's `result` is
/// what the host that runs it has said itself.
fn said_by_a_host(plan: &Plan, task: &Task, template: &Template) -> Option<String> {
    let is_said = |reference: &&Reference| is_said_by_a_host(plan, task, (task.scope, reference), FOLLOWED_MAX);
    template.references().into_iter().find(is_said).map(Reference::shown)
}

fn is_said_by_a_host(plan: &Plan, task: &Task, (scope, reference): (usize, &Reference), more: usize) -> bool {
    let Some(more) = more.checked_sub(1) else { return true };
    let any_in = |scope: usize, template: &Template| {
        template.references().into_iter().any(|inner| is_said_by_a_host(plan, task, (scope, inner), more))
    };
    match (reference.name.as_str(), plan.source(scope, &reference.name)) {
        ("flow", _) => reference.path.first().is_none_or(|field| field == "error"),
        ("item", _) => task.for_each.as_ref().is_some_and(|items| any_in(task.scope, items)),
        ("host" | "result", _) | (_, Some(Source::Value(_)) | None) => false,
        (_, Some(Source::Provided { kind: Some(Kind::Integer | Kind::Number | Kind::Boolean), .. })) => false,
        (_, Some(Source::Provided { .. })) => true,
        (_, Some(Source::Bound { scope, template })) => any_in(*scope, template),
        (_, Some(Source::Alias { scope, name })) => {
            let inside = Reference { name: name.clone(), path: reference.path.clone() };
            is_said_by_a_host(plan, task, (*scope, &inside), more)
        }
        (_, Some(Source::Round(block))) => {
            let block = plan.blocks.get(*block);
            block
                .is_some_and(|block| block.retry.iter().filter_map(|retry| retry.values.as_ref()).any(|values| any_in(block.scope, values)))
        }
        (_, Some(Source::Attempt(index))) => {
            let of = plan.task(*index);
            of.is_some_and(|of| of.retry.iter().filter_map(|retry| retry.values.as_ref()).any(|values| any_in(of.scope, values)))
        }
    }
}

/// What is known of the types of values, in one task.
struct Kinds<'p> {
    plan: &'p Plan,
    task: usize,
}

impl Kinds<'_> {
    fn of(&self, scope: usize, template: &Template) -> Kind {
        self.within(scope, template, FOLLOWED_MAX)
    }

    fn within(&self, scope: usize, template: &Template, more: usize) -> Kind {
        match template {
            Template::Literal(value) => kind_of(value),
            Template::Text(_) => Kind::String,
            Template::List(_) => Kind::Array,
            Template::Object(_) => Kind::Object,
            Template::Reference(reference) => more.checked_sub(1).map_or(Kind::Any, |more| self.referred(scope, reference, more)),
        }
    }

    fn referred(&self, scope: usize, reference: &Reference, more: usize) -> Kind {
        match (reference.name.as_str(), reference.path.as_slice()) {
            ("host", []) => return Kind::String,
            ("flow", [field]) if field != "error" => return Kind::String,
            ("item" | "result" | "host" | "flow", _) => return Kind::Any,
            _ => {}
        }
        match self.plan.source(scope, &reference.name) {
            Some(Source::Value(value)) => part(value, &reference.path).map_or(Kind::Any, kind_of),
            Some(Source::Bound { scope, template }) if reference.path.is_empty() => self.within(*scope, template, more),
            Some(Source::Alias { scope, name }) => {
                let inside = Reference { name: name.clone(), path: reference.path.clone() };
                more.checked_sub(1).map_or(Kind::Any, |more| self.referred(*scope, &inside, more))
            }
            Some(Source::Provided { task, path, kind }) => {
                let task = self.plan.task(*task);
                let whole: Vec<&str> = path.iter().chain(&reference.path).map(String::as_str).collect();
                match kind {
                    Some(kind) if reference.path.is_empty() => *kind,
                    _ => task.map_or(Kind::Any, |task| provided_kind(task, &whole)),
                }
            }
            Some(Source::Bound { .. } | Source::Round(_) | Source::Attempt(_)) | None => Kind::Any,
        }
    }

    fn scope(&self) -> usize {
        self.plan.task(self.task).map_or(0, |task| task.scope)
    }
}

/// The type of a part of what a task gives.
fn provided_kind(task: &Task, path: &[&str]) -> Kind {
    match (task.for_each.is_some(), task.is_single, path) {
        (true, true, []) => Kind::Array,
        (_, false, []) => Kind::Object,
        (false, true, path) => result_kind(task.call.as_str(), path),
        _ => Kind::Any,
    }
}

/// What built-in methods are known to give.
fn result_kind(method: &str, path: &[&str]) -> Kind {
    match (method, path) {
        ("test.add" | "test.square" | "test.sleep", []) => Kind::Number,
        ("test.ping", []) => Kind::String,
        ("test.progress", []) | ("command.run", ["rc"]) => Kind::Integer,
        ("command.run" | "system.inventory" | "system.describe" | "worker.list", []) => Kind::Object,
        ("system.list_methods" | "system.list_modules", []) => Kind::Array,
        _ => Kind::Any,
    }
}

fn may_be(kind: Kind, wanted: &str) -> bool {
    match kind {
        Kind::Any => true,
        // Whether a number is whole is seen when it is there.
        Kind::Integer | Kind::Number => matches!(wanted, "integer" | "number"),
        kind => kind_name(kind) == wanted,
    }
}

/// The types that a parameter takes; none if it takes any.
fn wanted_kinds(schema: &Value) -> Vec<&str> {
    let of = |schema: &Value| -> Vec<String> {
        match schema.get("type") {
            Some(Value::String(kind)) => vec![kind.clone()],
            Some(Value::Array(kinds)) => kinds.iter().filter_map(|kind| kind.as_str().map(str::to_owned)).collect(),
            _ => Vec::new(),
        }
    };
    let mut kinds = of(schema);
    kinds.extend(schema.get("anyOf").and_then(Value::as_array).into_iter().flatten().flat_map(of));
    const NAMES: [&str; 6] = ["string", "integer", "number", "boolean", "array", "object"];
    NAMES.into_iter().filter(|name| kinds.iter().any(|kind| kind == name)).collect()
}

/// A value of such a type.
fn sample(kinds: &[&str]) -> Value {
    match kinds.first() {
        Some(&"string") => json!(""),
        Some(&"boolean") => json!(true),
        Some(&"array") => json!([]),
        Some(&"object") => json!({}),
        _ => json!(1),
    }
}

fn fits(spec: &MethodSpec, args: &Template, kinds: &Kinds<'_>) -> Result<(), String> {
    let none = Map::new();
    let parameters = spec.args.get("properties").and_then(Value::as_object).unwrap_or(&none);
    let one = |name: &str, schema: Option<&Value>, template: &Template| -> Result<Value, String> {
        let wanted = schema.map(wanted_kinds).unwrap_or_default();
        let Template::Literal(value) = template else {
            let kind = kinds.of(kinds.scope(), template);
            if !wanted.is_empty() && !wanted.iter().any(|wanted| may_be(kind, wanted)) {
                let is = kind_name(kind);
                return Err(format!(
                    "{}: `{name}` wants {}, and what it is given is {is}; {}",
                    spec.method,
                    wanted.join(" or "),
                    spec.usage()
                ));
            }
            return Ok(sample(&wanted));
        };
        Ok(value.clone())
    };
    let sampled = match args {
        Template::List(items) => {
            let mut schemas = parameters.iter();
            let values = items.iter().map(|item| {
                let (name, schema) = schemas.next().map_or(("", None), |(name, schema)| (name.as_str(), Some(schema)));
                one(name, schema, item)
            });
            Value::Array(values.collect::<Result<_, _>>()?)
        }
        Template::Object(fields) => {
            let fields = fields.iter().map(|(name, field)| Ok((name.clone(), one(name, parameters.get(name), field)?)));
            Value::Object(fields.collect::<Result<_, String>>()?)
        }
        _ => return Ok(()),
    };
    spec.bind(&Arguments::Json(sampled)).map(drop).map_err(|error| error.to_string())
}
