//! The folder of all spools: made, listed, swept. What a spool holds is its own.

use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;

use common::job::MinionJobId;
use jiff::Timestamp;

use super::{Forgotten, SpoolError, format, sync_dir};

/// Makes the folder that holds all spools, for root alone; one that is there is brought to this version's format.
///
/// # Errors
/// It cannot be made, or is of a newer version; then nothing in it is touched.
pub fn prepare(spools: &Path) -> Result<(), SpoolError> {
    if spools.is_dir() {
        return format::carry_forward(spools);
    }
    let failed = |source| SpoolError::File { doing: "making", path: spools.to_owned(), source };
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(spools).map_err(failed)?;
    // Another folder may have been here, with jobs that nobody knows of now: a disk that is not mounted, or was wiped.
    Forgotten::everything_until(Timestamp::now()).save(spools)?;
    format::carry_forward(spools)
}

/// Sweeps out of the folder of all spools what a crash left half-made, or half-removed, longer than `age` ago.
///
/// # Errors
/// It cannot be read.
pub fn sweep(spools: &Path, age: std::time::Duration) -> Result<(), SpoolError> {
    let failed = |doing| move |source| SpoolError::File { doing, path: spools.to_owned(), source };
    for entry in std::fs::read_dir(spools).map_err(failed("reading"))?.flatten() {
        let is_old = || entry.metadata().ok()?.modified().ok()?.elapsed().ok().map(|since| since > age);
        if entry.file_name().to_string_lossy().starts_with('.') && is_old() == Some(true) {
            // What cannot be removed now is met again at the next start, and harms nobody meanwhile.
            let _left_for_later = std::fs::remove_dir_all(entry.path()).or_else(|_| std::fs::remove_file(entry.path()));
        }
    }
    Ok(())
}

/// Sees to it that the names of all spools are durable.
///
/// # Errors
/// The file system refuses.
pub fn sync(spools: &Path) -> Result<(), SpoolError> {
    sync_dir(spools)
}

/// The ids of all spools, in no order. Folders with other names are passed over.
///
/// # Errors
/// The folder cannot be read.
pub fn list(spools: &Path) -> Result<Vec<MinionJobId>, SpoolError> {
    let entries = std::fs::read_dir(spools).map_err(|source| SpoolError::File { doing: "reading", path: spools.to_owned(), source })?;
    let mut ids = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|source| SpoolError::File { doing: "reading", path: spools.to_owned(), source })?;
        ids.extend(entry.file_name().to_str().and_then(|name| name.parse().ok()));
    }
    Ok(ids)
}
