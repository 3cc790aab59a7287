//! One minion of a fleet: a real `minion serve`, which can be killed, stopped, paused and started again at the same address.

use std::fs::{self, OpenOptions};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::enclosure::Enclosure;
use crate::surroundings::Surroundings;
use crate::{PATIENCE, Process, binaries, processes, tools, wait};

/// What the server logs once it accepts connections.
const LISTENING: &[u8] = b"listening";
/// How much of what it wrote is shown when a test fails.
const TAIL_BYTES: usize = 8 * 1024;

/// A server that was started.
#[derive(Debug)]
struct Server {
    /// What we started: the server itself, or its parent that put it into an enclosure.
    process: Child,
    /// The server.
    pid: i32,
    /// How long the file of its stderr was then, in bytes.
    written_before: usize,
}

impl Server {
    fn has_ended(&mut self) -> bool {
        if self.outer() != self.pid {
            // A parent that stopped along with the server when that was paused hears of its end when it goes on.
            let _ = kill(Pid::from_raw(self.outer()), Signal::SIGCONT);
        }
        self.process.try_wait().unwrap().is_some()
    }

    fn kill(&mut self) {
        let _ = kill(Pid::from_raw(self.pid), Signal::SIGKILL);
        let _ = self.process.kill();
        let _ = self.process.wait();
    }

    fn outer(&self) -> i32 {
        i32::try_from(self.process.id()).unwrap()
    }
}

/// A minion's folder, and its server while that runs.
#[derive(Debug)]
pub struct Minion {
    name: String,
    groups: Vec<String>,
    address: SocketAddr,
    folder: PathBuf,
    root: PathBuf,
    server: Mutex<Option<Server>>,
    /// Declared last, so that it is taken down when all else is gone.
    surroundings: Surroundings,
}

impl Minion {
    pub(crate) fn new(root: &Path, name: &str, groups: Vec<String>, address: SocketAddr, surroundings: Surroundings) -> Self {
        let folder = root.join("minions").join(name);
        Self { name: name.to_owned(), groups, address, folder, root: root.to_owned(), server: Mutex::new(None), surroundings }
    }

    /// The namespaces that it runs in, if they are its own.
    pub(crate) fn enclosure(&self) -> Option<&Enclosure> {
        self.surroundings.enclosure.as_ref()
    }

    /// Whether it has a place for a journal of its own.
    pub(crate) fn has_journal(&self) -> bool {
        self.surroundings.has_journal
    }

    /// The size of its disk, if that is its own.
    pub(crate) fn disk_bytes(&self) -> Option<u64> {
        self.surroundings.disk_bytes
    }

    /// Whether it has users of its own.
    pub(crate) fn has_users(&self) -> bool {
        self.surroundings.has_users
    }

    /// The words that take rights from it.
    pub(crate) fn right_words(&self) -> &[String] {
        self.surroundings.right_words()
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The groups that it is in.
    #[must_use]
    pub fn groups(&self) -> &[String] {
        &self.groups
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its `minion.toml`.
    #[must_use]
    pub fn config_file(&self) -> PathBuf {
        self.folder.join("minion.toml")
    }

    /// The folder of its certificate.
    #[must_use]
    pub fn certs_dir(&self) -> PathBuf {
        self.folder.join("certs")
    }

    /// The folder of its rules.
    #[must_use]
    pub fn acl_dir(&self) -> PathBuf {
        self.folder.join("acl.d")
    }

    /// Its state, as we reach it.
    #[must_use]
    pub fn state_dir(&self) -> PathBuf {
        let seen = self.own_state_dir();
        match self.enclosure() {
            Some(enclosure) => enclosure.root().join(seen.strip_prefix("/").unwrap()),
            None => seen,
        }
    }

    /// Its state, as its own processes name it.
    #[must_use]
    pub fn own_state_dir(&self) -> PathBuf {
        self.folder.join("state")
    }

    /// The spools of its jobs.
    #[must_use]
    pub fn spools_dir(&self) -> PathBuf {
        self.state_dir().join("spool")
    }

    /// The spool of one job.
    #[must_use]
    pub fn spool(&self, minion_job_id: &str) -> PathBuf {
        self.spools_dir().join(minion_job_id)
    }

    /// The minion job ids of its spools, in order.
    #[must_use]
    pub fn spools(&self) -> Vec<String> {
        let entries = fs::read_dir(self.spools_dir()).into_iter().flatten().flatten();
        let mut names: Vec<_> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.retain(|name| name.parse::<common::job::MinionJobId>().is_ok());
        names.sort();
        names
    }

    /// Its audit log, a JSON document a line.
    #[must_use]
    pub fn audit(&self) -> Vec<serde_json::Value> {
        let text = fs::read_to_string(self.state_dir().join("audit.log")).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// The files of its audit log, the oldest first.
    #[must_use]
    pub fn audit_files(&self) -> Vec<PathBuf> {
        let numbered = |number: usize| self.state_dir().join(format!("audit.log.{number}"));
        let mut files: Vec<_> =
            std::iter::once(self.state_dir().join("audit.log")).chain((1..).map(numbered)).take_while(|file| file.exists()).collect();
        files.reverse();
        files
    }

    /// Replaces its rules by `text`.
    pub fn set_acl(&self, text: &str) {
        fs::write(self.acl_dir().join("rules.toml"), text).unwrap();
    }

    /// Gives it the certificate in `folder`, for its next start.
    pub fn set_certs(&self, folder: &Path) {
        for file in ["ca.pem", "cert.pem", "key.pem"] {
            fs::copy(folder.join(file), self.certs_dir().join(file)).unwrap();
        }
    }

    /// All its server and spawner wrote to stderr, over every start.
    #[must_use]
    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.stderr_file()).unwrap_or_default()).into_owned()
    }

    /// Starts the server and waits until it listens.
    ///
    /// # Panics
    /// It runs already, or does not start.
    pub fn start(&self) {
        self.start_without_waiting();
        self.wait_until_listening();
    }

    /// Starts the server.
    ///
    /// # Panics
    /// It runs already, or cannot be executed.
    pub fn start_without_waiting(&self) {
        let mut server = self.server();
        assert!(server.is_none(), "{} runs already", self.name);
        let stderr = OpenOptions::new().create(true).append(true).open(self.stderr_file()).unwrap();
        let written_before = stderr.metadata().unwrap().len();
        let mut command = tools::within(&self.surroundings.words(), &self.program());
        command.arg("--config").arg(self.config_file()).arg("serve").env(processes::MARK, &self.root);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr);
        let mut process = command.spawn().unwrap();
        let outer = i32::try_from(process.id()).unwrap();
        let enters = |process: &mut Child| {
            let ended = process.try_wait().unwrap().is_some();
            assert!(!ended, "{} has ended instead of listening:\n{}", self.name, self.stderr_tail());
            processes::children(outer).pop()
        };
        let pid = match self.enclosure() {
            Some(_) => wait::wait_for("the server to enter its enclosure", PATIENCE, || enters(&mut process)),
            None => outer,
        };
        *server = Some(Server { process, pid, written_before: usize::try_from(written_before).unwrap() });
    }

    /// The program: where it is for all to read, if it is there.
    fn program(&self) -> PathBuf {
        Some(self.own_program()).filter(|path| path.exists()).unwrap_or_else(|| binaries().minion.clone())
    }

    /// Where a program lies that users without rights can execute, too.
    pub(crate) fn own_program(&self) -> PathBuf {
        self.folder.join("program")
    }

    /// Waits until the server that was started accepts connections.
    pub(crate) fn wait_until_listening(&self) {
        let listening = wait::until(PATIENCE, || {
            let mut server = self.server();
            let server = server.as_mut().unwrap_or_else(|| panic!("{} was not started", self.name));
            let ended = server.process.try_wait().unwrap().is_some();
            assert!(!ended, "{} has ended instead of listening:\n{}", self.name, self.stderr_tail());
            fs::read(self.stderr_file()).unwrap()[server.written_before..].windows(LISTENING.len()).any(|part| part == LISTENING)
        });
        assert!(listening, "{} does not listen:\n{}", self.name, self.stderr_tail());
    }

    /// Whether the server runs, as far as this harness has started and stopped it.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.server().is_some()
    }

    /// The server's process.
    ///
    /// # Panics
    /// It does not run.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.server().as_ref().map(|server| server.pid).unwrap_or_else(|| panic!("{} does not run", self.name))
    }

    /// The server itself, where that is a process of another user than the one that was started, which keeps it.
    #[must_use]
    pub fn kept_server(&self) -> Option<Process> {
        let keeper = self.server().as_ref()?.pid;
        kept_by(keeper)
    }

    /// Waits until what was started has ended by itself.
    ///
    /// # Panics
    /// It does not run, or goes on.
    #[must_use]
    pub fn wait_for_end(&self) -> ExitStatus {
        let mut server = self.server().take().unwrap_or_else(|| panic!("{} does not run", self.name));
        let ended = wait::until(PATIENCE, || server.has_ended());
        server.kill();
        assert!(ended, "{} goes on:\n{}", self.name, self.stderr_tail());
        server.process.wait().unwrap()
    }

    /// Kills the server, and waits until it is gone. Jobs go on; the spawner that it started ends by itself.
    pub fn kill9(&self) {
        self.end(Signal::SIGKILL);
    }

    /// Tells the server to stop, and waits until it has.
    pub fn stop(&self) {
        self.end(Signal::SIGTERM);
    }

    /// Stops the server's process where it stands: it accepts connections and answers nothing.
    pub fn pause(&self) {
        kill(Pid::from_raw(self.pid()), Signal::SIGSTOP).unwrap();
    }

    /// Lets a paused server go on.
    pub fn resume(&self) {
        kill(Pid::from_raw(self.pid()), Signal::SIGCONT).unwrap();
    }

    /// The spawner's process, if there is one. What it forks has its command line, but another session, or it for a parent.
    #[must_use]
    pub fn spawner(&self) -> Option<Process> {
        let config = self.config_file().to_string_lossy().into_owned();
        let mut found = processes::of(&self.folder);
        found.retain(|process| process.command.contains(&config) && process.command.contains(" spawner"));
        let pids: Vec<_> = found.iter().map(|process| process.pid).collect();
        let is_forked = |pid: i32| processes::parent(pid).is_none_or(|parent| pids.contains(&parent));
        found.into_iter().find(|process| processes::is_in_our_session(process.pid) && !is_forked(process.pid))
    }

    /// All processes that share the host's numbers, its own and what they started, whoever they have become.
    ///
    /// # Panics
    /// The server does not run.
    #[must_use]
    pub fn beside(&self) -> Vec<Process> {
        processes::beside(self.pid())
    }

    /// The job daemon of a job: the process that holds the lock of its spool.
    #[must_use]
    pub fn job_daemon(&self, minion_job_id: &str) -> Option<Process> {
        let lock = self.own_state_dir().join("spool").join(minion_job_id).join("lock");
        let first = processes::holding(&lock);
        // Those that the spawner has forked only look, or are about to fork the daemon; and what the daemon forks lets go of the lock. Who holds it
        // at one look alone is none of them.
        let lookers: Vec<i32> = self.spawner().map(|spawner| processes::children(spawner.pid)).unwrap_or_default();
        let mut holders: Vec<Process> = processes::holding(&lock);
        holders.retain(|holder| first.contains(holder) && !lookers.contains(&holder.pid));
        let forked: Vec<i32> = holders.iter().flat_map(|holder| processes::children(holder.pid)).collect();
        holders.retain(|holder| !forked.contains(&holder.pid));
        holders.into_iter().next()
    }

    pub(crate) fn stderr_tail(&self) -> String {
        let text = self.stderr();
        let start = (text.len().saturating_sub(TAIL_BYTES)..text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text[start..].to_owned()
    }

    pub(crate) fn kill_if_running(&self) {
        if let Some(mut server) = self.server().take() {
            server.kill();
        }
    }

    fn end(&self, signal: Signal) {
        let mut server = self.server().take().unwrap_or_else(|| panic!("{} does not run", self.name));
        let kept = kept_by(server.pid);
        kill(Pid::from_raw(server.pid), signal).unwrap();
        let gone = wait::until(PATIENCE, || server.has_ended() && !kept.as_ref().is_some_and(Process::is_there));
        if !gone {
            server.kill();
            panic!("{} does not end on {signal}:\n{}", self.name, self.stderr_tail());
        }
    }

    fn stderr_file(&self) -> PathBuf {
        self.folder.join("stderr")
    }

    fn server(&self) -> MutexGuard<'_, Option<Server>> {
        self.server.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The server of the keeper with that number.
fn kept_by(keeper: i32) -> Option<Process> {
    processes::children(keeper).into_iter().map(processes::describe).find(|child| child.command.contains("--keeper"))
}
