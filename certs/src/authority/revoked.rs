//! What was revoked, and the list of it that the authority signs (RFC 5280, 5).

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use common::seal;
use jiff::Timestamp;
use rcgen::{CertificateRevocationListParams, Issuer, KeyIdMethod, KeyPair, RevokedCertParams, SerialNumber};
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};

use super::AuthorityError;
use crate::crl::{Crl, CrlError};
use crate::files::{self, FileError};
use crate::leaf::unhex;
use crate::request::{CLOCK_SKEW, RequestError, since_1970};

/// What is kept of a revocation, under the certificate's serial number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Revoked {
    /// The role of the certificate, as its URI.
    pub(super) role: String,
    pub(super) at: Timestamp,
    /// Until when the certificate would have been good; so long it stands in the list.
    pub(super) not_after: Timestamp,
    /// Its name may be borne by another key: it was cleaned, not only revoked.
    pub(super) frees_name: bool,
}

/// The list in `path`; nothing if there is none, or if it is damaged or another authority's: another one is signed then.
pub(super) fn read(path: &Path, authority: &CertificateDer<'_>) -> Result<Option<Crl>, AuthorityError> {
    match Crl::load(path, std::slice::from_ref(authority)) {
        Ok(list) => Ok(list),
        Err(CrlError::File(error)) => Err(error.into()),
        Err(_) => Ok(None),
    }
}

/// The number of the list that was signed last, as it is kept beside it: it must only grow, though the list be lost and the clock go back.
pub(super) fn last_number(path: &Path) -> u64 {
    fs::read(path).ok().and_then(|text| seal::open(&text).ok()).unwrap_or_default()
}

/// A list that is good for `valid`: PEM text. Its number is larger than `last_number`, and than that of any before, also where that was
/// lost: it is the time in microseconds.
pub(super) fn sign(
    issuer: &Issuer<'_, KeyPair>,
    last_number: u64,
    revoked: &BTreeMap<String, Timestamp>,
    valid: Duration,
) -> Result<(u64, String), AuthorityError> {
    let failed = |source| AuthorityError::Request { subject: "the revocation list".into(), source };
    let now = Timestamp::now();
    let number = (last_number + 1).max(u64::try_from(now.as_microsecond()).unwrap_or_default());
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let date = |at: Timestamp| since_1970(at).map(|since| epoch + since).map_err(failed);
    let entry = |(serial, at): (&String, &Timestamp)| {
        Ok(RevokedCertParams {
            serial_number: SerialNumber::from_slice(&unhex(serial)),
            revocation_time: date(*at)?,
            reason_code: None,
            invalidity_date: None,
        })
    };
    let next_update = now.checked_add(valid).map_err(|_| failed(RequestError::Range))?;
    let list = CertificateRevocationListParams {
        this_update: date(now.checked_sub(CLOCK_SKEW).map_err(|_| failed(RequestError::Range))?)?,
        next_update: date(next_update)?,
        crl_number: SerialNumber::from(number),
        issuing_distribution_point: None,
        revoked_certs: revoked.iter().map(entry).collect::<Result<_, AuthorityError>>()?,
        key_identifier_method: KeyIdMethod::Sha256,
    };
    let pem = list.signed_by(issuer).and_then(|list| list.pem()).map_err(|error| failed(error.into()))?;
    Ok((number, pem))
}

/// Puts a list into `path`, its number into `number_path` first.
pub(super) fn publish(path: &Path, number_path: &Path, number: u64, pem: &str) -> Result<(), AuthorityError> {
    let kept = seal::seal(&number).map_err(|error| FileError::Write { path: number_path.to_owned(), source: error.into() })?;
    files::replace(number_path, &kept, 0o600)?;
    files::replace(path, pem.as_bytes(), 0o644)?;
    Ok(files::sync_folder_of(path)?)
}
