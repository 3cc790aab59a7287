//! One run of the overlord: started, bounded in time, and judged by what it wrote and how it ended.

use std::ffi::OsStr;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::{COMMAND_TIMEOUT, binaries, processes, tools, wait};

/// An overlord that may still run. Dropped, it is killed.
#[derive(Debug)]
pub struct Running {
    what: String,
    child: Child,
    stdout: Output,
    stderr: Output,
    started: Instant,
}

/// What is read of one of its streams, as it comes.
#[derive(Debug)]
struct Output {
    chunks: Receiver<Vec<u8>>,
    bytes: Vec<u8>,
    /// How much of it was asked for as lines.
    taken: usize,
}

/// What an overlord did.
#[derive(Debug, Clone)]
pub struct Run {
    /// The words it was given.
    pub what: String,
    /// Its exit status, or the signal that ended it.
    pub status: ExitStatus,
    /// All it wrote to stdout.
    pub stdout: Vec<u8>,
    /// All it wrote to stderr.
    pub stderr: Vec<u8>,
    /// From its start until it had ended and closed its output.
    pub took: Duration,
}

impl Running {
    pub(crate) fn overlord<A: AsRef<OsStr>>(home: &Path, root: &Path, args: impl IntoIterator<Item = A>) -> Self {
        Self::overlord_within(&[], home, root, args)
    }

    /// The same, with the words before it that put it into other surroundings.
    pub(crate) fn overlord_within<A: AsRef<OsStr>>(words: &[String], home: &Path, root: &Path, args: impl IntoIterator<Item = A>) -> Self {
        let mut command = tools::within(words, &binaries().overlord);
        command.args(args).env("OVERLORD_HOME", home).env(processes::MARK, root);
        Self::start(command)
    }

    /// Starts `command`, whose input is empty and whose output is collected.
    pub fn start(mut command: Command) -> Self {
        let words: Vec<_> = command.get_args().map(|arg| arg.to_string_lossy().into_owned()).collect();
        let what = format!("{} {}", command.get_program().to_string_lossy(), words.join(" "));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let started = Instant::now();
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{what}: {error}"));
        let stdout = collect(child.stdout.take());
        let stderr = collect(child.stderr.take());
        Self { what, child, stdout, stderr, started }
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }

    /// Whether it has not ended yet.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// The next line that it writes to stdout, as soon as it does.
    ///
    /// # Panics
    /// None comes within [`COMMAND_TIMEOUT`].
    pub fn next_line(&mut self) -> String {
        self.stdout.next_line().unwrap_or_else(|| panic!("{} has written no further line to stdout", self.what))
    }

    /// The next line that it writes to stderr, as soon as it does.
    ///
    /// # Panics
    /// None comes within [`COMMAND_TIMEOUT`].
    pub fn next_error_line(&mut self) -> String {
        self.stderr.next_line().unwrap_or_else(|| panic!("{} has written no further line to stderr", self.what))
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid()), signal).unwrap();
    }

    /// Kills it at once.
    pub fn kill9(&self) {
        self.signal(Signal::SIGKILL);
    }

    /// Waits for its end, and until nobody holds its output open any more: a dispatcher left behind must not.
    ///
    /// # Panics
    /// That takes longer than [`COMMAND_TIMEOUT`].
    #[must_use]
    pub fn wait(self) -> Run {
        self.wait_at_most(COMMAND_TIMEOUT)
    }

    /// The same with another time limit.
    ///
    /// # Panics
    /// It takes longer.
    #[must_use]
    pub fn wait_at_most(mut self, patience: Duration) -> Run {
        let deadline = self.started + patience;
        let mut ended = None;
        wait::until(patience, || {
            ended = self.child.try_wait().unwrap();
            ended.is_some()
        });
        let Some(status) = ended else {
            self.kill9();
            let stderr = String::from_utf8_lossy(&self.stderr.bytes).into_owned();
            panic!("{} has not ended after {patience:?}; stderr so far: {stderr}", self.what);
        };
        let last = deadline.max(Instant::now() + Duration::from_secs(1));
        for (output, name) in [(&mut self.stdout, "stdout"), (&mut self.stderr, "stderr")] {
            assert!(output.read_to_end(last), "{} has ended, but somebody holds its {name} open", self.what);
        }
        let [stdout, stderr] = [&mut self.stdout, &mut self.stderr].map(|output| std::mem::take(&mut output.bytes));
        Run { what: self.what.clone(), status, stdout, stderr, took: self.started.elapsed() }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

impl Run {
    /// Its exit status.
    ///
    /// # Panics
    /// A signal ended it.
    #[must_use]
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or_else(|| panic!("{}: {}", self.what, self.status))
    }

    /// What it wrote to stdout, as text.
    #[must_use]
    pub fn out(&self) -> String {
        String::from_utf8(self.stdout.clone()).unwrap_or_else(|_| panic!("{}: stdout is not UTF-8: {:?}", self.what, self.stdout))
    }

    /// What it wrote to stderr, as text.
    #[must_use]
    pub fn err(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// Itself, if its exit status is 0.
    ///
    /// # Panics
    /// It is not.
    #[must_use]
    pub fn ok(self) -> Self {
        self.expect(0)
    }

    /// Itself, if its exit status is `code`.
    ///
    /// # Panics
    /// It is not.
    #[must_use]
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(self.status.code(), Some(code), "{}: {}\nstdout: {}\nstderr: {}", self.what, self.status, self.lossy(), self.err());
        self
    }

    /// What it wrote to stdout, as one JSON document.
    ///
    /// # Panics
    /// It is none.
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.stdout)
            .unwrap_or_else(|error| panic!("{}: {error}\nstdout: {}\nstderr: {}", self.what, self.lossy(), self.err()))
    }

    /// What it wrote to stdout, as a JSON document a line.
    ///
    /// # Panics
    /// A line is none.
    #[must_use]
    pub fn json_lines(&self) -> Vec<serde_json::Value> {
        let parse = |line: &str| serde_json::from_str(line).unwrap_or_else(|error| panic!("{}: {error}: {line}", self.what));
        self.out().lines().map(parse).collect()
    }

    fn lossy(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}

impl Output {
    /// The next line, unless none comes within [`COMMAND_TIMEOUT`].
    fn next_line(&mut self) -> Option<String> {
        let deadline = Instant::now() + COMMAND_TIMEOUT;
        loop {
            let line = self.take_line();
            if line.is_some() || !self.read(deadline) {
                return line;
            }
        }
    }

    /// Takes in what comes next; `false` if nothing does until `deadline`.
    fn read(&mut self, deadline: Instant) -> bool {
        let chunk = self.chunks.recv_timeout(deadline.saturating_duration_since(Instant::now()));
        chunk.map(|chunk| self.bytes.extend(chunk)).is_ok()
    }

    /// Takes in all until the stream is closed; `false` if it is not at `deadline`.
    fn read_to_end(&mut self, deadline: Instant) -> bool {
        loop {
            match self.chunks.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(chunk) => self.bytes.extend(chunk),
                Err(error) => return error == RecvTimeoutError::Disconnected,
            }
        }
    }

    fn take_line(&mut self) -> Option<String> {
        let rest = &self.bytes[self.taken..];
        let end = rest.iter().position(|byte| *byte == b'\n')?;
        let line = String::from_utf8_lossy(&rest[..end]).into_owned();
        self.taken += end + 1;
        Some(line)
    }
}

/// Reads `stream` to its end in a thread of its own.
fn collect(stream: Option<impl Read + Send + 'static>) -> Output {
    let (sender, chunks) = channel();
    std::thread::spawn(move || {
        let Some(mut stream) = stream else { return };
        let mut chunk = vec![0; 64 * 1024];
        while let Ok(count @ 1..) = stream.read(&mut chunk) {
            if sender.send(chunk[..count].to_vec()).is_err() {
                return;
            }
        }
    });
    Output { chunks, bytes: Vec::new(), taken: 0 }
}
