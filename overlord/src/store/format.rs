//! Which format the store has. One of a newer version is not touched: another, with the number of this version's format in its name, is filled from the
//! logs beside it, so that commands of both versions can be at work at once, and neither undoes what the other has folded.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use certs::format::{self, MarkError};
use common::format::{Age, Format, FormatError, Program};

use super::StoreError;

/// The format of the store. It goes up, too, whenever the logs tell of something new: what an older version has passed over there is missing here, and
/// what it must not read there it must not read here.
const FORMAT: Format = Format { number: 2, program: Program::Overlord };

const MARK_MODE: u32 = 0o600;

/// Which store is to be opened, and what is to be told if that is not the one of the usual name.
pub(super) fn place(usual: &Path) -> (PathBuf, Option<String>) {
    let Err(MarkError::Format(newer @ FormatError::Newer { .. })) = format::age(usual, &FORMAT) else { return (usual.to_owned(), None) };
    let mut beside = usual.as_os_str().to_owned();
    beside.push(format!(".format-{}", FORMAT.number));
    let beside = PathBuf::from(beside);
    let warning = format!("{newer}; until then {} stands for it, which is filled from the job logs", beside.display());
    (beside, Some(warning))
}

/// Sees to it that the store is of this version's format. One of an older version is made anew: the logs say all that is in it.
pub(super) fn bring_forward(path: &Path) -> Result<(), StoreError> {
    match format::age(path, &FORMAT) {
        Ok(Age::Ours) => return Ok(()),
        Ok(Age::Unmarked) => make(path)?,
        Ok(Age::Older) => remove(path).and_then(|()| make(path))?,
        Err(error) => return Err(unmarked(path, error)),
    }
    format::mark(path, &FORMAT, MARK_MODE).map_err(|error| unmarked(path, error))
}

fn remove(path: &Path) -> Result<(), StoreError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(path, error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn make(path: &Path) -> Result<(), StoreError> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(failed(path, error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn unmarked(path: &Path, error: MarkError) -> StoreError {
    match error {
        MarkError::Format(FormatError::Damaged { .. }) => StoreError::Damaged { path: path.to_owned(), reason: crate::chain(&error) },
        error => failed(path, io::Error::other(crate::chain(&error))),
    }
}

fn failed(path: &Path, source: io::Error) -> StoreError {
    StoreError::File { doing: "bringing to this version's format", path: path.to_owned(), source }
}
