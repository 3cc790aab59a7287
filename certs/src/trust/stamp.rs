//! How it is seen that a file has changed, without reading it.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// A file that changed so short a time ago might change again without its times telling: they go in steps of some milliseconds.
const SETTLING_NANOS: i128 = 100_000_000;

/// What is seen of one file from outside; of one that is not there, nothing.
type Stamp = Option<[i128; 5]>;

/// What is seen of some files. Taken before they are read, so that what changes while they are read is seen the next time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stamps(Vec<Stamp>, bool);

impl Stamps {
    pub(crate) fn of(paths: &[&Path]) -> Self {
        Self::seen(paths, |path| fs::metadata(path))
    }

    /// The same, where a symbolic link is looked at itself.
    pub(crate) fn of_links(paths: &[&Path]) -> Self {
        Self::seen(paths, |path| fs::symlink_metadata(path))
    }

    fn seen(paths: &[&Path], look: fn(&Path) -> io::Result<Metadata>) -> Self {
        let stamps: Vec<_> = paths.iter().map(|path| look(path).ok().map(|seen| stamp(&seen))).collect();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| i128::try_from(since.as_nanos()).unwrap_or(i128::MAX));
        let settled = stamps.iter().flatten().all(|[.., changed]| !(0..SETTLING_NANOS).contains(&(now - changed)));
        Self(stamps, settled)
    }

    /// None of them has changed in the last moment. If one had, it must be read again the next time, whatever is seen then.
    pub(crate) fn are_settled(&self) -> bool {
        self.1
    }

    /// All but the first, which is the revocation list.
    pub(super) fn credentials(&self) -> &[Stamp] {
        self.0.get(1..).unwrap_or_default()
    }
}

fn stamp(seen: &Metadata) -> [i128; 5] {
    let nanos = |seconds: i64, nanos: i64| i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
    [
        i128::from(seen.dev()),
        i128::from(seen.ino()),
        i128::from(seen.size()),
        nanos(seen.mtime(), seen.mtime_nsec()),
        nanos(seen.ctime(), seen.ctime_nsec()),
    ]
}
