//! Refusals that anybody can bring about again and again, counted: who shows no certificate must not fill the log, and so drive out of it what
//! counts. It decides nothing, and writes nothing.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::{Action, Decision, Entry};

/// So long after the first refusal of an address, further ones are counted.
pub(in crate::authority) const COUNTED_FOR: Duration = Duration::from_secs(60);
/// So many refusals of an address are written down first: they say who, and why.
const WRITTEN_MAX: u64 = 8;
/// So many addresses are counted each by itself, and all others together. With [`WRITTEN_MAX`] it bounds the lines of a minute.
const ADDRESSES_MAX: usize = 256;

/// What was refused within the last minute.
#[derive(Debug, Default)]
pub(super) struct Repeats(Mutex<HashMap<Option<IpAddr>, Count>>);

#[derive(Debug)]
struct Count {
    /// Where the first came from.
    peer: Option<SocketAddr>,
    since: Instant,
    written: u64,
    more: u64,
}

impl Repeats {
    /// Whether it is one that is counted, and not written down.
    pub(super) fn is_repeated(&self, entry: &Entry, now: Instant) -> bool {
        let is_refusal = matches!(entry.decision, Decision::Refused | Decision::Failed);
        let (Some(peer), None, true) = (entry.peer, &entry.fingerprint, is_refusal) else { return false };
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let address = Some(peer.ip().to_canonical());
        if let Some(count) = counts.get_mut(&address) {
            let is_repeated = count.written >= WRITTEN_MAX;
            *(if is_repeated { &mut count.more } else { &mut count.written }) += 1;
            return is_repeated;
        }
        if counts.len() < ADDRESSES_MAX {
            counts.insert(address, Count { peer: Some(peer), since: now, written: 1, more: 0 });
            return false;
        }
        counts.entry(None).or_insert(Count { peer: None, since: now, written: 0, more: 0 }).more += 1;
        true
    }

    /// What is to be written down at `now`, and is counted no longer.
    pub(super) fn due(&self, now: Instant) -> Vec<Entry> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let over = counts.extract_if(|_, count| now.duration_since(count.since) >= COUNTED_FOR);
        over.filter(|(_, count)| count.more > 0).map(|(_, count)| count.told()).collect()
    }
}

impl Count {
    fn told(&self) -> Entry {
        let whose = if self.peer.is_some() { "" } else { " of other addresses" };
        let reason = format!("refused {} more times{whose} within {} s", self.more, COUNTED_FOR.as_secs());
        let mut entry = Entry::new("nobody".to_owned(), Action::Other, Decision::Refused).decided(Decision::Refused, Some(reason));
        entry.peer = self.peer;
        entry
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may panic")]
    use super::*;

    fn refused(address: &str) -> Entry {
        let mut entry = Entry::new("nobody".to_owned(), Action::Enroll, Decision::Refused);
        entry.peer = Some(address.parse().unwrap());
        entry
    }

    #[test]
    fn the_first_refusals_of_an_address_are_written_down_and_the_others_are_counted_for_a_minute() {
        let (repeats, now) = (Repeats::default(), Instant::now());
        let ports = |ip: &str| (1..=1000).filter(|port| !repeats.is_repeated(&refused(&format!("{ip}:{port}")), now)).count();
        assert_eq!((ports("10.0.0.1"), ports("10.0.0.2")), (8, 8));
        assert!(repeats.due(now + COUNTED_FOR / 2).is_empty());
        let mut told = repeats.due(now + COUNTED_FOR);
        told.sort_by_key(|entry| entry.peer);
        assert_eq!(told.len(), 2);
        assert_eq!(told[0].reason.as_deref(), Some("refused 992 more times within 60 s"));
        assert_eq!(told[0].peer, Some("10.0.0.1:1".parse().unwrap()));
        assert_eq!(ports("10.0.0.1"), 8, "another minute has begun");
    }

    #[test]
    fn what_was_done_and_what_becomes_of_certificates_is_never_counted() {
        let (repeats, now) = (Repeats::default(), Instant::now());
        let shown = Entry { fingerprint: Some("00".to_owned()), ..refused("10.0.0.1:1") };
        let done = refused("10.0.0.1:1").decided(Decision::Done, None);
        let here = Entry { peer: None, ..refused("10.0.0.1:1") };
        for entry in [shown, done, here] {
            assert!((0..=WRITTEN_MAX).all(|_| !repeats.is_repeated(&entry, now)));
        }
    }

    #[test]
    fn what_comes_from_very_many_addresses_is_counted_together() {
        let (repeats, now) = (Repeats::default(), Instant::now());
        let address = |number: usize| format!("10.0.{}.{}:1", number / 256, number % 256);
        let written = (0..2 * ADDRESSES_MAX).filter(|number| !repeats.is_repeated(&refused(&address(*number)), now)).count();
        assert_eq!(written, ADDRESSES_MAX);
        let told = repeats.due(now + COUNTED_FOR);
        let reason = format!("refused {ADDRESSES_MAX} more times of other addresses within 60 s");
        assert!(told.len() == 1 && told[0].reason.as_ref() == Some(&reason), "{told:?}");
    }
}
