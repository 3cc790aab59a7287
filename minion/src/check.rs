//! `minion check`: everything that would keep this minion from serving, found before it is started. It changes nothing.

mod trust;

use std::error::Error;
use std::fs;
use std::io;
use std::net::TcpListener;
use std::path::Path;

use jiff::Timestamp;
use nix::errno::Errno;
use nix::unistd::{AccessFlags, access};

use crate::acl;
use crate::config::Config;
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

/// Looks at all that the configuration file `path` says and points at.
///
/// # Errors
/// Every problem that was found, a line each.
pub fn check(path: &Path) -> Result<Sound, Vec<String>> {
    let config = Config::load(path).map_err(|error| vec![chain(&error)])?;
    let mut problems = Vec::new();
    let certificate = trust::certificate(&config, &mut problems);
    let unwritable = certs_dir(&config, &mut problems);
    state_dir(&config, &mut problems);
    problems.extend(sockets(&config));
    problems.extend(listen(&config));
    problems.extend(acl::problems(&config.acl_dir).iter().map(ToString::to_string));
    match certificate {
        Some((not_after, mut hints)) if problems.is_empty() => {
            hints.extend(unwritable);
            Ok(Sound { config, not_after, hints })
        }
        _ => Err(problems),
    }
}

/// An error with its causes, in one line.
#[must_use]
pub fn chain(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !line.ends_with(&text) {
            line = format!("{line}: {text}");
        }
        cause = error.source();
    }
    line
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

/// The folder, or if it is not there yet, the one that it would be made in.
fn state_dir(config: &Config, problems: &mut Vec<String>) {
    let dir = &config.state_dir;
    let nearest = dir.ancestors().find(|folder| folder.symlink_metadata().is_ok()).unwrap_or(dir);
    if !nearest.is_dir() {
        problems.push(format!("state_dir {}: {} is not a folder", dir.display(), nearest.display()));
    } else if let Err(errno) = access(nearest, AccessFlags::W_OK | AccessFlags::X_OK) {
        problems.push(format!("state_dir {}: this user cannot write to {}: {}", dir.display(), nearest.display(), errno.desc()));
    }
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
