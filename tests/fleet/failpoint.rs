//! Kills a process as it enters its Nth call of some system calls: a fail point between any two steps, with no help from the program.
//!
//! It is done by strace. Each thread of each process counts for itself, so N means a step of one of them.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::{PATIENCE, tools, wait};

/// What strace says once it holds a process that it was attached to.
const ATTACHED: &str = "attached";

/// How long strace may take to let go. It never does of a process with threads that died while it was told to, and is killed then.
const LET_GO_WITHIN: Duration = Duration::from_millis(500);

/// Of which call a process dies.
#[derive(Debug, Clone, Copy)]
pub struct Step<'a> {
    /// The system calls that count, by name.
    pub calls: &'a [&'a str],
    /// Which of them, from 1.
    pub number: usize,
}

/// Who is followed besides the process itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Follow {
    /// Its threads and all that it forks from now on, each with a count of its own.
    Children,
    /// Nobody.
    Alone,
}

/// A fail point that waits in a running process. Dropped, it lets go of those that live.
#[derive(Debug)]
pub struct FailPoint {
    strace: Child,
    folder: TempDir,
    /// The step at which it kills.
    number: usize,
}

impl Step<'_> {
    /// The words before a command that run it with this fail point, with what it forks; what happens is noted in `record`.
    pub(crate) fn words(self, record: &Path) -> Vec<String> {
        let mut words = ["strace", "-f"].map(str::to_owned).to_vec();
        words.extend(self.options(record));
        words.push("--".to_owned());
        words
    }

    /// Attaches it to a running process.
    ///
    /// # Panics
    /// That process cannot be traced.
    #[must_use]
    pub fn wait_in(self, pid: i32, follow: Follow) -> FailPoint {
        let folder = tempfile::Builder::new().prefix("failpoint-").tempdir().unwrap();
        let stderr = fs::File::create(folder.path().join("stderr")).unwrap();
        let mut strace: Command = tools::with(tools::tool("strace"), self.options(&folder.path().join("record")));
        if follow == Follow::Children {
            strace.arg("-f");
        }
        let strace = strace.arg("-p").arg(pid.to_string()).stdout(Stdio::null()).stderr(stderr).spawn().unwrap();
        let point = FailPoint { strace, folder, number: self.number };
        wait::wait_until("strace to attach", PATIENCE, || point.said().contains(ATTACHED));
        point
    }

    fn options(self, record: &Path) -> Vec<String> {
        let calls = self.calls.join(",");
        vec![
            "-o".to_owned(),
            record.display().to_string(),
            format!("--trace={calls}"),
            format!("--inject={calls}:signal=SIGKILL:when={}", self.number),
        ]
    }
}

impl FailPoint {
    /// Lets go of all that lives, and says whether something has died of it.
    #[must_use]
    pub fn let_go(mut self) -> bool {
        self.detach();
        has_struck(&self.record(), self.number)
    }

    fn record(&self) -> PathBuf {
        self.folder.path().join("record")
    }

    fn said(&self) -> String {
        fs::read_to_string(self.folder.path().join("stderr")).unwrap_or_default()
    }

    fn detach(&mut self) {
        if matches!(self.strace.try_wait(), Ok(None)) {
            let _ = kill(Pid::from_raw(i32::try_from(self.strace.id()).unwrap()), Signal::SIGTERM);
            if !wait::until(LET_GO_WITHIN, || !matches!(self.strace.try_wait(), Ok(None))) {
                let _ = self.strace.kill();
                let _ = self.strace.wait();
            }
        }
    }
}

impl Drop for FailPoint {
    fn drop(&mut self) {
        self.detach();
    }
}

/// Whether something died, by the complete record of a fail point at step `number`: a thread came so far. Its death may not be noted any
/// more, where strace was told to let go at that moment.
pub(crate) fn has_struck(record: &Path, number: usize) -> bool {
    let text = fs::read_to_string(record).unwrap_or_default();
    let mut calls: HashMap<&str, usize> = HashMap::new();
    for line in text.lines() {
        // `PID CALL(…`, without the number where one process alone is followed; not `<... CALL resumed>`, nor `+++ exited …` and the like.
        let (thread, rest) = line.split_once(' ').filter(|(first, _)| first.parse::<i32>().is_ok()).unwrap_or(("", line));
        if rest.trim_start().starts_with(|first: char| first.is_ascii_lowercase()) {
            *calls.entry(thread).or_default() += 1;
        }
    }
    calls.values().any(|made| *made >= number)
}
