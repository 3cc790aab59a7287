//! Which format what lies on a disk has, and what that means to who finds it. Pure: the file that says it is read and written elsewhere.
//!
//! A format's number goes up when an older program would misread what is written from then on, or must not pass over it. What is merely added, a field
//! or a kind of event, raises no number: older programs keep it, or pass over it. A program reads its own format and all before it, and leaves a
//! newer one alone. What was written before there were numbers has format 1.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::seal::{self, SealError};

/// The version of these programs.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The file that says it of the folder that it lies in.
pub const FORMAT_FILE: &str = "format";

/// The longest such file that is read.
pub const FORMAT_FILE_MAX_BYTES: u64 = 4096;

/// The longest version of a program that is repeated.
const VERSION_MAX_LETTERS: usize = 40;

/// A format as this version of its program writes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Format {
    /// Its number, from 1.
    pub number: u32,
    /// Which program writes it.
    pub program: Program,
}

/// Who writes something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// The daemon.
    Minion,
    /// The command.
    Overlord,
}

/// What is written of a format.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// Its number.
    pub format: u32,
    /// The version of the program that has written it.
    pub by: String,
}

/// How old what was found is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Age {
    /// It says nothing, which is what the first format is written with until it is marked.
    Unmarked,
    /// It is older than what is written now.
    Older,
    /// It is what is written now.
    Ours,
}

/// Why what was found is left alone.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// A newer version has written it.
    #[error(
        "{at} has format {number}, which {writer} has written; this is {} {VERSION}, which reads formats up to {} and has changed nothing: \
         install {} again, or a newer one", known.program, known.number, writer.package()
    )]
    Newer {
        /// What.
        at: String,
        /// Its number.
        number: u32,
        /// Who has written it.
        writer: Writer,
        /// What this program knows.
        known: Format,
    },
    /// It cannot be told.
    #[error(
        "{at} is damaged, so that it is not known which version has written what it stands for ({source}); nothing was changed: if no newer \
         version than {program} {VERSION} was ever here, delete that file, and start again"
    )]
    Damaged {
        /// The file that should say it.
        at: String,
        /// What is wrong with it.
        source: SealError,
        /// Who was looking.
        program: Program,
    },
}

/// A program of another version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Writer {
    program: Program,
    /// None if what is said of it can be no version.
    version: Option<String>,
}

impl Program {
    /// The name of its package.
    #[must_use]
    pub const fn package(self) -> &'static str {
        match self {
            Self::Minion => "overlord-minion",
            Self::Overlord => "overlord",
        }
    }
}

impl fmt::Display for Program {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Minion => "minion",
            Self::Overlord => "overlord",
        })
    }
}

impl Writer {
    fn of(program: Program, version: &str) -> Self {
        let is_plain = |letter: char| letter.is_ascii_alphanumeric() || ".+-~".contains(letter);
        let is_version = !version.is_empty() && version.len() <= VERSION_MAX_LETTERS && version.chars().all(is_plain);
        Self { program, version: is_version.then(|| version.to_owned()) }
    }

    /// What to install, to have it again.
    #[must_use]
    pub fn package(&self) -> String {
        match &self.version {
            Some(version) => format!("{} {version}", self.program.package()),
            None => format!("that version of {}", self.program.package()),
        }
    }
}

impl fmt::Display for Writer {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.version {
            Some(version) => write!(out, "{} {version}", self.program),
            None => write!(out, "a newer {}", self.program),
        }
    }
}

impl Format {
    /// What this version writes of it.
    #[must_use]
    pub fn stamp(&self) -> Stamp {
        Stamp { format: self.number, by: VERSION.to_owned() }
    }

    /// The text of the file that says it.
    ///
    /// # Errors
    /// It cannot be written as JSON.
    pub fn text(&self) -> serde_json::Result<Vec<u8>> {
        let mut text = seal::seal(&self.stamp())?;
        text.push(b'\n');
        Ok(text)
    }

    /// How old it is, by the text of the file `at`.
    ///
    /// # Errors
    /// It is newer than this program, or cannot be told.
    pub fn age_of_text(&self, at: impl fmt::Display, text: &[u8]) -> Result<Age, FormatError> {
        let stamp = seal::open(text).map_err(|source| FormatError::Damaged { at: at.to_string(), source, program: self.program })?;
        self.age(at, &stamp)
    }

    /// How old is what says nothing: it has format 1, as what was written before there were numbers.
    #[must_use]
    pub fn age_of_unmarked(&self) -> Age {
        if self.number == 1 { Age::Unmarked } else { Age::Older }
    }

    /// How old `at` is, which bears this stamp.
    ///
    /// # Errors
    /// It is newer than this program.
    pub fn age(&self, at: impl fmt::Display, stamp: &Stamp) -> Result<Age, FormatError> {
        if stamp.format > self.number {
            let writer = Writer::of(self.program, &stamp.by);
            return Err(FormatError::Newer { at: at.to_string(), number: stamp.format, writer, known: *self });
        }
        Ok(if stamp.format == self.number { Age::Ours } else { Age::Older })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;
    use serde_json::json;

    const SECOND: Format = Format { number: 2, program: Program::Minion };

    fn age(format: u32, by: &str) -> Result<Age, String> {
        SECOND.age("spool/format", &Stamp { format, by: by.to_owned() }).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_newer_is_refused_and_the_way_back_is_named() {
        assert_eq!((age(1, "0.1.0"), age(2, "9")), (Ok(Age::Older), Ok(Age::Ours)));
        let refusal = age(3, "0.3.0~rc1").unwrap_err();
        assert_eq!(
            refusal,
            format!(
                "spool/format has format 3, which minion 0.3.0~rc1 has written; this is minion {VERSION}, which reads formats up to 2 and has \
                 changed nothing: install overlord-minion 0.3.0~rc1 again, or a newer one"
            )
        );
        for odd in ["", "1\n2", "\u{1b}[31m", &"1".repeat(41)] {
            let refusal = age(3, odd).unwrap_err();
            assert!(
                refusal.contains("a newer minion has written") && refusal.contains("install that version of overlord-minion"),
                "{refusal}"
            );
        }
    }

    #[test]
    fn what_is_written_is_read_and_more_is_passed_over() {
        let text = SECOND.text().unwrap();
        assert_eq!(SECOND.age_of_text("x", &text).unwrap(), Age::Ours);
        let newer = seal::seal(&json!({ "format": 3, "by": "0.3.0", "since": ["anything"] })).unwrap();
        assert!(matches!(SECOND.age_of_text("x", &newer), Err(FormatError::Newer { number: 3, .. })));
        for length in 0..text.len() - 2 {
            let cut = text.get(..length).unwrap();
            assert!(matches!(SECOND.age_of_text("x", cut), Err(FormatError::Damaged { .. })), "{length}");
        }
    }
}
