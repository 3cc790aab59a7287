//! What a listener needs to know of trust.

use std::sync::Arc;

use certs::tls::Peer;
use certs::trust::{Serving, Trust};
use tokio_rustls::rustls::ServerConfig;

/// What a listener needs to know of trust, which changes while the listener runs.
pub trait Gate: Send + Sync + 'static {
    /// What the next handshake goes by. Asked at every connection that is accepted.
    fn tls(&self) -> Arc<ServerConfig>;

    /// Whether this peer may stay connected. Asked after the handshake, and then of every open connection a few times a second, so it must be
    /// quick.
    ///
    /// # Errors
    /// Why not: its connections are cut at once, whatever they are doing, and the reason is logged.
    fn admits(&self, peer: &Peer) -> Result<(), String>;
}

/// What lies on disk now: a new certificate, authority or revocation list holds from the next handshake on, and cuts who is now revoked.
impl<T: Serving> Gate for Trust<T> {
    fn tls(&self) -> Arc<ServerConfig> {
        self.server()
    }

    fn admits(&self, peer: &Peer) -> Result<(), String> {
        Trust::admits(self, peer)
    }
}
