//! A user of the host, as whom a method runs: looked up by name, and become for good. It says which user nowhere: a rule does.
//!
//! What it makes of a process is that user's for all that counts: user and group ids, the groups that the host's directory of users gives,
//! no capabilities, the home, an environment. It opens no session (PAM), and sets no limits: those of the spawner hold.

use std::collections::BTreeSet;
use std::env;
use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io;
use std::os::unix::fs::fchown;
use std::path::{Path, PathBuf};

use nix::sys::stat::{Mode, umask};
use nix::unistd::{self, Gid, Uid, geteuid};
use rustix::thread::{CapabilitySet, CapabilitySets};

use crate::modules::DEFAULT_PATH;
use crate::process;

/// Of what stood in the environment before, this alone stays, and what begins with [`KEPT_PREFIX`]: languages, and the time zone.
const KEPT: [&str; 2] = ["LANG", "TZ"];
const KEPT_PREFIX: &str = "LC_";

/// The shell of users whose entry names none, as passwd(5) has it.
const DEFAULT_SHELL: &str = "/bin/sh";

/// What the files of a user that says nothing else look like: readable for all, writable for itself.
const UMASK: Mode = Mode::from_bits_truncate(0o022);

/// Why nothing can run as a user.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    /// There is none of that name.
    #[error("this host has no user {0}: make it, or name another in `run_as` of the rule")]
    Unknown(String),
    /// Whether there is one cannot be told.
    #[error("looking up the user {name}: {source}; `getent passwd {name}` shows what the host's directory of users says")]
    Lookup {
        /// Who.
        name: String,
        /// Why.
        source: io::Error,
    },
    /// Only root can become another.
    #[error(
        "minion runs as the user {own} here, and only root can run something as {name}: run minion as root, or take `run_as` out of the rule"
    )]
    NotRoot {
        /// Who.
        name: String,
        /// Who we are.
        own: Uid,
    },
    /// The kernel refuses.
    #[error("becoming the user {name}, {step}: {source}; is minion in a sandbox that takes this right from root?")]
    Step {
        /// Who.
        name: String,
        /// What was being done.
        step: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

/// A user, as the host's directory of users has it.
#[derive(Debug, Clone)]
pub struct User {
    name: String,
    uid: Uid,
    gid: Gid,
    groups: Vec<Gid>,
    home: PathBuf,
    shell: PathBuf,
}

impl User {
    /// The user of that name, with its groups. It may take as long as the directory of users does.
    ///
    /// # Errors
    /// There is none, or the directory does not answer.
    pub fn find(name: &str) -> Result<Self, UserError> {
        let failed = |source: io::Error| UserError::Lookup { name: name.to_owned(), source };
        let c_name = CString::new(name).map_err(|error| failed(error.into()))?;
        let found = unistd::User::from_name(name).map_err(|errno| failed(errno.into()))?;
        let unistd::User { uid, gid, dir, shell, .. } = found.ok_or_else(|| UserError::Unknown(name.to_owned()))?;
        let groups = unistd::getgrouplist(&c_name, gid).map_err(|errno| failed(errno.into()))?;
        Ok(Self { name: name.to_owned(), uid, gid, groups, home: dir, shell })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its number.
    #[must_use]
    pub fn uid(&self) -> u32 {
        self.uid.as_raw()
    }

    /// The number of its own group.
    #[must_use]
    pub fn gid(&self) -> u32 {
        self.gid.as_raw()
    }

    /// All groups that it is in.
    #[must_use]
    pub fn groups(&self) -> &[Gid] {
        &self.groups
    }

    /// Whether it is in the group of that number.
    #[must_use]
    pub fn is_in(&self, group: u32) -> bool {
        self.groups.contains(&Gid::from_raw(group))
    }

    /// That this process could become it: it is root, or is that user already.
    ///
    /// # Errors
    /// It is neither.
    pub fn require_in_reach(&self) -> Result<(), UserError> {
        let own = geteuid();
        match own.is_root() || own == self.uid {
            true => Ok(()),
            false => Err(UserError::NotRoot { name: self.name.clone(), own }),
        }
    }

    /// Gives it `stream`, so that it can be opened by its name in `/dev`, too.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn hand_over(&self, stream: &File) -> Result<(), UserError> {
        let given = if geteuid() == self.uid { Ok(()) } else { fchown(stream, Some(self.uid.as_raw()), Some(self.gid.as_raw())) };
        given.map_err(self.failed("giving it its stdout and stderr"))
    }

    /// Makes this process, which has one thread, the user's for good, and puts it where the user is at home. A process that gets an error here must
    /// end: it may be root still, or the half of a user.
    ///
    /// # Errors
    /// The process is not root and not that user, or the kernel refuses a step.
    pub fn embody(&self) -> Result<(), UserError> {
        self.require_in_reach()?;
        if geteuid().is_root() {
            self.take_ids()?;
            self.require_no_way_back()?;
        }
        umask(UMASK);
        // A home that is not there, or not the user's to enter, is none; every user can enter the root.
        env::set_current_dir(&self.home).or_else(|_| env::set_current_dir("/")).map_err(self.failed("entering its home, or `/`"))?;
        self.set_environment();
        Ok(())
    }

    /// The order counts: whoever has given up its user id may not change its groups any more.
    pub(crate) fn take_ids(&self) -> Result<(), UserError> {
        process::leave_session_keyring().map_err(self.failed("leaving root's keyring"))?;
        unistd::setgroups(&self.groups).map_err(|errno| self.failed("taking its groups")(errno.into()))?;
        unistd::setresgid(self.gid, self.gid, self.gid).map_err(|errno| self.failed("taking its group id")(errno.into()))?;
        unistd::setresuid(self.uid, self.uid, self.uid).map_err(|errno| self.failed("taking its user id")(errno.into()))?;
        if !self.uid.is_root() {
            // What was left over by unusual securebits, and what programs could inherit.
            rustix::thread::set_capabilities(None, no_capabilities())
                .map_err(|errno| self.failed("giving up capabilities")(errno.into()))?;
        }
        // The memory of a process that was root's is not for the user to read.
        nix::sys::prctl::set_dumpable(false).map_err(|errno| self.failed("closing its memory")(errno.into()))
    }

    /// Believes no step above: asks the kernel who this is now.
    pub(crate) fn require_no_way_back(&self) -> Result<(), UserError> {
        let failed = |errno: nix::Error| self.failed("looking back")(errno.into());
        let (uids, gids) = (unistd::getresuid().map_err(failed)?, unistd::getresgid().map_err(failed)?);
        let groups: BTreeSet<u32> = unistd::getgroups().map_err(failed)?.into_iter().map(Gid::as_raw).collect();
        let wanted: BTreeSet<u32> = self.groups.iter().copied().map(Gid::as_raw).collect();
        let capabilities = rustix::thread::capabilities(None).map_err(|errno| self.failed("looking back")(errno.into()))?;
        let is_user = [uids.real, uids.effective, uids.saved] == [self.uid; 3] && [gids.real, gids.effective, gids.saved] == [self.gid; 3];
        if is_user && groups == wanted && (self.uid.is_root() || capabilities == no_capabilities()) {
            return Ok(());
        }
        let permitted = capabilities.permitted.bits();
        let what = format!("the process has the users {uids:?}, the groups {gids:?} {groups:?}, the capabilities {permitted:#x}");
        Err(self.failed("looking back")(io::Error::other(what)))
    }

    fn set_environment(&self) {
        let is_kept = |name: &OsStr| name.to_str().is_some_and(|name| KEPT.contains(&name) || name.starts_with(KEPT_PREFIX));
        process::keep_variables(is_kept);
        let or = |path: &Path, default: &str| if path.as_os_str().is_empty() { PathBuf::from(default) } else { path.to_owned() };
        process::set_variable("HOME", or(&self.home, "/"));
        process::set_variable("SHELL", or(&self.shell, DEFAULT_SHELL));
        for name in ["USER", "LOGNAME"] {
            process::set_variable(name, &self.name);
        }
        process::set_variable("PATH", DEFAULT_PATH);
    }

    fn failed(&self, step: &'static str) -> impl FnOnce(io::Error) -> UserError + use<> {
        let name = self.name.clone();
        move |source| UserError::Step { name, step, source }
    }
}

/// That this process, without becoming anyone, could run something as the user of that name. Root can as everyone, so nobody is looked up.
///
/// # Errors
/// It is not root, and the name is another's than its own.
pub fn require_in_reach(name: &str) -> Result<(), UserError> {
    if geteuid().is_root() { Ok(()) } else { User::find(name)?.require_in_reach() }
}

fn no_capabilities() -> CapabilitySets {
    let none = CapabilitySet::empty();
    CapabilitySets { effective: none, permitted: none, inheritable: none }
}
