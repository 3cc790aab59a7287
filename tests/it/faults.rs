//! What is killed, cut, moved, filled or asked twice, and what is true afterwards: every job ran at most once on a host, every result
//! that was produced can be read, and no state is wrong.

mod clock;
mod cycles;
mod damage;
mod damage_store;
mod disk;
mod kills;
mod minion_steps;
mod network;
mod overlord_steps;
mod power;
mod processes;

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use fleet::{Fleet, PATIENCE, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

fn kill9(pid: i32) {
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
}

/// Waits until a job daemon that was killed is dead: the kernel lets go of its lock some time after the signal.
fn wait_until_dead(spool: &Path) {
    let is_free = || File::open(spool.join("lock")).unwrap().try_lock_shared().is_ok();
    wait_until("the kernel to let go of the dead daemon's lock", PATIENCE, is_free);
}

fn lines(path: &Path) -> usize {
    fs::read_to_string(path).unwrap_or_default().lines().count()
}

/// The file in which every run of a job leaves a line: the job's id and the host's name.
struct Runs(PathBuf);

impl Runs {
    fn of(fleet: &Fleet) -> Self {
        Self(fleet.root().join("runs"))
    }

    /// The command that leaves the line.
    fn note(&self) -> String {
        format!("echo $OVERLORD_JOB_ID $MINION_NAME >> {}", self.0.display())
    }

    /// How often the job ran on the host.
    fn count(&self, job: &str, host: &str) -> usize {
        let line = format!("{job} {host}");
        fs::read_to_string(&self.0).unwrap_or_default().lines().filter(|ran| *ran == line).count()
    }

    /// The host's state agrees with what happened there.
    fn assert_true(&self, job: &str, host: &str, told: &Value) {
        let ran = self.count(job, host);
        assert!(ran <= 1, "{job} ran {ran} times on {host}: {told}");
        match told["state"].as_str().unwrap_or_else(|| panic!("{host} has no state: {told}")) {
            "ok" => assert_eq!(ran, 1, "{job} is ok and did not run: {told}"),
            "undelivered" => assert_eq!(ran, 0, "{job} is undelivered and ran: {told}"),
            "lost" if told["error"]["message"].as_str().unwrap_or_default().contains("never started") => {
                assert_eq!(ran, 0, "{job} never started, it says, and ran: {told}");
            }
            "pending" | "queued" | "running" | "lost" | "cancelled" => {}
            other => panic!("{job} is {other} on {host}, which nobody made it: {told}"),
        }
    }
}
