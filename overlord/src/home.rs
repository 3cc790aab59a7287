//! The overlord's home: which folder it is, and where each file lies in it. Knows paths alone; reads and writes nothing.

use std::env;
use std::path::{Path, PathBuf, absolute};

use common::job::JobId;

/// Why there is no home.
#[derive(Debug, thiserror::Error)]
pub enum HomeError {
    /// Nothing says where it is.
    #[error("no folder to work in: neither --home nor OVERLORD_HOME nor HOME is set; name one with --home DIR")]
    Unknown,
    /// The path cannot be made absolute.
    #[error("making the path {} absolute", .path.display())]
    Path {
        /// As it was given.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// Where the overlord's files lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Home {
    /// What an administrator writes: `overlord.toml`, `hosts.toml`, `certs/`.
    config: PathBuf,
    /// What the program writes: `jobs.sled`, `jobs/`.
    state: PathBuf,
}

impl Home {
    /// The home in one folder, which need not exist yet.
    ///
    /// # Errors
    /// The path is relative, and the current folder is gone.
    pub fn at(dir: impl AsRef<Path>) -> Result<Self, HomeError> {
        let dir = dir.as_ref();
        let dir = absolute(dir).map_err(|source| HomeError::Path { path: dir.to_owned(), source })?;
        Ok(Self { config: dir.clone(), state: dir })
    }

    /// The folder `given`, else the one that `OVERLORD_HOME` names, else the system's folders as root and XDG's as a user.
    ///
    /// # Errors
    /// None of them is known.
    pub fn find(given: Option<&Path>) -> Result<Self, HomeError> {
        let named = given.map(Path::to_owned).or_else(|| variable("OVERLORD_HOME"));
        if let Some(dir) = named {
            return Self::at(dir);
        }
        if nix::unistd::geteuid().is_root() {
            return Ok(Self { config: "/etc/overlord".into(), state: "/var/lib/overlord".into() });
        }
        let user = variable("HOME");
        let folder = |name: &str, default: &str| {
            let base = variable(name).filter(|path| path.is_absolute()).or_else(|| user.as_ref().map(|home| home.join(default)));
            base.map(|base| base.join("overlord")).ok_or(HomeError::Unknown)
        };
        Ok(Self { config: folder("XDG_CONFIG_HOME", ".config")?, state: folder("XDG_STATE_HOME", ".local/state")? })
    }

    pub(crate) fn config_file(&self) -> PathBuf {
        self.config.join("overlord.toml")
    }

    pub(crate) fn hosts_file(&self) -> PathBuf {
        self.config.join("hosts.toml")
    }

    pub(crate) fn certs_dir(&self) -> PathBuf {
        self.config.join("certs")
    }

    pub(crate) fn state_dir(&self) -> &Path {
        &self.state
    }

    /// The audit log of the authority.
    pub(crate) fn certs_audit_log(&self) -> PathBuf {
        self.state.join("certs-audit.log")
    }

    /// When this overlord last tried to renew its certificate.
    pub(crate) fn renewal_mark(&self) -> PathBuf {
        self.state.join("certs-renewal")
    }

    /// When this overlord last asked for a revocation list.
    pub(crate) fn list_mark(&self) -> PathBuf {
        self.state.join("certs-list")
    }

    /// When it was last told that none was to be had.
    pub(crate) fn list_trouble_mark(&self) -> PathBuf {
        self.state.join("certs-list-trouble")
    }

    pub(crate) fn store_dir(&self) -> PathBuf {
        self.state.join("jobs.sled")
    }

    /// The lock of who asks after jobs that nobody asks about.
    pub(crate) fn asking_lock(&self) -> PathBuf {
        self.state.join("jobs.asking")
    }

    pub(crate) fn jobs_dir(&self) -> PathBuf {
        self.state.join("jobs")
    }

    pub(crate) fn flows_dir(&self) -> PathBuf {
        self.state.join("flows")
    }

    pub(crate) fn flow_log(&self, flow: &JobId) -> PathBuf {
        self.flows_dir().join(format!("{flow}.log"))
    }

    pub(crate) fn job_log(&self, job: &JobId) -> PathBuf {
        self.jobs_dir().join(format!("{job}.log"))
    }

    /// The items of a map that has not ended.
    pub(crate) fn job_items(&self, job: &JobId) -> PathBuf {
        self.jobs_dir().join(format!("{job}.items"))
    }
}

fn variable(name: &str) -> Option<PathBuf> {
    env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;

    #[test]
    fn a_home_is_absolute_whatever_was_given() {
        let home = Home::at("fleet").unwrap();
        assert!(home.config_file().is_absolute());
        let job = "54k2-9xqd-4fz1".parse().unwrap();
        assert!(home.job_log(&job).ends_with("fleet/jobs/54k2-9xqd-4fz1.log"));
    }
}
