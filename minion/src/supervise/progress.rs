//! What a method reports of its progress, as its supervisor hears it: lines of any length, as many and as fast as the method likes. The last one
//! counts. It reads a pipe, and writes nothing.

use std::fs::File;
use std::io::Read as _;
use std::time::{Duration, Instant};

use common::outcome::Progress;
use jiff::Timestamp;

/// As much of a line as is looked at, which is what processes can write to a pipe without mixing (`PIPE_BUF`, see pipe(7)).
const LINE_MAX_BYTES: usize = 4096;

/// How much is read before it is looked at what else has happened.
const READ_AT_ONCE: usize = 16;
const CHUNK_BYTES: usize = 64 * 1024;

/// How soon after one report the next is written down; and after one that could not be, on a full disk say.
const WRITE_AGAIN: Duration = Duration::from_millis(100);
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// What was reported.
#[derive(Debug, Default)]
pub(super) struct Reports {
    /// The beginning of a line whose end has not come.
    line: Vec<u8>,
    latest: Option<Progress>,
    is_unwritten: bool,
    /// Before that none is written down.
    next_at: Option<Instant>,
}

impl Reports {
    /// Hears what is in the pipe, which is closed at its end.
    pub(super) fn hear(&mut self, pipe: &mut Option<File>) {
        let mut chunk = vec![0; CHUNK_BYTES];
        for _ in 0..READ_AT_ONCE {
            let Some(open) = pipe else { return };
            match open.read(&mut chunk) {
                Ok(count) if count > 0 => self.take(chunk.get(..count).unwrap_or_default(), Timestamp::now()),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                _closed => *pipe = None,
            }
        }
    }

    fn take(&mut self, bytes: &[u8], now: Timestamp) {
        let is_end = |byte: &u8| *byte == b'\n';
        let mut parts = bytes.splitn(2, is_end);
        self.go_on(parts.next().unwrap_or_default());
        let Some(rest) = parts.next() else { return };
        let first = std::mem::take(&mut self.line);
        let mut lines = rest.rsplit(is_end);
        self.go_on(lines.next().unwrap_or_default());
        let read = |line: &[u8]| Progress::read(&String::from_utf8_lossy(line.get(..LINE_MAX_BYTES).unwrap_or(line)), now);
        // From the last on: of a gigabyte of reports one is read.
        if let Some(said) = lines.find_map(read).or_else(|| read(&first)) {
            self.latest = Some(said);
            self.is_unwritten = true;
        }
    }

    fn go_on(&mut self, bytes: &[u8]) {
        let room = LINE_MAX_BYTES.saturating_sub(self.line.len());
        self.line.extend_from_slice(bytes.get(..room).unwrap_or(bytes));
    }

    /// When there is something to write down; none if there is nothing.
    pub(super) fn due_at(&self) -> Option<Instant> {
        self.is_unwritten.then(|| self.next_at.unwrap_or_else(Instant::now))
    }

    /// Writes the last one down, if that is due. One that cannot be is tried again later, and harms nobody.
    pub(super) fn write<E>(&mut self, write: impl FnOnce(&Progress) -> Result<(), E>) {
        let now = Instant::now();
        let is_due = self.is_unwritten && self.next_at.is_none_or(|at| at <= now);
        let (Some(latest), true) = (&self.latest, is_due) else { return };
        self.is_unwritten = write(latest).is_err();
        self.next_at = Some(now + if self.is_unwritten { RETRY_AFTER } else { WRITE_AGAIN });
    }

    /// The last one.
    pub(super) fn into_latest(self) -> Option<Progress> {
        self.latest
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;

    fn heard(chunks: &[&[u8]]) -> Option<(f64, String)> {
        let mut reports = Reports::default();
        chunks.iter().for_each(|chunk| reports.take(chunk, Timestamp::UNIX_EPOCH));
        reports.into_latest().map(|progress| (progress.fraction(), progress.message().to_owned()))
    }

    #[test]
    fn the_last_line_that_says_something_counts() {
        let said = |fraction, message: &str| Some((fraction, message.to_owned()));
        for (chunks, last) in [
            (&[&b"0.1 a\n0.2 b\n"[..]][..], said(0.2, "b")),
            (&[b"0.1 a\nnonsense\n\n"], said(0.1, "a")),
            (&[b"0.1 a\n0.2 unfin", b"ished"], said(0.1, "a")),
            (&[b"0.1 a\n0.2 fin", b"ish", b"ed\nNaN\n0.3"], said(0.2, "finished")),
            (&[b"0.1", b"\n"], said(0.1, "")),
            (&[b"\n", b"\xff\xfe\n", b"0.4 \xff\n"], said(0.4, "\u{fffd}")),
            (&[b"0.5"], None),
            (&[b""], None),
        ] {
            assert_eq!(heard(chunks), last, "{chunks:?}");
        }
    }

    #[test]
    fn a_line_without_end_takes_no_memory() {
        let mut reports = Reports::default();
        for _ in 0..1000 {
            reports.take(&[b'9'; CHUNK_BYTES], Timestamp::UNIX_EPOCH);
        }
        assert!(reports.line.len() == LINE_MAX_BYTES && reports.line.capacity() <= 4 * LINE_MAX_BYTES);
        reports.take(b"\n0.5 on\n", Timestamp::UNIX_EPOCH);
        assert_eq!(reports.into_latest().unwrap().message(), "on");
    }

    #[test]
    fn one_that_cannot_be_written_is_written_later_and_others_wait_their_time() {
        let mut reports = Reports::default();
        let mut written = 0;
        let mut write = |reports: &mut Reports, result: Result<(), ()>| {
            reports.write(|_| {
                written += 1;
                result
            });
        };
        write(&mut reports, Ok(()));
        reports.take(b"0.1\n", Timestamp::UNIX_EPOCH);
        write(&mut reports, Err(()));
        write(&mut reports, Ok(()));
        assert!(reports.due_at().unwrap() > Instant::now());
        reports.next_at = None;
        write(&mut reports, Ok(()));
        assert!(reports.due_at().is_none());
        reports.take(b"0.2\n", Timestamp::UNIX_EPOCH);
        write(&mut reports, Ok(()));
        assert!(reports.due_at().is_some());
        assert_eq!(written, 2);
    }
}
