//! `jobs/ID.log`: all that became known of a job, one sealed JSON line an event, appended and never changed. What it says, the store
//! only repeats. Its lock is the sign of life of the job's dispatcher; reading and appending need no lock.

mod read;

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::ops::{Deref, DerefMut};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::job::{Event, JobHeader, JobId, LogLine, News};
use jiff::Timestamp;

use crate::home::Home;
pub(crate) use read::read;

/// How long a lock that may merely be probed by someone is tried for: a probe holds it for microseconds.
const PROBED_WITHIN: Duration = Duration::from_millis(500);
/// How often.
const PROBED_EVERY: Duration = Duration::from_millis(5);

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
        // Nobody knows the id yet, so nobody but a passing probe can hold the lock.
        let Some(mut log) = JobLog { file, path: path.clone(), is_new: true }.lock()? else {
            return Ok(None);
        };
        log.append(&LogLine { at: Timestamp::now(), event: Event::Created(header) })?;
        log.sync()?;
        sync_folder(&home.jobs_dir()).map_err(failed)?;
        Ok(Some(log))
    }

    /// The log, open and no longer locked. None if the lock could not be given back before the file was closed.
    pub(crate) fn unlock(self) -> Option<JobLog> {
        self.0.file.unlock().ok().map(|()| self.0)
    }

    /// How long it is.
    pub(crate) fn bytes(&self) -> Result<u64, LogError> {
        let failed = |source| LogError { doing: "reading", path: self.0.path.clone(), source };
        self.0.file.metadata().map(|metadata| metadata.len()).map_err(failed)
    }

    /// Deletes it. It is gone for good once [`sync_logs`] has returned.
    pub(crate) fn delete(self) -> Result<(), LogError> {
        let Self(JobLog { path, .. }) = &self;
        fs::remove_file(path).map_err(|source| LogError { doing: "deleting", path: path.clone(), source })
    }
}

/// Returns once all logs that were deleted stay so.
pub(crate) fn sync_logs(home: &Home) -> Result<(), LogError> {
    let path = home.jobs_dir();
    sync_folder(&path).map_err(|source| LogError { doing: "syncing the folder of", path, source })
}

/// The folder of the logs, such that it outlasts a power cut: a job in it is about to be promised to somebody.
fn make_folder(home: &Home) -> io::Result<()> {
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
fn text_of(line: &LogLine) -> io::Result<Vec<u8>> {
    let text = common::seal::seal(line)?;
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
        Event::Created(_) | Event::Resumed { .. } | Event::Heard { .. } => Err(io::Error::new(io::ErrorKind::InvalidData, problem)),
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
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may panic")]
    use super::*;
    use common::outcome::{Outcome, Verdict};
    use common::protocol::Arguments;

    fn header(id: &str) -> JobHeader {
        JobHeader {
            job_id: id.parse().unwrap(),
            caller: "admin".parse().unwrap(),
            target: "*".into(),
            method: "test.ping".into(),
            args: Arguments::default(),
            job_limit_ms: None,
            retry_of: None,
            hosts: vec!["web1".parse().unwrap()],
        }
    }

    fn heard(reason: &str) -> LogLine {
        let news = News::Unreachable { reason: reason.into() };
        LogLine { at: Timestamp::UNIX_EPOCH, event: Event::Heard { host: "web1".parse().unwrap(), attempt: 1, news } }
    }

    fn lines(home: &Home, id: &JobId, from: u64) -> (Vec<LogLine>, usize, u64) {
        let (mut good, mut bad) = (Vec::new(), 0);
        let offset = read(&home.job_log(id), from, |line| match line {
            Ok(line) => good.push(line),
            Err(_) => bad += 1,
        });
        (good, bad, offset.unwrap())
    }

    #[test]
    fn a_log_is_locked_while_its_dispatcher_lives_and_no_longer() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::at(dir.path()).unwrap();
        let id: JobId = "54k2-9xqd-4fz1".parse().unwrap();
        let log = LockedLog::create(&home, header("54k2-9xqd-4fz1")).unwrap().unwrap();
        assert!(LockedLog::create(&home, header("54k2-9xqd-4fz1")).unwrap().is_none());
        assert!(is_dispatching(&home, &id).unwrap());
        assert!(JobLog::open(&home, &id).unwrap().lock().unwrap().is_none());
        drop(log);
        assert!(!is_dispatching(&home, &id).unwrap());
        assert!(JobLog::open(&home, &id).unwrap().lock().unwrap().is_some());
        assert_eq!(list(&home).unwrap().len(), 1);
    }

    #[test]
    fn nobody_works_on_a_log_that_was_deleted_while_they_waited_for_it() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::at(dir.path()).unwrap();
        let id: JobId = "54k2-9xqd-4fz1".parse().unwrap();
        let log = LockedLog::create(&home, header("54k2-9xqd-4fz1")).unwrap().unwrap();
        let waiting = JobLog::open(&home, &id).unwrap();
        log.delete().unwrap();
        assert!(waiting.lock().unwrap_err().is_missing());
    }

    #[test]
    fn a_line_that_was_cut_off_swallows_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::at(dir.path()).unwrap();
        let id: JobId = "54k2-9xqd-4fz1".parse().unwrap();
        drop(LockedLog::create(&home, header("54k2-9xqd-4fz1")).unwrap());
        let mut raw = OpenOptions::new().append(true).open(home.job_log(&id)).unwrap();
        raw.write_all(b"{\"at\":\"2026-").unwrap();
        let (good, bad, offset) = lines(&home, &id, 0);
        assert_eq!((good.len(), bad), (1, 1), "what was cut off is told");

        let mut log = JobLog::open(&home, &id).unwrap();
        log.append(&heard("cut")).unwrap();
        // Another writer is cut off while this one has the log open.
        raw.write_all(b"{\"at\":\"2026-").unwrap();
        log.append(&heard("still cut")).unwrap();
        let (good, bad, end) = lines(&home, &id, offset);
        assert_eq!((good, bad), (vec![heard("cut"), heard("still cut")], 2));
        assert_eq!(end, raw.metadata().unwrap().len());
    }

    #[test]
    fn what_would_not_read_back_is_not_written() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::at(dir.path()).unwrap();
        let id: JobId = "54k2-9xqd-4fz1".parse().unwrap();
        let mut log = LockedLog::create(&home, header("54k2-9xqd-4fz1")).unwrap().unwrap();
        let deep = (0..127).fold(serde_json::json!(0), |value, _| serde_json::json!([value]));
        let sly = serde_json::json!({ "$serde_json::private::RawValue": "[[[" });
        for result in [deep, sly] {
            let ended = Outcome::not_run(Verdict::Ok { result }, Timestamp::UNIX_EPOCH);
            let event = Event::Heard { host: "web1".parse().unwrap(), attempt: 1, news: News::Ended(ended) };
            log.append(&LogLine { at: Timestamp::UNIX_EPOCH, event }).unwrap();
        }
        let (good, bad, _) = lines(&home, &id, 0);
        assert_eq!((good.len(), bad), (3, 0));
        assert!(matches!(&good[2].event, Event::Heard { news: News::Unreachable { reason }, .. } if reason.contains("cannot be kept")));
    }

    #[test]
    fn what_is_no_log_is_not_listed() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::at(dir.path()).unwrap();
        drop(LockedLog::create(&home, header("54k2-9xqd-4fz1")).unwrap());
        fs::create_dir(home.jobs_dir().join("0000-0000-0000.log")).unwrap();
        fs::copy(home.jobs_dir().join("54k2-9xqd-4fz1.log"), home.jobs_dir().join("54k29xqd4fz1.log")).unwrap();
        assert_eq!(list(&home).unwrap().len(), 1);
    }
}
