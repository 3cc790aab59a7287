//! The store while it is open: which records it holds, and how they are brought up to a log.
//!
//! Results and minion job ids are separate records: an id, once written, is never written again. sled may forget records, or
//! remember older ones, when its files were damaged or a kill came between two writes; so a job's records count only if their
//! checksums add up to what the job's mark says, and else they are written again from the log.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;

use common::identity::MinionName;
use common::job::{HostRecord, JobHeader, JobId, JobRecord};
use common::seal;
use jiff::Timestamp;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sled::{Batch, Db, Tree};

use super::access::pause;
use super::fold::{End, Fold, Mark, ages, counts};
use super::{JobSummary, Listed, Overview, Standing, StoreError, of_job};
use crate::fleet::Fleet;
use crate::home::Home;
use crate::jobs::log;

/// As much of the store as is kept in memory: it is open for milliseconds.
const CACHE_BYTES: u64 = 8 << 20;

/// The store, open.
pub(super) struct Store {
    home: Home,
    path: PathBuf,
    /// Told once it is closed: standard error may be slow to take them.
    pub(super) warnings: RefCell<Vec<String>>,
    pub(super) db: Db,
    /// Job → its header and when it was made, sealed; written once.
    jobs: Tree,
    /// Job → [`Mark`], sealed.
    marks: Tree,
    /// Job/host/attempt → minion job id; written once.
    ids: Tree,
    /// Job/host → [`HostRecord`] without the minion job id.
    pub(super) hosts: Tree,
    pub(super) has_changed: Cell<bool>,
}

/// What the store knows of a job by itself.
#[derive(Default)]
struct Known {
    header: Option<(Timestamp, JobHeader)>,
    /// All of it, if it can be believed.
    whole: Option<(JobRecord, Mark)>,
}

impl Store {
    /// None if it is open elsewhere until the deadline: sled says so at once, and closing takes it a moment.
    pub(super) fn open(fleet: &Fleet, path: &Path, deadline: Instant) -> Result<Option<Self>, StoreError> {
        let config = sled::Config::new().path(path).cache_capacity(CACHE_BYTES).flush_every_ms(None);
        let failed = |error| store_error(path, error);
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
        let (home, path) = (fleet.home().clone(), path.to_owned());
        let (warnings, has_changed) = (RefCell::default(), Cell::new(false));
        Ok(Some(Self { home, path, warnings, db, jobs, marks, ids, hosts, has_changed }))
    }

    /// sled's own flush is enough for a killed process; a power cut needs the file synced besides.
    pub(super) fn save(&self) -> Result<(), StoreError> {
        if !self.has_changed.get() {
            return Ok(());
        }
        self.db.flush().map_err(|error| self.failed(error))?;
        let path = self.path.join("db");
        File::open(&path).and_then(|file| file.sync_data()).map_err(|source| StoreError::File { doing: "syncing", path, source })
    }

    pub(super) fn record(&self, job: &JobId) -> Result<Option<JobRecord>, StoreError> {
        let path = self.home.job_log(job);
        match fs::metadata(&path) {
            Ok(log) => Ok(self.catch_up(job, log.len())?.map(|(record, _)| record)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(StoreError::File { doing: "reading", path, source }),
        }
    }

    /// Every job in brief, oldest first; the headers of those that are `listed` alone, as they may be large.
    pub(super) fn overview(&self, listed: Listed) -> Result<Overview, StoreError> {
        let mut overview = Overview::default();
        let (mut marked, mut ends) = (Vec::new(), Vec::new());
        for (job, length) in log::list(&self.home)? {
            overview.held.count += 1;
            overview.held.bytes += length;
            // One log that cannot be read hides no other.
            if let Some(mark) = self.or_warn(&job, self.mark(&job, length))? {
                if let Some(end) = &mark.ended {
                    ends.push((job.clone(), end.clone(), length));
                }
                marked.push((job, mark));
            }
        }
        overview.ended = ages(ends);
        let mut left = match listed {
            Listed::All => usize::MAX,
            Listed::Newest(count) => count,
        };
        for (job, mark) in marked.into_iter().rev() {
            if mark.ended.is_some() && left == 0 {
                overview.more += 1;
                continue;
            }
            left -= usize::from(mark.ended.is_some());
            overview.jobs.extend(self.summary(&job, mark)?);
        }
        overview.jobs.reverse();
        Ok(overview)
    }

    fn summary(&self, job: &JobId, mark: Mark) -> Result<Option<JobSummary>, StoreError> {
        if let Some((created_at, JobHeader { job_id, method, target, map, .. })) = self.read(&self.jobs, job.as_str())? {
            let is_map = map.is_some();
            return Ok(Some(JobSummary { job_id, method, target, created_at, counts: mark.counts, is_map }));
        }
        // The store has forgotten what the job is, or remembers it wrongly; the log has not.
        Ok(self.or_warn(job, self.catch_up(job, mark.folded))?.map(|(record, _)| JobSummary::of(record)))
    }

    pub(super) fn standing(&self, deadline: Instant) -> Result<Standing, StoreError> {
        let (mut standing, mut ends, mut logs) = (Standing::default(), Vec::new(), BTreeSet::new());
        for (job, length) in log::list(&self.home)? {
            let mark = match self.read::<Mark>(&self.marks, job.as_str())?.filter(|mark| mark.folded == length) {
                None if Instant::now() < deadline => self.or_warn(&job, self.mark(&job, length))?,
                mark => mark,
            };
            match mark {
                Some(Mark { ended: Some(end), .. }) => ends.push((job.clone(), end, length)),
                Some(mark) => standing.open.push((job.clone(), mark.changed_at)),
                None => {}
            }
            standing.held.count += 1;
            standing.held.bytes += length;
            logs.insert(job);
        }
        let mut gone = Vec::new();
        for key in self.marks.iter().keys() {
            let key = key.map_err(|error| self.failed(error))?;
            let job = std::str::from_utf8(&key).ok().and_then(|key| key.parse().ok());
            gone.extend(job.filter(|job| !logs.contains(job)));
        }
        // A job that was made since the logs were listed has no mark yet: its dispatcher waits for this store to be closed.
        self.forget(&gone, deadline)?;
        standing.ended = ages(ends);
        Ok(standing)
    }

    pub(super) fn forget(&self, jobs: &[JobId], deadline: Instant) -> Result<(), StoreError> {
        for job in jobs.iter().take_while(|_| Instant::now() < deadline) {
            self.erase(job)?;
            for tree in [&self.jobs, &self.marks] {
                // The mark goes last: by it what is left is found.
                tree.remove(job.as_str()).map_err(|error| self.failed(error))?;
            }
            self.has_changed.set(true);
        }
        Ok(())
    }

    /// None, and a warning, where it is the job's log that cannot be read.
    fn or_warn<T>(&self, job: &JobId, told: Result<Option<T>, StoreError>) -> Result<Option<T>, StoreError> {
        match told {
            Err(error @ (StoreError::Log(_) | StoreError::LogDamaged { .. })) => {
                self.warn(of_job(job, &error));
                Ok(None)
            }
            told => told,
        }
    }

    fn mark(&self, job: &JobId, length: u64) -> Result<Option<Mark>, StoreError> {
        match self.read::<Mark>(&self.marks, job.as_str())?.filter(|mark| mark.folded == length) {
            Some(mark) => Ok(Some(mark)),
            None => Ok(self.catch_up(job, length)?.map(|(_, mark)| mark)),
        }
    }

    /// Folds what the log, `length` bytes long, says more than the store.
    fn catch_up(&self, job: &JobId, length: u64) -> Result<Option<(JobRecord, Mark)>, StoreError> {
        let Known { header, whole } = self.load(job)?;
        let (mut fold, before) = match (whole, header) {
            (Some((record, mark)), _) if mark.folded == length => return Ok(Some((record, mark))),
            // Which of its items have ended stands in the log alone.
            (Some((JobRecord { header, created_at, map: Some(_), .. }, mark)), _) => {
                (Fold::of(JobRecord::new(header, created_at), None), Some(Mark { folded: 0, ..mark }))
            }
            (Some((record, mark)), _) => (Fold::of(record, mark.ended.as_ref().map(|end| end.at)), Some(mark)),
            (None, Some((created_at, header))) => (Fold::of(JobRecord::new(header, created_at), None), None),
            (None, None) => (Fold::default(), None),
        };
        let (end, header_problem) = self.read_log(job, length, &mut fold, before.as_ref().map_or(0, |mark| mark.folded))?;
        let (record, changed, ended_at) = fold.close();
        let record = match (record, header_problem) {
            (Some(record), _) => record,
            (None, Some(problem)) => return Err(StoreError::LogDamaged { problem }),
            // Nobody was told its id.
            (None, None) => return Ok(None),
        };
        let mark = match before {
            Some(mark) if mark.folded == end && changed.is_empty() => mark,
            before => {
                // What the store remembers from here on must not be forgotten by the log when the power fails.
                log::sync(&self.home, job)?;
                self.write(&record, &changed, ended_at, (before, end))?
            }
        };
        Ok(Some((record, mark)))
    }

    /// Adds what the log says from byte `folded` on, and gives how far it was read, and what is wrong with its first line.
    fn read_log(&self, job: &JobId, length: u64, fold: &mut Fold, folded: u64) -> Result<(u64, Option<String>), StoreError> {
        let path = self.home.job_log(job);
        if folded > length {
            let lost = folded - length;
            self.warn(format!("{} lost its last {lost} bytes; what they said is kept in {}", path.display(), self.path.display()));
        }
        // What is appended now may lie before the mark.
        let from = if folded > length { 0 } else { folded };
        let mut header_problem = None;
        let end = log::read(&path, from, |line| match line {
            Ok(line) => fold.add(&line),
            Err(damage) => {
                self.warn(damage.problem.clone());
                fold.miss(&damage);
                if damage.is_header {
                    header_problem = Some(damage.problem);
                }
            }
        })?;
        if header_problem.is_some() && fold.record.is_some() {
            self.warn(format!("what the job {job} is stands in {} all the same", self.path.display()));
        }
        Ok((end, header_problem))
    }

    fn load(&self, job: &JobId) -> Result<Known, StoreError> {
        let Some((created_at, header)) = self.read::<(Timestamp, JobHeader)>(&self.jobs, job.as_str())? else {
            return Ok(Known::default());
        };
        let Some(mark) = self.read::<Mark>(&self.marks, job.as_str())? else {
            return Ok(Known { header: Some((created_at, header)), whole: None });
        };
        let mut record = JobRecord::new(header.clone(), created_at);
        record.changed_at = mark.changed_at;
        record.map = mark.map.clone().or(record.map);
        let digest = self.load_hosts(job, &mut record)?;
        let is_whole = digest == Some(mark.digest);
        Ok(Known { header: Some((created_at, header)), whole: is_whole.then_some((record, mark)) })
    }

    /// Reads what is known of every host, and gives the sum of the checksums; none if something cannot be read.
    fn load_hosts(&self, job: &JobId, record: &mut JobRecord) -> Result<Option<u64>, StoreError> {
        let prefix = format!("{job}/");
        let mut digest = 0_u64;
        for entry in self.hosts.scan_prefix(&prefix) {
            let (key, value) = entry.map_err(|error| self.failed(error))?;
            digest = digest.wrapping_add(checksum(&key, &value));
            let host = behind(&key, &prefix).and_then(|name| record.hosts.get_mut(&name.parse().ok()?));
            match (host, serde_json::from_slice::<HostRecord>(&value)) {
                (Some(host), Ok(known)) => *host = known,
                (None, _) | (_, Err(_)) => return Ok(None),
            }
        }
        for entry in self.ids.scan_prefix(&prefix) {
            let (key, value) = entry.map_err(|error| self.failed(error))?;
            digest = digest.wrapping_add(checksum(&key, &value));
            let Some((name, attempt)) = behind(&key, &prefix).and_then(|rest| rest.rsplit_once('/')) else { return Ok(None) };
            let Some(host) = name.parse().ok().and_then(|name: MinionName| record.hosts.get_mut(&name)) else { return Ok(None) };
            if attempt.parse() == Ok(host.attempt) {
                host.minion_job_id = serde_json::from_slice(&value).ok();
            }
        }
        Ok(Some(digest))
    }

    /// Writes what is `changed` since the mark `before`; all of it if there is none. The log is folded up to `folded` then.
    fn write(
        &self,
        record: &JobRecord,
        changed: &BTreeSet<MinionName>,
        ended_at: Option<Timestamp>,
        (before, folded): (Option<Mark>, u64),
    ) -> Result<Mark, StoreError> {
        let job = &record.header.job_id;
        let everyone = || record.hosts.keys().cloned().collect();
        let mut digest = match &before {
            Some(mark) => mark.digest,
            None => {
                self.erase(job)?;
                self.insert(&self.jobs, job.as_str(), &self.sealed(&(record.created_at, &record.header))?)?;
                0
            }
        };
        for name in if before.is_some() { changed.clone() } else { everyone() } {
            let Some(host) = record.hosts.get(&name) else { continue };
            let mut host = host.clone();
            if let Some(id) = host.minion_job_id.take() {
                let key = format!("{job}/{name}/{}", host.attempt);
                if self.ids.get(&key).map_err(|error| self.failed(error))?.is_none() {
                    digest = digest.wrapping_add(self.insert(&self.ids, &key, &self.json(&id)?)?);
                }
            }
            digest = digest.wrapping_add(self.insert(&self.hosts, &format!("{job}/{name}"), &self.json(&host)?)?);
        }
        let ended = ended_at.map(|at| before.and_then(|mark| mark.ended).filter(|end| end.at == at).unwrap_or_else(|| End::noticed(at)));
        let (counts, map) = (counts(record), record.map.clone());
        let mark = Mark { folded, changed_at: record.changed_at, counts, digest, ended, map };
        self.insert(&self.marks, job.as_str(), &self.sealed(&mark)?)?;
        Ok(mark)
    }

    /// Removes what is known of the job's hosts.
    fn erase(&self, job: &JobId) -> Result<(), StoreError> {
        for tree in [&self.hosts, &self.ids] {
            let mut batch = Batch::default();
            for key in tree.scan_prefix(format!("{job}/")).keys() {
                batch.remove(key.map_err(|error| self.failed(error))?);
            }
            tree.apply_batch(batch).map_err(|error| self.failed(error))?;
        }
        Ok(())
    }

    /// Gives by how much the sum of the checksums changes.
    fn insert(&self, tree: &Tree, key: &str, value: &[u8]) -> Result<u64, StoreError> {
        self.has_changed.set(true);
        let old = tree.insert(key, value).map_err(|error| self.failed(error))?;
        let old = old.map_or(0, |old| checksum(key.as_bytes(), &old));
        Ok(checksum(key.as_bytes(), value).wrapping_sub(old))
    }

    /// What was sealed. None also for a record that cannot be read: it is written again from the log, and where it never reads back, the
    /// log is folded each time.
    fn read<T: DeserializeOwned>(&self, tree: &Tree, key: &str) -> Result<Option<T>, StoreError> {
        let value = tree.get(key).map_err(|error| self.failed(error))?;
        Ok(value.and_then(|bytes| seal::open(&bytes).ok()))
    }

    fn sealed(&self, value: &impl Serialize) -> Result<Vec<u8>, StoreError> {
        seal::seal(value).map_err(|error| self.unwritable(error))
    }

    fn json(&self, value: &impl Serialize) -> Result<Vec<u8>, StoreError> {
        serde_json::to_vec(value).map_err(|error| self.unwritable(error))
    }

    fn unwritable(&self, error: serde_json::Error) -> StoreError {
        StoreError::File { doing: "writing to", path: self.path.clone(), source: error.into() }
    }

    fn failed(&self, error: sled::Error) -> StoreError {
        store_error(&self.path, error)
    }

    fn warn(&self, text: String) {
        self.warnings.borrow_mut().push(text);
    }
}

fn behind<'k>(key: &'k [u8], prefix: &str) -> Option<&'k str> {
    std::str::from_utf8(key).ok()?.strip_prefix(prefix)
}

fn checksum(key: &[u8], value: &[u8]) -> u64 {
    let mut hasher = crc32fast::Hasher::new();
    for part in [key, b"\0", value] {
        hasher.update(part);
    }
    u64::from(hasher.finalize())
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
