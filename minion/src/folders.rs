//! The folders that root and the server's user share: owned by root, open to the user's group, and sticky, so that the server makes files of
//! its own there and cannot touch root's. And the folder of the spools, which is root's alone.
//!
//! Nothing here follows a path that the server's user could lead elsewhere.

use std::fs::{DirBuilder, DirEntry, File, Metadata, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _, fchown, lchown};
use std::path::{Path, PathBuf};

use certs::enrolled::AUTHORITY_FILE;
use certs::files::WRITABLE_BY_OTHERS;
use nix::unistd::geteuid;

use crate::config::Config;
use crate::server_user::ServerUser;
use crate::spool::{self, SpoolError};

/// Of `state_dir` and `certs_dir`: root's and the group's, and sticky, so that who is not root removes and replaces his own files alone. Others
/// pass through the first, to where jobs submit calls.
pub const STATE_MODE: u32 = 0o1771;
/// Likewise.
pub const CERTS_MODE: u32 = 0o1770;
/// For its owner alone.
const OWN_MODE: u32 = 0o700;
/// Of the folders above: all may pass through.
const ABOVE_MODE: u32 = 0o755;
/// As many links as the kernel follows on the way to a file, see path_resolution(7).
const LINKS_MAX: usize = 40;
/// The sticky bit, see inode(7).
const STICKY: u32 = 0o1000;
const GROUP_WRITES: u32 = 0o020;
const ANYONE_WRITES: u32 = 0o002;
const MODE_BITS: u32 = 0o7777;
const ROOT: u32 = 0;

/// The server's files in `certs_dir`. The authority's certificate is root's.
pub const CERTS_OF_SERVER: [&str; 4] = ["key.pem", "cert.pem", "crl.pem", AUTHORITY_FILE];
/// What the names of the server's files in `state_dir` begin with.
const STATE_OF_SERVER: [&str; 4] = ["status.sled", "server.", "submit.", "audit.log"];

/// Why a folder is not as it must be.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// The file system refuses.
    #[error("{doing} {}: {source}", path.display())]
    File {
        /// What was being done.
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The user decides where a path leads.
    #[error("{}: the user {user} may put something else into {}: give root a folder that is root's all the way up", path.display(), folder.display())]
    Replaceable {
        /// The path.
        path: PathBuf,
        /// The folder on its way.
        folder: PathBuf,
        /// Who.
        user: String,
    },
    /// It leads elsewhere.
    #[error(
        "{path} is not a folder, or is a link: jobs lie in a folder of root's own; run `mv {path} {path}.set-aside`, and start again: what it \
         holds counts as given up then",
        path = path.display()
    )]
    NoFolder {
        /// The folder of the spools.
        path: PathBuf,
    },
    /// Somebody else may have written what is in it.
    #[error(
        "{path} is not root's, but of the user number {owner}, who could have written any job into it: run `mv {path} {path}.set-aside`, and \
         start again: what it holds counts as given up then; or, if you trust all that is in it, `chown -R -h root:root {path}`",
        path = path.display()
    )]
    Foreign {
        /// The folder of the spools.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
    },
    /// The folder of the spools cannot be made.
    #[error(transparent)]
    Spools(#[from] SpoolError),
}

/// Makes the folder of the spools; and, where root works for a server of another user, makes or mends `state_dir` around it.
///
/// # Errors
/// See [`FolderError`].
pub fn prepare(config: &Config) -> Result<(), FolderError> {
    let spools = config.spool_dir();
    let Some(user) = config.user.as_ref().filter(|_| geteuid().is_root()) else {
        spool::prepare(&spools)?;
        return prepare_workers(config);
    };
    let state = Shared::open(&config.state_dir, user, STATE_MODE)?;
    if require_roots(&spools).is_ok() {
        // Before anything is mended: what a newer version has left is left as it is.
        spool::require_known(&spools).map_err(|error| SpoolError::Format(Box::new(error)))?;
    }
    let is_there = |folder: &Path| folder.symlink_metadata().is_ok();
    if !is_shared(&state.found, user, STATE_MODE) || !is_there(&spools) || !is_there(&config.workers().state) {
        // Nobody puts anything in the way of what is made and looked at here.
        state.close()?;
    }
    spool::prepare(&spools)?;
    let found = require_roots(&spools)?;
    if found.mode() & MODE_BITS != OWN_MODE {
        let closed = std::fs::set_permissions(&spools, Permissions::from_mode(OWN_MODE));
        closed.map_err(|source| FolderError::File { doing: "closing", path: spools.clone(), source })?;
    }
    prepare_workers(config)?;
    state.share(user, is_servers_state)
}

fn prepare_workers(config: &Config) -> Result<(), FolderError> {
    let workers = config.workers();
    workers.prepare().map_err(|source| FolderError::File { doing: "making", path: workers.state, source })
}

/// Whether what has this name in `state_dir` is the server's.
#[must_use]
pub fn is_servers_state(name: &str) -> bool {
    STATE_OF_SERVER.iter().any(|begin| name.starts_with(begin))
}

/// Makes or mends `certs_dir` for root, who puts the authority's certificate there, and `user`, whose all else is.
///
/// # Errors
/// See [`FolderError`].
pub fn share_certs(certs_dir: &Path, user: &ServerUser) -> Result<(), FolderError> {
    Shared::open(certs_dir, user, CERTS_MODE)?.share(user, |name| CERTS_OF_SERVER.contains(&name))
}

/// Whether a folder is root's, the group's of `user`, and of that `mode`.
#[must_use]
pub fn is_shared(folder: &Metadata, user: &ServerUser, mode: u32) -> bool {
    (folder.uid(), folder.gid(), folder.mode() & MODE_BITS) == (ROOT, user.gid(), mode)
}

/// That the folder of the spools is one of root's, and what it looks like.
///
/// # Errors
/// It is a link, somebody else's, or not there.
pub fn require_roots(spools: &Path) -> Result<Metadata, FolderError> {
    let failed = |source| FolderError::File { doing: "looking at", path: spools.to_owned(), source };
    let found = spools.symlink_metadata().map_err(failed)?;
    match (found.is_dir(), found.uid()) {
        (true, ROOT) => Ok(found),
        (true, owner) => Err(FolderError::Foreign { path: spools.to_owned(), owner }),
        (false, _) => Err(FolderError::NoFolder { path: spools.to_owned() }),
    }
}

/// The first folder on the way to `path` in which `user` may put something else in the place of what lies there; none if it is root who
/// decides all the way. The file itself is not looked at.
#[must_use]
pub fn replaceable(path: &Path, user: &ServerUser) -> Option<PathBuf> {
    let may_replace = |(folder, entry): &(PathBuf, PathBuf)| {
        let Ok(around) = folder.symlink_metadata() else { return false };
        let is_users = entry.symlink_metadata().is_ok_and(|entry| entry.uid() == user.uid());
        around.uid() == user.uid() || may_write(&around, user) && (around.mode() & STICKY == 0 || is_users)
    };
    way(path).into_iter().find(may_replace).map(|(folder, _)| folder)
}

/// The way that the kernel goes to the absolute `path`: each folder, and what is looked up in it, from the root on. Links are followed one at a time,
/// so that the folder of a link that another link leads to is on the way, too. What stands behind a step that somebody can change may be
/// his invention: whoever asks about the steps goes by the first of them that is not as it must be.
fn way(path: &Path) -> Vec<(PathBuf, PathBuf)> {
    let (mut steps, mut links, mut at) = (Vec::new(), 0, PathBuf::new());
    let parts = |path: &Path| path.components().rev().map(|part| part.as_os_str().to_owned()).collect::<Vec<_>>();
    let mut ahead = parts(path);
    while let Some(part) = ahead.pop() {
        // What is absolute takes the place of what was before.
        let entry = at.join(&part);
        match part.to_str() {
            Some("/") => at = entry,
            Some("..") => drop(at.pop()),
            Some(".") => {}
            _name => {
                steps.push((at.clone(), entry.clone()));
                match std::fs::read_link(&entry) {
                    Ok(target) if links < LINKS_MAX => {
                        links += 1;
                        ahead.extend(parts(&target));
                    }
                    _no_link => at = entry,
                }
            }
        }
    }
    steps
}

/// Whether `user`, who is not root, may write to the file or folder by its mode.
#[must_use]
pub fn may_write(file: &Metadata, user: &ServerUser) -> bool {
    let mode = file.mode();
    file.uid() == user.uid() || mode & ANYONE_WRITES != 0 || mode & GROUP_WRITES != 0 && user.is_in(file.gid())
}

/// An open folder.
struct Shared<'a> {
    path: &'a Path,
    /// Its mode once it is shared.
    mode: u32,
    folder: File,
    /// As it was found.
    found: Metadata,
}

impl<'a> Shared<'a> {
    /// Opens it; makes it if it is not there, for root alone.
    fn open(path: &'a Path, user: &ServerUser, mode: u32) -> Result<Self, FolderError> {
        let failed = |doing| move |source| FolderError::File { doing, path: path.to_owned(), source };
        let mut above: Vec<&Path> = path.ancestors().skip(1).collect();
        above.reverse();
        above.into_iter().try_for_each(|folder| make(folder, ABOVE_MODE, user))?;
        make(path, OWN_MODE, user)?;
        let folder = File::open(path).map_err(failed("opening"))?;
        let found = folder.metadata().map_err(failed("looking at"))?;
        if !found.is_dir() {
            return Err(failed("opening")(io::ErrorKind::NotADirectory.into()));
        }
        Ok(Self { path, mode, folder, found })
    }

    /// Takes it from everyone but root.
    fn close(&self) -> Result<(), FolderError> {
        let closed = fchown(&self.folder, Some(ROOT), None);
        let closed = closed.and_then(|()| self.folder.set_permissions(Permissions::from_mode(OWN_MODE)));
        closed.map_err(|source| self.failed("closing", source))
    }

    /// Opens it to the user. What lies in it from a time when the server was root, and `is_servers`, is the user's from now on.
    fn share(&self, user: &ServerUser, is_servers: impl Fn(&str) -> bool) -> Result<(), FolderError> {
        let was_roots_alone = self.found.uid() == ROOT && self.found.mode() & WRITABLE_BY_OTHERS == 0;
        let entries = || std::fs::read_dir(self.path).map(|entries| entries.flatten()).map_err(|source| self.failed("reading", source));
        let is_to_be_given = |entry: &DirEntry| {
            let is_roots = entry.path().symlink_metadata().is_ok_and(|file| file.uid() == ROOT);
            is_roots && entry.file_name().to_str().is_some_and(&is_servers)
        };
        if entries()?.any(|entry| is_to_be_given(&entry)) {
            if !was_roots_alone {
                // A package may have opened the folder before: nobody puts anything in the way while it is looked at.
                self.close()?;
            }
            for entry in entries()?.filter(is_to_be_given) {
                hand_over(&entry.path(), user)?;
            }
        }
        let now = self.folder.metadata().map_err(|source| self.failed("looking at", source))?;
        if is_shared(&now, user, self.mode) {
            return Ok(());
        }
        let shared = fchown(&self.folder, Some(ROOT), Some(user.gid()));
        let shared = shared.and_then(|()| self.folder.set_permissions(Permissions::from_mode(self.mode)));
        shared.map_err(|source| self.failed("sharing", source))
    }

    fn failed(&self, doing: &'static str, source: io::Error) -> FolderError {
        FolderError::File { doing, path: self.path.to_owned(), source }
    }
}

/// Makes the folder if it is not there, and not before it is known that the user can lead the way to it nowhere else, now or later.
fn make(folder: &Path, mode: u32, user: &ServerUser) -> Result<(), FolderError> {
    require_firm(folder, user)?;
    match DirBuilder::new().mode(mode).create(folder) {
        Err(_) if folder.symlink_metadata().is_ok() => {}
        made => made.map_err(|source| FolderError::File { doing: "making", path: folder.to_owned(), source })?,
    }
    // In a folder that is sticky, whoever comes first decides what lies there.
    require_firm(folder, user)
}

/// Refuses a path that the user could lead elsewhere.
fn require_firm(path: &Path, user: &ServerUser) -> Result<(), FolderError> {
    match replaceable(path, user) {
        Some(folder) => Err(FolderError::Replaceable { path: path.to_owned(), folder, user: user.name().to_owned() }),
        None => Ok(()),
    }
}

/// Gives a file of root's to the user, and a folder with all that is in it. What has another name elsewhere stays as it is.
fn hand_over(path: &Path, user: &ServerUser) -> Result<(), FolderError> {
    let failed = |source| FolderError::File { doing: "handing over", path: path.to_owned(), source };
    let file = path.symlink_metadata().map_err(failed)?;
    if file.uid() != ROOT || !file.is_dir() && file.nlink() > 1 {
        return Ok(());
    }
    if file.is_dir() {
        for entry in std::fs::read_dir(path).map_err(failed)?.flatten() {
            hand_over(&entry.path(), user)?;
        }
    }
    lchown(path, Some(user.uid()), Some(user.gid())).map_err(failed)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn the_way_goes_through_the_folder_of_each_link() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        for name in ["a", "b", "c", "c/state"] {
            std::fs::create_dir(root.join(name)).unwrap();
        }
        symlink("../b/second", root.join("a/first")).unwrap();
        symlink(root.join("c/./state"), root.join("b/second")).unwrap();
        symlink("loop", root.join("a/loop")).unwrap();
        let steps = |path: &str| -> Vec<PathBuf> {
            let steps = way(&root.join(path)).into_iter().map(|(folder, entry)| {
                assert_eq!(entry.parent(), Some(folder.as_path()));
                entry
            });
            steps.filter_map(|entry| Some(entry.strip_prefix(&root).ok()?.to_owned())).filter(|entry| entry != Path::new("")).collect()
        };
        let expected = ["a", "a/first", "b", "b/second", "c", "c/state", "c/state/spool"].map(PathBuf::from);
        assert_eq!(steps("a/first/spool"), expected);
        assert_eq!(steps("a/first/../d"), [&expected[..6], &["c/d".into()]].concat());
        assert_eq!(steps("a/loop").len(), 2 + LINKS_MAX);
    }
}
