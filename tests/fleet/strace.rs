//! An strace that is attached to running processes, and what it noted of them. What it is told to do with them is its caller's business.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::{PATIENCE, tools, wait};

/// What strace says of each process, or thread, that it was attached to.
const ATTACHED: &str = "attached";

/// How long strace may take to let go. It never does of a process with threads that died while it was told to, and is killed then.
const LET_GO_WITHIN: Duration = Duration::from_millis(500);

/// One that runs. Dropped, it lets go of those that live.
#[derive(Debug)]
pub(crate) struct Strace {
    process: Child,
    folder: TempDir,
}

impl Strace {
    /// Attaches to every one of `pids`, and returns when it holds them.
    ///
    /// # Panics
    /// One of them cannot be traced.
    pub(crate) fn attach(options: &[String], pids: &[i32]) -> Self {
        let folder = tempfile::Builder::new().prefix("strace-").tempdir().unwrap();
        let stderr = fs::File::create(folder.path().join("stderr")).unwrap();
        let mut command: Command = tools::with(tools::tool("strace"), options);
        command.arg("-o").arg(folder.path().join("record"));
        for pid in pids {
            command.arg("-p").arg(pid.to_string());
        }
        let process = command.stdout(Stdio::null()).stderr(stderr).spawn().unwrap();
        let strace = Self { process, folder };
        wait::wait_until("strace to attach", PATIENCE, || strace.said().matches(ATTACHED).count() >= pids.len());
        strace
    }

    /// What it has noted so far.
    pub(crate) fn record(&self) -> String {
        fs::read(self.record_file()).map(|text| String::from_utf8_lossy(&text).into_owned()).unwrap_or_default()
    }

    pub(crate) fn record_file(&self) -> PathBuf {
        self.folder.path().join("record")
    }

    /// Lets go of all that lives.
    pub(crate) fn let_go(&mut self) {
        if matches!(self.process.try_wait(), Ok(None)) {
            let _ = kill(Pid::from_raw(i32::try_from(self.process.id()).unwrap()), Signal::SIGTERM);
            if !wait::until(LET_GO_WITHIN, || !matches!(self.process.try_wait(), Ok(None))) {
                let _ = self.process.kill();
                let _ = self.process.wait();
            }
        }
    }

    fn said(&self) -> String {
        fs::read_to_string(self.folder.path().join("stderr")).unwrap_or_default()
    }
}

impl Drop for Strace {
    fn drop(&mut self) {
        self.let_go();
    }
}
