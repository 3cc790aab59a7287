//! The double fork: work that goes on behind the command that began it. The only `unsafe` of the program.
//!
//! It must be called before any thread exists, and refuses otherwise: of several threads only the one that forks lives on, and
//! what the others held locked stays locked.

#![allow(unsafe_code, reason = "there is no safe fork; the process has one thread, so every lock and allocation is as after a call")]

use std::fs;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, chdir, close, dup2_stderr, dup2_stdin, dup2_stdout, fork, setsid};

/// As much as is read of what the work says.
const WORD_MAX_BYTES: usize = 1 << 20;

/// Why there is no word from the work.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DaemonError {
    /// Forking is not safe any more.
    #[error("this process has {0} threads, and forking is safe with one only")]
    Threads(usize),
    /// It could not be started, or not be listened to.
    #[error("starting the dispatcher")]
    Start(#[from] io::Error),
    /// It has not said anything yet.
    #[error("the dispatcher has said nothing for {0:?}, and may still be at work: look at `overlord job-list`")]
    Silent(Duration),
    /// It has said more than is read.
    #[error("the dispatcher said more than {WORD_MAX_BYTES} bytes, and may still be at work: look at `overlord job-list`")]
    TooLong,
    /// It is gone.
    #[error("the dispatcher died before it could say what it did: look at `overlord job-list`")]
    Died,
}

/// Where the work says one thing to the command that began it.
pub(crate) struct Word(PipeWriter);

impl Word {
    /// Says it. The command may be gone, which is no reason for the work to stop. What is done from here on holds no folder of its caller's; until then
    /// relative paths are what the caller means by them.
    pub(crate) fn say(mut self, text: &str) {
        let _it_stays_then = chdir("/");
        let _nobody_listens = self.0.write_all(text.as_bytes());
    }
}

/// Starts `work` in a process of its own that outlives this one, and gives what it says through its [`Word`] within `patience`.
pub(crate) fn detach(patience: Duration, work: impl FnOnce(Word)) -> Result<String, DaemonError> {
    let threads = fs::read_dir("/proc/self/task")?.count();
    if threads != 1 {
        return Err(DaemonError::Threads(threads));
    }
    let (reader, writer) = io::pipe()?;
    // SAFETY: the process has one thread, as was just counted.
    match unsafe { fork() }.map_err(io::Error::from)? {
        ForkResult::Parent { child } => {
            drop(writer);
            check_start(waitpid(child, None).map_err(io::Error::from)?)?;
            listen(reader, patience)
        }
        ForkResult::Child => {
            drop(reader);
            let status = fork_again(writer, work).err().map_or(0, |error| error.raw_os_error().unwrap_or(nix::libc::EIO));
            // SAFETY: `_exit` has no conditions. It leaves alone what the parent registered to be run at its own exit.
            unsafe { nix::libc::_exit(status) }
        }
    }
}

/// The child's exit status is the number of the error that kept it from starting the work.
fn check_start(status: WaitStatus) -> Result<(), DaemonError> {
    match status {
        WaitStatus::Exited(_, 0) => Ok(()),
        WaitStatus::Exited(_, errno) => Err(io::Error::from_raw_os_error(errno).into()),
        other => Err(io::Error::other(format!("its process ended with {other:?}")).into()),
    }
}

/// In the child: leads a session of its own, and forks once more, so that the work leads none and can never get a terminal.
fn fork_again(writer: PipeWriter, work: impl FnOnce(Word)) -> io::Result<()> {
    setsid()?;
    // SAFETY: a child that was just forked has one thread.
    if let ForkResult::Child = unsafe { fork() }? {
        forget_the_parent(writer.as_raw_fd())?;
        // A panic must not unwind into what the parent was doing.
        let worked = catch_unwind(AssertUnwindSafe(|| work(Word(writer))));
        // SAFETY: `_exit` has no conditions. All that the work wrote is in files by now; nothing of the parent's is to be run.
        unsafe { nix::libc::_exit(i32::from(worked.is_err())) }
    }
    Ok(())
}

/// Lets go of the parent's terminal and files: whoever waits for their end must not wait for us.
fn forget_the_parent(keep: RawFd) -> io::Result<()> {
    let null = fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
    dup2_stdin(&null)?;
    dup2_stdout(&null)?;
    dup2_stderr(&null)?;
    let open: Vec<RawFd> = fs::read_dir("/proc/self/fd")?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    for file in open.into_iter().filter(|file| *file > 2 && *file != keep && *file != null.as_raw_fd()) {
        // The listing's own descriptor is among them, and closed by now.
        let _was_closed = close(file);
    }
    Ok(())
}

fn listen(mut reader: PipeReader, patience: Duration) -> Result<String, DaemonError> {
    let deadline = Instant::now() + patience;
    let mut word = Vec::new();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut ready = [PollFd::new(reader.as_fd(), PollFlags::POLLIN)];
        match poll(&mut ready, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)) {
            Ok(0) if left.is_zero() => return Err(DaemonError::Silent(patience)),
            Ok(0) | Err(Errno::EINTR) => continue,
            Ok(_) => {}
            Err(errno) => return Err(io::Error::from(errno).into()),
        }
        let mut bytes = [0; 4096];
        let length = reader.read(&mut bytes)?;
        word.extend(bytes.iter().take(length));
        if word.len() > WORD_MAX_BYTES {
            return Err(DaemonError::TooLong);
        }
        if length == 0 {
            let text = String::from_utf8(word).ok().filter(|text| !text.is_empty());
            return text.ok_or(DaemonError::Died);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;
    use nix::sys::signal::Signal;
    use nix::unistd::Pid;

    fn heard(bytes: usize) -> Result<String, DaemonError> {
        let (reader, mut writer) = io::pipe().unwrap();
        let talker = std::thread::spawn(move || drop(writer.write_all(&vec![b'x'; bytes])));
        let word = listen(reader, Duration::from_secs(20));
        talker.join().unwrap();
        word
    }

    #[test]
    fn a_word_is_heard_whole_or_said_to_be_too_long() {
        assert_eq!(heard(WORD_MAX_BYTES).unwrap().len(), WORD_MAX_BYTES);
        assert!(matches!(heard(WORD_MAX_BYTES + 1), Err(DaemonError::TooLong)));
        assert!(matches!(heard(0), Err(DaemonError::Died)));
    }

    #[test]
    fn what_kept_the_dispatcher_from_starting_is_named() {
        let child = Pid::from_raw(1);
        assert!(check_start(WaitStatus::Exited(child, 0)).is_ok());
        let error = check_start(WaitStatus::Exited(child, nix::libc::EAGAIN)).unwrap_err();
        assert_eq!(crate::chain(&error), "starting the dispatcher: Resource temporarily unavailable (os error 11)");
        assert!(matches!(check_start(WaitStatus::Signaled(child, Signal::SIGKILL, false)), Err(DaemonError::Start(_))));
    }
}
