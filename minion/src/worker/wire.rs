//! Lines of JSON over a Unix socket that never blocks: what has come, and what is to go. It knows what a request looks like, and no method.

use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use common::outcome::Failure;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// What is read at once, and at most before others have their turn.
const CHUNK_BYTES: usize = 16 * 1024;
const TURN_BYTES: usize = 16 * CHUNK_BYTES;
/// With so much unread by the other side, hints are no longer added, and no more is taken in from it.
const UNREAD_MAX_BYTES: usize = 256 * 1024;

/// One line that came.
#[derive(Debug)]
pub(super) enum Line {
    /// Without its end.
    Whole(Vec<u8>),
    /// It was longer than may be, and is not kept.
    TooLong,
}

/// A request of JSON-RPC 2.0; one without an id is a notification.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct Request {
    #[serde(default)]
    pub(super) id: Value,
    pub(super) method: String,
    #[serde(default)]
    pub(super) params: Value,
}

/// One connection.
#[derive(Debug)]
pub(super) struct Wire {
    stream: UnixStream,
    input: Vec<u8>,
    /// So much of the input has no end of a line in it.
    looked_at: usize,
    is_skipping: bool,
    output: Vec<u8>,
    sent: usize,
    line_max: usize,
    /// More may have come than was read.
    has_more: bool,
    /// The other side hears nothing any more; what it has said before is read all the same.
    is_deaf: bool,
    is_over: bool,
}

impl Wire {
    pub(super) fn new(stream: UnixStream, line_max: usize) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        let (input, output) = (Vec::new(), Vec::new());
        Ok(Self {
            stream,
            input,
            looked_at: 0,
            is_skipping: false,
            output,
            sent: 0,
            line_max,
            has_more: false,
            is_deaf: false,
            is_over: false,
        })
    }

    /// The other side is gone, and all that it said was read.
    pub(super) fn is_over(&self) -> bool {
        self.is_over
    }

    /// Nothing that is said reaches the other side any more.
    pub(super) fn is_deaf(&self) -> bool {
        self.is_deaf || self.is_over
    }

    /// More may have come than was read the last time.
    pub(super) fn has_more(&self) -> bool {
        self.has_more
    }

    /// Something waits to go.
    pub(super) fn is_full(&self) -> bool {
        !self.output.is_empty()
    }

    /// The other side reads so slowly that nothing more is taken from it.
    pub(super) fn is_stuck(&self) -> bool {
        self.output.len().saturating_sub(self.sent) > UNREAD_MAX_BYTES
    }

    /// The lines that have come, some of them: others have their turn, too. None from who does not read what is said.
    pub(super) fn read(&mut self) -> Vec<Line> {
        let (mut lines, mut chunk, mut count) = (Vec::new(), vec![0; CHUNK_BYTES], 0);
        while count < TURN_BYTES && !self.is_over && !self.is_stuck() {
            match self.stream.read(&mut chunk) {
                Ok(0) => self.is_over = true,
                Ok(length) => {
                    count += length;
                    self.take(chunk.get(..length).unwrap_or_default(), &mut lines);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => self.is_over = true,
            }
        }
        self.has_more = count >= TURN_BYTES && !self.is_over;
        lines
    }

    /// Says `message`, now as far as the other side takes it.
    pub(super) fn send(&mut self, message: &impl Serialize) {
        match serde_json::to_vec(message) {
            Ok(line) => self.output.extend(line),
            // Strings, numbers and maps of them can always be written.
            Err(_) => return,
        }
        self.output.push(b'\n');
        self.flush();
    }

    /// The same with what may be left out where the other side does not keep up.
    pub(super) fn hint(&mut self, message: &impl Serialize) {
        if !self.is_stuck() {
            self.send(message);
        }
    }

    /// Answers a request, if it is one that is answered.
    pub(super) fn answer(&mut self, id: &Value, answer: Result<Value, Failure>) {
        match answer {
            _ if id.is_null() => {}
            Ok(result) => self.send(&json!({ "jsonrpc": "2.0", "id": id, "result": result })),
            Err(error) => self.send(&json!({ "jsonrpc": "2.0", "id": id, "error": error })),
        }
    }

    /// Says what waits to be said, as far as the other side takes it.
    pub(super) fn flush(&mut self) {
        while self.sent < self.output.len() {
            match self.stream.write(self.output.get(self.sent..).unwrap_or_default()) {
                Ok(count) if count > 0 => self.sent += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.output.drain(..std::mem::take(&mut self.sent));
                    return;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                _gone => {
                    self.is_deaf = true;
                    break;
                }
            }
        }
        self.output.clear();
        self.sent = 0;
    }

    fn take(&mut self, chunk: &[u8], lines: &mut Vec<Line>) {
        self.input.extend_from_slice(chunk);
        while let Some(end) = self.input.iter().skip(self.looked_at).position(|byte| *byte == b'\n') {
            let rest = self.input.split_off(self.looked_at + end + 1);
            let mut line = std::mem::replace(&mut self.input, rest);
            line.pop();
            self.looked_at = 0;
            if std::mem::take(&mut self.is_skipping) || line.len() > self.line_max {
                lines.push(Line::TooLong);
            } else if !line.iter().all(u8::is_ascii_whitespace) {
                lines.push(Line::Whole(line));
            }
        }
        self.looked_at = self.input.len();
        if self.input.len() > self.line_max {
            self.is_skipping = true;
            self.input.clear();
            self.looked_at = 0;
        }
    }
}

impl AsFd for Wire {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;

    fn shown(lines: Vec<Line>) -> Vec<String> {
        let shown = |line| match line {
            Line::Whole(line) => String::from_utf8(line).unwrap(),
            Line::TooLong => "too long".to_owned(),
        };
        lines.into_iter().map(shown).collect()
    }

    #[test]
    fn lines_are_taken_however_they_are_cut_and_one_too_long_spoils_no_other() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut wire = Wire::new(ours, 4).unwrap();
        theirs.write_all(b"a\nbc").unwrap();
        assert_eq!(shown(wire.read()), ["a"]);
        theirs.write_all(b"d\n\n12345\nefgh\n").unwrap();
        assert_eq!(shown(wire.read()), ["bcd", "too long", "efgh"]);
        theirs.write_all(b"1234567").unwrap();
        assert_eq!(shown(wire.read()), [""; 0]);
        theirs.write_all(b"89\nx\n").unwrap();
        assert_eq!(shown(wire.read()), ["too long", "x"]);
        drop(theirs);
        assert!(wire.read().is_empty() && wire.is_over());
    }

    #[test]
    fn what_is_not_taken_waits_and_goes_on() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut wire = Wire::new(ours, 4).unwrap();
        let text = "x".repeat(4 << 20);
        wire.send(&text);
        assert!(wire.is_full() && wire.is_stuck());
        wire.hint(&"left out");
        let reader = std::thread::spawn(move || {
            let mut line = String::new();
            io::BufRead::read_line(&mut io::BufReader::new(theirs), &mut line).unwrap();
            line
        });
        while wire.is_full() {
            wire.flush();
        }
        assert_eq!(reader.join().unwrap(), format!("\"{text}\"\n"));
    }
}
