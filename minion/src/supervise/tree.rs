//! Signalling a tree of processes without ever hitting a stranger: a process is held by a pidfd, then looked at again, and only then
//! signalled, so that a pid that was taken over by another process in between is left alone.

use std::ffi::OsStr;
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

/// Kills every process whose variable `name` begins with `value`, until none is left or `patience` is over: what was left behind by one whose parent was
/// killed.
pub fn kill_bearing(name: &str, value: &OsStr, patience: Duration) {
    let bears = |process: &Process| {
        let found = process.environ().ok().and_then(|mut variables| variables.remove(OsStr::new(name)));
        found.is_some_and(|found| found.as_encoded_bytes().starts_with(value.as_encoded_bytes()))
    };
    let deadline = Instant::now() + patience;
    while signal_all(Signal::SIGKILL, bears) > 0 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
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
    let mut parent = process.stat().ok().map(|stat| stat.ppid);
    for _generation in 0..DEPTH_MAX {
        match parent {
            Some(pid) if pid == ancestor => return true,
            Some(pid) if pid > 1 => parent = Process::new(pid).and_then(|process| process.stat()).ok().map(|stat| stat.ppid),
            _ => return false,
        }
    }
    false
}
