//! A simulated fleet: an overlord's home whose hosts, up to thousands, all live in one process, `simulate`.

use std::fmt::Write as _;
use std::fs;
use std::io::Read as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};

use tempfile::TempDir;

use crate::addresses::port;
use crate::run::Running;
use crate::{PATIENCE, binaries, processes, wait};

/// The hosts in one range of 127.x.y.*.
const HOSTS_A_RANGE: usize = 250;

/// A fleet whose hosts live in one process. Dropping it ends the process and deletes its files.
#[derive(Debug)]
pub struct Simulated {
    process: Child,
    /// The process ends when this does.
    stdin: Option<ChildStdin>,
    echo: Vec<SocketAddr>,
    root: TempDir,
}

impl Simulated {
    /// A fleet of `hosts` simulated minions, which allow every caller everything.
    ///
    /// # Panics
    /// It does not start.
    #[must_use]
    pub fn start(hosts: usize) -> Self {
        let root = tempfile::Builder::new().prefix("fleet-").tempdir().unwrap();
        let (port, echo_port) = (port(), port());
        let names: Vec<String> = (1..=hosts).map(|number| format!("sim{number:05}")).collect();
        let addresses: Vec<Ipv4Addr> = (0..hosts).map(address).collect();
        let home = root.path().join("home");
        let overlord = |args: &[&str]| drop(Running::overlord(&home, root.path(), args).wait().ok());
        overlord(&["certs", "init"]);
        let certs = root.path().join("certs");
        let mut issue = vec!["certs", "issue", "--out", certs.to_str().unwrap()];
        issue.extend(names.iter().map(String::as_str));
        overlord(&issue);
        let (mut roster, mut listed) = (String::new(), String::new());
        for (name, address) in names.iter().zip(&addresses) {
            writeln!(roster, "[host.{name}]\naddress = \"{address}:{port}\"").unwrap();
            writeln!(listed, "{name} {address}:{port}").unwrap();
        }
        fs::write(home.join("hosts.toml"), roster).unwrap();
        fs::write(root.path().join("hosts"), listed).unwrap();
        let config = "name = \"simulated\"\nstate_dir = \"state\"\nacl_dir = \"acl.d\"\ncerts_dir = \"certs/sim00001\"\n[limits]\ncalls_max = 4096\njobs_max = 4096\n";
        fs::write(root.path().join("minion.toml"), config).unwrap();
        fs::create_dir(root.path().join("acl.d")).unwrap();
        fs::write(root.path().join("acl.d/all.toml"), "[[allow]]\ncaller = \"*\"\nmethods = [\"*\"]\n").unwrap();
        let echo = addresses.iter().map(|address| (*address, echo_port).into()).collect();
        let (process, stdin) = execute(root.path(), echo_port);
        Self { process, stdin: Some(stdin), echo, root }
    }

    /// The overlord's home.
    #[must_use]
    pub fn home(&self) -> PathBuf {
        self.root.path().join("home")
    }

    /// The overlord on this fleet's home, to be started as the caller likes.
    #[must_use]
    pub fn overlord_command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&binaries().overlord);
        command.args(args).env("OVERLORD_HOME", self.home()).env(processes::MARK, self.root.path());
        command
    }

    /// Starts the overlord on this fleet's home.
    pub fn overlord_spawn(&self, args: &[&str]) -> Running {
        Running::overlord(&self.home(), self.root.path(), args)
    }

    /// Where each host answers with a bare TLS echo, in the order of their names.
    #[must_use]
    pub fn echo_addresses(&self) -> &[SocketAddr] {
        &self.echo
    }
}

fn address(host: usize) -> Ipv4Addr {
    let process = std::process::id();
    let second = 1 + (process / 256 + u32::try_from(host / HOSTS_A_RANGE).unwrap()) % 254;
    let [second, third] = [second, process % 256].map(|byte| u8::try_from(byte).unwrap());
    Ipv4Addr::new(127, second, third, u8::try_from(1 + host % HOSTS_A_RANGE).unwrap())
}

fn execute(root: &std::path::Path, echo_port: u16) -> (Child, ChildStdin) {
    let program = binaries().minion.with_file_name("simulate");
    let mut command = Command::new(&program);
    command.arg(root).arg(echo_port.to_string()).env(processes::MARK, root).env("MINION_LOG", "warn");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    let mut process = command.spawn().unwrap_or_else(|error| panic!("{}: {error}", program.display()));
    let mut said = [0; 6];
    process.stdout.take().unwrap().read_exact(&mut said).unwrap_or_else(|error| panic!("simulate does not start: {error}"));
    let stdin = process.stdin.take().unwrap();
    (process, stdin)
}

impl Drop for Simulated {
    fn drop(&mut self) {
        drop(self.stdin.take());
        if !wait::until(PATIENCE, || self.process.try_wait().is_ok_and(|ended| ended.is_some())) {
            let _ = self.process.kill();
            let _ = self.process.wait();
        }
        processes::kill_all(self.root.path());
    }
}
