//! `jobs/ID.log`: all that became known of a job, one sealed JSON line an event, appended and never changed. What it says, the store
//! only repeats. Its lock is the sign of life of the job's dispatcher; reading and appending need no lock. The first line says which format the log has.

mod read;

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::ops::{Deref, DerefMut};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use common::format::{Format, Program, Stamp};
use common::job::{Event, JobHeader, JobId, LogLine, News};
use common::outcome::Verdict;
use jiff::Timestamp;
use serde::Serialize;

use crate::home::Home;
pub(crate) use read::{Damage, read, whole_lines};

/// The newest format of a log, which that of a map has: older versions would send a map as a job to each of its hosts. A log of a newer one is refused, and
/// no other with it. It goes up, in the first line or in one of a new kind, when older versions
/// must not pass over what follows; what they may pass over, and go on without, needs no number.
const FORMAT: Format = Format { number: 2, program: Program::Overlord };
/// The format of the log of any other job.
const PLAIN: Format = Format { number: 1, program: Program::Overlord };

/// How long a lock that may merely be probed by someone is tried for: a probe holds it for microseconds.
const PROBED_WITHIN: Duration = Duration::from_millis(500);
/// How often.
const PROBED_EVERY: Duration = Duration::from_millis(5);

/// So long after it was made a log in which nothing stands is what a killed command left.
const BEGUN_WITHIN: Duration = Duration::from_secs(60);

/// Why a job's log cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{doing} the job log {}", .path.display())]
pub struct LogError {
    doing: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl LogError {
    /// There is no such log: no such job, or it was deleted meanwhile.
    pub(crate) fn is_missing(&self) -> bool {
        self.source.kind() == io::ErrorKind::NotFound
    }
}

/// A log to append to.
#[derive(Debug)]
pub(crate) struct JobLog {
    file: File,
    path: PathBuf,
    /// Nothing was written into it, and nobody else knows of it.
    is_new: bool,
}

/// A log whose dispatcher is us, until it is dropped.
#[derive(Debug)]
pub(crate) struct LockedLog(JobLog);

impl Deref for LockedLog {
    type Target = JobLog;

    fn deref(&self) -> &JobLog {
        &self.0
    }
}

impl DerefMut for LockedLog {
    fn deref_mut(&mut self) -> &mut JobLog {
        &mut self.0
    }
}

impl JobLog {
    /// Opens the log of a job to tell of what hosts said.
    pub(crate) fn open(home: &Home, job: &JobId) -> Result<Self, LogError> {
        let path = home.job_log(job);
        let failed = |source| LogError { doing: "opening", path: path.clone(), source };
        let file = OpenOptions::new().read(true).append(true).open(&path).map_err(failed)?;
        Ok(Self { file, path, is_new: false })
    }

    /// Takes the place of the job's dispatcher. None if one is at work.
    pub(crate) fn lock(self) -> Result<Option<LockedLog>, LogError> {
        let deadline = Instant::now() + PROBED_WITHIN;
        let mut log = self;
        loop {
            log = match log.try_lock_once()? {
                Ok(locked) => return Ok(Some(locked)),
                Err(_) if Instant::now() >= deadline => return Ok(None),
                Err(log) => log,
            };
            sleep(PROBED_EVERY);
        }
    }

    /// The same, without waiting for those who merely probe.
    pub(crate) fn try_lock(self) -> Result<Option<LockedLog>, LogError> {
        Ok(self.try_lock_once()?.ok())
    }

    fn try_lock_once(self) -> Result<Result<LockedLog, Self>, LogError> {
        let failed = |source| LogError { doing: "locking", path: self.path.clone(), source };
        match self.file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(Err(self)),
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        // Whoever had the lock before may have deleted the job.
        if self.file.metadata().map_err(failed)?.nlink() == 0 {
            return Err(failed(io::ErrorKind::NotFound.into()));
        }
        Ok(Ok(LockedLog(self)))
    }

    /// Appends one line by one write, so that lines of several writers never mix.
    pub(crate) fn append(&mut self, line: &LogLine) -> Result<(), LogError> {
        let is_first = std::mem::take(&mut self.is_new);
        let written = self.try_append(line, is_first);
        written.map_err(|source| LogError { doing: "writing to", path: self.path.clone(), source })
    }

    fn try_append(&self, line: &LogLine, is_first: bool) -> io::Result<()> {
        let text = text_of(line)?;
        // Whoever wrote last may have been cut off, at any moment until this write: what is left of that line must not
        // swallow this one. Empty lines are passed over.
        let mut bytes = if is_first { Vec::new() } else { b"\n".to_vec() };
        bytes.extend_from_slice(&text);
        bytes.push(b'\n');
        loop {
            match (&self.file).write(&bytes) {
                Ok(length) if length == bytes.len() => return Ok(()),
                // The rest, written on its own, could lie behind another's line.
                Ok(length) => {
                    let reason = format!("{length} of {} bytes were written; is the disk full?", bytes.len());
                    return Err(io::Error::new(io::ErrorKind::StorageFull, reason));
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Returns once all that was appended is on the disk.
    pub(crate) fn sync(&self) -> Result<(), LogError> {
        self.file.sync_data().map_err(|source| LogError { doing: "syncing", path: self.path.clone(), source })
    }
}

impl LockedLog {
    /// Makes the log of a new job, durably and already locked. None if a job of that id is there.
    pub(crate) fn create(home: &Home, header: JobHeader) -> Result<Option<Self>, LogError> {
        let path = home.job_log(&header.job_id);
        let failed = |source| LogError { doing: "making", path: path.clone(), source };
        make_folder(home).map_err(failed)?;
        let file = match OpenOptions::new().read(true).append(true).create_new(true).mode(0o600).open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        let begun = Self::begin(home, JobLog { file, path: path.clone(), is_new: true }, header);
        if !matches!(begun, Ok(Some(_))) {
            // Nobody was told the id. Where it cannot be removed it is swept, being empty, or told of as damaged.
            let _left = fs::remove_file(&path);
        }
        begun
    }

    fn begin(home: &Home, log: JobLog, header: JobHeader) -> Result<Option<Self>, LogError> {
        // Nobody knows the id yet, so nobody but a passing probe can hold the lock.
        let mut log = match log.lock() {
            Ok(Some(log)) => log,
            Ok(None) => return Ok(None),
            // Whose clock was set meanwhile took it for one that was left empty, and has swept it away: another id will do.
            Err(error) if error.is_missing() => return Ok(None),
            Err(error) => return Err(error),
        };
        log.append(&LogLine { at: Timestamp::now(), event: Event::Created(header) })?;
        log.sync()?;
        sync_logs(home)?;
        Ok(Some(log))
    }

    /// The log, open and no longer locked. None if the lock could not be given back before the file was closed.
    pub(crate) fn unlock(self) -> Option<JobLog> {
        self.0.file.unlock().ok().map(|()| self.0)
    }

    /// Nothing stands in it, and whoever made it had the time to lock it and write.
    fn is_left_empty(&self) -> bool {
        let metadata = self.0.file.metadata().ok().filter(|metadata| metadata.len() == 0);
        let made = metadata.and_then(|metadata| metadata.modified().ok());
        made.and_then(|made| SystemTime::now().duration_since(made).ok()).is_some_and(|age| age >= BEGUN_WITHIN)
    }

    /// How long it is.
    pub(crate) fn bytes(&self) -> Result<u64, LogError> {
        let failed = |source| LogError { doing: "reading", path: self.0.path.clone(), source };
        self.0.file.metadata().map(|metadata| metadata.len()).map_err(failed)
    }

    /// Deletes it. It is gone for good once [`sync_logs`] has returned.
    pub(crate) fn delete(self) -> Result<(), LogError> {
        let Self(JobLog { path, .. }) = &self;
        self.drop_items()?;
        fs::remove_file(path).map_err(|source| LogError { doing: "deleting", path: path.clone(), source })
    }
}

impl LockedLog {
    /// Removes the items of a map of which none is to be dealt any more.
    pub(crate) fn drop_items(&self) -> Result<(), LogError> {
        let path = self.0.path.with_extension("items");
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(LogError { doing: "deleting the items beside", path, source }),
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

/// Removes logs in which nothing stands: whoever made them was killed before anyone was told their ids. Those that cannot be removed stay,
/// and say nothing.
pub(crate) fn sweep_empty(home: &Home) -> Result<(), LogError> {
    for (job, _) in list(home)?.into_iter().filter(|(_, bytes)| *bytes == 0) {
        if let Ok(Some(log)) = JobLog::open(home, &job).and_then(JobLog::try_lock)
            && log.is_left_empty()
        {
            let _left = log.delete();
        }
    }
    Ok(())
}

/// Returns once all logs that were deleted stay so.
pub(crate) fn sync_logs(home: &Home) -> Result<(), LogError> {
    let path = home.jobs_dir();
    sync_folder(&path).map_err(|source| LogError { doing: "syncing the folder of", path, source })
}

/// The folder of the logs, such that it outlasts a power cut: a job in it is about to be promised to somebody.
pub(crate) fn make_folder(home: &Home) -> io::Result<()> {
    let folder = home.jobs_dir();
    if folder.is_dir() {
        return Ok(());
    }
    DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
    folder.ancestors().skip(1).take(2).try_for_each(sync_folder)
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// The sealed line that reads back as it is. What a host said may not: it is nested too deep, or is made to mislead a parser.
/// Then the line says so instead; nothing else is known of the job there by that.
pub(crate) fn text_of(line: &LogLine) -> io::Result<Vec<u8>> {
    let text = sealed(line)?;
    let problem = match common::seal::open::<LogLine>(&text) {
        Ok(read) if read == *line => return Ok(text),
        Ok(_) => "it reads back as something else".to_owned(),
        Err(error) => error.to_string(),
    };
    match &line.event {
        Event::Heard { host, attempt, news: News::Ended(_) | News::Unreachable { .. } | News::GivenUp { .. } } => {
            let news = News::Unreachable { reason: format!("what it said cannot be kept: {problem}") };
            Ok(common::seal::seal(&LogLine { at: line.at, event: Event::Heard { host: host.clone(), attempt: *attempt, news } })?)
        }
        Event::Done { chunk, host, ends, back, doubted } if ends.iter().any(|(_, verdict)| !reads_back(verdict)) => {
            let kept = |verdict: &Verdict| match reads_back(verdict) {
                true => verdict.clone(),
                false => Verdict::lost(format!("it has ended, and what the host said of it cannot be kept: {problem}")),
            };
            let ends = ends.iter().map(|(index, verdict)| (*index, kept(verdict))).collect();
            let event = Event::Done { chunk: *chunk, host: host.clone(), ends, back: back.clone(), doubted: doubted.clone() };
            Ok(common::seal::seal(&LogLine { at: line.at, event })?)
        }
        Event::Created(_)
        | Event::Resumed { .. }
        | Event::Heard { .. }
        | Event::Dealt { .. }
        | Event::Done { .. }
        | Event::Left { .. }
        | Event::CancelAsked => Err(io::Error::new(io::ErrorKind::InvalidData, problem)),
    }
}

/// Whether a verdict does within a line of a log.
fn reads_back(verdict: &Verdict) -> bool {
    let event = Event::Left { first: 0, count: 1, verdict: verdict.clone() };
    let line = LogLine { at: Timestamp::UNIX_EPOCH, event };
    common::seal::seal(&line).is_ok_and(|text| common::seal::open::<LogLine>(&text).is_ok_and(|read| read == line))
}

/// A line, and which format the log has.
#[derive(Serialize)]
struct First<'l> {
    #[serde(flatten)]
    line: &'l LogLine,
    #[serde(flatten)]
    stamp: Stamp,
}

fn sealed(line: &LogLine) -> serde_json::Result<Vec<u8>> {
    match &line.event {
        Event::Created(header) => {
            let format = if header.map.is_some() { FORMAT } else { PLAIN };
            common::seal::seal(&First { line, stamp: format.stamp() })
        }
        _ => common::seal::seal(line),
    }
}

/// Whether the job's dispatcher is at work.
pub(crate) fn is_dispatching(home: &Home, job: &JobId) -> Result<bool, LogError> {
    let path = home.job_log(job);
    let failed = |source| LogError { doing: "probing", path: path.clone(), source };
    match File::open(&path).map_err(failed)?.try_lock_shared() {
        Ok(()) => Ok(false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(error)) => Err(failed(error)),
    }
}

/// Returns once all that was read of a log is on the disk.
pub(crate) fn sync(home: &Home, job: &JobId) -> Result<(), LogError> {
    let path = home.job_log(job);
    let synced = File::open(&path).and_then(|file| file.sync_data());
    synced.map_err(|source| LogError { doing: "syncing", path, source })
}

/// Whether there is such a log. That it cannot be told is an error: the job may be there.
pub(crate) fn exists(home: &Home, job: &JobId) -> Result<bool, LogError> {
    let path = home.job_log(job);
    match fs::metadata(&path) {
        Ok(metadata) => Ok(metadata.is_file()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(LogError { doing: "looking for", path, source }),
    }
}

/// The ids of the jobs that have a log, and how long it is, oldest first.
pub(crate) fn list(home: &Home) -> Result<Vec<(JobId, u64)>, LogError> {
    let path = home.jobs_dir();
    let failed = |source| LogError { doing: "listing", path: path.clone(), source };
    let entries = match fs::read_dir(&path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut jobs = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        let Some(id) = name.to_str().and_then(|name| name.strip_suffix(".log")?.parse::<JobId>().ok()) else { continue };
        // An id can be written in several ways, and a log's name in one: what is named otherwise is somebody's copy.
        if *name != *format!("{id}.log") {
            continue;
        }
        match entry.metadata() {
            Ok(metadata) if metadata.is_file() => jobs.push((id, metadata.len())),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
    }
    jobs.sort();
    Ok(jobs)
}

#[cfg(test)]
mod tests;
