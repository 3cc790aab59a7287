//! What we ask of a certificate after webpki has verified it: its role, and whether it has been revoked.
//!
//! Pure but for the clock that stale lists are held against. Each reason is an error of rustls, so that the other side gets its alert.

use std::fmt;
use std::sync::Arc;

use jiff::Timestamp;
use rustls::pki_types::CertificateDer;
use rustls::{CertificateError, Error, OtherError};

use crate::crl::StaleCrl;
use crate::files::Revocations;
use crate::leaf::Leaf;
use crate::tls::CaPin;

/// Reasons for which TLS has no word: the other side gets the alert `certificate_unknown`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unproven {
    /// Our revocation list is past its time, and we are told to refuse everyone then.
    #[error("our revocation list is stale since {since}, and we are told to refuse everyone then")]
    Stale {
        /// When a newer one was due.
        since: Timestamp,
    },
    /// The authority that was pinned is not the one that the server shows.
    #[error("it shows {shown}, and {expected} is expected")]
    OtherAuthority {
        /// What the server shows.
        shown: Shown,
        /// What was pinned.
        expected: CaPin,
    },
}

/// The authority that a server shows, for a person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Shown(pub(super) Option<CaPin>);

impl fmt::Display for Shown {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(pin) => write!(out, "the authority {pin}"),
            None => out.write_str("no authority's certificate"),
        }
    }
}

impl From<Unproven> for Error {
    fn from(reason: Unproven) -> Self {
        CertificateError::Other(OtherError(Arc::new(reason))).into()
    }
}

/// The reason within an error of rustls, if it is one of ours.
pub(super) fn unproven(error: &CertificateError) -> Option<&Unproven> {
    match error {
        CertificateError::Other(OtherError(reason)) => reason.downcast_ref(),
        _ => None,
    }
}

/// A certificate without exactly one role is refused with `access_denied`, as one with the wrong role is.
pub(super) fn leaf(end_entity: &CertificateDer<'_>) -> Result<Leaf, Error> {
    Leaf::read(end_entity).map_err(|_| CertificateError::ApplicationVerificationFailure.into())
}

/// Whether the certificate of this serial number may still be believed.
pub(crate) fn refuse_revoked(serial: &str, revocations: &Revocations, now: Timestamp) -> Result<(), Error> {
    let Some(crl) = &revocations.crl else {
        return Ok(());
    };
    if crl.revokes(serial) {
        return Err(CertificateError::Revoked.into());
    }
    if revocations.stale == StaleCrl::Refuse && crl.is_stale(now) {
        return Err(Unproven::Stale { since: crl.next_update() }.into());
    }
    Ok(())
}
