//! Keys, and the particulars of certificates for them, which are the authority's alone to decide.
//!
//! Nothing here signs or writes. Keys are ECDSA on P-256, which every TLS stack verifies, and which is the cheapest to sign with.

use std::time::Duration;

use common::identity::Role;
use jiff::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, SanType,
    SerialNumber,
};
use ring::rand::{SecureRandom, SystemRandom};
use rustls::pki_types::ServerName;

use crate::leaf::hex;
use crate::tls::AUTHORITY_NAME;

/// How far in the past a certificate begins, so that a host whose clock is slow accepts it at once.
pub const CLOCK_SKEW: Duration = Duration::from_secs(5 * 60);

/// The most characters of a common name (X.520, ub-common-name). The role, not the common name, says who the bearer is.
pub(crate) const COMMON_NAME_MAX: usize = 64;
/// Bytes of a serial number: enough to be drawn at random (CA/Browser Forum, 7.1: at least 8).
const SERIAL_BYTES: usize = 16;

/// Why a request could not be made.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The system gives no random numbers.
    #[error("drawing a random number")]
    Random,
    /// The key could not be made, or a name has no place in a certificate.
    #[error("making a key and a certificate request")]
    Generate(#[from] rcgen::Error),
    /// The host's name can be no server's name in TLS.
    #[error(
        "the host's name \"{name}\" ends in a part of digits only and is not an address: TLS knows no such server name, choose another"
    )]
    ServerName {
        /// The name.
        name: String,
    },
    /// The period begins before 1970 or ends after the year 9999.
    #[error("the validity is out of range: a certificate ends before the year 9999")]
    Range,
}

/// From when to when a certificate is valid, to the second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// Not before this.
    pub not_before: Timestamp,
    /// Not after this.
    pub not_after: Timestamp,
}

/// What a certificate shall say, whatever its key.
pub(crate) struct Particulars {
    pub(crate) params: CertificateParams,
    /// In small hexadecimal digits.
    pub(crate) serial: String,
}

impl Particulars {
    /// For a host or a caller.
    pub(crate) fn leaf(role: &Role, validity: Validity) -> Result<Self, RequestError> {
        let mut particulars = Self::new(role.name(), validity)?;
        let params = &mut particulars.params;
        params.subject_alt_names = vec![SanType::URI(role.to_string().try_into()?)];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        let (client, server) = (ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth);
        params.extended_key_usages = match role {
            Role::Overlord(_) => vec![client],
            Role::Minion(_) => vec![client, server],
            Role::Authority => vec![server],
        };
        match role {
            Role::Overlord(_) => {}
            Role::Minion(name) => params.subject_alt_names.push(server_name(name.as_str())?),
            Role::Authority => params.subject_alt_names.push(server_name(AUTHORITY_NAME)?),
        }
        Ok(particulars)
    }

    /// For an authority: its name is its own, so that the certificates of two fleets are never mistaken for each other.
    pub(crate) fn authority(validity: Validity) -> Result<Self, RequestError> {
        let name = format!("Overlord fleet CA {}", hex(&random::<4>()?));
        let mut particulars = Self::new(&name, validity)?;
        let params = &mut particulars.params;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        Ok(particulars)
    }

    fn new(name: &str, validity: Validity) -> Result<Self, RequestError> {
        let serial = serial()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name.chars().take(COMMON_NAME_MAX).collect::<String>());
        let epoch = rcgen::date_time_ymd(1970, 1, 1);
        params.not_before = epoch + since_1970(validity.not_before)?;
        params.not_after = epoch + since_1970(validity.not_after)?;
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        Ok(Self { params, serial: hex(&serial) })
    }
}

/// A fresh key.
pub(crate) fn key() -> Result<KeyPair, RequestError> {
    Ok(KeyPair::generate()?)
}

/// From [`CLOCK_SKEW`] before `now` for `valid` after it.
pub(crate) fn validity(now: Timestamp, valid: Duration) -> Result<Validity, RequestError> {
    let not_before = now.checked_sub(CLOCK_SKEW).map_err(|_| RequestError::Range)?;
    let not_after = now.checked_add(valid).map_err(|_| RequestError::Range)?;
    Ok(Validity { not_before, not_after })
}

pub(crate) fn server_name(name: &str) -> Result<SanType, RequestError> {
    match ServerName::try_from(name) {
        Ok(ServerName::DnsName(_)) => Ok(SanType::DnsName(name.try_into()?)),
        Ok(ServerName::IpAddress(address)) => Ok(SanType::IpAddress(std::net::IpAddr::from(address))),
        _ => Err(RequestError::ServerName { name: name.to_owned() }),
    }
}

pub(crate) fn since_1970(at: Timestamp) -> Result<Duration, RequestError> {
    u64::try_from(at.as_second()).map(Duration::from_secs).map_err(|_| RequestError::Range)
}

/// Positive, and always of the same length: the first two bits are 0 and 1.
fn serial() -> Result<[u8; SERIAL_BYTES], RequestError> {
    let mut bytes = random::<SERIAL_BYTES>()?;
    if let Some(first) = bytes.first_mut() {
        *first = (*first & 0x3f) | 0x40;
    }
    Ok(bytes)
}

pub(crate) fn random<const N: usize>() -> Result<[u8; N], RequestError> {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).map_err(|_| RequestError::Random)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;

    #[test]
    fn serial_numbers_are_positive_and_of_one_length() {
        for _ in 0..100 {
            let serial = serial().unwrap();
            assert!((0x40..0x80).contains(&serial[0]), "{serial:?}");
        }
    }

    #[test]
    fn names_find_their_place_in_a_certificate_or_are_refused() {
        assert!(matches!(server_name("web_1.example.com").unwrap(), SanType::DnsName(_)));
        assert!(matches!(server_name("10.0.0.11").unwrap(), SanType::IpAddress(_)));
        assert!(matches!(server_name("web.1"), Err(RequestError::ServerName { .. })));
    }
}
