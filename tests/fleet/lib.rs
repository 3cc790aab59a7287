//! A harness: fleets of real minions, each a process with its own home, driven through the two real programs.
//!
//! ```no_run
//! let fleet = fleet::Fleet::start(3);
//! let run = fleet.overlord(["*", "test.ping"]).ok();
//! fleet.minion("web2").kill9();
//! ```
//!
//! Every wait has a deadline, at which the test fails with what the processes wrote. Dropping a fleet kills every process that
//! belongs to it, job daemons included, and deletes its files. Nothing here knows how the programs work inside.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "a harness for tests: what goes wrong here is a failed test, and is told to the person who runs it"
)]

mod addresses;
mod authority;
mod bare;
mod binaries;
mod builder;
pub mod captured;
mod clock;
mod disk;
mod enclosure;
mod failpoint;
mod faults;
pub mod flood;
pub mod fuzz;
mod journal;
pub mod lab;
mod liar;
mod memory;
mod minion;
mod network;
pub mod openssl;
mod owners;
mod processes;
mod proxy;
pub mod raw;
mod run;
mod secrets;
mod simulated;
mod strace;
mod stranger;
mod surroundings;
mod tools;
mod trace;
mod users;
mod wait;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use certs::authority::{Validity, write_folder};
use certs::files::Credentials;
use common::identity::Role;
use tempfile::TempDir;

pub use authority::{Authority, ca_fingerprint};
pub use bare::{BareHost, BareHosts, package_of};
pub use binaries::{Binaries, binaries};
pub use builder::Builder;
use clock::Clock;
pub use failpoint::{FailPoint, Follow, Step};
pub use journal::{Fields, Journal};
pub use liar::{Answering, Liar, Question};
pub use memory::MemoryLimit;
pub use minion::Minion;
use network::Hub;
pub use owners::{Owner, acting_as, as_server, owner, user};
pub use processes::Process;
pub use proxy::Proxy;
pub use run::{Run, Running};
pub use secrets::Secrets;
pub use simulated::Simulated;
pub use stranger::{Stranger, peak_bytes};
pub use trace::{Call, Recorder, Trace};
pub use wait::{wait_for, wait_until};

/// How long a process may take to start, to stop, or to be gone once it was killed.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// How long a command of the overlord may take, unless the test says otherwise.
pub const COMMAND_TIMEOUT: Duration = Duration::from_secs(60);

/// An overlord's home, and minions that it can call.
#[derive(Debug)]
pub struct Fleet {
    minions: Vec<Minion>,
    /// Where the overlord's commands run, if that is not where we do.
    hub: Option<Hub>,
    clock: Option<Clock>,
    /// Declared last, so that its files are deleted when all else is gone.
    root: TempDir,
}

impl Fleet {
    /// A fleet of `hosts` minions, `web1` and up, in the group `web`, which allow every caller everything.
    #[must_use]
    pub fn start(hosts: usize) -> Self {
        Self::builder().hosts(hosts).start()
    }

    /// A fleet to be described first.
    #[must_use]
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// The folder in which everything of this fleet lies.
    #[must_use]
    pub fn root(&self) -> &Path {
        self.root.path()
    }

    /// The overlord's home.
    #[must_use]
    pub fn home(&self) -> PathBuf {
        self.root().join("home")
    }

    /// The minion of that name.
    #[must_use]
    pub fn minion(&self, name: &str) -> &Minion {
        self.minions.iter().find(|minion| minion.name() == name).unwrap_or_else(|| panic!("the fleet has no {name}"))
    }

    /// Every minion, in the order in which they were named.
    #[must_use]
    pub fn minions(&self) -> &[Minion] {
        &self.minions
    }

    /// Runs the overlord to its end, on this fleet's home.
    pub fn overlord<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Run {
        self.overlord_spawn(args).wait()
    }

    /// Starts the overlord on this fleet's home.
    pub fn overlord_spawn<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Running {
        Running::overlord_within(&self.overlord_words(), &self.home(), self.root(), args)
    }

    /// Starts an async job and gives its id.
    pub fn start_job<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> String {
        let args = args.into_iter().map(|arg| arg.as_ref().to_owned()).chain(["--async".into()]);
        let id = self.overlord(args).ok().out().trim().to_owned();
        assert!(id.parse::<common::job::JobId>().is_ok(), "not a job id alone on stdout: {id:?}");
        id
    }

    /// What `overlord job-status ID --output json` says now, whatever its exit status.
    pub fn job_status(&self, id: &str) -> serde_json::Value {
        self.overlord(["job-status", id, "--output", "json"]).json()
    }

    /// What `job_status` says once its `state` is `state`.
    pub fn wait_for_state(&self, id: &str, state: &str) -> serde_json::Value {
        wait_for(&format!("job {id} to be {state}"), COMMAND_TIMEOUT, || {
            Some(self.job_status(id)).filter(|status| status["state"] == state)
        })
    }

    /// The id on web1 of a job of the overlord's, once it has one there.
    #[must_use]
    pub fn minion_job(&self, id: &str) -> String {
        let known = || self.job_status(id)["hosts"]["web1"]["minion_job_id"].as_str().map(str::to_owned);
        wait_for("the job's id on the host", PATIENCE, known)
    }

    /// Where a host is, as far as the overlord knows. `address` is any text: a test of wrong addresses.
    pub fn set_address(&self, name: &str, address: &str) {
        self.set_addresses(&[(name, address)]);
    }

    /// The same for several hosts; all others are where they are.
    pub fn set_addresses(&self, moved: &[(&str, &str)]) {
        builder::write_hosts(&self.home(), &self.roster(moved));
    }

    /// What the overlord's `overlord.toml` says from now on.
    pub fn set_overlord_toml(&self, text: &str) {
        std::fs::write(self.home().join("overlord.toml"), text).unwrap();
    }

    /// Runs `minion check` on a host's configuration.
    #[must_use]
    pub fn check(&self, minion: &str) -> Run {
        self.run_minion(minion, &["check"])
    }

    /// Runs `minion` with these words on a host's configuration, to its end.
    #[must_use]
    pub fn run_minion(&self, minion: &str, args: &[&str]) -> Run {
        self.spawn_minion(minion, args).wait()
    }

    /// Starts `minion` with these words on a host's configuration.
    #[must_use]
    pub fn spawn_minion(&self, minion: &str, args: &[&str]) -> Running {
        let mut command = std::process::Command::new(&binaries().minion);
        command.arg("--config").arg(self.minion(minion).config_file()).args(args).env(processes::MARK, self.root());
        Running::start(command)
    }

    /// The process that holds the log of a job open: its dispatcher, while that lives.
    #[must_use]
    pub fn dispatcher(&self, job: &str) -> Option<Process> {
        processes::holding(&self.home().join("jobs").join(format!("{job}.log"))).into_iter().next()
    }

    /// The overlord's own credentials.
    #[must_use]
    pub fn overlord_credentials(&self) -> Credentials {
        let certs = self.home().join("certs");
        Credentials::load(&certs.join("ca.pem"), &certs.join("overlord.pem"), &certs.join("overlord.key")).unwrap()
    }

    /// A folder with a certificate that this fleet's authority issued for `role`, say `fleet:overlord/ops`, valid for an hour.
    #[must_use]
    pub fn issue(&self, role: &str) -> PathBuf {
        let now = jiff::Timestamp::now();
        self.issue_within(
            role,
            Validity { not_before: now - jiff::SignedDuration::from_mins(5), not_after: now + jiff::SignedDuration::from_hours(1) },
        )
    }

    /// The same with any validity: one that is over, say.
    #[must_use]
    pub fn issue_within(&self, role: &str, validity: Validity) -> PathBuf {
        let authority = certs::authority::Authority::open(&self.home().join("certs")).unwrap();
        issue_into(&self.root().join("issued"), &authority, role, validity)
    }

    /// A client of the wire itself, that shows the certificate in `folder`, or none, and believes any server.
    #[must_use]
    pub fn raw(&self, minion: &str, folder: Option<&Path>) -> raw::Client {
        raw::Client::new(self.minion(minion).address(), minion, folder)
    }

    /// Like [`Fleet::raw`], as this fleet's overlord.
    #[must_use]
    pub fn raw_overlord(&self, minion: &str) -> raw::Client {
        let certs = self.home().join("certs");
        raw::Client::showing(self.minion(minion).address(), minion, &certs.join("overlord.pem"), &certs.join("overlord.key"))
    }

    /// Every process that belongs to this fleet at present: servers, spawners, job daemons, dispatchers, and what methods started.
    #[must_use]
    pub fn processes(&self) -> Vec<Process> {
        processes::of(self.root())
    }

    /// The processes of this fleet with `words` in their command lines; those of an overlord and of `minion submit`, which have everything that they
    /// ask for in theirs, do not count.
    #[must_use]
    pub fn running(&self, words: &str) -> Vec<Process> {
        let asks = |command: &str| {
            let mut words = command.split(' ');
            let program = words.next().unwrap_or_default();
            program.ends_with("/overlord") || program.ends_with("/minion") && words.next() == Some("submit")
        };
        self.processes().into_iter().filter(|process| process.command.contains(words) && !asks(&process.command)).collect()
    }

    /// Stops every minion, and fails the test if any process of the fleet is left after that.
    ///
    /// # Panics
    /// One is.
    pub fn assert_no_leaks(&self) {
        let left = self.leaks_after(PATIENCE);
        assert!(left.is_empty(), "these processes outlive their fleet: {left:#?}");
    }

    /// Stops every minion, and gives the processes of the fleet that are left once `patience` has passed.
    #[must_use]
    pub fn leaks_after(&self, patience: Duration) -> Vec<Process> {
        self.minions.iter().filter(|minion| minion.is_running()).for_each(Minion::stop);
        wait::until(patience, || self.processes().is_empty());
        self.processes()
    }

    fn roster(&self, moved: &[(&str, &str)]) -> Vec<builder::RosterEntry> {
        let moved = |minion: &Minion| {
            let elsewhere = moved.iter().find(|(name, _)| *name == minion.name());
            elsewhere.map_or_else(|| minion.address().to_string(), |(_, address)| (*address).to_owned())
        };
        let entry = |minion: &Minion| builder::RosterEntry {
            name: minion.name().to_owned(),
            address: moved(minion),
            groups: minion.groups().to_vec(),
        };
        self.minions.iter().map(entry).collect()
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for minion in self.minions.iter().filter(|minion| !minion.stderr().is_empty()) {
                eprintln!("--- what {} wrote\n{}", minion.name(), minion.stderr_tail());
            }
        }
        self.minions.iter().for_each(Minion::kill_if_running);
        processes::kill_all(self.root());
    }
}

/// Issues a certificate into a new folder below `out`, and gives the folder.
pub fn issue_into(out: &Path, authority: &certs::authority::Authority, role: &str, validity: Validity) -> PathBuf {
    let role: Role = role.parse().unwrap();
    let issued = authority.issue_within(&[role], validity).unwrap().remove(0);
    write_folder(&out.join(&issued.serial), authority.ca_pem(), None, &issued).unwrap()
}
