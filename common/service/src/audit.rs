//! The audit log: one JSON line for each decision, denials and refusals too, in a file that is rotated by its size; and the same in the
//! systemd journal, where there is one. It never decides.

mod file;
mod journal;
mod repeats;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::Serialize;

use file::LogFile;
use journal::Journal;
pub use repeats::{COUNTED_FOR, Repeated, Repeats};

/// One decision: a JSON object, whose keys become the fields of the journal's entry. Texts of a caller are bounded and escaped before they
/// come here.
pub trait Entry: Serialize {
    /// The same in a few words, for a person.
    fn summary(&self) -> String;

    /// Whether somebody did not get what he asked for. The journal shows it as a warning.
    fn is_refusal(&self) -> bool {
        false
    }
}

/// How large the log grows, and how much of it is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rotation {
    /// The most that the file at the log's path may hold. A line that is longer has a file of its own.
    pub max_bytes: u64,
    /// How many older files are kept, at least 1: `audit.log.1`, the youngest, to `audit.log.N`.
    pub files: u32,
}

impl Default for Rotation {
    fn default() -> Self {
        Self { max_bytes: 64 << 20, files: 8 }
    }
}

/// Why the log could not be written.
#[derive(Debug, thiserror::Error)]
#[error("writing the audit log {}: {source}", path.display())]
pub struct AuditError {
    /// The log.
    pub path: PathBuf,
    /// Why.
    pub source: io::Error,
}

/// The log, open for appending. Several processes may append to one log.
#[derive(Debug)]
pub struct Audit {
    path: PathBuf,
    file: Mutex<LogFile>,
    /// None: it is not told.
    journal: Option<Journal>,
}

impl Audit {
    /// Opens the log, or makes it, for this user alone.
    ///
    /// # Errors
    /// It can be neither opened nor made.
    pub fn open(path: &Path, rotation: Rotation) -> Result<Self, AuditError> {
        let file = LogFile::open(path, rotation).map_err(|source| AuditError { path: path.to_owned(), source })?;
        Ok(Self { path: path.to_owned(), file: Mutex::new(file), journal: Some(Journal::default()) })
    }

    /// The same, which tells the journal nothing: for a process that must not have a second thread.
    #[must_use]
    pub fn without_journal(self) -> Self {
        Self { journal: None, ..self }
    }

    /// Appends `entry`, and tells the journal, which may be away without harm.
    ///
    /// # Errors
    /// It could not be written to the file, or not whole.
    pub fn record(&self, entry: &impl Entry) -> Result<(), AuditError> {
        if let Some(journal) = &self.journal {
            journal.tell(entry);
        }
        self.append(entry).map_err(|source| AuditError { path: self.path.clone(), source })
    }

    fn append(&self, entry: &impl Entry) -> io::Result<()> {
        let mut line = serde_json::to_vec(entry)?;
        line.push(b'\n');
        self.file.lock().unwrap_or_else(PoisonError::into_inner).append(&line)
    }
}

#[cfg(test)]
mod tests;
