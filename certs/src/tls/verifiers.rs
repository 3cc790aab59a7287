//! The verifiers of all sides: what webpki checks (issuer, validity, purpose, name), then revocation and role.
//!
//! They only ever add a reason to refuse: what webpki refuses is never accepted.

use std::sync::Arc;

use common::identity::Role;
use jiff::Timestamp;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{VerifierBuilderError, WebPkiClientVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme};

use super::checks::{Shown, Unproven, leaf, refuse_revoked};
use super::{CaPin, roots};
use crate::files::Revocations;
use crate::leaf::is_authority;

/// Passes the checks of signatures on to what was given: the same for every verifier.
macro_rules! signatures {
    ($self:ident => $inner:expr) => {
        fn verify_tls12_signature(
            &$self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            signed: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            $inner.verify_tls12_signature(message, cert, signed)
        }

        fn verify_tls13_signature(
            &$self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            signed: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            $inner.verify_tls13_signature(message, cert, signed)
        }

        fn supported_verify_schemes(&$self) -> Vec<SignatureScheme> {
            $inner.supported_verify_schemes()
        }
    };
}

/// Which clients a server lets in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Clients {
    /// Overlords alone: a minion's.
    Overlords,
    /// Overlords, minions, and whoever shows no certificate: the authority's.
    Members,
}

/// A server's verifier.
#[derive(Debug)]
pub(super) struct ClientVerifier {
    webpki: Arc<dyn ClientCertVerifier>,
    clients: Clients,
    revocations: Revocations,
}

impl ClientVerifier {
    pub(super) fn new(
        roots: Arc<RootCertStore>,
        provider: Arc<CryptoProvider>,
        clients: Clients,
        revocations: Revocations,
    ) -> Result<Self, VerifierBuilderError> {
        let builder = WebPkiClientVerifier::builder_with_provider(roots, provider);
        let webpki = match clients {
            Clients::Overlords => builder.build()?,
            Clients::Members => builder.allow_unauthenticated().build()?,
        };
        Ok(Self { webpki, clients, revocations })
    }
}

impl ClientCertVerifier for ClientVerifier {
    fn offer_client_auth(&self) -> bool {
        true
    }

    fn client_auth_mandatory(&self) -> bool {
        self.clients == Clients::Overlords
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.webpki.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.webpki.verify_client_cert(end_entity, intermediates, now)?;
        let leaf = leaf(end_entity)?;
        refuse_revoked(&leaf.serial, &self.revocations, moment(now))?;
        match (leaf.role, self.clients) {
            (Role::Overlord(_), _) | (Role::Minion(_), Clients::Members) => Ok(verified),
            (Role::Minion(_), Clients::Overlords) => Err(CertificateError::ApplicationVerificationFailure.into()),
            (Role::Authority, _) => Err(CertificateError::ApplicationVerificationFailure.into()),
        }
    }

    signatures!(self => self.webpki);
}

/// An overlord's verifier: the server must have the minion role, with the name that was dialled.
#[derive(Debug)]
pub(super) struct MinionVerifier {
    webpki: Arc<WebPkiServerVerifier>,
    revocations: Revocations,
}

impl MinionVerifier {
    pub(super) fn new(
        roots: Arc<RootCertStore>,
        provider: Arc<CryptoProvider>,
        revocations: Revocations,
    ) -> Result<Self, VerifierBuilderError> {
        let webpki = WebPkiServerVerifier::builder_with_provider(roots, provider).build()?;
        Ok(Self { webpki, revocations })
    }
}

impl ServerCertVerifier for MinionVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified = match self.webpki.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            // webpki looks at the name last: what it presents is trusted, and is some other host.
            Err(Error::InvalidCertificate(CertificateError::NotValidForNameContext { .. })) => None,
            other => Some(other?),
        };
        let leaf = leaf(end_entity)?;
        let Role::Minion(name) = leaf.role else {
            return Err(CertificateError::ApplicationVerificationFailure.into());
        };
        let Some(verified) = verified.filter(|_| name.as_str().eq_ignore_ascii_case(&server_name.to_str())) else {
            let presented = vec![name.as_str().to_owned()];
            return Err(CertificateError::NotValidForNameContext { expected: server_name.to_owned(), presented }.into());
        };
        refuse_revoked(&leaf.serial, &self.revocations, moment(now))?;
        Ok(verified)
    }

    signatures!(self => self.webpki);
}

/// The verifier of whoever asks the authority: the server must have the authority's role.
#[derive(Debug)]
pub(super) struct AuthorityVerifier {
    webpki: Arc<WebPkiServerVerifier>,
    revocations: Revocations,
}

impl AuthorityVerifier {
    pub(super) fn new(
        roots: Arc<RootCertStore>,
        provider: Arc<CryptoProvider>,
        revocations: Revocations,
    ) -> Result<Self, VerifierBuilderError> {
        let webpki = WebPkiServerVerifier::builder_with_provider(roots, provider).build()?;
        Ok(Self { webpki, revocations })
    }
}

impl ServerCertVerifier for AuthorityVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified = self.webpki.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)?;
        let leaf = leaf(end_entity)?;
        refuse_revoked(&leaf.serial, &self.revocations, moment(now))?;
        match leaf.role {
            Role::Authority => Ok(verified),
            Role::Minion(_) | Role::Overlord(_) => Err(CertificateError::ApplicationVerificationFailure.into()),
        }
    }

    signatures!(self => self.webpki);
}

/// The verifier of a host that knows its authority by fingerprint alone: what the server shows must hold that authority, and be certified
/// by it as [`AuthorityVerifier`] wants.
#[derive(Debug)]
pub(super) struct PinVerifier {
    pin: CaPin,
    provider: Arc<CryptoProvider>,
}

impl PinVerifier {
    pub(super) fn new(pin: CaPin, provider: Arc<CryptoProvider>) -> Self {
        Self { pin, provider }
    }

    fn pinned<'c, 'd>(&self, shown: &'c [CertificateDer<'d>]) -> Result<&'c CertificateDer<'d>, Error> {
        let mut authorities = shown.iter().filter(|cert| is_authority(cert));
        authorities.clone().find(|cert| CaPin::of(cert) == self.pin).ok_or_else(|| {
            let shown = Shown(authorities.next().map(CaPin::of));
            Unproven::OtherAuthority { shown, expected: self.pin.clone() }.into()
        })
    }
}

impl ServerCertVerifier for PinVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let authority = self.pinned(intermediates)?;
        let roots = roots(std::slice::from_ref(authority)).map_err(|_| CertificateError::UnknownIssuer)?;
        let verifier = AuthorityVerifier::new(roots, self.provider.clone(), Revocations::default());
        verifier.map_err(|_| CertificateError::UnknownIssuer)?.verify_server_cert(end_entity, &[], server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls12_signature(message, cert, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(message, cert, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

fn moment(time: UnixTime) -> Timestamp {
    i64::try_from(time.as_secs()).ok().and_then(|seconds| Timestamp::from_second(seconds).ok()).unwrap_or(Timestamp::MAX)
}
