//! Connections that have proved nothing yet: a bounded number of them, in their TLS handshake. When there are as many as may be, the newest finds a
//! place all the same, and another goes: one that has not said a word before one that has, and of these the oldest of the address that has most of
//! them. Who keeps silent keeps nobody out.

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
    /// Of each group those that are there, by number: the oldest first. None is empty.
    groups: HashMap<Group, BTreeMap<u64, Arc<Notify>>>,
    /// How many each group has, and the number of its oldest: the last is whose oldest goes first.
    ranks: BTreeSet<Rank>,
    count: usize,
}

/// Those that are alike: what they have said, and where they come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Group {
    is_silent: bool,
    origin: IpAddr,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    is_silent: bool,
    count: usize,
    oldest: Reverse<u64>,
    group: Group,
}

/// One connection among them, until this is dropped.
#[derive(Debug)]
pub(super) struct Arrival {
    arrivals: Arc<Arrivals>,
    group: Group,
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
        self.take_in(Group { is_silent: true, origin: origin(address) })
    }

    fn take_in(self: &Arc<Self>, group: Group) -> (Arrival, bool) {
        let mut queue = self.queue();
        let is_full = queue.count >= self.max;
        let has_displaced = is_full && queue.displace();
        let (number, displaced) = queue.push(group);
        (Arrival { arrivals: Arc::clone(self), group, number, displaced }, has_displaced)
    }

    /// Lets every second one go, the oldest first. Gives how many those are.
    pub(super) fn thin_out(&self) -> usize {
        let mut queue = self.queue();
        let half = queue.count.div_ceil(2);
        (0..half).filter(|_| queue.displace()).count()
    }

    /// Every change is one call, so it is whole even if a thread died while it held the lock.
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    fn push(&mut self, group: Group) -> (u64, Arc<Notify>) {
        self.last += 1;
        let (number, displaced) = (self.last, Arc::new(Notify::new()));
        self.change(group, |members| members.insert(number, Arc::clone(&displaced)));
        (number, displaced)
    }

    fn displace(&mut self) -> bool {
        let Some(rank) = self.ranks.last().copied() else { return false };
        if let Some(displaced) = self.change(rank.group, |group| group.remove(&rank.oldest.0)) {
            displaced.notify_one();
        }
        true
    }

    /// Changes one group, and its rank and the count with it.
    fn change<T>(&mut self, group: Group, change: impl FnOnce(&mut BTreeMap<u64, Arc<Notify>>) -> T) -> T {
        let members = self.groups.entry(group).or_default();
        if let Some(rank) = rank(group, members) {
            self.ranks.remove(&rank);
        }
        self.count -= members.len();
        let changed = change(members);
        self.count += members.len();
        match rank(group, members) {
            Some(rank) => drop(self.ranks.insert(rank)),
            None => drop(self.groups.remove(&group)),
        }
        changed
    }
}

impl Arrival {
    /// It has said something. If it has been displaced, it takes the place of another.
    pub(super) fn has_spoken(&self) -> Self {
        self.leave();
        self.arrivals.take_in(Group { is_silent: false, ..self.group }).0
    }

    /// Until it has to go.
    pub(super) async fn displaced(&self) {
        self.displaced.notified().await;
    }

    fn leave(&self) {
        self.arrivals.queue().change(self.group, |members| members.remove(&self.number));
    }
}

impl Drop for Arrival {
    fn drop(&mut self) {
        self.leave();
    }
}

fn rank(group: Group, members: &BTreeMap<u64, Arc<Notify>>) -> Option<Rank> {
    let (oldest, _) = members.first_key_value()?;
    Some(Rank { is_silent: group.is_silent, count: members.len(), oldest: Reverse(*oldest), group })
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
        let queue = arrival.arrivals.queue();
        !queue.groups.values().any(|group| group.contains_key(&arrival.number))
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
        let arrivals = Arrivals::new(3);
        let spoken = [enter(&arrivals, "10.0.0.1").has_spoken(), enter(&arrivals, "10.0.0.1").has_spoken()];
        let silent = enter(&arrivals, "10.0.0.2");
        let next = enter(&arrivals, "10.0.0.3");
        assert!(has_gone(&silent) && !spoken.iter().any(has_gone));
        silent.displaced().await;
        // It had spoken, and was not heard.
        let heard = silent.has_spoken();
        assert!(has_gone(&next) && !has_gone(&heard) && !spoken.iter().any(has_gone));
        let _last = enter(&arrivals, "10.0.0.4");
        assert!(has_gone(spoken.first().unwrap()) && !has_gone(&heard));
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
        assert_eq!(arrivals.queue().count, 2);
        assert_eq!(arrivals.thin_out(), 1);
        drop(held);
        let queue = arrivals.queue();
        assert!(queue.count == 0 && queue.groups.is_empty() && queue.ranks.is_empty(), "{queue:?}");
    }
}
