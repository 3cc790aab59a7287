//! Whether the server's user can do all that the server does, and nothing to what root goes by.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use certs::trust::TrustFiles;
use nix::errno::Errno;
use nix::unistd::{AccessFlags, access};

use crate::acl;
use crate::config::Config;
use crate::folders::{self, CERTS_OF_SERVER, is_shared, may_write, replaceable};
use crate::server_user::ServerUser;

/// What root finds: owners and modes by which `user` could change what root goes by, or by which the server cannot work.
pub(super) fn owners(config: &Config, user: &ServerUser, problems: &mut Vec<String>, hints: &mut Vec<String>) {
    certs(config, user, problems);
    for file in [config.file.clone()].into_iter().chain(acl::files(&config.acl_dir)) {
        problems.extend(changeable(&file, user, "says what may be done on this host"));
    }
    if metadata(&config.acl_dir).is_some_and(|dir| may_write(&dir, user)) {
        problems.push(mend_roots(&config.acl_dir, user, "add rules to it", "755"));
    }
    state(config, user, problems, hints);
}

/// What the user finds, whom this process is now: what cannot be read.
pub(super) fn unreadable(config: &Config, user: &ServerUser, problems: &mut Vec<String>) {
    for path in [&config.file, &TrustFiles::of_minion(&config.certs_dir).ca] {
        match access(path, AccessFlags::R_OK) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(errno) => problems.push(format!(
                "{path}: the user {user}, as whom the server runs, cannot read it ({}): run `chmod o+r {path}`, and `chmod o+x` on the folders \
                 above it that lack it",
                errno.desc(),
                path = path.display(),
                user = user.name()
            )),
        }
    }
}

fn certs(config: &Config, user: &ServerUser, problems: &mut Vec<String>) {
    let (dir, ca) = (&config.certs_dir, TrustFiles::of_minion(&config.certs_dir).ca);
    let Some(found) = metadata(dir) else { return };
    if !is_shared(&found, user) {
        let what = match replaceable(&ca, user) {
            Some(_) => "lets the user {user}, as whom the server runs, replace ca.pem, which says whom root obeys",
            None => "is not as the user {user}, as whom the server runs, needs it to renew the certificate",
        };
        problems.push(format!(
            "certs_dir {dir} {what}: run `chown root:{group} {dir} && chmod 1770 {dir}`",
            dir = dir.display(),
            what = what.replace("{user}", user.name()),
            group = user.gid()
        ));
    } else if let Some(folder) = replaceable(&ca, user) {
        problems.push(replaceable_in(&ca, &folder, user));
    }
    if metadata(&ca).is_some_and(|file| may_write(&file, user)) {
        problems.push(mend_roots(&ca, user, "write it, and it says whom root obeys", "644"));
    }
    for file in CERTS_OF_SERVER.map(|name| dir.join(name)) {
        if metadata(&file).is_some_and(|found| found.uid() != user.uid()) {
            let (file, name) = (file.display(), user.name());
            problems.push(format!("{file} is not the user {name}'s, as whom the server runs: run `chown {name}: {file}`"));
        }
    }
}

/// The spawner makes and mends the folder when it starts, but for what only a person can decide.
fn state(config: &Config, user: &ServerUser, problems: &mut Vec<String>, hints: &mut Vec<String>) {
    let dir = &config.state_dir;
    problems.extend(replaceable(dir, user).map(|folder| replaceable_in(dir, &folder, user)));
    let spools = config.spool_dir();
    if metadata(&spools).is_some() {
        problems.extend(folders::require_roots(&spools).err().map(|error| error.to_string()));
    }
    if metadata(dir).is_some_and(|found| !is_shared(&found, user)) {
        let (dir, name) = (dir.display(), user.name());
        hints.push(format!(
            "state_dir {dir} is not shared with the user {name} yet, as whom the server runs: the spawner sees to it at its start"
        ));
    }
}

/// Says if the user can change a file, or put another in its place.
fn changeable(file: &Path, user: &ServerUser, what: &str) -> Option<String> {
    if let Some(folder) = replaceable(file, user) {
        return Some(replaceable_in(file, &folder, user));
    }
    let is_writable = metadata(file).is_some_and(|found| may_write(&found, user));
    is_writable.then(|| mend_roots(file, user, &format!("change it, and it {what}"), "644"))
}

fn replaceable_in(path: &Path, folder: &Path, user: &ServerUser) -> String {
    format!(
        "{}: the user {}, as whom the server runs, can put something else into {folder}: run `chown root:root {folder} && chmod go-w {folder}`",
        path.display(),
        user.name(),
        folder = folder.display()
    )
}

fn mend_roots(path: &Path, user: &ServerUser, what: &str, mode: &str) -> String {
    let (path, user) = (path.display(), user.name());
    format!("{path}: the user {user}, as whom the server runs, can {what}: run `chown root:root {path} && chmod {mode} {path}`")
}

fn metadata(path: &Path) -> Option<Metadata> {
    path.symlink_metadata().ok()
}
