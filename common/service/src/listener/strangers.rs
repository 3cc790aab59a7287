//! Who has shown no certificate, or none yet: how many connections of theirs may be open, so that those who have one find a place.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The network of an IPv6 address that one customer has for himself.
const IPV6_NETWORK: u128 = !0 << 64;

/// The bounds of those who show no certificate.
#[derive(Debug, Clone)]
pub struct Strangers {
    /// Connections of theirs held open at once. So many of one address may be in their handshake at once, too.
    pub connections_max: usize,
    /// Connections of theirs that come from one address (of IPv6, from one network of 64 bits).
    pub per_address_max: usize,
    /// How long a connection of theirs may stay open without a request.
    pub idle_timeout: Duration,
}

/// The connections that are in their handshake or are strangers'.
#[derive(Debug)]
pub(super) struct Porch {
    limits: Strangers,
    crowd: Mutex<Crowd>,
}

#[derive(Debug, Default)]
struct Crowd {
    strangers: usize,
    by_origin: HashMap<IpAddr, Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    arriving: usize,
    strangers: usize,
}

/// One connection among them, until this is dropped.
#[derive(Debug)]
pub(super) struct Footing {
    porch: Arc<Porch>,
    origin: IpAddr,
    is_stranger: bool,
}

impl Porch {
    pub(super) fn new(limits: Strangers) -> Arc<Self> {
        Arc::new(Self { limits, crowd: Mutex::default() })
    }

    /// A connection that was accepted; none, if as many of its address are in their handshake as may be.
    pub(super) fn arrive(self: &Arc<Self>, address: IpAddr) -> Option<Footing> {
        let origin = origin(address);
        let mut crowd = self.crowd();
        let counts = crowd.by_origin.entry(origin).or_default();
        if counts.arriving >= self.limits.connections_max.max(1) {
            return None;
        }
        counts.arriving += 1;
        Some(Footing { porch: Arc::clone(self), origin, is_stranger: false })
    }

    /// Every change is one call, so it is whole even if a thread died while it held the lock.
    fn crowd(&self) -> MutexGuard<'_, Crowd> {
        self.crowd.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Footing {
    /// The handshake is over, and no certificate was shown. Gives how long the connection may be idle; or why it is one too many.
    pub(super) fn is_a_strangers(&mut self) -> Result<Duration, String> {
        let Strangers { connections_max, per_address_max, idle_timeout } = self.porch.limits;
        let mut crowd = self.porch.crowd();
        if crowd.strangers >= connections_max {
            return Err(format!("it shows no certificate, and {connections_max} connections without one are open, as many as may be"));
        }
        let counts = crowd.by_origin.entry(self.origin).or_default();
        if counts.strangers >= per_address_max {
            return Err(format!(
                "it shows no certificate, and {per_address_max} connections of its address without one are open, as many as may be"
            ));
        }
        counts.strangers += 1;
        counts.arriving = counts.arriving.saturating_sub(1);
        crowd.strangers += 1;
        self.is_stranger = true;
        Ok(idle_timeout)
    }
}

impl Drop for Footing {
    fn drop(&mut self) {
        let mut crowd = self.porch.crowd();
        if self.is_stranger {
            crowd.strangers = crowd.strangers.saturating_sub(1);
        }
        let Some(counts) = crowd.by_origin.get_mut(&self.origin) else { return };
        let count = if self.is_stranger { &mut counts.strangers } else { &mut counts.arriving };
        *count = count.saturating_sub(1);
        if counts.arriving == 0 && counts.strangers == 0 {
            crowd.by_origin.remove(&self.origin);
        }
    }
}

fn origin(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & IPV6_NETWORK).into(),
        address @ IpAddr::V4(_) => address,
    }
}
