//! A host added to `hosts.toml`, at its end: what stands there is an administrator's, and stays as it is.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::identity::MinionName;
use common::protocol::DEFAULT_PORT;
use nix::fcntl::{Flock, FlockArg};

use super::{Roster, RosterError};

/// How long to wait for others who add a host.
const LOCK_WITHIN: Duration = Duration::from_secs(5);
const LOCK_AGAIN: Duration = Duration::from_millis(20);

/// Why a host was not added.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EnlistError {
    #[error("cannot add to {}", .path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Roster(#[from] RosterError),
}

/// Adds the host, unless it is there; the file is made if there is none. Whoever reads it meanwhile reads what was there before, or all.
///
/// # Errors
/// The file cannot be understood, or written.
pub(crate) fn enlist(path: &Path, name: &MinionName, address: &str) -> Result<bool, EnlistError> {
    let failed = |source| EnlistError::Write { path: path.to_owned(), source };
    let mut file = lock(OpenOptions::new().read(true).append(true).create(true).open(path).map_err(failed)?).map_err(failed)?;
    let mut text = String::new();
    file.read_to_string(&mut text).map_err(failed)?;
    if Roster::parse(path, &text)?.find(name).is_some() {
        return Ok(false);
    }
    let entry = entry(&text, name, address);
    // An unfinished text in it could make something else of what is added.
    Roster::parse(path, &format!("{text}{entry}"))?;
    let before = text.len() as u64;
    let written = file.write_all(entry.as_bytes()).and_then(|()| file.sync_data());
    // Half an entry would make the file one that no command reads.
    written.inspect_err(|_| drop(file.set_len(before))).map_err(failed)?;
    Ok(true)
}

fn entry(before: &str, name: &MinionName, address: &str) -> String {
    let end = if before.is_empty() || before.ends_with('\n') { "" } else { "\n" };
    let gap = if before.is_empty() { "" } else { "\n" };
    let is_usual = address == format!("{name}:{DEFAULT_PORT}");
    let address = if is_usual { String::new() } else { format!("address = \"{address}\"\n") };
    format!("{end}{gap}[host.\"{name}\"]\n{address}")
}

fn lock(mut file: File) -> io::Result<Flock<File>> {
    let deadline = Instant::now() + LOCK_WITHIN;
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(locked) => return Ok(locked),
            Err((_, error)) if error != nix::errno::Errno::EWOULDBLOCK => return Err(error.into()),
            Err((_, error)) if Instant::now() >= deadline => return Err(error.into()),
            Err((unlocked, _)) => file = unlocked,
        }
        std::thread::sleep(LOCK_AGAIN);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use std::fs;
    use std::thread;

    use super::*;

    fn names(path: &Path) -> Vec<String> {
        Roster::load(path).unwrap().iter().map(|host| format!("{} {}", host.name, host.address)).collect()
    }

    #[test]
    fn a_host_is_added_once_and_the_rest_stays_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hosts.toml");
        let add = |name: &str, address: &str| enlist(&path, &name.parse().unwrap(), address).unwrap();
        assert!(add("web1", "web1:51234"));
        assert_eq!(fs::read_to_string(&path).unwrap(), "[host.\"web1\"]\n");
        let written = "# ours\n[host.web1]\naddress = \"10.0.0.1:5\"\n[host.web1.vars]\nrack = 3";
        fs::write(&path, written).unwrap();
        assert!(!add("WEB1", "10.0.0.9:51234"));
        assert!(add("a.example.com", "10.0.0.2:51234"));
        assert!(fs::read_to_string(&path).unwrap().starts_with(written));
        assert_eq!(names(&path), ["a.example.com 10.0.0.2:51234", "web1 10.0.0.1:5"]);
    }

    #[test]
    fn a_file_that_is_damaged_is_not_added_to() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hosts.toml");
        for text in ["[host.web1", "x = \"\"\"\n", "[host.web1]\naddress ="] {
            fs::write(&path, text).unwrap();
            assert!(enlist(&path, &"web2".parse().unwrap(), "web2:51234").is_err(), "{text}");
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
    }

    #[test]
    fn many_at_once_are_all_added() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hosts.toml");
        thread::scope(|scope| {
            for number in 0..16 {
                let path = &path;
                scope.spawn(move || enlist(path, &format!("web{number}").parse().unwrap(), "10.0.0.1:51234").unwrap());
            }
        });
        assert_eq!(names(&path).len(), 16);
    }
}
