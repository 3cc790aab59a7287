//! The network side: TCP and TLS accepted, HTTP bounded, and every request carried to the reception. It decides nothing, but cuts whom the
//! gate admits no longer.

mod connection;
mod idle;
mod live;
mod rpc;
mod strangers;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Interval, MissedTickBehavior, interval};
use tracing::{error, warn};

use crate::{Gate, Reception};
use connection::Connection;
pub(crate) use connection::carry;
use live::Live;
pub use strangers::Strangers;
use strangers::{Footing, Porch};

/// How long to wait after a connection could not be accepted: descriptors or memory are short, and hurry would make it worse.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How often at most a line says that connections are turned away.
const FULL_TOLD_EVERY: Duration = Duration::from_secs(1);
/// How often the gate is asked of every connection that is open. While there is none, nothing wakes up.
const ADMISSION_EVERY: Duration = Duration::from_millis(250);

/// The bounds of a listener and its connections.
#[derive(Debug, Clone)]
pub struct Limits {
    /// The largest body of a request.
    pub body_max_bytes: u32,
    /// Connections held open at once.
    pub connections_max: usize,
    /// From accepting a connection to the end of its TLS handshake.
    pub handshake_timeout: Duration,
    /// From the first byte of a request to the end of its headers; its body has as long again.
    pub header_timeout: Duration,
    /// How long a connection may stay open without a request.
    pub idle_timeout: Duration,
    /// How long a server that was told to stop lets running requests end.
    pub shutdown_grace: Duration,
    /// The narrower bounds of those who show no certificate, where they are let in.
    pub strangers: Option<Strangers>,
}

/// Serves `listener` until `stop` becomes true, or its sender is dropped; then lets running requests end, for `limits.shutdown_grace` at
/// most. Many can run in one process.
pub async fn serve<R: Reception>(
    listener: TcpListener,
    gate: Arc<dyn Gate>,
    reception: Arc<R>,
    limits: Arc<Limits>,
    mut stop: watch::Receiver<bool>,
) {
    let mut open = Open::new(Arc::clone(&gate));
    let mut accepting = Accepting {
        seats: Arc::new(Semaphore::new(limits.connections_max)),
        turned_away: 0,
        told: None,
        porch: limits.strangers.clone().map(Porch::new),
        gate,
        reception,
        limits,
        stop: stop.clone(),
    };
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, address)) => accepting.seat(&mut open, stream, address),
                Err(error) => accepting.pause(&error).await,
            },
            () = open.tend(), if !open.tasks.is_empty() => {}
            () = told(&mut stop) => break,
        }
    }
    drop(listener);
    let drain = async {
        while !open.tasks.is_empty() {
            open.tend().await;
        }
    };
    if tokio::time::timeout(accepting.limits.shutdown_grace, drain).await.is_err() {
        warn!(connections = open.tasks.len(), "requests were still running after limits.shutdown_grace, and were cut off");
    }
    open.tasks.shutdown().await;
}

/// The connections that are open.
struct Open {
    tasks: JoinSet<()>,
    live: Arc<Live>,
    gate: Arc<dyn Gate>,
    tick: Interval,
}

impl Open {
    fn new(gate: Arc<dyn Gate>) -> Self {
        let mut tick = interval(ADMISSION_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { tasks: JoinSet::new(), live: Arc::default(), gate, tick }
    }

    /// Until something is done that was to be done about them. May be dropped at any point.
    async fn tend(&mut self) {
        tokio::select! {
            Some(ended) = self.tasks.join_next() => tell_panic(ended),
            _ = self.tick.tick() => self.live.cut_unless(|peer| self.gate.admits(peer)),
        }
    }
}

struct Accepting<R> {
    seats: Arc<Semaphore>,
    /// How many were turned away since it was last told, and when that was.
    turned_away: u64,
    told: Option<Instant>,
    porch: Option<Arc<Porch>>,
    gate: Arc<dyn Gate>,
    reception: Arc<R>,
    limits: Arc<Limits>,
    stop: watch::Receiver<bool>,
}

impl<R: Reception> Accepting<R> {
    fn seat(&mut self, open: &mut Open, stream: TcpStream, address: SocketAddr) {
        let Ok(seat) = Arc::clone(&self.seats).try_acquire_owned() else {
            drop(stream);
            return self.turn_away("limits.connections_max is reached");
        };
        let footing: Option<Footing> = match &self.porch {
            None => None,
            Some(porch) => match porch.arrive(address.ip()) {
                Some(footing) => Some(footing),
                None => return self.turn_away("as many connections of one address are in their handshake as may be"),
            },
        };
        let connection = Connection {
            address,
            footing,
            gate: Arc::clone(&self.gate),
            live: Arc::clone(&open.live),
            reception: Arc::clone(&self.reception),
            limits: Arc::clone(&self.limits),
            stop: self.stop.clone(),
        };
        open.tasks.spawn(async move {
            connection.serve(stream).await;
            drop(seat);
        });
    }

    fn turn_away(&mut self, why: &str) {
        self.turned_away += 1;
        if self.told.is_none_or(|told| told.elapsed() >= FULL_TOLD_EVERY) {
            warn!(turned_away = self.turned_away, connections_max = self.limits.connections_max, "{why}");
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
        error!(%error, "a connection panicked; this is a bug");
    }
}

#[cfg(test)]
mod tests;
