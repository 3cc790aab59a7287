//! How a method says how far it is: a line on a pipe of its supervisor's, which whatever it starts has open too, under the number that
//! `MINION_PROGRESS_FD` names. What is read there is the supervisor's business.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::{OwnedFd, RawFd};

use common::outcome::PROGRESS_MESSAGE_MAX_LETTERS;

/// The number of the pipe in a method's process, and in all that it starts: one that a shell can write to as `>&3`.
pub const PROGRESS_FD: RawFd = 3;

/// Who is not listened to.
pub static NOBODY: Reporter = Reporter { pipe: None };

/// What a method reports by.
#[derive(Debug)]
pub struct Reporter {
    pipe: Option<File>,
}

impl Reporter {
    /// One that writes to this pipe.
    #[must_use]
    pub fn new(pipe: OwnedFd) -> Self {
        Self { pipe: Some(pipe.into()) }
    }

    /// Says that so much is done, from 0 to 1, and what of: one line, of which [`PROGRESS_MESSAGE_MAX_LETTERS`] are kept. What is beyond these counts as 0
    /// or 1. It is never an error: whoever does not hear it changes nothing for the method.
    pub fn report(&self, fraction: f64, message: &str) {
        let Some(mut pipe) = self.pipe.as_ref() else { return };
        let words: String =
            message.chars().map(|letter| if letter == '\n' { ' ' } else { letter }).take(PROGRESS_MESSAGE_MAX_LETTERS).collect();
        // At once, so that what several processes write is never mixed: it is shorter than PIPE_BUF, see pipe(7).
        let _unheard = pipe.write_all(format!("{fraction} {words}\n").as_bytes());
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use std::io::Read as _;

    use super::*;

    #[test]
    fn a_report_is_one_line() {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let reporter = Reporter::new(writer.into());
        reporter.report(7.5, "two\nlines");
        reporter.report(1e300, &"ü".repeat(10_000));
        NOBODY.report(0.5, "unheard");
        drop(reporter);
        let mut said = String::new();
        reader.read_to_string(&mut said).unwrap();
        let lines: Vec<&str> = said.lines().collect();
        assert_eq!(lines.first(), Some(&"7.5 two lines"));
        assert!(lines.len() == 2 && lines.iter().all(|line| line.len() < 4096), "{said}");
    }
}
