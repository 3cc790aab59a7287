//! `command.run`: starts the command, copies what it writes, stops it at its timeout.
//!
//! It runs in a process of its own with one thread, so it waits by poll(2) for everything at once: the two streams, the command's end,
//! and its hunger for input. What a grandchild left in the background still holds open keeps nobody waiting.

use std::io::{self, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, ChildStdin, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use common::outcome::{ErrorCode, Failure};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;
use serde_json::{Map, Value, json};

use super::super::{Context, beginning};
use super::Run;
use super::capture::{self, Capture};

/// What is read at once: as much as a pipe holds.
const CHUNK_BYTES: usize = 64 * 1024;
/// The most that is read of a stream after the command has ended: the largest pipe an unprivileged process may have (pipe(7)).
const DRAIN_MAX_BYTES: usize = 1024 * 1024;
/// From SIGTERM to SIGKILL when the command's own timeout has passed.
const STOP_GRACE: Duration = Duration::from_secs(2);
/// How long a command that was sent SIGKILL may take to die. What lives on is another user's, by a program that is setuid; or it waits in the
/// kernel. Who supervises this process kills it, as root, once this process has ended.
const DEATH_GRACE: Duration = Duration::from_secs(1);
/// How often a command is looked at on a kernel without pidfd_open (before Linux 5.3).
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// What a result needs beside the two streams: rc, signal, cut, and the message and the frame of a failure.
const FRAME_MAX_BYTES: usize = 4096;
/// How much of the last line of stderr stands in a failure's message.
const REASON_MAX_LETTERS: usize = 200;

/// Runs the command to its end. What it writes is copied to this process's own stdout and stderr as it comes: a job keeps that.
pub(super) fn run(args: Run, context: &Context<'_>) -> Result<Value, Failure> {
    run_copying(args, context, [Box::new(io::stdout()), Box::new(io::stderr())])
}

fn run_copying(args: Run, context: &Context<'_>, copies: [CopyTo; 2]) -> Result<Value, Failure> {
    let child = start(&args)?;
    let watched = Session::new(child, args.stdin, copies, context.result_max_bytes).and_then(|mut session| {
        let stopping = session.watch(args.timeout)?;
        session.finish(stopping).map(|status| (session, stopping, status))
    });
    let (session, stopping, status) = watched.map_err(|error| {
        Failure::new(ErrorCode::Internal, format!("{} was started, and can be watched no longer: {error}", args.program))
    })?;
    let result = session.result(status, context.result_max_bytes);
    match (stopping, args.timeout) {
        (Stopping::Not, _) | (_, None) if status.success() => Ok(Value::Object(result)),
        (Stopping::Not, _) | (_, None) => Err(Failure::new(ErrorCode::ExitStatus, session.reason(status)).with_data(Value::Object(result))),
        (Stopping::Asked { .. } | Stopping::Forced { .. } | Stopping::Left, Some(timeout)) => {
            let mut data = Map::from_iter([("type".to_owned(), json!("timeout"))]);
            data.extend(result);
            let message = format!("stopped with all that it started: its timeout of {timeout:?} had passed");
            Err(Failure::new(ErrorCode::Failed, message).with_data(Value::Object(data)))
        }
    }
}

fn start(args: &Run) -> Result<Child, Failure> {
    let mut command = std::process::Command::new(&args.program);
    command.args(&args.arguments).envs(&args.env).process_group(0);
    if let Some(cwd) = &args.cwd {
        command.current_dir(cwd);
    }
    command.stdin(if args.stdin.is_empty() { Stdio::null() } else { Stdio::piped() });
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().map_err(|error| {
        // The kernel's word for a folder that is not there and a program that is not there is the same.
        let no_folder = args.cwd.as_ref().filter(|cwd| !cwd.is_dir());
        let place = no_folder.map(|cwd| format!(" in {}, which is no folder", beginning(cwd.display()))).unwrap_or_default();
        Failure::of_kind("not_started", format!("cannot start {:?}{place}: {error}", beginning(&args.program)))
    })
}

/// How far the stopping of a command is whose timeout has passed.
#[derive(Debug, Clone, Copy)]
enum Stopping {
    Not,
    Asked {
        kill_at: Instant,
    },
    Forced {
        leave_at: Instant,
    },
    /// It did not die, and is left to who supervises this process.
    Left,
}

/// Where a stream is copied to.
type CopyTo = Box<dyn AsFd>;

/// A stream of the command.
struct Stream {
    pipe: Option<OwnedFd>,
    capture: Capture,
    /// None once it could not be written.
    copy: Option<CopyTo>,
}

/// A running command.
struct Session {
    child: Child,
    pid: Pid,
    /// Becomes readable when the command ends.
    end: Option<OwnedFd>,
    input: Option<(ChildStdin, Vec<u8>)>,
    streams: [Stream; 2],
    keep_max_bytes: usize,
    chunk: Vec<u8>,
}

impl Session {
    fn new(mut child: Child, input: Vec<u8>, copies: [CopyTo; 2], keep_max_bytes: usize) -> io::Result<Self> {
        let raw = i32::try_from(child.id()).map_err(io::Error::other)?;
        let end =
            rustix::process::Pid::from_raw(raw).and_then(|pid| rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).ok());
        let [stdout_copy, stderr_copy] = copies;
        let stdout = Stream::new(child.stdout.take().map(OwnedFd::from), stdout_copy)?;
        let stderr = Stream::new(child.stderr.take().map(OwnedFd::from), stderr_copy)?;
        let input = child.stdin.take().map(|pipe| (pipe, input));
        if let Some((pipe, _)) = &input {
            make_nonblocking(pipe.as_fd())?;
        }
        let streams = [stdout, stderr];
        Ok(Self { child, pid: Pid::from_raw(raw), end, input, streams, keep_max_bytes, chunk: vec![0; CHUNK_BYTES] })
    }

    /// Until the command itself has ended. It is not reaped yet, so its process group cannot be a stranger's.
    fn watch(&mut self, timeout: Option<Duration>) -> io::Result<Stopping> {
        let mut deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let mut stopping = Stopping::Not;
        while !self.has_ended()? {
            if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                stopping = self.stop(stopping);
                deadline = match stopping {
                    Stopping::Asked { kill_at: at } | Stopping::Forced { leave_at: at } => Some(at),
                    Stopping::Not => None,
                    Stopping::Left => break,
                };
            }
            self.wait_for_something(deadline)?;
            self.feed();
            for stream in &mut self.streams {
                stream.read_once(&mut self.chunk, self.keep_max_bytes);
            }
        }
        Ok(stopping)
    }

    fn has_ended(&self) -> io::Result<bool> {
        match waitid(Id::Pid(self.pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT) {
            Ok(WaitStatus::StillAlive) | Err(Errno::EINTR) => Ok(false),
            // The second of a death by a signal that has no name here.
            Ok(_) | Err(Errno::EINVAL) => Ok(true),
            Err(error) => Err(error.into()),
        }
    }

    fn stop(&self, stopping: Stopping) -> Stopping {
        let (signal, next) = match stopping {
            Stopping::Not => (Signal::SIGTERM, Stopping::Asked { kill_at: Instant::now() + STOP_GRACE }),
            Stopping::Asked { .. } => (Signal::SIGKILL, Stopping::Forced { leave_at: Instant::now() + DEATH_GRACE }),
            Stopping::Forced { .. } | Stopping::Left => (Signal::SIGKILL, Stopping::Left),
        };
        self.signal(signal);
        next
    }

    fn signal(&self, signal: Signal) {
        // Refused where the whole group has ended, or is another user's.
        let _ = killpg(self.pid, signal);
    }

    fn wait_for_something(&self, deadline: Option<Instant>) -> io::Result<()> {
        let mut wanted = Vec::with_capacity(4);
        wanted.extend(self.end.as_ref().map(|end| PollFd::new(end.as_fd(), PollFlags::POLLIN)));
        wanted.extend(self.input.as_ref().map(|(pipe, _)| PollFd::new(pipe.as_fd(), PollFlags::POLLOUT)));
        wanted
            .extend(self.streams.iter().filter_map(|stream| stream.pipe.as_ref()).map(|pipe| PollFd::new(pipe.as_fd(), PollFlags::POLLIN)));
        let until_deadline = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let look = self.end.is_none().then_some(LOOK_EVERY);
        let wait = until_deadline.into_iter().chain(look).min();
        // One millisecond more: poll counts whole ones, and would spin through the last.
        let wait = wait.map_or(PollTimeout::NONE, |wait| PollTimeout::try_from(wait.as_millis() + 1).unwrap_or(PollTimeout::MAX));
        match poll(&mut wanted, wait) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Gives the command as much of its input as it takes now. A command that reads no more of it has closed the pipe: Rust programs
    /// ignore SIGPIPE.
    fn feed(&mut self) {
        let Some((pipe, input)) = &mut self.input else { return };
        match pipe.write(input) {
            Ok(length) if length < input.len() => drop(input.drain(..length)),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Ok(_) | Err(_) => self.input = None,
        }
    }

    /// Takes what is still in the pipes, without waiting for more, and reaps the command. If its timeout had passed, nothing of its process
    /// group is left behind.
    fn finish(&mut self, stopping: Stopping) -> io::Result<ExitStatus> {
        match stopping {
            Stopping::Not => {}
            Stopping::Asked { .. } | Stopping::Forced { .. } | Stopping::Left => self.signal(Signal::SIGKILL),
        }
        for stream in &mut self.streams {
            let mut drained = 0;
            while drained < DRAIN_MAX_BYTES {
                match stream.read_once(&mut self.chunk, self.keep_max_bytes) {
                    0 => break,
                    length => drained += length,
                }
            }
        }
        match stopping {
            // Nobody hears of this before it is true.
            Stopping::Left => Ok(ExitStatus::from_raw(Signal::SIGKILL as i32)),
            Stopping::Not | Stopping::Asked { .. } | Stopping::Forced { .. } => self.child.wait(),
        }
    }

    /// `{"rc", "stdout", "stderr"}`, and `signal` and `cut` where there is reason to.
    fn result(&self, status: ExitStatus, result_max_bytes: usize) -> Map<String, Value> {
        let [stdout, stderr] = &self.streams;
        let mut result = Map::from_iter([("rc".to_owned(), json!(rc(status)))]);
        result.extend(capture::fields(&stdout.capture, &stderr.capture, result_max_bytes.saturating_sub(FRAME_MAX_BYTES)));
        result.extend(status.signal().map(|signal| ("signal".to_owned(), json!(signal))));
        result
    }

    /// In a line: how it ended, and the last that it said of it.
    fn reason(&self, status: ExitStatus) -> String {
        let [_, stderr] = &self.streams;
        let ending = match status.signal() {
            Some(signal) => {
                let name = Signal::try_from(signal).map_or_else(|_| format!("signal {signal}"), |signal| signal.to_string());
                format!("killed by {name}")
            }
            None => format!("exit status {}", rc(status)),
        };
        match stderr.capture.last_line() {
            line if line.is_empty() => ending,
            line => format!("{ending}: {}", line.chars().take(REASON_MAX_LETTERS).collect::<String>()),
        }
    }
}

/// The status as a shell would have it in `$?`.
fn rc(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default())
}

impl Stream {
    fn new(pipe: Option<OwnedFd>, copy: CopyTo) -> io::Result<Self> {
        if let Some(pipe) = &pipe {
            make_nonblocking(pipe.as_fd())?;
        }
        Ok(Self { pipe, capture: Capture::default(), copy: Some(copy) })
    }

    /// Reads what is there now, up to a chunk; gives how much. At the stream's end the pipe is closed.
    fn read_once(&mut self, chunk: &mut [u8], keep_max_bytes: usize) -> usize {
        let Some(pipe) = &self.pipe else { return 0 };
        match nix::unistd::read(pipe, chunk) {
            Ok(length) if length > 0 => {
                let bytes = chunk.get(..length).unwrap_or_default();
                self.capture.add(bytes, keep_max_bytes);
                self.copy_through(bytes);
                length
            }
            Err(Errno::EAGAIN | Errno::EINTR) => 0,
            Ok(_) | Err(_) => {
                self.pipe = None;
                0
            }
        }
    }

    /// Whoever reads along may stop reading; the result does not depend on it.
    fn copy_through(&mut self, mut bytes: &[u8]) {
        while let Some(copy) = &self.copy
            && !bytes.is_empty()
        {
            match nix::unistd::write(copy.as_fd(), bytes) {
                Ok(length) => bytes = bytes.get(length..).unwrap_or_default(),
                Err(Errno::EINTR) => {}
                Err(_) => self.copy = None,
            }
        }
    }
}

fn make_nonblocking(pipe: BorrowedFd<'_>) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(pipe, FcntlArg::F_GETFL)?);
    fcntl(pipe, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

#[cfg(test)]
mod tests;
