//! The status store, `status.sled`: what the server answers from. The only file of the crate that names sled.
//!
//! It is a copy: the spools are the truth, and the store can be made anew from them. A report with a large result is kept without it,
//! because sled holds more in memory than it is told to. One thread writes, and takes all that waits into one flush, so that many starts
//! share one sync.

use std::os::unix::fs::DirBuilderExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::job::{HostState, MinionJobId};
use common::protocol::{JobReport, ListedJob};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

/// How much of the store is held in memory. sled's own default would let it grow to hundreds of megabytes.
const CACHE_BYTES: u64 = 16 << 20;

/// Writes that may wait for the writer; more wait to be let in.
const QUEUE_MAX: usize = 1024;

/// The largest report that is kept whole, as JSON.
const WHOLE_MAX_BYTES: usize = 16 * 1024;

/// How long a write may take. sled waits for ever for a write that a full disk has refused once.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// The file inside a sled store that holds its data.
const DATA_FILE: &str = "db";

/// Why the store cannot be opened or written.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// Another process has it open.
    #[error("{} is in use: another minion runs with this state_dir", .0.display())]
    InUse(PathBuf),
    /// The disk is full, or another failure of the file system.
    #[error("writing {}: {problem}", path.display())]
    Write {
        /// The store.
        path: PathBuf,
        /// What sled or the kernel says.
        problem: String,
    },
    /// A damaged store could not be set aside.
    #[error("{} is damaged and cannot be set aside: {problem}", path.display())]
    SetAside {
        /// The store.
        path: PathBuf,
        /// Why.
        problem: String,
    },
    /// The writer is gone: the minion is stopping.
    #[error("the status store is closed")]
    Closed,
    /// A write has not ended in time.
    #[error("writing {} has not ended after {WRITE_TIMEOUT:?}", .0.display())]
    Stuck(PathBuf),
}

/// What is known of a job.
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

    /// Whether it has ended, and what is known of that will not change. What is lost may yet be found.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.state().is_final() && self.state() != HostState::Lost
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

struct Write {
    report: JobReport,
    done: oneshot::Sender<Result<(), StoreError>>,
}

/// What is known of the jobs of this host.
pub struct Store {
    path: PathBuf,
    jobs: sled::Tree,
    writes: mpsc::Sender<Write>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "Store({})", self.path.display())
    }
}

impl Store {
    /// Opens the store at `path`, which is made if need be. One that is damaged is set aside under a dated name, which is given back,
    /// and an empty one takes its place: it is to be filled from the spools.
    ///
    /// # Errors
    /// Another process has it open, or the file system refuses.
    pub fn open(path: &Path) -> Result<(Self, Option<PathBuf>), StoreError> {
        let (db, aside) = match try_open(path) {
            Ok(db) => (db, None),
            Err(Unopened::InUse) => return Err(StoreError::InUse(path.to_owned())),
            Err(Unopened::Refused(problem)) => return Err(StoreError::Write { path: path.to_owned(), problem }),
            Err(Unopened::Damaged) => {
                let aside = set_aside(path)?;
                let again = try_open(path).map_err(|_| StoreError::Write { path: path.to_owned(), problem: "not even anew".to_owned() })?;
                (again, Some(aside))
            }
        };
        let failed = |error: sled::Error| StoreError::Write { path: path.to_owned(), problem: error.to_string() };
        let jobs = db.open_tree("jobs").map_err(failed)?;
        let (writes, queue) = mpsc::channel(QUEUE_MAX);
        let writer = Writer { db, jobs: jobs.clone(), path: path.to_owned() };
        let spawned = std::thread::Builder::new().name("store".to_owned()).spawn(move || writer.write_all(queue));
        spawned.map_err(|error| StoreError::Write { path: path.to_owned(), problem: error.to_string() })?;
        Ok((Self { path: path.to_owned(), jobs, writes }, aside))
    }

    /// What is known of the job `id`; nothing, too, of one whose entry cannot be read, which the spool then tells anew.
    #[must_use]
    pub fn find(&self, id: &MinionJobId) -> Option<Known> {
        find(&self.jobs, id)
    }

    /// All that is known, in no order.
    pub fn all(&self) -> impl Iterator<Item = Known> {
        self.jobs.iter().values().filter_map(|entry| serde_json::from_slice(&entry.ok()?).ok())
    }

    /// Writes what is known of a job over what was; news of a job that has ended, as the store knows already, changes nothing. Durable on
    /// return.
    ///
    /// # Errors
    /// The disk is full, or another failure of the file system. The store is not to be relied on after that: sled may never write again.
    pub async fn put(&self, report: JobReport) -> Result<(), StoreError> {
        let (done, written) = oneshot::channel();
        let write = async {
            self.writes.send(Write { report, done }).await.map_err(|_| StoreError::Closed)?;
            written.await.unwrap_or(Err(StoreError::Closed))
        };
        tokio::time::timeout(WRITE_TIMEOUT, write).await.unwrap_or_else(|_| Err(StoreError::Stuck(self.path.clone())))
    }
}

fn find(jobs: &sled::Tree, id: &MinionJobId) -> Option<Known> {
    let entry = jobs.get(id.as_str()).ok().flatten()?;
    serde_json::from_slice(&entry).ok()
}

enum Unopened {
    InUse,
    Refused(String),
    Damaged,
}

fn try_open(path: &Path) -> Result<sled::Db, Unopened> {
    // Made by sled, others could read it, where they can enter the folder it is in.
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|error| Unopened::Refused(error.to_string()))?;
    // A damaged file makes sled panic more often than fail.
    let config = sled::Config::new().path(path).cache_capacity(CACHE_BYTES).flush_every_ms(None);
    match catch_unwind(AssertUnwindSafe(|| config.open())) {
        Ok(Ok(db)) => Ok(db),
        Ok(Err(sled::Error::Io(error))) if error.to_string().contains("could not acquire lock") => Err(Unopened::InUse),
        Ok(Err(sled::Error::Io(error))) if error.kind() != std::io::ErrorKind::UnexpectedEof => Err(Unopened::Refused(error.to_string())),
        Ok(Err(_)) | Err(_) => Err(Unopened::Damaged),
    }
}

fn set_aside(path: &Path) -> Result<PathBuf, StoreError> {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".damaged-{}", Timestamp::now().strftime("%Y%m%dT%H%M%S%.3f")));
    let aside = PathBuf::from(name);
    let failed = |error: std::io::Error| StoreError::SetAside { path: path.to_owned(), problem: error.to_string() };
    std::fs::rename(path, &aside).map_err(failed)?;
    Ok(aside)
}

struct Writer {
    db: sled::Db,
    jobs: sled::Tree,
    path: PathBuf,
}

impl Writer {
    fn write_all(&self, mut queue: mpsc::Receiver<Write>) {
        let mut writes = Vec::new();
        while queue.blocking_recv_many(&mut writes, QUEUE_MAX) > 0 {
            let result = catch_unwind(AssertUnwindSafe(|| self.write(&writes))).unwrap_or_else(|_| Err("sled panicked".to_owned()));
            let result = result.map_err(|problem| StoreError::Write { path: self.path.clone(), problem });
            for write in writes.drain(..) {
                // Who no longer waits does not need to know.
                let _gone = write.done.send(result.clone());
            }
        }
    }

    fn write(&self, writes: &[Write]) -> Result<(), String> {
        for Write { report, .. } in writes {
            let is_news =
                report.progress.state().is_final() || find(&self.jobs, &report.minion_job_id).is_none_or(|known| !known.is_settled());
            if !is_news {
                continue;
            }
            let mut text = serde_json::to_vec(&Known::Whole(report.clone())).map_err(|error| error.to_string())?;
            if text.len() > WHOLE_MAX_BYTES {
                text = serde_json::to_vec(&Known::Listed(report.clone().into())).map_err(|error| error.to_string())?;
            }
            self.jobs.insert(report.minion_job_id.as_str(), text).map_err(|error| error.to_string())?;
        }
        self.db.flush().map_err(|error| error.to_string())?;
        // sled's flush starts the writing but does not wait for the disk.
        let data = std::fs::File::open(self.path.join(DATA_FILE)).and_then(|file| file.sync_data());
        data.map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;
    use common::outcome::{Outcome, Verdict};
    use common::protocol::JobProgress;
    use serde_json::json;

    fn report(id: &str) -> JobReport {
        serde_json::from_value(json!({
            "minion_job_id": id, "call_id": "54k2-9xqd-4fz1", "caller": "admin", "method": "test.ping",
            "accepted_at": "2026-01-01T00:00:00Z", "state": "running",
        }))
        .unwrap()
    }

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(future)
    }

    #[test]
    fn what_was_written_is_there_after_a_restart_and_nobody_else_gets_in() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("status.sled");
        let job = report("0000-0000-0001");
        let (store, _) = Store::open(&path).unwrap();
        block_on(store.put(job.clone())).unwrap();
        assert!(matches!(Store::open(&path), Err(StoreError::InUse(_))));
        drop(store);
        let reopened = (0..500).find_map(|_| {
            std::thread::sleep(std::time::Duration::from_millis(10));
            Store::open(&path).ok()
        });
        let (store, aside) = reopened.unwrap();
        assert_eq!((store.find(&job.minion_job_id), aside), (Some(Known::Whole(job)), None));
        assert_eq!(store.all().count(), 1);
    }

    #[test]
    fn a_large_result_is_left_to_the_spool_and_an_end_is_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = Store::open(&dir.path().join("status.sled")).unwrap();
        let going = report("0000-0000-0001");
        let mut ended = going.clone();
        let verdict = Verdict::Ok { result: json!("x".repeat(WHOLE_MAX_BYTES)) };
        ended.progress = JobProgress::Ended(Outcome::not_run(verdict, Timestamp::UNIX_EPOCH));
        for report in [&going, &ended, &going] {
            block_on(store.put(report.clone())).unwrap();
        }
        assert_eq!(store.find(&going.minion_job_id), Some(Known::Listed(ended.into())));
    }

    #[test]
    fn a_damaged_store_is_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("status.sled");
        std::fs::create_dir(&path).unwrap();
        std::fs::write(path.join("conf"), b"not what sled writes").unwrap();
        let (store, aside) = Store::open(&path).unwrap();
        assert!(aside.unwrap().join("conf").exists());
        assert_eq!(store.all().count(), 0);
    }
}
