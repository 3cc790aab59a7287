//! A lab: real Debian hosts, each with its own systemd, disk and network, on which the packages are installed; and one more, `control`, where the
//! overlord is. Hosts boot in about a second.
//!
//! ```no_run
//! let lab = fleet::lab::Lab::enrolled(3);
//! let work = lab.start_work("*", "power");
//! work.has_begun();
//! lab.on_all(|host| host.power_off());
//! ```
//!
//! It needs root, and what `make lab-test` names. All of it lives in namespaces without a name, and is gone when the lab is dropped, or whoever holds
//! it is killed.

mod base;
mod ground;
mod host;
mod packages;
mod work;

use std::ffi::OsStr;
use std::sync::Arc;

use ground::Ground;

use crate::run::{Run, Running};
use crate::{PATIENCE, wait};

pub use host::Host;
pub use packages::Version;
pub use work::Work;

/// Where the overlord is.
const CONTROL: &str = "control";
/// The unit of the authority.
const AUTHORITY: &str = "overlord-certs.service";
/// The units of a minion: what reads the network, and what runs methods.
pub const SERVER: &str = "minion.service";
/// See [`SERVER`].
pub const SPAWNER: &str = "minion-spawner.service";

/// A lab that is up.
#[derive(Debug)]
pub struct Lab {
    control: Host,
    hosts: Vec<Host>,
}

impl Lab {
    /// Boots so many hosts, `h1` and up, with nothing on them but Debian, and `control`, which has neither.
    #[must_use]
    pub fn bare(hosts: u8) -> Self {
        let root = base::root();
        let ground = Arc::new(Ground::new());
        let names = |number: u8| if number == 0 { CONTROL.to_owned() } else { format!("h{number}") };
        let address = |number: u8| format!("10.77.0.{}", 10 + number);
        let lines: String = (0..=hosts).map(|number| format!("{} {}\n", address(number), names(number))).collect();
        let make = |number| Host::new(Arc::clone(&ground), &names(number), &address(number), &root, &lines, packages::folder());
        let lab = Self { control: make(0), hosts: (1..=hosts).map(make).collect() };
        at_once(lab.hosts.iter().chain([&lab.control]), Host::boot);
        lab
    }

    /// The same, with an overlord on `control`.
    #[must_use]
    pub fn with_overlord(hosts: u8) -> Self {
        let lab = Self::bare(hosts);
        lab.install_overlord();
        lab
    }

    /// Installs the overlord, which gets a roster of the hosts, and an authority that they can ask.
    pub fn install_overlord(&self) {
        let _ = self.control.run(&format!("apt-get install -y {}", deb("overlord", Version::This))).ok();
        let _ = self.overlord(["certs", "init"]).ok();
        let _ = self.control.run(&format!("systemctl enable --now {AUTHORITY}")).ok();
        let roster: String = self.hosts.iter().map(|host| format!("[host.{}]\n", host.name())).collect();
        self.control.write("/etc/overlord/hosts.toml", &roster);
    }

    /// The same, with a minion on every host that was installed by its package and has enrolled by a token: one line, and nothing was edited.
    #[must_use]
    pub fn enrolled(hosts: u8) -> Self {
        let lab = Self::with_overlord(hosts);
        let lines = lab.hosts.iter().map(|host| (host, lab.install_line(Version::This))).collect::<Vec<_>>();
        at_once(&lines, |(host, line)| drop(host.run(line).ok()));
        lab.answers();
        lab
    }

    /// The line that makes a bare host one of the fleet, as a person would type it: with what `overlord certs token` prints.
    #[must_use]
    pub fn install_line(&self, version: Version) -> String {
        let token = self.overlord(["certs", "token", "--ttl", "1h"]).ok();
        let said = token.err();
        let enroll = said.lines().map(str::trim).filter(|line| line.starts_with("minion enroll")).find_map(|line| line.strip_suffix('-'));
        let enroll = enroll.unwrap_or_else(|| panic!("no line for the host: {said}"));
        format!("apt-get install -y {} && {enroll}{}", deb("overlord-minion", version), token.out().trim())
    }

    /// The hosts, without `control`.
    #[must_use]
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// The host of that name.
    #[must_use]
    pub fn host(&self, name: &str) -> &Host {
        self.hosts.iter().find(|host| host.name() == name).unwrap_or_else(|| panic!("the lab has no {name}"))
    }

    /// Where the overlord is.
    #[must_use]
    pub fn control(&self) -> &Host {
        &self.control
    }

    /// Does something to all hosts at once.
    pub fn on_all(&self, what: impl Fn(&Host) + Sync) {
        at_once(&self.hosts, what);
    }

    /// Runs the overlord to its end.
    pub fn overlord<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Run {
        self.overlord_start(args).wait()
    }

    /// Starts the overlord.
    pub fn overlord_start<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Running {
        let args = args.into_iter().map(|arg| arg.as_ref().to_owned());
        self.control.start(["overlord".into()].into_iter().chain(args))
    }

    /// Waits until every host answers a ping.
    pub fn answers(&self) {
        let mut last = String::new();
        let answers = wait::until(PATIENCE, || {
            let run = self.overlord(["*", "test.ping"]);
            last = run.err() + &String::from_utf8_lossy(&run.stdout);
            run.status.success()
        });
        assert!(answers, "not every host answers: {last}");
    }

    /// Sees that both units of every host run, that nothing on it has failed, and that it answers.
    pub fn is_well(&self) {
        self.answers();
        for host in &self.hosts {
            let units = host.run(&format!("systemctl is-active {SERVER} {SPAWNER}; systemctl --failed --plain --no-legend"));
            assert_eq!(units.out(), "active\nactive\n", "{}", host.name());
        }
    }
}

/// A package for Debian, where hosts find it.
#[must_use]
pub fn deb(name: &str, version: Version) -> String {
    format!("/packages/{}", packages::find(name, version, "_amd64.deb").display())
}

/// A package for Fedora, where hosts find it.
#[must_use]
pub fn rpm(name: &str, version: Version) -> String {
    format!("/packages/{}", packages::find(name, version, ".x86_64.rpm").display())
}

/// Does something with all of them at once.
///
/// # Panics
/// It fails with one.
fn at_once<T: Send>(all: impl IntoIterator<Item = T>, what: impl Fn(T) + Sync) {
    std::thread::scope(|scope| {
        let what = &what;
        all.into_iter().for_each(|one| drop(scope.spawn(move || what(one))));
    });
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for host in self.hosts.iter().chain([&self.control]) {
                eprintln!("{}", host.story());
            }
        }
    }
}
