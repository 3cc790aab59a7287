//! `minion submit`: what a job types to call a method of its own host, or to start another job there. It knows what stands in its environment, and
//! asks nobody but the host's server.

use std::env;
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use common::identity::{CallerName, MinionName};
use common::job::CallId;
use common::method::MethodName;
use common::outcome::{ErrorCode, Failure, Outcome};
use common::period;
use common::protocol::{ASYNC_PREFIX, Accepted, Arguments, Envelope, START_WITHIN};
use common::shown::{SAID_MAX_LETTERS, chain, harmless_line};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep, timeout};

use super::{Answer, NO_PLACE, Submission};
use crate::call::{Proof, Token};
use crate::config::Config;
use crate::variables;

/// The statuses of the process, as the overlord has them.
const USAGE: u8 = 64;
const INTERRUPTED: u8 = 130;

/// The largest JSON that is read from standard input.
const STDIN_MAX_BYTES: u64 = 64 << 20;

/// How long a server that is being started again, or has no place, is tried again.
const PATIENCE: Duration = Duration::from_secs(30);
/// The pause between two attempts.
const RETRY_PAUSE: Duration = Duration::from_millis(200);

/// How much longer than the method's limit its answer is waited for: the host enforces the limit, and needs a moment to say so.
const ANSWER_GRACE: Duration = Duration::from_secs(5);

/// How long a method may take, or the host to take on a job, if nothing is said.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(60);

/// What is submitted.
#[derive(Debug, clap::Args)]
pub struct Words {
    /// What to run on this host
    #[arg(value_name = "MODULE.METHOD")]
    method: MethodName,
    /// The method's arguments; what begins with `-` stands behind a `--`
    #[arg(value_name = "ARG", allow_negative_numbers = true)]
    args: Vec<String>,
    /// The arguments as a JSON list or object; `-` reads it from standard input
    #[arg(long, value_name = "JSON", conflicts_with = "args")]
    json: Option<String>,
    /// Start a job, and do not wait for it; `minion submit jobs.status ID` says how it stands
    #[arg(long = "async")]
    as_job: bool,
    /// How long the method may take, or the host to accept the job [default: 60s]
    #[arg(long, value_name = "DURATION", value_parser = period::parse)]
    timeout: Option<Duration>,
    /// How long the job may run [default: as long as the host lets it]
    #[arg(long, value_name = "DURATION", value_parser = period::parse, requires = "as_job")]
    job_timeout: Option<Duration>,
}

/// Why nothing can be submitted.
#[derive(Debug, thiserror::Error)]
enum SubmitError {
    /// The process belongs to no job.
    #[error(
        "{0} is not in the environment: `minion submit` is for what a job runs, and calls for the job's caller; from outside a job, call with `overlord`"
    )]
    NoJob(&'static str),
    /// A variable holds what the minion did not put there.
    #[error("{0} in the environment is not what the minion has set it to: {1}")]
    Variable(&'static str, String),
    /// The arguments are none.
    #[error("{0}")]
    Arguments(String),
    /// The configuration does not say where the socket is.
    #[error("{0}")]
    Config(String),
}

/// Where and what to submit, and for how long to wait.
struct Errand {
    socket: PathBuf,
    line: Vec<u8>,
    is_job: bool,
    within: Duration,
}

/// Submits what the words say to the server of the configuration `config`, or else of the job that this process belongs to, and prints what comes of
/// it: one JSON line.
#[must_use]
pub fn run(config: Option<&Path>, words: Words) -> ExitCode {
    let errand = match Errand::read(config, words) {
        Ok(errand) => errand,
        Err(error) => {
            say(&error.to_string());
            return USAGE.into();
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let done = runtime.map(|runtime| {
        let answer = runtime.block_on(async {
            tokio::select! {
                answer = errand.run() => Some(answer),
                _ = tokio::signal::ctrl_c() => None,
            }
        });
        // A thread may be connecting still.
        runtime.shutdown_background();
        answer
    });
    match done {
        Ok(Some(answer)) => print(answer),
        Ok(None) => INTERRUPTED.into(),
        Err(error) => {
            say(&format!("waiting for the answer: {error}"));
            ExitCode::FAILURE
        }
    }
}

impl Errand {
    fn read(config: Option<&Path>, words: Words) -> Result<Self, SubmitError> {
        let token: Token = variable(variables::TOKEN)?;
        let caller: CallerName = variable(variables::CALLER)?;
        let minion: MinionName = variable(variables::NAME)?;
        let socket = match config {
            Some(file) => Config::load(file).map_err(|error| SubmitError::Config(chain(&error)))?.submit_socket(),
            None => text(variables::SUBMIT_SOCKET)?.into(),
        };
        let Words { method, args, json, as_job, timeout, job_timeout } = words;
        let timeout = timeout.unwrap_or(DEFAULT_TIMEOUT);
        let limit = if as_job { job_timeout } else { Some(timeout) };
        let envelope = Envelope {
            call_id: CallId::new(service::fresh_id(), 1),
            caller,
            audience: vec![minion],
            method: format!("{}{method}", if as_job { ASYNC_PREFIX } else { "" }),
            args: arguments(args, json.as_deref())?,
            start_before: Timestamp::now().checked_add(START_WITHIN).unwrap_or(Timestamp::MAX),
            limit_ms: limit.map(|limit| u64::try_from(limit.as_millis()).unwrap_or(u64::MAX)),
        };
        let line = serde_json::to_string(&envelope).and_then(|call| line(&token, call));
        let line = line.map_err(|error| SubmitError::Arguments(format!("the call cannot be written as JSON: {error}")))?;
        Ok(Self { socket, line, is_job: as_job, within: timeout.saturating_add(ANSWER_GRACE) })
    }

    /// What comes of it. A server that is being started again is waited for; and a job, of which no more than one is ever started, is asked for again
    /// where no answer came.
    async fn run(&self) -> Answer<Value> {
        let deadline = Instant::now() + PATIENCE;
        let mut was_sent = false;
        loop {
            let problem = match timeout(self.within, self.ask(&mut was_sent)).await {
                Ok(Ok(Answer::Error(failure))) if is_without_place(&failure) => failure.message,
                Ok(Ok(answer)) => return answer,
                Ok(Err(error)) => error.to_string(),
                Err(_) => format!("no answer came within {:?}", self.within),
            };
            if was_sent && !self.is_job || Instant::now() >= deadline {
                return Answer::Error(self.silence(was_sent, &problem));
            }
            sleep(RETRY_PAUSE).await;
        }
    }

    async fn ask(&self, was_sent: &mut bool) -> io::Result<Answer<Value>> {
        let mut stream = self.connect().await?;
        let mut said = Vec::new();
        let sent_before = std::mem::replace(was_sent, true);
        // A server that has no place may have said so and gone.
        let sent = stream.write_all(&self.line).await;
        let read = BufReader::new(&mut stream).read_until(b'\n', &mut said).await;
        let answer = match (sent, read) {
            (_, Ok(1..)) => serde_json::from_slice(&said)?,
            (Err(error), _) | (Ok(()), Err(error)) => return Err(error),
            (Ok(()), Ok(0)) => return Err(io::ErrorKind::UnexpectedEof.into()),
        };
        // Nothing of what was said was read then.
        *was_sent = sent_before || !matches!(&answer, Answer::Error(failure) if is_without_place(failure));
        Ok(answer)
    }

    /// Waits for its turn where many connect at once, as only a thread can.
    async fn connect(&self) -> io::Result<UnixStream> {
        let socket = self.socket.clone();
        let connected = tokio::task::spawn_blocking(move || std::os::unix::net::UnixStream::connect(socket)).await;
        let stream = connected.map_err(io::Error::other)??;
        stream.set_nonblocking(true)?;
        UnixStream::from_std(stream)
    }

    fn silence(&self, was_sent: bool, problem: &str) -> Failure {
        let socket = self.socket.display();
        if was_sent {
            let message = format!("the minion that listens at {socket} has not answered: {problem}; whether the call was run is not known");
            return Failure::new(ErrorCode::Lost, message);
        }
        let message = format!("the minion cannot be asked at {socket}: {problem}; is `minion serve` running?");
        Failure::new(ErrorCode::Undelivered, message)
    }
}

fn is_without_place(failure: &Failure) -> bool {
    failure.data.as_ref().and_then(|data| data.get("type")).is_some_and(|kind| kind == NO_PLACE)
}

fn line(token: &Token, call: String) -> serde_json::Result<Vec<u8>> {
    let Proof::Token { job, code } = token.proof(&call) else { return Ok(Vec::new()) };
    let mut line = serde_json::to_vec(&Submission { call, job, code })?;
    line.push(b'\n');
    Ok(line)
}

fn text(name: &'static str) -> Result<String, SubmitError> {
    env::var(name).ok().filter(|text| !text.is_empty()).ok_or(SubmitError::NoJob(name))
}

fn variable<T: std::str::FromStr<Err: std::fmt::Display>>(name: &'static str) -> Result<T, SubmitError> {
    text(name)?.parse().map_err(|error: T::Err| SubmitError::Variable(name, error.to_string()))
}

fn arguments(words: Vec<String>, json: Option<&str>) -> Result<Arguments, SubmitError> {
    let Some(json) = json else { return Ok(Arguments::Words(words)) };
    let mut read = String::new();
    if json == "-" {
        let stdin = io::stdin().lock().take(STDIN_MAX_BYTES).read_to_string(&mut read);
        stdin.map_err(|error| SubmitError::Arguments(format!("reading the arguments from standard input: {error}")))?;
    } else {
        json.clone_into(&mut read);
    }
    Arguments::from_json(&read).map_err(|error| SubmitError::Arguments(error.to_string()))
}

/// Prints what came of it: the result of the call, or the job; a refusal as the outcome that it means.
fn print(answer: Answer<Value>) -> ExitCode {
    let (shown, status) = match answer {
        Answer::Result(result) => {
            let status = status(&result);
            (Ok(result), status)
        }
        Answer::Error(failure) => {
            say(&failure.message);
            let outcome = Outcome::not_run(failure.into_refusal(), Timestamp::now());
            let status = outcome.verdict.state().exit_bit();
            (serde_json::to_value(outcome), status)
        }
    };
    let printed = shown.map_err(io::Error::from).and_then(|shown| writeln!(io::stdout(), "{}", plain_json(&shown)));
    match printed {
        Ok(()) => status.into(),
        Err(error) => {
            say(&format!("printing what came of it: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// The exit status that a result means. Of a bad end is told on stderr, too; what is not understood is shown, and is no success.
fn status(result: &Value) -> u8 {
    if Accepted::deserialize(result).is_ok() {
        return 0;
    }
    let Ok(outcome) = Outcome::deserialize(result) else { return 1 };
    if let Some(error) = outcome.verdict.error() {
        say(&error.message);
    }
    outcome.verdict.state().exit_bit()
}

/// The JSON text, the same to a parser, in letters that do nothing to a terminal. All others can only stand in strings there.
fn plain_json(value: &impl Serialize) -> String {
    let text = serde_json::to_string(value).unwrap_or_default();
    let mut plain = String::with_capacity(text.len());
    for letter in text.chars() {
        if matches!(letter, ' '..='~') {
            plain.push(letter);
        } else {
            letter.encode_utf16(&mut [0; 2]).iter().for_each(|unit| plain.push_str(&format!("\\u{unit:04x}")));
        }
    }
    plain
}

/// Talk, for stderr, fit for a terminal. That nobody hears it changes nothing.
fn say(text: &str) {
    let _unheard = io::stderr().write_all(format!("minion: {}\n", harmless_line(text, SAID_MAX_LETTERS)).as_bytes());
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_printed_is_the_same_json_and_plain() {
        for value in [json!("plain"), json!({ "ü": "\u{9b}31m\u{1b}[0m\n😀\u{202e}" }), json!([1.5, null, "\"\\"])] {
            let text = plain_json(&value);
            assert!(text.bytes().all(|byte| (b' '..=b'~').contains(&byte)), "{text}");
            assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), value);
        }
    }
}
