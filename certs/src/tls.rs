//! TLS configurations made of credentials: version 1.3 alone, both sides with a certificate, roles checked in the handshake.
//!
//! A session is never resumed, so every connection proves again who is at its ends. The provider of cryptography is passed to
//! each configuration; a process-wide default is neither read nor set.

mod refusal;
mod verifiers;

use std::sync::Arc;

use common::identity::{MinionName, Role};
use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::NoServerSessionStorage;
use rustls::sign::SingleCertAndKey;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use crate::files::Credentials;
use crate::leaf::{Leaf, LeafError, fingerprint};
pub use refusal::{Refusal, client_refusal, refusal, refusal_within};
use verifiers::{MinionVerifier, OverlordVerifier};

/// The one server name under which the authority's server is dialled, wherever it is. Its role, not its name, is what is believed.
pub const AUTHORITY_NAME: &str = "fleet-authority";

/// Why a configuration cannot be made, or a peer not be told.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The certificate has the other role.
    #[error("the certificate of {has} cannot be used here: this needs one of the {needs} role")]
    Role {
        /// `overlord` or `minion`.
        needs: &'static str,
        /// The role that it has.
        has: Role,
    },
    /// The authority's certificate cannot be trusted.
    #[error("the authority's certificate cannot be used")]
    Authority(#[source] rustls::Error),
    /// The verifier cannot be made.
    #[error("the authority's certificate cannot be verified with")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
    /// The configuration cannot be made.
    #[error("making a TLS configuration")]
    Configuration(#[source] rustls::Error),
    /// The name can be no server's name.
    #[error("\"{0}\" ends in a part of digits only and is not an address: TLS knows no such server name")]
    ServerName(MinionName),
    /// The peer has shown no certificate.
    #[error("the peer has shown no certificate")]
    NoCertificate,
    /// The peer's certificate is not one of a fleet.
    #[error("the peer's certificate cannot be used")]
    Peer(#[from] LeafError),
}

/// Who is at the other end of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// What it may be.
    pub role: Role,
    /// The SHA-256 of its certificate's DER, in small hexadecimal digits.
    pub fingerprint: String,
}

/// For a minion: a client must show a certificate of our authority that has the overlord role, or the handshake fails; a
/// certificate without that role is answered with the alert `access_denied`.
///
/// # Errors
/// The credentials are not a minion's, or their authority's certificate is not sound.
pub fn server_config(credentials: &Credentials) -> Result<Arc<ServerConfig>, TlsError> {
    let Role::Minion(_) = credentials.role() else {
        return Err(TlsError::Role { needs: "minion", has: credentials.role().clone() });
    };
    let provider = provider();
    let verifier = OverlordVerifier::new(roots(credentials)?, provider.clone())?;
    let identity = Arc::new(SingleCertAndKey::from(credentials.certified_key.clone()));
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TlsError::Configuration)?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(identity);
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// For an overlord: the server must show a certificate of our authority that has the minion role and the very name that was dialled.
///
/// # Errors
/// The credentials are not an overlord's, or their authority's certificate is not sound.
pub fn client_config(credentials: &Credentials) -> Result<Arc<ClientConfig>, TlsError> {
    let Role::Overlord(_) = credentials.role() else {
        return Err(TlsError::Role { needs: "overlord", has: credentials.role().clone() });
    };
    let provider = provider();
    let verifier = MinionVerifier::new(roots(credentials)?, provider.clone())?;
    let identity = Arc::new(SingleCertAndKey::from(credentials.certified_key.clone()));
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TlsError::Configuration)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(identity);
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// The name under which a host is dialled.
///
/// # Errors
/// It can be no server's name. The authority issues no certificate for such a host.
pub fn server_name(host: &MinionName) -> Result<ServerName<'static>, TlsError> {
    ServerName::try_from(host.as_str().to_owned()).map_err(|_| TlsError::ServerName(host.clone()))
}

/// Who has shown this chain in a handshake that succeeded. Of a chain that nobody has verified it says nothing.
///
/// # Errors
/// The chain is empty, or its first certificate carries not exactly one role.
pub fn peer(chain: &[CertificateDer<'_>]) -> Result<Peer, TlsError> {
    let end_entity = chain.first().ok_or(TlsError::NoCertificate)?;
    Ok(Peer { role: Leaf::read(end_entity)?.role, fingerprint: fingerprint(end_entity) })
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn roots(credentials: &Credentials) -> Result<Arc<RootCertStore>, TlsError> {
    let mut roots = RootCertStore::empty();
    for authority in &credentials.authorities {
        roots.add(authority.clone()).map_err(TlsError::Authority)?;
    }
    Ok(Arc::new(roots))
}
