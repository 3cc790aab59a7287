//! The machine's own tools that faults are made with; one that is missing is named, with the package that has it.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The tools that are not on every machine, and the Debian packages that have them.
const PACKAGES: [(&str, &str); 11] = [
    ("strace", "strace"),
    ("ip", "iproute2"),
    ("unshare", "util-linux"),
    ("nsenter", "util-linux"),
    ("prlimit", "util-linux"),
    ("mount", "mount"),
    ("openssl", "openssl"),
    ("setpriv", "util-linux"),
    ("setsid", "util-linux"),
    ("systemd-nspawn", "systemd-container"),
    ("apt-get", "apt"),
];
/// Where distributions put the library that fakes the time.
const FAKETIME_FOLDERS: [&str; 5] = [
    "/usr/lib/x86_64-linux-gnu/faketime",
    "/usr/lib/aarch64-linux-gnu/faketime",
    "/usr/lib64/faketime",
    "/usr/lib/faketime",
    "/usr/local/lib/faketime",
];

/// The command of that name, its input empty.
///
/// # Panics
/// It is not installed.
pub(crate) fn tool(name: &str) -> Command {
    let folders = std::env::var_os("PATH").unwrap_or_default();
    let extra = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    let found = std::env::split_paths(&folders).chain(extra).map(|folder| folder.join(name)).find(|path| path.is_file());
    let package = PACKAGES.iter().find(|(tool, _)| *tool == name).map_or(name, |(_, package)| package);
    let path = found.unwrap_or_else(|| panic!("{name} is missing, which this test needs: sudo apt-get install -y {package}"));
    let mut command = Command::new(path);
    command.stdin(Stdio::null());
    command
}

/// Runs a tool to its end.
///
/// # Panics
/// It fails; the words and what it said are told.
pub(crate) fn run(mut command: Command) {
    let done = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(done.status.success(), "{command:?}: {}: {}", done.status, String::from_utf8_lossy(&done.stderr));
}

/// The library that, loaded before all others, fakes the time of programs with threads.
///
/// # Panics
/// It is not installed.
pub(crate) fn faketime() -> PathBuf {
    let found = FAKETIME_FOLDERS.iter().map(|folder| PathBuf::from(folder).join("libfaketimeMT.so.1")).find(|path| path.exists());
    found.unwrap_or_else(|| panic!("libfaketime is missing, which this test moves clocks with: sudo apt-get install -y faketime"))
}

/// `command` with further words.
pub(crate) fn with<A: AsRef<OsStr>>(mut command: Command, words: impl IntoIterator<Item = A>) -> Command {
    command.args(words);
    command
}

/// `program`, with the words before it that put it into other surroundings, if there are any.
pub(crate) fn within(words: &[String], program: &Path) -> Command {
    match words.split_first() {
        None => Command::new(program),
        Some((first, others)) => with(with(tool(first), others), [program]),
    }
}
