//! Whether the server's user can do all that the server does, and nothing to what root goes by.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use certs::trust::TrustFiles;
use nix::errno::Errno;
use nix::unistd::{AccessFlags, access};

use crate::config::Config;
use crate::folders::{self, CERTS_MODE, CERTS_OF_SERVER, STATE_MODE, is_shared, may_write, replaceable};
use crate::server_user::ServerUser;

/// What root finds: owners and modes by which `user` could change what root goes by, or by which the server cannot work.
pub(super) fn owners(config: &Config, user: &ServerUser, problems: &mut Vec<String>, hints: &mut Vec<String>) {
    certs(config, user, problems);
    problems.extend(changeable(&config.file, user, "says what may be done on this host"));
    // Of the folder and its files themselves the rules' own check tells.
    let dir = &config.acl_dir;
    problems.extend(replaceable(dir, user).map(|folder| replaceable_in(dir, &folder, user)));
    state(config, user, problems, hints);
}

/// What the user finds, whom this process is now: that a file, or a folder, cannot be read.
pub(super) fn unreadable(path: &Path, user: &ServerUser) -> Option<String> {
    match access(path, AccessFlags::R_OK) {
        Ok(()) | Err(Errno::ENOENT) => None,
        Err(errno) => Some(format!(
            "{path}: the user {user}, as whom the server runs, cannot read it ({}): run `chmod go+rX {path}`, and `chmod go+x` on the folders \
             above it that lack it",
            errno.desc(),
            path = path.display(),
            user = user.name()
        )),
    }
}

fn certs(config: &Config, user: &ServerUser, problems: &mut Vec<String>) {
    let (dir, ca) = (&config.certs_dir, TrustFiles::of_minion(&config.certs_dir).ca);
    let Some(found) = metadata(dir) else { return };
    let is_shared = is_shared(&found, user, CERTS_MODE);
    if !is_shared {
        let what = match replaceable(&ca, user) {
            Some(_) => "lets the user {user}, as whom the server runs, replace ca.pem, which says whom root obeys",
            None => "is not as the user {user}, as whom the server runs, needs it to renew the certificate",
        };
        problems.push(format!(
            "certs_dir {dir} {what}: run `chown root:{group} {dir} && chmod {CERTS_MODE:o} {dir}`",
            dir = dir.display(),
            what = what.replace("{user}", user.name()),
            group = user.gid()
        ));
    }
    let way = if is_shared { replaceable(&ca, user) } else { None };
    if metadata(&ca).is_some_and(|file| may_write(&file, user)) {
        problems.push(mend_roots(&ca, user, "write it, and it says whom root obeys"));
    } else if let Some(folder) = way {
        problems.push(replaceable_in(&ca, &folder, user));
    }
    problems.extend(CERTS_OF_SERVER.into_iter().filter_map(|name| anothers(&dir.join(name), user)));
}

/// Says if a file of the server's is somebody else's.
fn anothers(file: &Path, user: &ServerUser) -> Option<String> {
    let is_anothers = metadata(file).is_some_and(|found| found.uid() != user.uid());
    let (file, name) = (file.display(), user.name());
    is_anothers.then(|| format!("{file} is not the user {name}'s, as whom the server runs: run `chown -R {name}: {file}`"))
}

/// The spawner makes and mends the folder when it starts, but for what only a person can decide.
fn state(config: &Config, user: &ServerUser, problems: &mut Vec<String>, hints: &mut Vec<String>) {
    let dir = &config.state_dir;
    problems.extend(replaceable(dir, user).map(|folder| replaceable_in(dir, &folder, user)));
    let spools = config.spool_dir();
    if metadata(&spools).is_some() {
        problems.extend(folders::require_roots(&spools).err().map(|error| error.to_string()));
    }
    let Some(found) = metadata(dir) else { return };
    if is_shared(&found, user, STATE_MODE) {
        let files = dir.read_dir().into_iter().flatten().flatten();
        let files = files.filter(|file| file.file_name().to_str().is_some_and(folders::is_servers_state));
        problems.extend(files.filter_map(|file| anothers(&file.path(), user)));
    } else {
        let (dir, name) = (dir.display(), user.name());
        hints.push(format!(
            "state_dir {dir} is not shared with the user {name} yet, as whom the server runs: the spawner sees to it at its start"
        ));
    }
}

/// Says if the user can change a file, or put another in its place.
fn changeable(file: &Path, user: &ServerUser, what: &str) -> Option<String> {
    if metadata(file).is_some_and(|found| may_write(&found, user)) {
        return Some(mend_roots(file, user, &format!("change it, and it {what}")));
    }
    replaceable(file, user).map(|folder| replaceable_in(file, &folder, user))
}

fn replaceable_in(path: &Path, folder: &Path, user: &ServerUser) -> String {
    format!(
        "{}: the user {}, as whom the server runs, can put something else into {folder}: run `chown root:root {folder} && chmod go-w {folder}`",
        path.display(),
        user.name(),
        folder = folder.display()
    )
}

fn mend_roots(path: &Path, user: &ServerUser, what: &str) -> String {
    let (path, user) = (path.display(), user.name());
    format!("{path}: the user {user}, as whom the server runs, can {what}: run `chown root:root {path} && chmod 644 {path}`")
}

fn metadata(path: &Path) -> Option<Metadata> {
    path.symlink_metadata().ok()
}
