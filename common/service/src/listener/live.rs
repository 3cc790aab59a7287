//! The connections whose handshake is over: a bounded number of them, of strangers fewer, and how each is cut. When there are as many as may be, the
//! newest finds a place if another keeps us waiting: that one goes. Whoever is being answered stays.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use certs::tls::Peer;
use common::identity::Role;
use tokio::sync::oneshot;

use super::Limits;
use super::arrivals::origin;
use super::idle::Pulse;

/// The bounds of those who show no certificate.
#[derive(Debug, Clone)]
pub struct Strangers {
    /// Connections of theirs held open at once.
    pub connections_max: usize,
    /// Connections of theirs that come from one address (of IPv6, from one network of 64 bits).
    pub per_address_max: usize,
    /// How long a connection of theirs may stay open without a request.
    pub idle_timeout: Duration,
}

/// The connections of a listener that are past their handshake.
#[derive(Debug)]
pub(super) struct Live {
    max: usize,
    strangers: Option<Strangers>,
    idle_timeout: Duration,
    header_timeout: Duration,
    entered: Mutex<Entered>,
}

#[derive(Debug, Default)]
struct Entered {
    last: u64,
    connections: HashMap<u64, Entry>,
}

#[derive(Debug)]
struct Entry {
    group: Group,
    /// None: a stranger.
    peer: Option<Peer>,
    pulse: Arc<Pulse>,
    /// Taken when the connection is to make room.
    displace: Option<oneshot::Sender<()>>,
    /// Taken when the connection is cut.
    cut: Option<oneshot::Sender<String>>,
}

/// Whose connections count together.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Group {
    Peer(Role),
    Strangers(IpAddr),
}

/// Why a connection is to end.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum End {
    /// At once, whatever it is doing.
    Cut(String),
    /// Unless it is being answered: another takes its place.
    Displaced,
}

/// One connection's place among the live ones. Dropped, it is none of them any more.
#[derive(Debug)]
pub(super) struct Place<'l> {
    live: &'l Live,
    number: u64,
    pulse: Arc<Pulse>,
    displaced: Option<oneshot::Receiver<()>>,
    cut: Option<oneshot::Receiver<String>>,
}

impl Live {
    /// At most `connections_max` at once.
    pub(super) fn new(connections_max: usize, limits: &Limits) -> Self {
        Self {
            max: connections_max.max(1),
            strangers: limits.strangers.clone(),
            idle_timeout: limits.idle_timeout,
            header_timeout: limits.header_timeout,
            entered: Mutex::default(),
        }
    }

    /// A place for a connection with `peer`, or with a stranger.
    ///
    /// # Errors
    /// It is one too many, and all others are being answered: which limit is reached, for the log.
    pub(super) fn enter(&self, peer: Option<&Peer>, address: IpAddr) -> Result<Place<'_>, String> {
        let group = peer.map_or_else(|| Group::Strangers(origin(address)), |peer| Group::Peer(peer.role.clone()));
        let mut entered = self.entered();
        self.make_room(&mut entered, &group)?;
        let idle_timeout = match (&group, &self.strangers) {
            (Group::Strangers(_), Some(strangers)) => strangers.idle_timeout,
            _ => self.idle_timeout,
        };
        let pulse = Arc::new(Pulse::new(idle_timeout, self.header_timeout));
        let ((displace, displaced), (cut, is_cut)) = (oneshot::channel(), oneshot::channel());
        entered.last += 1;
        let number = entered.last;
        let entry = Entry { group, peer: peer.cloned(), pulse: Arc::clone(&pulse), displace: Some(displace), cut: Some(cut) };
        entered.connections.insert(number, entry);
        Ok(Place { live: self, number, pulse, displaced: Some(displaced), cut: Some(is_cut) })
    }

    /// Cuts each connection against whose peer `admits` has a reason. One that has shown no certificate is never cut.
    pub(super) fn cut_unless(&self, admits: impl Fn(&Peer) -> Result<(), String>) {
        self.entered().connections.retain(|_, entry| {
            let Some(Err(reason)) = entry.peer.as_ref().map(&admits) else { return true };
            let _has_ended_by_itself = entry.cut.take().map(|cut| cut.send(reason));
            false
        });
    }

    /// Lets one go that keeps us waiting, if one does.
    pub(super) fn let_one_go(&self) -> bool {
        self.entered().displace(|_| true)
    }

    fn make_room(&self, entered: &mut Entered, group: &Group) -> Result<(), String> {
        let is_strangers = |other: &Group| matches!(other, Group::Strangers(_));
        if let (Group::Strangers(_), Some(Strangers { connections_max, per_address_max, .. })) = (group, &self.strangers) {
            if entered.has(*per_address_max, |other| other == group) && !entered.displace(|other| other == group) {
                return Err(format!(
                    "it shows no certificate, and {per_address_max} connections of its address without one are open, as many as may be"
                ));
            }
            if entered.has(*connections_max, is_strangers) && !entered.displace(is_strangers) {
                return Err(format!("it shows no certificate, and {connections_max} connections without one are open, as many as may be"));
            }
        }
        let may_displace_all = !is_strangers(group) || self.strangers.is_none();
        let is_full = entered.has(self.max, |_| true);
        if is_full && !entered.displace(is_strangers) && !(may_displace_all && entered.displace(|_| true)) {
            return Err(format!("{} connections are open, as many as may be, and all of them are being answered", self.max));
        }
        Ok(())
    }

    fn entered(&self) -> MutexGuard<'_, Entered> {
        self.entered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entered {
    /// Whether so many of those groups are here, and are to stay.
    fn has(&self, max: usize, among: impl Fn(&Group) -> bool) -> bool {
        self.connections.len() >= max && self.staying().filter(|(_, entry)| among(&entry.group)).count() >= max
    }

    /// Of those groups, lets the connection go that has kept us waiting longest, of the one that has most.
    fn displace(&mut self, among: impl Fn(&Group) -> bool) -> bool {
        let mut sizes = HashMap::<&Group, usize>::new();
        self.staying().for_each(|(_, entry)| *sizes.entry(&entry.group).or_default() += 1);
        let waiting = self.staying().filter(|(_, entry)| among(&entry.group)).filter_map(|(number, entry)| {
            let since = entry.pulse.waiting_since()?;
            Some((sizes.get(&entry.group), Reverse(since), *number))
        });
        let Some((_, _, number)) = waiting.max() else { return false };
        let _has_ended_by_itself =
            self.connections.get_mut(&number).and_then(|entry| entry.displace.take()).map(|displace| displace.send(()));
        true
    }

    fn staying(&self) -> impl Iterator<Item = (&u64, &Entry)> {
        self.connections.iter().filter(|(_, entry)| entry.displace.is_some())
    }
}

impl Place<'_> {
    /// What the connection does, and since when.
    pub(super) fn pulse(&self) -> &Arc<Pulse> {
        &self.pulse
    }

    /// Until the connection is to end, and why. May be dropped and asked again until then, and after it was displaced.
    pub(super) async fn end(&mut self) -> End {
        tokio::select! {
            biased;
            reason = told(&mut self.cut) => End::Cut(reason),
            () = told(&mut self.displaced) => End::Displaced,
        }
    }
}

/// What is told, once; for ever, if nothing is any more.
async fn told<T>(receiver: &mut Option<oneshot::Receiver<T>>) -> T {
    if let Some(waiting) = receiver.as_mut() {
        let told = waiting.await;
        *receiver = None;
        if let Ok(told) = told {
            return told;
        }
    }
    std::future::pending().await
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.live.entered().connections.remove(&self.number);
    }
}
