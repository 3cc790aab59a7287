//! One process that works: started as the worker's user, with a socket of its own, heard, and ended with all that it has started. Which task it has,
//! and when it is to end, is decided elsewhere.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{PermissionsExt as _, lchown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;
use std::time::Instant;

use common::identity::MinionName;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, sigprocmask};
use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;
use nix::unistd::{Pid, dup2_stderr, dup2_stdin, dup2_stdout, geteuid, getpid, getppid, pipe2, setsid};
use serde_json::Value;

use super::config::{Program, Rlimits, WorkerConfig};
use super::daemon::accepted;
use super::desk::SlotId;
use super::log::{OutputLog, Tail};
use super::name::WorkerName;
use super::wire::Wire;
use crate::supervise::{descends, signal_below};
use crate::user::User;
use crate::{process, random, variables};

/// What a shell says of a program that it cannot execute.
const NOT_EXECUTED: u8 = 127;
/// The most connections of one instance at once.
pub(super) const WIRES_MAX: usize = 16;
/// What is read of an output at once, and how often before others have their turn.
const CHUNK_BYTES: usize = 64 * 1024;
const CHUNKS_AT_ONCE: usize = 16;
/// What stands around a payload or a result on its line; and how much longer JSON may write a letter than it is: `\u0001`.
const LINE_MARGIN_BYTES: usize = 4096;
const ESCAPED_BYTES: usize = 6;

/// Where a worker is at home.
#[derive(Debug)]
pub(super) struct Home {
    pub(super) minion: MinionName,
    pub(super) worker: WorkerName,
    /// Its folder, in which its sockets lie.
    pub(super) folder: PathBuf,
}

/// Why an instance is to end, or has.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Ending {
    /// It is replaced, or not wanted any more, and was told so; at that time it is killed.
    Told(Instant),
    /// It was killed for the sake of a task.
    Killed,
    /// It was killed because it is not well.
    Unwell,
}

/// A look at an instance that is under way.
#[derive(Debug)]
pub(super) struct Check {
    pub(super) pid: Pid,
    pub(super) since: Instant,
    output: File,
    said: Tail,
}

/// A process that works.
#[derive(Debug)]
pub(super) struct Instance {
    pub(super) pid: Pid,
    pub(super) started: Instant,
    /// What it was started by.
    pub(super) config: Rc<WorkerConfig>,
    pub(super) user: String,
    pub(super) door: UnixListener,
    pub(super) wires: BTreeMap<u64, Wire>,
    /// It waits for a task: on which connection, and under which id.
    pub(super) fetch: Option<(u64, Value)>,
    /// On which connection it has got the task that it has.
    pub(super) got_on: u64,
    pub(super) has_fetched: bool,
    pub(super) has_returned: bool,
    pub(super) ending: Option<Ending>,
    pub(super) check: Option<Check>,
    pub(super) checked: Instant,
    pub(super) health: Option<Result<(), String>>,
    pub(super) output: Option<File>,
    said: Tail,
    socket: PathBuf,
    wires_made: u64,
}

/// Who an instance, or what looks after it, is to be.
struct Role<'a> {
    home: &'a Home,
    slot: SlotId,
    socket: &'a Path,
    config: &'a WorkerConfig,
    user: Option<&'a User>,
    program: &'a Program,
    /// Of a health check: whom it is about.
    patient: Option<Pid>,
}

impl Instance {
    /// Starts one.
    ///
    /// # Errors
    /// Why not, in words.
    pub(super) fn start(home: &Home, slot: SlotId, config: &Rc<WorkerConfig>) -> Result<Self, String> {
        let user = find_user(config)?;
        let socket = home.folder.join(format!("{slot}-{}.sock", random::word()));
        let door = listen(&socket, user.as_ref()).map_err(|error| format!("its socket {} cannot be made: {error}", socket.display()))?;
        let role = Role { home, slot, socket: &socket, config, user: user.as_ref(), program: &config.command, patient: None };
        let (pid, output) = fork(&role).map_err(|error| {
            let _gone = std::fs::remove_file(&socket);
            format!("no process can be made: {error}")
        })?;
        let user = user.map_or_else(crate::server_user::own_name, |user| user.name().to_owned());
        let output = Some(output);
        Ok(Self { user, output, ..Self::new(pid, config, door, socket) })
    }

    /// One that has said nothing yet.
    pub(super) fn new(pid: Pid, config: &Rc<WorkerConfig>, door: UnixListener, socket: PathBuf) -> Self {
        let now = Instant::now();
        Self {
            pid,
            started: now,
            config: Rc::clone(config),
            user: String::new(),
            door,
            wires: BTreeMap::new(),
            fetch: None,
            got_on: 0,
            has_fetched: false,
            has_returned: false,
            ending: None,
            check: None,
            checked: now,
            health: None,
            output: None,
            said: Tail::default(),
            socket,
            wires_made: 0,
        }
    }

    /// Takes in who connects, if it is itself or a process below it: others of its user could reach its socket, too.
    ///
    /// # Errors
    /// One that waits cannot be taken.
    pub(super) fn accept(&mut self) -> io::Result<()> {
        while let Some(stream) = accepted(&self.door)? {
            let line_max = self.line_max();
            if self.wires.len() < WIRES_MAX
                && self.is_own(&stream)
                && let Ok(wire) = Wire::new(stream, line_max)
            {
                self.wires_made += 1;
                self.wires.insert(self.wires_made, wire);
            }
        }
        Ok(())
    }

    fn is_own(&self, stream: &UnixStream) -> bool {
        let peer = getsockopt(stream, PeerCredentials).map(|peer| peer.pid());
        peer.is_ok_and(|pid| pid == self.pid.as_raw() || descends(pid, self.pid.as_raw()))
    }

    /// Itself, and the health check that looks at it.
    pub(super) fn processes(&self) -> Vec<i32> {
        self.check.iter().map(|check| check.pid).chain([self.pid]).map(Pid::as_raw).collect()
    }

    /// Where it fetches its tasks.
    pub(super) fn socket(&self) -> &OsStr {
        self.socket.as_os_str()
    }

    /// The last line that it has written.
    pub(super) fn last_line(&self) -> Option<String> {
        self.said.last_line()
    }

    /// The longest line that it may say: a result, letter for letter.
    pub(super) fn line_max(&self) -> usize {
        self.config.result_max_bytes.saturating_mul(ESCAPED_BYTES).saturating_add(LINE_MARGIN_BYTES)
    }

    /// Forgets the connections that are over.
    pub(super) fn drop_wires(&mut self) {
        self.wires.retain(|_, wire| !wire.is_over());
        if self.fetch.as_ref().is_some_and(|(wire, _)| !self.wires.contains_key(wire)) {
            self.fetch = None;
        }
    }

    /// Keeps what it has written.
    pub(super) fn pump_output(&mut self, log: &mut OutputLog) {
        let mut chunk = vec![0; CHUNK_BYTES];
        for _ in 0..CHUNKS_AT_ONCE {
            let Some(pipe) = &mut self.output else { return };
            match pipe.read(&mut chunk) {
                Ok(count) if count > 0 => {
                    let bytes = chunk.get(..count).unwrap_or_default();
                    self.said.take(bytes);
                    log.take(bytes);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                _closed => self.output = None,
            }
        }
    }

    /// Signals the group of its process, which is our child and not waited for yet, so that the number is its own.
    pub(super) fn signal(&self, signal: Signal) {
        let _gone = kill(Pid::from_raw(-self.pid.as_raw()), signal);
    }

    /// Kills it and what it has started.
    pub(super) fn kill(&mut self, why: Ending) {
        self.fetch = None;
        self.ending = Some(why);
        signal_below(self.pid.as_raw(), Signal::SIGKILL);
        self.signal(Signal::SIGKILL);
    }

    /// It has died and is about to be waited for: what is left of its group goes, too, and nobody connects any more.
    pub(super) fn clear_away(&mut self, log: &mut OutputLog) {
        self.signal(Signal::SIGKILL);
        if let Some(check) = &self.check {
            check.kill();
        }
        self.pump_output(log);
        let _gone = std::fs::remove_file(&self.socket);
    }

    /// Begins to look whether it is well.
    pub(super) fn begin_check(&mut self, home: &Home, slot: SlotId) {
        let config = Rc::clone(&self.config);
        let Some(check) = &config.health else { return };
        self.checked = Instant::now();
        let begun = find_user(&config).and_then(|user| {
            let (socket, user) = (self.socket.as_path(), user.as_ref());
            let role = Role { home, slot, socket, config: &config, user, program: &check.command, patient: Some(self.pid) };
            fork(&role).map_err(|error| format!("no process can be made: {error}"))
        });
        match begun {
            Ok((pid, output)) => self.check = Some(Check { pid, since: Instant::now(), output, said: Tail::default() }),
            // That it cannot be looked at says nothing of it.
            Err(why) => tracing::warn!(worker = %home.worker, why, "a health check cannot be started"),
        }
    }
}

impl Check {
    /// Kills it and its group; it is our child, and not waited for yet.
    pub(super) fn kill(&self) {
        let _gone = kill(Pid::from_raw(-self.pid.as_raw()), Signal::SIGKILL);
    }

    /// Takes in what it has written, so that it can go on, and keeps the end of it.
    pub(super) fn pump(&mut self) {
        let mut chunk = vec![0; CHUNK_BYTES];
        for _ in 0..CHUNKS_AT_ONCE {
            let Ok(count @ 1..) = self.output.read(&mut chunk) else { return };
            self.said.take(chunk.get(..count).unwrap_or_default());
        }
    }

    /// The last line that it has written.
    pub(super) fn last_line(&self) -> Option<String> {
        self.said.last_line()
    }
}

fn find_user(config: &WorkerConfig) -> Result<Option<User>, String> {
    let user = config.user.as_deref().map(User::find).transpose().map_err(|error| error.to_string())?;
    user.as_ref().map_or(Ok(()), User::require_in_reach).map_err(|error| error.to_string())?;
    Ok(user)
}

/// For the worker's user alone, from the first instant.
fn listen(socket: &Path, user: Option<&User>) -> io::Result<UnixListener> {
    let door = super::bind_own(socket)?;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o600))?;
    if let Some(user) = user.filter(|_| geteuid().is_root()) {
        lchown(socket, Some(user.uid()), Some(user.gid()))?;
    }
    Ok(door)
}

/// Forks a process of that role; its number, and where what it writes comes from.
fn fork(role: &Role<'_>) -> nix::Result<(Pid, File)> {
    let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
    fcntl(read.as_fd(), FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    let daemon = getpid();
    let forked = process::fork_with((File::from(read), File::from(write)), |(read, write)| {
        drop(read);
        let error = execute(role, daemon, &write);
        // On its stderr, as a shell would.
        let _unread = writeln!(io::stderr(), "{}: {error}", role.program.words().join(" "));
        NOT_EXECUTED
    });
    forked.map(|(pid, (read, _write))| (pid, read)).map_err(|(errno, _)| errno)
}

/// In the new process: becomes the program. It comes back only with the reason why not.
fn execute(role: &Role<'_>, daemon: Pid, output: &File) -> String {
    let become_it = || -> io::Result<()> {
        setsid()?;
        let null = File::options().read(true).write(true).open("/dev/null")?;
        dup2_stdin(&null)?;
        dup2_stdout(output)?;
        dup2_stderr(output)?;
        std::env::set_current_dir("/")?;
        // As long as it may raise them.
        limit(role.config.limits)?;
        if let Some(user) = role.user {
            // So that it can open /dev/stderr, too.
            user.hand_over(output).and_then(|()| user.embody()).map_err(io::Error::other)?;
        }
        // Whoever changes who it is, is not told of its parent's death any more.
        nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
        if getppid() != daemon {
            return Err(Errno::ESRCH.into());
        }
        set_own_variables(role);
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?;
        Ok(())
    };
    let words = role.program.words();
    match (become_it(), words.split_first()) {
        (Ok(()), Some((program, rest))) => Command::new(program).args(rest).exec().to_string(),
        (Err(error), _) => error.to_string(),
        (Ok(()), None) => "it names no program".to_owned(),
    }
}

fn set_own_variables(role: &Role<'_>) {
    let is_others = |name: &str| variables::ALL.contains(&name) || variables::OF_SERVICE_MANAGER.contains(&name);
    process::keep_variables(|name| !name.to_str().is_some_and(is_others));
    for (name, value) in &role.config.environment {
        process::set_variable(name, value);
    }
    process::set_variable(variables::NAME, role.home.minion.as_str());
    process::set_variable(variables::WORKER, role.home.worker.as_str());
    process::set_variable(variables::WORKER_INSTANCE, role.slot.to_string());
    process::set_variable(variables::WORKER_SOCKET, role.socket);
    if let Some(patient) = role.patient {
        process::set_variable(variables::WORKER_PID, patient.to_string());
    }
}

fn limit(limits: Rlimits) -> nix::Result<()> {
    let Rlimits { memory_max_bytes, open_files_max, cpu_max_seconds } = limits;
    let all = [(Resource::RLIMIT_AS, memory_max_bytes), (Resource::RLIMIT_NOFILE, open_files_max), (Resource::RLIMIT_CPU, cpu_max_seconds)];
    all.into_iter().filter_map(|(resource, most)| Some((resource, most?))).try_for_each(|(resource, most)| setrlimit(resource, most, most))
}
