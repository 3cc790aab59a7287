//! What a job writes, as it travels: the result of `jobs.logs`, a piece of each stream from an offset on.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::job::{CallId, HostState, MinionJobId};

/// The most bytes of each stream in one [`JobLogs`]; a host gives less where its replies have to be smaller.
pub const LOGS_CHUNK_MAX_BYTES: u32 = 256 * 1024;

/// The fewest bytes of a stream that can be asked for: as many as a letter of UTF-8 may have, so that none has to be cut through.
pub const LOGS_CHUNK_MIN_BYTES: u32 = 4;

/// The longest that a host waits for more output before it answers, in milliseconds.
pub const LOGS_WAIT_MAX_MS: u32 = 20_000;

/// What stands around the two streams of a [`JobLogs`], as JSON: ids, numbers, names.
const FRAME_MAX_BYTES: usize = 4096;

/// The most that one byte of a stream can become as JSON: `\u0000`. As base64 it becomes less.
const JSON_BYTES_A_BYTE: usize = 6;

/// Something that a job writes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stream {
    /// Its standard output.
    Stdout,
    /// Its standard error.
    Stderr,
}

impl Stream {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Stdout, Self::Stderr];

    /// The word for it, as in JSON, which is also the name of its file in a spool.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// What a job wrote from the offsets on that were asked for: the result of `jobs.logs`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobLogs {
    /// The job's id on this host.
    pub minion_job_id: MinionJobId,
    /// The call that asked for it.
    pub call_id: CallId,
    /// How far it is.
    pub state: HostState,
    /// It has ended, and nothing follows behind what is here.
    pub complete: bool,
    /// What it wrote to its standard output.
    pub stdout: LogPiece,
    /// What it wrote to its standard error.
    pub stderr: LogPiece,
}

/// A piece of a stream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LogPiece {
    /// The bytes, as [`bytes_value`](crate::outcome::bytes_value) writes them. A letter of UTF-8 is not cut through at the end while its rest
    /// may come.
    pub data: Value,
    /// The offset of the byte behind them: what to ask for next.
    pub next: u64,
    /// How many bytes of the stream the host holds now.
    pub size_bytes: u64,
}

impl JobLogs {
    /// The piece of that stream.
    #[must_use]
    pub fn piece(&self, stream: Stream) -> &LogPiece {
        match stream {
            Stream::Stdout => &self.stdout,
            Stream::Stderr => &self.stderr,
        }
    }
}

/// How many bytes of each stream fit into a reply of `reply_max_bytes`, whatever they are.
#[must_use]
pub fn logs_chunk_bytes(reply_max_bytes: usize) -> u32 {
    let fits = reply_max_bytes.saturating_sub(FRAME_MAX_BYTES) / Stream::ALL.len() / JSON_BYTES_A_BYTE;
    u32::try_from(fits).unwrap_or(u32::MAX).clamp(LOGS_CHUNK_MIN_BYTES, LOGS_CHUNK_MAX_BYTES)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;
    use crate::outcome::bytes_value;
    use serde_json::json;

    #[test]
    fn a_reply_fits_whatever_the_bytes_are() {
        for reply_max_bytes in [FRAME_MAX_BYTES + 100, 256 * 1024, 1 << 20] {
            let count = usize::try_from(logs_chunk_bytes(reply_max_bytes)).unwrap();
            for byte in [0_u8, b'"', b'a', 0xff] {
                let piece = LogPiece { data: bytes_value(&vec![byte; count]), next: u64::MAX, size_bytes: u64::MAX };
                let logs = JobLogs {
                    minion_job_id: "0000-0000-0001".parse().unwrap(),
                    call_id: "54k2-9xqd-4fz1/4294967295".parse().unwrap(),
                    state: HostState::Undelivered,
                    complete: false,
                    stdout: piece.clone(),
                    stderr: piece,
                };
                let length = serde_json::to_string(&logs).unwrap().len();
                assert!(length < reply_max_bytes, "{length} bytes of {byte} in {reply_max_bytes}");
            }
        }
        assert_eq!([logs_chunk_bytes(0), logs_chunk_bytes(usize::MAX)], [LOGS_CHUNK_MIN_BYTES, LOGS_CHUNK_MAX_BYTES]);
    }

    #[test]
    fn a_streams_word_is_its_name_on_the_wire() {
        for stream in Stream::ALL {
            assert_eq!(json!(stream), json!(stream.as_str()));
        }
    }
}
