//! Signalling a tree of processes without ever hitting a stranger: a process is held by a pidfd, then looked at again, and only then
//! signalled, so that a pid that was taken over by another process in between is left alone.

use std::ffi::{OsStr, OsString};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use procfs::process::{Process, all_processes};
use rustix::process::{Pid, PidfdFlags, pidfd_open, pidfd_send_signal};

/// A tree deeper than this is not followed: no chain of parents is, that is not changing while it is read.
const DEPTH_MAX: usize = 10_000;

/// Sends `signal` to every descendant of the process `ancestor`: this one, or a child of ours that is not waited for yet.
pub fn signal_below(ancestor: i32, signal: Signal) {
    signal_all(signal, |process| descends_from(process, ancestor));
}

/// Kills every process whose variable `name` has this `value`, until none is left or `patience` is over: what was left behind by one whose parent was
/// killed.
pub fn kill_bearing(name: &str, value: &OsStr, patience: Duration) {
    kill_all(|process| variable(process, name).is_some_and(|found| found == value), patience);
}

/// Kills every process below this one, until none is left or `patience` is over, but not those of `spared` and what is below them, nor those whose variable
/// `name` has one of `values`.
pub fn kill_strays(spared: &[i32], (name, values): (&str, &[&OsStr]), patience: Duration) {
    let this = rustix::process::getpid().as_raw_nonzero().get();
    let is_stray = |process: &Process| {
        let top = if process.stat().is_ok_and(|stat| stat.state == 'Z') { None } else { child_above(process, this) };
        top.is_some_and(|top| !spared.contains(&top)) && !variable(process, name).is_some_and(|value| values.contains(&value.as_os_str()))
    };
    kill_all(is_stray, patience);
}

/// Whether the process `pid` descends from the process `ancestor`.
pub fn descends(pid: i32, ancestor: i32) -> bool {
    Process::new(pid).is_ok_and(|process| descends_from(&process, ancestor))
}

fn kill_all(belongs: impl Fn(&Process) -> bool, patience: Duration) {
    let deadline = Instant::now() + patience;
    while signal_all(Signal::SIGKILL, &belongs) > 0 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn variable(process: &Process, name: &str) -> Option<OsString> {
    process.environ().ok()?.remove(OsStr::new(name))
}

fn signal_all(signal: Signal, belongs: impl Fn(&Process) -> bool) -> usize {
    let Ok(processes) = all_processes() else { return 0 };
    processes.flatten().filter(|process| belongs(process)).filter(|process| signal_one(process, signal, &belongs)).count()
}

fn signal_one(process: &Process, signal: Signal, belongs: &impl Fn(&Process) -> bool) -> bool {
    let Some(held) = Pid::from_raw(process.pid).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok()) else {
        return false;
    };
    // Read afresh, because `process` may be of one that died before it was held.
    let still_belongs = Process::new(process.pid).is_ok_and(|again| belongs(&again));
    let Some(signal) = rustix::process::Signal::from_named_raw(signal as i32) else { return false };
    still_belongs && pidfd_send_signal(&held, signal).is_ok()
}

fn descends_from(process: &Process, ancestor: i32) -> bool {
    child_above(process, ancestor).is_some()
}

/// The child of the process `ancestor` which this one is, or from which it descends.
fn child_above(process: &Process, ancestor: i32) -> Option<i32> {
    let parent_of = |process: &Process| process.stat().ok().map(|stat| stat.ppid);
    let (mut pid, mut parent) = (process.pid, parent_of(process)?);
    for _generation in 0..DEPTH_MAX {
        match parent {
            found if found == ancestor => return Some(pid),
            found if found > 1 => (pid, parent) = (found, Process::new(found).ok().as_ref().and_then(parent_of)?),
            _ => return None,
        }
    }
    None
}
