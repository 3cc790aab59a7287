//! Whose files are, and what a user of the machine may do: commands that run with the rights of another.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, lchown};
use std::path::Path;
use std::process::Command;

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

/// Runs a command to its end with all rights that a server of the user `name` has: the user's groups, and no capability.
pub fn as_server(name: &str, words: &[&str]) -> Run {
    let user = user(name);
    let (uid, gid) = (user.uid.to_string(), user.gid.to_string());
    run_as(&["--reuid", &uid, "--regid", &gid, "--init-groups", "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"], words)
}

/// Runs a command to its end as the user `name`, in the group `group` alone.
pub fn as_user_in_group(name: &str, group: &str, words: &[&str]) -> Run {
    let group = Group::from_name(group).unwrap().unwrap().gid.to_string();
    run_as(&["--reuid", &user(name).uid.to_string(), "--regid", &group, "--clear-groups"], words)
}

fn run_as(rights: &[&str], words: &[&str]) -> Run {
    let command: Command = tools::with(tools::with(tools::tool("setpriv"), rights), words);
    Running::start(command).wait()
}
