//! The file of the audit log: whole lines, appended under its lock, and rotated by size.
//!
//! Each line is in exactly one of the files, whoever else appends and whoever is killed. A lock that is not to be had, or a rotation that
//! fails, keeps no line out of it.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tracing::error;

use super::Rotation;

/// How long another process may hold the lock, which it needs for some microseconds, before a line is written without it.
const LOCK_PATIENCE: Duration = Duration::from_millis(100);
/// How often it is looked whether it is free.
const LOCK_LOOK_EVERY: Duration = Duration::from_millis(1);
/// How often a line begins anew because the file is full. Others may fill each new one first.
const ROTATIONS_MAX: usize = 4;

/// The file, open for appending.
#[derive(Debug)]
pub(super) struct LogFile {
    path: PathBuf,
    rotation: Rotation,
    file: File,
    /// The lock was not to be had, and is not waited for until it is.
    is_lock_held: bool,
    /// It was said that rotating fails.
    is_failure_told: bool,
}

impl LogFile {
    pub(super) fn open(path: &Path, rotation: Rotation) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), rotation, file: open(path)?, is_lock_held: false, is_failure_told: false })
    }

    /// Appends `line`, which ends in a line break.
    pub(super) fn append(&mut self, line: &[u8]) -> io::Result<()> {
        for _ in 0..ROTATIONS_MAX {
            let is_locked = self.lock()?;
            if !is_locked || !self.is_full_for(line)? || !self.rotate() {
                break;
            }
        }
        let written = self.write(line);
        let _it_may_not_be_locked = self.file.unlock();
        written
    }

    /// Locks the file that is at the path now. False: it could not be locked, and is open all the same.
    fn lock(&mut self) -> io::Result<bool> {
        let patience = if self.is_lock_held { Duration::ZERO } else { LOCK_PATIENCE };
        let deadline = Instant::now() + patience;
        loop {
            let locked = self.file.try_lock();
            let is_elsewhere = is_elsewhere(&self.file, &self.path);
            if is_elsewhere {
                self.file = open(&self.path)?;
            }
            match locked {
                Ok(()) if !is_elsewhere => {
                    self.is_lock_held = false;
                    return Ok(true);
                }
                Err(TryLockError::Error(_)) => return Ok(false),
                Ok(()) | Err(TryLockError::WouldBlock) if Instant::now() >= deadline => {
                    self.is_lock_held = true;
                    return Ok(false);
                }
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => std::thread::sleep(LOCK_LOOK_EVERY),
            }
        }
    }

    fn is_full_for(&self, line: &[u8]) -> io::Result<bool> {
        let (length, more) = (self.file.metadata()?.len(), u64::try_from(line.len()).unwrap_or(u64::MAX));
        Ok(length > 0 && length.saturating_add(more) > self.rotation.max_bytes)
    }

    /// Moves the files up. Whether the path is free now.
    fn rotate(&mut self) -> bool {
        match rotate(&self.path, self.rotation.files) {
            Ok(()) => {
                self.is_failure_told = false;
                true
            }
            Err(error) => {
                if !self.is_failure_told {
                    let (path, files) = (self.path.display(), self.rotation.files);
                    error!(%path, %error, files, "the audit log cannot be rotated, and grows beyond audit.max_bytes");
                }
                self.is_failure_told = true;
                false
            }
        }
    }

    /// Writes `line`, on a line of its own though what is there be torn.
    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        let length = self.file.metadata()?.len();
        let mut last = [b'\n'];
        if length > 0 {
            self.file.read_exact_at(&mut last, length - 1)?;
        }
        match last {
            [b'\n'] => self.file.write_all(line),
            _ => self.file.write_all(&[b"\n", line].concat()),
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path)
}

/// Whether the file that is open is not the one at `path` any more: it was rotated away, or removed.
fn is_elsewhere(file: &File, path: &Path) -> bool {
    let identity = |file: fs::Metadata| (file.dev(), file.ino());
    match (file.metadata(), fs::metadata(path)) {
        (Ok(open), Ok(named)) => identity(open) != identity(named),
        _ => true,
    }
}

/// Moves `path` to `path.1`, and what is in the way on by one, up to the first number that is free: a gap is what a kill left, and closing
/// it costs no file. Where none is free, the oldest goes.
fn rotate(path: &Path, files: u32) -> io::Result<()> {
    let numbered = |number: u32| {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".{number}"));
        PathBuf::from(name)
    };
    let is_there = |number: u32| numbered(number).symlink_metadata().is_ok();
    // A configuration that kept more has left them.
    for number in (files.saturating_add(1)..).take_while(|number| is_there(*number)) {
        fs::remove_file(numbered(number))?;
    }
    let free = (1..files).find(|number| !is_there(*number)).unwrap_or(files);
    for number in (1..free).rev() {
        fs::rename(numbered(number), numbered(number + 1))?;
    }
    fs::rename(path, numbered(1))
}
