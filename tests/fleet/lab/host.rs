//! One host of a lab: a Debian that boots with systemd, on a disk and a network of its own; with a power switch and a cable.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::ground::Ground;
use crate::run::{Run, Running};
use crate::{COMMAND_TIMEOUT, PATIENCE, processes, tools, wait};

/// What makes a host, and what boots it.
const MAKE: &str = include_str!("host.sh");
const BOOT: &str = include_str!("boot.sh");
/// How large the disk of a host is.
const DISK: &str = "1g";
/// How systemd-nspawn ends when its host is to be booted again.
const REBOOT: i32 = 133;
/// What is told of a host when a test has failed.
const STORY: &str = "systemctl --no-pager --lines=0 status 'minion*' 'overlord*'
    journalctl --no-pager --quiet --output=short-precise -u 'minion*' -u 'overlord*' -n 60";
/// What a command on a host finds in its environment.
const ENVIRONMENT: [&str; 4] =
    ["HOME=/root", "LANG=C.UTF-8", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin", "DEBIAN_FRONTEND=noninteractive"];

/// A host. Switched off as it is made.
#[derive(Debug)]
pub struct Host {
    name: String,
    ground: Arc<Ground>,
    /// What all hosts are above.
    root: PathBuf,
    packages: PathBuf,
    power: Mutex<Option<Power>>,
}

/// A host that is on.
#[derive(Debug)]
struct Power {
    nspawn: Child,
    /// The number of its systemd, as seen from outside.
    systemd: i32,
}

impl Host {
    /// A host of that name, with an empty disk above `root`, where `hosts` says who is where.
    pub(super) fn new(ground: Arc<Ground>, name: &str, address: &str, root: &Path, hosts: &str, packages: PathBuf) -> Self {
        ground.run(&["sh", "-c", MAKE, "host", name, address, root.to_str().unwrap(), DISK, hosts, ground.cgroup()]);
        Self { name: name.to_owned(), ground, root: root.to_owned(), packages, power: Mutex::new(None) }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A path on its disk, as seen from here, whether it is on or off.
    #[must_use]
    pub fn path(&self, path: &str) -> PathBuf {
        self.disk().join("root").join(path.trim_start_matches('/'))
    }

    /// A file on its disk, if there is one.
    #[must_use]
    pub fn read(&self, path: &str) -> Option<String> {
        fs::read_to_string(self.path(path)).ok()
    }

    /// Writes a file on its disk.
    pub fn write(&self, path: &str, text: &str) {
        fs::write(self.path(path), text).unwrap();
    }

    /// Every path on its disk that is not as it was when the host was made, files that are gone too.
    #[must_use]
    pub fn written(&self) -> std::collections::BTreeSet<PathBuf> {
        let upper = self.disk().join("upper");
        paths_below(&upper).into_iter().map(|path| Path::new("/").join(path.strip_prefix(&upper).unwrap())).collect()
    }

    /// Whether a path is one of the root that all hosts share.
    #[must_use]
    pub fn is_in_base(&self, path: &Path) -> bool {
        self.root.join(path.strip_prefix("/").unwrap_or(path)).symlink_metadata().is_ok()
    }

    /// Switches it on, and waits until it is up.
    pub fn boot(&self) {
        let mut power = self.power.lock().unwrap();
        assert!(power.is_none(), "{} is on", self.name);
        let console = fs::File::options().create(true).append(true).open(self.disk().join("console")).unwrap();
        let mut command =
            self.ground.command(&["sh", "-c", BOOT, "boot", &self.name, self.ground.cgroup(), self.packages.to_str().unwrap()]);
        let nspawn = command.stdin(Stdio::null()).stdout(console.try_clone().unwrap()).stderr(console).spawn().unwrap();
        let outer = i32::try_from(nspawn.id()).unwrap();
        let systemd = wait::wait_for(&format!("{} to begin", self.name), PATIENCE, || systemd_below(outer));
        *power = Some(Power { nspawn, systemd });
        drop(power);
        wait::wait_until(&format!("{} to be up", self.name), PATIENCE, || self.is_up());
    }

    /// Whether it has booted to the end.
    fn is_up(&self) -> bool {
        let said = self.command(["systemctl", "is-system-running"]).output().unwrap();
        matches!(String::from_utf8_lossy(&said.stdout).trim(), "running" | "degraded")
    }

    /// Takes its power: every process is killed at once, and nobody hears of it, for the cable is silent before.
    pub fn power_off(&self) {
        let mut power = self.power.lock().unwrap().take().unwrap_or_else(|| panic!("{} is off", self.name));
        self.pull_cable();
        kill(Pid::from_raw(power.systemd), Signal::SIGKILL).unwrap();
        let _ended = self.ended(&mut power);
    }

    /// Boots it again after [`Host::power_off`].
    pub fn power_on(&self) {
        self.plug_cable();
        self.boot();
    }

    /// `systemctl reboot`, until it is up again.
    pub fn reboot(&self) {
        // The command may be killed by what it has begun.
        let _ = self.run("systemctl reboot");
        let mut power = self.power.lock().unwrap().take().unwrap_or_else(|| panic!("{} is off", self.name));
        assert_eq!(self.ended(&mut power), REBOOT, "{} did not ask to be booted again", self.name);
        self.boot();
    }

    fn ended(&self, power: &mut Power) -> i32 {
        let what = format!("{} to be off", self.name);
        let status = wait::wait_for(&what, COMMAND_TIMEOUT, || power.nspawn.try_wait().unwrap());
        status.code().unwrap_or_else(|| -status.signal().unwrap_or_default())
    }

    /// Pulls the cable out of the host. Who is in the middle of something learns nothing.
    pub fn pull_cable(&self) {
        self.ground.run(&["ip", "link", "set", &self.name, "down"]);
    }

    /// Puts it back.
    pub fn plug_cable(&self) {
        self.ground.run(&["ip", "link", "set", &self.name, "up"]);
    }

    /// The number of the process that a unit is, `0` if it is none.
    #[must_use]
    pub fn main_pid(&self, unit: &str) -> String {
        self.run(&format!("systemctl show --value -p MainPID {unit}")).ok().out().trim().to_owned()
    }

    /// Whether a unit runs.
    #[must_use]
    pub fn is_active(&self, unit: &str) -> bool {
        self.run(&format!("systemctl is-active {unit}")).out() == "active\n"
    }

    /// Kills what a unit is, and waits until systemd has it again.
    pub fn kill_unit(&self, unit: &str) {
        let before = self.main_pid(unit);
        let _ = self.run(&format!("systemctl kill --kill-who=main --signal=KILL {unit}")).ok();
        let back = wait::until(PATIENCE, || {
            let now = self.main_pid(unit);
            now != "0" && now != before && self.is_active(unit)
        });
        assert!(back, "{unit} of {} does not come back", self.name());
    }

    /// Runs a line of shell on it as root, to its end.
    pub fn run(&self, line: &str) -> Run {
        self.start(["sh", "-c", line]).wait()
    }

    /// Starts a program on it as root.
    pub fn start<A: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = A>) -> Running {
        Running::start(self.command(words))
    }

    fn command<A: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = A>) -> Command {
        let power = self.power.lock().unwrap();
        let systemd = power.as_ref().unwrap_or_else(|| panic!("{} is off", self.name)).systemd;
        let enter = ["--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--", "env", "-i"];
        let command = tools::with(tools::tool("nsenter"), [format!("--target={systemd}")]);
        tools::with(tools::with(tools::with(command, enter), ENVIRONMENT), words)
    }

    /// Its console, and what its units say of themselves: for a person who wonders why a test failed, which may be because it does not answer.
    pub(super) fn story(&self) -> String {
        let console = fs::read_to_string(self.disk().join("console")).unwrap_or_default();
        let is_on = self.power.lock().is_ok_and(|power| power.is_some());
        let said = if is_on { self.command(["timeout", "10", "sh", "-c", STORY]).output().ok() } else { None };
        let said = said.map_or_else(|| "it is off".to_owned(), |said| String::from_utf8_lossy(&said.stdout).into_owned());
        format!("--- {}\n{console}{said}", self.name)
    }

    fn disk(&self) -> PathBuf {
        self.ground.root().join("run/lab").join(&self.name)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Ok(Some(mut power)) = self.power.lock().map(|mut power| power.take()) {
            let _ = kill(Pid::from_raw(power.systemd), Signal::SIGKILL);
            let _ = power.nspawn.wait();
        }
    }
}

/// The systemd below `outer`, which is the command that started systemd-nspawn: the first in a namespace of processes, and no longer systemd-nspawn.
fn systemd_below(outer: i32) -> Option<i32> {
    let below = processes::children(outer);
    let is_systemd = |pid: &i32| processes::inner_pid(*pid) == Some(1) && processes::describe(*pid).command.ends_with("/systemd");
    below.iter().copied().find(is_systemd).or_else(|| below.into_iter().find_map(systemd_below))
}

fn paths_below(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let is_folder = |entry: &fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_dir());
    entries
        .flat_map(|entry| if is_folder(&entry) { [vec![entry.path()], paths_below(&entry.path())].concat() } else { vec![entry.path()] })
        .collect()
}
