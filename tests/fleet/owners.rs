//! Whose files are, and what another user of the machine may do: commands and threads with the rights of that one.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, lchown};
use std::path::Path;

use nix::unistd::{Group, User};

use crate::{Run, run::Running, tools};

/// Whose a file is, and its mode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// The user's name.
    pub user: String,
    /// The group's name.
    pub group: String,
    /// The mode, without the kind of file.
    pub mode: u32,
}

impl Owner {
    /// That user's, that group's, with that mode.
    #[must_use]
    pub fn of(user: &str, group: &str, mode: u32) -> Self {
        Self { user: user.to_owned(), group: group.to_owned(), mode }
    }
}

/// Whose the file is; a link is not followed.
///
/// # Panics
/// It is not there.
#[must_use]
pub fn owner(path: &Path) -> Owner {
    let file = path.symlink_metadata().unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let user = User::from_uid(file.uid().into()).unwrap().map_or_else(|| file.uid().to_string(), |user| user.name);
    let group = Group::from_gid(file.gid().into()).unwrap().map_or_else(|| file.gid().to_string(), |group| group.name);
    Owner { user, group, mode: file.mode() & 0o7777 }
}

/// The user of that name.
///
/// # Panics
/// There is none.
#[must_use]
pub fn user(name: &str) -> User {
    User::from_name(name).unwrap().unwrap_or_else(|| panic!("this machine has no user {name}"))
}

/// Gives a host's folder of certificates the owners that it has beside a server that runs as `name`.
pub(crate) fn share_certs(folder: &Path, name: &str) {
    let user = user(name);
    for file in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        if !file.ends_with("ca.pem") {
            lchown(file, Some(user.uid.as_raw()), Some(user.gid.as_raw())).unwrap();
        }
    }
    chown(folder, Some(0), Some(user.gid.as_raw())).unwrap();
    fs::set_permissions(folder, Permissions::from_mode(0o1770)).unwrap();
}

/// Runs a shell's line to its end with all rights that a server of the user `name` has: the user's groups, and no capability.
pub fn as_server(name: &str, line: &str) -> Run {
    let user = user(name);
    let (uid, gid) = (user.uid.to_string(), user.gid.to_string());
    let rights = ["--reuid", &uid, "--regid", &gid, "--init-groups", "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"];
    Running::start(tools::with(tools::with(tools::tool("setpriv"), rights), ["sh", "-c", line])).wait()
}

/// Does `work` as the user `name`, in the group `group` alone, in a thread that is nobody else any more.
///
/// # Panics
/// There is no such user or group, we are not root, or `work` panics.
pub fn acting_as<T: Send>(name: &str, group: &str, work: impl FnOnce() -> T + Send) -> T {
    let (uid, gid) = (user(name).uid.as_raw(), Group::from_name(group).unwrap().unwrap().gid.as_raw());
    let become_it = move || {
        let (uid, gid) = (rustix::process::Uid::from_raw(uid), rustix::process::Gid::from_raw(gid));
        rustix::thread::set_thread_groups(&[]).unwrap();
        rustix::thread::set_thread_res_gid(gid, gid, gid).unwrap();
        rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap();
    };
    std::thread::scope(|scope| {
        scope
            .spawn(move || {
                become_it();
                work()
            })
            .join()
            .unwrap()
    })
}
