//! The folder of the rules as it lies on disk: which files it has, what stands in them, and whether it has changed since. It decides nothing.

use std::fs;
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use nix::fcntl::OFlag;

use super::rules::{Problem, Rules};

/// A file that changed less than this before it was read may change again without looking changed: file systems stamp times in ticks.
const TICK: Duration = Duration::from_millis(100);

/// The key of a rule that does not only allow, but also says as whom.
const RUN_AS: &str = "run_as";

/// Whose rules are gone by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Writers {
    /// Whoever wrote them.
    Any,
    /// Those that root alone can have written.
    Root,
}

/// What was read.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) rules: Rules,
    pub(super) problems: Vec<Problem>,
    /// What the folder looked like just before it was read; none if that may deceive.
    pub(super) listing: Option<Listing>,
}

/// The folder and its files, enough to see that they have changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Listing {
    folder: Stamp,
    pub(super) files: Vec<Stamp>,
}

/// Enough of a file to see that it has changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stamp {
    pub(super) name: PathBuf,
    inode: u64,
    size_bytes: u64,
    owner: u32,
    mode: u32,
    changed: [i64; 4],
}

/// Reads the folder. The listing is taken first: a change in between makes the next look differ from it.
pub(super) fn load(dir: &Path, writers: Writers) -> Loaded {
    let (mut rules, mut problems) = (Rules::default(), Vec::new());
    let listing = match listing(dir) {
        Ok(listing) => listing,
        Err(error) => return Loaded { rules, problems: vec![Problem::of_dir(dir, &error)], listing: None },
    };
    problems.extend(writers.problem(dir, (listing.folder.owner, listing.folder.mode), "nobody may call anything"));
    if problems.is_empty() {
        for stamp in &listing.files {
            let path = dir.join(&stamp.name);
            let read = read(&path, writers);
            let may_restrict = read.as_ref().map_or(true, |text| text.contains(RUN_AS));
            match read.and_then(|text| rules.add(&path, &text)) {
                Ok(()) => {}
                // A rule behind it would allow as another user, or as root, what the first that fits says the user of.
                Err(problem) if may_restrict => {
                    problems.push(problem.with_all_behind());
                    break;
                }
                Err(problem) => problems.push(problem),
            }
        }
    }
    let listing = Some(listing).filter(Listing::is_settled);
    Loaded { rules, problems, listing }
}

/// A file of rules. Whose it is, is asked of the file that is read and not of its name, which may be a link.
fn read(path: &Path, writers: Writers) -> Result<String, Problem> {
    let unreadable = |error: io::Error| Problem::of_file(path, &error);
    // A FIFO would be waited for.
    let mut file = fs::File::options().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path).map_err(unreadable)?;
    let found = file.metadata().map_err(unreadable)?;
    if !found.is_file() {
        return Err(unreadable(io::Error::other("it is no file")));
    }
    if let Some(problem) = writers.problem(path, (found.uid(), found.mode()), "none of its rules holds") {
        return Err(problem);
    }
    let mut text = String::new();
    file.read_to_string(&mut text).map_err(unreadable)?;
    Ok(text)
}

impl Writers {
    /// What is wrong if what lies at `path` can be written by others, and what follows from it.
    fn problem(self, path: &Path, (owner, mode): (u32, u32), what_follows: &str) -> Option<Problem> {
        match self {
            Self::Any => None,
            Self::Root => Problem::of_others(path, owner, mode, what_follows),
        }
    }
}

/// The folder, and its `*.toml` in the order of their names. Hidden files, an editor's for instance, are not rules.
pub(super) fn listing(dir: &Path) -> io::Result<Listing> {
    let folder = Stamp::of(PathBuf::new(), &fs::metadata(dir)?);
    let mut files = Vec::new();
    for entry in fs::read_dir(dir)? {
        let name = PathBuf::from(entry?.file_name());
        let is_hidden = name.as_os_str().as_encoded_bytes().starts_with(b".");
        if name.extension().is_some_and(|extension| extension == "toml") && !is_hidden {
            // One that vanished since is in the next listing no more; a link to nothing is a problem to be told.
            let stamp = fs::metadata(dir.join(&name)).map_or_else(|_| Stamp::unread(name.clone()), |file| Stamp::of(name.clone(), &file));
            files.push(stamp);
        }
    }
    files.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(Listing { folder, files })
}

impl Listing {
    fn is_settled(&self) -> bool {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let limit = i64::try_from(now.saturating_sub(TICK).as_millis()).unwrap_or(i64::MAX);
        self.files.iter().chain([&self.folder]).all(|stamp| {
            let [modified, modified_nanos, changed, changed_nanos] = stamp.changed;
            let milliseconds = |seconds: i64, nanos: i64| seconds.saturating_mul(1000).saturating_add(nanos / 1_000_000);
            milliseconds(modified, modified_nanos).max(milliseconds(changed, changed_nanos)) < limit
        })
    }
}

impl Stamp {
    fn of(name: PathBuf, file: &fs::Metadata) -> Self {
        let changed = [file.mtime(), file.mtime_nsec(), file.ctime(), file.ctime_nsec()];
        Self { name, inode: file.ino(), size_bytes: file.len(), owner: file.uid(), mode: file.mode(), changed }
    }

    fn unread(name: PathBuf) -> Self {
        Self { name, inode: 0, size_bytes: 0, owner: 0, mode: 0, changed: [0; 4] }
    }
}
