//! Connections that have proved nothing yet: a bounded number of them, in their TLS handshake. When there are as many as may be, the newest finds a
//! place all the same, and the oldest goes, of the address that has most of them: who keeps silent keeps nobody out.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

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
    /// Of each origin those that are there, by number: the oldest first. None is empty.
    by_origin: HashMap<IpAddr, BTreeMap<u64, oneshot::Sender<()>>>,
    /// How many each origin has, and the number of its oldest: the last is whose oldest goes first.
    ranks: BTreeSet<(usize, Reverse<u64>, IpAddr)>,
    count: usize,
}

/// One connection among them, until this is dropped.
#[derive(Debug)]
pub(super) struct Arrival {
    arrivals: Arc<Arrivals>,
    origin: IpAddr,
    number: u64,
    displaced: oneshot::Receiver<()>,
}

impl Arrivals {
    /// At most `max` at once.
    pub(super) fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { max: max.max(1), queue: Mutex::default() })
    }

    /// A connection that was accepted, and whether another had to go for it.
    pub(super) fn enter(self: &Arc<Self>, address: IpAddr) -> (Arrival, bool) {
        let origin = origin(address);
        let mut queue = self.queue();
        let is_full = queue.count >= self.max;
        let has_displaced = is_full && queue.displace();
        let (number, displaced) = queue.push(origin);
        (Arrival { arrivals: Arc::clone(self), origin, number, displaced }, has_displaced)
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
    fn push(&mut self, origin: IpAddr) -> (u64, oneshot::Receiver<()>) {
        self.last += 1;
        let number = self.last;
        let (displace, displaced) = oneshot::channel();
        self.change(origin, |of_origin| of_origin.insert(number, displace));
        (number, displaced)
    }

    fn remove(&mut self, origin: IpAddr, number: u64) {
        self.change(origin, |of_origin| of_origin.remove(&number));
    }

    fn displace(&mut self) -> bool {
        let Some((_, Reverse(oldest), origin)) = self.ranks.last().copied() else { return false };
        if let Some(displace) = self.change(origin, |of_origin| of_origin.remove(&oldest)) {
            let _has_ended_by_itself = displace.send(());
        }
        true
    }

    /// Changes those of one origin, and its rank and the count with them.
    fn change<T>(&mut self, origin: IpAddr, change: impl FnOnce(&mut BTreeMap<u64, oneshot::Sender<()>>) -> T) -> T {
        let of_origin = self.by_origin.entry(origin).or_default();
        if let Some(rank) = rank(origin, of_origin) {
            self.ranks.remove(&rank);
        }
        self.count -= of_origin.len();
        let changed = change(of_origin);
        self.count += of_origin.len();
        match rank(origin, of_origin) {
            Some(rank) => drop(self.ranks.insert(rank)),
            None => drop(self.by_origin.remove(&origin)),
        }
        changed
    }
}

impl Arrival {
    /// Until it has to go.
    pub(super) async fn displaced(&mut self) {
        // The sender is dropped with the entry alone, which is there as long as this is, unless it is displaced.
        let _displaced = (&mut self.displaced).await;
    }
}

impl Drop for Arrival {
    fn drop(&mut self) {
        self.arrivals.queue().remove(self.origin, self.number);
    }
}

fn rank(origin: IpAddr, of_origin: &BTreeMap<u64, oneshot::Sender<()>>) -> Option<(usize, Reverse<u64>, IpAddr)> {
    let (oldest, _) = of_origin.first_key_value()?;
    Some((of_origin.len(), Reverse(*oldest), origin))
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

    fn has_gone(arrival: &mut Arrival) -> bool {
        arrival.displaced.try_recv().is_ok()
    }

    #[test]
    fn the_oldest_of_the_address_with_most_goes() {
        let arrivals = Arrivals::new(4);
        let mut lone = enter(&arrivals, "10.0.0.9");
        let mut many: Vec<Arrival> = (0..3).map(|_| enter(&arrivals, "10.0.0.1")).collect();
        let mut next = enter(&arrivals, "10.0.0.2");
        assert!(has_gone(many.first_mut().unwrap()));
        assert!(!has_gone(&mut lone) && !has_gone(&mut next) && !many.iter_mut().skip(1).any(has_gone));
        // With as many each, the oldest of all.
        drop(many.pop());
        let mut later = enter(&arrivals, "10.0.0.3");
        let mut last = enter(&arrivals, "10.0.0.4");
        assert!(has_gone(&mut lone) && !has_gone(&mut later) && !has_gone(&mut last));
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
        assert!(queue.count == 0 && queue.by_origin.is_empty() && queue.ranks.is_empty(), "{queue:?}");
    }
}
