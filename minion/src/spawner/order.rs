//! What the server asks of the spawner, and the replies: one order and one reply a connection, each a line of JSON.

use std::io::{BufRead as _, BufReader, Read as _, Write};
use std::os::unix::net::UnixStream;

use common::job::MinionJobId;
use common::outcome::{Failure, Outcome};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::jobs::MethodRun;
use crate::spool::{CancelRequest, SpoolRequest};

/// The longest line. A request's body has a limit far below, and so has a result.
pub(super) const LINE_MAX_BYTES: u64 = 64 * 1024 * 1024;

/// One wish of the server.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// Run a method now and give its outcome; stop it if the server hangs up. → `Ended`
    Run(MethodRun),
    /// Start a job, unless there is one of that id. → `Started` once its daemon holds it, or `Exists`
    Start(SpoolRequest),
    /// See to it that a job of that id never starts, unless there is one. → `Done` or `Exists`
    Fence(SpoolRequest),
    /// Ask a job's daemon to stop it. → `Done`
    Cancel(MinionJobId, CancelRequest),
    /// Write the outcome of a job whose daemon is dead. → `Done`
    Settle(MinionJobId),
}

/// What the spawner's child says.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// A method has ended.
    Ended(Outcome),
    /// A job has started.
    Started,
    /// There is a job of that id.
    Exists,
    /// As ordered.
    Done,
    /// It was not done, and nothing has changed.
    Refused(Failure),
}

/// Writes one line.
///
/// # Errors
/// The other side is gone.
pub(super) fn send(mut stream: impl Write, message: &impl Serialize) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    stream.write_all(&line)
}

/// Reads one line, within the stream's own time limit.
///
/// # Errors
/// The other side is gone, silent, or says something else.
pub(super) fn receive<T: DeserializeOwned>(stream: &UnixStream) -> std::io::Result<T> {
    let mut line = Vec::new();
    BufReader::new(stream).take(LINE_MAX_BYTES).read_until(b'\n', &mut line)?;
    Ok(serde_json::from_slice(&line)?)
}
