//! A job's folder: what lies in it, in which order it is written, and what it means. The files are the truth; all else follows from them.
//!
//! The root side alone writes here (the spawner's children and the job daemons); the server does
//! not even read, and asks a child of the spawner what it says. ARCHITECTURE.md has the table.

mod error;
mod folder;
mod followups;
mod forgotten;
mod format;
mod life;
mod output;
mod progress;
mod record;
mod seen;

use std::fs::{File, TryLockError};
use std::io;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use common::job::MinionJobId;
use common::outcome::Outcome;
use common::seal;
use jiff::Timestamp;
use nix::fcntl::{AT_FDCWD, OFlag, RenameFlags, renameat2};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde::Serialize;
use serde::de::DeserializeOwned;

pub use error::SpoolError;
pub use folder::{list, prepare, sweep, sync};
pub use followups::Followup;
pub use forgotten::Forgotten;
pub use format::require_known;
pub use life::Life;
pub use output::Glance;
pub use record::{CancelRequest, SpoolRequest, Started, boot_id, lost_reason};
pub use seen::{Brief, Seen};

/// The most that is read of any one file of a spool: the outcome holds a result, which has a limit of its own far below.
const FILE_MAX_BYTES: u64 = 64 * 1024 * 1024;

const REQUEST: &str = "request.json";
const LOCK: &str = "lock";
/// A FIFO: whatever is written to it wakes the job daemon, which then looks for `cancel.json`. (A watch by inotify would be one of only
/// 128 that a user may have by default.)
const WAKE: &str = "wake";
const CANCEL: &str = "cancel.json";
const OUTCOME: &str = "outcome.json";
/// Made last before the method is marked as started: that it is there is a sign of a start, too.
const STDOUT: &str = "stdout";

/// The lock of a spool, held. Children inherit it; it is free when the last of them has closed it or died.
#[derive(Debug)]
pub struct SpoolLock(File);

/// What became of the wish to make a spool.
#[derive(Debug)]
pub enum Made {
    /// It is there now, and this is its lock.
    New(Spool, SpoolLock),
    /// It had been there before.
    Exists,
}

/// The folder of one job.
#[derive(Debug, Clone)]
pub struct Spool {
    dir: PathBuf,
}

impl Spool {
    /// The spool of the job `id`, which need not exist.
    #[must_use]
    pub fn of(spools: &Path, id: &MinionJobId) -> Self {
        Self { dir: spools.join(id.as_str()) }
    }

    /// Makes the spool of `request`, complete and durable, unless there is one. With an `outcome` it is a fence.
    ///
    /// # Errors
    /// The disk is full, or another failure of the file system; then no spool of that id was made.
    pub fn make(spools: &Path, request: &SpoolRequest, outcome: Option<&Outcome>) -> Result<Made, SpoolError> {
        let spool = Self::of(spools, &request.minion_job_id);
        if spool.exists()? {
            return Ok(Made::Exists);
        }
        let draft = Self { dir: spools.join(draft_name(request.minion_job_id.as_str())) };
        let made = draft.fill(request, outcome).and_then(|lock| Ok((lock, draft.publish(&spool)?)));
        match made {
            Ok((lock, true)) => Ok(Made::New(spool, lock)),
            Ok((_, false)) => draft.discard().map(|()| Made::Exists),
            Err(error) => {
                // The first error is the one to tell; a draft that stays behind is swept later.
                let _swept_later = draft.discard();
                Err(error)
            }
        }
    }

    fn fill(&self, request: &SpoolRequest, outcome: Option<&Outcome>) -> Result<SpoolLock, SpoolError> {
        std::fs::DirBuilder::new().mode(0o700).create(&self.dir).map_err(self.failed("making", ""))?;
        let lock = self.create(LOCK)?;
        lock.try_lock().map_err(|error| self.failed("locking", LOCK)(error.into()))?;
        match outcome {
            Some(outcome) => self.write_new(OUTCOME, outcome)?,
            None => self.make_wake()?,
        }
        // Last, because what syncs it syncs the folder too on most file systems, and then the next line costs nothing.
        self.write_new(REQUEST, request)?;
        sync_dir(&self.dir)?;
        Ok(SpoolLock(lock))
    }

    /// Gives the draft its name; `false` if another has it. On return the name is durable.
    fn publish(&self, spool: &Self) -> Result<bool, SpoolError> {
        match renameat2(AT_FDCWD, &self.dir, AT_FDCWD, &spool.dir, RenameFlags::RENAME_NOREPLACE) {
            Ok(()) => {}
            Err(nix::Error::EEXIST | nix::Error::ENOTEMPTY) => return Ok(false),
            Err(errno) => return Err(self.failed("renaming", "")(errno.into())),
        }
        let Err(error) = spool.dir.parent().map_or(Ok(()), sync_dir) else { return Ok(true) };
        // Whoever asked will hear that it was refused: nothing may be left that could start.
        let doubtful = |source| SpoolError::Doubtful { path: spool.dir.clone(), source };
        let taken_back = renameat2(AT_FDCWD, &spool.dir, AT_FDCWD, &self.dir, RenameFlags::RENAME_NOREPLACE);
        taken_back.map_err(|errno| doubtful(errno.into()))?;
        match spool.dir.parent().map_or(Ok(()), sync_dir) {
            Ok(()) => Err(error),
            Err(again) => Err(doubtful(io::Error::other(again.to_string()))),
        }
    }

    fn discard(&self) -> Result<(), SpoolError> {
        std::fs::remove_dir_all(&self.dir).map_err(self.failed("removing", ""))
    }

    /// Whether there is such a spool.
    ///
    /// # Errors
    /// That cannot be told: its disk is not there, or fails.
    pub fn exists(&self) -> Result<bool, SpoolError> {
        let spools = self.dir.parent().unwrap_or(&self.dir);
        match std::fs::metadata(&self.dir) {
            Ok(_) => Ok(true),
            // Only a folder that is there itself can say that something is not in it.
            Err(error) if error.kind() == io::ErrorKind::NotFound && spools.is_dir() => Ok(false),
            Err(source) => Err(self.failed("looking for", "")(source)),
        }
    }

    /// The folder.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Who asked for what.
    ///
    /// # Errors
    /// The file cannot be read, or is damaged.
    pub fn request(&self) -> Result<SpoolRequest, SpoolError> {
        self.read(REQUEST)
    }

    /// The lock, if nobody holds it.
    ///
    /// # Errors
    /// The lock file cannot be opened.
    pub fn try_lock(&self) -> Result<Option<SpoolLock>, SpoolError> {
        // Writable, because the start is noted in it.
        let file = File::options().read(true).append(true).open(self.dir.join(LOCK)).map_err(self.failed("opening", LOCK))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(SpoolLock(file))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(source)) => Err(self.failed("locking", LOCK)(source)),
        }
    }

    /// Writes the outcome: whoever holds the lock does it, once. Durable on return.
    ///
    /// # Errors
    /// The disk is full, or another failure of the file system; then there is no outcome yet, and it may be tried again.
    pub fn write_outcome(&self, _held: &SpoolLock, outcome: &Outcome) -> Result<(), SpoolError> {
        let draft = ".outcome.json";
        let path = self.dir.join(draft);
        if path.exists() {
            std::fs::remove_file(&path).map_err(self.failed("removing", draft))?;
        }
        self.write_new(draft, outcome)?;
        std::fs::rename(&path, self.dir.join(OUTCOME)).map_err(self.failed("renaming", draft))?;
        sync_dir(&self.dir)
    }

    /// Keeps an outcome that cannot be read beside the one that is about to take its place.
    ///
    /// # Errors
    /// The disk is full, or another failure of the file system.
    pub fn keep_damaged_outcome(&self) -> Result<(), SpoolError> {
        match std::fs::hard_link(self.dir.join(OUTCOME), self.dir.join("outcome.json.damaged")) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(self.failed("linking", OUTCOME)(error)),
            _kept => Ok(()),
        }
    }

    /// The wish to stop the job, if there is one.
    ///
    /// # Errors
    /// The file cannot be read, or is damaged.
    pub fn cancel_request(&self) -> Result<Option<CancelRequest>, SpoolError> {
        self.read_if_there(CANCEL)
    }

    /// The job daemon's ear: readable when somebody wants something of it. It is a writer too, so that it never reads an end.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn listen(&self) -> Result<File, SpoolError> {
        let mut options = File::options();
        options.read(true).write(true).custom_flags(OFlag::O_NONBLOCK.bits());
        match options.open(self.dir.join(WAKE)) {
            // Not every tool that copies folders copies it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.make_wake()?;
                options.open(self.dir.join(WAKE)).map_err(self.failed("opening", WAKE))
            }
            opened => opened.map_err(self.failed("opening", WAKE)),
        }
    }

    fn make_wake(&self) -> Result<(), SpoolError> {
        mkfifo(&self.dir.join(WAKE), Mode::S_IRUSR | Mode::S_IWUSR).map_err(|errno| self.failed("making", WAKE)(errno.into()))
    }

    fn wake(&self) {
        // Without a reader the daemon is dead, and with a full pipe it is awake already.
        let opened = File::options().write(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(self.dir.join(WAKE));
        let _asleep_for_good = opened.and_then(|mut wake| wake.write(b"!"));
    }

    /// Asks the job daemon to stop the job. The first to ask is the one who is told of; durable on return.
    ///
    /// # Errors
    /// The disk is full, or another failure of the file system.
    pub fn ask_to_cancel(&self, wish: &CancelRequest) -> Result<(), SpoolError> {
        let draft = draft_name("cancel");
        self.write_new(&draft, wish)?;
        let path = self.dir.join(&draft);
        let renamed = renameat2(AT_FDCWD, &path, AT_FDCWD, &self.dir.join(CANCEL), RenameFlags::RENAME_NOREPLACE);
        match renamed {
            Ok(()) => {
                self.wake();
                sync_dir(&self.dir)
            }
            Err(nix::Error::EEXIST) if self.cancel_request().is_err_and(|error| error.is_damage()) => {
                std::fs::rename(&path, self.dir.join(CANCEL)).map_err(self.failed("renaming", &draft))?;
                self.wake();
                sync_dir(&self.dir)
            }
            // Who asked first may have died before he woke the daemon.
            Err(nix::Error::EEXIST) => {
                self.wake();
                std::fs::remove_file(&path).map_err(self.failed("removing", &draft))
            }
            Err(errno) => Err(self.failed("renaming", &draft)(errno.into())),
        }
    }

    /// Writes into the lock file that the method is about to start. Durable on return, unless the request says that it starts at once: then
    /// a power cut may take the mark away, and the request stands for it.
    ///
    /// # Errors
    /// The disk is full, or another failure of the file system; the method must not be started then.
    pub fn mark_started(&self, lock: &SpoolLock, started: &Started, is_in_request: bool) -> Result<(), SpoolError> {
        let text = self.sealed(LOCK, started)?;
        let sync = || if is_in_request { Ok(()) } else { lock.0.sync_data() };
        (&lock.0).write_all(&text).and_then(|()| sync()).map_err(self.failed("writing", LOCK))
    }

    /// How many bytes of the disk its files take.
    #[must_use]
    pub fn disk_bytes(&self) -> u64 {
        use std::os::unix::fs::MetadataExt as _;
        /// The unit of `st_blocks`, see stat(3type).
        const BLOCK_BYTES: u64 = 512;
        let files = std::fs::read_dir(&self.dir).into_iter().flatten().flatten();
        files.filter_map(|file| file.metadata().ok()).map(|file| file.blocks() * BLOCK_BYTES).sum()
    }

    /// When the job of `request` has ended; none if it has not.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn ended_at(&self, request: &SpoolRequest) -> Result<Option<Timestamp>, SpoolError> {
        Ok(match self.end()? {
            Some(Life::Ended(outcome)) => Some(outcome.finished_at.unwrap_or(request.accepted_at)),
            Some(_damaged) => Some(request.accepted_at),
            None => None,
        })
    }

    /// Removes the spool of a job that has ended; `false` if it has not. One that is not there is removed already.
    ///
    /// # Errors
    /// It cannot be read, or not removed.
    pub fn remove(&self) -> Result<bool, SpoolError> {
        if !self.exists()? {
            return Ok(true);
        }
        if !matches!(self.end()?.unwrap_or(Life::Queued), Life::Ended(_) | Life::Damaged(_)) {
            return Ok(false);
        }
        // Under another name first, so that a crash leaves no spool that has lost some of its files.
        let gone = self.dir.with_file_name(draft_name("gone"));
        std::fs::rename(&self.dir, &gone).map_err(self.failed("renaming", ""))?;
        std::fs::remove_dir_all(&gone).map_err(|source| SpoolError::File { doing: "removing", path: gone, source })?;
        Ok(true)
    }

    /// Takes back what a daemon has left that could not note a start: the job waits again.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn unmark(&self, lock: &SpoolLock) -> Result<(), SpoolError> {
        lock.0.set_len(0).map_err(self.failed("cutting", LOCK))?;
        std::fs::remove_file(self.dir.join(STDOUT)).map_err(self.failed("removing", STDOUT))
    }

    /// An empty file for a stream of the job's output. One that is there already is of a daemon that died before the method began.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn create_output(&self, name: &str) -> Result<File, SpoolError> {
        let mut options = File::options();
        options.write(true).create(true).truncate(true).mode(0o600);
        options.open(self.dir.join(name)).map_err(self.failed("making", name))
    }

    fn create(&self, name: &str) -> Result<File, SpoolError> {
        let mut options = File::options();
        options.read(true).write(true).create_new(true).mode(0o600);
        options.open(self.dir.join(name)).map_err(self.failed("making", name))
    }

    fn write_new(&self, name: &str, value: &impl Serialize) -> Result<(), SpoolError> {
        let text = self.sealed(name, value)?;
        let mut file = self.create(name)?;
        file.write_all(&text).and_then(|()| file.sync_all()).map_err(self.failed("writing", name))
    }

    fn read<T: DeserializeOwned>(&self, name: &str) -> Result<T, SpoolError> {
        let path = self.dir.join(name);
        let mut text = Vec::new();
        let file = File::open(&path).map_err(self.failed("opening", name))?;
        file.take(FILE_MAX_BYTES).read_to_end(&mut text).map_err(self.failed("reading", name))?;
        seal::open(&text).map_err(|source| SpoolError::Damaged { path, source })
    }

    fn sealed(&self, name: &str, value: &impl Serialize) -> Result<Vec<u8>, SpoolError> {
        seal::seal(value).map_err(|source| SpoolError::Unwritable { path: self.dir.join(name), source })
    }

    fn read_if_there<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, SpoolError> {
        match self.read(name) {
            Ok(value) => Ok(Some(value)),
            Err(SpoolError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn failed(&self, doing: &'static str, name: &str) -> impl FnOnce(io::Error) -> SpoolError + use<> {
        let path = if name.is_empty() { self.dir.clone() } else { self.dir.join(name) };
        move |source| SpoolError::File { doing, path, source }
    }
}

/// A name that no other draft has, nor one that a crash left behind.
fn draft_name(of: &str) -> String {
    format!(".{of}-{}-{}", std::process::id(), Timestamp::now().as_nanosecond())
}

fn sync_dir(dir: &Path) -> Result<(), SpoolError> {
    let synced = File::open(dir).and_then(|file| file.sync_all());
    synced.map_err(|source| SpoolError::File { doing: "syncing", path: dir.to_owned(), source })
}
