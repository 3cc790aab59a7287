//! Arguments on their way to a method: words or JSON, bound to its schema.

use std::sync::LazyLock;

use common::method::{Catalogue, MethodName, MethodSpec};
use common::outcome::{ErrorCode, Failure};
use common::protocol::Arguments;
use minion::modules::{JobsCall, Registry, RevocationsAsked};
use serde_json::Value;

/// The deepest nesting that is let through.
const DEPTH_MAX: usize = 64;

static REGISTRY: LazyLock<Registry> = LazyLock::new(Registry::builtin);
static CATALOGUE: LazyLock<Catalogue> = LazyLock::new(Catalogue::builtin);

/// Up to the first line's end a method, behind it its arguments: as they stand in an envelope, or else a word a line.
pub fn arguments(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (method, rest) = text.split_once('\n').unwrap_or((text, ""));
    let Ok(method) = method.parse::<MethodName>() else { return };
    let words = || Arguments::Words(rest.split('\n').map(str::to_owned).collect());
    let args: Arguments = serde_json::from_str(rest).unwrap_or_else(|_| words());
    if let Ok(args) = bound(&method, &args) {
        assert!(same_nesting(&args), "{args}");
    }
}

/// The arguments as the host binds them, which is as the overlord does, and as the method itself reads them.
///
/// # Errors
/// They do not fit the method, or there is none.
pub(super) fn bound(name: &MethodName, args: &Arguments) -> Result<Value, Failure> {
    let method = REGISTRY.find(name).ok_or_else(|| REGISTRY.unknown(name))?;
    let spec = method.spec();
    let bound = spec.bind(args);
    assert_eq!(CATALOGUE.find(name).map(|spec| spec.bind(args)), Some(bound.clone()), "both sides bind alike");
    let bound = bound.map_err(|error| Failure::new(ErrorCode::InvalidArguments, error.to_string()))?;
    fits(spec, &bound);
    assert_eq!(spec.bind(&Arguments::Json(bound.clone())).as_ref(), Ok(&bound), "what is bound is bound");
    method.check(&bound)?;
    match name.module() {
        "jobs" => drop(JobsCall::read(method, bound.clone())?),
        "certs" => drop(RevocationsAsked::read(method, bound.clone())?),
        _ => {}
    }
    Ok(bound)
}

/// Whether the value is nested no deeper than arguments may be.
pub(super) fn same_nesting(value: &Value) -> bool {
    depth(value) <= DEPTH_MAX + 1
}

fn depth(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or_default(),
        Value::Object(fields) => 1 + fields.values().map(depth).max().unwrap_or_default(),
        _ => 0,
    }
}

/// The schema, read here anew, has a place for each value, and what it requires is there.
fn fits(spec: &MethodSpec, bound: &Value) {
    let fields = bound.as_object().unwrap_or_else(|| panic!("{bound} is no object"));
    let properties = spec.args.get("properties").and_then(Value::as_object);
    let required = spec.args.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
    let required: Vec<&str> = required.collect();
    assert!(required.iter().all(|name| fields.contains_key(*name)), "{}: {bound}", spec.method);
    for (name, value) in fields {
        let schema = properties.and_then(|properties| properties.get(name));
        let schema = schema.unwrap_or_else(|| panic!("{} has no {name}", spec.method));
        let is_left_out = value.is_null() && !required.contains(&name.as_str());
        assert!(is_left_out || allows(schema, value), "{}: {name} = {value} and {schema}", spec.method);
    }
}

fn allows(schema: &Value, value: &Value) -> bool {
    let is = |kind: &Value| match kind.as_str() {
        Some("string") => value.is_string(),
        Some("integer") => value.is_i64() || value.is_u64(),
        Some("number") => value.is_number(),
        Some("boolean") => value.is_boolean(),
        Some("array") => value.is_array(),
        Some("object") => value.is_object(),
        Some("null") => value.is_null(),
        _ => panic!("{schema} has a type that nobody knows"),
    };
    match (schema.get("type"), schema.get("anyOf").and_then(Value::as_array)) {
        (Some(Value::Array(kinds)), _) => kinds.iter().any(is),
        (Some(kind), _) => is(kind),
        (None, Some(schemas)) => schemas.iter().any(|schema| allows(schema, value)),
        (None, None) => true,
    }
}
