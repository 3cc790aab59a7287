//! A folder of small files, one for each thing that happened, kept in memory as it lies on disk: what has changed since the last look is
//! read again, so that several processes can work on one authority.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

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
    /// Of a file's name without its extension, and its bytes; nothing if they are damaged.
    read: fn(&str, &[u8]) -> Option<T>,
    entries: BTreeMap<String, (Stamp, T)>,
    /// The names of files that cannot be understood.
    damaged: BTreeSet<String>,
    /// What the folder itself looked like when it was read last; none if that may deceive.
    seen: Option<Stamp>,
}

/// A folder that changed less than this before it was read may change again without looking changed: file systems stamp times in ticks.
const TICK: Duration = Duration::from_millis(100);

/// A file's name and stamp, and what it says if that was read now: nothing if it is damaged.
type Looked<T> = (String, Stamp, Option<Option<T>>);

/// Enough of a file to see that it is another: every change is a new file that is renamed into place.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    changed: [i64; 4],
}

impl<T: Send + Sync> Folder<T> {
    /// The folder, of which nothing is read yet. `read` gives nothing for a file that is damaged.
    pub(super) fn new(path: PathBuf, extension: &'static str, read: fn(&str, &[u8]) -> Option<T>) -> Self {
        Self { path, extension, read, entries: BTreeMap::new(), damaged: BTreeSet::new(), seen: None }
    }

    /// Reads what has changed; says whether anything has.
    pub(super) fn refresh(&mut self) -> Result<bool, AuthorityError> {
        let failed = |source| AuthorityError::Folder { doing: "reading", path: self.path.clone(), source };
        let now = Stamp::of(&self.path).ok();
        if now.is_some() && now == self.seen {
            return Ok(false);
        }
        let names = self.names().map_err(failed)?;
        let looked: Vec<_> = names.into_par_iter().map(|name| self.look(name)).collect::<io::Result<Vec<_>>>().map_err(failed)?;
        let mut before = std::mem::take(&mut self.entries);
        self.damaged.clear();
        for (name, stamp, fresh) in looked.into_iter().flatten() {
            match fresh.unwrap_or_else(|| before.remove(&name).map(|(_, entry)| entry)) {
                Some(entry) => drop(self.entries.insert(name, (stamp, entry))),
                None => drop(self.damaged.insert(name)),
            }
        }
        self.seen = now.filter(Stamp::is_settled);
        Ok(true)
    }

    /// A file's stamp, and what it says if that is not known yet. Nothing if it vanished meanwhile.
    fn look(&self, name: String) -> io::Result<Option<Looked<T>>> {
        let path = self.file(&name);
        let stamp = match Stamp::of(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            stamp => stamp?,
        };
        if self.entries.get(&name).is_some_and(|(seen, _)| *seen == stamp) {
            return Ok(Some((name, stamp, None)));
        }
        match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            bytes => {
                let entry = (self.read)(&name, &bytes?);
                Ok(Some((name, stamp, Some(entry))))
            }
        }
    }

    /// Holds an entry that is about to be written, until the next look.
    pub(super) fn note(&mut self, name: &str, entry: T) {
        self.seen = None;
        self.entries.insert(name.to_owned(), (Stamp::default(), entry));
    }

    pub(super) fn get(&self, name: &str) -> Option<&T> {
        self.entries.get(name).map(|(_, entry)| entry)
    }

    /// Every entry, with its name.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &T)> {
        self.entries.iter().map(|(name, (_, entry))| (name.as_str(), entry))
    }

    /// The names of the files that cannot be understood.
    pub(super) fn damaged(&self) -> &BTreeSet<String> {
        &self.damaged
    }

    /// The files that cannot be understood.
    pub(super) fn damaged_files(&self) -> Vec<PathBuf> {
        self.damaged.iter().map(|name| self.file(name)).collect()
    }

    /// When the file of an entry came to be, for telling apart what the entries themselves do not.
    pub(super) fn written_at(&self, name: &str) -> [i64; 2] {
        self.entries.get(name).map_or([0; 2], |(Stamp { changed: [seconds, nanos, ..], .. }, _)| [*seconds, *nanos])
    }

    /// Deletes what a kill left of files that were being written. Nobody else writes here meanwhile.
    pub(super) fn sweep(&self) {
        for entry in fs::read_dir(&self.path).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(files::UNFINISHED) {
                let _it_is_litter = fs::remove_file(entry.path());
            }
        }
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
pub(super) fn read_sealed<T: DeserializeOwned>(_: &str, bytes: &[u8]) -> Option<T> {
    seal::open(bytes).ok()
}

impl Stamp {
    fn of(path: &Path) -> io::Result<Self> {
        let file = fs::symlink_metadata(path)?;
        Ok(Self { inode: file.ino(), changed: [file.mtime(), file.mtime_nsec(), file.ctime(), file.ctime_nsec()] })
    }

    fn is_settled(&self) -> bool {
        let [modified, modified_nanos, changed, changed_nanos] = self.changed;
        let limit = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().saturating_sub(TICK);
        let limit = (i64::try_from(limit.as_secs()).unwrap_or(i64::MAX), i64::from(limit.subsec_nanos()));
        (modified, modified_nanos).max((changed, changed_nanos)) < limit
    }
}
