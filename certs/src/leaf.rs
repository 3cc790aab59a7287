//! What we read out of one certificate of a host or a caller: role, serial number, validity, fingerprint.
//!
//! Reading is not trusting: whether the certificate is ours to believe is decided by the verifiers in `tls`.

use common::identity::{InvalidRole, Role};
use jiff::Timestamp;
use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};
use x509_parser::time::ASN1Time;

use crate::request::CLOCK_SKEW;

/// What every role URI begins with.
const ROLE_SCHEME: &str = "fleet:";

/// Why a certificate is not one of a fleet.
#[derive(Debug, thiserror::Error)]
pub enum LeafError {
    /// Its bytes are not an X.509 certificate.
    #[error("it is not an X.509 certificate")]
    NotX509,
    /// It names no role.
    #[error("it carries no role (a URI like fleet:minion/NAME), so no `overlord certs` made it")]
    NoRole,
    /// It names more than one role.
    #[error("it carries more than one role")]
    SeveralRoles,
    /// The role in it is not one.
    #[error("its role is not sound")]
    Role(#[from] InvalidRole),
}

/// What we need to know of a certificate.
#[derive(Debug, Clone)]
pub(crate) struct Leaf {
    pub(crate) role: Role,
    /// In small hexadecimal digits, without a sign.
    pub(crate) serial: String,
    pub(crate) not_before: Timestamp,
    pub(crate) not_after: Timestamp,
    /// The SHA-256 of the certificate's DER, in small hexadecimal digits.
    pub(crate) fingerprint: String,
    /// The [`key_id`] of its key.
    pub(crate) key: String,
    /// The key's SubjectPublicKeyInfo.
    pub(crate) public_key: Vec<u8>,
}

impl Leaf {
    pub(crate) fn read(der: &CertificateDer<'_>) -> Result<Self, LeafError> {
        let (rest, cert) = X509Certificate::from_der(der).map_err(|_| LeafError::NotX509)?;
        if !rest.is_empty() {
            return Err(LeafError::NotX509);
        }
        Ok(Self {
            role: only_role(&cert)?,
            serial: hex(cert.raw_serial()),
            not_before: timestamp(cert.validity().not_before)?,
            not_after: timestamp(cert.validity().not_after)?,
            fingerprint: fingerprint(der),
            key: key_id(cert.public_key().raw),
            public_key: cert.public_key().raw.to_vec(),
        })
    }
}

/// Whether it is a certificate that may issue others.
pub(crate) fn is_authority(der: &CertificateDer<'_>) -> bool {
    X509Certificate::from_der(der).is_ok_and(|(rest, cert)| rest.is_empty() && cert.is_ca())
}

/// The SHA-256 of a certificate's DER, in small hexadecimal digits.
pub(crate) fn fingerprint(der: &[u8]) -> String {
    hex(ring::digest::digest(&ring::digest::SHA256, der).as_ref())
}

/// When a certificate was issued that begins at `not_before`.
pub(crate) fn issued_at(not_before: Timestamp) -> Timestamp {
    not_before.checked_add(CLOCK_SKEW).unwrap_or(not_before)
}

/// When `parts` of `of` parts of a certificate's life are over, counted from its issue.
pub(crate) fn part_of_life(not_before: Timestamp, not_after: Timestamp, parts: i32, of: i32) -> Timestamp {
    let from = issued_at(not_before).min(not_after);
    not_after.duration_since(from).checked_mul(parts).map_or(not_after, |life| from + life / of)
}

/// What a key is known by: the SHA-256 of its SubjectPublicKeyInfo's DER, in small hexadecimal digits.
pub(crate) fn key_id(public_key: &[u8]) -> String {
    fingerprint(public_key)
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The bytes that hexadecimal digits stand for; what is no pair of digits is left out.
pub(crate) fn unhex(digits: &str) -> Vec<u8> {
    let pair = |at: usize| digits.get(at..at + 2).and_then(|pair| u8::from_str_radix(pair, 16).ok());
    (0..digits.len() / 2).filter_map(|byte| pair(2 * byte)).collect()
}

pub(crate) fn timestamp(time: ASN1Time) -> Result<Timestamp, LeafError> {
    Timestamp::from_second(time.timestamp()).map_err(|_| LeafError::NotX509)
}

fn only_role(cert: &X509Certificate<'_>) -> Result<Role, LeafError> {
    let names = cert.subject_alternative_name().map_err(|_| LeafError::NotX509)?.ok_or(LeafError::NoRole)?;
    let mut uris = names.value.general_names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) if uri.starts_with(ROLE_SCHEME) => Some(*uri),
        _ => None,
    });
    let role = uris.next().ok_or(LeafError::NoRole)?.parse()?;
    if uris.next().is_some() { Err(LeafError::SeveralRoles) } else { Ok(role) }
}
