//! One call of a job's to its host's server: said, tried again where that does no harm, and its answer heard. It prints nothing.

use std::env;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::identity::{CallerName, MinionName};
use common::job::{CallId, MinionJobId};
use common::outcome::{ErrorCode, Failure};
use common::protocol::{Arguments, Envelope, START_WITHIN};
use common::shown::chain;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep, timeout};

use super::{Answer, NO_PLACE, Submission};
use crate::call::{Proof, Token};
use crate::config::Config;
use crate::variables;

/// How long a server that is being started again, or has no place, is tried again.
const PATIENCE: Duration = Duration::from_secs(30);
/// The pause between two attempts.
const RETRY_PAUSE: Duration = Duration::from_millis(200);

/// How much longer than the method's limit its answer is waited for: the host enforces the limit, and needs a moment to say so.
const ANSWER_GRACE: Duration = Duration::from_secs(5);

/// Why nothing can be submitted.
#[derive(Debug, thiserror::Error)]
pub(super) enum SubmitError {
    /// The process belongs to no job.
    #[error(
        "{0} is not in the environment: `minion submit` and `minion wait` are for what a job runs, and call for the job's caller; from outside a job, call with \
         `overlord`"
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

/// The job that this process belongs to, as it submits.
pub(super) struct Submitter {
    token: Token,
    caller: CallerName,
    minion: MinionName,
    socket: PathBuf,
}

/// What becomes of a call that was said and not answered.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// It may have run: it is not said again.
    Call,
    /// It starts a job, and no more than one, however often it is said.
    Job,
    /// It changes nothing: it is said again as long as somebody listens, as another call each time, because it may last for days; until then, if that is
    /// said.
    Wait(Option<Instant>),
}

/// One call.
pub(super) struct Errand<'s> {
    submitter: &'s Submitter,
    envelope: Envelope,
    kind: Kind,
    /// How long the answer may take; none: for ever.
    within: Option<Duration>,
}

impl Submitter {
    /// The job of this process's environment, which submits to the server of the configuration `config`, or else to its own.
    pub(super) fn of_environment(config: Option<&Path>) -> Result<Self, SubmitError> {
        let (token, caller, minion) = (variable(variables::TOKEN)?, variable(variables::CALLER)?, variable(variables::NAME)?);
        let socket = match config {
            Some(file) => Config::load(file).map_err(|error| SubmitError::Config(chain(&error)))?.submit_socket(),
            None => text(variables::SUBMIT_SOCKET)?.into(),
        };
        Ok(Self { token, caller, minion, socket })
    }

    /// A call that the host answers `within` a time, from its start on.
    pub(super) fn errand(&self, kind: Kind, method: String, args: Arguments, limit: Option<Duration>, within: Duration) -> Errand<'_> {
        let limit_ms = limit.map(|limit| u64::try_from(limit.as_millis()).unwrap_or(u64::MAX));
        let (caller, audience) = (self.caller.clone(), vec![self.minion.clone()]);
        let (call_id, start_before) = (fresh_call_id(), start_before());
        let envelope = Envelope { call_id, caller, audience, method, args, start_before, limit_ms };
        Errand { submitter: self, envelope, kind, within: Some(within.saturating_add(ANSWER_GRACE)) }
    }

    /// The wait for jobs, until then at most.
    pub(super) fn wait(&self, ids: &[MinionJobId], until: Option<Instant>) -> Errand<'_> {
        let args = Arguments::Json(json!({ "ids": ids }));
        let errand = self.errand(Kind::Wait(until), "jobs.wait".to_owned(), args, None, Duration::ZERO);
        Errand { within: None, ..errand }
    }
}

fn fresh_call_id() -> CallId {
    CallId::new(service::fresh_id(), 1)
}

fn start_before() -> Timestamp {
    Timestamp::now().checked_add(START_WITHIN).unwrap_or(Timestamp::MAX)
}

impl Errand<'_> {
    /// What comes of it. A server that is being started again is waited for; and a job, of which no more than one is ever started, is asked for again
    /// where no answer came.
    pub(super) async fn run(&self) -> Answer<Value> {
        let mut deadline = Instant::now() + PATIENCE;
        let mut was_sent = false;
        loop {
            let left = self.left();
            let within = self.within.or(left.map(|left| left.saturating_add(ANSWER_GRACE)));
            let asked = match within {
                Some(within) => timeout(within, self.ask(&mut was_sent)).await.map_err(|_| format!("no answer came within {within:?}")),
                None => Ok(self.ask(&mut was_sent).await),
            };
            let (problem, was_heard) = match asked {
                Ok(Ok(Answer::Error(failure))) if is_without_place(&failure) => (failure.message, true),
                Ok(Ok(answer)) => return answer,
                Ok(Err(error)) => (error.to_string(), was_sent),
                Err(problem) => (problem, was_sent),
            };
            if matches!(self.kind, Kind::Wait(_)) && was_heard {
                (deadline, was_sent) = (Instant::now() + PATIENCE, false);
            }
            let is_over = Instant::now() >= deadline || left.is_some_and(|left| left.is_zero());
            if was_sent && self.kind == Kind::Call || is_over {
                return Answer::Error(self.silence(was_sent, &problem));
            }
            sleep(RETRY_PAUSE).await;
        }
    }

    /// For how long it is waited still, if it is a wait that ends.
    fn left(&self) -> Option<Duration> {
        let Kind::Wait(until) = self.kind else { return None };
        until.map(|until| until.saturating_duration_since(Instant::now()))
    }

    async fn ask(&self, was_sent: &mut bool) -> io::Result<Answer<Value>> {
        let mut stream = self.connect().await?;
        let (line, mut said) = (self.line()?, Vec::new());
        let sent_before = std::mem::replace(was_sent, true);
        // A server that has no place may have said so and gone.
        let sent = stream.write_all(&line).await;
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

    fn line(&self) -> io::Result<Vec<u8>> {
        let call = match self.kind {
            Kind::Call | Kind::Job => serde_json::to_string(&self.envelope)?,
            Kind::Wait(_) => {
                let mut envelope = Envelope { call_id: fresh_call_id(), start_before: start_before(), ..self.envelope.clone() };
                if let (Arguments::Json(Value::Object(args)), Some(left)) = (&mut envelope.args, self.left()) {
                    args.insert("wait_ms".to_owned(), json!(u32::try_from(left.as_millis()).unwrap_or(u32::MAX)));
                }
                serde_json::to_string(&envelope)?
            }
        };
        let Proof::Token { job, code } = self.submitter.token.proof(&call) else { return Ok(Vec::new()) };
        let mut line = serde_json::to_vec(&Submission { call, job, code })?;
        line.push(b'\n');
        Ok(line)
    }

    /// Waits for its turn where many connect at once, as only a thread can.
    async fn connect(&self) -> io::Result<UnixStream> {
        let socket = self.submitter.socket.clone();
        let connected = tokio::task::spawn_blocking(move || std::os::unix::net::UnixStream::connect(socket)).await;
        let stream = connected.map_err(io::Error::other)??;
        stream.set_nonblocking(true)?;
        UnixStream::from_std(stream)
    }

    fn silence(&self, was_sent: bool, problem: &str) -> Failure {
        let socket = self.submitter.socket.display();
        if self.left().is_some() {
            let message =
                format!("the minion that listens at {socket} has not said how the jobs stand: {problem}; `minion wait` may ask again");
            return Failure::new(ErrorCode::TooEarly, message);
        }
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

fn text(name: &'static str) -> Result<String, SubmitError> {
    env::var(name).ok().filter(|text| !text.is_empty()).ok_or(SubmitError::NoJob(name))
}

fn variable<T: std::str::FromStr<Err: std::fmt::Display>>(name: &'static str) -> Result<T, SubmitError> {
    text(name)?.parse().map_err(|error: T::Err| SubmitError::Variable(name, error.to_string()))
}
