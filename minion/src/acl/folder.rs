//! The folder of the rules as it lies on disk: which files it has, what stands in them, and whether it has changed since. It decides nothing.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::rules::{Problem, Rules};

/// A file that changed less than this before it was read may change again without looking changed: file systems stamp times in ticks.
const TICK: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) rules: Rules,
    pub(super) problems: Vec<Problem>,
    /// What the folder looked like just before it was read; none if that may deceive.
    pub(super) listing: Option<Vec<Stamp>>,
}

/// Enough of a file to see that it has changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stamp {
    pub(super) name: PathBuf,
    inode: u64,
    size_bytes: u64,
    changed: [i64; 4],
}

/// Reads the folder. The listing is taken first: a change in between makes the next look differ from it.
pub(super) fn load(dir: &Path) -> Loaded {
    let listing = match listing(dir) {
        Ok(listing) => listing,
        Err(error) => return Loaded { rules: Rules::default(), problems: vec![Problem::of_dir(dir, &error)], listing: None },
    };
    let (mut rules, mut problems) = (Rules::default(), Vec::new());
    for stamp in &listing {
        let path = dir.join(&stamp.name);
        let added = fs::read_to_string(&path).map_err(|error| Problem::of_file(&path, &error)).and_then(|text| rules.add(&path, &text));
        problems.extend(added.err());
    }
    let listing = Some(listing).filter(|listing| is_settled(listing));
    Loaded { rules, problems, listing }
}

/// The `*.toml` of the folder in the order of their names. Hidden files, an editor's for instance, are not rules.
pub(super) fn listing(dir: &Path) -> io::Result<Vec<Stamp>> {
    let mut stamps = Vec::new();
    for entry in fs::read_dir(dir)? {
        let name = PathBuf::from(entry?.file_name());
        let is_hidden = name.as_os_str().as_encoded_bytes().starts_with(b".");
        if name.extension().is_some_and(|extension| extension == "toml") && !is_hidden {
            // One that vanished since is in the next listing no more; a link to nothing is a problem to be told.
            let stamp = fs::metadata(dir.join(&name)).map_or_else(|_| Stamp::unread(name.clone()), |file| Stamp::of(name.clone(), &file));
            stamps.push(stamp);
        }
    }
    stamps.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(stamps)
}

fn is_settled(listing: &[Stamp]) -> bool {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let limit = i64::try_from(now.saturating_sub(TICK).as_millis()).unwrap_or(i64::MAX);
    listing.iter().all(|stamp| {
        let [modified, modified_nanos, changed, changed_nanos] = stamp.changed;
        let milliseconds = |seconds: i64, nanos: i64| seconds.saturating_mul(1000).saturating_add(nanos / 1_000_000);
        milliseconds(modified, modified_nanos).max(milliseconds(changed, changed_nanos)) < limit
    })
}

impl Stamp {
    fn of(name: PathBuf, file: &fs::Metadata) -> Self {
        let changed = [file.mtime(), file.mtime_nsec(), file.ctime(), file.ctime_nsec()];
        Self { name, inode: file.ino(), size_bytes: file.len(), changed }
    }

    fn unread(name: PathBuf) -> Self {
        Self { name, inode: 0, size_bytes: 0, changed: [0; 4] }
    }
}
