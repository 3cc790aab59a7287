//! Binding: words or JSON as a caller gave them → one JSON object that fits the method's schema.
//!
//! It is done on the overlord, to refuse a slip of the hand before anything is sent, and on the host, whose word counts.
//! Types are checked one level deep here; the method's own type checks the rest when it is read.

use std::fmt::Write as _;

use serde_json::{Map, Value};

use super::MethodSpec;
use crate::protocol::Arguments;

/// Why arguments do not fit a method. The message names the method's arguments.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{problem}; {usage}")]
pub struct ArgumentError {
    /// What does not fit.
    pub problem: String,
    /// How the method is called: `usage: test.add A:number B:number`.
    pub usage: String,
}

/// The deepest nesting of an argument. Readers of JSON give up at 128, and arguments and results are read within frames of their own.
const DEPTH_MAX: usize = 64;

/// How much of a complaint about arguments is repeated.
const PROBLEM_MAX_LETTERS: usize = 300;

impl Arguments {
    /// Makes sure that the arguments can be read wherever they will travel. For methods whose schema is not known;
    /// [`MethodSpec::bind`] does it too.
    ///
    /// # Errors
    /// They are nested deeper than 64 levels.
    pub fn check_depth(&self) -> Result<(), String> {
        match self {
            Self::Json(value) if is_deeper_than(value, DEPTH_MAX + 1) => Err(too_deep()),
            Self::Json(_) | Self::Words(_) => Ok(()),
        }
    }
}

fn too_deep() -> String {
    format!("arguments may be nested {DEPTH_MAX} levels deep at most")
}

fn is_deeper_than(value: &Value, levels: usize) -> bool {
    match value {
        Value::Array(items) => levels == 0 || items.iter().any(|item| is_deeper_than(item, levels - 1)),
        Value::Object(fields) => levels == 0 || fields.values().any(|field| is_deeper_than(field, levels - 1)),
        _ => false,
    }
}

/// A property of a method's schema.
struct Parameter<'a> {
    name: &'a str,
    schema: &'a Value,
    required: bool,
}

impl MethodSpec {
    /// The arguments as one JSON object that fits [`MethodSpec::args`].
    ///
    /// # Errors
    /// A value of another type than wanted, a name the method does not have, one given twice, too many, or one missing.
    pub fn bind(&self, args: &Arguments) -> Result<Value, ArgumentError> {
        let parameters = self.parameters();
        let bound = match args {
            Arguments::Words(words) => bind_words(&parameters, words),
            Arguments::Json(Value::Array(values)) => bind_values(&parameters, values),
            Arguments::Json(Value::Object(values)) => bind_names(&parameters, values),
            Arguments::Json(Value::Null) => Ok(Map::new()),
            Arguments::Json(_) => Err("JSON arguments are a list or an object".to_owned()),
        };
        bound
            .and_then(|bound| check_required(&parameters, bound))
            .map(Value::Object)
            .and_then(|bound| if is_deeper_than(&bound, DEPTH_MAX + 1) { Err(too_deep()) } else { Ok(bound) })
            .map_err(|problem| self.argument_error(&problem))
    }

    /// An [`ArgumentError`] of this method, with the first 300 letters of `problem`, which may quote arguments whole.
    #[must_use]
    pub fn argument_error(&self, problem: &str) -> ArgumentError {
        let problem: String = problem.chars().take(PROBLEM_MAX_LETTERS).collect();
        ArgumentError { problem: format!("{}: {problem}", self.method), usage: self.usage() }
    }

    /// How the method is called, in one line: `usage: test.add A:number B:number`; what may be left out stands in brackets.
    #[must_use]
    pub fn usage(&self) -> String {
        let mut line = format!("usage: {}", self.method);
        for parameter in self.parameters() {
            let word = format!("{}:{}", parameter.name.to_uppercase(), kinds(parameter.schema).join("|"));
            let written = if parameter.required { write!(line, " {word}") } else { write!(line, " [{word}]") };
            debug_assert!(written.is_ok(), "writing to a string cannot fail");
        }
        line
    }

    fn parameters(&self) -> Vec<Parameter<'_>> {
        let required = self.args.get("required").and_then(Value::as_array);
        let is_required = |name: &str| required.is_some_and(|names| names.iter().any(|item| item == name));
        let properties = self.args.get("properties").and_then(Value::as_object);
        properties.into_iter().flatten().map(|(name, schema)| Parameter { name, schema, required: is_required(name) }).collect()
    }
}

/// The JSON types that a schema lets a value have; `any` if it does not say.
fn kinds(schema: &Value) -> Vec<&str> {
    let named = match schema.get("type") {
        Some(Value::String(kind)) => vec![kind.as_str()],
        Some(Value::Array(kinds)) => kinds.iter().filter_map(Value::as_str).filter(|kind| *kind != "null").collect(),
        _ => schema.get("anyOf").and_then(Value::as_array).into_iter().flatten().flat_map(kinds).filter(|kind| *kind != "null").collect(),
    };
    if named.is_empty() { vec!["any"] } else { named }
}

fn is_of_kind(value: &Value, kind: &str) -> bool {
    match kind {
        "string" => value.is_string(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "boolean" => value.is_boolean(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        _ => true,
    }
}

/// A word as a value of the type that is wanted. Where a string is wanted, or anything, the word stays as it is: `007` is `"007"`.
fn word_value(word: &str, schema: &Value) -> Result<Value, String> {
    let kinds = kinds(schema);
    if kinds.iter().any(|kind| matches!(*kind, "string" | "any")) {
        return Ok(Value::from(word));
    }
    let typed = match word {
        "yes" if kinds.contains(&"boolean") => Some(Value::Bool(true)),
        "no" if kinds.contains(&"boolean") => Some(Value::Bool(false)),
        _ => serde_json::from_str(word).ok(),
    };
    typed.filter(|value| kinds.iter().any(|kind| is_of_kind(value, kind))).ok_or_else(|| wants(&kinds, &Value::from(word)))
}

fn wants(kinds: &[&str], value: &Value) -> String {
    let mut shown = value.to_string();
    if shown.chars().count() > 60 {
        shown = shown.chars().take(60).chain("…".chars()).collect();
    }
    format!("wants {}, not {shown}", kinds.join(" or "))
}

fn put(bound: &mut Map<String, Value>, parameter: &Parameter<'_>, value: Value) -> Result<(), String> {
    match bound.insert(parameter.name.to_owned(), value) {
        None => Ok(()),
        Some(_) => Err(format!("`{}` is given twice", parameter.name)),
    }
}

fn bind_words(parameters: &[Parameter<'_>], words: &[String]) -> Result<Map<String, Value>, String> {
    let mut bound = Map::new();
    let mut positions = parameters.iter();
    for word in words {
        let named = word
            .split_once('=')
            .and_then(|(name, value)| parameters.iter().find(|parameter| parameter.name == name).map(|parameter| (parameter, value)));
        let (parameter, text) = match named {
            Some(named) => named,
            None => {
                let next = positions.find(|parameter| !bound.contains_key(parameter.name));
                (next.ok_or_else(|| format!("does not know what to do with {}", Value::from(word.as_str())))?, word.as_str())
            }
        };
        let value = word_value(text, parameter.schema).map_err(|problem| format!("`{}` {problem}", parameter.name))?;
        put(&mut bound, parameter, value)?;
    }
    Ok(bound)
}

fn checked(parameter: &Parameter<'_>, value: &Value) -> Result<Value, String> {
    let kinds = kinds(parameter.schema);
    if (value.is_null() && !parameter.required) || kinds.iter().any(|kind| is_of_kind(value, kind)) {
        Ok(value.clone())
    } else {
        Err(format!("`{}` {}", parameter.name, wants(&kinds, value)))
    }
}

fn bind_values(parameters: &[Parameter<'_>], values: &[Value]) -> Result<Map<String, Value>, String> {
    let mut bound = Map::new();
    let mut positions = parameters.iter();
    for value in values {
        let parameter = positions.next().ok_or_else(|| format!("takes {} arguments, not {}", parameters.len(), values.len()))?;
        put(&mut bound, parameter, checked(parameter, value)?)?;
    }
    Ok(bound)
}

fn bind_names(parameters: &[Parameter<'_>], values: &Map<String, Value>) -> Result<Map<String, Value>, String> {
    let mut bound = Map::new();
    for (name, value) in values {
        let parameter = parameters.iter().find(|parameter| parameter.name == name);
        let parameter = parameter.ok_or_else(|| format!("has no argument {}", Value::from(name.as_str())))?;
        put(&mut bound, parameter, checked(parameter, value)?)?;
    }
    Ok(bound)
}

fn check_required(parameters: &[Parameter<'_>], bound: Map<String, Value>) -> Result<Map<String, Value>, String> {
    match parameters.iter().find(|parameter| parameter.required && !bound.contains_key(parameter.name)) {
        None => Ok(bound),
        Some(missing) => Err(format!("`{}` is missing", missing.name)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;
    use serde_json::json;

    fn spec() -> MethodSpec {
        MethodSpec {
            method: "test.all".parse().unwrap(),
            about: String::new(),
            args: json!({
                "type": "object",
                "properties": {
                    "text": { "type": "string" },
                    "count": { "type": ["integer", "null"] },
                    "any": {},
                    "flag": { "anyOf": [{ "type": "boolean" }, { "type": "null" }] },
                    "list": { "type": "array" },
                },
                "required": ["text"],
            }),
        }
    }

    fn words(words: &[&str]) -> Result<Value, ArgumentError> {
        spec().bind(&Arguments::Words(words.iter().map(|word| (*word).to_owned()).collect()))
    }

    #[test]
    fn words_become_what_the_schema_wants() {
        assert_eq!(words(&["007"]).unwrap(), json!({ "text": "007" }));
        assert_eq!(words(&["count=3", "1.10", "1.10", "yes"]).unwrap(), json!({ "count": 3, "text": "1.10", "any": "1.10", "flag": true }));
        assert_eq!(words(&["A=b c", "list=[1,\"x\"]"]).unwrap(), json!({ "text": "A=b c", "list": [1, "x"] }));
    }

    #[test]
    fn what_does_not_fit_is_named_with_the_usage() {
        for (given, problem) in [
            (vec![], "test.all: `text` is missing"),
            (vec!["a", "x"], "test.all: `count` wants integer, not \"x\""),
            (vec!["a", "1.5"], "test.all: `count` wants integer, not \"1.5\""),
            (vec!["text=a", "text=b"], "test.all: `text` is given twice"),
            (vec!["a", "1", "b", "yes", "[]", "c"], "test.all: does not know what to do with \"c\""),
        ] {
            let error = words(&given).unwrap_err();
            assert_eq!(error.problem, problem);
            assert_eq!(error.usage, "usage: test.all TEXT:string [COUNT:integer] [ANY:any] [FLAG:boolean] [LIST:array]");
        }
    }

    #[test]
    fn nesting_has_a_limit() {
        let nested = |levels: usize| (0..levels).fold(json!(1), |inner, _| json!([inner]));
        for (levels, fits) in [(64, true), (65, false), (120, false)] {
            let args = Arguments::Json(json!({ "text": "a", "any": nested(levels) }));
            assert_eq!(spec().bind(&args).is_ok(), fits, "{levels}");
            assert_eq!(args.check_depth().is_ok(), fits, "{levels}");
            let word = format!("list={}", nested(levels));
            assert_eq!(words(&["a", &word]).is_ok(), fits, "{levels}");
        }
    }

    #[test]
    fn json_keeps_its_types() {
        let bind = |value: Value| spec().bind(&Arguments::Json(value));
        assert_eq!(bind(json!(["a", 1])).unwrap(), json!({ "text": "a", "count": 1 }));
        assert_eq!(bind(json!({ "text": "a", "count": null })).unwrap(), json!({ "text": "a", "count": null }));
        for bad in [json!([1]), json!({ "text": "a", "other": 1 }), json!(["a", 1, 1, true, [], 1]), json!("a"), json!({ "text": null })] {
            assert!(bind(bad.clone()).is_err(), "{bad}");
        }
    }
}
