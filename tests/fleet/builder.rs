//! What a fleet shall be, and making it so: certificates through the real `overlord certs`, then a folder and a process a host.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use crate::minion::Minion;
use crate::run::Running;
use crate::{Fleet, addresses};

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
    stopped: bool,
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
            stopped: false,
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

    /// No minion is started yet.
    #[must_use]
    pub fn stopped(mut self) -> Self {
        self.stopped = true;
        self
    }

    /// Makes the fleet, and waits until every minion listens.
    ///
    /// # Panics
    /// Something does not start.
    #[must_use]
    pub fn start(self) -> Fleet {
        let root = tempfile::Builder::new().prefix("fleet-").tempdir().unwrap();
        let minions: Vec<_> = self
            .names
            .iter()
            .zip(addresses::addresses(self.names.len()))
            .map(|(name, address)| Minion::new(root.path(), name, self.groups_of(name), address))
            .collect();
        let fleet = Fleet { minions, root };
        self.write_home(&fleet);
        for minion in fleet.minions() {
            self.write_minion(minion, &fleet.root().join("hosts"));
        }
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
        let overlord = |args: &[&str]| drop(Running::overlord(&fleet.home(), fleet.root(), args).wait().ok());
        overlord(&["certs", "init"]);
        if !self.names.is_empty() {
            let out = fleet.root().join("hosts");
            let mut args = vec!["certs", "issue"];
            args.extend(self.names.iter().map(String::as_str));
            overlord(&[args, vec!["--out", out.to_str().unwrap()]].concat());
        }
        fs::write(fleet.home().join("overlord.toml"), &self.overlord_toml).unwrap();
        write_hosts(&fleet.home(), &fleet.roster(&[]));
    }

    fn write_minion(&self, minion: &Minion, issued: &Path) {
        fs::create_dir_all(minion.acl_dir()).unwrap();
        fs::rename(issued.join(minion.name()), minion.certs_dir()).unwrap();
        minion.set_acl(&self.acl);
        let config = format!(
            "name = \"{name}\"\nlisten = \"{listen}\"\nstate_dir = \"state\"\ncerts_dir = \"certs\"\nacl_dir = \"acl.d\"\n{more}",
            name = minion.name(),
            listen = minion.address(),
            more = self.minion_toml
        );
        fs::write(minion.config_file(), config).unwrap();
    }
}

pub(crate) fn write_hosts(home: &Path, roster: &[RosterEntry]) {
    let mut text = String::new();
    for RosterEntry { name, address, groups } in roster {
        writeln!(text, "[host.\"{name}\"]\naddress = \"{address}\"\ngroups = {groups:?}").unwrap();
    }
    fs::write(home.join("hosts.toml"), text).unwrap();
}
