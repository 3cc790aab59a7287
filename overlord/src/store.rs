//! `jobs.sled`: the fold of all job logs, from which status is answered. The only file of the crate that names sled.
//!
//! It is open for as long as one piece of work takes, never while hosts are asked. It can always be rebuilt: with each job it
//! keeps how many bytes of the log are folded, so what is missing is read from the log before anything is answered. A store
//! that is damaged is set aside, and where it cannot be used the logs are folded in memory. Results and minion job ids are separate
//! records: an id, once written, is never written again.

mod access;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::identity::MinionName;
use common::job::{Event, HostRecord, HostState, JobHeader, JobId, JobRecord, LogLine, MinionJobId};
use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sled::{Batch, Db, Tree};

use crate::fleet::Fleet;
use crate::home::Home;
use crate::jobs::log::{self, LogError};
use access::{pause, with_store};

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
    /// It does not come to an end: the disk is full, or hangs.
    #[error("the job store {} is stuck: nothing came of it within {waited:?}", .path.display())]
    Stuck {
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

impl JobSummary {
    fn of(record: JobRecord) -> Self {
        let counts = Mark::of(&record, 0).counts;
        let JobRecord { header: JobHeader { job_id, method, target, .. }, created_at, .. } = record;
        Self { job_id, method, target, created_at, counts }
    }
}

/// All that the job's log says, and which the store then says, too. None if there is no log, or none that says what the job is.
pub(crate) fn record(fleet: &Fleet, job: &JobId) -> Result<Option<JobRecord>, StoreError> {
    let own = job.clone();
    match with_store(fleet, move |store| store.record(&own)) {
        Err(error) if is_of_the_store(&error) => {
            fleet.warn(&format!("this is from the job's log alone: {}", crate::chain(&error)));
            Ok(from_log(fleet.home(), job, |problem| fleet.warn(problem))?)
        }
        done => done,
    }
}

/// Brings the store up to the job's log.
pub(crate) fn fold(fleet: &Fleet, job: &JobId) -> Result<(), StoreError> {
    let own = job.clone();
    with_store(fleet, move |store| store.record(&own).map(|_| ()))
}

/// Every job in brief, oldest first.
pub(crate) fn summaries(fleet: &Fleet) -> Result<Vec<JobSummary>, StoreError> {
    match with_store(fleet, Store::summaries) {
        Err(error) if is_of_the_store(&error) => {
            fleet.warn(&format!("this is from the job logs alone: {}", crate::chain(&error)));
            let mut summaries = Vec::new();
            for (job, _) in log::list(fleet.home())? {
                match from_log(fleet.home(), &job, |problem| fleet.warn(problem)) {
                    Ok(record) => summaries.extend(record.map(JobSummary::of)),
                    Err(error) => fleet.warn(&crate::chain(&error)),
                }
            }
            Ok(summaries)
        }
        done => done,
    }
}

/// What the store cannot say, the logs can.
fn is_of_the_store(error: &StoreError) -> bool {
    match error {
        StoreError::Busy { .. } | StoreError::Stuck { .. } | StoreError::File { .. } | StoreError::Damaged { .. } => true,
        StoreError::Log(_) => false,
    }
}

fn from_log(home: &Home, job: &JobId, warn: impl Fn(&str)) -> Result<Option<JobRecord>, LogError> {
    let mut record = None;
    let path = home.job_log(job);
    if path.exists() {
        log::read(&path, 0, |line| match line {
            Ok(line) => fold_line(&mut record, &line, &mut BTreeSet::new()),
            Err(problem) => warn(&problem),
        })?;
    }
    Ok(record)
}

/// The store, open.
struct Store {
    home: Home,
    /// Told once it is closed: standard error may be slow to take them.
    warnings: RefCell<Vec<String>>,
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

fn key(job: &JobId, host: &MinionName) -> String {
    format!("{job}/{host}")
}

fn id_key(job: &JobId, host: &MinionName, attempt: u32) -> String {
    format!("{job}/{host}/{attempt}")
}

impl Store {
    /// None if it is open elsewhere until the deadline: sled says so at once, and closing takes it a moment.
    fn open(fleet: &Fleet, deadline: Instant) -> Result<Option<Self>, StoreError> {
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
        let (home, warnings, has_changed) = (fleet.home().clone(), RefCell::default(), Cell::new(false));
        Ok(Some(Self { home, warnings, db, jobs, marks, ids, hosts, has_changed }))
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

    fn record(&self, job: &JobId) -> Result<Option<JobRecord>, StoreError> {
        let path = self.home.job_log(job);
        match fs::metadata(&path) {
            Ok(log) => self.catch_up(job, log.len()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(StoreError::File { doing: "reading", path, source }),
        }
    }

    fn summaries(&self) -> Result<Vec<JobSummary>, StoreError> {
        let mut summaries = Vec::new();
        for (job, length) in log::list(&self.home)? {
            match self.summary(&job, length) {
                Ok(summary) => summaries.extend(summary),
                // One log that cannot be read hides no other.
                Err(StoreError::Log(error)) => self.warn(crate::chain(&error)),
                Err(error) => return Err(error),
            }
        }
        Ok(summaries)
    }

    fn summary(&self, job: &JobId, length: u64) -> Result<Option<JobSummary>, StoreError> {
        let header = self.read::<(Timestamp, JobHeader)>(&self.jobs, job.as_str())?;
        let mark = self.read::<Mark>(&self.marks, job.as_str())?.filter(|mark| mark.folded == length);
        if let (Some((created_at, header)), Some(mark)) = (header, mark) {
            let JobHeader { job_id, method, target, .. } = header;
            return Ok(Some(JobSummary { job_id, method, target, created_at, counts: mark.counts }));
        }
        Ok(self.catch_up(job, length)?.map(JobSummary::of))
    }

    /// Folds what the log, `length` bytes long, says more than the store. To fold a line twice does no harm.
    fn catch_up(&self, job: &JobId, length: u64) -> Result<Option<JobRecord>, StoreError> {
        let (mut record, folded) = self.load(job)?.map_or((None, 0), |(record, folded)| (Some(record), folded));
        if record.is_some() && folded == length {
            return Ok(record);
        }
        let is_known = record.is_some();
        // A log that is shorter than it was lost its end in a power cut: what is appended now may lie before the mark.
        let from = if folded > length { 0 } else { folded };
        let mut changed = BTreeSet::new();
        let end = log::read(&self.home.job_log(job), from, |line| match line {
            Ok(line) => fold_line(&mut record, &line, &mut changed),
            Err(problem) => self.warn(problem),
        })?;
        if let Some(record) = &record {
            if !is_known {
                changed.extend(record.hosts.keys().cloned());
            }
            if end != folded {
                self.write(record, &changed, end)?;
            }
        }
        Ok(record)
    }

    /// The record, and how far the log is folded. Damage, or a kill between two writes, can make sled forget some records and keep
    /// others, so it is checked against the mark: none if it does not fit, and then the log is folded from its beginning.
    fn load(&self, job: &JobId) -> Result<Option<(JobRecord, u64)>, StoreError> {
        let mark = self.read::<Mark>(&self.marks, job.as_str())?;
        let header = self.read::<(Timestamp, JobHeader)>(&self.jobs, job.as_str())?;
        let (Some(mark), Some((created_at, header))) = (mark, header) else {
            return Ok(None);
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
        let is_whole = (found.counts, found.ids) == (mark.counts, mark.ids);
        Ok(is_whole.then_some((record, mark.folded)))
    }

    fn write(&self, record: &JobRecord, changed: &BTreeSet<MinionName>, folded: u64) -> Result<(), StoreError> {
        let job = &record.header.job_id;
        let (mut ids, mut hosts) = (Batch::default(), Batch::default());
        for name in changed {
            let Some(host) = record.hosts.get(name) else { continue };
            let mut host = host.clone();
            let id_key = id_key(job, name, host.attempt);
            match (host.minion_job_id.take(), self.read::<MinionJobId>(&self.ids, &id_key)?) {
                (Some(id), None) => ids.insert(id_key.as_bytes(), self.json(&id)?),
                // The log lost its end, and with it the answer that the id is from.
                (None, Some(_)) => ids.remove(id_key.as_bytes()),
                (Some(_), Some(_)) | (None, None) => {}
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

    /// None also for a record that cannot be read: it is written again from the log, and where it never reads back, the log is
    /// folded each time.
    fn read<T: DeserializeOwned>(&self, tree: &Tree, key: &str) -> Result<Option<T>, StoreError> {
        let value = tree.get(key).map_err(|error| self.failed(error))?;
        Ok(value.and_then(|bytes| serde_json::from_slice(&bytes).ok()))
    }

    fn json(&self, value: &impl Serialize) -> Result<Vec<u8>, StoreError> {
        serde_json::to_vec(value).map_err(|error| StoreError::File {
            doing: "writing to",
            path: self.home.store_dir(),
            source: error.into(),
        })
    }

    fn failed(&self, error: sled::Error) -> StoreError {
        store_error(&self.home.store_dir(), error)
    }

    fn warn(&self, text: String) {
        self.warnings.borrow_mut().push(text);
    }
}

fn fold_line(record: &mut Option<JobRecord>, line: &LogLine, changed: &mut BTreeSet<MinionName>) {
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
