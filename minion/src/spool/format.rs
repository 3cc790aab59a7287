//! Which format the folder of all spools has, and all that lies in it. What is newer than this version is not touched.

use std::fs::File;
use std::path::Path;

use certs::format::{self, MarkError};
use common::format::{Age, Format, Program};

use super::SpoolError;

/// The format of all that lies in the folder. Where it goes up, [`carry_forward`] brings on what is older; jobs that an older version has started go
/// on writing in theirs meanwhile, so a newer version reads both.
const FORMAT: Format = Format { number: 1, program: Program::Minion };

/// Only root reads what is in the folder.
const MARK_MODE: u32 = 0o600;

/// That what is in the folder is of a format that this version reads. It changes nothing. A folder that is not there holds nothing.
///
/// # Errors
/// It is of a newer version, or that cannot be told.
pub fn require_known(spools: &Path) -> Result<(), MarkError> {
    format::age(spools, &FORMAT).map(drop)
}

/// Brings on what an older version has left. A crash leaves what it was, or what it is to be; who comes second finds it done.
pub(super) fn carry_forward(spools: &Path) -> Result<(), SpoolError> {
    let refused = |error| SpoolError::Format(Box::new(error));
    if format::age(spools, &FORMAT).map_err(refused)? == Age::Ours {
        return Ok(());
    }
    let folder = File::open(spools).and_then(|folder| folder.lock().map(|()| folder));
    let _alone = folder.map_err(|source| SpoolError::File { doing: "locking", path: spools.to_owned(), source })?;
    match format::age(spools, &FORMAT).map_err(refused)? {
        Age::Ours => Ok(()),
        // The first format is what was there before formats had numbers: nothing but the mark is missing.
        Age::Unmarked | Age::Older => match format::mark(spools, &FORMAT, MARK_MODE) {
            // A disk that is full or read-only stops no host. What bears no mark is read as what it is.
            Err(MarkError::File(error)) => {
                tracing::warn!(error = %common::shown::chain(&error), "the spools cannot be marked with their format; the next start tries again");
                Ok(())
            }
            marked => marked.map_err(refused),
        },
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use std::fs;

    use common::format::FORMAT_FILE;

    use super::super::prepare;
    use super::*;

    #[test]
    fn what_bears_no_mark_gets_one_and_nothing_else_is_touched() {
        let dir = tempfile::tempdir().unwrap();
        let (spools, mark) = (dir.path().join("spool"), dir.path().join("spool").join(FORMAT_FILE));
        prepare(&spools).unwrap();
        let text = fs::read(&mark).unwrap();
        assert_eq!(format::age(&spools, &FORMAT).unwrap(), Age::Ours);
        // As a version before there were marks has left it.
        fs::remove_file(&mark).unwrap();
        let forgotten = fs::read(spools.join("forgotten.json")).unwrap();
        for _ in 0..2 {
            prepare(&spools).unwrap();
            assert_eq!(fs::read(&mark).unwrap(), text);
        }
        assert_eq!(fs::read(spools.join("forgotten.json")).unwrap(), forgotten);
    }

    #[test]
    fn what_is_newer_or_damaged_is_refused_and_stays_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        prepare(dir.path()).unwrap();
        let newer = common::seal::seal(&serde_json::json!({ "format": 2, "by": "9.0.0" })).unwrap();
        for text in [newer, b"garbage".to_vec()] {
            fs::write(dir.path().join(FORMAT_FILE), &text).unwrap();
            assert!(matches!(prepare(dir.path()), Err(SpoolError::Format(_))));
            assert!(require_known(dir.path()).is_err());
            assert_eq!(fs::read(dir.path().join(FORMAT_FILE)).unwrap(), text);
        }
    }
}
