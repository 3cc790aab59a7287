//! Connections that have proved nothing yet: a bounded number of them, in their TLS handshake. When there are as many as may be, the newest finds a
//! place all the same, and another goes: of those that have not said a word yet, or of those that have, whichever are more, and of these the oldest
//! of the address that has most of them. So who keeps silent keeps out nobody who speaks, and who speaks nobody who is about to, while they
//! are no more than half.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// The network of an IPv6 address that one customer has for himself.
const IPV6_NETWORK: u128 = !0 << 64;

/// The connections in their handshake.
#[derive(Debug)]
pub(super) struct Arrivals {
    max: usize,
    queue: Mutex<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    last: u64,
    silent: Crowd,
    spoken: Crowd,
}

/// Whether a connection has said something yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Silent,
    Spoken,
}

/// The connections of one kind.
#[derive(Debug, Default)]
struct Crowd {
    /// Of each address those that are there, by number: the oldest first. None is empty.
    origins: HashMap<IpAddr, BTreeMap<u64, Arc<Notify>>>,
    /// How many each address has, and the number of its oldest: the last is whose oldest goes first.
    ranks: BTreeSet<Rank>,
    count: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    count: usize,
    oldest: Reverse<u64>,
    origin: IpAddr,
}

/// One connection among them, until this is dropped.
#[derive(Debug)]
pub(super) struct Arrival {
    arrivals: Arc<Arrivals>,
    kind: Kind,
    origin: IpAddr,
    number: u64,
    displaced: Arc<Notify>,
}

impl Arrivals {
    /// At most `max` at once.
    pub(super) fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { max: max.max(1), queue: Mutex::default() })
    }

    /// A connection that was accepted, and whether another had to go for it.
    pub(super) fn enter(self: &Arc<Self>, address: IpAddr) -> (Arrival, bool) {
        self.take_in(Kind::Silent, origin(address))
    }

    fn take_in(self: &Arc<Self>, kind: Kind, origin: IpAddr) -> (Arrival, bool) {
        let mut queue = self.queue();
        let is_full = queue.count() >= self.max;
        let has_displaced = is_full && queue.displace();
        let (number, displaced) = queue.push(kind, origin);
        (Arrival { arrivals: Arc::clone(self), kind, origin, number, displaced }, has_displaced)
    }

    /// Lets every second one go, the oldest first. Gives how many those are.
    pub(super) fn thin_out(&self) -> usize {
        let mut queue = self.queue();
        let half = queue.count().div_ceil(2);
        (0..half).filter(|_| queue.displace()).count()
    }

    /// Every change is one call, so it is whole even if a thread died while it held the lock.
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    fn push(&mut self, kind: Kind, origin: IpAddr) -> (u64, Arc<Notify>) {
        self.last += 1;
        let (number, displaced) = (self.last, Arc::new(Notify::new()));
        self.crowd(kind).change(origin, |members| members.insert(number, Arc::clone(&displaced)));
        (number, displaced)
    }

    /// Of the kind of which there are more. Where there are as many of each, it falls on the address that has most of either; and the silent
    /// have less to lose.
    fn displace(&mut self) -> bool {
        let size = |crowd: &Crowd| (crowd.count, crowd.ranks.last().map(|rank| rank.count));
        let kind = if size(&self.silent) >= size(&self.spoken) { Kind::Silent } else { Kind::Spoken };
        self.crowd(kind).displace()
    }

    fn crowd(&mut self, kind: Kind) -> &mut Crowd {
        match kind {
            Kind::Silent => &mut self.silent,
            Kind::Spoken => &mut self.spoken,
        }
    }

    fn count(&self) -> usize {
        self.silent.count + self.spoken.count
    }
}

impl Crowd {
    /// Lets the oldest go of the address with most.
    fn displace(&mut self) -> bool {
        let Some(rank) = self.ranks.last().copied() else { return false };
        if let Some(displaced) = self.change(rank.origin, |members| members.remove(&rank.oldest.0)) {
            displaced.notify_one();
        }
        true
    }

    /// Changes what one address has, and its rank and the count with it.
    fn change<T>(&mut self, origin: IpAddr, change: impl FnOnce(&mut BTreeMap<u64, Arc<Notify>>) -> T) -> T {
        let members = self.origins.entry(origin).or_default();
        if let Some(rank) = rank(origin, members) {
            self.ranks.remove(&rank);
        }
        self.count -= members.len();
        let changed = change(members);
        self.count += members.len();
        match rank(origin, members) {
            Some(rank) => drop(self.ranks.insert(rank)),
            None => drop(self.origins.remove(&origin)),
        }
        changed
    }
}

impl Arrival {
    /// It has said something. If it has been displaced, it takes the place of another.
    pub(super) fn has_spoken(&self) -> Self {
        self.leave();
        self.arrivals.take_in(Kind::Spoken, self.origin).0
    }

    /// Until it has to go.
    pub(super) async fn displaced(&self) {
        self.displaced.notified().await;
    }

    fn leave(&self) {
        self.arrivals.queue().crowd(self.kind).change(self.origin, |members| members.remove(&self.number));
    }
}

impl Drop for Arrival {
    fn drop(&mut self) {
        self.leave();
    }
}

fn rank(origin: IpAddr, members: &BTreeMap<u64, Arc<Notify>>) -> Option<Rank> {
    let (oldest, _) = members.first_key_value()?;
    Some(Rank { count: members.len(), oldest: Reverse(*oldest), origin })
}

/// Whose an address is, as far as one can tell by it.
pub(super) fn origin(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & IPV6_NETWORK).into(),
        address @ IpAddr::V4(_) => address,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;

    fn enter(arrivals: &Arc<Arrivals>, address: &str) -> Arrival {
        arrivals.enter(address.parse().unwrap()).0
    }

    fn has_gone(arrival: &Arrival) -> bool {
        let mut queue = arrival.arrivals.queue();
        !queue.crowd(arrival.kind).origins.values().any(|members| members.contains_key(&arrival.number))
    }

    #[test]
    fn the_oldest_of_the_address_with_most_goes() {
        let arrivals = Arrivals::new(4);
        let lone = enter(&arrivals, "10.0.0.9");
        let mut many: Vec<Arrival> = (0..3).map(|_| enter(&arrivals, "10.0.0.1")).collect();
        let next = enter(&arrivals, "10.0.0.2");
        assert!(has_gone(many.first().unwrap()));
        assert!(!has_gone(&lone) && !has_gone(&next) && !many.iter().skip(1).any(has_gone));
        // With as many each, the oldest of all.
        drop(many.pop());
        let (later, last) = (enter(&arrivals, "10.0.0.3"), enter(&arrivals, "10.0.0.4"));
        assert!(has_gone(&lone) && !has_gone(&later) && !has_gone(&last));
    }

    #[tokio::test]
    async fn who_has_said_nothing_goes_before_who_has() {
        let arrivals = Arrivals::new(4);
        let spoken = [enter(&arrivals, "10.0.0.1").has_spoken(), enter(&arrivals, "10.0.0.2").has_spoken()];
        let silent = enter(&arrivals, "10.0.0.3");
        let _more: Vec<Arrival> = (4..9).map(|host| enter(&arrivals, &format!("10.0.0.{host}"))).collect();
        assert!(has_gone(&silent) && !spoken.iter().any(has_gone));
        silent.displaced().await;
        // It had spoken, and was not heard.
        let heard = silent.has_spoken();
        assert!(!has_gone(&heard) && !spoken.iter().any(has_gone));
    }

    /// What an address with all seats does to keep others out: it comes again and again, and each of its connections speaks.
    fn press(arrivals: &Arc<Arrivals>, address: &str, held: &mut Vec<Arrival>) {
        held.push(enter(arrivals, address));
        held.push(enter(arrivals, address).has_spoken());
    }

    #[test]
    fn an_address_whose_handshakes_have_all_spoken_keeps_no_silent_one_out() {
        for max in [4, 256] {
            let (arrivals, mut held) = (Arrivals::new(max), Vec::new());
            held.extend((0..max).map(|_| enter(&arrivals, "10.0.0.1").has_spoken()));
            let lone = enter(&arrivals, "10.0.0.2");
            (0..4 * max).for_each(|_| press(&arrivals, "10.0.0.1", &mut held));
            assert!(!has_gone(&lone), "max = {max}");
            let lone = lone.has_spoken();
            (0..4 * max).for_each(|_| press(&arrivals, "10.0.0.1", &mut held));
            assert!(!has_gone(&lone), "max = {max}, and it has spoken");
        }
    }

    #[test]
    fn silent_ones_of_many_addresses_keep_no_speaking_one_out() {
        let arrivals = Arrivals::new(256);
        let speaking: Vec<Arrival> = (0..127).map(|_| enter(&arrivals, "10.0.0.1").has_spoken()).collect();
        let _silent: Vec<Arrival> = (0..1000).map(|host| enter(&arrivals, &format!("10.1.{}.{}", host / 250, host % 250))).collect();
        assert!(!speaking.iter().any(has_gone));
    }

    #[test]
    fn a_network_of_ipv6_is_one_address_and_one_of_ipv4_in_ipv6_is_that_of_ipv4() {
        let origin = |text: &str| origin(text.parse().unwrap());
        assert_eq!(origin("2001:db8::1"), origin("2001:db8::ffff:1"));
        assert_ne!(origin("2001:db8::1"), origin("2001:db8:0:1::1"));
        assert_eq!(origin("::ffff:10.0.0.1"), origin("10.0.0.1"));
    }

    #[test]
    fn who_has_gone_leaves_nothing_behind() {
        let arrivals = Arrivals::new(2);
        let held: Vec<Arrival> = (0..9).map(|host| enter(&arrivals, &format!("10.0.0.{}", host % 4))).collect();
        assert_eq!(arrivals.queue().count(), 2);
        assert_eq!(arrivals.thin_out(), 1);
        drop(held);
        let queue = arrivals.queue();
        let is_empty = |crowd: &Crowd| crowd.count == 0 && crowd.origins.is_empty() && crowd.ranks.is_empty();
        assert!(is_empty(&queue.silent) && is_empty(&queue.spoken), "{queue:?}");
    }
}
