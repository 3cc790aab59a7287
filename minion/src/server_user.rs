//! The user as whom the server runs where the spawner is root: who that is, and becoming it, for good or for a while.
//!
//! It never decides whether that is to be done, and touches no file.

use nix::sys::prctl;
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, Uid, geteuid, setegid, seteuid, setgroups};
use rustix::thread::{CapabilitySet, remove_capability_from_bounding_set};

use crate::process::{ThreadError, require_single_thread};
use crate::user::{User, UserError};

/// Files of the server are its own alone.
const UMASK: Mode = Mode::from_bits_truncate(0o077);
/// The bits that the kernel may know a capability by.
const CAPABILITY_BITS: u32 = 64;
const ROOT: u32 = 0;

/// A user of this host who is not root, nor in its group.
#[derive(Debug, Clone)]
pub struct ServerUser(User);

/// Why this process is not the user that it is to be.
#[derive(Debug, thiserror::Error)]
pub enum BecomeError {
    /// Each thread would have to become the user by itself.
    #[error(transparent)]
    Threads(#[from] ThreadError),
    /// The kernel refuses, or something of root is left.
    #[error(transparent)]
    User(#[from] UserError),
    /// The kernel refuses.
    #[error("taking rights from the server: {0}")]
    Rights(#[from] nix::Error),
}

impl ServerUser {
    /// The user of that name, or what is wrong with it.
    pub(crate) fn find(name: &str) -> Result<Self, String> {
        let user = User::find(name).map_err(|error| match error {
            UserError::Unknown(_) => format!("this host has no user {name:?}: run `useradd --system --user-group {name}`, or name another"),
            error => error.to_string(),
        })?;
        if user.uid() == ROOT || user.is_in(ROOT) {
            return Err(format!("{name:?} is root, or in its group: the server runs as somebody who may do less"));
        }
        Ok(Self(user))
    }

    /// The user's name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.0.name()
    }

    /// The user's number.
    #[must_use]
    pub fn uid(&self) -> u32 {
        self.0.uid()
    }

    /// The number of the user's own group.
    #[must_use]
    pub fn gid(&self) -> u32 {
        self.0.gid()
    }

    /// Whether the user is in the group of that number.
    #[must_use]
    pub fn is_in(&self, group: u32) -> bool {
        self.0.is_in(group)
    }

    /// Turns this process, which is root, into one of the user for good: with none of root's groups and no capability, and with no way back.
    ///
    /// # Errors
    /// It has threads, or it cannot be done, or not to the end: then the process must do nothing more.
    pub fn become_for_good(&self) -> Result<(), BecomeError> {
        require_single_thread()?;
        // Those that the kernel does not know, and a system that has taken this right from root, are no harm: no_new_privs keeps them away.
        for bit in 0..CAPABILITY_BITS {
            let _unknown_or_gone = remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << bit));
        }
        self.0.take_ids()?;
        confine()?;
        Ok(self.0.require_no_way_back()?)
    }

    /// Does as the user does from now on, until [`ServerUser::as_root`] or the end: what is made is the user's, and what the user may not do
    /// fails.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn act(&self) -> Result<(), BecomeError> {
        setgroups(self.0.groups())?;
        setegid(Gid::from_raw(self.gid()))?;
        Ok(seteuid(Uid::from_raw(self.uid()))?)
    }

    /// Does `work` as root in a process that acts as this user, and acts as the user again.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn as_root<T>(&self, work: impl FnOnce() -> T) -> Result<T, BecomeError> {
        seteuid(Uid::from_raw(ROOT))?;
        setegid(Gid::from_raw(ROOT))?;
        setgroups(&[])?;
        let done = work();
        self.act()?;
        Ok(done)
    }
}

/// What a server does that is apart from its spawner, whoever it is: it gains no right by what it executes, nobody else of its user reads its
/// memory, and its files are for itself.
///
/// # Errors
/// The kernel refuses.
pub fn confine() -> nix::Result<()> {
    prctl::set_no_new_privs()?;
    prctl::set_dumpable(false)?;
    umask(UMASK);
    Ok(())
}

/// The name of the user that this process is, or its number.
#[must_use]
pub fn own_name() -> String {
    let uid = geteuid();
    nix::unistd::User::from_uid(uid).ok().flatten().map_or_else(|| uid.to_string(), |user| user.name)
}
