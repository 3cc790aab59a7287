//! What is left on a host when a package goes: all that it has, or nothing.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use fleet::lab::{Host, Lab, SERVER, SPAWNER, Version, deb};

/// What dpkg, apt, systemd and the machine's own books keep of anything that was ever installed, and the traces of our own jobs.
const BOOKS: [&str; 8] = ["/var/lib/dpkg", "/var/lib/apt", "/var/cache", "/var/log", "/var/lib/systemd", "/var/tmp", "/tmp", "/srv"];
/// Files that were rewritten, or are copies of what was there before.
const REWRITTEN: [&str; 9] = [
    "/etc/passwd",
    "/etc/passwd-",
    "/etc/group",
    "/etc/group-",
    "/etc/shadow",
    "/etc/shadow-",
    "/etc/gshadow",
    "/etc/gshadow-",
    "/etc/.pwd.lock",
];

/// The paths that are there now and were not `before`.
fn left(host: &Host, before: &BTreeSet<PathBuf>) -> Vec<PathBuf> {
    let is_kept = |path: &Path| BOOKS.iter().any(|book| path.starts_with(book)) || REWRITTEN.iter().any(|file| path == Path::new(file));
    // A folder of the root below is copied up as soon as anything in it changes.
    let is_old = |path: &Path| host.is_in_base(path);
    host.written().difference(before).filter(|path| !is_kept(path) && !is_old(path)).cloned().collect()
}

fn purge(host: &Host, package: &str) {
    let _ = host.run(&format!("apt-get purge -y {package}")).ok();
}

#[test]
fn a_purge_leaves_nothing() {
    let lab = Lab::bare(1);
    let host = &lab.hosts()[0];
    let before = [host, lab.control()].map(Host::written);
    lab.install_overlord();
    let _ = host.run(&lab.install_line(Version::This)).ok();
    lab.is_well();
    lab.start_work("*", "done").has_begun().ends_well();
    let runs = lab.start_work("*", "runs");
    runs.has_begun();
    purge(host, "overlord-minion");
    purge(lab.control(), "overlord");
    assert_eq!(left(host, &before[0]), Vec::<PathBuf>::new());
    assert_eq!(host.run("getent passwd minion; getent group minion; pgrep -l minion").out(), "");
    assert_eq!(runs.traces(host), ["start"], "it was ended");
    assert_eq!(left(lab.control(), &before[1]), Vec::<PathBuf>::new());
}

#[test]
fn a_removal_keeps_what_the_host_has() {
    let lab = Lab::enrolled(1);
    let host = &lab.hosts()[0];
    let work = lab.start_work("*", "work");
    work.has_begun();
    let _ = host.run("apt-get remove -y overlord-minion").ok();
    assert_eq!(host.run(&format!("systemctl is-active {SERVER} {SPAWNER}")).out(), "inactive\ninactive\n");
    assert!(!host.path("/usr/bin/minion").exists());
    // Installed again, it is what it was.
    let _ = host.run(&format!("apt-get install -y {}", deb("overlord-minion", Version::This))).ok();
    lab.is_well();
    work.ends_well();
}
