//! Resident workers: processes in any language that stay, fetch tasks and return results, in memory. ARCHITECTURE.md says who starts whom, and who
//! believes whom.
//!
//! A worker's daemon ([`run`]) is one process with one thread, executed afresh by the spawner's side (`launch`). It owns its instances, their sockets
//! and its queue, and neither reads the network nor decides who may ask: methods (`worker.*`) ask it over `control.sock`.

mod callers;
pub mod config;
mod daemon;
mod desk;
#[doc(hidden)]
pub mod fuzzing;
mod instance;
pub(crate) mod launch;
mod log;
pub mod name;
mod reach;
mod report;
mod slot;
pub(crate) mod task_command;
mod tasks;
mod tend;
mod wire;

use std::fs::{DirBuilder, File, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::stat::{Mode, umask};
use nix::unistd::geteuid;

use crate::config::Config;
use crate::process::{self, ThreadError};
use crate::supervise::{kill_bearing, kill_strays};
use crate::{random, variables};
use common::shown::chain;
use config::{WorkerConfig, WorkerConfigError};
use daemon::Daemon;
use instance::Home;
use name::WorkerName;
pub use reach::{Answer, Asker, Reach, ReachError};

/// What a worker's file ends with.
const SUFFIX: &str = ".toml";
/// The most workers of a host.
pub const WORKERS_MAX: usize = 64;
/// Of the folders of the workers: their users pass through to their sockets.
const FOLDER_MODE: u32 = 0o711;
/// Taken away from a new socket's mode.
const OWN: Mode = Mode::from_bits_truncate(0o177);
/// The longest path of a Unix socket in bytes: `sun_path` of unix(7) without its ending zero.
const SOCKET_PATH_MAX_BYTES: usize = 107;
/// How long the lock of a worker may be held by those who only look.
const LOCK_TIMEOUT: Duration = Duration::from_secs(1);
const LOCK_LOOK_EVERY: Duration = Duration::from_millis(10);
/// How long what a dead daemon's instances have left may take to die.
const LEFT_TIMEOUT: Duration = Duration::from_secs(5);
/// And what a daemon's own have left, when it ends.
const DEATH_TIMEOUT: Duration = Duration::from_secs(1);

/// Where workers are described, and where they are at home.
#[derive(Debug, Clone)]
pub struct Places {
    /// `workers_dir`.
    pub configs: PathBuf,
    /// `state_dir/workers`, root's.
    pub state: PathBuf,
}

impl Places {
    /// The file of a worker.
    #[must_use]
    pub fn file(&self, worker: &WorkerName) -> PathBuf {
        self.configs.join(format!("{worker}{SUFFIX}"))
    }

    /// The folder of a worker.
    #[must_use]
    pub fn folder(&self, worker: &WorkerName) -> PathBuf {
        self.state.join(worker.as_str())
    }

    fn control(&self, worker: &WorkerName) -> PathBuf {
        self.folder(worker).join("control.sock")
    }

    fn lock(&self, worker: &WorkerName) -> PathBuf {
        self.folder(worker).join("lock")
    }

    /// Why its daemon did not start, in words.
    fn problem(&self, worker: &WorkerName) -> PathBuf {
        self.folder(worker).join("problem")
    }

    /// The workers that have a file, in order; and the other files, each with the reason why it makes no worker.
    fn list(&self) -> (Vec<WorkerName>, Vec<(String, String)>) {
        let entries = std::fs::read_dir(&self.configs).into_iter().flatten().flatten();
        let (mut workers, mut strange) = (Vec::new(), Vec::new());
        for entry in entries {
            let name = entry.file_name().to_string_lossy().into_owned();
            // Hidden files, an editor's for instance, are none.
            let Some(stem) = name.strip_suffix(SUFFIX).filter(|stem| !stem.starts_with('.')) else { continue };
            match stem.parse() {
                Ok(worker) => workers.push(worker),
                Err(_) => strange.push((name, "the name of a worker has letters, digits, - and _".to_owned())),
            }
        }
        workers.sort();
        let beyond = workers.split_off(workers.len().min(WORKERS_MAX));
        strange
            .extend(beyond.into_iter().map(|worker: WorkerName| (worker.to_string(), format!("a host has {WORKERS_MAX} workers at most"))));
        (workers, strange)
    }

    /// Makes the folder of all workers, for root, if it is not there.
    ///
    /// # Errors
    /// It cannot be made.
    pub(crate) fn prepare(&self) -> io::Result<()> {
        make_folder(&self.state)
    }

    /// That the folder of all workers is this user's, so that nobody else put anything there.
    fn require_own(&self) -> io::Result<()> {
        let found = self.state.symlink_metadata()?;
        if found.is_dir() && found.uid() == geteuid().as_raw() {
            return Ok(());
        }
        let path = self.state.display();
        Err(io::Error::other(format!("{path} is not a folder of this user's: run `mv {path} {path}.set-aside` and start the minion again")))
    }
}

/// What is wrong with the files of workers, and with the paths that follow from them.
#[must_use]
pub fn problems(places: &Places) -> Vec<String> {
    let (workers, strange) = places.list();
    let of_name = |(name, why): (String, String)| format!("{}: {why}", places.configs.join(name).display());
    let of_file = |worker: &WorkerName| WorkerConfig::load(&places.file(worker)).err().map(|error| chain(&error));
    let of_path = |worker: &WorkerName| too_long(&places.folder(worker)).map(|path| WorkerError::LongPath { path }.to_string());
    let found = workers.iter().flat_map(|worker| [of_file(worker), of_path(worker)]).flatten();
    strange.into_iter().map(of_name).chain(found).collect()
}

/// The longest path of a socket in the folder of a worker, if it is too long.
fn too_long(folder: &Path) -> Option<PathBuf> {
    // Those of the instances have longer names than any other.
    let longest = folder.join(format!("{}-000000.sock", config::INSTANCES_MAX));
    (longest.as_os_str().len() > SOCKET_PATH_MAX_BYTES).then_some(longest)
}

/// Why a worker's daemon could not start, or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// It has threads.
    #[error(transparent)]
    Threads(#[from] ThreadError),
    /// Its file is not as it must be.
    #[error(transparent)]
    Config(#[from] WorkerConfigError),
    /// It cannot make what it needs.
    #[error("{doing} {path}: {source}")]
    File {
        /// What was being done.
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The path of its sockets is too long.
    #[error("{path} would be a socket of {} bytes, and {SOCKET_PATH_MAX_BYTES} is the most: take a shorter name, or a shorter state_dir", path.as_os_str().len())]
    LongPath {
        /// The socket.
        path: PathBuf,
    },
    /// The kernel refuses signals or waiting.
    #[error("the kernel refuses: {0}")]
    Kernel(#[from] nix::Error),
}

/// Lives as the daemon of the worker `name` until told to stop, or until its file is gone. Where it has one that lives, nothing is done.
///
/// # Errors
/// It cannot start, or the kernel refuses to go on.
pub fn run(minion: &Config, name: WorkerName) -> Result<(), WorkerError> {
    process::require_single_thread()?;
    process::hear_of_children()?;
    // A session of its own: what ends the one that it was started in does not end it.
    let _leads_one_already = nix::unistd::setsid();
    let places = minion.workers();
    let failed = |doing, path: &Path| {
        let path = path.to_owned();
        move |source| WorkerError::File { doing, path, source }
    };
    let folder = places.folder(&name);
    places.require_own().map_err(failed("using", &places.state))?;
    make_folder(&folder).map_err(failed("making", &folder))?;
    let lock = places.lock(&name);
    let Some(_held_for_life) = take_lock(&lock).map_err(failed("locking", &lock))? else { return Ok(()) };
    let began = Daemon::begin(places.clone(), Home { minion: minion.name.clone(), worker: name.clone(), folder });
    let mut daemon = began.inspect_err(|error| launch::tell(&places, &name, &error.to_string()))?;
    launch::forget(&places, &name);
    while daemon.turn()? {}
    kill_strays(&[], (variables::WORKER_SOCKET, &[]), DEATH_TIMEOUT);
    daemon.take_leave();
    Ok(())
}

/// The lock of a worker, if nobody works under it.
fn take_lock(path: &Path) -> io::Result<Option<File>> {
    let file = File::options().create(true).truncate(false).write(true).mode(0o600).open(path)?;
    let deadline = Instant::now() + LOCK_TIMEOUT;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(Some(file)),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => std::thread::sleep(LOCK_LOOK_EVERY),
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
}

/// Removes what a daemon that was killed has left: its sockets, and what of its instances did not die with it.
fn clear_left(folder: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(folder)?.flatten() {
        let (name, path) = (entry.file_name(), entry.path());
        let is_socket = path.extension().is_some_and(|extension| extension == "sock");
        if is_socket {
            // No two starts have the same; another minion's, in a container, may lie under the same folder's name.
            kill_bearing(variables::WORKER_SOCKET, path.as_os_str(), LEFT_TIMEOUT);
        }
        if is_socket || name.as_encoded_bytes().starts_with(b".") {
            std::fs::remove_file(path)?;
        }
    }
    Ok(())
}

fn make_folder(folder: &Path) -> io::Result<()> {
    let before = umask(Mode::empty());
    let made = DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(folder);
    umask(before);
    made
}

/// A socket at `path`, for this user alone from the first instant, that replaces what is there.
fn bind_own(path: &Path) -> io::Result<UnixListener> {
    let draft = path.with_file_name(format!(".{}", random::word()));
    let before = umask(OWN);
    let bound = UnixListener::bind(&draft);
    umask(before);
    let listener = bound?;
    std::fs::rename(&draft, path)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}
