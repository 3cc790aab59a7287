//! The spawner: a small process with one thread that forks what runs methods. It holds neither a port nor a store, and each of its
//! children serves one order of the server: a synchronous call, the start of a job, a word to a job; or any number that only look. Who
//! asks for what is looked at again here (`verify`): the server is believed in nothing that does something.
//!
//! Without systemd the server starts it, or as root for a server of another user the keeper, and it ends with the server; under systemd it is
//! a unit of its own, as root.

mod claims;
mod client;
mod daemon;
mod ledger;
mod look;
mod order;
mod serve;
mod socket;
mod token;
mod verify;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use certs::callers::Callers;
use common::identity::MinionName;
use common::outcome::{ErrorCode, Failure};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::{Pid, geteuid};
use tracing::warn;

use crate::acl::Acl;
use crate::config::Config;
use crate::folders::{self, FolderError};
use crate::guard::Guard;
use crate::modules::Registry;
use crate::process::{self, ThreadError};
use crate::server_user::own_name;
use crate::service_manager::{self, SignsOfLife};
use crate::spool;
use crate::supervise::{Cgroups, Station};
use crate::worker::launch::Launcher;

use socket::Socket;

use claims::{Claimant, Claims};
pub use client::{SpawnError, Spawner};
use ledger::Ledger;
pub use order::{LogsOrder, Look, Order, PROTOCOL, Place, Reply};
use token::Tokens;

/// The newest revocation list that the spawner has seen, beside the spools: the server's own is the server's.
const REVOCATIONS: &str = "crl.pem";

/// Where packages of the minion lie, which are root's as the spools are.
const PACKAGES: &str = "packages";

/// What the spawner prints when it listens, for whoever started it.
pub(crate) const READY: &[u8] = b"ready\n";

/// A draft of a spool that is older than this belongs to a child that died.
const DRAFT_AGE: Duration = Duration::from_secs(600);

/// Connections that are taken before it is looked again who else waits.
const ACCEPTED_AT_ONCE: usize = 16;

/// Children beyond `limits.calls_max`: orders that run nothing, and starts that are under way.
const SPARE_CHILDREN: usize = 64;

/// Why the spawner could not start, or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum SpawnerError {
    /// It has threads.
    #[error(transparent)]
    Threads(#[from] ThreadError),
    /// The folder of the spools, or the one around it, is not as it must be.
    #[error(transparent)]
    Folders(#[from] FolderError),
    /// Another spawner listens.
    #[error("{path} is another spawner's, which lives: another minion runs with this state_dir")]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// Its socket cannot be made.
    #[error("listening on {path}: {source}")]
    Listen {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The kernel refuses signals or waiting.
    #[error("the kernel refuses: {0}")]
    Kernel(#[from] Errno),
    /// There is nothing to make secrets of.
    #[error("making the key of the jobs' tokens: {0}")]
    Random(std::io::Error),
    /// The boot id cannot be read.
    #[error("reading the boot id: {0}")]
    BootId(std::io::Error),
}

/// How the spawner came to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The server started it, or the keeper of both, and holds the other end of its stdin: when that ends, the spawner ends too.
    Server,
    /// A unit of its own.
    Unit,
}

/// What the spawner's children know.
#[derive(Debug)]
struct Post {
    station: Station,
    spools: PathBuf,
    server_socket: PathBuf,
    boot_id: String,
    /// The hosts that this one is: one, but where a fleet is simulated.
    names: BTreeSet<MinionName>,
    guard: Guard,
    tokens: Tokens,
    callers: RefCell<Callers>,
    ledger: Ledger,
}

impl Post {
    fn new(config: &Config, names: BTreeSet<MinionName>) -> Result<Self, SpawnerError> {
        let (spools, limits) = (config.spool_dir(), &config.limits);
        let (ca, crl) = (config.certs_dir.join("ca.pem"), config.certs_dir.join("crl.pem"));
        let stale = config.trust.stale_crl;
        // Whoever else could write what root goes by would be root. Without root everything is one user's anyway.
        let is_root = geteuid().is_root();
        let owner = is_root.then(|| geteuid().as_raw());
        let callers = Callers::open(ca, crl, spools.join(REVOCATIONS), stale, owner, |trouble| tracing::error!("{trouble}"));
        let registry = Arc::new(Registry::builtin());
        let acl = Arc::new(if is_root { Acl::open_owned(&config.acl_dir) } else { Acl::open(&config.acl_dir) });
        let (call_time_max, job_time_max) = (limits.call_time_max, limits.job_time_max);
        Ok(Self {
            station: Station {
                minion: config.name.clone(),
                registry: Arc::clone(&registry),
                limits: limits.clone(),
                cgroups: Cgroups::delegated(),
                packages: spools.join(PACKAGES),
                submit_socket: config.submit_socket(),
                workers: config.workers(),
            },
            ledger: Ledger { spools: spools.clone(), rotation: config.audit },
            tokens: Tokens::open(&spools).map_err(SpawnerError::Random)?,
            spools,
            server_socket: config.server_socket(),
            boot_id: spool::boot_id().map_err(SpawnerError::BootId)?,
            names,
            guard: Guard { acl, registry, call_time_max, job_time_max },
            callers: RefCell::new(callers),
        })
    }

    /// Takes in what has changed on disk of what calls are verified by.
    fn refresh(&self) {
        self.callers.borrow_mut().refresh();
        self.guard.acl.refresh();
    }
}

/// Serves orders until told to stop, on the host that has these `names`: its own, but where a fleet is simulated. What runs then goes on.
///
/// # Errors
/// It cannot start, or the kernel refuses to go on.
pub fn run(config: &Config, names: BTreeSet<MinionName>, origin: Origin) -> Result<(), SpawnerError> {
    process::require_single_thread()?;
    process::hear_of_children()?;
    tell_rights(config);
    folders::prepare(config)?;
    let post = Post::new(config, names)?;
    let claims = Claims::open(&post.spools);
    let signals = signal_fd(&[Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT])?;
    let socket = Socket::listen(config, origin)?;
    let launcher = Launcher::new(config.workers(), &config.file);
    let mut spawner =
        Loop { post, claims, signals, socket, origin, signs: SignsOfLife::begin(), children: BTreeMap::new(), launcher, launching: None };
    spawner.announce();
    service_manager::ready("starts what callers ask for");
    spawner.sweep();
    while spawner.turn()? {}
    Ok(())
}

/// A spawner of whoever executes it, who is told by its stdout when it listens, and holds its stdin until it is to end.
pub(crate) fn command(config: &Path) -> Command {
    let mut command = process::own_command(config);
    command.args(["spawner", "--of-server"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    command
}

/// Says what a spawner that is not root means for what runs here.
fn tell_rights(config: &Config) {
    if geteuid().is_root() {
        return;
    }
    let own = own_name();
    warn!("this minion is not started as root: every method and every job runs as {own}, and may do what {own} may");
    if let Some(user) = config.user.as_ref().filter(|user| user.uid() != geteuid().as_raw()) {
        warn!(
            "{} says `user = \"{}\"`, which holds where root starts the minion: the server, too, runs as {own}",
            config.file.display(),
            user.name()
        );
    }
}

/// Blocks `signals` and makes them readable.
///
/// # Errors
/// The kernel refuses.
pub(crate) fn signal_fd(signals: &[Signal]) -> nix::Result<SignalFd> {
    let set: SigSet = signals.iter().copied().collect();
    set.thread_block()?;
    SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
}

struct Loop {
    post: Post,
    claims: Claims,
    signals: SignalFd,
    socket: Socket,
    origin: Origin,
    signs: SignsOfLife,
    /// Each with the way by which it may ask whether a call was run before, until it has closed that.
    children: BTreeMap<Pid, Option<UnixStream>>,
    launcher: Launcher,
    /// The process in which it looks.
    launching: Option<Pid>,
}

impl Loop {
    fn announce(&self) {
        if self.origin == Origin::Server {
            // If nobody reads it, the server is gone, and the next turn sees the end of stdin.
            let _nobody_listens = std::io::stdout().write_all(READY).and_then(|()| std::io::stdout().flush());
        }
    }

    /// Sweeps up in a process of its own: there may be a hundred thousand spools to look through.
    fn sweep(&mut self) {
        let spools = &self.post.spools;
        if let Ok((child, ())) = process::fork_with((), |()| {
            self.close_inherited(None);
            u8::from(spool::sweep(spools, DRAFT_AGE).is_err())
        }) {
            self.children.insert(child, None);
        }
    }

    /// Has daemons of workers started that are not there, by a process of its own: it waits for locks and reads files.
    fn launch(&mut self) {
        let still_looks = self.launching.is_some_and(|child| self.children.contains_key(&child));
        if !self.launcher.is_due() || still_looks {
            return;
        }
        let launcher = &self.launcher;
        if let Ok((child, ())) = process::fork_with((), |()| {
            self.close_inherited(None);
            u8::from(launcher.look().inspect_err(|error| warn!(%error, "workers cannot be started")).is_err())
        }) {
            self.launching = Some(child);
            self.children.insert(child, None);
        }
    }

    /// Serves what has come; `false` when it is time to stop.
    fn turn(&mut self) -> Result<bool, SpawnerError> {
        self.signs.give();
        self.launch();
        let stdin = std::io::stdin();
        let [mut connected, mut signalled, mut abandoned] = [false; 3];
        let mut fds = vec![PollFd::new(self.socket.as_fd(), PollFlags::POLLIN), PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
        if self.origin == Origin::Server {
            fds.push(PollFd::new(stdin.as_fd(), PollFlags::POLLIN));
        }
        let own = fds.len();
        let (asking, ways): (Vec<Pid>, Vec<&UnixStream>) =
            self.children.iter().filter_map(|(child, way)| Some((*child, way.as_ref()?))).unzip();
        fds.extend(ways.into_iter().map(|way| PollFd::new(way.as_fd(), PollFlags::POLLIN)));
        let mut asked = Vec::new();
        let due_in = self.launcher.due_in();
        let within = self.signs.every().map_or(due_in, |every| every.min(due_in));
        let within = PollTimeout::try_from(within.as_millis().saturating_add(1)).unwrap_or(PollTimeout::MAX);
        match poll(&mut fds, within) {
            Ok(_) => {
                for (news, fd) in [&mut connected, &mut signalled, &mut abandoned].into_iter().zip(fds.iter().take(own)) {
                    *news = fd.any().unwrap_or(false);
                }
                let news = asking.into_iter().zip(fds.iter().skip(own)).filter(|(_, fd)| fd.any().unwrap_or(false));
                asked.extend(news.map(|(child, _)| child));
            }
            Err(Errno::EINTR) => return Ok(true),
            Err(errno) => return Err(errno.into()),
        }
        asked.into_iter().for_each(|child| self.answer(child));
        if signalled && self.hear_signals() || abandoned {
            return Ok(false);
        }
        if connected {
            self.accept();
        }
        Ok(true)
    }

    /// Answers a child that asks whether a call was run before.
    fn answer(&mut self, child: Pid) {
        if let Some(way) = self.children.get_mut(&child)
            && !way.as_ref().is_some_and(|way| self.claims.answer(way))
        {
            *way = None;
        }
    }

    /// Reaps children; `true` if told to stop.
    fn hear_signals(&mut self) -> bool {
        let mut stop = false;
        while let Ok(Some(signal)) = self.signals.read_signal() {
            stop |= i32::try_from(signal.ssi_signo).is_ok_and(|number| number != Signal::SIGCHLD as i32);
        }
        self.reap();
        stop
    }

    fn reap(&mut self) {
        while let Ok(Some((child, _))) = process::dead_child() {
            process::bury(child);
            self.children.remove(&child);
        }
    }

    fn accept(&mut self) {
        // A few at a time: children that ask, and end, wait as well.
        for _ in 0..ACCEPTED_AT_ONCE {
            let Some(server) = self.socket.accept() else { return };
            let limit = self.post.station.limits.calls_max + SPARE_CHILDREN;
            if self.children.len() >= limit {
                self.reap();
            }
            if self.children.len() >= limit {
                let problem = format!("the spawner has {limit} processes under way (limits.calls_max and a reserve); try again");
                refuse(&server, Failure::new(ErrorCode::LimitReached, problem));
                continue;
            }
            self.post.refresh();
            let Ok((claimant, way)) = Claimant::pair() else {
                refuse(&server, no_process(Errno::EMFILE));
                continue;
            };
            match process::fork_with((server, claimant), |(server, claimant)| {
                self.close_inherited(Some(&way));
                serve::serve(&self.post, claimant, server)
            }) {
                Ok((child, _theirs)) => {
                    self.children.insert(child, Some(way));
                }
                Err((errno, (server, _))) => refuse(&server, no_process(errno)),
            }
        }
    }

    /// In a child: lets go of what is the spawner's alone, so that no job keeps its socket open.
    fn close_inherited(&self, way: Option<&UnixStream>) {
        use std::os::fd::AsRawFd as _;
        let ways = self.children.values().flatten().chain(way).map(|way| way.as_raw_fd());
        let file = self.claims.file().map(|file| file.as_raw_fd());
        for fd in ways.chain(file).chain([self.signals.as_fd().as_raw_fd(), self.socket.as_fd().as_raw_fd()]) {
            let _closed_once = nix::unistd::close(fd);
        }
    }
}

fn no_process(errno: Errno) -> Failure {
    Failure::new(ErrorCode::LimitReached, format!("the host cannot make another process: {errno}"))
}

fn refuse(server: &UnixStream, failure: Failure) {
    let reply = Reply::Refused(failure);
    // A server that is gone needs no refusal.
    let _gone = order::send(server, &reply);
}
