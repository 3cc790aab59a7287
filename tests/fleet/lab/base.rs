//! The root that every host of a lab is made from: a small Debian, of the release that this machine runs and from where its own apt gets it. It is
//! made once, and again when it is to hold something else; hosts write above it, never into it.

use std::fs;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::fcntl::{Flock, FlockArg};

use crate::tools;

/// Where the root is kept, unless `LAB_CACHE` names a folder.
const CACHE: &str = "/var/tmp/overlord-lab";
/// What is in it beside the smallest Debian.
const PACKAGES: &str = "systemd,systemd-sysv,dbus,iproute2,procps,openssh-server,sudo,rpm";
/// What is done to it then.
const FINISH: &str = include_str!("base.sh");
/// Where apt gets Debian from: address, release, who made it.
const APT_SOURCES: [&str; 4] =
    ["indextargets", "--format", "$(REPO_URI) $(CODENAME) $(ORIGIN) $(LABEL) $(COMPONENT)", "Created-By: Packages"];

/// The root, made first if it is not there.
///
/// # Panics
/// It cannot be made.
pub(super) fn root() -> PathBuf {
    let cache = std::env::var_os("LAB_CACHE").map_or_else(|| CACHE.into(), PathBuf::from);
    fs::create_dir_all(&cache).unwrap();
    let (mirror, release) = debian();
    let mut stamp = DefaultHasher::new();
    (PACKAGES, FINISH).hash(&mut stamp);
    let root = cache.join(format!("{release}-{:016x}", stamp.finish()));
    let lock = fs::File::create(cache.join("lock")).unwrap();
    let _held = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, error)| error).unwrap();
    if !root.exists() {
        make(&root, &mirror, &release);
    }
    root
}

fn make(root: &Path, mirror: &str, release: &str) {
    let making = root.with_extension("making");
    let _not_there = fs::remove_dir_all(&making);
    // It ends with us, should we be killed, and what it mounts, and what it runs, ends with it.
    let mut command = tools::tool("setpriv");
    command.args([
        "--pdeathsig",
        "KILL",
        "unshare",
        "--mount",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
        "debootstrap",
        "--variant=minbase",
    ]);
    command.arg(format!("--include={PACKAGES}")).arg(release).arg(&making).arg(mirror);
    tools::run(command);
    let mut finish = Command::new("sh");
    finish.args(["-c", FINISH]).current_dir(&making);
    tools::run(finish);
    fs::rename(&making, root).unwrap();
}

/// Where this machine gets Debian from, and which release.
fn debian() -> (String, String) {
    let said = tools::with(tools::tool("apt-get"), APT_SOURCES).output().unwrap();
    let said = String::from_utf8_lossy(&said.stdout);
    let main = said.lines().find_map(|line| match line.split(' ').collect::<Vec<_>>()[..] {
        [mirror, release, "Debian", "Debian", "main"] if !release.contains('-') => Some((mirror.to_owned(), release.to_owned())),
        _ => None,
    });
    main.expect("apt knows no source of Debian, which the hosts of the lab are made from: run `apt-get update` on a Debian machine")
}
