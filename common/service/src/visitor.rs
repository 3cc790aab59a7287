//! Who is at the other end of a connection.

use std::net::SocketAddr;

use certs::tls::Peer;
use tokio_rustls::rustls::ServerConnection;

/// Who is at the other end of a connection. Only the handshake of this crate's listener makes one.
#[derive(Debug)]
pub struct Visitor {
    peer: Option<Peer>,
    address: SocketAddr,
}

impl Visitor {
    /// Of a handshake that has succeeded.
    pub(crate) fn of(tls: &ServerConnection, address: SocketAddr) -> Result<Self, String> {
        let chain = tls.peer_certificates().filter(|chain| !chain.is_empty());
        let peer = chain.map(certs::tls::peer).transpose().map_err(|error| error.to_string())?;
        Ok(Self { peer, address })
    }

    /// Whom the handshake has proved it to be; none if it has shown no certificate, which the TLS configuration allowed.
    #[must_use]
    pub fn peer(&self) -> Option<&Peer> {
        self.peer.as_ref()
    }

    /// Where the connection comes from.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}
