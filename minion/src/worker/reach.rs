//! A method's side of a worker: one connection to each daemon, made before the method's process becomes another user, who could not make it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::Shutdown;
use std::os::fd::{AsRawFd as _, RawFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use common::outcome::{ErrorCode, Failure};
use common::shown::chain;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Places;
use super::config::WorkerConfig;
use super::name::WorkerName;
use crate::acl::Scope;
use crate::process;

/// How long a daemon that is about to start is waited for: the spawner looks every second.
const START_PATIENCE: Duration = Duration::from_secs(5);
/// How long a daemon may take to say how it is, or to take a wish.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
const START_LOOK_EVERY: Duration = Duration::from_millis(20);
/// How long a daemon that ends is followed by the next, and how often that is tried: its instances may take their `stop_grace`.
const NEXT_DAEMON_TIMEOUT: Duration = Duration::from_secs(15);
const NEXT_DAEMON_PAUSE: Duration = Duration::from_millis(50);

/// What a worker returned.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// Of the task.
    pub task_id: String,
    /// Any JSON.
    pub result: Value,
}

/// Why there is no connection to a worker's daemon.
#[derive(Debug, thiserror::Error)]
pub enum ReachError {
    /// Its file cannot be used.
    #[error("{0}")]
    Config(String),
    /// Nobody listens.
    #[error("its daemon does not run: {0}; the minion's log says more")]
    NotRunning(String),
}

/// For whom a worker is asked for something, and whose tasks he may see and stop, as the rules say.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Asker {
    /// The caller's name.
    pub by: String,
    /// Whose.
    #[serde(default)]
    pub scope: Scope,
}

/// The workers of this host, as far as they can be reached.
#[derive(Debug)]
pub struct Reach {
    places: Places,
    asker: Asker,
    lines: BTreeMap<WorkerName, Result<RefCell<Line>, ReachError>>,
    /// Files that make no worker, and why.
    strange: Vec<(String, String)>,
}

/// One connection.
#[derive(Debug)]
struct Line {
    stream: BufReader<UnixStream>,
    last_id: u64,
}

/// What comes over it.
#[derive(Debug, Deserialize)]
struct Heard {
    #[serde(default)]
    id: Value,
    result: Option<Value>,
    error: Option<Failure>,
    method: Option<String>,
    #[serde(default)]
    params: Progress,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Progress {
    request: Value,
    fraction: f64,
    message: String,
}

impl Reach {
    /// Connects to every worker, for `asker`; the one that is `wanted` is waited for where it is about to start.
    #[must_use]
    pub fn open(places: &Places, asker: Asker, wanted: Option<&str>) -> Self {
        let (workers, strange) = places.list();
        let connect = |worker: WorkerName| {
            let patience = if wanted == Some(worker.as_str()) { START_PATIENCE } else { Duration::ZERO };
            let line = connect(places, &worker, patience).map(RefCell::new);
            (worker, line)
        };
        Self { places: places.clone(), asker, lines: workers.into_iter().map(connect).collect(), strange }
    }

    /// The files that it has open.
    pub fn files(&self) -> impl Iterator<Item = RawFd> {
        self.lines.values().flatten().map(|line| line.borrow().stream.get_ref().as_raw_fd())
    }

    /// Has a task done, and waits for it. `progress` hears how far it is. Where a daemon ends before the task has begun, the next one gets it.
    ///
    /// # Errors
    /// What the worker says; or that it was refused, was stopped, or died.
    pub fn run(&self, worker: &str, payload: &Value, progress: &dyn Fn(f64, &str)) -> Result<Answer, Failure> {
        let params = json!({ "payload": payload, "by": self.asker.by });
        let mut give_up_at = None;
        let answer = loop {
            match self.ask(worker, "task.run", &params, None, progress) {
                Err(failure) if failure.is(ErrorCode::Undelivered) => {
                    let give_up_at = *give_up_at.get_or_insert_with(|| Instant::now() + NEXT_DAEMON_TIMEOUT);
                    if Instant::now() >= give_up_at {
                        return Err(failure);
                    }
                    std::thread::sleep(NEXT_DAEMON_PAUSE);
                    self.hang_up(worker)?;
                }
                answered => break answered?,
            }
        };
        serde_json::from_value(answer).map_err(|error| Failure::new(ErrorCode::Internal, format!("{worker}: its daemon's answer: {error}")))
    }

    /// Stops a task.
    ///
    /// # Errors
    /// There is none of that id, or it is another's, and his must be let alone.
    pub fn cancel(&self, worker: &str, task: &str) -> Result<Value, Failure> {
        self.ask(
            worker,
            "task.cancel",
            &json!({ "task_id": task, "by": self.asker.by, "scope": self.asker.scope }),
            Some(ANSWER_TIMEOUT),
            &|_, _| (),
        )
    }

    /// How the workers are, or the one of that name.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn list(&self, worker: Option<&str>) -> Result<Value, Failure> {
        let names: Vec<&WorkerName> = match worker {
            Some(name) => vec![self.find(name)?],
            None => self.lines.keys().collect(),
        };
        let report = |name: &WorkerName| match self.ask(name.as_str(), "worker.list", &json!(self.asker), Some(ANSWER_TIMEOUT), &|_, _| ())
        {
            Ok(report) => report,
            Err(failure) => json!({ "state": "down", "problem": failure.message, "instances": [] }),
        };
        let mut all: serde_json::Map<String, Value> = names.into_iter().map(|name| (name.to_string(), report(name))).collect();
        if worker.is_none() {
            let strange = |(name, why): &(String, String)| (name.clone(), json!({ "state": "down", "problem": why, "instances": [] }));
            all.extend(self.strange.iter().map(strange));
        }
        Ok(Value::Object(all))
    }

    /// The next question goes to whoever listens then.
    fn hang_up(&self, worker: &str) -> Result<(), Failure> {
        if let Some(Ok(line)) = self.lines.get(self.find(worker)?) {
            let _gone = line.borrow().stream.get_ref().shutdown(Shutdown::Both);
        }
        Ok(())
    }

    fn find(&self, worker: &str) -> Result<&WorkerName, Failure> {
        let found = worker.parse().ok().and_then(|name: WorkerName| self.lines.get_key_value(&name)).map(|(name, _)| name);
        found.ok_or_else(|| {
            let known: Vec<&str> = self.lines.keys().map(WorkerName::as_str).collect();
            let known = if known.is_empty() { "this host has none".to_owned() } else { format!("there are {}", known.join(", ")) };
            let shown: String = worker.escape_debug().take(super::name::NAME_MAX_BYTES).collect();
            let file = self.places.configs.join(format!("{shown}{}", super::SUFFIX));
            let message = format!("no worker {shown}: {known}; the file {} would make it one", file.display());
            Failure::new(ErrorCode::InvalidArguments, message)
        })
    }

    /// `within` is how long an answer may take; none: as long as this method.
    fn ask(
        &self,
        worker: &str,
        method: &str,
        params: &Value,
        within: Option<Duration>,
        progress: &dyn Fn(f64, &str),
    ) -> Result<Value, Failure> {
        let name = self.find(worker)?;
        let line = match self.lines.get(name) {
            Some(Ok(line)) => line,
            Some(Err(error)) => return Err(Failure::of_kind("worker_down", format!("{name}: {error}"))),
            None => return Err(Failure::of_kind("worker_down", format!("{name}: it is gone"))),
        };
        let mut line = line.borrow_mut();
        let sent = line.say(method, params);
        if sent.is_err() {
            // Nothing of it was heard: its daemon is another one by now.
            *line =
                connect(&self.places, name, START_PATIENCE).map_err(|error| Failure::of_kind("worker_down", format!("{name}: {error}")))?;
            line.say(method, params)
                .map_err(|error| Failure::of_kind("worker_down", format!("{name}: its daemon does not listen: {error}")))?;
        }
        if line.stream.get_ref().set_read_timeout(within).is_err() {
            return Err(Failure::of_kind("worker_down", format!("{name}: its daemon hung up")));
        }
        line.hear(name, progress)
    }
}

impl Line {
    fn say(&mut self, method: &str, params: &Value) -> io::Result<()> {
        self.last_id += 1;
        let mut text = serde_json::to_vec(&json!({ "jsonrpc": "2.0", "id": self.last_id, "method": method, "params": params }))?;
        text.push(b'\n');
        self.stream.get_mut().write_all(&text)
    }

    /// The answer to what was said last. It is waited for as long as the method may take: what limits that kills this process.
    fn hear(&mut self, worker: &WorkerName, progress: &dyn Fn(f64, &str)) -> Result<Value, Failure> {
        let died = |why: String| {
            let message = format!("{worker}: its daemon died, with the task: {why}; whether it was begun is not known");
            Failure::new(ErrorCode::Crashed, message).with_data(json!({ "type": "worker_died" }))
        };
        loop {
            let mut text = Vec::new();
            match self.stream.read_until(b'\n', &mut text) {
                Ok(0) => return Err(died("it hung up".to_owned())),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    // What comes of it later is in nobody's way: the next question finds the line cut.
                    let _cut = self.stream.get_ref().shutdown(Shutdown::Both);
                    let message = format!("{worker}: its daemon does not answer within {} s", ANSWER_TIMEOUT.as_secs());
                    return Err(Failure::of_kind("worker_down", message));
                }
                Err(error) => return Err(died(error.to_string())),
                Ok(_) => {}
            }
            let heard: Heard = serde_json::from_slice(&text).map_err(|error| died(format!("it said something else: {error}")))?;
            if heard.method.is_some() {
                if heard.params.request == self.last_id {
                    progress(heard.params.fraction, &heard.params.message);
                }
            } else if heard.id == self.last_id || heard.id.is_null() {
                return heard.error.map_or_else(|| Ok(heard.result.unwrap_or_default()), Err);
            }
        }
    }
}

fn connect(places: &Places, worker: &WorkerName, patience: Duration) -> Result<Line, ReachError> {
    let deadline = Instant::now() + patience;
    loop {
        let error = match UnixStream::connect(places.control(worker)) {
            Ok(stream) => match process::move_away(stream.into()) {
                Ok(stream) => return Ok(Line { stream: BufReader::new(stream.into()), last_id: 0 }),
                Err(error) => error,
            },
            Err(error) => error,
        };
        if let Err(error) = WorkerConfig::load(&places.file(worker)) {
            return Err(ReachError::Config(chain(&error)));
        }
        if Instant::now() >= deadline {
            let why = std::fs::read_to_string(places.problem(worker)).unwrap_or_else(|_| error.to_string());
            return Err(ReachError::NotRunning(why));
        }
        std::thread::sleep(START_LOOK_EVERY);
    }
}
