//! `minion check`: everything that would keep this minion from serving, found before it is started. It changes nothing.

mod separation;
mod trust;

use std::fs;
use std::io;
use std::net::TcpListener;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use certs::format::MarkError;
use certs::trust::TrustFiles;
use common::shown::chain;
use jiff::Timestamp;
use nix::errno::Errno;
use nix::unistd::{AccessFlags, access, geteuid};

use crate::acl;
use crate::config::Config;
use crate::{folders, spool, worker};
pub use trust::open_trust;

/// The longest path of a Unix socket in bytes: `sun_path` of unix(7) without its ending zero.
const SOCKET_PATH_MAX_BYTES: usize = 107;

/// What stands in a sound configuration.
#[derive(Debug)]
pub struct Sound {
    /// The configuration.
    pub config: Config,
    /// Until when the host's certificate is good.
    pub not_after: Timestamp,
    /// What is worth a look, though the minion serves.
    pub hints: Vec<String>,
}

/// Looks at all that the configuration file `path` says and points at. Where it names a user and this process is root, the process is that
/// user for good from then on: what the server does is tried as the server's user.
///
/// # Errors
/// Every problem that was found, a line each.
pub fn check(path: &Path) -> Result<Sound, Vec<String>> {
    let config = Config::load(path).map_err(|error| vec![chain(&error)])?;
    let (mut problems, mut hints) = (Vec::new(), Vec::new());
    let certificate = trust::certificate(&config, &mut problems);
    let rules = acl::problems(&config.acl_dir);
    problems.extend(spool_format(&config.spool_dir()));
    problems.extend(worker::problems(&config.workers()));
    let untried = Untried::after_owners(&config, &mut problems, &mut hints)?;
    let unwritable = if untried.certs_dir { certs_dir(&config, &mut problems) } else { None };
    if untried.state_dir {
        state_dir(&config, &mut problems);
    }
    if untried.audit_log {
        audit_log(&config, &mut problems);
    }
    problems.extend(sockets(&config));
    problems.extend(listen(&config));
    problems.extend(rules.iter().map(ToString::to_string));
    match certificate {
        Some((not_after, more)) if problems.is_empty() => {
            hints.extend(more.into_iter().chain(unwritable));
            Ok(Sound { config, not_after, hints })
        }
        _ => Err(problems),
    }
}

/// What is still to be tried, as whoever this process is.
struct Untried {
    certs_dir: bool,
    state_dir: bool,
    audit_log: bool,
}

impl Untried {
    const ALL: Self = Self { certs_dir: true, state_dir: true, audit_log: true };

    /// As root, looks at what the server's user may read and change, and becomes that user. What belongs to somebody else than it should is
    /// told then, or mended at the start, and trying it would say the same again.
    fn after_owners(config: &Config, problems: &mut Vec<String>, hints: &mut Vec<String>) -> Result<Self, Vec<String>> {
        let Some(user) = &config.user else { return Ok(Self::ALL) };
        if !geteuid().is_root() {
            let name = user.name();
            hints
                .push(format!("not looked at, because root alone can: what the user {name}, as whom the server runs, may read and change"));
            return Ok(Self::ALL);
        }
        separation::owners(config, user, problems, hints);
        let is_shared = |dir: &Path, mode| dir.metadata().is_ok_and(|found| folders::is_shared(&found, user, mode));
        let untried = Self {
            certs_dir: is_shared(&config.certs_dir, folders::CERTS_MODE),
            state_dir: is_shared(&config.state_dir, folders::STATE_MODE),
            audit_log: config.audit_log().metadata().is_ok_and(|found| found.uid() == user.uid()),
        };
        if let Err(error) = user.become_for_good() {
            problems.push(error.to_string());
            return Err(std::mem::take(problems));
        }
        let ca = Some(TrustFiles::of_minion(&config.certs_dir).ca).filter(|_| untried.certs_dir);
        let files = [config.file.clone(), config.acl_dir.clone()].into_iter().chain(acl::files(&config.acl_dir)).chain(ca);
        problems.extend(files.filter_map(|file| separation::unreadable(&file, user)));
        Ok(untried)
    }
}

/// Renewed certificates and revocation lists are written there. Where nobody renews the certificate, that it cannot be written is a hint.
fn certs_dir(config: &Config, problems: &mut Vec<String>) -> Option<String> {
    let dir = config.certs_dir.as_path();
    let why = match access(dir, AccessFlags::W_OK | AccessFlags::X_OK) {
        // A folder that is not there has no certificate either, which is told.
        Ok(()) | Err(Errno::ENOENT) => return None,
        Err(errno) => errno.desc(),
    };
    let dir = dir.display();
    let Some(address) = config.authority_address() else {
        return Some(format!("certs_dir {dir}: this user cannot write to it, so that no newer revocation list is kept: {why}"));
    };
    problems.push(format!(
        "certs_dir {dir}: this user cannot write to it, and the certificates and revocation lists that the authority at {address} gives are \
         written there: {why}"
    ));
    None
}

/// Where this user cannot look at the spools, the spawner says it at its start.
fn spool_format(spools: &Path) -> Option<String> {
    match spool::require_known(spools) {
        Err(MarkError::Format(error)) => Some(error.to_string()),
        Ok(()) | Err(MarkError::File(_)) => None,
    }
}

/// The folder, or if it is not there yet, the one that it would be made in.
fn state_dir(config: &Config, problems: &mut Vec<String>) {
    let dir = &config.state_dir;
    let nearest = dir.ancestors().find(|folder| folder.symlink_metadata().is_ok()).unwrap_or(dir);
    if !nearest.is_dir() {
        problems.push(format!("state_dir {}: {} is not a folder", dir.display(), nearest.display()));
    } else if let Err(errno) = access(nearest, AccessFlags::W_OK | AccessFlags::X_OK) {
        problems.push(format!("state_dir {}: this user cannot write to {}: {}", dir.display(), nearest.display(), errno.desc()));
    }
}

fn audit_log(config: &Config, problems: &mut Vec<String>) {
    let log = config.audit_log();
    if fs::symlink_metadata(&log).is_ok()
        && let Err(error) = fs::OpenOptions::new().append(true).open(&log)
    {
        problems.push(format!("the audit log {} cannot be appended to, and nothing is run that cannot be audited: {error}", log.display()));
    }
}

fn sockets(config: &Config) -> Option<String> {
    let longest = [config.spawner_socket(), config.server_socket()].into_iter().max_by_key(|path| path.as_os_str().len())?;
    let bytes = longest.as_os_str().len();
    (bytes > SOCKET_PATH_MAX_BYTES).then(|| {
        format!("state_dir is too long: {} would be a socket of {bytes} bytes, and {SOCKET_PATH_MAX_BYTES} is the most", longest.display())
    })
}

/// A port that is taken is no problem: this minion may hold it.
fn listen(config: &Config) -> Option<String> {
    match TcpListener::bind(config.listen) {
        Err(error) if error.kind() != io::ErrorKind::AddrInUse => Some(format!("cannot listen on {}: {error}", config.listen)),
        Ok(_) | Err(_) => None,
    }
}
