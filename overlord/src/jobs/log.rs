//! `jobs/ID.log`: all that became known of a job, one JSON line an event, appended and never changed. What it says, the store
//! only repeats. Its lock is the sign of life of the job's dispatcher; reading and appending need no lock.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::job::{Event, JobHeader, JobId, LogLine};
use jiff::Timestamp;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use crate::home::Home;

/// How long a lock that may merely be probed by someone is tried for: a probe holds it for microseconds.
const PROBED_WITHIN: Duration = Duration::from_millis(500);
/// How often.
const PROBED_EVERY: Duration = Duration::from_millis(5);
/// The longest line that is read. It holds one answer of a host, with all its quotes escaped.
const LINE_MAX_BYTES: u64 = 256 << 20;

/// Why a job's log cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{doing} the job log {}", .path.display())]
pub struct LogError {
    doing: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// A log to append to.
#[derive(Debug)]
pub(crate) struct JobLog<F = File> {
    file: F,
    path: PathBuf,
    /// The last line is not whole: something was cut off in the middle of writing it.
    is_torn: bool,
}

/// A log whose dispatcher is us.
pub(crate) type LockedLog = JobLog<Flock<File>>;

impl JobLog {
    /// Opens the log of a job to tell of what hosts said.
    pub(crate) fn open(home: &Home, job: &JobId) -> Result<Self, LogError> {
        let path = home.job_log(job);
        let failed = |source| LogError { doing: "opening", path: path.clone(), source };
        let file = OpenOptions::new().read(true).append(true).open(&path).map_err(failed)?;
        let is_torn = is_torn(&file).map_err(failed)?;
        Ok(Self { file, path, is_torn })
    }

    /// Takes the place of the job's dispatcher. None if one is at work.
    pub(crate) fn lock(self) -> Result<Option<LockedLog>, LogError> {
        let Self { mut file, path, is_torn } = self;
        let deadline = Instant::now() + PROBED_WITHIN;
        loop {
            file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(file) => return Ok(Some(LockedLog { file, path, is_torn })),
                Err((file, Errno::EWOULDBLOCK | Errno::EINTR)) => file,
                Err((_, errno)) => return Err(LogError { doing: "locking", path, source: errno.into() }),
            };
            if Instant::now() >= deadline {
                return Ok(None);
            }
            sleep(PROBED_EVERY);
        }
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
        let Some(mut log) = JobLog { file, path: path.clone(), is_torn: false }.lock()? else {
            return Ok(None);
        };
        log.append(&LogLine { at: Timestamp::now(), event: Event::Created(header) })?;
        log.sync()?;
        sync_folder(&home.jobs_dir()).map_err(failed)?;
        Ok(Some(log))
    }
}

/// The file under a log, locked or not.
pub(crate) trait LogFile {
    fn file(&self) -> &File;
}

impl LogFile for File {
    fn file(&self) -> &File {
        self
    }
}

impl LogFile for Flock<File> {
    fn file(&self) -> &File {
        self
    }
}

impl<F: LogFile> JobLog<F> {
    /// Appends one line by one write, so that lines of several writers never mix.
    pub(crate) fn append(&mut self, line: &LogLine) -> Result<(), LogError> {
        let written = self.try_append(line);
        // What was written of it before it failed would swallow the next line.
        self.is_torn = written.is_err();
        written.map_err(|source| LogError { doing: "writing to", path: self.path.clone(), source })
    }

    fn try_append(&self, line: &LogLine) -> io::Result<()> {
        let mut bytes = if self.is_torn { b"\n".to_vec() } else { Vec::new() };
        serde_json::to_writer(&mut bytes, line)?;
        bytes.push(b'\n');
        self.file.file().write_all(&bytes)
    }

    /// Returns once all that was appended is on the disk.
    pub(crate) fn sync(&self) -> Result<(), LogError> {
        self.file.file().sync_data().map_err(|source| LogError { doing: "syncing", path: self.path.clone(), source })
    }
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

fn is_torn(mut file: &File) -> io::Result<bool> {
    let length = file.seek(SeekFrom::End(0))?;
    let mut last = [b'\n'];
    if length > 0 {
        file.read_exact_at(&mut last, length - 1)?;
    }
    Ok(last != [b'\n'])
}

/// Whether the job's dispatcher is at work.
pub(crate) fn is_dispatching(home: &Home, job: &JobId) -> Result<bool, LogError> {
    let path = home.job_log(job);
    let failed = |source| LogError { doing: "probing", path: path.clone(), source };
    let file = File::open(&path).map_err(failed)?;
    match Flock::lock(file, FlockArg::LockSharedNonblock) {
        Ok(_) => Ok(false),
        Err((_, Errno::EWOULDBLOCK)) => Ok(true),
        Err((_, errno)) => Err(failed(errno.into())),
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
        if let Some(id) = name.to_str().and_then(|name| name.strip_suffix(".log")?.parse().ok()) {
            jobs.push((id, entry.metadata().map_err(failed)?.len()));
        }
    }
    jobs.sort();
    Ok(jobs)
}

/// Reads the whole lines from byte `from` on, and gives the byte behind the last of them. What is no event is given as text.
pub(crate) fn read(path: &Path, from: u64, mut each: impl FnMut(Result<LogLine, String>)) -> Result<u64, LogError> {
    let failed = |source| LogError { doing: "reading", path: path.to_owned(), source };
    let mut file = File::open(path).map_err(failed)?;
    // What is folded from here on must not be forgotten by the log when the power fails and the store remembers it.
    file.sync_data().map_err(failed)?;
    file.seek(SeekFrom::Start(from)).map_err(failed)?;
    let mut reader = BufReader::new(file);
    let (mut offset, mut line) = (from, Vec::new());
    loop {
        line.clear();
        let length = reader.by_ref().take(LINE_MAX_BYTES).read_until(b'\n', &mut line).map_err(failed)?;
        let is_whole = line.pop() == Some(b'\n') || u64::try_from(length).unwrap_or(u64::MAX) == LINE_MAX_BYTES;
        if !is_whole {
            return Ok(offset);
        }
        offset += u64::try_from(length).unwrap_or(0);
        if !line.is_empty() {
            each(
                serde_json::from_slice(&line)
                    .map_err(|error| format!("{}: a line that is no event is passed over ({error})", path.display())),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;
    use common::job::News;
    use common::protocol::Arguments;

    fn header(id: &str) -> JobHeader {
        JobHeader {
            job_id: id.parse().unwrap(),
            caller: "admin".parse().unwrap(),
            target: "*".into(),
            method: "test.ping".into(),
            args: Arguments::default(),
            job_limit_ms: None,
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
    fn a_line_that_was_cut_off_swallows_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::at(dir.path()).unwrap();
        let id: JobId = "54k2-9xqd-4fz1".parse().unwrap();
        drop(LockedLog::create(&home, header("54k2-9xqd-4fz1")).unwrap());
        let mut raw = OpenOptions::new().append(true).open(home.job_log(&id)).unwrap();
        raw.write_all(b"{\"at\":\"2026-").unwrap();
        let (good, bad, offset) = lines(&home, &id, 0);
        assert_eq!((good.len(), bad), (1, 0), "what is not whole yet is not read");

        let mut log = JobLog::open(&home, &id).unwrap();
        log.append(&heard("cut")).unwrap();
        log.append(&heard("still cut")).unwrap();
        let (good, bad, end) = lines(&home, &id, offset);
        assert_eq!((good, bad), (vec![heard("cut"), heard("still cut")], 1));
        assert_eq!(end, raw.metadata().unwrap().len());
    }
}
