//! The spawner's part: it looks which workers have a file and no daemon, and executes a daemon for each of these afresh. What a daemon does is its own
//! business, and none of them ends with the spawner or the server.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use common::shown::chain;

use super::config::WorkerConfig;
use super::name::WorkerName;
use super::{Places, WorkerError, make_folder, too_long};
use crate::{process, variables};

/// How often it is looked.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Who starts what is not there.
#[derive(Debug)]
pub(crate) struct Launcher {
    places: Places,
    /// The minion's configuration, for the daemons.
    config: PathBuf,
    next: Instant,
}

impl Launcher {
    /// The first look is due at once.
    pub(crate) fn new(places: Places, config: &Path) -> Self {
        Self { places, config: config.to_owned(), next: Instant::now() }
    }

    /// In how long the next look is due.
    pub(crate) fn due_in(&self) -> Duration {
        self.next.saturating_duration_since(Instant::now())
    }

    /// Whether a look is due, and there are workers at all; then the next one follows later.
    pub(crate) fn is_due(&mut self) -> bool {
        if !self.due_in().is_zero() {
            return false;
        }
        self.next = Instant::now() + LOOK_EVERY;
        !self.places.list().0.is_empty()
    }

    /// Starts the daemons that are not there. It is done in a process of its own, which ends after it.
    ///
    /// # Errors
    /// The folder of the workers cannot be used.
    pub(crate) fn look(&self) -> io::Result<()> {
        self.places.require_own()?;
        for worker in self.places.list().0 {
            let folder = self.places.folder(&worker);
            if let Err(error) = make_folder(&folder) {
                tracing::error!(%worker, %error, "the folder of a worker cannot be made");
            } else if !lives(&self.places.lock(&worker)) {
                self.start(&worker);
            }
        }
        Ok(())
    }

    fn start(&self, worker: &WorkerName) {
        // A daemon would say it, too, but not be there: it is not started again and again for that.
        if let Err(error) = WorkerConfig::load(&self.places.file(worker)) {
            return tell(&self.places, worker, &chain(&error));
        }
        if let Some(path) = too_long(&self.places.folder(worker)) {
            return tell(&self.places, worker, &WorkerError::LongPath { path }.to_string());
        }
        let mut command = process::own_command(&self.config);
        command.args(["worker", worker.as_str()]).stdin(Stdio::null()).stdout(Stdio::null()).current_dir("/");
        for name in variables::ALL.iter().chain(&variables::OF_SERVICE_MANAGER) {
            command.env_remove(name);
        }
        match command.spawn() {
            // It outlives this process, whose child it is for an instant.
            Ok(_daemon) => {}
            Err(error) => tell(&self.places, worker, &format!("its daemon cannot be executed: {error}")),
        }
    }
}

/// Whether a worker's daemon lives: it holds its lock for life.
pub(super) fn lives(lock: &Path) -> bool {
    let Ok(file) = File::open(lock) else { return false };
    matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock))
}

/// Writes down why there is no daemon, for `worker.list`, and says it in the log if it is news.
pub(super) fn tell(places: &Places, worker: &WorkerName, why: &str) {
    let file = places.problem(worker);
    if fs::read_to_string(&file).ok().as_deref() != Some(why) {
        let _said_again = fs::write(file, why);
        tracing::error!(%worker, why, "a worker's daemon does not start; it is tried again");
    }
}

/// It has started.
pub(super) fn forget(places: &Places, worker: &WorkerName) {
    let _was_not_there = fs::remove_file(places.problem(worker));
}
