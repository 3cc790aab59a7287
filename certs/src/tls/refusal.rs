//! What a failed handshake means, for the person who reads of it: which side refused which certificate, why, and what to do.
//!
//! In TLS 1.3 the client's side of the handshake is over before the server has seen its certificate: the server's refusal, an
//! alert, comes with the first read. All functions here take the error whenever it surfaced.

mod authority;

use std::error::Error as StdError;
use std::io;

use common::identity::{MinionName, Role};
use jiff::Timestamp;
use rustls::pki_types::UnixTime;
use rustls::{AlertDescription, CertificateError, Error};

use super::checks::unproven;

/// One side did not accept the other's certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Who refuses whom, why, and what to do next: one line, for a person.
    pub message: String,
    /// The host refused us, and said so in an alert; else we refused the host. Either way no call has reached it.
    pub refused_by_peer: bool,
}

/// What `error`, of a connection from an overlord to `host`, says about certificates; nothing if it is about something else.
#[must_use]
pub fn refusal(host: &MinionName, error: &Error) -> Option<Refusal> {
    match error {
        Error::AlertReceived(alert) => refused_by(host, *alert).map(|message| Refusal { message, refused_by_peer: true }),
        Error::InvalidCertificate(reason) => Some(Refusal { message: refused_host(host, reason), refused_by_peer: false }),
        Error::NoCertificatesPresented => {
            Some(Refusal { message: format!("what answers at {host}'s address shows no certificate"), refused_by_peer: false })
        }
        _ => None,
    }
}

/// As [`refusal`], of an error that may hold the TLS error somewhere within, as an [`io::Error`] of a read does.
#[must_use]
pub fn refusal_within(host: &MinionName, error: &(dyn StdError + 'static)) -> Option<Refusal> {
    refusal(host, tls_error_within(error)?)
}

/// What `error`, of a connection from whoever bears the role `ours`, or nobody yet, to the authority's server at `address`, says about
/// certificates; nothing if it is about something else.
#[must_use]
pub fn authority_refusal_within(address: &str, ours: Option<&Role>, error: &(dyn StdError + 'static)) -> Option<Refusal> {
    match tls_error_within(error)? {
        Error::AlertReceived(alert) => {
            authority::refused_by(address, ours, *alert).map(|message| Refusal { message, refused_by_peer: true })
        }
        Error::InvalidCertificate(reason) => {
            Some(Refusal { message: authority::refused_authority(address, reason), refused_by_peer: false })
        }
        Error::NoCertificatesPresented => {
            Some(Refusal { message: format!("what answers at {address} shows no certificate"), refused_by_peer: false })
        }
        _ => None,
    }
}

/// What `error`, of a connection that a minion or the authority accepted, says about the client's certificate: one line for its log.
#[must_use]
pub fn client_refusal(error: &(dyn StdError + 'static)) -> Option<String> {
    let reason = match tls_error_within(error)? {
        Error::NoCertificatesPresented => "it shows no certificate".to_owned(),
        Error::InvalidCertificate(reason) => match reason {
            CertificateError::ApplicationVerificationFailure => "its certificate has not the overlord role".to_owned(),
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                "its certificate was issued by another authority than ours".to_owned()
            }
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => "its certificate has expired".to_owned(),
            CertificateError::NotValidYetContext { not_before, .. } => {
                format!("its certificate is not valid before {}: set this machine's clock", moment(*not_before))
            }
            CertificateError::NotValidYet => "its certificate is not valid yet: set this machine's clock".to_owned(),
            CertificateError::Revoked => "its certificate has been revoked".to_owned(),
            CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
                "its certificate is not one of a client".to_owned()
            }
            other => unproven(other).map_or_else(|| other.to_string(), ToString::to_string),
        },
        Error::AlertReceived(alert) => format!("it refuses our certificate ({alert:?})"),
        _ => return None,
    };
    Some(reason)
}

fn tls_error_within<'e>(error: &'e (dyn StdError + 'static)) -> Option<&'e Error> {
    let mut error = error;
    loop {
        if let Some(tls) = error.downcast_ref::<Error>() {
            return Some(tls);
        }
        // An io::Error gives its inner error's source as its own: the inner error itself would be skipped.
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        error = match inner {
            Some(inner) => inner,
            None => error.source()?,
        };
    }
}

fn refused_by(host: &MinionName, alert: AlertDescription) -> Option<String> {
    let reason = match alert {
        AlertDescription::CertificateExpired => {
            "by its clock it has expired or is not valid yet; `overlord certs list` shows how long it is valid".to_owned()
        }
        AlertDescription::UnknownCA => format!(
            "the authority that {host} trusts is another than the one that issued ours; \
             give {host} the folder that `overlord certs issue {host}` writes"
        ),
        AlertDescription::AccessDenied | AlertDescription::UnsupportedCertificate => {
            "it has not the overlord role; `overlord certs issue --role overlord NAME` makes one that has".to_owned()
        }
        AlertDescription::CertificateRequired => {
            return Some(format!("{host} refuses us: it requires a certificate, and we showed none"));
        }
        AlertDescription::CertificateRevoked => {
            "it has been revoked; `overlord certs status` says when, `overlord certs issue --role overlord NAME` makes another".to_owned()
        }
        AlertDescription::CertificateUnknown => {
            format!("it cannot tell whether it is good; perhaps its revocation list is stale: the log of {host} says it")
        }
        AlertDescription::BadCertificate | AlertDescription::CertificateUnobtainable | AlertDescription::DecryptError => {
            format!("it cannot verify it ({alert:?})")
        }
        _ => return None,
    };
    Some(format!("{host} refuses our certificate: {reason}"))
}

fn refused_host(host: &MinionName, reason: &CertificateError) -> String {
    let renew = format!("give {host} the folder that `overlord certs issue {host}` writes");
    match reason {
        CertificateError::ExpiredContext { not_after, .. } => {
            format!("the certificate of {host} has expired ({}): {renew}", moment(*not_after))
        }
        CertificateError::Expired => format!("the certificate of {host} has expired: {renew}"),
        CertificateError::NotValidYetContext { not_before, .. } => {
            format!("the certificate of {host} is not valid before {}: set this machine's clock", moment(*not_before))
        }
        CertificateError::NotValidYet => format!("the certificate of {host} is not valid yet: set this machine's clock"),
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            format!("the certificate of {host} was issued by another authority than ours: {renew}")
        }
        CertificateError::NotValidForNameContext { presented, .. } => {
            format!("the host at this address is {}, not {host}: mend the address of {host} in hosts.toml", presented.join(", "))
        }
        CertificateError::NotValidForName => format!("the host at this address is not {host}: mend its address in hosts.toml"),
        CertificateError::InvalidPurpose
        | CertificateError::InvalidPurposeContext { .. }
        | CertificateError::ApplicationVerificationFailure => {
            format!("what answers at {host}'s address shows a certificate that has not the minion role: {renew}")
        }
        CertificateError::Revoked => format!(
            "the certificate of {host} has been revoked: if {host} is to be one of the fleet again, run `overlord certs clean {host}`, \
             and `minion enroll` on {host}"
        ),
        other if unproven(other).is_some() => {
            let reason = unproven(other).map(ToString::to_string).unwrap_or_default();
            format!("nothing is asked of {host}: {reason}; `overlord certs status` says how to get a newer one")
        }
        other => format!("the certificate of {host} cannot be verified ({other}): {renew}"),
    }
}

fn moment(time: UnixTime) -> String {
    let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    Timestamp::from_second(seconds).map_or_else(|_| "at an unknown time".to_owned(), |time| time.to_string())
}
