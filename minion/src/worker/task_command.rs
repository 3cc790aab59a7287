//! `minion task`: what a worker written in a shell types to fetch a task and to return what came of it. It says one line to its worker's daemon.

use std::fs;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow, bail};
use clap::Subcommand;
use common::outcome::{bytes_value, value_bytes};
use serde_json::{Value, json};

use crate::variables;

/// What is said.
#[derive(Debug, Subcommand)]
pub(crate) enum Words {
    /// Wait for a task, write its payload into a file, and print its id.
    Fetch {
        /// Where the payload goes, byte for byte.
        payload: PathBuf,
    },
    /// Return what came of a task: what stands in a file, or that it failed.
    Return {
        /// The task's id.
        id: String,
        /// What it came to; text stays text, other bytes travel as base64.
        #[arg(required_unless_present = "error")]
        result: Option<PathBuf>,
        /// It failed, for this reason.
        #[arg(long, value_name = "MESSAGE", conflicts_with = "result")]
        error: Option<String>,
    },
    /// Say how far a task is.
    Progress {
        /// The task's id.
        id: String,
        /// From 0 to 1.
        #[arg(allow_hyphen_values = true)]
        fraction: String,
        /// What it is doing.
        #[arg(default_value = "")]
        message: String,
    },
}

/// Says it, and does what the answer is for.
///
/// # Errors
/// This is no instance of a worker, or the daemon says no.
pub(crate) fn run(words: &Words) -> anyhow::Result<()> {
    match words {
        Words::Fetch { payload } => fetch(payload),
        Words::Return { id, result: Some(file), .. } => {
            let bytes = fs::read(file).with_context(|| format!("reading {}", file.display()))?;
            ask("task.return", &json!({ "task_id": id, "result": bytes_value(&bytes) })).map(drop)
        }
        Words::Return { id, error, .. } => {
            let error = json!({ "message": error.as_deref().unwrap_or_default(), "type": "task" });
            ask("task.return", &json!({ "task_id": id, "error": error })).map(drop)
        }
        Words::Progress { id, fraction, message } => match fraction.parse() {
            Ok(fraction) if f64::is_finite(fraction) => {
                ask("task.progress", &json!({ "task_id": id, "fraction": fraction, "message": message })).map(drop)
            }
            // As of every method: what is no number is passed over.
            _ => Ok(()),
        },
    }
}

fn fetch(file: &Path) -> anyhow::Result<()> {
    let task = ask("task.fetch", &json!({}))?;
    let payload = match task.get("payload") {
        Some(payload) => payload.get("text").cloned().or_else(|| Some(payload.clone())).and_then(value_bytes),
        None => None,
    };
    let (Some(id), Some(payload)) = (task.get("task_id").and_then(Value::as_str), payload) else {
        bail!("the daemon gave something else than a task: {task}");
    };
    fs::write(file, payload).with_context(|| format!("writing {}", file.display()))?;
    writeln!(io::stdout(), "{id}").context("printing the task's id")
}

/// One request and its answer, for which there is no limit: a task comes when it comes.
fn ask(method: &str, params: &Value) -> anyhow::Result<Value> {
    let name = variables::WORKER_SOCKET;
    let socket = std::env::var_os(name).ok_or_else(|| anyhow!("{name} is not set: an instance of a worker alone can ask for tasks"))?;
    let mut stream = UnixStream::connect(&socket).with_context(|| format!("connecting to {}", Path::new(&socket).display()))?;
    let request = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params });
    stream.write_all(format!("{request}\n").as_bytes()).context("asking the worker's daemon")?;
    for line in BufReader::new(stream).lines() {
        let mut answer: Value = serde_json::from_str(&line.context("hearing the worker's daemon")?).context("reading its answer")?;
        if let Some(error) = answer.get("error").filter(|error| !error.is_null()) {
            bail!("{method}: {}", error.get("message").and_then(Value::as_str).unwrap_or("it says no, and not why"));
        }
        if answer.get("id").is_some_and(|id| *id == 1) {
            return Ok(answer.get_mut("result").map(Value::take).unwrap_or_default());
        }
    }
    bail!("{method}: the worker's daemon hung up")
}
