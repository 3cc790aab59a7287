//! The network side: TCP and TLS accepted, HTTP bounded, and every request carried to the door with the [`Caller`] that the
//! connection's certificate proves. It decides nothing.

mod connection;
mod idle;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::identity::{CallerName, Role};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::{ServerConfig, ServerConnection};
use tracing::{error, warn};

use crate::config::Limits;
use crate::dispatch::Door;

/// How long to wait after a connection could not be accepted: descriptors or memory are short, and hurry would make it worse.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How often at most a line says that connections are turned away.
const FULL_TOLD_EVERY: Duration = Duration::from_secs(1);

/// Who a connection belongs to. Only a TLS handshake that verified the certificate makes one.
#[derive(Debug)]
pub struct Caller {
    name: CallerName,
    fingerprint: String,
    address: SocketAddr,
}

impl Caller {
    fn of(tls: &ServerConnection, address: SocketAddr) -> Result<Self, String> {
        let chain = tls.peer_certificates().ok_or("the handshake asked for no certificate")?;
        let peer = certs::tls::peer(chain).map_err(|error| error.to_string())?;
        match peer.role {
            Role::Overlord(name) => Ok(Self { name, fingerprint: peer.fingerprint, address }),
            Role::Minion(_) | Role::Authority => Err(format!("{} is no overlord, and nobody else calls", peer.role)),
        }
    }

    /// The name in the certificate.
    #[must_use]
    pub fn name(&self) -> &CallerName {
        &self.name
    }

    /// The SHA-256 of the certificate, in hex.
    #[must_use]
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Where the connection comes from.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// Serves `listener` until `stop` becomes true, or its sender is dropped; then lets running requests end, for `limits.shutdown_grace` at
/// most. Many can run in one process.
pub async fn serve(listener: TcpListener, tls: Arc<ServerConfig>, door: Arc<Door>, limits: Arc<Limits>, mut stop: watch::Receiver<bool>) {
    let mut connections = JoinSet::new();
    let mut accepting = Accepting {
        seats: Arc::new(Semaphore::new(limits.connections_max)),
        turned_away: 0,
        told: None,
        tls: tls.into(),
        door,
        limits,
        stop: stop.clone(),
    };
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, address)) => accepting.seat(&mut connections, stream, address),
                Err(error) => accepting.pause(&error).await,
            },
            Some(ended) = connections.join_next() => tell_panic(ended),
            () = told(&mut stop) => break,
        }
    }
    drop(listener);
    let drain = async {
        while let Some(ended) = connections.join_next().await {
            tell_panic(ended);
        }
    };
    if tokio::time::timeout(accepting.limits.shutdown_grace, drain).await.is_err() {
        warn!(connections = connections.len(), "requests were still running after limits.shutdown_grace, and were cut off");
    }
    connections.shutdown().await;
}

struct Accepting {
    seats: Arc<Semaphore>,
    /// How many were turned away since it was last told, and when that was.
    turned_away: u64,
    told: Option<Instant>,
    tls: TlsAcceptor,
    door: Arc<Door>,
    limits: Arc<Limits>,
    stop: watch::Receiver<bool>,
}

impl Accepting {
    fn seat(&mut self, connections: &mut JoinSet<()>, stream: TcpStream, address: SocketAddr) {
        let Ok(seat) = Arc::clone(&self.seats).try_acquire_owned() else {
            drop(stream);
            return self.turn_away();
        };
        let (tls, door, limits, stop) = (self.tls.clone(), Arc::clone(&self.door), Arc::clone(&self.limits), self.stop.clone());
        connections.spawn(async move {
            connection::serve(stream, address, tls, door, limits, stop).await;
            drop(seat);
        });
    }

    fn turn_away(&mut self) {
        self.turned_away += 1;
        if self.told.is_none_or(|told| told.elapsed() >= FULL_TOLD_EVERY) {
            warn!(turned_away = self.turned_away, connections_max = self.limits.connections_max, "limits.connections_max is reached");
            (self.turned_away, self.told) = (0, Some(Instant::now()));
        }
    }

    async fn pause(&self, error: &io::Error) {
        error!(%error, "a connection could not be accepted");
        tokio::time::sleep(ACCEPT_PAUSE).await;
    }
}

/// Until `stop` is true, or nobody can make it so any more.
async fn told(stop: &mut watch::Receiver<bool>) {
    let _true_or_gone = stop.wait_for(|stop| *stop).await.is_ok();
}

fn tell_panic(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        error!(%error, "a connection panicked; this is a bug of the minion");
    }
}

#[cfg(test)]
mod tests;
