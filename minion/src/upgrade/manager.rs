//! What manages the host's packages: dpkg or rpm.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use super::command::Command;
use super::{PACKAGE, PROGRAM, compare, repack};

/// Somebody else may be installing something.
const LOCK_WITHIN: Duration = Duration::from_secs(60);
const LOCK_AGAIN: Duration = Duration::from_secs(1);
/// What dpkg, of whichever version, and rpm say then.
const LOCKED: [&str; 2] = ["locked by another process", "can't create transaction lock"];
/// What the files of Debian's packages begin with, see deb(5).
const DEB_MAGIC: &[u8] = b"!<arch>\n";
/// How each is asked for a name, a version and an architecture.
const DPKG_FORMAT: &str = "--showformat=${Package}\n${Version}\n${Architecture}\n";
const RPM_DIGEST: &str = "%{SIGMD5}";
const RPM_FORMAT: &str = "%{NAME}\n%{VERSION}-%{RELEASE}\n%{ARCH}\n";

/// Which of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Manager {
    Dpkg,
    Rpm,
}

/// What a package says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Package {
    pub(super) name: String,
    /// With the revision of the packaging.
    pub(super) version: String,
    pub(super) architecture: String,
}

/// Why a package was not installed.
#[derive(Debug, thiserror::Error)]
pub(super) enum InstallError {
    /// Nothing was done.
    #[error("something else is installing, and has been for {LOCK_WITHIN:?}: {0}")]
    Locked(String),
    /// Something may have been.
    #[error("{0}")]
    Failed(String),
}

impl Manager {
    /// The one that has installed the minion.
    pub(super) fn of_minion() -> Result<Self, String> {
        if Command::new("dpkg-query").args(["--search", PROGRAM]).ask().is_ok_and(|said| said.starts_with(PACKAGE)) {
            return Ok(Self::Dpkg);
        }
        if Command::new("rpm").args(["-q", "--file", PROGRAM]).ask().is_ok_and(|said| said.starts_with(PACKAGE)) {
            return Ok(Self::Rpm);
        }
        Err(format!("{PROGRAM} is not of a package {PACKAGE}, as neither dpkg nor rpm knows one: install it by other means"))
    }

    /// The one that installs this file, which is a package.
    pub(super) fn of_package(file: &Path) -> io::Result<Self> {
        let mut magic = [0; DEB_MAGIC.len()];
        File::open(file)?.read_exact(&mut magic)?;
        Ok(if magic == DEB_MAGIC { Self::Dpkg } else { Self::Rpm })
    }

    /// Whether the minion's package is installed to the end: not one that was unpacked, and then the power went.
    pub(super) fn has_whole(self) -> bool {
        match self {
            Self::Dpkg => {
                let status = Command::new("dpkg-query").args(["--show", "--showformat=${db:Status-Status}", PACKAGE]).ask();
                status.is_ok_and(|status| status == "installed")
            }
            Self::Rpm => self.installed().is_ok(),
        }
    }

    /// Whether it is the very package in that file that is installed, and no other of the same version.
    pub(super) fn has(self, file: &Path) -> bool {
        let is_described = self.installed().is_ok_and(|installed| self.describe(file).is_ok_and(|offered| offered == installed));
        is_described
            && self.has_whole()
            && match self {
                Self::Dpkg => compare::is_installed(file),
                Self::Rpm => {
                    let installed = Command::new("rpm").args(["-q", "--queryformat", RPM_DIGEST, PACKAGE]).ask();
                    let offered =
                        Command::new("rpm").args(["-q", "--nosignature", "--queryformat", RPM_DIGEST, "--package"]).arg(file).ask();
                    installed.is_ok_and(|installed| offered.is_ok_and(|offered| offered == installed))
                }
            }
    }

    /// The package that is installed, or was begun to be.
    pub(super) fn installed(self) -> Result<Package, String> {
        parse(&match self {
            Self::Dpkg => Command::new("dpkg-query").args(["--show", DPKG_FORMAT, PACKAGE]).ask()?,
            Self::Rpm => Command::new("rpm").args(["-q", "--queryformat", RPM_FORMAT, PACKAGE]).ask()?,
        })
    }

    /// What the file is a package of.
    pub(super) fn describe(self, file: &Path) -> Result<Package, String> {
        parse(&match self {
            Self::Dpkg => Command::new("dpkg-deb").args(["--show", DPKG_FORMAT]).arg(file).ask()?,
            Self::Rpm => Command::new("rpm").args(["-q", "--nosignature", "--queryformat", RPM_FORMAT, "--package"]).arg(file).ask()?,
        })
    }

    /// Puts it in the place of what is installed, be that newer or older, within a time. What an administrator has changed in `/etc` stays.
    pub(super) fn install(self, file: &Path, within: Duration) -> Result<(), InstallError> {
        let deadline = Instant::now() + LOCK_WITHIN;
        loop {
            let installed = match self {
                Self::Dpkg => Command::new("dpkg").args(["--install", "--force-confold"]).arg(file).run(within),
                Self::Rpm => Command::new("rpm").args(["-U", "--oldpackage", "--replacepkgs", "--nosignature"]).arg(file).run(within),
            };
            let is_locked = |why: &String| LOCKED.iter().any(|word| why.contains(word));
            match installed {
                Ok(_) => return Ok(()),
                Err(why) if is_locked(&why) && Instant::now() < deadline => thread::sleep(LOCK_AGAIN),
                Err(why) if is_locked(&why) => return Err(InstallError::Locked(why)),
                Err(why) => return Err(InstallError::Failed(why)),
            }
        }
    }

    /// Makes a package of what is installed.
    pub(super) fn repack(self, to: &Path) -> Result<(), String> {
        match self {
            Self::Dpkg => repack::repack(to),
            Self::Rpm => {
                Err("rpm cannot make a package of what is installed: first run minion.upgrade with the package of the version that \
                              runs now, which is kept then"
                    .to_owned())
            }
        }
    }
}

fn parse(said: &str) -> Result<Package, String> {
    let mut lines = said.lines().map(str::to_owned);
    match (lines.next(), lines.next(), lines.next()) {
        (Some(name), Some(version), Some(architecture)) if !version.is_empty() => Ok(Package { name, version, architecture }),
        _ => Err(format!("what it says of a package cannot be read: {said:?}")),
    }
}
