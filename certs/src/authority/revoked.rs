//! What was revoked, and the list of it that the authority signs (RFC 5280, 5).

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use rcgen::{CertificateRevocationListParams, Issuer, KeyIdMethod, KeyPair, RevokedCertParams, SerialNumber};
use serde::{Deserialize, Serialize};
use x509_parser::pem::Pem;
use x509_parser::prelude::{CertificateRevocationList, FromDer};

use super::AuthorityError;
use crate::files::{self, FileError};
use crate::leaf::{hex, part_of_life, timestamp, unhex};
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

/// What is read of the list that the authority signed last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedList {
    /// Its number.
    pub number: u64,
    /// When it was signed.
    pub this_update: Timestamp,
    /// By when another one is to be there: after that it is stale.
    pub next_update: Timestamp,
    /// Whose certificates are in it, by serial number in small hexadecimal digits.
    pub serials: BTreeSet<String>,
}

impl SignedList {
    /// When another one is to be signed.
    #[must_use]
    pub fn half_time(&self) -> Timestamp {
        part_of_life(self.this_update, self.next_update, 1, 2)
    }
}

/// The list in `path`; nothing if there is none, or if it is damaged: another one is signed then.
pub(super) fn read(path: &Path) -> Result<Option<SignedList>, AuthorityError> {
    match fs::read(path) {
        Ok(text) => Ok(parse(&text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(FileError::Read { path: path.to_owned(), source }.into()),
    }
}

fn parse(text: &[u8]) -> Option<SignedList> {
    let pem = Pem::iter_from_buffer(text).next()?.ok()?;
    let (_, list) = CertificateRevocationList::from_der(&pem.contents).ok()?;
    Some(SignedList {
        number: u64::try_from(list.crl_number()?).ok()?,
        this_update: timestamp(list.last_update()).ok()?,
        next_update: timestamp(list.next_update()?).ok()?,
        serials: list.iter_revoked_certificates().map(|revoked| hex(revoked.raw_serial())).collect(),
    })
}

/// Signs a list of `revoked`, that is good for `valid`, into `path`. Its number is larger than that of any before, also where that was
/// lost: it is the time in microseconds.
pub(super) fn sign<'r>(
    path: &Path,
    issuer: &Issuer<'_, KeyPair>,
    last_number: u64,
    revoked: impl Iterator<Item = (&'r str, &'r Revoked)>,
    valid: Duration,
) -> Result<(), AuthorityError> {
    let failed = |source| AuthorityError::Request { subject: "the revocation list".into(), source };
    let now = Timestamp::now();
    let number = (last_number + 1).max(u64::try_from(now.as_microsecond()).unwrap_or_default());
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let date = |at: Timestamp| since_1970(at).map(|since| epoch + since).map_err(failed);
    let entry = |(serial, revoked): (&str, &Revoked)| {
        Ok(RevokedCertParams {
            serial_number: SerialNumber::from_slice(&unhex(serial)),
            revocation_time: date(revoked.at)?,
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
        revoked_certs: revoked.map(entry).collect::<Result<_, AuthorityError>>()?,
        key_identifier_method: KeyIdMethod::Sha256,
    };
    let pem = list.signed_by(issuer).and_then(|list| list.pem()).map_err(|error| failed(error.into()))?;
    files::replace(path, pem.as_bytes(), 0o644)?;
    Ok(files::sync_folder_of(path)?)
}
