//! What a fleet shall be, and making it so: certificates through the real `overlord certs`, then a folder and a process a host.

use std::fmt::Write as _;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use nix::unistd::geteuid;

use crate::clock::{Clock, Moves};
use crate::minion::Minion;
use crate::network::{Cable, Hub};
use crate::run::Running;
use crate::surroundings::{Own, Surroundings};
use crate::{Fleet, addresses, owners};

/// Everyone may do everything.
const ALLOW_ALL: &str = "[[allow]]\ncaller = \"*\"\nmethods = [\"*\"]\n";
/// The group that every host is in.
const EVERY_HOSTS_GROUP: &str = "web";

/// A fleet that is being described.
#[derive(Debug, Clone)]
pub struct Builder {
    names: Vec<String>,
    groups: Vec<(String, Vec<String>)>,
    minion_toml: String,
    overlord_toml: String,
    acl: String,
    user: Option<String>,
    stopped: bool,
    unenrolled: bool,
    own: Own,
    clock: Option<Moves>,
}

impl Default for Builder {
    fn default() -> Self {
        let empty = String::new();
        Self {
            names: Vec::new(),
            groups: Vec::new(),
            minion_toml: empty.clone(),
            overlord_toml: empty,
            acl: ALLOW_ALL.into(),
            user: None,
            stopped: false,
            unenrolled: false,
            own: Own::default(),
            clock: None,
        }
    }
}

/// A host in `hosts.toml`.
#[derive(Debug)]
pub(crate) struct RosterEntry {
    pub(crate) name: String,
    pub(crate) address: String,
    pub(crate) groups: Vec<String>,
}

impl Builder {
    /// So many hosts: `web1`, `web2` and up, in the group `web`.
    #[must_use]
    pub fn hosts(mut self, count: usize) -> Self {
        self.names = (1..=count).map(|number| format!("web{number}")).collect();
        self.group(EVERY_HOSTS_GROUP, |_| true)
    }

    /// Hosts of these names.
    #[must_use]
    pub fn names<N: Into<String>>(mut self, names: impl IntoIterator<Item = N>) -> Self {
        self.names = names.into_iter().map(Into::into).collect();
        self
    }

    /// A group of those hosts, of the ones named so far, that `is_in` says.
    #[must_use]
    pub fn group(mut self, group: &str, is_in: impl Fn(&str) -> bool) -> Self {
        let members = self.names.iter().filter(|name| is_in(name)).cloned().collect();
        self.groups.push((group.to_owned(), members));
        self
    }

    /// Lines for the end of every `minion.toml`: `[limits]` and what belongs there.
    #[must_use]
    pub fn minion_toml(mut self, lines: &str) -> Self {
        self.minion_toml.push_str(lines);
        self
    }

    /// The overlord's `overlord.toml`.
    #[must_use]
    pub fn overlord_toml(mut self, text: &str) -> Self {
        self.overlord_toml.push_str(text);
        self
    }

    /// Every host's rules, in place of one that allows everyone everything.
    #[must_use]
    pub fn acl(mut self, text: &str) -> Self {
        text.clone_into(&mut self.acl);
        self
    }

    /// Every server runs as this user of the machine, and its spawner as root: `minion.toml` says so, and all files have the owners that
    /// belong to it. Only root can start such a fleet.
    #[must_use]
    pub fn user(mut self, name: &str) -> Self {
        self.user = Some(name.to_owned());
        self
    }

    /// No minion is started yet.
    #[must_use]
    pub fn stopped(mut self) -> Self {
        self.stopped = true;
        self
    }

    /// No host has a certificate yet, nor is any started.
    #[must_use]
    pub fn unenrolled(mut self) -> Self {
        self.unenrolled = true;
        self.stopped()
    }

    /// Each host has a network of its own, whose cable the test can cut and mend.
    #[must_use]
    pub fn networked(mut self) -> Self {
        self.own.network = true;
        self
    }

    /// Each host has processes of its own: their numbers, as they see them, begin at 1.
    #[must_use]
    pub fn own_processes(mut self) -> Self {
        self.own.processes = true;
        self
    }

    /// Each host has a place for a systemd journal of its own, where the test can be the journal: see [`Minion::journal`].
    #[must_use]
    pub fn own_journal(mut self) -> Self {
        self.own.journal = true;
        self
    }

    /// Each host has users of its own beside the machine's, and a folder of its own for their homes: see [`Minion::add_user`]. Only root can
    /// make one whose programs become other users.
    #[must_use]
    pub fn own_users(mut self) -> Self {
        self.own.users = true;
        self
    }

    /// Each host's minion runs as a user without rights: `nobody`, or, if we are not root, who we are.
    #[must_use]
    pub fn unprivileged(self) -> Self {
        match geteuid().is_root() {
            true => self.with_rights(["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]),
            false => self,
        }
    }

    /// Each host's minion is started by these words, before which it would have all the rights that we have: `setpriv` and what it is to take.
    #[must_use]
    pub fn with_rights<W: Into<String>>(mut self, words: impl IntoIterator<Item = W>) -> Self {
        self.own.rights = words.into_iter().map(Into::into).collect();
        self
    }

    /// Each host's state lies on a disk of its own, of so many bytes.
    #[must_use]
    pub fn small_disk(mut self, bytes: u64) -> Self {
        self.own.disk_bytes = Some(bytes);
        self
    }

    /// Each host's programs may have so many files open.
    #[must_use]
    pub fn open_files(mut self, files: usize) -> Self {
        self.own.files = Some(files);
        self
    }

    /// All programs go by clocks that the test can move on, all of them together: see [`Fleet::pass`].
    #[must_use]
    pub fn faked_time(mut self) -> Self {
        self.clock = Some(Moves::All);
        self
    }

    /// All hosts go by a wall clock that the test can set: see [`Fleet::set_hosts_clock_by`]. Other clocks are the machine's, and so is
    /// the overlord's.
    #[must_use]
    pub fn faked_wall_clock(mut self) -> Self {
        self.clock = Some(Moves::Wall);
        self
    }

    /// Makes the fleet, and waits until every minion listens.
    ///
    /// # Panics
    /// Something does not start.
    #[must_use]
    pub fn start(self) -> Fleet {
        let root = tempfile::Builder::new().prefix("fleet-").tempdir().unwrap();
        let clock = self.clock.map(|moves| Clock::new(root.path(), moves));
        let hub = (self.own.network || self.clock.is_some()).then(|| Hub::new(self.own.network));
        let addresses = match self.own.network {
            true => (1..).map(|host| Cable(host).address()).take(self.names.len()).collect(),
            false => addresses::addresses(self.names.len()),
        };
        let minion = |(name, address): (&String, _)| {
            let surroundings = Surroundings::new(&self.own, hub.as_ref(), clock.as_ref());
            Minion::new(root.path(), name, self.groups_of(name), address, surroundings)
        };
        let minions: Vec<_> = self.names.iter().zip(addresses).map(minion).collect();
        let fleet = Fleet { minions, hub, clock, root };
        if self.user.is_some() {
            // Whoever goes on from here needs to know the name.
            fs::set_permissions(fleet.root(), Permissions::from_mode(0o711)).unwrap();
        }
        self.write_home(&fleet);
        for minion in fleet.minions() {
            self.write_minion(minion, &fleet.root().join("hosts"));
        }
        fleet.connect();
        if !self.stopped {
            fleet.minions().iter().for_each(Minion::start_without_waiting);
            fleet.minions().iter().for_each(Minion::wait_until_listening);
        }
        fleet
    }

    fn groups_of(&self, name: &str) -> Vec<String> {
        let holds = |members: &Vec<String>| members.iter().any(|member| member == name);
        self.groups.iter().filter(|(_, members)| holds(members)).map(|(group, _)| group.clone()).collect()
    }

    fn write_home(&self, fleet: &Fleet) {
        let words = fleet.yesterdays_words();
        let overlord = |args: &[&str]| drop(Running::overlord_within(&words, &fleet.home(), fleet.root(), args).wait().ok());
        // What it says of certificates holds from the first.
        fs::create_dir_all(fleet.home()).unwrap();
        fs::write(fleet.home().join("overlord.toml"), &self.overlord_toml).unwrap();
        overlord(&["certs", "init"]);
        if !self.names.is_empty() && !self.unenrolled {
            let out = fleet.root().join("hosts");
            let mut args = vec!["certs", "issue"];
            args.extend(self.names.iter().map(String::as_str));
            overlord(&[args, vec!["--out", out.to_str().unwrap()]].concat());
        }
        write_hosts(&fleet.home(), &fleet.roster(&[]));
    }

    fn write_minion(&self, minion: &Minion, issued: &Path) {
        fs::create_dir_all(minion.acl_dir()).unwrap();
        if !self.unenrolled {
            fs::rename(issued.join(minion.name()), minion.certs_dir()).unwrap();
        }
        minion.set_acl(&self.acl);
        let user = self.user.as_ref().map(|user| format!("user = {user:?}\n")).unwrap_or_default();
        let config = format!(
            "name = \"{name}\"\n{user}listen = \"{listen}\"\nstate_dir = \"state\"\ncerts_dir = \"certs\"\nacl_dir = \"acl.d\"\n{more}",
            name = minion.name(),
            listen = minion.address(),
            more = self.minion_toml
        );
        fs::write(minion.config_file(), config).unwrap();
        if let Some(user) = self.user.as_ref().filter(|_| !self.unenrolled) {
            owners::share_certs(&minion.certs_dir(), user);
        }
        minion.mount_disk();
        minion.mount_journal();
        minion.mount_users();
        minion.give_to_nobody();
    }
}

pub(crate) fn write_hosts(home: &Path, roster: &[RosterEntry]) {
    let mut text = String::new();
    for RosterEntry { name, address, groups } in roster {
        writeln!(text, "[host.\"{name}\"]\naddress = \"{address}\"\ngroups = {groups:?}").unwrap();
    }
    fs::write(home.join("hosts.toml"), text).unwrap();
}
