//! Which revocation list each host goes by, as the headers of its answers say. It is what hosts say: whoever acts on it checks what comes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use common::identity::MinionName;
use common::protocol::certs::REVOCATIONS_HEADER;
use http::HeaderMap;

use crate::hosts::Host;

/// What was heard. A host that says nothing of lists, of an older version, is not in it.
#[derive(Debug, Default)]
pub(crate) struct Heard(Mutex<Hosts>);

#[derive(Debug, Default)]
struct Hosts {
    numbers: BTreeMap<MinionName, (String, u64)>,
    /// Who has been spoken to about lists: once is enough for one process.
    spoken_to: BTreeSet<MinionName>,
}

impl Heard {
    pub(crate) fn note(&self, host: &MinionName, address: &str, headers: &HeaderMap) {
        let number = headers.get(REVOCATIONS_HEADER).and_then(|number| number.to_str().ok()?.parse().ok());
        if let Some(number) = number {
            self.hosts().numbers.insert(host.clone(), (address.to_owned(), number));
        }
    }

    /// The hosts that go by a list of another number than `ours`, the newest lists first, but for those that were spoken to.
    pub(crate) fn others_than(&self, ours: u64) -> Vec<(u64, Host)> {
        let hosts = self.hosts();
        let differs = |(name, (_, number)): &(&MinionName, &(String, u64))| *number != ours && !hosts.spoken_to.contains(*name);
        let host = |(name, (address, number)): (&MinionName, &(String, u64))| {
            (*number, Host { name: name.clone(), address: address.clone(), groups: Vec::new(), vars: BTreeMap::new() })
        };
        let mut others: Vec<(u64, Host)> = hosts.numbers.iter().filter(differs).map(host).collect();
        others.sort_by_key(|(number, _)| std::cmp::Reverse(*number));
        others
    }

    /// Says that these hosts are being spoken to.
    pub(crate) fn speak_to<'h>(&self, hosts: impl IntoIterator<Item = &'h Host>) {
        self.hosts().spoken_to.extend(hosts.into_iter().map(|host| host.name.clone()));
    }

    /// Every change is one call, so it is whole even if a thread died while it held the lock.
    fn hosts(&self) -> MutexGuard<'_, Hosts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;

    fn headers(number: &str) -> HeaderMap {
        HeaderMap::from_iter([(REVOCATIONS_HEADER.parse().unwrap(), number.parse().unwrap())])
    }

    #[test]
    fn who_has_another_list_is_spoken_to_once() {
        let heard = Heard::default();
        for (host, number) in [("web1", "3"), ("web2", "5"), ("web3", "4"), ("web4", "-1"), ("web5", "many")] {
            heard.note(&host.parse().unwrap(), "10.0.0.1:1", &headers(number));
        }
        heard.note(&"old".parse().unwrap(), "10.0.0.1:1", &HeaderMap::new());
        let names = |ours| heard.others_than(ours).into_iter().map(|(number, host)| (number, host.name.to_string())).collect::<Vec<_>>();
        assert_eq!(names(4), [(5, "web2".to_owned()), (3, "web1".to_owned())]);
        heard.speak_to(heard.others_than(4).iter().map(|(_, host)| host));
        assert!(names(4).is_empty());
        assert_eq!(names(5), [(4, "web3".to_owned())]);
    }
}
