//! The words of a refusal between the authority's server and whoever asks it.

use common::identity::Role;
use rustls::{AlertDescription, CertificateError};

use super::moment;
use crate::tls::checks::{Unproven, unproven};

/// The server at `address` refuses the certificate of whoever bears the role `ours`.
pub(super) fn refused_by(address: &str, ours: Option<&Role>, alert: AlertDescription) -> Option<String> {
    let reason = match alert {
        AlertDescription::CertificateExpired => "by its clock it has expired or is not valid yet",
        AlertDescription::CertificateRevoked => "it has been revoked",
        AlertDescription::UnknownCA => "another authority issued it",
        AlertDescription::AccessDenied | AlertDescription::UnsupportedCertificate => "it is neither a minion's nor an overlord's",
        AlertDescription::CertificateUnknown => "it cannot tell whether it is good; perhaps its revocation list is stale: its log says it",
        AlertDescription::BadCertificate | AlertDescription::CertificateUnobtainable | AlertDescription::DecryptError => {
            "it cannot verify it"
        }
        AlertDescription::CertificateRequired => return Some(format!("the authority at {address} requires a certificate: {}", anew(ours))),
        _ => return None,
    };
    Some(format!("the authority at {address} refuses our certificate: {reason}; {}", anew(ours)))
}

/// We refuse what answers at `address`.
pub(super) fn refused_authority(address: &str, reason: &CertificateError) -> String {
    match (unproven(reason), reason) {
        (Some(Unproven::OtherAuthority { shown, expected }), _) => format!(
            "what answers at {address} is not our authority: it shows {shown}, and {expected} is expected; \
             `overlord certs status`, where the authority is, prints its fingerprint"
        ),
        (Some(stale @ Unproven::Stale { .. }), _) => format!("nothing is asked of the authority at {address}: {stale}"),
        (None, CertificateError::ExpiredContext { not_after, .. }) => {
            format!(
                "the certificate of the authority at {address} has expired ({}): restart `overlord certs serve` there",
                moment(*not_after)
            )
        }
        (None, CertificateError::NotValidYetContext { not_before, .. }) => {
            format!("the certificate of the authority at {address} is not valid before {}: set this machine's clock", moment(*not_before))
        }
        (None, CertificateError::UnknownIssuer | CertificateError::BadSignature) => {
            format!("what answers at {address} was certified by another authority than ours: {HERE}")
        }
        (None, CertificateError::Revoked) => {
            format!("the certificate of what answers at {address} has been revoked: {HERE}")
        }
        (None, other @ (CertificateError::Expired | CertificateError::NotValidYet)) => {
            format!("the certificate of the authority at {address} is not valid now ({other}): restart `overlord certs serve` there")
        }
        (
            None,
            CertificateError::NotValidForName
            | CertificateError::NotValidForNameContext { .. }
            | CertificateError::InvalidPurpose
            | CertificateError::InvalidPurposeContext { .. }
            | CertificateError::ApplicationVerificationFailure,
        ) => format!("what answers at {address} is not the fleet's authority: {HERE}"),
        (None, other) => format!("the certificate of what answers at {address} cannot be verified ({other}): {HERE}"),
    }
}

/// What to do where something else answers than should.
const HERE: &str = "give the address at which `overlord certs serve` of our authority listens";

fn anew(ours: Option<&Role>) -> String {
    match ours {
        Some(Role::Minion(name)) => {
            format!(
                "if {name} is to be one of the fleet, run `overlord certs clean {name}` where the authority is, and `minion enroll` on {name}"
            )
        }
        Some(Role::Overlord(name)) => format!("`overlord certs issue --role overlord {name}`, where the authority is, makes another"),
        Some(Role::Authority) | None => "`minion enroll` asks for one".to_owned(),
    }
}
