//! What the unit does: installs the new package, looks whether it comes up, and installs the former one again if it does not. It goes on whatever becomes
//! of the job that started it; and once it has begun, it is begun again by systemd until it has come to an end.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;
use std::time::Duration;

use tracing::{error, info};

use super::manager::{InstallError, Manager};
use super::{Ended, FORMER, NEW, RESULT, lock_host, unit, units};

/// How long the new package may take. One that hangs as it starts is taken back after that.
const NEW_WITHIN: Duration = Duration::from_secs(30);
/// How long the former one may: there is no other way back.
pub(super) const FORMER_WITHIN: Duration = Duration::from_secs(300);
/// Whoever asks a host whether something is at work there holds the lock for an instant.
const LOCK_WITHIN: Duration = Duration::from_secs(2);
/// It is made before anything is done.
const BEGUN: &str = "begun";
/// It is made before the former package is put back, and says why.
const BACK: &str = "back";

/// Does it, in the `folder` that was prepared, and writes there what became of it.
///
/// # Errors
/// It has not come to an end: it is to be tried again.
pub(crate) fn work(folder: &Path) -> io::Result<()> {
    if !folder.join(RESULT).exists() {
        let ended = match lock_host(LOCK_WITHIN) {
            Ok(_until_it_is_done) => install(folder)?,
            Err(why) if folder.join(BEGUN).exists() => return Err(io::Error::other(why)),
            Err(why) => Ended::Untouched { why },
        };
        match &ended {
            Ended::Up => info!("the new package runs"),
            Ended::Untouched { why } => error!(why, "nothing was installed"),
            Ended::RolledBack { why } => error!(why, "the new package did not come up, and the former one runs again"),
            Ended::Stuck { why, and } => error!(why, and, "the new package could not be taken back, and the minion runs"),
            Ended::Down { why, and } => error!(why, and, "neither the new package nor the former one comes up"),
        }
        write(folder, RESULT, &serde_json::to_vec(&ended)?)?;
    }
    unit::remove();
    Ok(())
}

fn install(folder: &Path) -> io::Result<Ended> {
    let manager = Manager::of_package(&folder.join(NEW))?;
    let why = match fs::read_to_string(folder.join(BACK)) {
        Ok(why) => why,
        Err(_) => match put_new(folder, manager)? {
            Ok(ended) => return Ok(ended),
            Err(why) => why,
        },
    };
    error!(why, "the new package does not come up, and is taken back");
    write(folder, BACK, why.as_bytes())?;
    let failed = match manager.install(&folder.join(FORMER), FORMER_WITHIN) {
        Ok(()) => None,
        Err(error @ InstallError::Locked(_)) => return Err(io::Error::other(error)),
        Err(InstallError::Failed(why)) => Some(why),
    };
    Ok(match (failed, units::come_up()) {
        (None, Ok(())) => Ended::RolledBack { why },
        (Some(and), Ok(())) => Ended::Stuck { why, and },
        (None, Err(and)) => Ended::Down { why, and },
        (Some(failed), Err(down)) => Ended::Down { why, and: format!("{failed}; {down}") },
    })
}

/// How it has ended; or why the former package is to be put back.
fn put_new(folder: &Path, manager: Manager) -> io::Result<Result<Ended, String>> {
    let is_first = !folder.join(BEGUN).exists();
    if is_first {
        write(folder, BEGUN, b"")?;
    }
    Ok(match manager.install(&folder.join(NEW), NEW_WITHIN) {
        Ok(()) => units::come_up().map(|()| Ended::Up),
        Err(error @ InstallError::Locked(_)) if is_first => Ok(Ended::Untouched { why: error.to_string() }),
        Err(error @ InstallError::Locked(_)) => return Err(io::Error::other(error)),
        Err(InstallError::Failed(why)) if runs_former(folder, manager) => Ok(Ended::Untouched { why }),
        Err(InstallError::Failed(why)) => Err(why),
    })
}

/// Whether what was installed before is still, and runs.
fn runs_former(folder: &Path, manager: Manager) -> bool {
    let version = |package: Result<super::Package, String>| package.ok().map(|package| package.version);
    let is_installed = version(manager.installed()) == version(manager.describe(&folder.join(FORMER)));
    is_installed && manager.has_whole() && units::come_up().is_ok()
}

/// Durable on return, and whole or not there after a crash.
fn write(folder: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let draft = folder.join("draft");
    let mut file = File::create(&draft)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&draft, folder.join(name))?;
    File::open(folder)?.sync_all()
}
