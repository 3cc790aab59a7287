//! The verifiers of both sides: what webpki checks (issuer, validity, purpose, name), and then the role.
//!
//! They only ever add a reason to refuse: what webpki refuses is never accepted.

use std::sync::Arc;

use common::identity::Role;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{VerifierBuilderError, WebPkiClientVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme};

use crate::leaf::Leaf;

/// A minion's verifier: the client must have the overlord role.
#[derive(Debug)]
pub(super) struct OverlordVerifier(Arc<dyn ClientCertVerifier>);

impl OverlordVerifier {
    pub(super) fn new(roots: Arc<RootCertStore>, provider: Arc<CryptoProvider>) -> Result<Self, VerifierBuilderError> {
        WebPkiClientVerifier::builder_with_provider(roots, provider).build().map(Self)
    }
}

impl ClientCertVerifier for OverlordVerifier {
    fn offer_client_auth(&self) -> bool {
        true
    }

    fn client_auth_mandatory(&self) -> bool {
        true
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.0.verify_client_cert(end_entity, intermediates, now)?;
        match role(end_entity)? {
            Role::Overlord(_) => Ok(verified),
            Role::Minion(_) | Role::Authority => Err(CertificateError::ApplicationVerificationFailure.into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(message, cert, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(message, cert, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

/// An overlord's verifier: the server must have the minion role, with the name that was dialled.
#[derive(Debug)]
pub(super) struct MinionVerifier(Arc<WebPkiServerVerifier>);

impl MinionVerifier {
    pub(super) fn new(roots: Arc<RootCertStore>, provider: Arc<CryptoProvider>) -> Result<Self, VerifierBuilderError> {
        WebPkiServerVerifier::builder_with_provider(roots, provider).build().map(Self)
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
        let verified = match self.0.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            // webpki looks at the name last: what it presents is trusted, and is some other host.
            Err(Error::InvalidCertificate(CertificateError::NotValidForNameContext { .. })) => None,
            other => Some(other?),
        };
        let Role::Minion(name) = role(end_entity)? else {
            return Err(CertificateError::ApplicationVerificationFailure.into());
        };
        match verified {
            Some(verified) if name.as_str().eq_ignore_ascii_case(&server_name.to_str()) => Ok(verified),
            _ => {
                let presented = vec![name.as_str().to_owned()];
                Err(CertificateError::NotValidForNameContext { expected: server_name.to_owned(), presented }.into())
            }
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(message, cert, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(message, cert, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

/// A certificate without exactly one role is refused with `access_denied`, as one with the wrong role is.
fn role(end_entity: &CertificateDer<'_>) -> Result<Role, Error> {
    Leaf::read(end_entity).map(|leaf| leaf.role).map_err(|_| CertificateError::ApplicationVerificationFailure.into())
}
