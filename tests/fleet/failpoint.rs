//! Kills a process as it enters its Nth call of some system calls: a fail point between any two steps, with no help from the program.
//!
//! It is done by strace. Each thread of each process counts for itself, so N means a step of one of them.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use crate::strace::Strace;

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
    strace: Strace,
    /// The step at which it kills.
    number: usize,
}

impl Step<'_> {
    /// The words before a command that run it with this fail point, with what it forks; what happens is noted in `record`.
    pub(crate) fn words(self, record: &Path) -> Vec<String> {
        let mut words = ["strace", "-f", "-o"].map(str::to_owned).to_vec();
        words.push(record.display().to_string());
        words.extend(self.options());
        words.push("--".to_owned());
        words
    }

    /// Attaches it to a running process.
    ///
    /// # Panics
    /// That process cannot be traced.
    #[must_use]
    pub fn wait_in(self, pid: i32, follow: Follow) -> FailPoint {
        let mut options = self.options();
        if follow == Follow::Children {
            options.push("-f".to_owned());
        }
        FailPoint { strace: Strace::attach(&options, &[pid]), number: self.number }
    }

    fn options(self) -> Vec<String> {
        let calls = self.calls.join(",");
        vec![format!("--trace={calls}"), format!("--inject={calls}:signal=SIGKILL:when={}", self.number)]
    }
}

impl FailPoint {
    /// Lets go of all that lives, and says whether something has died of it.
    #[must_use]
    pub fn let_go(mut self) -> bool {
        self.strace.let_go();
        has_struck(&self.strace.record_file(), self.number)
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
