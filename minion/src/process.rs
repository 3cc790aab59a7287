//! Forking, and what a process that was forked does with itself. The only file of the minion with `unsafe`, because `fork` and changing one's
//! own environment are sound only in a process with a single thread, which is a promise that no type can make. Whoever comes here keeps it: the
//! spawner, what it forks, the keeper, a worker's daemon, and the server before it starts its threads.

#![allow(unsafe_code, reason = "fork, setenv and _exit are sound here: the process has one thread, which `require_single_thread` checks")]

use std::ffi::OsStr;
use std::os::fd::{AsRawFd, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::process::CommandExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::Command;

use nix::unistd::{ForkResult, Pid};

/// The exit status of a child whose closure panicked; the panic's message went to its stderr.
const PANICKED: u8 = 101;

/// From which number on files are put that are to be in no other's way.
const MOVED_FROM: RawFd = 10;

/// That the process has more than one thread, and so must not fork.
#[derive(Debug, thiserror::Error)]
pub enum ThreadError {
    /// Threads other than the caller's exist.
    #[error("a process that forks must have one thread, and this one has {0}: this is a bug of the minion")]
    NotAlone(usize),
    /// The number of threads could not be read.
    #[error("counting this process's threads in /proc/self/task")]
    Unknown(#[from] std::io::Error),
}

/// Makes sure that this process may fork.
///
/// # Errors
/// It has more than one thread, or `/proc` does not tell.
pub fn require_single_thread() -> Result<(), ThreadError> {
    match std::fs::read_dir("/proc/self/task")?.count() {
        1 => Ok(()),
        count => Err(ThreadError::NotAlone(count)),
    }
}

/// Forks. The child runs `child` with its copy of `state` and exits with the number it gives, running no destructor but the closure's
/// own; the parent gets the child's pid and `state` back.
///
/// # Errors
/// The kernel refuses another process; `state` comes back with its reason.
pub fn fork_with<T>(state: T, child: impl FnOnce(T) -> u8) -> Result<(Pid, T), (nix::Error, T)> {
    // SAFETY: the process has one thread (`require_single_thread` at the spawner's start, and nothing it runs starts another),
    // so no lock can be held by a thread that the child lacks.
    match unsafe { nix::unistd::fork() } {
        Err(errno) => Err((errno, state)),
        Ok(ForkResult::Parent { child }) => Ok((child, state)),
        Ok(ForkResult::Child) => {
            let code = catch_unwind(AssertUnwindSafe(|| child(state))).unwrap_or(PANICKED);
            exit_now(code)
        }
    }
}

/// Lets this process hear of the ends of its children again, where what started it had that turned off.
///
/// # Errors
/// The kernel refuses.
pub fn hear_of_children() -> nix::Result<()> {
    use nix::sys::signal::{SigHandler, Signal, signal};
    // SAFETY: it installs no handler of ours, so nothing can run that is not safe in a handler.
    unsafe { signal(Signal::SIGCHLD, SigHandler::SigDfl) }.map(drop)
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Death {
    /// With this status.
    Exited(i32),
    /// By the signal of this number, which need not have a name: real-time signals have none.
    Killed(i32),
}

impl std::fmt::Display for Death {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match *self {
            Self::Exited(status) => write!(f, "exited with status {status}"),
            Self::Killed(number) => match nix::sys::signal::Signal::try_from(number) {
                Ok(signal) => write!(f, "was killed by {signal}"),
                Err(_) => write!(f, "was killed by signal {number}"),
            },
        }
    }
}

/// A child that has died, and how; none if all live, or there is none. It is not waited for: until [`bury`] its number, and its group's, are its own.
///
/// # Errors
/// `ECHILD`: there is no child.
pub fn dead_child() -> nix::Result<Option<(Pid, Death)>> {
    use nix::errno::Errno;
    use nix::libc;
    let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    loop {
        // SAFETY: zeroes are a valid siginfo_t, and waitid writes no more than one. Of one that it has filled in for a death these fields are set.
        let (looked, pid, code, status) = unsafe {
            let mut found: libc::siginfo_t = std::mem::zeroed();
            let looked = Errno::result(libc::waitid(libc::P_ALL, 0, &raw mut found, options));
            (looked, found.si_pid(), found.si_code, found.si_status())
        };
        match looked {
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
            Ok(_) if pid == 0 => return Ok(None),
            Ok(_) if code == libc::CLD_EXITED => return Ok(Some((Pid::from_raw(pid), Death::Exited(status)))),
            Ok(_) => return Ok(Some((Pid::from_raw(pid), Death::Killed(status)))),
        }
    }
}

/// Waits for a child that is dead.
pub fn bury(pid: Pid) {
    // An error can only be about a signal that has no name: it is gone all the same.
    let _gone = nix::sys::wait::waitpid(pid, Some(nix::sys::wait::WaitPidFlag::WNOHANG));
}

/// Sets a variable for this process and all that it starts.
pub fn set_variable(name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) {
    // SAFETY: one thread, as above, so nobody reads the environment meanwhile.
    unsafe { std::env::set_var(name, value) };
}

/// Takes every variable from this process's environment but those whose name `is_kept`.
pub fn keep_variables(is_kept: impl Fn(&OsStr) -> bool) {
    let others: Vec<_> = std::env::vars_os().map(|(name, _)| name).filter(|name| !is_kept(name)).collect();
    for name in others {
        // SAFETY: one thread, as above.
        unsafe { std::env::remove_var(name) };
    }
}

/// Gives this process a session keyring of its own, an empty one: whoever inherits one possesses the keys in it, whoever it is.
///
/// # Errors
/// The kernel refuses. One that knows no keyrings, or a sandbox that forbids them, has none to leave.
pub fn leave_session_keyring() -> std::io::Result<()> {
    use nix::errno::Errno;
    use nix::libc;
    let anonymous = std::ptr::null::<libc::c_char>();
    // SAFETY: the call reads no memory: without a name the new keyring is anonymous, see keyctl(2).
    match Errno::result(unsafe { libc::syscall(libc::SYS_keyctl, libc::KEYCTL_JOIN_SESSION_KEYRING, anonymous) }) {
        Ok(_) | Err(Errno::ENOSYS | Errno::EPERM) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Closes every file of this process but stdin, stdout, stderr and `kept`, whoever opened it: a child has what its parents had open, and their
/// names for it are not used any more.
///
/// # Errors
/// `/proc` does not tell what is open.
pub fn close_all_but(kept: &[RawFd]) -> std::io::Result<()> {
    let open = std::fs::read_dir("/proc/self/fd")?.map(|entry| Ok(entry?.file_name())).collect::<std::io::Result<Vec<_>>>()?;
    let numbers = open.iter().filter_map(|name| name.to_str()?.parse::<RawFd>().ok());
    for number in numbers.filter(|number| *number > nix::libc::STDERR_FILENO && !kept.contains(number)) {
        // What the folder itself was read by is closed already.
        let _closed = nix::unistd::close(number);
    }
    Ok(())
}

/// The same file under another number, of `MOVED_FROM` or above, which nothing that is executed inherits: out of the way of [`open_as`].
///
/// # Errors
/// The kernel refuses one more.
pub fn move_away(file: OwnedFd) -> std::io::Result<OwnedFd> {
    use nix::fcntl::{FcntlArg, fcntl};
    let number = fcntl(&file, FcntlArg::F_DUPFD_CLOEXEC(MOVED_FROM))?;
    drop(file);
    // SAFETY: the kernel has just made it, and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// The file under the number `number`, which whatever is executed inherits. What had that number is closed: nothing that is used any more may.
///
/// # Errors
/// The kernel refuses.
pub fn open_as(number: RawFd, file: OwnedFd) -> std::io::Result<OwnedFd> {
    let file = move_away(file)?;
    // SAFETY: dup2 reads no memory; whose number it was is the caller's promise.
    nix::Error::result(unsafe { nix::libc::dup2(file.as_raw_fd(), number) })?;
    // SAFETY: the number is the new file's, and ours alone.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// This program, to be executed afresh with the configuration `config`: not by its path, which an upgrade may have taken away.
#[must_use]
pub fn own_command(config: &Path) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.arg0("minion").arg("--config").arg(config);
    command
}

fn exit_now(code: u8) -> ! {
    // SAFETY: _exit runs no handlers, which belong to the parent; it is always sound.
    unsafe { nix::libc::_exit(i32::from(code)) }
}
