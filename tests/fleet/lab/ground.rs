//! The ground that a lab stands on: namespaces of processes, mounts and network that have no name, and a bridge between the hosts.
//!
//! A shell that we hold by its stdin is their first process. When we let go of it, or are killed, by Ctrl-C too, it ends all that runs there; so
//! two labs never meet, and none is left behind.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::unistd::geteuid;

use crate::{PATIENCE, processes, tools, wait};

/// What the first process does.
const HOLDER: &str = include_str!("ground.sh");

/// Namespaces, and the process that keeps them.
#[derive(Debug)]
pub(super) struct Ground {
    holder: Child,
    /// Taken when it is to end.
    stdin: Option<ChildStdin>,
    /// The holder's number, as seen from outside.
    first: i32,
    /// The lab's cgroup, as seen from within.
    cgroup: String,
}

impl Ground {
    /// A new one.
    ///
    /// # Panics
    /// We are not root, or the kernel gives no namespaces or no cgroups.
    pub(super) fn new() -> Self {
        static LABS: AtomicUsize = AtomicUsize::new(0);
        assert!(geteuid().is_root(), "hosts that boot need root: sudo make lab-test");
        let name = format!("overlord-lab-{}-{}", std::process::id(), LABS.fetch_add(1, Ordering::Relaxed));
        let parent = own_cgroup();
        // In a session of its own, so that Ctrl-C reaches us alone, and it can end in good order.
        let namespaces = ["unshare", "--mount", "--pid", "--net", "--fork", "--kill-child", "bash", "-c", HOLDER, "ground", &parent, &name];
        let mut command = tools::with(tools::tool("setsid"), ["--wait"].iter().chain(&namespaces));
        let mut holder = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let stdin = holder.stdin.take();
        let mut said = String::new();
        BufReader::new(holder.stdout.take().unwrap()).read_line(&mut said).unwrap();
        assert_eq!(said, "ready\n", "the ground of a lab cannot be made: see above");
        let first = first_within(i32::try_from(holder.id()).unwrap());
        Self { holder, stdin, first, cgroup: format!("{}/{name}", parent.trim_end_matches('/')) }
    }

    /// The lab's cgroup, as a path below the place where cgroups are mounted within.
    pub(super) fn cgroup(&self) -> &str {
        &self.cgroup
    }

    /// A command that runs in here, outside of all hosts: between them.
    pub(super) fn command(&self, words: &[&str]) -> Command {
        let target = format!("--target={}", self.first);
        let enter = [target.as_str(), "--mount", "--net", "--pid", "--"];
        tools::with(tools::tool("nsenter"), enter.iter().chain(words))
    }

    /// Runs a tool in here to its end.
    ///
    /// # Panics
    /// It fails.
    pub(super) fn run(&self, words: &[&str]) {
        tools::run(self.command(words));
    }

    /// Its files, as seen from outside.
    pub(super) fn root(&self) -> PathBuf {
        format!("/proc/{}/root", self.first).into()
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        drop(self.stdin.take());
        if !wait::until(PATIENCE, || self.holder.try_wait().is_ok_and(|ended| ended.is_some())) {
            let _ = self.holder.kill();
            let _ = self.holder.wait();
        }
    }
}

/// The cgroup of version 2 that we are in.
fn own_cgroup() -> String {
    let text = fs::read_to_string("/proc/self/cgroup").unwrap();
    let own = text.lines().find_map(|line| line.strip_prefix("0::"));
    own.expect("hosts that boot need cgroups of version 2, which this kernel does not have").to_owned()
}

/// The process below `outer` that is the first of a namespace of processes.
fn first_within(outer: i32) -> i32 {
    wait::wait_for("the first process of a lab", PATIENCE, || {
        let mut pid = outer;
        while processes::inner_pid(pid) != Some(1) {
            pid = processes::children(pid).pop()?;
        }
        Some(pid)
    })
}
