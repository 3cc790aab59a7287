//! What the server asks of the spawner, and the replies: lines of JSON, a reply to each order. A connection is for one order that does
//! something, or for any number that only look.
//!
//! With each order the server says in which protocol it speaks. While a package is replaced the two may be of different versions for a moment: a
//! spawner does nothing that is said in another protocol than its own, and says so.

use std::io::{self, Read as _, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use common::format::VERSION;
use common::identity::CallerName;
use common::job::MinionJobId;
use common::outcome::{ErrorCode, Failure, Outcome};
use common::protocol::LogPiece;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::call::{Ask, said};
use crate::spool::{Glance, Seen};

/// The number of the protocol. It goes up when a spawner, or a server, would misunderstand one of the version before; with an order that is merely
/// added it does not.
pub const PROTOCOL: u32 = 1;

/// The longest reply. A result has a limit far below.
pub(super) const LINE_MAX_BYTES: u64 = 64 * 1024 * 1024;

/// What is read at once.
const CHUNK_BYTES: usize = 64 * 1024;

/// An order as it is said.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Said<O> {
    protocol: u32,
    by: String,
    order: O,
}

impl<'o> Said<&'o Order> {
    /// As this version says it.
    pub(super) fn of(order: &'o Order) -> Self {
        Self { protocol: PROTOCOL, by: VERSION.to_owned(), order }
    }
}

/// Who speaks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Speaker {
    /// The number of the protocol.
    pub protocol: u32,
    /// The version of the program.
    pub by: String,
}

/// What was heard.
#[derive(Debug)]
pub(super) enum Heard {
    /// An order.
    Order(Box<Order>),
    /// Something else, to which this is the reply.
    Strange(Reply),
    /// The end of the stream.
    End,
}

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
    /// It was not done, and nothing has changed, because it was said in another protocol than this spawner's. Every version understands this.
    OtherVersion(Speaker),
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

/// Hears one order of at most `max_bytes`, which must be there `within` a time. Nobody says a second one before he has the reply to the first.
///
/// # Errors
/// The other side is slow, says more than that, or says nothing that could be an order.
pub(super) fn hear(stream: &UnixStream, within: Duration, max_bytes: usize) -> io::Result<Heard> {
    let line = line(stream, within, max_bytes)?;
    if line.is_empty() {
        return Ok(Heard::End);
    }
    let problem = match serde_json::from_slice::<Said<Box<Order>>>(&line) {
        Ok(Said { protocol: PROTOCOL, order, .. }) => return Ok(Heard::Order(order)),
        Ok(_) => String::new(),
        Err(error) => said(&error),
    };
    // All that every version says in the same way.
    Ok(Heard::Strange(match serde_json::from_slice::<Speaker>(&line)? {
        Speaker { protocol: PROTOCOL, by } => {
            let by = by.escape_debug();
            let message =
                format!("nothing was done: the spawner, minion {VERSION}, does not know this order of the server, minion {by}: {problem}");
            Reply::Refused(Failure::new(ErrorCode::Undelivered, message))
        }
        _another => Reply::OtherVersion(Speaker { protocol: PROTOCOL, by: VERSION.to_owned() }),
    }))
}

/// One line; nothing at the stream's end.
fn line(mut stream: &UnixStream, within: Duration, max_bytes: usize) -> io::Result<Vec<u8>> {
    let deadline = Instant::now() + within;
    let (mut line, mut chunk) = (Vec::new(), vec![0; CHUNK_BYTES]);
    while !line.ends_with(b"\n") {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut chunk)? {
            0 if line.is_empty() => break,
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => line.extend_from_slice(chunk.get(..count).unwrap_or_default()),
        }
        if line.len() > max_bytes {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
    }
    Ok(line)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;
    use serde_json::{Value, json};

    fn heard(said: &Value) -> Heard {
        let (ours, theirs) = UnixStream::pair().unwrap();
        send(&ours, said).unwrap();
        hear(&theirs, Duration::from_secs(5), 1 << 20).unwrap()
    }

    #[test]
    fn what_the_server_says_is_heard() {
        let said = serde_json::to_value(Said::of(&Order::Look(Look::Ids))).unwrap();
        assert_eq!(said, json!({ "protocol": 1, "by": VERSION, "order": { "look": "ids" } }));
        assert!(matches!(heard(&said), Heard::Order(order) if matches!(*order, Order::Look(Look::Ids))));
        let mut newer = said;
        newer.as_object_mut().unwrap().insert("trace".to_owned(), json!(7));
        assert!(matches!(heard(&newer), Heard::Order(_)), "what is added is passed over");
    }

    #[test]
    fn another_protocol_is_told_and_nothing_is_done() {
        for said in
            [json!({ "protocol": 2, "by": "9.0.0", "order": { "look": "ids" } }), json!({ "protocol": 2, "by": "9.0.0", "orders": [] })]
        {
            let Heard::Strange(reply) = heard(&said) else { unreachable!("{said}") };
            assert_eq!(serde_json::to_value(reply).unwrap(), json!({ "other_version": { "protocol": 1, "by": VERSION } }), "{said}");
        }
        let Heard::Strange(Reply::Refused(failure)) = heard(&json!({ "protocol": 1, "by": "9.0.0", "order": { "rename": 1 } })) else {
            unreachable!("an order that is not known is refused")
        };
        assert!(failure.is(ErrorCode::Undelivered) && failure.message.contains("minion 9.0.0: unknown variant `rename`"), "{failure:?}");
    }
}
