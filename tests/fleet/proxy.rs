//! A proxy between the overlord and a host, on loopback, that can lose a host's answer after the request has arrived there.

use std::fmt;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

/// How long a connection may be silent.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// A proxy. Dropped, it accepts no further connections.
pub struct Proxy {
    address: SocketAddr,
    state: Arc<State>,
}

struct State {
    host: SocketAddr,
    cut_when: Box<dyn Fn() -> bool + Send + Sync>,
    /// How many answers it still loses.
    left: AtomicUsize,
    /// How many it has lost.
    lost: AtomicUsize,
    stop: AtomicBool,
}

impl Proxy {
    /// A proxy to `host`, which cuts connections at the first bytes that come from the host once `cut_when` says so, `times` times.
    /// `cut_when` tells that the host has done what it was asked for, before it could say so.
    pub fn losing_answers(host: SocketAddr, times: usize, cut_when: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let cut_when = Box::new(cut_when);
        let state = State { host, cut_when, left: AtomicUsize::new(times), lost: AtomicUsize::new(0), stop: AtomicBool::new(false) };
        let state = Arc::new(state);
        let accepting = Arc::clone(&state);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if accepting.stop.load(Ordering::Relaxed) {
                    return;
                }
                carry(&accepting, client);
            }
        });
        Self { address, state }
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many answers it has lost.
    #[must_use]
    pub fn lost(&self) -> usize {
        self.state.lost.load(Ordering::Relaxed)
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proxy").field("address", &self.address).field("host", &self.state.host).finish_non_exhaustive()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.state.stop.store(true, Ordering::Relaxed);
        // So that it looks.
        let _ = TcpStream::connect(self.address);
    }
}

/// Carries one connection, in two threads that end with it.
fn carry(state: &Arc<State>, client: TcpStream) {
    let Ok(host) = TcpStream::connect(state.host) else { return };
    let _ = (client.set_read_timeout(Some(SILENCE_MAX)), host.set_read_timeout(Some(SILENCE_MAX)));
    let (Ok(client_too), Ok(host_too)) = (client.try_clone(), host.try_clone()) else { return };
    thread::spawn(move || copy(client_too, host_too, || false));
    let state = Arc::clone(state);
    thread::spawn(move || copy(host, client, || state.loses_this()));
}

impl State {
    fn loses_this(&self) -> bool {
        let loses = (self.cut_when)() && self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok();
        self.lost.fetch_add(usize::from(loses), Ordering::Relaxed);
        loses
    }
}

fn copy(mut from: TcpStream, mut to: TcpStream, cut: impl Fn() -> bool) {
    let mut chunk = vec![0; 64 * 1024];
    while let Ok(count @ 1..) = from.read(&mut chunk) {
        if cut() || to.write_all(&chunk[..count]).is_err() {
            break;
        }
    }
    for end in [from, to] {
        let _ = end.shutdown(Shutdown::Both);
    }
}
