//! Where the minion's own files lie, below the folders of its configuration.

use std::path::PathBuf;

use super::Config;
use crate::worker::Places;

impl Config {
    /// One folder for each job.
    #[must_use]
    pub fn spool_dir(&self) -> PathBuf {
        self.state_dir.join("spool")
    }

    /// What the server answers from.
    #[must_use]
    pub fn status_store(&self) -> PathBuf {
        self.state_dir.join("status.sled")
    }

    /// Locked by the one server that may run with this state.
    #[must_use]
    pub fn server_lock(&self) -> PathBuf {
        self.state_dir.join("server.lock")
    }

    /// Where the spawner listens.
    #[must_use]
    pub fn spawner_socket(&self) -> PathBuf {
        self.state_dir.join("spawner.sock")
    }

    /// Where job daemons tell the server that they have ended.
    #[must_use]
    pub fn server_socket(&self) -> PathBuf {
        self.state_dir.join("server.sock")
    }

    /// Where jobs submit calls of their own.
    #[must_use]
    pub fn submit_socket(&self) -> PathBuf {
        self.state_dir.join("submit.sock")
    }

    /// Where resident workers are described, and where they are at home.
    #[must_use]
    pub fn workers(&self) -> Places {
        Places { configs: self.workers_dir.clone(), state: self.state_dir.join("workers") }
    }

    /// One line for each decision.
    #[must_use]
    pub fn audit_log(&self) -> PathBuf {
        self.state_dir.join("audit.log")
    }
}
