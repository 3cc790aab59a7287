//! What is killed, cut, moved, filled or asked twice, and what is true afterwards: every job ran at most once on a host, every result
//! that was produced can be read, and no state is wrong.

mod disk;
mod kills;
mod network;
mod processes;

use std::fs;
use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

fn kill9(pid: i32) {
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
}

fn lines(path: &Path) -> usize {
    fs::read_to_string(path).unwrap_or_default().lines().count()
}
