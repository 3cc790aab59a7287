//! The connections whose handshake is over, and how each is cut.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use certs::tls::Peer;
use tokio::sync::oneshot;

/// The connections of a listener whose peers can be told from others.
#[derive(Debug, Default)]
pub(super) struct Live(Mutex<Entered>);

#[derive(Debug, Default)]
struct Entered {
    last: u64,
    connections: HashMap<u64, Entry>,
}

#[derive(Debug)]
struct Entry {
    peer: Peer,
    /// Taken when the connection is cut.
    cut: Option<oneshot::Sender<String>>,
}

/// One connection's place among the live ones. Dropped, it is none of them any more.
#[derive(Debug)]
pub(super) struct Place<'l> {
    live: &'l Live,
    number: Option<u64>,
    cut: Option<oneshot::Receiver<String>>,
}

impl Live {
    /// A place for a connection with `peer`. One that has shown no certificate is never cut.
    pub(super) fn enter(&self, peer: Option<&Peer>) -> Place<'_> {
        let Some(peer) = peer.cloned() else { return Place { live: self, number: None, cut: None } };
        let (cut, receiver) = oneshot::channel();
        let mut entered = self.entered();
        entered.last += 1;
        let number = entered.last;
        entered.connections.insert(number, Entry { peer, cut: Some(cut) });
        Place { live: self, number: Some(number), cut: Some(receiver) }
    }

    /// Cuts each connection against whose peer `admits` has a reason.
    pub(super) fn cut_unless(&self, admits: impl Fn(&Peer) -> Result<(), String>) {
        self.entered().connections.retain(|_, entry| {
            let Err(reason) = admits(&entry.peer) else { return true };
            let _has_ended_by_itself = entry.cut.take().map(|cut| cut.send(reason));
            false
        });
    }

    fn entered(&self) -> MutexGuard<'_, Entered> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place<'_> {
    /// Until the connection is to be cut, and why. May be dropped and asked again until then.
    pub(super) async fn cut(&mut self) -> String {
        if let Some(cut) = self.cut.as_mut() {
            let told = cut.await;
            self.cut = None;
            if let Ok(reason) = told {
                return reason;
            }
        }
        std::future::pending().await
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            self.live.entered().connections.remove(&number);
        }
    }
}
