//! Running commands of the host.

mod capture;
mod run;

use std::collections::BTreeMap;
use std::env;
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::outcome::Failure;
use nix::unistd::{AccessFlags, access};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

use super::{Context, Method, Module};
use common::period;

use crate::variables;

/// Where commands are looked for if the environment does not say, and by users whose environment we make.
pub(crate) const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

pub(super) struct Command;

impl Module for Command {
    const NAME: &'static str = "command";

    fn methods() -> Vec<Method> {
        vec![
            Method::new(
                "command.run",
                "Runs a line by /bin/sh -c, or argv without a shell; gives rc, stdout and stderr, and fails if rc is not 0.",
                run::run,
            ),
            Method::new("command.exists", "The path of a command, or null if the host has none of that name.", exists),
        ]
    }
}

/// The arguments of `command.run` as they are written.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Words {
    /// What `/bin/sh -c` is to run; this or `argv`.
    line: Option<String>,
    /// The program and its arguments, run without a shell; this or `line`.
    argv: Option<Vec<String>>,
    /// The folder to run it in; unless said it is `/`, or the home of the user whom the host's rule names.
    cwd: Option<PathBuf>,
    /// Variables to set beside those that the minion gives.
    env: Option<BTreeMap<String, String>>,
    /// What the command reads from its standard input; nothing unless said.
    stdin: Option<String>,
    /// How long it may take, in seconds or as in `1m 30s`; then it is stopped, with all that it started.
    timeout: Option<Timeout>,
}

/// One command, ready to be run.
#[derive(Debug, Deserialize)]
#[serde(try_from = "Words")]
struct Run {
    program: String,
    arguments: Vec<String>,
    /// None: where the method's process is.
    cwd: Option<PathBuf>,
    env: BTreeMap<String, String>,
    stdin: Vec<u8>,
    timeout: Option<Duration>,
}

impl JsonSchema for Run {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Run".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        Words::json_schema(generator)
    }
}

impl TryFrom<Words> for Run {
    type Error = &'static str;

    fn try_from(words: Words) -> Result<Self, &'static str> {
        let argv = match (words.line, words.argv) {
            // A line may begin with `-` or `+`, and is none of the shell's options then.
            (Some(line), None) => ["/bin/sh", "-c", "--"].map(str::to_owned).into_iter().chain([line]).collect(),
            (None, Some(argv)) => argv,
            (None, None) => return Err("it wants `line` or `argv`"),
            (Some(_), Some(_)) => return Err("it wants `line` or `argv`, not both"),
        };
        let mut argv = argv.into_iter();
        let program = argv.next().filter(|program| !program.is_empty()).ok_or("`argv` names no program")?;
        let env = words.env.unwrap_or_default();
        if env.keys().any(|name| name.is_empty() || name.contains('=')) {
            return Err("a variable's name in `env` is empty or has a `=`");
        }
        if env.keys().any(|name| variables::ALL.contains(&name.as_str())) {
            return Err("OVERLORD_JOB_ID and what begins with MINION_ in the environment is the minion's to set, not `env`'s");
        }
        Ok(Self {
            program,
            arguments: argv.collect(),
            cwd: words.cwd,
            env,
            stdin: words.stdin.unwrap_or_default().into_bytes(),
            timeout: words.timeout.map(|timeout| timeout.0),
        })
    }
}

/// A time limit: seconds as a number, or text such as `1m 30s`.
struct Timeout(Duration);

#[derive(Deserialize)]
#[serde(untagged)]
enum TimeoutWord {
    Seconds(f64),
    Text(String),
}

impl<'de> Deserialize<'de> for Timeout {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        let seconds = |seconds: f64| Duration::try_from_secs_f64(seconds).ok().filter(|period| !period.is_zero());
        let period = match TimeoutWord::deserialize(input)? {
            TimeoutWord::Seconds(number) => {
                seconds(number).ok_or_else(|| D::Error::custom(format!("a timeout of {number} seconds is none")))
            }
            // A word of a command line arrives as text, though it be a number.
            TimeoutWord::Text(text) => match text.parse().ok().and_then(seconds) {
                Some(period) => Ok(period),
                None => period::parse(&text).map_err(D::Error::custom),
            },
        };
        period.map(Self)
    }
}

impl JsonSchema for Timeout {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Timeout".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": ["number", "string"] })
    }
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Exists {
    /// A command's name, or an absolute path.
    #[serde(deserialize_with = "name_or_path")]
    name: String,
}

/// What a path means that begins nowhere would be for the minion to say, and for no caller to know.
fn name_or_path<'de, D: Deserializer<'de>>(input: D) -> Result<String, D::Error> {
    let name = String::deserialize(input)?;
    match name.contains('/') && !name.starts_with('/') {
        true => Err(D::Error::custom("a path in `name` is absolute")),
        false => Ok(name),
    }
}

fn exists(args: Exists, _: &Context<'_>) -> Result<Option<PathBuf>, Failure> {
    let is_command = |path: &Path| path.is_file() && access(path, AccessFlags::X_OK).is_ok();
    if args.name.contains('/') {
        return Ok(Some(PathBuf::from(args.name)).filter(|path| is_command(path)));
    }
    let folders = env::var_os("PATH").unwrap_or_else(|| DEFAULT_PATH.into());
    let named = |name: &str| {
        env::split_paths(&folders).filter(|folder| folder.is_absolute()).map(|folder| folder.join(name)).find(|path| is_command(path))
    };
    Ok(Some(args.name.as_str()).filter(|name| !name.is_empty()).and_then(named))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::super::Registry;
    use super::*;
    use common::outcome::ErrorCode;
    use common::protocol::Arguments;
    use serde_json::{Value, json};

    fn read(args: Value) -> Result<Run, String> {
        serde_json::from_value(args).map_err(|error| error.to_string())
    }

    #[test]
    fn a_line_or_argv_and_nothing_between() {
        assert_eq!(read(json!({ "line": "ls" })).unwrap().arguments, ["-c", "--", "ls"]);
        assert_eq!(read(json!({ "argv": ["ls", "-l"] })).unwrap().arguments, ["-l"]);
        let mark = json!({ "line": "a", "env": { "MINION_JOB_ID": "another's" } });
        let named = json!({ "line": "a", "env": { "A=B": "" } });
        for bad in [json!({}), json!({ "line": "ls", "argv": ["ls"] }), json!({ "argv": [] }), named, mark] {
            assert!(read(bad.clone()).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_timeout_is_seconds_or_text() {
        let timeout = |value: Value| read(json!({ "line": "ls", "timeout": value })).map(|run| run.timeout.unwrap());
        for value in [json!(90), json!(90.0), json!("90"), json!("1m 30s"), json!("90s")] {
            assert_eq!(timeout(value).unwrap(), Duration::from_secs(90));
        }
        for bad in [json!(0), json!(-1), json!("soon"), json!(1e300), json!("NaN")] {
            assert!(timeout(bad.clone()).is_err(), "{bad}");
        }
    }

    #[test]
    fn words_of_a_command_line_bind() {
        let registry = Registry::builtin();
        let method = registry.find(&"command.run".parse().unwrap()).unwrap();
        let words = |words: &[&str]| Arguments::Words(words.iter().map(|word| (*word).to_owned()).collect());
        let bound = method.spec().bind(&words(&["echo a=b", "timeout=5", "env={\"A\":\"1\"}"])).unwrap();
        assert!(method.check(&bound).is_ok(), "{bound}");
        let neither = method.check(&method.spec().bind(&words(&[])).unwrap()).unwrap_err();
        assert!(neither.is(ErrorCode::InvalidArguments) && neither.message.contains("`line` or `argv`"), "{neither:?}");
    }

    #[test]
    fn commands_are_found() {
        let (registry, minion) = (Registry::builtin(), "web1".parse().unwrap());
        let context = Context::of_server(&minion, &registry, 1 << 20);
        let find = |name: &str| exists(Exists { name: name.to_owned() }, &context).unwrap();
        assert!(find("sh").unwrap().ends_with("sh"));
        assert_eq!(find("/bin/sh").unwrap(), Path::new("/bin/sh"));
        for none in ["no-such-command", "", "/etc/passwd", "/etc"] {
            assert_eq!(find(none), None, "{none}");
        }
    }
}
