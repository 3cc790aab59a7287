//! The network side: TCP and TLS accepted, HTTP bounded, and every request carried to the reception. It decides nothing, but cuts whom the
//! gate admits no longer, and lets those go that keep it waiting when there are more than there is room for.

mod arrivals;
mod connection;
mod files;
mod idle;
mod live;
mod rpc;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Interval, MissedTickBehavior, interval};
use tracing::{error, warn};

use crate::{Gate, Reception};
use arrivals::Arrivals;
use connection::Connection;
pub(crate) use connection::carry;
use live::Live;
pub use live::Strangers;

/// How long to wait after a connection could not be accepted, for descriptors or memory are short, and hurry would make it worse.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// The same where others were let go for it, which then needs a moment.
const ACCEPT_SOON: Duration = Duration::from_millis(10);
/// How often at most a line says that connections were let go, or could not be accepted.
const TOLD_EVERY: Duration = Duration::from_secs(1);
/// How often the gate is asked of every connection that is open. While there is none, nothing wakes up.
const ADMISSION_EVERY: Duration = Duration::from_millis(250);

/// The bounds of a listener and its connections.
#[derive(Debug, Clone)]
pub struct Limits {
    /// The largest body of a request.
    pub body_max_bytes: u32,
    /// Connections held open at once whose handshake is over. One more is taken in place of the one that has kept us waiting longest.
    pub connections_max: usize,
    /// Connections held open at once that are in their handshake. One more is taken in place of another: of the silent ones, or of those that
    /// have spoken, whichever are more, the oldest of the address with most.
    pub handshakes_max: usize,
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
    let (connections_max, handshakes_max) = files::allow(limits.connections_max, limits.handshakes_max);
    let mut open = Open::new(Arc::clone(&gate), Live::new(connections_max, &limits));
    let mut accepting = Accepting {
        arrivals: Arrivals::new(handshakes_max),
        let_go: Told::default(),
        failed: Told::default(),
        gate,
        reception,
        limits,
        stop: stop.clone(),
    };
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, address)) => accepting.seat(&mut open, stream, address),
                Err(error) => accepting.pause(&open, &error).await,
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
    fn new(gate: Arc<dyn Gate>, live: Live) -> Self {
        let mut tick = interval(ADMISSION_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { tasks: JoinSet::new(), live: Arc::new(live), gate, tick }
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
    arrivals: Arc<Arrivals>,
    let_go: Told,
    failed: Told,
    gate: Arc<dyn Gate>,
    reception: Arc<R>,
    limits: Arc<Limits>,
    stop: watch::Receiver<bool>,
}

/// What is counted, and told now and then.
#[derive(Default)]
struct Told {
    count: usize,
    last: Option<Instant>,
}

impl<R: Reception> Accepting<R> {
    fn seat(&mut self, open: &mut Open, stream: TcpStream, address: SocketAddr) {
        let (arrival, has_displaced) = self.arrivals.enter(address.ip());
        if has_displaced && let Some(count) = self.let_go.more(1) {
            warn!(count, "connections were closed in their handshake: handshakes_max is reached");
        }
        let connection = Connection {
            address,
            arrival,
            gate: Arc::clone(&self.gate),
            live: Arc::clone(&open.live),
            reception: Arc::clone(&self.reception),
            limits: Arc::clone(&self.limits),
            stop: self.stop.clone(),
        };
        open.tasks.spawn(connection.serve(stream));
    }

    /// For want of descriptors or memory: who has proved nothing goes first, half of them at a time, and then who keeps us waiting.
    async fn pause(&mut self, open: &Open, error: &io::Error) {
        let let_go = match self.arrivals.thin_out() {
            0 => usize::from(open.live.let_one_go()),
            count => count,
        };
        if let Some(count) = self.failed.more(1) {
            error!(%error, count, let_go, "connections could not be accepted at once");
        }
        tokio::time::sleep(if let_go > 0 { ACCEPT_SOON } else { ACCEPT_PAUSE }).await;
    }
}

impl Told {
    /// So many more. Gives how many they are since it was last told, if it is to be told now.
    fn more(&mut self, count: usize) -> Option<usize> {
        self.count += count;
        if self.last.is_some_and(|last| last.elapsed() < TOLD_EVERY) {
            return None;
        }
        self.last = Some(Instant::now());
        Some(std::mem::take(&mut self.count))
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
