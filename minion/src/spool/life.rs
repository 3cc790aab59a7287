//! What the files of a spool mean: whether its job waits, runs, has ended or is dead. It only reads; ARCHITECTURE.md has the table.

use std::fs::{File, TryLockError};

use common::outcome::Outcome;
use common::seal;
use serde::{Deserialize, Serialize};

use super::{LOCK, OUTCOME, STDOUT, Spool, SpoolError, SpoolLock, SpoolRequest, Started};

/// What a spool says of its job.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Life {
    /// The job has ended.
    Ended(Outcome),
    /// Its daemon lives, and has started the method.
    Running(Started),
    /// Nothing of a start is there: it waits for its turn, or its daemon is about to start the method.
    Queued,
    /// Its daemon is dead and left no outcome: nothing will come any more.
    Dead(Option<Started>),
    /// It has ended, and how cannot be read, for this reason.
    Damaged(String),
}

impl Life {
    /// Whether it waits for its turn.
    #[must_use]
    pub fn is_queued(&self) -> bool {
        matches!(self, Self::Queued)
    }
}

impl Spool {
    /// What the files say now.
    ///
    /// # Errors
    /// A file cannot be read, or is damaged.
    pub fn life(&self) -> Result<Life, SpoolError> {
        if let Some(end) = self.end()? {
            return Ok(end);
        }
        if self.daemon_lives()? {
            // Between its last file and the mark lies an instant; where the mark stays away it was lost.
            let is_starting = || Ok(self.has(STDOUT)?.then(Started::default));
            return Ok(self.started()?.map_or_else(is_starting, |started| Ok(Some(started)))?.map_or(Life::Queued, Life::Running));
        }
        // It may have ended between the two looks: the outcome is written before the lock is let go.
        self.last_words()
    }

    /// What the files say to the holder of the lock: the job has ended, its daemon is dead, or it waits.
    ///
    /// # Errors
    /// A file cannot be read, or is damaged.
    pub fn life_under_lock(&self, _held: &SpoolLock) -> Result<Life, SpoolError> {
        self.last_words()
    }

    fn last_words(&self) -> Result<Life, SpoolError> {
        if let Some(end) = self.end()? {
            return Ok(end);
        }
        // Several signs of a start, so that neither a file that lost its end nor a power cut can make a job run twice.
        if let Some(started) = self.started()? {
            return Ok(Life::Dead(Some(started)));
        }
        if self.has(STDOUT)? {
            return Ok(Life::Dead(None));
        }
        match self.request() {
            // The mark of its start was not waited for, so that it is missing says nothing.
            Ok(SpoolRequest { starts_at_once: true, .. }) => Ok(Life::Dead(None)),
            Err(error) if !error.is_damage() => Err(error),
            _waits_or_is_damaged => Ok(Life::Queued),
        }
    }

    pub(super) fn end(&self) -> Result<Option<Life>, SpoolError> {
        match self.read_if_there(OUTCOME) {
            Ok(outcome) => Ok(outcome.map(Life::Ended)),
            Err(damage @ SpoolError::Damaged { .. }) => Ok(Some(Life::Damaged(damage.to_string()))),
            Err(error) => Err(error),
        }
    }

    fn has(&self, name: &str) -> Result<bool, SpoolError> {
        self.dir.join(name).try_exists().map_err(self.failed("looking for", name))
    }

    /// Whether somebody holds the lock for himself. Looking takes a shared lock for an instant, which other lookers do not mind.
    ///
    /// # Errors
    /// The lock file cannot be opened.
    pub fn daemon_lives(&self) -> Result<bool, SpoolError> {
        let file = File::open(self.dir.join(LOCK)).map_err(self.failed("opening", LOCK))?;
        match file.try_lock_shared() {
            Ok(()) => Ok(false),
            Err(TryLockError::WouldBlock) => Ok(true),
            Err(TryLockError::Error(source)) => Err(self.failed("locking", LOCK)(source)),
        }
    }

    fn started(&self) -> Result<Option<Started>, SpoolError> {
        // A text that was cut by a crash while it was written means the same as a whole one: it may have started.
        let path = self.dir.join(LOCK);
        let text = std::fs::read(&path).map_err(self.failed("reading", LOCK))?;
        if text.is_empty() {
            return Ok(None);
        }
        Ok(Some(seal::open(&text).unwrap_or_default()))
    }
}
