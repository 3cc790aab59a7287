//! The audit log: one JSON line for each decision, denials and refusals too. It never decides.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::Serialize;

/// One decision, as one line of the log. Texts of a caller are bounded and escaped before they come here.
pub trait Entry: Serialize {
    /// The same in a few words, for a person.
    fn summary(&self) -> String;
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
    pub fn record(&self, entry: &impl Entry) -> Result<(), AuditError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        self.append(&mut state, entry).map_err(|source| AuditError { path: self.path.clone(), source })
    }

    fn append(&self, state: &mut State, entry: &impl Entry) -> io::Result<()> {
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

    #[derive(Serialize)]
    struct Line<'a> {
        method: &'a str,
    }

    impl Entry for Line<'_> {
        fn summary(&self) -> String {
            self.method.to_owned()
        }
    }

    fn entry(method: &str) -> Line<'_> {
        Line { method }
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
        assert_eq!((lines[0]["method"].as_str(), lines[1]["method"].as_str()), (Some("a\nb\u{1b}"), Some("c")));
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
