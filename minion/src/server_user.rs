//! The user as whom the server runs where the spawner is root: who that is, and becoming it, for good or for a while.
//!
//! It never decides whether that is to be done, and touches no file.

use std::ffi::CString;

use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::stat::{Mode, umask};
use nix::unistd::{
    Gid, Uid, User, geteuid, getgrouplist, getgroups, getresgid, getresuid, initgroups, setegid, seteuid, setgroups, setresgid, setresuid,
};
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, remove_capability_from_bounding_set, set_capabilities};

use crate::process::{ThreadError, require_single_thread};

/// Files of the server are its own alone.
const UMASK: Mode = Mode::from_bits_truncate(0o077);
/// The bits that the kernel may know a capability by.
const CAPABILITY_BITS: u32 = 64;
const ROOTS_GROUP: u32 = 0;

/// A user of this host who is not root, nor in its group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerUser {
    name: String,
    uid: Uid,
    gid: Gid,
    /// All that the user is in, the user's own among them.
    groups: Vec<Gid>,
}

/// Why this process is not the user that it is to be.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    /// Each thread would have to become the user by itself.
    #[error(transparent)]
    Threads(#[from] ThreadError),
    /// The kernel refuses.
    #[error("becoming the user {name}: {doing}: {source}")]
    Refused {
        /// Who.
        name: String,
        /// What was being done.
        doing: &'static str,
        /// Why.
        source: Errno,
    },
    /// Something of root is left.
    #[error("becoming the user {name}: this process still has {left}, which is a bug of the minion or of the system that it runs on")]
    Left {
        /// Who.
        name: String,
        /// What.
        left: &'static str,
    },
}

impl ServerUser {
    /// The user of that name, or what is wrong with it.
    pub(crate) fn find(name: &str) -> Result<Self, String> {
        let found = User::from_name(name).map_err(|errno| format!("looking for the user {name:?}: {errno}"))?;
        let Some(User { name, uid, gid, .. }) = found else {
            return Err(format!("this host has no user {name:?}: run `useradd --system --user-group {name}`, or name another"));
        };
        let groups = c_name(&name).and_then(|name| getgrouplist(&name, gid));
        let groups = groups.map_err(|errno| format!("looking for the groups of the user {name:?}: {errno}"))?;
        if uid.is_root() || groups.iter().any(|group| group.as_raw() == ROOTS_GROUP) {
            return Err(format!("{name:?} is root, or in its group: the server runs as somebody who may do less"));
        }
        Ok(Self { name, uid, gid, groups })
    }

    /// The user's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The user's number.
    #[must_use]
    pub fn uid(&self) -> u32 {
        self.uid.as_raw()
    }

    /// The number of the user's own group.
    #[must_use]
    pub fn gid(&self) -> u32 {
        self.gid.as_raw()
    }

    /// Whether the user is in the group of that number.
    #[must_use]
    pub fn is_in(&self, group: u32) -> bool {
        self.groups.contains(&Gid::from_raw(group))
    }

    /// Turns this process, which is root, into one of the user for good: with none of root's groups and no capability, and with no way back.
    ///
    /// # Errors
    /// It has threads, or it cannot be done, or not to the end: then the process must do nothing more.
    pub fn become_for_good(&self) -> Result<(), UserError> {
        require_single_thread()?;
        self.join_groups()?;
        // Those that the kernel does not know, and a system that has taken this right from root, are no harm: no_new_privs keeps them away.
        for bit in 0..CAPABILITY_BITS {
            let _unknown_or_gone = remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << bit));
        }
        setresgid(self.gid, self.gid, self.gid).map_err(self.refused("setresgid"))?;
        setresuid(self.uid, self.uid, self.uid).map_err(self.refused("setresuid"))?;
        set_capabilities(None, none()).map_err(|error| self.refused("capset")(Errno::from_raw(error.raw_os_error())))?;
        confine().map_err(self.refused("prctl"))?;
        self.require_all_gone()
    }

    /// Does as the user does from now on, until [`as_root`] or the end: what is made is the user's, and what the user may not do fails.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn act(&self) -> Result<(), UserError> {
        self.join_groups()?;
        setegid(self.gid).map_err(self.refused("setegid"))?;
        seteuid(self.uid).map_err(self.refused("seteuid"))
    }

    fn join_groups(&self) -> Result<(), UserError> {
        c_name(&self.name).and_then(|name| initgroups(&name, self.gid)).map_err(self.refused("initgroups"))
    }

    fn require_all_gone(&self) -> Result<(), UserError> {
        let left = |left| Err(UserError::Left { name: self.name.clone(), left });
        let (users, groups) = (getresuid().map_err(self.refused("getresuid"))?, getresgid().map_err(self.refused("getresgid"))?);
        if [users.real, users.effective, users.saved].iter().any(|uid| *uid != self.uid) || setresuid(geteuid(), 0.into(), 0.into()).is_ok()
        {
            return left("a way back to root");
        }
        let others = getgroups().map_err(self.refused("getgroups"))?;
        if [groups.real, groups.effective, groups.saved].iter().any(|gid| *gid != self.gid)
            || others.iter().any(|gid| gid.as_raw() == ROOTS_GROUP)
        {
            return left("a group of root's");
        }
        if capabilities(None).is_ok_and(|sets| sets == none()) { Ok(()) } else { left("capabilities") }
    }

    fn refused(&self, doing: &'static str) -> impl FnOnce(Errno) -> UserError {
        let name = self.name.clone();
        move |source| UserError::Refused { name, doing, source }
    }
}

/// Does `work` as root in a process that acts as `user`, and acts as that user again.
///
/// # Errors
/// The kernel refuses.
pub fn as_root<T>(user: &ServerUser, work: impl FnOnce() -> T) -> Result<T, UserError> {
    seteuid(Uid::from_raw(0)).map_err(user.refused("seteuid"))?;
    setegid(Gid::from_raw(0)).map_err(user.refused("setegid"))?;
    setgroups(&[]).map_err(user.refused("setgroups"))?;
    let done = work();
    user.act()?;
    Ok(done)
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
    User::from_uid(uid).ok().flatten().map_or_else(|| uid.to_string(), |user| user.name)
}

fn c_name(name: &str) -> nix::Result<CString> {
    CString::new(name).map_err(|_| Errno::EINVAL)
}

fn none() -> CapabilitySets {
    let none = CapabilitySet::empty();
    CapabilitySets { effective: none, permitted: none, inheritable: none }
}
