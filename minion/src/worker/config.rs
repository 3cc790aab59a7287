//! `NAME.toml` in `workers_dir`: what a worker is, read whole or not at all. It only reads; what root goes by, root alone can have written.

use std::collections::BTreeMap;
use std::fs::File as OpenFile;
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use certs::files::WRITABLE_BY_OTHERS;
use common::period;
use nix::fcntl::OFlag;
use nix::unistd::geteuid;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

use crate::config::{ConfigError, line_of};

/// The most instances of one worker.
pub const INSTANCES_MAX: usize = 64;
/// The most that a payload, or a result, can be allowed to be.
const BYTES_LARGEST: usize = 8 << 20;
/// The largest file that is read.
const FILE_MAX_BYTES: u64 = 256 * 1024;
const SECOND: Duration = Duration::from_secs(1);
const DAY_MINUTES: u32 = 24 * 60;

/// One worker, as its file says.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkerConfig {
    /// What each instance executes.
    pub command: Program,
    /// How many processes work at once.
    #[serde(default = "one", deserialize_with = "instances")]
    pub instances: usize,
    /// As whom they run; none: as the minion's own user, where that is not root.
    pub user: Option<String>,
    /// Variables beside those that the minion gives.
    #[serde(default, deserialize_with = "variables")]
    pub environment: BTreeMap<String, String>,
    /// Tasks that may wait for an instance; with 0 none does.
    #[serde(default = "queue_max")]
    pub queue_max: usize,
    /// How many bytes their payloads may have.
    #[serde(default = "queue_max_bytes")]
    pub queue_max_bytes: usize,
    /// The largest payload, in bytes.
    #[serde(default = "bytes_max", deserialize_with = "bytes")]
    pub payload_max_bytes: usize,
    /// The largest result: text and bytes as such, all else as JSON text.
    #[serde(default = "bytes_max", deserialize_with = "bytes")]
    pub result_max_bytes: usize,
    /// The longest that an instance may work on one task; none: as long as the caller waits.
    #[serde(default, deserialize_with = "maybe_period")]
    pub task_timeout: Option<Duration>,
    /// From asking an instance to stop a task to killing it.
    #[serde(default = "one_second", deserialize_with = "period::deserialize")]
    pub cancel_grace: Duration,
    /// From telling an instance to end to killing it.
    #[serde(default = "five_seconds", deserialize_with = "period::deserialize")]
    pub stop_grace: Duration,
    /// An instance is replaced after so long, once it has no task.
    #[serde(default, deserialize_with = "maybe_period")]
    pub restart_every: Option<Duration>,
    /// All instances are replaced at this time of the day, in minutes since midnight UTC.
    #[serde(default, deserialize_with = "time_of_day")]
    pub restart_at: Option<u32>,
    /// How long to wait before an instance that died is started again.
    #[serde(default)]
    pub restart: Backoff,
    /// How it is found out that an instance is well.
    pub health: Option<HealthCheck>,
    /// What the kernel lets each process of an instance have.
    #[serde(default)]
    pub limits: Rlimits,
}

/// What is executed.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Command")]
pub struct Program(Vec<String>);

#[derive(Deserialize)]
#[serde(untagged, expecting = "wants a line for /bin/sh, or a list of the program and its arguments")]
enum Command {
    Line(String),
    List(Vec<String>),
}

/// `[restart]`: pauses double from death to death, up to the longest, and begin anew with an instance that has returned a result or has lived for long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Backoff {
    /// The first pause.
    #[serde(deserialize_with = "period::deserialize")]
    pub least: Duration,
    /// The longest.
    #[serde(deserialize_with = "period::deserialize")]
    pub most: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { least: SECOND, most: 60 * SECOND }
    }
}

/// `[health]`: a command that is run beside each instance, and ends with status 0 where it is well.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HealthCheck {
    /// What is executed.
    pub command: Program,
    /// How long from one look to the next.
    #[serde(default = "half_a_minute", deserialize_with = "period::deserialize")]
    pub every: Duration,
    /// How long one may take; after that it counts as failed.
    #[serde(default = "ten_seconds", deserialize_with = "period::deserialize")]
    pub timeout: Duration,
}

/// `[limits]`: see setrlimit(2).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rlimits {
    /// `RLIMIT_AS`.
    pub memory_max_bytes: Option<u64>,
    /// `RLIMIT_NOFILE`.
    pub open_files_max: Option<u64>,
    /// `RLIMIT_CPU`, in seconds, after which an instance is killed.
    pub cpu_max_seconds: Option<u64>,
}

/// Why there is no worker of that name.
#[derive(Debug, thiserror::Error)]
pub enum WorkerConfigError {
    /// What stands in the file cannot stand there, or it cannot be read.
    #[error(transparent)]
    File(#[from] ConfigError),
    /// Others than root could have written it.
    #[error(
        "{path}: root executes what a worker's file says, and others than root can write this one: run `chown root {path} && chmod go-w {path}`"
    )]
    Writable {
        /// The file, or its folder.
        path: PathBuf,
    },
    /// It says not as whom, and the minion is root.
    #[error("{path}: it has no `user`, and the minion is root: write `user = \"…\"`, the name of a user that may do what this worker does")]
    NoUser {
        /// The file.
        path: PathBuf,
    },
}

impl Program {
    /// The program and its arguments.
    #[must_use]
    pub fn words(&self) -> &[String] {
        &self.0
    }
}

impl TryFrom<Command> for Program {
    type Error = &'static str;

    fn try_from(command: Command) -> Result<Self, &'static str> {
        let words = match command {
            // A line may begin with `-` or `+`, and is none of the shell's options then.
            Command::Line(line) if !line.trim().is_empty() => {
                ["/bin/sh", "-c", "--"].map(str::to_owned).into_iter().chain([line]).collect()
            }
            Command::List(words) => words,
            Command::Line(_) => Vec::new(),
        };
        if words.iter().any(|word| word.contains('\0')) {
            return Err("has a zero byte in it");
        }
        if words.first().is_none_or(String::is_empty) { Err("names no program") } else { Ok(Self(words)) }
    }
}

impl WorkerConfig {
    /// The worker in the file `path`.
    ///
    /// # Errors
    /// See [`WorkerConfigError`].
    pub fn load(path: &Path) -> Result<Self, WorkerConfigError> {
        let unreadable = |source| ConfigError::Read { path: path.to_owned(), source };
        let is_root = geteuid().is_root();
        if is_root && let Some(folder) = path.parent() {
            require_roots(folder, &folder.metadata().map_err(unreadable)?)?;
        }
        // A FIFO would be waited for; and whose it is, is asked of the file that is read.
        let file = OpenFile::options().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path).map_err(unreadable)?;
        let found = file.metadata().map_err(unreadable)?;
        if !found.is_file() || found.len() > FILE_MAX_BYTES {
            return Err(unreadable(io::Error::other(format!("it is no file of at most {FILE_MAX_BYTES} bytes"))).into());
        }
        if is_root {
            require_roots(path, &found)?;
        }
        let mut text = String::new();
        file.take(FILE_MAX_BYTES).read_to_string(&mut text).map_err(unreadable)?;
        let config = Self::parse(path, &text)?;
        if is_root && config.user.is_none() { Err(WorkerConfigError::NoUser { path: path.to_owned() }) } else { Ok(config) }
    }

    /// The worker in `text`, which is that of the file `path`.
    ///
    /// # Errors
    /// It has a key that is not one of ours, or a value that cannot stand there.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        toml::from_str(text).map_err(|error| ConfigError::Invalid {
            path: path.to_owned(),
            line: line_of(text, &error),
            problem: error.message().replace('\n', "; "),
        })
    }
}

fn require_roots(path: &Path, found: &std::fs::Metadata) -> Result<(), WorkerConfigError> {
    let is_roots = found.uid() == 0 && found.mode() & WRITABLE_BY_OTHERS == 0;
    if is_roots { Ok(()) } else { Err(WorkerConfigError::Writable { path: path.to_owned() }) }
}

fn one() -> usize {
    1
}

fn queue_max() -> usize {
    1000
}

fn queue_max_bytes() -> usize {
    64 << 20
}

fn bytes_max() -> usize {
    512 * 1024
}

fn one_second() -> Duration {
    SECOND
}

fn five_seconds() -> Duration {
    5 * SECOND
}

fn ten_seconds() -> Duration {
    10 * SECOND
}

fn half_a_minute() -> Duration {
    30 * SECOND
}

fn instances<'de, D: Deserializer<'de>>(input: D) -> Result<usize, D::Error> {
    let count = usize::deserialize(input)?;
    if (1..=INSTANCES_MAX).contains(&count) { Ok(count) } else { Err(D::Error::custom(format!("it must be from 1 to {INSTANCES_MAX}"))) }
}

fn bytes<'de, D: Deserializer<'de>>(input: D) -> Result<usize, D::Error> {
    let count = usize::deserialize(input)?;
    if (1..=BYTES_LARGEST).contains(&count) { Ok(count) } else { Err(D::Error::custom(format!("it must be from 1 to {BYTES_LARGEST}"))) }
}

fn maybe_period<'de, D: Deserializer<'de>>(input: D) -> Result<Option<Duration>, D::Error> {
    period::deserialize(input).map(Some)
}

fn variables<'de, D: Deserializer<'de>>(input: D) -> Result<BTreeMap<String, String>, D::Error> {
    let variables = BTreeMap::<String, String>::deserialize(input)?;
    let is_none = |name: &String, value: &String| name.is_empty() || name.contains(['=', '\0']) || value.contains('\0');
    match variables.iter().find(|(name, value)| is_none(name, value)) {
        Some((name, _)) => Err(D::Error::custom(format!("{name:?} cannot be a variable"))),
        None => Ok(variables),
    }
}

fn time_of_day<'de, D: Deserializer<'de>>(input: D) -> Result<Option<u32>, D::Error> {
    let text = String::deserialize(input)?;
    let minutes = text.split_once(':').filter(|(hours, minutes)| hours.len() == 2 && minutes.len() == 2).and_then(|(hours, minutes)| {
        let (hours, minutes) = (hours.parse::<u32>().ok()?, minutes.parse::<u32>().ok().filter(|minutes| *minutes < 60)?);
        Some(hours * 60 + minutes).filter(|time| *time < DAY_MINUTES)
    });
    minutes.map(Some).ok_or_else(|| D::Error::custom("wants a time of the day in UTC, like 03:30"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;

    fn parse(text: &str) -> Result<WorkerConfig, String> {
        WorkerConfig::parse(Path::new("w.toml"), text).map_err(|error| error.to_string())
    }

    #[test]
    fn a_command_is_enough() {
        let worker = parse("command = \"exec ./x\"").unwrap();
        assert_eq!(worker.command.words(), ["/bin/sh", "-c", "--", "exec ./x"]);
        assert_eq!((worker.instances, worker.queue_max, worker.payload_max_bytes), (1, 1000, 512 * 1024));
        assert_eq!(worker.restart, Backoff { least: SECOND, most: 60 * SECOND });
        assert_eq!(parse("command = [\"a\", \"b c\"]").unwrap().command.words(), ["a", "b c"]);
        assert_eq!(parse("command = \"x\"\nrestart_at = \"03:30\"").unwrap().restart_at, Some(210));
    }

    #[test]
    fn an_error_names_the_line_and_what_may_stand_there() {
        for (text, line, what) in [
            ("instances = 2\n", 1, "command"),
            ("command = \"x\"\nintances = 2\n", 2, "unknown field `intances`"),
            ("command = \"x\"\n\ninstances = 0\n", 3, "from 1 to 64"),
            ("command = \"x\"\ninstances = 65\n", 2, "from 1 to 64"),
            ("command = \"\"\n", 1, "names no program"),
            ("command = []\n", 1, "names no program"),
            ("command = 7\n", 1, "a line for /bin/sh"),
            ("command = \"x\"\npayload_max_bytes = 0\n", 2, "from 1 to"),
            ("command = \"x\"\ntask_timeout = \"3\"\n", 2, "not a length of time"),
            ("command = \"x\"\nrestart_at = \"24:00\"\n", 2, "like 03:30"),
            ("command = \"x\"\nrestart_at = \"3:30\"\n", 2, "like 03:30"),
            ("command = \"x\"\nenvironment = { \"A=B\" = \"c\" }\n", 2, "cannot be a variable"),
            ("command = \"x\"\n[health]\nevery = \"1s\"\n", 2, "missing field `command`"),
            ("command = \"x\"\n[limits]\nmemory = 1\n", 3, "unknown field `memory`"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.starts_with(&format!("w.toml:{line}: ")) && error.contains(what), "{text:?}: {error}");
        }
    }
}
