//! The audit log: one JSON line for each decision, denials and refusals too, written before anything runs.
//!
//! It never decides, and never holds an argument: their digest alone.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use common::job::MinionJobId;
use jiff::Timestamp;
use serde::Serialize;

/// What was decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Ruling {
    /// A rule allows it.
    Allow,
    /// No rule allows it.
    Deny,
    /// It is not a call that rules could be asked about.
    Refuse,
}

/// One line of the log. Texts of a caller are bounded and escaped before they come here.
#[derive(Debug, Serialize)]
pub struct Entry<'a> {
    /// When.
    pub at: Timestamp,
    /// Who asked, by the certificate.
    pub caller: &'a str,
    /// The certificate's SHA-256.
    pub fingerprint: &'a str,
    /// Where the connection came from.
    pub peer: SocketAddr,
    /// What was asked for, as it was asked for.
    pub method: &'a str,
    /// SHA-256 of the arguments' JSON text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub args_sha256: Option<String>,
    /// What was decided.
    pub decision: Ruling,
    /// The rule that allows it, or why it was refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<&'a str>,
    /// The call's id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub call_id: Option<String>,
    /// The job that it asks for or about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub minion_job_id: Option<MinionJobId>,
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

/// The log, open for appending.
#[derive(Debug)]
pub struct Audit {
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    file: File,
    /// The last line may have got in half: the next one begins on a line of its own.
    is_torn: bool,
}

impl Audit {
    /// Opens the log, or makes it, for this user alone.
    ///
    /// # Errors
    /// It can be neither opened nor made.
    pub fn open(path: &Path) -> Result<Self, AuditError> {
        let file = open(path).map_err(|source| AuditError { path: path.to_owned(), source })?;
        Ok(Self { path: path.to_owned(), state: Mutex::new(State { file, is_torn: false }) })
    }

    /// Appends `entry`.
    ///
    /// # Errors
    /// It could not be written, or not whole.
    pub fn record(&self, entry: &Entry<'_>) -> Result<(), AuditError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        self.append(&mut state, entry).map_err(|source| AuditError { path: self.path.clone(), source })
    }

    fn append(&self, state: &mut State, entry: &Entry<'_>) -> io::Result<()> {
        let mut line = if state.is_torn { b"\n".to_vec() } else { Vec::new() };
        serde_json::to_writer(&mut line, entry)?;
        line.push(b'\n');
        if is_elsewhere(&state.file, &self.path) {
            state.file = open(&self.path)?;
        }
        state.is_torn = true;
        state.file.write_all(&line)?;
        state.is_torn = false;
        Ok(())
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

/// Whether the file that is open is not the one at `path` any more: it was rotated away, or removed.
fn is_elsewhere(file: &File, path: &Path) -> bool {
    let identity = |file: std::fs::Metadata| (file.dev(), file.ino());
    match (file.metadata(), std::fs::metadata(path)) {
        (Ok(open), Ok(named)) => identity(open) != identity(named),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may panic")]
    use super::*;
    use serde_json::Value;
    use std::fs;

    fn entry(method: &str) -> Entry<'_> {
        Entry {
            at: Timestamp::UNIX_EPOCH,
            caller: "admin",
            fingerprint: "ab",
            peer: "127.0.0.1:1".parse().unwrap(),
            method,
            args_sha256: None,
            decision: Ruling::Deny,
            rule: None,
            call_id: None,
            minion_job_id: None,
        }
    }

    #[test]
    fn each_entry_is_one_line_for_this_user_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.log");
        let audit = Audit::open(&path).unwrap();
        audit.record(&entry("a\nb\u{1b}")).unwrap();
        audit.record(&entry("c")).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!((lines[0]["method"].as_str(), lines[1]["decision"].as_str()), (Some("a\nb\u{1b}"), Some("deny")));
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_log_that_was_rotated_away_is_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.log");
        let audit = Audit::open(&path).unwrap();
        audit.record(&entry("a")).unwrap();
        fs::rename(&path, dir.path().join("audit.log.1")).unwrap();
        audit.record(&entry("b")).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 1);
    }

    #[test]
    fn a_full_disk_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.log");
        std::os::unix::fs::symlink("/dev/full", &path).unwrap();
        let error = Audit::open(&path).unwrap().record(&entry("a")).unwrap_err().to_string();
        assert!(error.contains("audit.log: No space left"), "{error}");
    }
}
