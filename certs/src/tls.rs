//! TLS configurations made of credentials: version 1.3 alone, roles and revocation checked in the handshake, both sides with a certificate
//! but where somebody asks for a first one.
//!
//! A session is never resumed, so every connection proves again who is at its ends. The provider of cryptography is passed to
//! each configuration; a process-wide default is neither read nor set.

pub(crate) mod checks;
mod pin;
mod refusal;
mod verifiers;

use std::sync::Arc;
use std::time::Duration;

use common::identity::{MinionName, Role};
use jiff::Timestamp;
use rustls::client::Resumption;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::NoServerSessionStorage;
use rustls::server::danger::ClientCertVerifier;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use crate::crl::StaleCrl;
use crate::files::{Credentials, Revocations};
use crate::leaf::{Leaf, LeafError};
pub use pin::{CaPin, InvalidPin};
pub use refusal::{Refusal, authority_refusal_within, client_refusal, refusal, refusal_within};
use verifiers::{AuthorityVerifier, ClientVerifier, Clients, MinionVerifier, PinVerifier};

/// The one server name under which the authority's server is dialled, wherever it is. Its role, not its name, is what is believed.
pub const AUTHORITY_NAME: &str = "fleet-authority";

/// Why a configuration cannot be made, or a peer not be told.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The certificate has the other role.
    #[error("the certificate of {has} cannot be used here: this needs one of the {needs} role")]
    Role {
        /// `overlord`, `minion` or `authority`.
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
    /// As [`TlsError::ServerName`], of [`AUTHORITY_NAME`].
    #[error("{AUTHORITY_NAME} is no server name")]
    AuthorityName,
    /// The peer's certificate is not one to believe.
    #[error("the certificate is not one of {name}")]
    Minion {
        /// Whose it was to be.
        name: MinionName,
        /// Why.
        source: rustls::Error,
    },
    /// The peer has shown no certificate.
    #[error("the peer has shown no certificate")]
    NoCertificate,
    /// The peer's certificate is not one of a fleet.
    #[error("the peer's certificate cannot be used")]
    Peer(#[from] LeafError),
}

/// Who is at the other end of a connection. Only [`peer`] makes one.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Peer {
    /// What it may be.
    pub role: Role,
    /// The serial number of its certificate, in small hexadecimal digits.
    pub serial: String,
    /// The SHA-256 of its certificate's DER, in small hexadecimal digits.
    pub fingerprint: String,
    /// Its certificate.
    pub cert: CertificateDer<'static>,
}

/// By what the server of an authority is known.
#[derive(Debug, Clone)]
pub enum Anchor {
    /// The certificates of authorities that are trusted.
    Authorities(Vec<CertificateDer<'static>>),
    /// The fingerprint of an authority whose certificate is not known yet: the server shows it.
    Pin(CaPin),
}

/// For a minion: a client must show a certificate of our authority that has the overlord role and is not revoked, or the handshake fails;
/// a certificate without that role is answered with the alert `access_denied`, a revoked one with `certificate_revoked`.
///
/// # Errors
/// The credentials are not a minion's, or their authority's certificate is not sound.
pub fn server_config(credentials: &Credentials) -> Result<Arc<ServerConfig>, TlsError> {
    let Role::Minion(_) = credentials.role() else {
        return Err(TlsError::Role { needs: "minion", has: credentials.role().clone() });
    };
    serving(credentials, Clients::Overlords, credentials.certified_key.clone())
}

/// For the authority: a client may show no certificate; one that it shows must be an overlord's or a minion's, of our authority, and not
/// revoked. The server shows its authority's certificate, too, for hosts that know it by fingerprint alone.
///
/// # Errors
/// The credentials are not an authority's, or their authority's certificate is not sound.
pub fn authority_server_config(credentials: &Credentials) -> Result<Arc<ServerConfig>, TlsError> {
    let Role::Authority = credentials.role() else {
        return Err(TlsError::Role { needs: "authority", has: credentials.role().clone() });
    };
    let own = &credentials.certified_key;
    let mut chain: Vec<_> = own.cert.iter().take(1).cloned().collect();
    chain.extend(credentials.issuer().cloned());
    serving(credentials, Clients::Members, Arc::new(CertifiedKey::new(chain, own.key.clone())))
}

/// For an overlord: the server must show a certificate of our authority that has the minion role and the very name that was dialled, and
/// is not revoked.
///
/// # Errors
/// The credentials are not an overlord's, or their authority's certificate is not sound.
pub fn client_config(credentials: &Credentials) -> Result<Arc<ClientConfig>, TlsError> {
    let Role::Overlord(_) = credentials.role() else {
        return Err(TlsError::Role { needs: "overlord", has: credentials.role().clone() });
    };
    let provider = provider();
    let verifier = MinionVerifier::new(roots(credentials.authorities())?, provider.clone(), credentials.revocations.clone())?;
    asking(Arc::new(verifier), provider, Some(credentials))
}

/// For whoever asks the authority: the server must show a certificate of the authority that `anchor` says, with that role, under
/// [`AUTHORITY_NAME`]. All this is settled before a byte is sent. `shows` is what we show, and whose revocation list we go by.
///
/// # Errors
/// An authority's certificate is not sound.
pub fn authority_client_config(anchor: &Anchor, shows: Option<&Credentials>) -> Result<Arc<ClientConfig>, TlsError> {
    let provider = provider();
    let verifier: Arc<dyn ServerCertVerifier> = match anchor {
        Anchor::Pin(pin) => Arc::new(PinVerifier::new(pin.clone(), provider.clone())),
        Anchor::Authorities(authorities) => {
            // Whose list is stale gets a newer one here, and nowhere else if it refuses everyone.
            let crl = shows.and_then(|credentials| credentials.revocations.crl.clone());
            let revocations = Revocations { crl, stale: StaleCrl::Serve };
            Arc::new(AuthorityVerifier::new(roots(authorities)?, provider.clone(), revocations)?)
        }
    };
    asking(verifier, provider, shows)
}

/// What judges the certificates of callers as the handshake of [`server_config`] does, outside of one.
pub(crate) fn callers_verifier(
    authorities: &[CertificateDer<'_>],
    revocations: Revocations,
) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    Ok(Arc::new(ClientVerifier::new(roots(authorities)?, provider(), Clients::Overlords, revocations)?))
}

fn serving(credentials: &Credentials, clients: Clients, identity: Arc<CertifiedKey>) -> Result<Arc<ServerConfig>, TlsError> {
    let provider = provider();
    let verifier = ClientVerifier::new(roots(credentials.authorities())?, provider.clone(), clients, credentials.revocations.clone())?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TlsError::Configuration)?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(identity)));
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

fn asking(
    verifier: Arc<dyn ServerCertVerifier>,
    provider: Arc<CryptoProvider>,
    shows: Option<&Credentials>,
) -> Result<Arc<ClientConfig>, TlsError> {
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TlsError::Configuration)?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match shows {
        Some(credentials) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(credentials.certified_key.clone()))),
        None => builder.with_no_client_auth(),
    };
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

/// The name under which the authority's server is dialled.
///
/// # Errors
/// Never: it is a sound name.
pub fn authority_name() -> Result<ServerName<'static>, TlsError> {
    ServerName::try_from(AUTHORITY_NAME).map_err(|_| TlsError::AuthorityName)
}

/// What a handshake would make of a minion that shows `cert` under that name at `now`.
pub(crate) fn verify_minion(
    credentials: &Credentials,
    cert: &CertificateDer<'_>,
    name: &MinionName,
    now: Timestamp,
) -> Result<(), TlsError> {
    let at = UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(now.as_second()).unwrap_or(0)));
    let verifier = MinionVerifier::new(roots(credentials.authorities())?, provider(), credentials.revocations.clone())?;
    verifier
        .verify_server_cert(cert, &[], &server_name(name)?, &[], at)
        .map(drop)
        .map_err(|source| TlsError::Minion { name: name.clone(), source })
}

/// Who has shown this chain in a handshake that succeeded. Of a chain that nobody has verified it says nothing.
///
/// # Errors
/// The chain is empty, or its first certificate carries not exactly one role.
pub fn peer(chain: &[CertificateDer<'_>]) -> Result<Peer, TlsError> {
    let end_entity = chain.first().ok_or(TlsError::NoCertificate)?;
    let Leaf { role, serial, fingerprint, .. } = Leaf::read(end_entity)?;
    Ok(Peer { role, serial, fingerprint, cert: end_entity.clone().into_owned() })
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn roots(authorities: &[CertificateDer<'_>]) -> Result<Arc<RootCertStore>, TlsError> {
    let mut roots = RootCertStore::empty();
    for authority in authorities {
        roots.add(authority.clone().into_owned()).map_err(TlsError::Authority)?;
    }
    Ok(Arc::new(roots))
}
