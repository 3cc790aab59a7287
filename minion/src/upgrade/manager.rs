//! What manages the host's packages: dpkg or rpm.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use super::command::Command;
use super::{PACKAGE, PROGRAM, repack};

/// How long a question may take.
const ASK_WITHIN: Duration = Duration::from_secs(20);
/// How long an installation may take. A package that hangs as it starts is taken back after that.
pub(super) const INSTALL_WITHIN: Duration = Duration::from_secs(30);
/// Somebody else may be installing something.
const LOCK_WITHIN: Duration = Duration::from_secs(60);
const LOCK_AGAIN: Duration = Duration::from_secs(1);
/// What dpkg and rpm say then.
const LOCKED: [&str; 2] = ["lock was locked by another process", "can't create transaction lock"];

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

impl Manager {
    /// The one that has installed the minion.
    pub(super) fn of_minion() -> Result<Self, String> {
        if Command::new("dpkg-query").args(["--search", PROGRAM]).run(ASK_WITHIN).is_ok_and(|said| said.starts_with(PACKAGE)) {
            return Ok(Self::Dpkg);
        }
        if Command::new("rpm").args(["-q", "--file", PROGRAM]).run(ASK_WITHIN).is_ok_and(|said| said.starts_with(PACKAGE)) {
            return Ok(Self::Rpm);
        }
        Err(format!("{PROGRAM} is not of a package {PACKAGE}, as neither dpkg nor rpm knows one: install it by other means"))
    }

    /// The package that is installed.
    pub(super) fn installed(self) -> Result<Package, String> {
        match self {
            Self::Dpkg => {
                let format = "--showformat=${Package}\n${Version}\n${Architecture}\n";
                parse(&Command::new("dpkg-query").args(["--show", format, PACKAGE]).run(ASK_WITHIN)?)
            }
            Self::Rpm => parse(&Command::new("rpm").args(["-q", "--queryformat", RPM_FORMAT, PACKAGE]).run(ASK_WITHIN)?),
        }
    }

    /// What the file is a package of.
    pub(super) fn describe(self, file: &Path) -> Result<Package, String> {
        match self {
            Self::Dpkg => {
                let format = "--showformat=${Package}\n${Version}\n${Architecture}\n";
                parse(&Command::new("dpkg-deb").args(["--show", format]).arg(file).run(ASK_WITHIN)?)
            }
            Self::Rpm => parse(
                &Command::new("rpm").args(["-q", "--nosignature", "--queryformat", RPM_FORMAT, "--package"]).arg(file).run(ASK_WITHIN)?,
            ),
        }
    }

    /// Puts it in the place of what is installed, be that newer or older. What an administrator has changed in `/etc` stays.
    pub(super) fn install(self, file: &Path) -> Result<(), String> {
        let deadline = Instant::now() + LOCK_WITHIN;
        loop {
            let installed = match self {
                Self::Dpkg => Command::new("dpkg").args(["--install", "--force-confold"]).arg(file).run(INSTALL_WITHIN),
                Self::Rpm => {
                    Command::new("rpm").args(["-U", "--oldpackage", "--replacepkgs", "--nosignature"]).arg(file).run(INSTALL_WITHIN)
                }
            };
            match installed {
                Ok(_) => return Ok(()),
                Err(why) if LOCKED.iter().any(|word| why.contains(word)) && Instant::now() < deadline => thread::sleep(LOCK_AGAIN),
                Err(why) => return Err(why),
            }
        }
    }

    /// Makes a package of what is installed.
    pub(super) fn repack(self, folder: &Path, to: &Path) -> Result<(), String> {
        match self {
            Self::Dpkg => repack::repack(folder, to),
            Self::Rpm => {
                Err("rpm cannot make a package of what is installed: first run minion.upgrade with the package of the version that \
                              runs now, which is kept then"
                    .to_owned())
            }
        }
    }
}

const RPM_FORMAT: &str = "%{NAME}\n%{VERSION}-%{RELEASE}\n%{ARCH}\n";

fn parse(said: &str) -> Result<Package, String> {
    let mut lines = said.lines().map(str::to_owned);
    match (lines.next(), lines.next(), lines.next()) {
        (Some(name), Some(version), Some(architecture)) if !version.is_empty() => Ok(Package { name, version, architecture }),
        _ => Err(format!("what it says of a package cannot be read: {said:?}")),
    }
}
