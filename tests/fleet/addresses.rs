//! Addresses that nothing else on this machine uses: tests run in parallel, in threads and in processes.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU16, Ordering};

/// The most hosts of one fleet: the last byte of an address.
pub(crate) const HOSTS_MAX: usize = 250;

/// Below the ports that the kernel gives to outgoing connections.
const FIRST_PORT: u16 = 12_000;
const PORTS: u16 = 20_000;

static FLEETS: AtomicU16 = AtomicU16::new(0);

/// A port that no other fleet of this process has.
pub(crate) fn port() -> u16 {
    FIRST_PORT + FLEETS.fetch_add(1, Ordering::Relaxed) % PORTS
}

/// Addresses for a fleet of `hosts`: the process gives the middle of 127.x.y.n, the host its end, and the fleet the port.
pub(crate) fn addresses(hosts: usize) -> Vec<SocketAddr> {
    assert!(hosts <= HOSTS_MAX, "a fleet has at most {HOSTS_MAX} hosts");
    let port = port();
    let process = std::process::id();
    let second = u8::try_from(1 + process / 256 % 254).unwrap();
    let third = u8::try_from(process % 256).unwrap();
    (1..=hosts).map(|host| (Ipv4Addr::new(127, second, third, u8::try_from(host).unwrap()), port).into()).collect()
}
