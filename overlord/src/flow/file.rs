//! A flow's file as it is written: TOML, each key known, each error with its line. What it means together is `plan`'s.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use toml::Spanned;

use crate::config::{ConfigError, toml_error};

/// The largest file of a flow.
const FILE_MAX_BYTES: u64 = 4 << 20;
/// The most files of a flow: its own, and those of its sub-flows.
const FILES_MAX: usize = 64;

/// The texts of a flow's files, by path: the first is the flow's own, and the others are those of its sub-flows. A flow's log has all of
/// them, so that a flow that has begun never depends on files that somebody changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Texts {
    pub(crate) main: PathBuf,
    pub(crate) files: BTreeMap<PathBuf, String>,
}

/// A flow's file.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "A flow of overlord")]
pub(crate) struct FlowFile {
    /// The flow's name; unless said, the file's.
    pub(crate) name: Option<String>,
    /// What it does, for a person.
    #[expect(dead_code, reason = "it is for those who read the file")]
    pub(crate) about: Option<String>,
    /// Values by name, each with its default, which also says of which type it is.
    #[serde(default)]
    pub(crate) vars: BTreeMap<String, Value>,
    /// Values that must be given, by name, each with its type.
    #[serde(default)]
    pub(crate) inputs: BTreeMap<String, Kind>,
    /// How the steps stand to each other.
    #[serde(default)]
    pub(crate) block: BlockKind,
    /// How often all of it is tried.
    pub(crate) retry: Option<RetryFile>,
    /// What is done.
    pub(crate) step: Vec<Step>,
    /// Tasks that run in the end, one after the other, however it ended.
    #[serde(default)]
    pub(crate) finally: Vec<Step>,
}

/// How the steps of a block stand to each other.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum BlockKind {
    /// One after the other.
    #[default]
    Linear,
    /// All at once; none uses what another provides.
    Unordered,
    /// Each as soon as it has what it requires.
    Graph,
}

/// The type of a value, as JSON Schema names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    /// A text.
    String,
    /// A whole number.
    Integer,
    /// A number.
    Number,
    /// `true` or `false`.
    Boolean,
    /// A list.
    Array,
    /// Fields by name.
    Object,
    /// Whatever it is.
    Any,
}

/// A task (with `call`), a block (with `step`), or a sub-flow (with `flow`).
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Step {
    /// Its name, which no other step of the file has: letters, digits, `_` and `-`.
    #[schemars(with = "String")]
    pub(crate) name: Spanned<String>,
    /// Of a task: `module.method`.
    #[schemars(with = "Option<String>")]
    pub(crate) call: Option<Spanned<String>>,
    /// Of a task: which hosts, as on the command line.
    #[schemars(with = "Option<String>")]
    pub(crate) target: Option<Spanned<String>>,
    /// Of a task: the arguments, a list or a table; `${NAME.path}` in a text is a value.
    #[serde(default)]
    pub(crate) args: Option<Value>,
    /// Of a task: whether each host of the target runs it, or any one.
    pub(crate) hosts: Option<HostsKind>,
    /// Of a task: a list, or a reference to one; the task runs for each item, which is `${item}`.
    pub(crate) for_each: Option<Value>,
    /// Of a task: the name of its result, or names of parts of it; of a sub-flow: names here of values there.
    #[serde(default)]
    pub(crate) provides: Option<Provides>,
    /// Names of values that must be there before it begins, besides those that it refers to.
    #[serde(default)]
    pub(crate) requires: Vec<String>,
    /// Names of steps of this file that must have passed before it begins.
    #[serde(default)]
    pub(crate) after: Vec<String>,
    /// It is ignored unless this holds: `check.rc == 0 && kind != 'db'`.
    pub(crate) when: Option<String>,
    /// How often it is tried.
    pub(crate) retry: Option<RetryFile>,
    /// Of a task: what undoes it, on each host where it was done.
    pub(crate) undo: Option<UndoFile>,
    /// Of a task: how long it may run on a host, and how long a host is looked for that can [default: `timeout` of overlord.toml].
    pub(crate) timeout: Option<Period>,
    /// Of a task: on so many hosts, or for so many items, it may fail and yet have succeeded: a number, or a share like "20%".
    pub(crate) max_fail: Option<MaxFail>,
    /// Of a task: on so many hosts, or for so many items, it runs at once.
    pub(crate) forks: Option<u16>,
    /// Of a task: how it is run.
    pub(crate) run: Option<RunKind>,
    /// Of a task: what is done where it may have run, and its end is not known.
    pub(crate) lost: Option<LostPolicy>,
    /// Of a task: a host that has not answered for so long has lost it [default: 1m].
    pub(crate) lost_after: Option<Period>,
    /// Of a block: how its steps stand to each other.
    pub(crate) block: Option<BlockKind>,
    /// Of a block: its steps.
    #[serde(default)]
    pub(crate) step: Vec<Step>,
    /// Of a sub-flow: its file, beside this one.
    #[schemars(with = "Option<String>")]
    pub(crate) flow: Option<Spanned<String>>,
    /// Of a sub-flow: its vars and inputs.
    #[serde(default)]
    pub(crate) vars: BTreeMap<String, Value>,
}

/// Which hosts of a target run a task.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum HostsKind {
    /// All of them.
    #[default]
    Each,
    /// One that has the method, and the least to do.
    Any,
}

/// How a task is run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum RunKind {
    /// As a job: whoever runs the flow may die meanwhile, and the task goes on and is asked after.
    #[default]
    Job,
    /// As a call, which is quicker, and ends with whoever runs the flow: it is lost then.
    Call,
}

/// What is done where a task may have run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum LostPolicy {
    /// It has failed there.
    #[default]
    Fail,
    /// It runs again, on another host if any may; what it does must bear that.
    Again,
}

/// What a step provides.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(untagged)]
pub(crate) enum Provides {
    /// The whole result, by this name.
    Whole(String),
    /// Parts of it.
    Parts(BTreeMap<String, Part>),
}

/// A part of a result.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(untagged)]
pub(crate) enum Part {
    /// The way to it: `stdout`, `0.name`; of a sub-flow: the value's name there.
    Path(String),
    /// With its type, which is checked.
    Typed {
        /// The way to it; unless said, the whole.
        path: Option<String>,
        /// What it is.
        #[serde(rename = "type")]
        kind: Kind,
    },
}

/// How often something is tried.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RetryFile {
    /// So often in all.
    pub(crate) times: Option<u32>,
    /// Once for each of these, a list or a reference to one, until it succeeds.
    pub(crate) for_each: Option<Value>,
    /// The name by which the value of this time is referred to [default: `try`].
    #[serde(rename = "as")]
    pub(crate) name: Option<String>,
    /// How long to pause before the second time [default: 0s].
    pub(crate) pause: Option<Period>,
    /// By how much the pause grows each time [default: 2].
    pub(crate) factor: Option<f64>,
    /// How long the pause is at most [default: 1m].
    pub(crate) most: Option<Period>,
}

/// What undoes a task.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct UndoFile {
    /// `module.method`.
    pub(crate) call: String,
    /// As those of the task; `${result}` is what the task gave on that host.
    #[serde(default)]
    pub(crate) args: Option<Value>,
    /// How long it may run [default: as the task].
    pub(crate) timeout: Option<Period>,
    /// So often it is tried in all [default: 1].
    pub(crate) times: Option<u32>,
    /// Also where the task itself has failed or may have run, and not only where it was done.
    #[serde(default)]
    pub(crate) also_failed: bool,
}

/// How much of a task may fail.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(untagged)]
pub(crate) enum MaxFail {
    /// So many.
    Count(u32),
    /// Such a share: "20%".
    Share(String),
}

/// A length of time: "30s", "1m 30s".
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema)]
pub(crate) struct Period(#[schemars(with = "String")] pub(crate) Duration);

impl<'de> Deserialize<'de> for Period {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        common::period::deserialize(from).map(Self)
    }
}

impl FlowFile {
    /// What stands in `text`, which is the file `path`.
    pub(crate) fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        toml::from_str(text).map_err(|error| toml_error(path, text, &error))
    }

    fn sub_flows(&self) -> Vec<&str> {
        fn within<'s>(steps: &'s [Step], found: &mut Vec<&'s str>) {
            for step in steps {
                found.extend(step.flow.as_ref().map(|file| file.get_ref().as_str()));
                within(&step.step, found);
            }
        }
        let mut found = Vec::new();
        within(&self.step, &mut found);
        within(&self.finally, &mut found);
        found
    }
}

impl Texts {
    /// Reads the flow's file, and those of its sub-flows.
    ///
    /// # Errors
    /// One cannot be read or understood, or they are too many.
    pub(crate) fn load(path: &Path) -> Result<Self, ConfigError> {
        let mut texts = Self { main: path.to_owned(), files: BTreeMap::new() };
        let mut wanted = vec![path.to_owned()];
        while let Some(path) = wanted.pop() {
            if texts.files.contains_key(&path) {
                continue;
            }
            let failed = |source| ConfigError::Read { path: path.clone(), source };
            if texts.files.len() >= FILES_MAX {
                return Err(failed(io::Error::other(format!("a flow has at most {FILES_MAX} files, its sub-flows' included"))));
            }
            let text = read(&path).map_err(failed)?;
            wanted.extend(FlowFile::parse(&path, &text)?.sub_flows().into_iter().map(|file| beside(&path, file)));
            texts.files.insert(path, text);
        }
        Ok(texts)
    }

    /// The flow of one text.
    pub(crate) fn of(text: &str) -> Self {
        Self { main: "flow.toml".into(), files: BTreeMap::from([("flow.toml".into(), text.to_owned())]) }
    }
}

fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    // Of a device nobody knows the length before.
    File::open(path)?.take(FILE_MAX_BYTES + 1).read_to_string(&mut text)?;
    let is_whole = u64::try_from(text.len()).is_ok_and(|length| length <= FILE_MAX_BYTES);
    if is_whole { Ok(text) } else { Err(io::Error::other(format!("a flow's file has at most {FILE_MAX_BYTES} bytes"))) }
}

/// The file that a flow's file names.
pub(crate) fn beside(path: &Path, file: &str) -> PathBuf {
    path.parent().map_or_else(|| PathBuf::from(file), |folder| folder.join(file))
}

/// The JSON Schema of a flow's file, for editors and checkers.
pub(crate) fn schema() -> Value {
    schemars::schema_for!(FlowFile).to_value()
}
