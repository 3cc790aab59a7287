//! Who asks: the bearer of a verified certificate that has the overlord role.

use std::net::SocketAddr;

use common::identity::{CallerName, Role};
use service::Visitor;

/// Who a connection belongs to. Nothing makes one but a [`Visitor`], whom only the listener's handshake makes.
#[derive(Debug)]
pub struct Caller {
    name: CallerName,
    fingerprint: String,
    address: SocketAddr,
}

impl TryFrom<Visitor> for Caller {
    type Error = String;

    fn try_from(visitor: Visitor) -> Result<Self, String> {
        let peer = visitor.peer().ok_or("the handshake asked for no certificate")?;
        match &peer.role {
            Role::Overlord(name) => Ok(Self { name: name.clone(), fingerprint: peer.fingerprint.clone(), address: visitor.address() }),
            role @ (Role::Minion(_) | Role::Authority) => Err(format!("{role} is no overlord, and nobody else calls")),
        }
    }
}

impl Caller {
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
