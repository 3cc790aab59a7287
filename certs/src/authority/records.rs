//! A folder of small files, one for each thing that happened, kept in memory as it lies on disk: what has changed since the last look is
//! read again, so that several processes can work on one authority.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use common::seal;
use rayon::prelude::*;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::AuthorityError;
use crate::files::{self, FileError};

/// The files `NAME.EXTENSION` of a folder, by name.
#[derive(Debug)]
pub(super) struct Folder<T> {
    path: PathBuf,
    extension: &'static str,
    read: fn(&Path) -> Option<T>,
    entries: BTreeMap<String, (Stamp, T)>,
    /// Files that cannot be understood.
    damaged: Vec<PathBuf>,
}

/// Enough of a file to see that it is another: every change is a new file that is renamed into place.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    changed: [i64; 4],
}

impl<T: Send + Sync> Folder<T> {
    /// The folder, of which nothing is read yet. `read` gives nothing for a file that is damaged.
    pub(super) fn new(path: PathBuf, extension: &'static str, read: fn(&Path) -> Option<T>) -> Self {
        Self { path, extension, read, entries: BTreeMap::new(), damaged: Vec::new() }
    }

    /// Reads what has changed.
    pub(super) fn refresh(&mut self) -> Result<(), AuthorityError> {
        let failed = |source| AuthorityError::Folder { doing: "reading", path: self.path.clone(), source };
        let names = self.names().map_err(failed)?;
        let (read, known) = (self.read, &self.entries);
        let look = |name: String| {
            let path = self.file(&name);
            // One that vanished meanwhile is there no more.
            let stamp = Stamp::of(&path).ok()?;
            Some((known.get(&name).is_none_or(|(seen, _)| *seen != stamp).then(|| read(&path)), name, stamp))
        };
        let looked: Vec<_> = names.into_par_iter().filter_map(look).collect();
        let mut before = std::mem::take(&mut self.entries);
        self.damaged.clear();
        for (fresh, name, stamp) in looked {
            match fresh.unwrap_or_else(|| before.remove(&name).map(|(_, entry)| entry)) {
                Some(entry) => drop(self.entries.insert(name, (stamp, entry))),
                None => self.damaged.push(self.file(&name)),
            }
        }
        Ok(())
    }

    pub(super) fn get(&self, name: &str) -> Option<&T> {
        self.entries.get(name).map(|(_, entry)| entry)
    }

    /// Holds an entry that is about to be written, until the next look.
    pub(super) fn note(&mut self, name: &str, entry: T) {
        self.entries.insert(name.to_owned(), (Stamp::default(), entry));
    }

    /// Every entry, with its name.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &T)> {
        self.entries.iter().map(|(name, (_, entry))| (name.as_str(), entry))
    }

    /// The files that cannot be understood.
    pub(super) fn damaged(&self) -> &[PathBuf] {
        &self.damaged
    }

    /// Where the entry `name` lies.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.path.join(format!("{name}.{}", self.extension))
    }

    /// Removes an entry; its name's end is not synced yet.
    pub(super) fn remove(&self, name: &str) -> Result<(), AuthorityError> {
        let path = self.file(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(FileError::Write { path, source: error }.into()),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Makes all that was written and removed last.
    pub(super) fn sync(&self) -> Result<(), AuthorityError> {
        Ok(files::sync_folder(&self.path)?)
    }

    /// A folder that is not there is empty: an older version made none.
    fn names(&self) -> io::Result<Vec<String>> {
        let entries = match fs::read_dir(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut names = Vec::new();
        for entry in entries {
            let name = entry?.file_name();
            let stem = name.to_str().and_then(|name| name.strip_suffix(self.extension)?.strip_suffix('.'));
            names.extend(stem.filter(|stem| !stem.is_empty() && !stem.starts_with('.')).map(str::to_owned));
        }
        Ok(names)
    }
}

impl<T: Send + Sync + Serialize> Folder<T> {
    /// Writes an entry in place of what lies there; its name is not synced yet.
    pub(super) fn write(&self, name: &str, entry: &T) -> Result<(), AuthorityError> {
        let path = self.file(name);
        let bytes = seal::seal(entry).map_err(|error| FileError::Write { path: path.clone(), source: error.into() })?;
        Ok(files::replace(&path, &bytes, 0o600)?)
    }
}

/// Reads what was sealed; nothing if it is damaged.
pub(super) fn read_sealed<T: DeserializeOwned>(path: &Path) -> Option<T> {
    seal::open(&fs::read(path).ok()?).ok()
}

impl Stamp {
    fn of(path: &Path) -> io::Result<Self> {
        let file = fs::symlink_metadata(path)?;
        Ok(Self { inode: file.ino(), changed: [file.mtime(), file.mtime_nsec(), file.ctime(), file.ctime_nsec()] })
    }
}
