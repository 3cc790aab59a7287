//! What a minion can do. A module is one file under `modules/`, and one line in [`Registry::builtin`].
//!
//! A method sees its arguments and a [`Context`], and gives a result or a [`Failure`]. It sees neither the transport, nor the
//! caller, nor a store.

mod certs;
mod command;
mod jobs;
mod minion;
mod system;
mod test;
mod worker;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use common::identity::MinionName;
use common::method::{MethodName, MethodSpec};
use common::outcome::{ErrorCode, Failure};
use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::progress::{NOBODY, Reporter};
use crate::worker::Reach;

pub use certs::RevocationsAsked;
pub(crate) use command::DEFAULT_PATH;
pub use jobs::{JobsCall, JobsWanted, LogsWanted};

/// How much of a caller's word stands in a message.
const WORD_MAX_LETTERS: usize = 200;

/// Methods that belong together.
pub trait Module {
    /// The part of `module.method` before the dot.
    const NAME: &'static str;
    /// Its methods.
    fn methods() -> Vec<Method>;
}

/// Where a method runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// In the server itself: it neither blocks nor can do harm.
    Server,
    /// In a process of its own: it can block, and be killed.
    Process,
    /// The door hands it to the jobs; it cannot be a job itself.
    Jobs,
    /// The door hands it to the server's trust; it cannot be a job.
    Trust,
}

/// What a method may know of where it runs.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// This host.
    pub minion: &'a MinionName,
    /// Every method of this minion.
    pub registry: &'a Registry,
    /// The largest result, as JSON text, that will be taken.
    pub result_max_bytes: usize,
    /// Where packages of the minion lie. The server has none.
    pub packages: Option<&'a Path>,
    /// The resident workers. A process of `worker.*` alone has them.
    pub workers: Option<&'a Reach>,
    /// By which it says how far it is.
    pub progress: &'a Reporter,
}

impl<'a> Context<'a> {
    /// That of a method that the server answers itself, without a process.
    #[must_use]
    pub fn of_server(minion: &'a MinionName, registry: &'a Registry, result_max_bytes: usize) -> Self {
        Self { minion, registry, result_max_bytes, packages: None, workers: None, progress: &NOBODY }
    }
}

/// The arguments of a method that takes none.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NoArguments {}

/// One method: its spec, where it runs, and what runs.
pub struct Method {
    spec: MethodSpec,
    place: Place,
    check: fn(&Value) -> Result<(), serde_json::Error>,
    run: Box<Run>,
}

type Run = dyn Fn(Value, &Context<'_>) -> Result<Value, RunError> + Send + Sync;

enum RunError {
    Arguments(serde_json::Error),
    Result(serde_json::Error),
    Method(Failure),
}

impl Method {
    /// A method that runs in a process of its own: it can block, and be killed. `name` is `module.method`.
    pub fn new<A, R>(name: &str, about: &str, run: fn(A, &Context<'_>) -> Result<R, Failure>) -> Self
    where
        A: DeserializeOwned + JsonSchema + 'static,
        R: Serialize + 'static,
    {
        Self::placed(Place::Process, name, about, run)
    }

    /// A method that the server answers itself: it must neither block nor do harm.
    pub fn inline<A, R>(name: &str, about: &str, run: fn(A, &Context<'_>) -> Result<R, Failure>) -> Self
    where
        A: DeserializeOwned + JsonSchema + 'static,
        R: Serialize + 'static,
    {
        Self::placed(Place::Server, name, about, run)
    }

    fn placed<A, R>(place: Place, name: &str, about: &str, run: fn(A, &Context<'_>) -> Result<R, Failure>) -> Self
    where
        A: DeserializeOwned + JsonSchema + 'static,
        R: Serialize + 'static,
    {
        let run = move |args: Value, context: &Context<'_>| {
            let args = serde_json::from_value::<A>(args).map_err(RunError::Arguments)?;
            let result = run(args, context).map_err(RunError::Method)?;
            serde_json::to_value(result).map_err(RunError::Result)
        };
        let spec = MethodSpec { method: literal_name(name), about: about.to_owned(), args: schema_of::<A>() };
        Self { spec, place, check: |args| A::deserialize(args).map(drop), run: Box::new(run) }
    }

    /// A method whose spec alone is here: the door hands its calls to the jobs.
    fn of_jobs<A: DeserializeOwned + JsonSchema + 'static>(name: &str, about: &str) -> Self {
        Self::placed::<A, ()>(Place::Jobs, name, about, |_, _| {
            Err(Failure::new(ErrorCode::Internal, "the server's jobs answer this, and no process can stand for them"))
        })
    }

    /// Likewise: the door hands its calls to the server's trust.
    fn of_trust<A: DeserializeOwned + JsonSchema + 'static>(name: &str, about: &str) -> Self {
        Self::placed::<A, ()>(Place::Trust, name, about, |_, _| {
            Err(Failure::new(ErrorCode::Internal, "the server's trust answers this, and no process can stand for it"))
        })
    }

    /// Where it runs.
    #[must_use]
    pub fn place(&self) -> Place {
        self.place
    }

    /// What anyone may know of it.
    #[must_use]
    pub fn spec(&self) -> &MethodSpec {
        &self.spec
    }

    /// Whether `args`, bound to the spec, are what the method can read, to their depths.
    ///
    /// # Errors
    /// `InvalidArguments`, which names the usage.
    pub fn check(&self, args: &Value) -> Result<(), Failure> {
        (self.check)(args).map_err(|error| self.invalid(&error))
    }

    /// Runs it here and now. `args` are bound to the spec.
    ///
    /// # Errors
    /// What the method says; `InvalidArguments` if it cannot read `args`.
    pub fn run(&self, args: Value, context: &Context<'_>) -> Result<Value, Failure> {
        (self.run)(args, context).map_err(|error| match error {
            RunError::Arguments(error) => self.invalid(&error),
            RunError::Result(error) => {
                Failure::new(ErrorCode::Internal, format!("{}: its result cannot be written as JSON: {error}", self.spec.method))
            }
            RunError::Method(failure) => failure,
        })
    }

    fn invalid(&self, error: &serde_json::Error) -> Failure {
        Failure::new(ErrorCode::InvalidArguments, self.spec.argument_error(&error.to_string()).to_string())
    }
}

impl std::fmt::Debug for Method {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "Method({}, {:?})", self.spec.method, self.place)
    }
}

/// Every method of this minion, by name.
#[derive(Debug)]
pub struct Registry {
    modules: BTreeSet<&'static str>,
    methods: BTreeMap<MethodName, Method>,
}

impl Registry {
    /// The modules that are built in.
    #[must_use]
    pub fn builtin() -> Self {
        let mut registry = Self { modules: BTreeSet::new(), methods: BTreeMap::new() };
        registry.add::<certs::Certs>();
        registry.add::<command::Command>();
        registry.add::<jobs::Jobs>();
        registry.add::<minion::Minion>();
        registry.add::<system::System>();
        registry.add::<test::Test>();
        registry.add::<worker::Worker>();
        registry
    }

    fn add<M: Module>(&mut self) {
        self.modules.insert(M::NAME);
        self.methods.extend(M::methods().into_iter().map(|method| (method.spec.method.clone(), method)));
    }

    /// The method of that name.
    #[must_use]
    pub fn find(&self, name: &MethodName) -> Option<&Method> {
        self.methods.get(name)
    }

    /// Each method's spec, by name.
    pub fn specs(&self) -> impl Iterator<Item = &MethodSpec> {
        self.methods.values().map(Method::spec)
    }

    /// The names of the modules, in order.
    pub fn modules(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.modules.iter().copied()
    }

    /// What to say to who asked for a method that is not here: the methods of that module, or else the modules.
    #[must_use]
    pub fn unknown(&self, name: &MethodName) -> Failure {
        let module = name.module();
        let message = if self.modules.contains(module) {
            let methods: Vec<&str> = self.methods.keys().filter(|known| known.module() == module).map(MethodName::method).collect();
            format!("no method {name}: module {module} has {}", methods.join(", "))
        } else {
            let modules: Vec<&str> = self.modules().collect();
            format!("no method {name}: there is no module {module}; there are {}", modules.join(", "))
        };
        Failure::new(ErrorCode::UnknownMethod, message)
    }
}

/// As much of a caller's word as stands in a message.
fn beginning(word: impl ToString) -> String {
    word.to_string().chars().take(WORD_MAX_LETTERS).collect()
}

#[allow(clippy::expect_used, reason = "the names are literals of this program, and a test makes them all")]
fn literal_name(name: &str) -> MethodName {
    name.parse().expect("a method's literal name is module.method")
}

/// The JSON Schema of `A` without what says nothing to a caller, and without references.
fn schema_of<A: JsonSchema>() -> Value {
    let settings = SchemaSettings::draft2020_12().with(|settings| {
        settings.inline_subschemas = true;
        settings.meta_schema = None;
    });
    let mut schema = settings.into_generator().into_root_schema_for::<A>();
    for noise in ["$schema", "title", "description"] {
        schema.remove(noise);
    }
    if schema.get("type").is_none() {
        schema.insert("type".to_owned(), Value::from("object"));
    }
    schema.to_value()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;
    use std::fs;

    #[test]
    fn methods_json_is_what_this_minion_can_do() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../common/methods.json");
        let registry = Registry::builtin();
        let specs: Vec<&MethodSpec> = registry.specs().collect();
        let text = serde_json::to_string_pretty(&specs).unwrap() + "\n";
        if std::env::var_os("UPDATE").is_some() {
            fs::write(&path, &text).unwrap();
        }
        let committed = fs::read_to_string(&path).unwrap_or_default();
        assert!(committed == text, "common/methods.json is not what the minion has; run: UPDATE=1 cargo test -p minion methods_json");
    }

    #[test]
    fn every_method_bears_its_modules_name_and_says_what_it_does() {
        let registry = Registry::builtin();
        for spec in registry.specs() {
            assert!(registry.modules().any(|module| module == spec.method.module()), "{}", spec.method);
            assert!(spec.about.ends_with('.'), "{}", spec.method);
            assert_eq!(spec.args.get("additionalProperties"), Some(&Value::Bool(false)), "{}", spec.method);
        }
    }

    #[test]
    fn arguments_stand_in_the_order_of_their_declaration_and_without_references() {
        let registry = Registry::builtin();
        let usage = |name: &str| registry.find(&name.parse().unwrap()).unwrap().spec().usage();
        assert_eq!(
            usage("command.run"),
            "usage: command.run [LINE:string] [ARGV:array] [CWD:string] [ENV:object] [STDIN:string] [TIMEOUT:number|string]"
        );
        assert_eq!(usage("test.echo"), "usage: test.echo VALUE:any");
        let text = serde_json::to_string(&registry.specs().collect::<Vec<_>>()).unwrap();
        assert!(!text.contains("$ref") && !text.contains("$schema") && !text.contains("\"title\""), "{text}");
    }

    #[test]
    fn who_asks_for_what_is_not_there_hears_what_is() {
        let registry = Registry::builtin();
        let unknown = |name: &str| registry.unknown(&name.parse().unwrap()).message;
        assert_eq!(unknown("command.rum"), "no method command.rum: module command has exists, run");
        assert_eq!(
            unknown("comand.run"),
            "no method comand.run: there is no module comand; there are certs, command, jobs, minion, system, test, worker"
        );
    }
}
