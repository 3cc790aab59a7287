//! A renewed certificate takes the place of the one before: same bearer, same key, and never an older one over a newer.
//!
//! The key is not touched, so that there is no moment at which the two files do not belong together.

use std::path::{Path, PathBuf};

use common::identity::Role;
use jiff::Timestamp;
use rustls::pki_types::CertificateDer;

use crate::files::{self, FileError};
use crate::leaf::{Leaf, LeafError};

/// The largest certificate that is taken, as PEM text: one takes 1 KiB.
const CERT_MAX_BYTES: usize = 64 << 10;

/// Why a certificate does not take the place of the one before.
#[derive(Debug, thiserror::Error)]
pub enum RenewalError {
    /// A file cannot be read, used or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// It is not one certificate in PEM form.
    #[error("the renewed certificate for {} is not one certificate in PEM form", .path.display())]
    NotPem {
        /// The certificate that it was for.
        path: PathBuf,
    },
    /// It is not one of a fleet.
    #[error("the renewed certificate cannot be used")]
    Certificate(#[from] LeafError),
    /// None of our authorities has issued it.
    #[error("the renewed certificate was not issued by our authority {}", .ca.display())]
    Foreign {
        /// The authority's file.
        ca: PathBuf,
    },
    /// It is somebody else's.
    #[error("the renewed certificate is one of {has}, and ours is one of {ours}")]
    OtherRole {
        /// Whose it is.
        has: Role,
        /// Who we are.
        ours: Role,
    },
    /// It is for another key.
    #[error("the renewed certificate is for another key than {}", .key.display())]
    OtherKey {
        /// Our key.
        key: PathBuf,
    },
    /// It is older than the one in place, or its time is over.
    #[error("the renewed certificate ({from} to {until}) is not newer than the one in place, or over")]
    Older {
        /// From when it is valid.
        from: Timestamp,
        /// Until when it is valid.
        until: Timestamp,
    },
    /// It is for a time to come: one of the two clocks is wrong.
    #[error(
        "the new certificate is good from {from} on, and the clock here says {now}: set the clocks here and where the authority is right"
    )]
    NotYet {
        /// From when on it is good.
        from: Timestamp,
        /// What the clock says.
        now: Timestamp,
    },
    /// The certificate in use lies in no file.
    #[error("the certificate in use lies in no file")]
    NoFile,
}

/// Puts the certificate `pem` in the place of `cert`, durably, with mode 0644: at any moment there is the old one or the new one, whole. It
/// must be of the same role and the same key as what lies at `cert` and `key`, from the authority in `ca`, not issued earlier than the one in
/// place, and not over. A shorter life is no reason to refuse it: the administrator may have shortened it. Of several at once the newest stays.
///
/// # Errors
/// It does not fit, or a file cannot be read or written.
pub fn replace_cert(ca: &Path, cert: &Path, key: &Path, pem: &str) -> Result<(), RenewalError> {
    let offered = only_certificate(cert, pem)?;
    let leaf = Leaf::read(&offered)?;
    let _lock = files::lock_folder_of(cert)?;
    let present = files::Credentials::load(ca, cert, key)?;
    if !present.authorities().iter().any(|authority| files::has_issued(authority, &offered)) {
        return Err(RenewalError::Foreign { ca: ca.to_owned() });
    }
    if leaf.role != *present.role() {
        return Err(RenewalError::OtherRole { has: leaf.role, ours: present.role().clone() });
    }
    if leaf.public_key != present.public_key() {
        return Err(RenewalError::OtherKey { key: key.to_owned() });
    }
    let now = Timestamp::now();
    if leaf.not_before > now {
        return Err(RenewalError::NotYet { from: leaf.not_before, now });
    }
    // What is in place may be from a time when the authority's clock was ahead: then it is good for nobody yet.
    let is_older = leaf.not_before < present.not_before() && present.not_before() <= now;
    if is_older || leaf.not_after <= now {
        return Err(RenewalError::Older { from: leaf.not_before, until: leaf.not_after });
    }
    files::replace(cert, pem.as_bytes(), 0o644)?;
    Ok(files::sync_folder_of(cert)?)
}

pub(crate) fn only_certificate(cert: &Path, pem: &str) -> Result<CertificateDer<'static>, RenewalError> {
    let not_pem = || RenewalError::NotPem { path: cert.to_owned() };
    if pem.len() > CERT_MAX_BYTES {
        return Err(not_pem());
    }
    let mut certificates = files::parse_certificates(pem.as_bytes(), cert).map_err(|_| not_pem())?;
    match (certificates.pop(), certificates.is_empty()) {
        (Some(only), true) => Ok(only),
        _ => Err(not_pem()),
    }
}
