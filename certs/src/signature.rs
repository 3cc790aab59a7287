//! Signatures of calls: made with the key of the caller's certificate, and checked against that certificate.
//!
//! What is in a call is not looked at, and whether the certificate may be believed is asked of a `Trust` or of `Callers`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use common::identity::Role;
use common::protocol::SIGNED_CONTEXT;
use rcgen::PublicKeyData as _;
use ring::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use rustls::SignatureScheme;
use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::csr::usable_key;
use crate::files::Credentials;

/// The longest signature: a SEQUENCE of two INTEGERs of 32 bytes, each with a byte before it that keeps it positive (RFC 3279, 2.2.3).
const DER_MAX_BYTES: usize = 2 + 2 * (2 + 1 + 32);
/// The same in base64, with padding.
const TEXT_MAX_BYTES: usize = DER_MAX_BYTES.div_ceil(3) * 4;

/// Why a call cannot be signed, or is not the call of the certificate that brings it.
#[derive(Debug, thiserror::Error)]
pub enum SignatureError {
    /// Calls are signed with one kind of key.
    #[error("the key of {role} is not an ECDSA key on P-256, with which calls are signed: {next}", next = reissue(.role))]
    KeyKind {
        /// Whose key it is.
        role: Role,
    },
    /// It could not be made.
    #[error("signing a call")]
    Sign(#[source] rustls::Error),
    /// It cannot be a signature.
    #[error("the call's signature is not one of ECDSA on P-256 in base64, of at most {TEXT_MAX_BYTES} letters")]
    Form,
    /// What brings the call is no certificate.
    #[error("the call's certificate is not an X.509 certificate")]
    Certificate,
    /// The certificate's key makes no such signatures.
    #[error("the key of the call's certificate is not an ECDSA key on P-256, with which calls are signed")]
    OtherKey,
    /// It is a signature, of something else or by somebody else.
    #[error("the call was not signed, as it stands here, with the key of the certificate that brings it")]
    Mismatch,
}

/// Signs the text of a call: the [`signature`](common::protocol::CallParams::signature) beside it.
///
/// # Errors
/// The key is none of P-256, or there is no randomness to be had.
pub fn sign(credentials: &Credentials, call: &str) -> Result<String, SignatureError> {
    let signer = credentials.certified_key.key.choose_scheme(&[SignatureScheme::ECDSA_NISTP256_SHA256]);
    let signer = signer.ok_or_else(|| SignatureError::KeyKind { role: credentials.role().clone() })?;
    Ok(STANDARD.encode(signer.sign(&signed_bytes(call)).map_err(SignatureError::Sign)?))
}

/// Whether `signature` was made of this text of a call with the key of `cert`. Of the certificate it says nothing else: not who issued it,
/// nor whether its time is over. There are several signatures of one call, so one is nothing that a call is known by.
///
/// # Errors
/// It was not; or one of the three is not what it should be.
pub fn verify(cert: &CertificateDer<'_>, call: &str, signature: &str) -> Result<(), SignatureError> {
    let mut der = [0; DER_MAX_BYTES];
    let signature = decode(signature, &mut der).ok_or(SignatureError::Form)?;
    let Ok((&[], cert)) = X509Certificate::from_der(cert) else {
        return Err(SignatureError::Certificate);
    };
    let key = usable_key(cert.public_key().raw).map_err(|_| SignatureError::OtherKey)?;
    let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, key.der_bytes());
    key.verify(&signed_bytes(call), signature).map_err(|_| SignatureError::Mismatch)
}

/// The signature's bytes, in `der`: what is longer than any can be is not decoded.
fn decode<'d>(signature: &str, der: &'d mut [u8; DER_MAX_BYTES]) -> Option<&'d [u8]> {
    if signature.len() > TEXT_MAX_BYTES {
        return None;
    }
    let length = STANDARD.decode_slice(signature, der).ok()?;
    der.get(..length).filter(|der| !der.is_empty())
}

fn signed_bytes(call: &str) -> Vec<u8> {
    [SIGNED_CONTEXT, call.as_bytes()].concat()
}

fn reissue(role: &Role) -> String {
    format!("`overlord certs issue --role {} {}` makes a certificate with one that is", role.kind(), role.name())
}
