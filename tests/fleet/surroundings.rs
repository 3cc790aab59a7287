//! What surrounds a host's processes: namespaces of their own, a disk of their own, a clock of their own; or nothing of the kind.

use crate::clock::Clock;
use crate::enclosure::{Enclosure, Net, Pids};
use crate::network::Hub;

/// What each host of a fleet has for itself.
#[derive(Debug, Clone, Default)]
pub(crate) struct Own {
    pub(crate) network: bool,
    pub(crate) processes: bool,
    /// The folder of the systemd journal's socket.
    pub(crate) journal: bool,
    /// Its users and their homes.
    pub(crate) users: bool,
    /// The words before its minion that take rights from it.
    pub(crate) rights: Vec<String>,
    /// The disk below its state, in bytes.
    pub(crate) disk_bytes: Option<u64>,
    /// So many files may be open.
    pub(crate) files: Option<usize>,
}

/// What surrounds the processes of one host.
#[derive(Debug)]
pub(crate) struct Surroundings {
    pub(crate) enclosure: Option<Enclosure>,
    pub(crate) disk_bytes: Option<u64>,
    pub(crate) has_journal: bool,
    pub(crate) has_users: bool,
    right_words: Vec<String>,
    clock_words: Vec<String>,
    files: Option<usize>,
}

impl Surroundings {
    pub(crate) fn new(own: &Own, hub: Option<&Hub>, clock: Option<&Clock>) -> Self {
        let net = if own.network { Net::Own } else { Net::Shared };
        let is_enclosed = own.network || own.processes || own.journal || own.users || own.disk_bytes.is_some() || clock.is_some();
        let enclosure = is_enclosed.then(|| Enclosure::new(net, Pids::Own, hub.map(Hub::enclosure)));
        Self {
            enclosure,
            disk_bytes: own.disk_bytes,
            has_journal: own.journal,
            has_users: own.users,
            right_words: own.rights.clone(),
            clock_words: clock.map(Clock::words).unwrap_or_default(),
            files: own.files,
        }
    }

    /// The words that take rights from the host's minion.
    pub(crate) fn right_words(&self) -> &[String] {
        &self.right_words
    }

    /// The words before a command that put it there.
    pub(crate) fn words(&self) -> Vec<String> {
        let enter = self.enclosure.as_ref().map(Enclosure::enter).unwrap_or_default();
        let limit = self.files.map(|files| vec!["prlimit".to_owned(), format!("--nofile={files}")]).unwrap_or_default();
        [enter, limit, self.right_words.clone(), self.clock_words.clone()].concat()
    }
}
