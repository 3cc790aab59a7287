//! What the server asks of the spawner, and the replies: one order and one reply a connection, each a line of JSON.

use std::io::{BufRead as _, BufReader, Read as _, Write};
use std::os::unix::net::UnixStream;

use common::job::MinionJobId;
use common::outcome::{Failure, Outcome};
use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::jobs::MethodRun;
use crate::spool::{CancelRequest, Forgotten, SpoolRequest};

/// The longest line. A request's body has a limit far below, and so has a result.
pub(super) const LINE_MAX_BYTES: u64 = 64 * 1024 * 1024;

/// One wish of the server.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// Run a method now and give its outcome; stop it if the server hangs up. → `Ended`
    Run(MethodRun),
    /// Start a job, unless there is one of that id. → `Started` or `Exists`
    Start(SpoolRequest),
    /// Write a job down that is to wait for its turn, unless there is one of that id. → `Done` or `Exists`
    Enqueue(SpoolRequest),
    /// Start a job that has waited. → `Started`, or `Exists` if it waits no more
    Launch(MinionJobId),
    /// See to it that a job of that id never starts, unless there is one. → `Done` or `Exists`
    Fence(SpoolRequest),
    /// Have a job stopped: by its daemon, or, if it waits, by never starting it. → `Done`
    Cancel(MinionJobId, CancelRequest),
    /// Write the outcome of a job whose daemon is dead, or whose outcome cannot be read. → `Done`
    Settle(MinionJobId),
    /// Remove the spools of jobs that have ended, once it is written down that they are forgotten. → `Removed`
    Remove(Vec<MinionJobId>, Forgotten),
}

/// What the spawner's child says.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// A method has ended.
    Ended(Outcome),
    /// A job's method is about to run, since then.
    Started(Timestamp),
    /// There is a job of that id.
    Exists,
    /// These spools are not there any more.
    Removed(Vec<MinionJobId>),
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
