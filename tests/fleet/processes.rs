//! Which processes belong to a fleet: those that run with its folder in their command line or environment, or hold a file in it
//! open. A job daemon has no parent left and may have any name; this finds it all the same.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::{PATIENCE, wait};

/// The environment variable by which everything that a fleet started is known.
pub(crate) const MARK: &str = "FLEET_ROOT";

/// A process of a fleet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its number.
    pub pid: i32,
    /// Its command line, with blanks between the words.
    pub command: String,
}

/// The processes of the fleet whose folder is `root`; zombies, which run no more, are none.
pub(crate) fn of(root: &Path) -> Vec<Process> {
    all_pids().filter(|pid| !is_zombie(*pid) && (is_marked(*pid, root) || holds_open(*pid, root))).map(describe).collect()
}

/// Those that hold the file `path` open.
pub(crate) fn holding(path: &Path) -> Vec<Process> {
    all_pids().filter(|pid| open_files(*pid).any(|open| open == path)).map(describe).collect()
}

/// The processes whose parent is `pid`.
pub(crate) fn children(pid: i32) -> Vec<i32> {
    all_pids().filter(|child| parent(*child) == Some(pid)).collect()
}

/// Kills whatever belongs to the fleet, until nothing does.
pub(crate) fn kill_all(root: &Path) {
    let gone = wait::until(PATIENCE, || {
        let left = of(root);
        for process in &left {
            // It may have ended by itself meanwhile.
            let _ = kill(Pid::from_raw(process.pid), Signal::SIGKILL);
        }
        left.is_empty()
    });
    if !gone {
        eprintln!("these processes cannot be killed: {:#?}", of(root));
    }
}

fn all_pids() -> impl Iterator<Item = i32> {
    let own = i32::try_from(std::process::id()).unwrap_or_default();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(move |pid| *pid != own)
}

/// The process of that number, as it is now.
pub(crate) fn describe(pid: i32) -> Process {
    let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    Process { pid, command: String::from_utf8_lossy(&command).trim_end_matches('\0').replace('\0', " ") }
}

/// The number of a process in the innermost namespace that it is in.
pub(crate) fn inner_pid(pid: i32) -> Option<i32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("NSpid:"))?.split_whitespace().next_back()?.parse().ok()
}

/// All that share the namespace of processes with `pid`, zombies included, for they keep their numbers.
pub(crate) fn beside(pid: i32) -> Vec<Process> {
    let namespace = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let own = namespace(pid);
    all_pids().filter(|other| namespace(*other) == own).map(describe).collect()
}

/// Whether `process` is as it was found, and runs.
pub(crate) fn is_alive(process: &Process) -> bool {
    !is_zombie(process.pid) && describe(process.pid) == *process
}

fn is_zombie(pid: i32) -> bool {
    stat(pid).is_none_or(|stat| stat.starts_with(['Z', 'X']))
}

/// Its parent.
pub(crate) fn parent(pid: i32) -> Option<i32> {
    stat(pid)?.split(' ').nth(1)?.parse().ok()
}

/// Whether it is in our session: it did not make one of its own, as daemons do.
pub(crate) fn is_in_our_session(pid: i32) -> bool {
    let session = |pid: i32| stat(pid).and_then(|stat| stat.split(' ').nth(3)?.parse::<i32>().ok());
    session(pid) == i32::try_from(std::process::id()).ok().and_then(session)
}

/// What its `stat` says from its state on. Before that stands its name, which may hold anything: `PID (NAME) STATE PARENT GROUP SESSION …`.
fn stat(pid: i32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ").map(|(_, rest)| rest.to_owned())
}

fn is_marked(pid: i32, root: &Path) -> bool {
    let root = root.as_os_str().as_bytes();
    ["environ", "cmdline"].iter().any(|file| {
        let text = fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
        text.windows(root.len()).any(|part| part == root)
    })
}

fn holds_open(pid: i32, root: &Path) -> bool {
    open_files(pid).any(|open| open.starts_with(root))
}

fn open_files(pid: i32) -> impl Iterator<Item = std::path::PathBuf> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    entries.filter_map(|entry| fs::read_link(entry.path()).ok())
}
