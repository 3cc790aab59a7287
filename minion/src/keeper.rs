//! The keeper: where root starts a minion whose server is another user, it starts both parts, the spawner as root and the server, which
//! becomes its user at once; it starts a spawner that died again, and ends with the server.
//!
//! It has one thread, no port, no socket and no file. All that it hears are signals, the ends of its two children, and one word of the
//! spawner's.

mod spawner;

use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitCode, ExitStatus, Stdio};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::SignalFd;
use nix::unistd::{Pid, getppid, setsid};
use tracing::{error, info};

use crate::process::{self, ThreadError};
use crate::spawner::signal_fd;
use spawner::{Kept, News};

/// What a shell adds to the number of the signal that ended a process.
const KILLED_BASE: i32 = 128;

/// Why there is nothing to keep any more.
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    /// It has threads.
    #[error(transparent)]
    Threads(#[from] ThreadError),
    /// The kernel refuses signals or waiting.
    #[error("the kernel refuses: {0}")]
    Kernel(#[from] Errno),
    /// A part cannot be executed or waited for.
    #[error("the {part} of the minion cannot be started: {source}")]
    Start {
        /// Which.
        part: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The first spawner did not listen.
    #[error("the spawner did not start ({0}); what it wrote says why")]
    NoSpawner(String),
    /// Whoever started this server has ended.
    #[error("the keeper of this server, process {0}, is gone; `minion serve` starts both")]
    NoKeeper(i32),
}

/// Runs the minion of the configuration file `config` until its server ends; gives the server's exit status, or 128 and the number of the
/// signal that killed it.
///
/// # Errors
/// A part does not start, or the kernel refuses to go on. Then neither part runs any more.
pub fn keep(config: &Path) -> Result<ExitCode, KeeperError> {
    process::require_single_thread()?;
    process::hear_of_children()?;
    let signals = signal_fd(&[Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT])?;
    let spawner = Kept::start(config).map_err(|source| KeeperError::Start { part: "spawner", source })?;
    let mut keeper = Keeper { config: config.to_owned(), signals, spawner, server: None };
    let ended = loop {
        match keeper.turn() {
            Ok(None) => {}
            Ok(Some(code)) => break Ok(code),
            Err(error) => break Err(error),
        }
    };
    keeper.end();
    ended
}

/// What a server does first that the keeper with the process number `keeper` has started: from now on it dies with the keeper, and has no
/// terminal in common with root, into which it could type.
///
/// # Errors
/// The keeper has ended already, or the kernel refuses.
pub fn bind_to(keeper: i32) -> Result<(), KeeperError> {
    set_pdeathsig(Signal::SIGKILL)?;
    if getppid().as_raw() != keeper {
        return Err(KeeperError::NoKeeper(keeper));
    }
    setsid()?;
    // The keeper hears its signals in a way of its own, and what it starts has them blocked.
    Ok(SigSet::all().thread_unblock()?)
}

struct Keeper {
    config: PathBuf,
    signals: SignalFd,
    spawner: Kept,
    /// None until the first spawner listens.
    server: Option<Child>,
}

impl Keeper {
    /// Waits for the next thing to happen, and does what follows; the exit status, when all is over.
    fn turn(&mut self) -> Result<Option<ExitCode>, KeeperError> {
        let spawner_said = self.wait()?;
        if self.pass_signals_on() {
            return Ok(Some(ExitCode::SUCCESS));
        }
        if let Some(status) = self.server.as_mut().map_or(Ok(None), Child::try_wait).map_err(failed("server"))? {
            return Ok(Some(exit_code(status)));
        }
        match self.spawner.look(spawner_said) {
            News::None => {}
            News::Listens if self.server.is_some() => info!("the spawner listens again"),
            News::Listens => self.server = Some(start_server(&self.config).map_err(failed("server"))?),
            News::Died(why) if self.server.is_none() => return Err(KeeperError::NoSpawner(why)),
            News::Died(why) => error!(why, "the spawner has died and is started again; jobs that run go on"),
        }
        Ok(None)
    }

    /// Until there is a signal, a word of the spawner's, or something to be done for it. Whether it has spoken.
    fn wait(&self) -> Result<bool, KeeperError> {
        let mut fds = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
        fds.extend(self.spawner.voice().map(|voice| PollFd::new(voice, PollFlags::POLLIN)));
        let due_in = self.spawner.due_in().map_or(PollTimeout::NONE, |due_in| due_in.try_into().unwrap_or(PollTimeout::MAX));
        match poll(&mut fds, due_in) {
            Ok(_) => Ok(fds.get(1).and_then(PollFd::any).unwrap_or(false)),
            Err(Errno::EINTR) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Tells the server to stop when we are told; all else follows from its end. True: there is no server yet.
    fn pass_signals_on(&mut self) -> bool {
        while let Ok(Some(signal)) = self.signals.read_signal() {
            let signal = i32::try_from(signal.ssi_signo).ok().and_then(|number| Signal::try_from(number).ok());
            let Some(signal) = signal.filter(|signal| *signal != Signal::SIGCHLD) else { continue };
            // The number is still its own: it is our child, and we have not waited for it.
            let Some(server) = self.server.as_ref().and_then(|server| i32::try_from(server.id()).ok()) else { return true };
            let _has_ended = kill(Pid::from_raw(server), signal);
        }
        false
    }

    /// Neither part outlives us.
    fn end(mut self) {
        if let Some(mut server) = self.server.take() {
            let _has_ended = server.kill().and_then(|()| server.wait());
        }
        self.spawner.end(&self.signals);
    }
}

fn start_server(config: &Path) -> io::Result<Child> {
    process::own_command(config).args(["serve", "--keeper", &std::process::id().to_string()]).stdin(Stdio::null()).spawn()
}

fn failed(part: &'static str) -> impl FnOnce(io::Error) -> KeeperError {
    move |source| KeeperError::Start { part, source }
}

fn exit_code(status: ExitStatus) -> ExitCode {
    let number = status.code().unwrap_or_else(|| KILLED_BASE + status.signal().unwrap_or_default());
    if status.code().is_none() {
        error!(%status, "the server has died, and the minion ends; jobs that run go on");
    }
    ExitCode::from(u8::try_from(number).unwrap_or(u8::MAX))
}
