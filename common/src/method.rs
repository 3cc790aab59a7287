//! Methods as both sides know them: names, schemas, and how a command line's words become typed arguments.

mod bind;

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use bind::ArgumentError;

/// The longest `module.method` in bytes.
pub const METHOD_MAX_BYTES: usize = 128;

/// The schemas of the methods that this version's minion has built in. A test of the minion writes the file.
const BUILTIN: &str = include_str!("../methods.json");

/// `module.method`: two words of small letters, digits and `_`, each beginning with a letter.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MethodName {
    text: String,
    dot: usize,
}

/// Why a text is not a method's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{text}\" is not a method, which looks like module.method")]
pub struct InvalidMethod {
    /// The text as it was given, control characters escaped.
    pub text: String,
}

impl MethodName {
    /// `module.method`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The part before the dot.
    #[must_use]
    pub fn module(&self) -> &str {
        self.text.get(..self.dot).unwrap_or_default()
    }

    /// The part behind the dot.
    #[must_use]
    pub fn method(&self) -> &str {
        self.text.get(self.dot + 1..).unwrap_or_default()
    }
}

impl FromStr for MethodName {
    type Err = InvalidMethod;

    fn from_str(text: &str) -> Result<Self, InvalidMethod> {
        let word = |word: &str| {
            word.starts_with(|letter: char| letter.is_ascii_lowercase())
                && word.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
        };
        match text.split_once('.') {
            Some((module, method)) if word(module) && word(method) && text.len() <= METHOD_MAX_BYTES => {
                Ok(Self { text: text.to_owned(), dot: module.len() })
            }
            _ => Err(InvalidMethod { text: text.escape_debug().take(METHOD_MAX_BYTES).collect() }),
        }
    }
}

impl TryFrom<String> for MethodName {
    type Error = InvalidMethod;

    fn try_from(text: String) -> Result<Self, InvalidMethod> {
        text.parse()
    }
}

impl From<MethodName> for String {
    fn from(name: MethodName) -> Self {
        name.text
    }
}

impl fmt::Display for MethodName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(&self.text)
    }
}

/// What anyone may know of a method: the result of `system.describe`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MethodSpec {
    /// `module.method`.
    pub method: MethodName,
    /// What it does, in a sentence.
    pub about: String,
    /// The JSON Schema of its arguments: an object whose properties stand in the order of the positions.
    pub args: Value,
}

/// The methods that a program knows, by name.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Catalogue {
    methods: BTreeMap<MethodName, MethodSpec>,
}

impl Catalogue {
    /// The methods that this version's minion has built in.
    #[must_use]
    pub fn builtin() -> Self {
        let specs: Vec<MethodSpec> = serde_json::from_str(BUILTIN).unwrap_or_default();
        specs.into_iter().collect()
    }

    /// The method of that name.
    #[must_use]
    pub fn find(&self, name: &MethodName) -> Option<&MethodSpec> {
        self.methods.get(name)
    }

    /// Every method, by name.
    pub fn iter(&self) -> impl Iterator<Item = &MethodSpec> {
        self.methods.values()
    }
}

impl FromIterator<MethodSpec> for Catalogue {
    fn from_iter<I: IntoIterator<Item = MethodSpec>>(specs: I) -> Self {
        Self { methods: specs.into_iter().map(|spec| (spec.method.clone(), spec)).collect() }
    }
}
