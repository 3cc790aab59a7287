//! The rules as they are written: `[[allow]]` tables of callers and methods, and as whom what they allow runs.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use certs::files::WRITABLE_BY_OTHERS;
use common::identity::CallerName;
use common::method::MethodName;
use common::protocol::ASYNC_PREFIX;
use common::protocol::map::MAP_PREFIX;
use globset::{Glob, GlobBuilder, GlobSet, GlobSetBuilder};
use serde::Deserialize;
use toml::Spanned;

use crate::config::{line_at, line_of};

/// The longest name of a user: `LOGIN_NAME_MAX` of limits.h, without its ending zero.
const USER_MAX_BYTES: usize = 255;

/// Rules in the order in which they are asked.
#[derive(Debug, Clone, Default)]
pub struct Rules(Vec<Rule>);

#[derive(Debug, Clone)]
pub(super) struct Rule {
    /// Where it stands.
    file: PathBuf,
    line: usize,
    /// What the sets were made of.
    written: Allow,
    callers: GlobSet,
    methods: GlobSet,
}

/// Why a file, or the folder, gives no rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Which.
    pub file: PathBuf,
    /// In which line; none if it is about the file as a whole.
    pub line: Option<usize>,
    /// What is wrong, and what follows from it.
    pub text: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    allow: Vec<Spanned<Allow>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Allow {
    caller: OneOrMore,
    methods: OneOrMore,
    /// As whom the methods run; as minion itself does, if it does not say.
    run_as: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged, expecting = "a glob in quotes, or a list of them")]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

impl PartialEq for Rules {
    fn eq(&self, other: &Self) -> bool {
        let written = |rule: &Rule| (rule.place(), rule.written.clone());
        self.0.iter().map(written).eq(other.0.iter().map(written))
    }
}

impl Rules {
    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether any rule is about `caller`.
    pub(super) fn knows(&self, caller: &CallerName) -> bool {
        self.0.iter().any(|rule| rule.callers.is_match(caller.as_str()))
    }

    /// The first rule that lets `caller` call `method`.
    pub(super) fn find(&self, caller: &CallerName, method: &MethodName) -> Option<&Rule> {
        self.0.iter().find(|rule| rule.callers.is_match(caller.as_str()) && rule.methods.is_match(method.as_str()))
    }

    /// What is wrong with the users that the rules name: `complaint` says it of one, if anything is.
    pub(super) fn complaints(&self, complaint: impl Fn(&str) -> Option<String>) -> Vec<Problem> {
        let of_rule = |rule: &Rule| complaint(rule.run_as()?).map(|text| Problem { file: rule.file.clone(), line: Some(rule.line), text });
        self.0.iter().filter_map(of_rule).collect()
    }

    /// Adds the rules that stand in `text`, which is the file `path`: all of them, or, if one is wrong, none.
    ///
    /// # Errors
    /// What is wrong, and where.
    pub fn add(&mut self, path: &Path, text: &str) -> Result<(), Problem> {
        let problem = |line: usize, text: String| Problem {
            file: path.to_owned(),
            line: Some(line),
            text: format!("{text}; none of its rules holds"),
        };
        let file: File = toml::from_str(text).map_err(|error| problem(line_of(text, &error), error.message().replace('\n', "; ")))?;
        let mut rules = Vec::new();
        for allow in file.allow {
            let line = line_at(text, allow.span().start);
            rules.push(Rule::new((path, line), allow.into_inner()).map_err(|wrong| problem(line, wrong))?);
        }
        self.0.append(&mut rules);
        Ok(())
    }
}

impl Rule {
    fn new((file, line): (&Path, usize), written: Allow) -> Result<Self, String> {
        let methods = written.methods.globs();
        for prefix in [ASYNC_PREFIX, MAP_PREFIX] {
            if let Some(glob) = methods.iter().find(|glob| glob.starts_with(prefix)) {
                return Err(format!("{glob:?}: a rule for a method covers its `{prefix}` form; leave that off"));
            }
        }
        if let Some(glob) = methods.iter().find(|glob| !glob.contains(['.', '*', '?', '[', '{'])) {
            return Err(format!("{glob:?} matches no method, which looks like module.method; a whole module is \"{glob}.*\""));
        }
        written.run_as.as_deref().map_or(Ok(()), require_user_name)?;
        let (callers, methods) = (glob_set("caller", written.caller.globs())?, glob_set("methods", methods)?);
        Ok(Self { file: file.to_owned(), line, callers, methods, written })
    }

    /// `file.toml:line`.
    pub(super) fn place(&self) -> String {
        format!("{}:{}", self.file.file_name().unwrap_or_default().to_string_lossy(), self.line)
    }

    /// As whom what it allows runs, if it says.
    pub(super) fn run_as(&self) -> Option<&str> {
        self.written.run_as.as_deref()
    }
}

impl OneOrMore {
    fn globs(&self) -> &[String] {
        match self {
            Self::One(glob) => std::slice::from_ref(glob),
            Self::More(globs) => globs,
        }
    }
}

/// That `name` can be a user's name. Whether the host has that user shows when something is to run: users come and go.
fn require_user_name(name: &str) -> Result<(), String> {
    if name.is_empty() || name.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(format!("`run_as` = {name:?}: it is the name of a user of this host, not a number"));
    }
    let is_strange = |letter: char| letter.is_control() || letter.is_whitespace() || matches!(letter, ':' | '/' | ',');
    if name.starts_with(['-', '+', '~']) || name.contains(is_strange) || name.len() > USER_MAX_BYTES {
        return Err(format!("`run_as` = {name:?}: no user can have that name"));
    }
    Ok(())
}

/// Names match without regard to case.
fn glob_set(key: &str, globs: &[String]) -> Result<GlobSet, String> {
    if globs.is_empty() || globs.iter().any(String::is_empty) {
        return Err(format!("`{key}` is empty; it is a glob, or a list of them"));
    }
    let glob = |text: &String| -> Result<Glob, globset::Error> { GlobBuilder::new(text).case_insensitive(true).build() };
    let mut set = GlobSetBuilder::new();
    for text in globs {
        set.add(glob(text).map_err(|error| error.to_string())?);
    }
    set.build().map_err(|error| error.to_string())
}

impl Problem {
    pub(super) fn of_dir(dir: &Path, error: &io::Error) -> Self {
        let what = if error.kind() == io::ErrorKind::NotFound {
            "there is no such folder, so nobody may call anything; make it and put rules in it, as [[allow]] caller = \"…\" methods = [\"…\"]"
                .to_owned()
        } else {
            format!("cannot be read, so nobody may call anything: {error}")
        };
        Self { file: dir.to_owned(), line: None, text: what }
    }

    pub(super) fn of_mode(file: PathBuf) -> Self {
        let text = format!("anyone on this host can write it: run `chmod o-w {}`", file.display());
        Self { file, line: None, text }
    }

    /// Of a file, or the folder, that others than root could have written or can write.
    pub(super) fn of_others(file: &Path, owner: u32, mode: u32, what_follows: &str) -> Option<Self> {
        let path = file.display();
        let why = (owner != 0).then(|| (format!("belongs to the user {owner}"), format!("chown root {path}")));
        let how =
            (mode & WRITABLE_BY_OTHERS != 0).then(|| ("can be written by others than its owner".to_owned(), format!("chmod go-w {path}")));
        let (why, what): (Vec<_>, Vec<_>) = why.into_iter().chain(how).unzip();
        let text = format!(
            "{}, and root goes by rules that root alone can write, so {what_follows}: run `{}`",
            why.join(" and "),
            what.join(" && ")
        );
        (!why.is_empty()).then(|| Self { file: file.to_owned(), line: None, text })
    }

    /// The same, and that nothing in the files behind this one holds.
    pub(super) fn with_all_behind(mut self) -> Self {
        self.text.push_str("; nor does any rule of the files behind it, because it may say as whom a method runs (`run_as`)");
        self
    }

    pub(super) fn of_file(path: &Path, error: &io::Error) -> Self {
        Self { file: path.to_owned(), line: None, text: format!("cannot be read: {error}") }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(out, "{}:{line}: {}", self.file.display(), self.text),
            None => write!(out, "{}: {}", self.file.display(), self.text),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;

    fn add(text: &str) -> Result<Rules, String> {
        let mut rules = Rules::default();
        rules.add(Path::new("/etc/a.toml"), text).map(|()| rules).map_err(|problem| problem.to_string())
    }

    #[test]
    fn callers_and_methods_are_globs_or_lists_of_them() {
        let rules = add(
            "# ops\n[[allow]]\ncaller = \"Ops-*\"\nmethods = \"test.{ping,add}\"\n\n[[allow]]\ncaller = [\"a\", \"b\"]\nmethods = [\"*\"]\n",
        );
        let rules = rules.unwrap();
        let find = |caller: &str, method: &str| rules.find(&caller.parse().unwrap(), &method.parse().unwrap()).map(Rule::place);
        assert_eq!(find("ops-1", "test.ping").as_deref(), Some("a.toml:2"));
        assert_eq!(find("b", "test.sleep").as_deref(), Some("a.toml:6"));
        assert_eq!(find("ops-1", "test.sleep"), None);
        assert_eq!(find("xops-1", "test.ping"), None);
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        let rule = |caller: &str, methods: &str| format!("\n[[allow]]\ncaller = {caller}\nmethods = {methods}\n");
        for (text, said) in [
            (rule("\"a\"", "[\"async.test.ping\"]"), "a.toml:2: \"async.test.ping\": a rule for a method covers"),
            (rule("\"a\"", "[\"service\"]"), "a.toml:2: \"service\" matches no method"),
            (rule("[]", "[\"*\"]"), "a.toml:2: `caller` is empty"),
            (rule("\"[\"", "[\"*\"]"), "a.toml:2: "),
            (rule("3", "[\"*\"]"), "a.toml:3: a glob in quotes, or a list of them"),
            (rule("\"a\"", "[\"*\"]") + "deny = 1\n", "a.toml:5: unknown field `deny`, expected one of `caller`, `methods`, `run_as`"),
            (rule("\"a\"", "[\"*\"]") + "run_as = 3\n", "a.toml:5: invalid type: integer `3`, expected a string"),
            (
                rule("\"a\"", "[\"*\"]") + "run_as = \"1000\"\n",
                "a.toml:2: `run_as` = \"1000\": it is the name of a user of this host, not a number",
            ),
            (rule("\"a\"", "[\"*\"]") + "run_as = \"\"\n", "a.toml:2: `run_as` = \"\": it is the name of a user"),
            (rule("\"a\"", "[\"*\"]") + "run_as = \"-x\"\n", "a.toml:2: `run_as` = \"-x\": no user can have that name"),
            (rule("\"a\"", "[\"*\"]") + "run_as = \"a b\"\n", "a.toml:2: `run_as` = \"a b\": no user can have that name"),
            ("[[alow]]\n".to_owned(), "a.toml:1: unknown field `alow`, expected `allow`"),
            ("a = \n".to_owned(), "a.toml:1: "),
        ] {
            let problem = add(&text).unwrap_err();
            assert!(problem.contains(said), "{problem:?} does not say {said:?}");
        }
    }

    #[test]
    fn a_file_with_one_wrong_rule_gives_none() {
        let mut rules = Rules::default();
        let text = "[[allow]]\ncaller = \"a\"\nmethods = [\"*\"]\n[[allow]]\ncaller = []\nmethods = []\n";
        assert!(rules.add(Path::new("a.toml"), text).is_err());
        assert!(rules.is_empty());
    }
}
