//! `jobs.sled`: the fold of all job logs, from which status is answered. The only file of the crate that names sled.
//!
//! It is open for as long as one piece of work takes, never while hosts are asked. It can always be rebuilt: with each job it
//! keeps how many bytes of the log are folded, so what is missing is read from the log before anything is answered. A store
//! that is damaged is set aside. Results and minion job ids are separate records: an id, once written, is never written again.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::identity::MinionName;
use common::job::{Event, HostRecord, HostState, JobHeader, JobId, JobRecord, LogLine, MinionJobId};
use jiff::Timestamp;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sled::{Batch, Db, Tree};

use crate::fleet::Fleet;
use crate::home::Home;
use crate::jobs::log::{self, LogError};

/// As much of the store as is kept in memory: it is open for milliseconds.
const CACHE_BYTES: u64 = 8 << 20;

/// Why the job store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Others have it open.
    #[error(
        "other commands have been using {} for {waited:?}; try again, or raise store_wait in overlord.toml", .path.display()
    )]
    Busy {
        /// The store.
        path: PathBuf,
        /// For how long it was waited.
        waited: Duration,
    },
    /// Its files cannot be used.
    #[error("{doing} {}", .path.display())]
    File {
        /// What was being done.
        doing: &'static str,
        /// With what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// It holds what it cannot hold.
    #[error("the job store {} is damaged: {reason}", .path.display())]
    Damaged {
        /// The store.
        path: PathBuf,
        /// How that was noticed.
        reason: String,
    },
    /// A log cannot be read.
    #[error(transparent)]
    Log(#[from] LogError),
}

/// A job in brief.
#[derive(Debug, Clone, PartialEq)]
pub struct JobSummary {
    /// The job.
    pub job_id: JobId,
    /// `module.method`.
    pub method: String,
    /// The target as it was typed.
    pub target: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// How many of its hosts are in which state.
    pub counts: BTreeMap<HostState, usize>,
}

/// The store, open.
pub(crate) struct Store<'f> {
    home: &'f Home,
    warn: &'f dyn Fn(&str),
    db: Db,
    /// Job → its header and when it was made; written once.
    jobs: Tree,
    /// Job → [`Mark`].
    marks: Tree,
    /// Job/host/attempt → minion job id; written once.
    ids: Tree,
    /// Job/host → [`HostRecord`] without the minion job id.
    hosts: Tree,
    has_changed: Cell<bool>,
}

/// How far a job's log is folded, and what that came to.
#[derive(Debug, Serialize, Deserialize)]
struct Mark {
    folded: u64,
    changed_at: Timestamp,
    counts: BTreeMap<HostState, usize>,
    /// The hosts whose minion job id is known.
    ids: usize,
}

impl Mark {
    fn of(record: &JobRecord, folded: u64) -> Self {
        let mut counts = BTreeMap::new();
        for host in record.hosts.values() {
            *counts.entry(host.state).or_default() += 1;
        }
        let ids = record.hosts.values().filter(|host| host.minion_job_id.is_some()).count();
        Self { folded, changed_at: record.changed_at, counts, ids }
    }
}

/// Opens the store, does `work` and closes it, waiting for other commands within the configured bound. `work` is done again,
/// on an empty store, if the store turns out to be damaged.
pub(crate) fn with_store<R>(fleet: &Fleet, work: impl Fn(&Store<'_>) -> Result<R, StoreError>) -> Result<R, StoreError> {
    let path = fleet.home().store_dir();
    let deadline = Instant::now() + fleet.config().store_wait;
    let busy = || StoreError::Busy { path: path.clone(), waited: fleet.config().store_wait };
    // Our own lock is held longer than sled's: it also covers setting a damaged store aside.
    let _lock = lock(fleet.home().state_dir(), &path.with_extension("lock"), deadline)?.ok_or_else(busy)?;
    let attempt = || {
        let store = Store::open(fleet, deadline)?.ok_or_else(busy)?;
        let done = work(&store)?;
        store.save()?;
        Ok(done)
    };
    let reason = match catch_unwind(AssertUnwindSafe(attempt)) {
        Ok(Err(StoreError::Damaged { reason, .. })) => reason,
        Ok(done) => return done,
        Err(_) => "sled panicked".to_owned(),
    };
    let aside = set_aside(&path)?;
    fleet.warn(&format!(
        "the job store {} is damaged ({reason}); it was set aside as {} and is rebuilt from the job logs",
        path.display(),
        aside.display()
    ));
    catch_unwind(AssertUnwindSafe(attempt)).unwrap_or_else(|panic| resume_unwind(panic))
}

fn lock(folder: &Path, path: &Path, deadline: Instant) -> Result<Option<Flock<File>>, StoreError> {
    let failed = |source| StoreError::File { doing: "locking", path: path.to_owned(), source };
    DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed)?;
    let mut file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path).map_err(failed)?;
    loop {
        file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(file) => return Ok(Some(file)),
            Err((file, Errno::EWOULDBLOCK | Errno::EINTR)) => file,
            Err((_, errno)) => return Err(failed(errno.into())),
        };
        if Instant::now() >= deadline {
            return Ok(None);
        }
        pause();
    }
}

/// Between 5 and 20 ms, so that those who wait do not come back all at once.
fn pause() {
    let jitter = u64::from(Timestamp::now().subsec_nanosecond().unsigned_abs() % 16);
    sleep(Duration::from_millis(5 + jitter));
}

fn set_aside(path: &Path) -> Result<PathBuf, StoreError> {
    let now = Timestamp::now().strftime("%Y%m%dT%H%M%S%.6fZ").to_string();
    let aside = path.with_extension(format!("sled.damaged-{now}"));
    let renamed = fs::rename(path, &aside);
    renamed.map(|()| aside).map_err(|source| StoreError::File { doing: "setting aside the damaged", path: path.to_owned(), source })
}

fn key(job: &JobId, host: &MinionName) -> String {
    format!("{job}/{host}")
}

fn id_key(job: &JobId, host: &MinionName, attempt: u32) -> String {
    format!("{job}/{host}/{attempt}")
}

impl<'f> Store<'f> {
    /// None if it is open elsewhere until the deadline: sled says so at once, and closing takes it a moment.
    fn open(fleet: &'f Fleet, deadline: Instant) -> Result<Option<Self>, StoreError> {
        let path = fleet.home().store_dir();
        let config = sled::Config::new().path(&path).cache_capacity(CACHE_BYTES).flush_every_ms(None);
        let failed = |error| store_error(&path, error);
        let db = loop {
            match config.open() {
                Ok(db) => break db,
                Err(error) if !is_locked(&error) => return Err(failed(error)),
                Err(_) if Instant::now() >= deadline => return Ok(None),
                Err(_) => pause(),
            }
        };
        let tree = |name: &str| db.open_tree(name).map_err(failed);
        let (jobs, marks, ids, hosts) = (tree("jobs")?, tree("marks")?, tree("ids")?, tree("hosts")?);
        Ok(Some(Self { home: fleet.home(), warn: fleet.warning(), db, jobs, marks, ids, hosts, has_changed: Cell::new(false) }))
    }

    /// sled's own flush is enough for a killed process; a power cut needs the file synced besides.
    fn save(&self) -> Result<(), StoreError> {
        if !self.has_changed.get() {
            return Ok(());
        }
        self.db.flush().map_err(|error| self.failed(error))?;
        let path = self.home.store_dir().join("db");
        File::open(&path).and_then(|file| file.sync_data()).map_err(|source| StoreError::File { doing: "syncing", path, source })
    }

    /// All that the job's log says. None if there is no log, or none that says what the job is.
    pub(crate) fn record(&self, job: &JobId) -> Result<Option<JobRecord>, StoreError> {
        let path = self.home.job_log(job);
        match fs::metadata(&path) {
            Ok(log) => self.catch_up(job, log.len())?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(StoreError::File { doing: "reading", path, source }),
        }
        self.load(job)
    }

    /// Every job in brief, oldest first.
    pub(crate) fn summaries(&self) -> Result<Vec<JobSummary>, StoreError> {
        let mut summaries = Vec::new();
        for (job_id, length) in log::list(self.home)? {
            self.catch_up(&job_id, length)?;
            let header = self.read::<(Timestamp, JobHeader)>(&self.jobs, job_id.as_str())?;
            let mark = self.read::<Mark>(&self.marks, job_id.as_str())?;
            if let (Some((created_at, header)), Some(mark)) = (header, mark) {
                summaries.push(JobSummary { job_id, method: header.method, target: header.target, created_at, counts: mark.counts });
            }
        }
        Ok(summaries)
    }

    /// Folds what the log, `length` bytes long, says more than the store. To fold a line twice does no harm.
    fn catch_up(&self, job: &JobId, length: u64) -> Result<(), StoreError> {
        let mark: Option<Mark> = self.read(&self.marks, job.as_str())?;
        let folded = mark.map_or(0, |mark| mark.folded);
        if folded == length {
            return Ok(());
        }
        // A log that is shorter than it was lost its end in a power cut: what is appended now may lie before the mark.
        let from = if folded > length { 0 } else { folded };
        let mut record = self.load(job)?;
        let mut changed = BTreeSet::new();
        let end = log::read(&self.home.job_log(job), from, |line| match line {
            Ok(line) => fold(&mut record, &line, &mut changed),
            Err(problem) => (self.warn)(&problem),
        })?;
        match record {
            Some(record) if end != folded => self.write(&record, &changed, end),
            _ => Ok(()),
        }
    }

    /// The record as of its mark. Damage can make sled forget some records and keep others, so it is checked against the mark.
    fn load(&self, job: &JobId) -> Result<Option<JobRecord>, StoreError> {
        let Some(mark) = self.read::<Mark>(&self.marks, job.as_str())? else {
            return Ok(None);
        };
        let Some((created_at, header)) = self.read::<(Timestamp, JobHeader)>(&self.jobs, job.as_str())? else {
            return Err(self.damaged(format!("the job {job} is marked and not there")));
        };
        let mut record = JobRecord::new(header, created_at);
        record.changed_at = mark.changed_at;
        for (name, host) in &mut record.hosts {
            if let Some(known) = self.read::<HostRecord>(&self.hosts, &key(job, name))? {
                *host = known;
                host.minion_job_id = self.read(&self.ids, &id_key(job, name, host.attempt))?;
            }
        }
        let found = Mark::of(&record, mark.folded);
        if (found.counts, found.ids) != (mark.counts, mark.ids) {
            return Err(self.damaged(format!("of the job {job} some records are missing")));
        }
        Ok(Some(record))
    }

    fn write(&self, record: &JobRecord, changed: &BTreeSet<MinionName>, folded: u64) -> Result<(), StoreError> {
        let job = &record.header.job_id;
        let (mut ids, mut hosts) = (Batch::default(), Batch::default());
        for name in changed {
            let Some(host) = record.hosts.get(name) else { continue };
            let mut host = host.clone();
            if let Some(id) = host.minion_job_id.take() {
                let key = id_key(job, name, host.attempt);
                if self.read::<MinionJobId>(&self.ids, &key)?.is_none() {
                    ids.insert(key.as_bytes(), self.json(&id)?);
                }
            }
            hosts.insert(key(job, name).as_bytes(), self.json(&host)?);
        }
        let mark = Mark::of(record, folded);
        // The mark comes last: without it, the lines are folded once more.
        if self.read::<(Timestamp, JobHeader)>(&self.jobs, job.as_str())?.is_none() {
            let header = self.json(&(record.created_at, &record.header))?;
            self.jobs.insert(job.as_str(), header).map_err(|error| self.failed(error))?;
        }
        self.ids.apply_batch(ids).map_err(|error| self.failed(error))?;
        self.hosts.apply_batch(hosts).map_err(|error| self.failed(error))?;
        self.marks.insert(job.as_str(), self.json(&mark)?).map_err(|error| self.failed(error))?;
        self.has_changed.set(true);
        Ok(())
    }

    fn read<T: DeserializeOwned>(&self, tree: &Tree, key: &str) -> Result<Option<T>, StoreError> {
        let value = tree.get(key).map_err(|error| self.failed(error))?;
        let parsed = value.map(|bytes| serde_json::from_slice(&bytes)).transpose();
        parsed.map_err(|error| self.damaged(format!("the record {key}: {error}")))
    }

    fn json(&self, value: &impl Serialize) -> Result<Vec<u8>, StoreError> {
        serde_json::to_vec(value).map_err(|error| self.damaged(error.to_string()))
    }

    fn failed(&self, error: sled::Error) -> StoreError {
        store_error(&self.home.store_dir(), error)
    }

    fn damaged(&self, reason: String) -> StoreError {
        StoreError::Damaged { path: self.home.store_dir(), reason }
    }
}

fn fold(record: &mut Option<JobRecord>, line: &LogLine, changed: &mut BTreeSet<MinionName>) {
    match (record.as_mut(), &line.event) {
        (None, Event::Created(header)) => {
            *record = Some(JobRecord::new(header.clone(), line.at));
        }
        (Some(record), _) => changed.extend(record.apply(line).iter().cloned()),
        // Without a whole first line nobody was told the id, so there is no job.
        (None, _) => {}
    }
}

/// sled says it in words alone.
fn is_locked(error: &sled::Error) -> bool {
    matches!(error, sled::Error::Io(error) if error.to_string().contains("could not acquire lock"))
}

fn store_error(path: &Path, error: sled::Error) -> StoreError {
    match error {
        sled::Error::Io(source) if !matches!(source.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof) => {
            StoreError::File { doing: "using the job store", path: path.to_owned(), source }
        }
        other => StoreError::Damaged { path: path.to_owned(), reason: other.to_string() },
    }
}

#[cfg(test)]
mod tests;
