//! Who asks: the bearer of a verified certificate that has the overlord role.

use std::net::SocketAddr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use common::identity::{CallerName, Role};
use service::Visitor;
use tokio_rustls::rustls::pki_types::CertificateDer;

use crate::call::Proof;
use crate::guard::Bearer;

/// Who a connection belongs to. Nothing makes one but a [`Visitor`], whom only the listener's handshake makes.
#[derive(Debug)]
pub struct Caller {
    name: CallerName,
    fingerprint: String,
    certificate: CertificateDer<'static>,
    address: SocketAddr,
}

impl TryFrom<Visitor> for Caller {
    type Error = String;

    fn try_from(visitor: Visitor) -> Result<Self, String> {
        let peer = visitor.peer().ok_or("the handshake asked for no certificate")?;
        match &peer.role {
            Role::Overlord(name) => Ok(Self {
                name: name.clone(),
                fingerprint: peer.fingerprint.clone(),
                certificate: peer.cert.clone(),
                address: visitor.address(),
            }),
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

    /// The certificate.
    #[must_use]
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// What a guard needs to know.
    #[must_use]
    pub fn bearer(&self) -> Bearer<'_> {
        Bearer { caller: self.name.as_str(), fingerprint: &self.fingerprint, address: Some(self.address), parent: None }
    }

    /// The proof that a call with this `signature` is the caller's, for who was not in the handshake.
    #[must_use]
    pub fn proof(&self, signature: String) -> Proof {
        Proof::Signed { signature, certificate: BASE64.encode(&self.certificate) }
    }
}
