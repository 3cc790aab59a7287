//! The status store, `status.sled`: what the server answers from. The only file of the crate that names sled.
//!
//! It is a copy of what the spools say of jobs that have ended, in which they can be found and counted quickly; it can be made anew at any
//! time, and where it cannot be used the spools alone answer. One that a newer version has written is left alone for that version, and another, with
//! the number of its format in its name, takes its place meanwhile: nothing is in it that the spools do not say. A report with a large result is kept without it, because sled holds more in
//! memory than it is told to. One thread writes, and takes all that waits into one flush, so that many ends share one sync.

mod writer;

use std::os::unix::fs::DirBuilderExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use certs::format::{self, MarkError};
use common::format::{Age, Format, FormatError, Program};
use common::identity::CallerName;
use common::job::{CallId, HostState, MinionJobId};
use common::protocol::{JobProgress, JobReport, ListedJob};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

use crate::moment::Moment;
use writer::{Change, Write, Writer};

/// The format of the store.
const FORMAT: Format = Format { number: 1, program: Program::Minion };

/// Only the server reads it.
const MARK_MODE: u32 = 0o600;

/// How much of the store is held in memory. sled's own default would let it grow to hundreds of megabytes.
const CACHE_BYTES: u64 = 16 << 20;

/// Writes that may wait for the writer; more wait to be let in.
const QUEUE_MAX: usize = 1024;

/// The largest report that is kept whole, as JSON.
const WHOLE_MAX_BYTES: usize = 16 * 1024;

/// How long a write may take. sled waits for ever for a write that a full disk has refused once.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// Where less is free the store is not written: sled grows its file by segments of 512 KiB, several at a time, and never recovers
/// from a disk that is full.
const FREE_MIN_BYTES: u64 = 4 << 20;

/// Why the store cannot be opened or written.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The disk is full, or another failure of the file system.
    #[error("writing {}: {problem}", path.display())]
    Write {
        /// The store.
        path: PathBuf,
        /// What sled or the kernel says.
        problem: String,
    },
    /// There is too little room to write.
    #[error("{} is not written, because less than {FREE_MIN_BYTES} bytes are free there", .0.display())]
    NoRoom(PathBuf),
    /// It could not be opened yet, or failed.
    #[error("{} is not in use at present", .0.display())]
    Closed(PathBuf),
    /// A write has not ended in time.
    #[error("writing {} has not ended after {WRITE_TIMEOUT:?}", .0.display())]
    Stuck(PathBuf),
}

/// What is known of a job that has ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Known {
    /// All of it.
    Whole(JobReport),
    /// All but the result, which its spool has.
    Listed(ListedJob),
}

impl Known {
    /// The state on this host.
    #[must_use]
    pub fn state(&self) -> HostState {
        match self {
            Self::Whole(report) => report.progress.state(),
            Self::Listed(job) => job.state,
        }
    }
}

impl From<Known> for ListedJob {
    fn from(known: Known) -> Self {
        match known {
            Known::Whole(report) => report.into(),
            Known::Listed(job) => job,
        }
    }
}

/// What retention needs to know of a job that has ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Kept {
    /// Whose it is.
    pub caller: CallerName,
    /// Of which call.
    pub call_id: CallId,
    /// Until when that call may come again.
    pub start_before: Timestamp,
    /// How much of the disk it takes.
    pub bytes: u64,
    /// Since when it is known to have ended.
    pub since: Moment,
}

/// A job that has ended, in the order of the ends.
#[derive(Debug, Clone, PartialEq)]
pub struct End {
    /// Which.
    pub id: MinionJobId,
    /// What retention needs to know.
    pub kept: Kept,
    key: Vec<u8>,
}

/// What is known of the jobs of this host that have ended.
pub struct Store {
    path: PathBuf,
    open: Mutex<Option<Open>>,
}

/// What came of opening the store.
#[derive(Debug, PartialEq, Eq)]
pub enum Opening {
    /// It was open.
    WasOpen,
    /// It is open, with what was in it.
    Opened,
    /// It is open and empty: the one that was there is damaged, and has this name now.
    Renewed(PathBuf),
    /// Another is open, because the one of the usual name is a newer version's, as this says.
    Beside(String),
}

#[derive(Clone)]
struct Open {
    jobs: sled::Tree,
    ends: sled::Tree,
    writes: mpsc::Sender<Write>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "Store({})", self.path.display())
    }
}

impl Store {
    /// The store at `path`, not open yet.
    #[must_use]
    pub fn at(path: &Path) -> Self {
        Self { path: path.to_owned(), open: Mutex::default() }
    }

    /// Opens the store, which is made if need be. One that is damaged, or that has failed, is set aside under a dated name, and an empty one
    /// takes its place: it is to be filled from the spools. One of a newer version is not touched.
    ///
    /// # Errors
    /// The disk is full, or another failure of the file system. It may be tried again.
    pub fn open(&self) -> Result<Opening, StoreError> {
        let mut open = self.lock();
        if open.is_some() {
            return Ok(Opening::WasOpen);
        }
        require_room(self.path.parent().unwrap_or(&self.path)).map_err(|()| StoreError::NoRoom(self.path.clone()))?;
        let (path, newer) = place(&self.path);
        let failed = |problem: String| StoreError::Write { path: path.clone(), problem };
        let (db, opening) = match try_open(&path) {
            Ok(db) => (db, Opening::Opened),
            Err(Unopened::Refused(problem)) => return Err(failed(problem)),
            Err(Unopened::Damaged) => {
                let aside = set_aside(&path)?;
                let again = try_open(&path).map_err(|_| failed("not even anew".to_owned()))?;
                (again, Opening::Renewed(aside))
            }
        };
        let tree = |name: &str| db.open_tree(name).map_err(|error| failed(error.to_string()));
        let (jobs, ends) = (tree("jobs")?, tree("ends")?);
        let (writes, queue) = mpsc::channel(QUEUE_MAX);
        let writer = Writer { db, jobs: jobs.clone(), ends: ends.clone(), path: path.clone() };
        let spawned = std::thread::Builder::new().name("store".to_owned()).spawn(move || writer.write_all(queue));
        spawned.map_err(|error| failed(error.to_string()))?;
        *open = Some(Open { jobs, ends, writes });
        Ok(newer.map_or(opening, Opening::Beside))
    }

    /// What is known of the job `id`; nothing, too, of one whose entry cannot be read, which the spool then tells anew.
    #[must_use]
    pub fn find(&self, id: &MinionJobId) -> Option<Known> {
        let entry = self.opened()?.jobs.get(id.as_str()).ok().flatten()?;
        serde_json::from_slice(&entry).ok()
    }

    /// Every job that has ended, the oldest end first, or from the other side the newest.
    pub fn ends(&self) -> impl DoubleEndedIterator<Item = End> + use<> {
        let ends = self.opened().map(|open| open.ends.iter());
        ends.into_iter().flatten().filter_map(|entry| {
            let (key, kept) = entry.ok()?;
            let id = std::str::from_utf8(key.get(MOMENT_BYTES..)?).ok()?.parse().ok()?;
            Some(End { id, kept: serde_json::from_slice(&kept).ok()?, key: key.to_vec() })
        })
    }

    /// Whether the job `id` is known to have ended.
    #[must_use]
    pub fn contains(&self, id: &MinionJobId) -> bool {
        self.opened().is_some_and(|open| open.jobs.contains_key(id.as_str()).unwrap_or(false))
    }

    /// The end of the job that `report` is about.
    #[must_use]
    pub fn end(&self, report: &JobReport) -> Option<End> {
        let key = end_key(report);
        let kept = self.opened()?.ends.get(&key).ok().flatten()?;
        Some(End { id: report.minion_job_id.clone(), kept: serde_json::from_slice(&kept).ok()?, key })
    }

    /// Takes in a job that has ended; `false` if it is in already, which leaves it as it is. Durable on return.
    ///
    /// # Errors
    /// See [`StoreError`]. After any but `NoRoom` the store is closed: sled may never write again.
    pub async fn put(&self, report: JobReport, kept: Kept) -> Result<bool, StoreError> {
        self.write(Change::Put(Box::new(report), Box::new(kept))).await
    }

    /// Takes jobs out.
    ///
    /// # Errors
    /// As [`Store::put`].
    pub async fn remove(&self, ends: Vec<End>) -> Result<(), StoreError> {
        self.write(Change::Remove(ends)).await.map(drop)
    }

    async fn write(&self, change: Change) -> Result<bool, StoreError> {
        let Some(open) = self.opened() else { return Err(StoreError::Closed(self.path.clone())) };
        let (done, written) = oneshot::channel();
        let write = async {
            let closed = || StoreError::Closed(self.path.clone());
            open.writes.send(Write { change, done }).await.map_err(|_| closed())?;
            written.await.unwrap_or_else(|_| Err(closed()))
        };
        let written = tokio::time::timeout(WRITE_TIMEOUT, write).await.unwrap_or_else(|_| Err(StoreError::Stuck(self.path.clone())));
        if written.as_ref().is_err_and(|error| !matches!(error, StoreError::NoRoom(_))) {
            self.lock().take_if(|now| now.writes.same_channel(&open.writes));
        }
        written
    }

    fn opened(&self) -> Option<Open> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Option<Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn set_aside(path: &Path) -> Result<PathBuf, StoreError> {
    let aside = named(path, &format!("damaged-{}", Timestamp::now().strftime("%Y%m%dT%H%M%S%.3f")));
    let failed = |error: std::io::Error| StoreError::Write { path: path.to_owned(), problem: format!("setting it aside: {error}") };
    std::fs::rename(path, &aside).map(|()| aside).map_err(failed)
}

/// Which store is to be opened: the one of the usual name, or another beside it if that is a newer version's, as is told then.
fn place(usual: &Path) -> (PathBuf, Option<String>) {
    let beside = named(usual, &format!("format-{}", FORMAT.number));
    if let Err(MarkError::Format(newer @ FormatError::Newer { .. })) = format::age(usual, &FORMAT) {
        return (beside, Some(newer.to_string()));
    }
    // Of a time when the usual one was a newer version's. There is none as a rule.
    let _none = std::fs::remove_dir_all(beside);
    (usual.to_owned(), None)
}

fn named(path: &Path, more: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{more}"));
    name.into()
}

/// The time in a key of `ends`, in milliseconds, so that keys sort by it.
const MOMENT_BYTES: usize = 8;

/// It follows from what the spool says, so that a job that is taken in twice has one.
fn end_key(report: &JobReport) -> Vec<u8> {
    let ended = match &report.progress {
        JobProgress::Ended(outcome) => outcome.finished_at,
        JobProgress::Going { .. } => None,
    };
    let ended = u64::try_from(ended.unwrap_or(report.accepted_at).as_millisecond()).unwrap_or(0);
    [&ended.to_be_bytes(), report.minion_job_id.as_str().as_bytes()].concat()
}

fn require_room(folder: &Path) -> Result<(), ()> {
    // A folder that cannot be looked at is not full; whoever writes to it hears what is wrong with it.
    let is_full = crate::disk::free_bytes(folder).is_ok_and(|free| free < FREE_MIN_BYTES);
    if is_full { Err(()) } else { Ok(()) }
}

enum Unopened {
    Refused(String),
    Damaged,
}

fn try_open(path: &Path) -> Result<sled::Db, Unopened> {
    // Made by sled, others could read it, where they can enter the folder it is in.
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|error| Unopened::Refused(error.to_string()))?;
    bring_forward(path)?;
    // A damaged file makes sled panic more often than fail.
    let config = sled::Config::new().path(path).cache_capacity(CACHE_BYTES).flush_every_ms(None);
    match catch_unwind(AssertUnwindSafe(|| config.open())) {
        Ok(Ok(db)) => Ok(db),
        // No other process may have it: it is our own, which failed, and which a thread that waits for ever holds.
        Ok(Err(sled::Error::Io(error))) if error.to_string().contains("could not acquire lock") => Err(Unopened::Damaged),
        Ok(Err(sled::Error::Io(error))) if error.kind() != std::io::ErrorKind::UnexpectedEof => Err(Unopened::Refused(error.to_string())),
        Ok(Err(_)) | Err(_) => Err(Unopened::Damaged),
    }
}

/// Sees to it that the store is of this version's format. One of an older version is made anew: the spools say all that is in it.
fn bring_forward(path: &Path) -> Result<(), Unopened> {
    let refused = |error: MarkError| Unopened::Refused(common::shown::chain(&error));
    match format::age(path, &FORMAT) {
        Ok(Age::Ours) => return Ok(()),
        Ok(Age::Unmarked) => {}
        // There is a folder, though it may have been made a moment ago.
        Ok(Age::Older) => {
            let emptied = std::fs::remove_dir_all(path).and_then(|()| std::fs::DirBuilder::new().mode(0o700).create(path));
            emptied.map_err(|error| Unopened::Refused(error.to_string()))?;
        }
        Err(MarkError::Format(FormatError::Damaged { .. })) => return Err(Unopened::Damaged),
        Err(error) => return Err(refused(error)),
    }
    format::mark(path, &FORMAT, MARK_MODE).map_err(refused)
}

#[cfg(test)]
mod tests;
