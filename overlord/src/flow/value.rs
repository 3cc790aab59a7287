//! Values that flow from results into arguments: `${NAME.path}` in a text. Pure.
//!
//! A text that is one reference and nothing else becomes the value itself, of whatever type; within other text it is written out. `$${` is `${`.

use serde_json::{Map, Value};

/// The deepest nesting of arguments in a flow's file.
const DEPTH_MAX: usize = 64;

/// What a text refers to: a value by name, and the way to a part of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reference {
    pub(crate) name: String,
    pub(crate) path: Vec<String>,
}

/// A value with references in it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Template {
    Literal(Value),
    Reference(Reference),
    Text(Vec<Piece>),
    List(Vec<Template>),
    Object(Vec<(String, Template)>),
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Piece {
    Text(String),
    Reference(Reference),
}

/// Why there is no value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NoValue {
    /// What provides it was ignored.
    Ignored(String),
    /// It is there, and has not what is asked for; or it is not there.
    Missing(String),
}

impl Reference {
    /// `name`, `name.field.0`, `name["odd field"].x`.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("\"{text}\" is no reference, which looks like name.field, name.0 or name[\"field\"]");
        let mut parts = Vec::new();
        let mut rest = text.trim();
        loop {
            let end = rest.find(['.', '[']).unwrap_or(rest.len());
            let (word, behind) = rest.split_at(end);
            if !is_word(word) {
                return Err(wrong());
            }
            parts.push(word.to_owned());
            rest = behind;
            while let Some(quoted) = rest.strip_prefix("[\"") {
                let (field, behind) = quoted.split_once("\"]").ok_or_else(wrong)?;
                parts.push(field.to_owned());
                rest = behind;
            }
            match rest.strip_prefix('.') {
                Some(behind) => rest = behind,
                None if rest.is_empty() => break,
                None => return Err(wrong()),
            }
        }
        let name = parts.remove(0);
        if is_name(&name) { Ok(Self { name, path: parts }) } else { Err(wrong()) }
    }

    pub(crate) fn shown(&self) -> String {
        self.path.iter().fold(self.name.clone(), |text, part| format!("{text}.{part}"))
    }
}

/// Whether it can be the name of a value, a task or a block: a letter, and letters, digits, `_` and `-` behind it.
pub(crate) fn is_name(text: &str) -> bool {
    text.starts_with(|letter: char| letter.is_ascii_alphabetic()) && text.len() <= 128 && is_word(text)
}

fn is_word(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-')
}

/// The part of `value` that `path` leads to.
pub(crate) fn part<'v>(value: &'v Value, path: &[String]) -> Option<&'v Value> {
    path.iter().try_fold(value, |value, step| match value {
        Value::Object(fields) => fields.get(step),
        Value::Array(items) => items.get(step.parse::<usize>().ok()?),
        _ => None,
    })
}

impl Template {
    pub(crate) fn parse(value: &Value) -> Result<Self, String> {
        Self::parse_within(value, DEPTH_MAX)
    }

    fn parse_within(value: &Value, depth: usize) -> Result<Self, String> {
        let deeper = depth.checked_sub(1).ok_or_else(|| format!("arguments may be nested {DEPTH_MAX} levels deep at most"))?;
        match value {
            Value::String(text) => Self::parse_text(text),
            Value::Array(items) => items.iter().map(|item| Self::parse_within(item, deeper)).collect::<Result<_, _>>().map(Self::List),
            Value::Object(fields) => {
                let fields = fields.iter().map(|(name, field)| Ok((name.clone(), Self::parse_within(field, deeper)?)));
                fields.collect::<Result<_, String>>().map(Self::Object)
            }
            other => Ok(Self::Literal(other.clone())),
        }
    }

    pub(crate) fn parse_text(text: &str) -> Result<Self, String> {
        let mut pieces = pieces(text)?;
        Ok(match (pieces.pop(), pieces.is_empty()) {
            (None, _) => Self::Literal(Value::from("")),
            (Some(Piece::Text(text)), true) => Self::Literal(Value::from(text)),
            (Some(Piece::Reference(reference)), true) => Self::Reference(reference),
            (Some(last), false) => {
                pieces.push(last);
                Self::Text(pieces)
            }
        })
    }

    /// Every reference in it.
    pub(crate) fn references(&self) -> Vec<&Reference> {
        match self {
            Self::Literal(_) => Vec::new(),
            Self::Reference(reference) => vec![reference],
            Self::Text(pieces) => pieces.iter().filter_map(Piece::reference).collect(),
            Self::List(items) => items.iter().flat_map(Self::references).collect(),
            Self::Object(fields) => fields.iter().flat_map(|(_, field)| field.references()).collect(),
        }
    }

    /// The value, where `find` knows what references stand for.
    pub(crate) fn render(&self, find: &dyn Fn(&Reference) -> Result<Value, NoValue>) -> Result<Value, NoValue> {
        match self {
            Self::Literal(value) => Ok(value.clone()),
            Self::Reference(reference) => find(reference),
            Self::Text(pieces) => {
                let mut text = String::new();
                for piece in pieces {
                    match piece {
                        Piece::Text(piece) => text.push_str(piece),
                        Piece::Reference(reference) => match find(reference)? {
                            Value::String(value) => text.push_str(&value),
                            other => text.push_str(&other.to_string()),
                        },
                    }
                }
                Ok(Value::from(text))
            }
            Self::List(items) => items.iter().map(|item| item.render(find)).collect::<Result<Vec<_>, _>>().map(Value::Array),
            Self::Object(fields) => {
                let fields = fields.iter().map(|(name, field)| Ok((name.clone(), field.render(find)?)));
                fields.collect::<Result<Map<_, _>, _>>().map(Value::Object)
            }
        }
    }
}

impl Piece {
    fn reference(&self) -> Option<&Reference> {
        match self {
            Self::Text(_) => None,
            Self::Reference(reference) => Some(reference),
        }
    }
}

fn pieces(text: &str) -> Result<Vec<Piece>, String> {
    let (mut pieces, mut plain, mut rest) = (Vec::new(), String::new(), text);
    while let Some(at) = rest.find("${") {
        let (before, behind) = rest.split_at(at);
        let inside = behind.get(2..).unwrap_or_default();
        if let Some(before) = before.strip_suffix('$') {
            plain.push_str(before);
            plain.push_str("${");
            rest = inside;
            continue;
        }
        plain.push_str(before);
        let (reference, behind) =
            inside.split_once('}').ok_or_else(|| format!("\"{text}\" has a ${{ without its }} (write $${{ for ${{)"))?;
        if !plain.is_empty() {
            pieces.push(Piece::Text(std::mem::take(&mut plain)));
        }
        pieces.push(Piece::Reference(Reference::parse(reference)?));
        rest = behind;
    }
    plain.push_str(rest);
    if !plain.is_empty() {
        pieces.push(Piece::Text(plain));
    }
    Ok(pieces)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use serde_json::json;

    use super::*;

    fn rendered(value: Value) -> Result<Value, NoValue> {
        let known = json!({ "x": 5, "s": "a b", "o": { "n": [1, { "a.b": null }] } });
        Template::parse(&value).unwrap().render(&|reference| {
            let value = known.get(&reference.name).and_then(|value| part(value, &reference.path));
            value.cloned().ok_or_else(|| NoValue::Missing(reference.shown()))
        })
    }

    #[test]
    fn a_text_that_is_one_reference_keeps_the_type_and_others_are_written_out() {
        for (template, value) in [
            (json!("${x}"), json!(5)),
            (json!("${ x }"), json!(5)),
            (json!("x=${x} ${s}${o.n}"), json!("x=5 a b[1,{\"a.b\":null}]")),
            (json!({ "k": ["${o.n.0}", 2, "${o.n.1[\"a.b\"]}"] }), json!({ "k": [1, 2, null] })),
            (json!("a $${x} $x {y} $"), json!("a ${x} $x {y} $")),
            (json!("$${x}${x}"), json!("${x}5")),
            (json!(""), json!("")),
            (json!(true), json!(true)),
        ] {
            assert_eq!(rendered(template.clone()).unwrap(), value, "{template}");
        }
        assert_eq!(rendered(json!("${o.n.7}")), Err(NoValue::Missing("o.n.7".into())));
        assert_eq!(rendered(json!("-${y}-")), Err(NoValue::Missing("y".into())));
    }

    #[test]
    fn what_is_no_reference_is_told() {
        for bad in ["${", "${}", "a ${x", "${x.}", "${.x}", "${x y}", "${1x}", "${x[0]}", "${x[\"a]}"] {
            assert!(Template::parse(&json!(bad)).is_err(), "{bad}");
        }
    }
}
