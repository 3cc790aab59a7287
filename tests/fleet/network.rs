//! A fleet's own network: the overlord's commands in one network namespace, the hub, each minion in another, and a cable from each of
//! them to the hub, which can be cut and mended. The machine's own network is not touched.

use std::net::{Ipv4Addr, SocketAddr};

use crate::enclosure::{Enclosure, Net, Pids};

/// An address of hardware that nobody has: packets to it leave, and nobody takes them.
const NOBODY: &str = "02:00:00:00:ff:ff";

/// Where every minion of such a fleet listens: each has its address for itself.
const PORT: u16 = 51234;

/// The hub, where the overlord's commands run.
#[derive(Debug)]
pub(crate) struct Hub {
    enclosure: Enclosure,
}

/// The cable from the hub to the host of that number, from 1.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cable(pub(crate) u8);

impl Hub {
    pub(crate) fn new(networked: bool) -> Self {
        Self { enclosure: Enclosure::new(if networked { Net::Own } else { Net::Shared }, Pids::Shared, None) }
    }

    /// Whether hosts can be joined to it.
    pub(crate) fn is_networked(&self) -> bool {
        self.enclosure.net() == Net::Own
    }

    pub(crate) fn enclosure(&self) -> &Enclosure {
        &self.enclosure
    }

    /// Joins a host to the hub.
    pub(crate) fn join(&self, cable: Cable, host: &Enclosure) {
        let (near, far) = (cable.name(), host.first().to_string());
        let (hub_address, host_address) = (format!("{}/30", cable.hub()), format!("{}/30", cable.host()));
        let make = ["ip", "link", "add", &near, "address", &cable.hub_hardware(), "type", "veth", "peer", "name", "eth0"];
        self.ip(&[&make[1..], &["address", &cable.host_hardware(), "netns", &far]].concat());
        self.ip(&["address", "add", &hub_address, "dev", &near]);
        self.ip(&["link", "set", &near, "up"]);
        host.run(&["ip", "address", "add", &host_address, "dev", "eth0"]);
        host.run(&["ip", "link", "set", "eth0", "up"]);
        host.run(&["ip", "link", "set", "lo", "up"]);
    }

    /// Takes the cable out: who sends learns that there is no way.
    pub(crate) fn cut(&self, cable: Cable) {
        self.ip(&["link", "set", &cable.name(), "down"]);
    }

    /// Lets packets vanish, both ways, while the link looks sound.
    pub(crate) fn black_hole(&self, cable: Cable, host: &Enclosure) {
        self.ip(&["neighbour", "replace", &cable.host().to_string(), "lladdr", NOBODY, "dev", &cable.name(), "nud", "permanent"]);
        host.run(&["ip", "neighbour", "replace", &cable.hub().to_string(), "lladdr", NOBODY, "dev", "eth0", "nud", "permanent"]);
    }

    /// Undoes both.
    pub(crate) fn mend(&self, cable: Cable, host: &Enclosure) {
        self.ip(&["link", "set", &cable.name(), "up"]);
        let (near, far) = (cable.hub_hardware(), cable.host_hardware());
        self.ip(&["neighbour", "replace", &cable.host().to_string(), "lladdr", &far, "dev", &cable.name(), "nud", "permanent"]);
        host.run(&["ip", "neighbour", "replace", &cable.hub().to_string(), "lladdr", &near, "dev", "eth0", "nud", "permanent"]);
    }

    fn ip(&self, words: &[&str]) {
        self.enclosure.run(&[&["ip"], words].concat());
    }
}

impl Cable {
    /// Where the minion at its end listens.
    pub(crate) fn address(self) -> SocketAddr {
        (self.host(), PORT).into()
    }

    fn name(self) -> String {
        format!("host{}", self.0)
    }

    fn hub(self) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, self.0, 1)
    }

    fn host(self) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, self.0, 2)
    }

    fn hub_hardware(self) -> String {
        format!("02:00:00:00:{:02x}:01", self.0)
    }

    fn host_hardware(self) -> String {
        format!("02:00:00:00:{:02x}:02", self.0)
    }
}
