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
}

/// One call.
pub(super) struct Errand<'s> {
    submitter: &'s Submitter,
    envelope: Envelope,
    kind: Kind,
    /// How long the answer may take.
    within: Duration,
}

/// A wait for jobs. It changes nothing: it is said again until it is answered, as another call each time, because it may last for days.
pub(super) struct Wait<'s> {
    submitter: &'s Submitter,
    ids: &'s [MinionJobId],
    /// Until when; none: for ever.
    until: Option<Instant>,
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
        let call_id = CallId::new(service::fresh_id(), 1);
        let start_before = Timestamp::now().checked_add(START_WITHIN).unwrap_or(Timestamp::MAX);
        let envelope = Envelope { call_id, caller, audience, method, args, start_before, limit_ms };
        Errand { submitter: self, envelope, kind, within: within.saturating_add(ANSWER_GRACE) }
    }

    /// The wait for jobs, no longer than `until`.
    pub(super) fn wait<'s>(&'s self, ids: &'s [MinionJobId], until: Option<Instant>) -> Wait<'s> {
        Wait { submitter: self, ids, until }
    }
}

impl<'s> Wait<'s> {
    /// How the jobs stand once they have ended or the time is over; none if nobody has answered by then, for the reason that `tell` hears. It hears of a server
    /// that is away for longer than other calls try it, too, and only once: whoever waits without an end goes on waiting.
    pub(super) async fn run(&self, tell: impl Fn(&str)) -> Option<Answer<Value>> {
        let (mut heard_at, mut is_told) = (Instant::now(), false);
        loop {
            let asked_at = Instant::now();
            let problem = match self.ask().await {
                Ok(answer) => return Some(answer),
                Err(problem) => problem,
            };
            // What lasted so long was a wait with a server that listened.
            if asked_at.elapsed() >= PATIENCE {
                heard_at = Instant::now();
            }
            let socket = self.submitter.socket.display();
            if self.until.is_some_and(|until| Instant::now() >= until) {
                tell(&format!("the time is over, and how the jobs stand is not known: the minion at {socket} has not said it: {problem}"));
                return None;
            }
            if !is_told && heard_at.elapsed() >= PATIENCE {
                is_told = true;
                tell(&format!("the minion cannot be asked at {socket}, and is tried on: {problem}; is `minion serve` running?"));
            }
            sleep(RETRY_PAUSE).await;
        }
    }

    /// Asks once. What is no answer is a problem: also that there is no place, or that the server is to end.
    async fn ask(&self) -> Result<Answer<Value>, String> {
        let (errand, mut was_sent) = (self.errand(), false);
        let asked = errand.ask(&mut was_sent);
        let answered = match self.until {
            Some(_) => timeout(errand.within, asked).await.map_err(|_| "no answer came in time".to_owned())?,
            None => asked.await,
        };
        match answered.map_err(|error| error.to_string())? {
            Answer::Error(failure) if is_without_place(&failure) => Err(failure.message),
            answer => Ok(answer),
        }
    }

    /// The call that asks for what is left of the time.
    fn errand(&self) -> Errand<'s> {
        let left = self.until.map(|until| until.saturating_duration_since(Instant::now()));
        let args = match left {
            Some(left) => json!({ "ids": self.ids, "wait_ms": u32::try_from(left.as_millis()).unwrap_or(u32::MAX) }),
            None => json!({ "ids": self.ids }),
        };
        self.submitter.errand(Kind::Call, "jobs.wait".to_owned(), Arguments::Json(args), None, left.unwrap_or_default())
    }
}

impl Errand<'_> {
    /// What comes of it. A server that is being started again is waited for; and a job, of which no more than one is ever started, is asked for again
    /// where no answer came.
    pub(super) async fn run(&self) -> Answer<Value> {
        let deadline = Instant::now() + PATIENCE;
        let mut was_sent = false;
        loop {
            let problem = match timeout(self.within, self.ask(&mut was_sent)).await {
                Ok(Ok(Answer::Error(failure))) if is_without_place(&failure) => failure.message,
                Ok(Ok(answer)) => return answer,
                Ok(Err(error)) => error.to_string(),
                Err(_) => format!("no answer came within {:?}", self.within),
            };
            if was_sent && self.kind == Kind::Call || Instant::now() >= deadline {
                return Answer::Error(self.silence(was_sent, &problem));
            }
            sleep(RETRY_PAUSE).await;
        }
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
        let call = serde_json::to_string(&self.envelope)?;
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
