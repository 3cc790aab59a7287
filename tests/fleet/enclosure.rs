//! An enclosure: namespaces of their own for the processes of one host, without a name and without a trace.
//!
//! A shell that we hold by its stdin is their first process. When we let go of it, or are killed, it ends, and the kernel kills whatever
//! else lives in the enclosure and takes its mounts and network down. Nothing outside of it changes. Without root it works in a user
//! namespace, where the kernel lets us have one.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};

use nix::unistd::geteuid;

use crate::{PATIENCE, processes, tools, wait};

/// The first process of an enclosure: says what it hears, buries the dead, and ends when nobody holds it.
const HOLDER: &str = "while read -r line; do echo \"$line\"; done";

/// Whether a host has a network of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Net {
    /// The machine's.
    Shared,
    /// None but loopback, until links are made.
    Own,
}

/// Whether those within have numbers of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pids {
    /// They see each other alone, and die with the enclosure. What enters needs one more process, its parent.
    Own,
    /// They are the machine's processes like any other.
    Shared,
}

/// Namespaces, and the process that keeps them.
#[derive(Debug)]
pub(crate) struct Enclosure {
    net: Net,
    pids: Pids,
    holder: Child,
    /// Taken when it is to end.
    stdin: Option<ChildStdin>,
    /// The holder's number, as seen from outside.
    first: i32,
}

impl Enclosure {
    /// A new one. Without root, those of one fleet must share their user namespace, so it is made within that of `hub`.
    pub(crate) fn new(net: Net, pids: Pids, hub: Option<&Self>) -> Self {
        let mut words: Vec<String> = hub.map(Self::enter).unwrap_or_default();
        words.extend(["unshare", "--mount", "--fork", "--kill-child"].map(str::to_owned));
        if pids == Pids::Own {
            words.extend(["--pid", "--mount-proc"].map(str::to_owned));
        }
        if net == Net::Own {
            words.push("--net".to_owned());
        }
        if hub.is_none() && !geteuid().is_root() {
            words.extend(["--user", "--map-root-user"].map(str::to_owned));
        }
        words.extend(["bash", "-c", HOLDER].map(str::to_owned));
        let mut command = tools::with(tools::tool(&words[0]), &words[1..]);
        let mut holder = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut stdin = holder.stdin.take().unwrap();
        stdin.write_all(b"ready\n").unwrap();
        let mut said = String::new();
        BufReader::new(holder.stdout.take().unwrap()).read_line(&mut said).unwrap();
        assert_eq!(said, "ready\n", "{command:?} does not start: may this user make namespaces?");
        let outer = i32::try_from(holder.id()).unwrap();
        let first = wait::wait_for("the first process of an enclosure", PATIENCE, || processes::children(outer).pop());
        let enclosure = Self { net, pids, holder, stdin: Some(stdin), first };
        // The library that fakes the time leaves its shared memory behind when its process is killed.
        enclosure.run(&["mount", "-t", "tmpfs", "none", "/dev/shm"]);
        enclosure
    }

    /// The words before a command that make it run in here.
    pub(crate) fn enter(&self) -> Vec<String> {
        let mut words = vec!["nsenter".to_owned(), format!("--target={}", self.first), "--mount".to_owned()];
        if !geteuid().is_root() {
            words.extend(["--user", "--preserve-credentials"].map(str::to_owned));
        }
        if self.net == Net::Own {
            words.push("--net".to_owned());
        }
        if self.pids == Pids::Own {
            words.push("--pid".to_owned());
        }
        words.push("--".to_owned());
        words
    }

    /// A command that runs in here.
    pub(crate) fn command(&self, words: &[&str]) -> Command {
        let enter = self.enter();
        tools::with(tools::with(tools::tool(&enter[0]), &enter[1..]), words)
    }

    /// Runs a tool in here to its end.
    ///
    /// # Panics
    /// It fails.
    pub(crate) fn run(&self, words: &[&str]) {
        tools::run(self.command(words));
    }

    /// Whether it has a network of its own.
    pub(crate) fn net(&self) -> Net {
        self.net
    }

    /// Its first process, as seen from outside.
    pub(crate) fn first(&self) -> i32 {
        self.first
    }

    /// Its files, as seen from outside.
    pub(crate) fn root(&self) -> PathBuf {
        format!("/proc/{}/root", self.first).into()
    }
}

impl Drop for Enclosure {
    fn drop(&mut self) {
        drop(self.stdin.take());
        if !wait::until(PATIENCE, || self.holder.try_wait().is_ok_and(|ended| ended.is_some())) {
            let _ = self.holder.kill();
            let _ = self.holder.wait();
        }
    }
}
