//! What the server asks of the spawner, and the replies: lines of JSON, a reply to each order. A connection is for one order that does
//! something, or for any number that only look.

use std::io::{self, Read as _, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use common::identity::CallerName;
use common::job::MinionJobId;
use common::outcome::{Failure, Outcome};
use common::protocol::LogPiece;
use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::call::Ask;
use crate::spool::{Glance, Seen};

/// The longest reply. A result has a limit far below.
pub(super) const LINE_MAX_BYTES: u64 = 64 * 1024 * 1024;

/// What is read at once.
const CHUNK_BYTES: usize = 64 * 1024;

/// One wish of the server. Where it is a caller's wish, the order is what he wrote, and what to do follows from that alone.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// Run the method of a call now and give its outcome; stop it if the server hangs up. → `Ended`
    Run(Ask),
    /// Start the job of a call, unless there is one of that id. → `Started` or `Exists`
    Start(Place),
    /// Write down the job of a call, which is to wait for its turn, unless there is one of that id. → `Done` or `Exists`
    Enqueue(Place),
    /// Start a job that has waited. → `Started`, or `Exists` if it waits no more
    Launch(MinionJobId),
    /// Do what a call of `jobs.cancel`, `jobs.fence` or `jobs.delete` asks. → `Done`, `Done` or `Exists`, `Removed`
    Tell(Ask),
    /// Write the outcome of a job whose daemon is dead, or whose outcome cannot be read. → `Done`
    Settle(MinionJobId),
    /// Remove the spools of jobs that have ended and were kept long enough. → `Removed`
    Remove(Vec<MinionJobId>),
    /// Only look.
    Look(Look),
}

/// A job and its place among others.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Place {
    /// The call.
    pub ask: Ask,
    /// By which jobs that wait keep their order.
    pub accepted_at: Timestamp,
}

/// An order that changes nothing.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Look {
    /// Which jobs have a spool? → `Ids`
    Ids,
    /// What do these spools say? → `Seen`
    Spools(Vec<MinionJobId>),
    /// How much has a job written? → `Glance`
    Glance(MinionJobId),
    /// What a call of `jobs.logs` asks. → `Logs`
    Logs(LogsOrder),
    /// See to it that the names of all spools are durable. → `Done`
    Sync,
    /// Whose is this call? → `Bearer`
    Bearer(Ask),
}

/// A call of `jobs.logs`, and what the server knows of the job.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LogsOrder {
    /// The call.
    pub ask: Ask,
    /// The most that each stream's piece may be.
    pub max_bytes: u32,
    /// Nothing more will be written.
    pub is_final: bool,
    /// It has run, so that there are files.
    pub has_run: bool,
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
    /// The jobs that have a spool, in no order.
    Ids(Vec<MinionJobId>),
    /// What the first of the spools that were asked after say; none where there is no spool, or why it cannot be read. They may be fewer than
    /// were asked after.
    Seen(Vec<Result<Option<Seen>, String>>),
    /// How much a job has written.
    Glance(Glance),
    /// A call's caller, by name and by the SHA-256 of his certificate.
    Bearer(CallerName, String),
    /// What a job has written: stdout and stderr. The glance was taken before.
    Logs(Glance, [LogPiece; 2]),
    /// It was not done, and nothing has changed.
    Refused(Failure),
}

/// Writes one line.
///
/// # Errors
/// The other side is gone.
pub(super) fn send(mut stream: impl Write, message: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    stream.write_all(&line)
}

/// Reads one line of at most `max_bytes`, which must be there `within` a time; none at the stream's end. Nobody says a second line before he has the
/// reply to the first.
///
/// # Errors
/// The other side is slow, says more than that, or says something else.
pub(super) fn receive<T: DeserializeOwned>(mut stream: &UnixStream, within: Duration, max_bytes: usize) -> io::Result<Option<T>> {
    let deadline = Instant::now() + within;
    let (mut line, mut chunk) = (Vec::new(), vec![0; CHUNK_BYTES]);
    while !line.ends_with(b"\n") {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut chunk)? {
            0 if line.is_empty() => return Ok(None),
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => line.extend_from_slice(chunk.get(..count).unwrap_or_default()),
        }
        if line.len() > max_bytes {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
    }
    Ok(Some(serde_json::from_slice(&line)?))
}
