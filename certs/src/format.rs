//! The file in a folder that says which format the folder has: it is read and written here, for the folders of all programs. What it means is
//! [`common::format`]'s to say.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::Path;

use common::format::{Age, FORMAT_FILE, FORMAT_FILE_MAX_BYTES, Format, FormatError};

use crate::files::{self, FileError};

/// Why a folder is left alone.
#[derive(Debug, thiserror::Error)]
pub enum MarkError {
    /// It is of a newer version, or that cannot be told.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// The file that says it cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
}

/// How old what is in `folder` is. It changes nothing, and follows no link.
///
/// # Errors
/// It is newer than this program, or that cannot be told.
pub fn age(folder: &Path, format: &Format) -> Result<Age, MarkError> {
    let path = folder.join(FORMAT_FILE);
    let failed = |source| FileError::Read { path: path.clone(), source };
    let found = match fs::symlink_metadata(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(format.age_of_unmarked()),
        found => found.map_err(failed)?,
    };
    if !found.is_file() {
        return Err(failed(io::Error::other("it is not a plain file")).into());
    }
    let mut text = Vec::new();
    File::open(&path).and_then(|file| file.take(FORMAT_FILE_MAX_BYTES).read_to_end(&mut text)).map_err(failed)?;
    Ok(format.age_of_text(path.display(), &text)?)
}

/// Writes into `folder` which format it has, in place of what says so now. Durable on return, and whole or not there after a crash.
///
/// # Errors
/// The file system refuses; then the folder says what it said.
pub fn mark(folder: &Path, format: &Format, mode: u32) -> Result<(), MarkError> {
    let path = folder.join(FORMAT_FILE);
    let text = format.text().map_err(|error| FileError::Write { path: path.clone(), source: error.into() })?;
    files::replace(&path, &text, mode)?;
    Ok(files::sync_folder_of(&path)?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use common::format::Program;

    use super::*;

    const FIRST: Format = Format { number: 1, program: Program::Overlord };

    #[test]
    fn a_folder_says_what_was_written_last() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(age(dir.path(), &FIRST).unwrap(), Age::Unmarked);
        assert_eq!(age(dir.path(), &Format { number: 2, ..FIRST }).unwrap(), Age::Older, "what says nothing has format 1");
        mark(dir.path(), &Format { number: 2, ..FIRST }, 0o600).unwrap();
        assert!(matches!(age(dir.path(), &FIRST), Err(MarkError::Format(FormatError::Newer { number: 2, .. }))));
        mark(dir.path(), &FIRST, 0o600).unwrap();
        assert_eq!(age(dir.path(), &FIRST).unwrap(), Age::Ours);
        assert_eq!(age(dir.path(), &Format { number: 2, ..FIRST }).unwrap(), Age::Older);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing unfinished is left");
    }

    #[test]
    fn a_link_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/dev/zero", dir.path().join(FORMAT_FILE)).unwrap();
        assert!(matches!(age(dir.path(), &FIRST), Err(MarkError::File(FileError::Read { .. }))));
    }
}
