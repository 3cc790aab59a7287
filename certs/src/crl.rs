//! The fleet's revocation list: read, checked against the authority's signature, asked, and put where everyone goes by it.
//!
//! A list is checked once, when it is read; asking it afterwards costs one look into a hash set, in a handshake as of a connection that is
//! open. Nothing here signs: that is the business of `authority`.

use std::collections::HashSet;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::protocol::certs::REVOCATIONS_MAX_BYTES;
use jiff::Timestamp;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};
use x509_parser::prelude::{CertificateRevocationList, FromDer, X509Certificate, X509Version};

use crate::files::{self, FileError};
use crate::leaf::{hex, issued_at, part_of_life, timestamp};

/// How a revocation list in PEM form begins and ends.
const PEM_BEGIN: &str = "-----BEGIN X509 CRL-----";
const PEM_END: &str = "-----END X509 CRL-----";

/// What a list that is past its time means for a handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StaleCrl {
    /// It is gone by as if it were new: an old list is better than an outage.
    #[default]
    Serve,
    /// Nobody is let in until there is a newer one.
    Refuse,
}

/// Why a revocation list cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CrlError {
    /// It cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// It is larger than [`REVOCATIONS_MAX_BYTES`].
    #[error("the revocation list is larger than {REVOCATIONS_MAX_BYTES} bytes")]
    TooLarge,
    /// It is not one revocation list in PEM form, and nothing else.
    #[error("it is not a revocation list in PEM form")]
    NotPem,
    /// It is not an X.509 CRL of version 2 with a number that fits 64 bits and a next update, or it has parts that we do not know and must.
    #[error("it is not a revocation list of a fleet's authority: {0}")]
    Form(&'static str),
    /// None of our authorities has signed it.
    #[error("the revocation list was not signed by our authority")]
    Foreign,
    /// The list in a file cannot be used.
    #[error("the revocation list {path} cannot be used: {source}; delete it, and the next overlord that calls gives it anew", path = .path.display())]
    At {
        /// The file.
        path: PathBuf,
        /// Why.
        source: Box<CrlError>,
    },
}

/// A revocation list that one of our authorities has signed. Cheap to clone.
#[derive(Clone)]
pub struct Crl(Arc<Contents>);

struct Contents {
    pem: String,
    number: u64,
    this_update: Timestamp,
    next_update: Timestamp,
    /// In small hexadecimal digits.
    revoked: HashSet<Box<str>>,
}

impl Crl {
    /// Reads a list, of at most [`REVOCATIONS_MAX_BYTES`], and checks that one of `authorities` has signed it.
    ///
    /// # Errors
    /// It is too large, not a list, or not signed by any of them.
    pub fn parse(pem: &str, authorities: &[CertificateDer<'_>]) -> Result<Self, CrlError> {
        let pem = pem.trim();
        if pem.len() > REVOCATIONS_MAX_BYTES {
            return Err(CrlError::TooLarge);
        }
        // Whoever gives a list on gives its text on: nothing may travel along with it that nobody has signed.
        let alone = pem.starts_with(PEM_BEGIN) && pem.ends_with(PEM_END) && pem.matches("-----BEGIN").count() == 1;
        let der = CertificateRevocationListDer::from_pem_slice(pem.as_bytes()).ok().filter(|_| alone).ok_or(CrlError::NotPem)?;
        let (rest, list) = CertificateRevocationList::from_der(&der).map_err(|_| CrlError::Form("its bytes are damaged"))?;
        if !rest.is_empty() {
            return Err(CrlError::Form("something follows it"));
        }
        if !authorities.iter().any(|authority| has_signed(authority, &list)) {
            return Err(CrlError::Foreign);
        }
        contents(pem, &list).map(|contents| Self(Arc::new(contents)))
    }

    /// Reads the list in a file; `None` if there is no such file.
    ///
    /// # Errors
    /// It cannot be read, or as [`Crl::parse`], with the file's name.
    pub fn load(path: &Path, authorities: &[CertificateDer<'_>]) -> Result<Option<Self>, CrlError> {
        match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(FileError::Read { path: path.to_owned(), source }.into()),
            Ok(file) => Self::read(file, path, authorities).map(Some),
        }
    }

    /// Reads the list in an open file, which `path` is named for in errors.
    pub(crate) fn read(file: File, path: &Path, authorities: &[CertificateDer<'_>]) -> Result<Self, CrlError> {
        let mut bytes = Vec::new();
        // As many more as a line's end and a list that is too large need to be seen.
        let limit = u64::try_from(REVOCATIONS_MAX_BYTES).unwrap_or(u64::MAX).saturating_add(2);
        file.take(limit).read_to_end(&mut bytes).map_err(|source| FileError::Read { path: path.to_owned(), source })?;
        let list = String::from_utf8(bytes).map_err(|_| CrlError::NotPem).and_then(|pem| Self::parse(&pem, authorities));
        list.map_err(|source| CrlError::At { path: path.to_owned(), source: Box::new(source) })
    }

    /// Puts the list at `path`, durably and whole or not at all, with mode 0644, if what lies there is older, is none of `authorities`' or
    /// is no list. Says whether it did. Of several at once, in this process or others, the newest list stays.
    ///
    /// # Errors
    /// The folder is locked by somebody else for too long, or the file cannot be read or written.
    pub fn install(&self, path: &Path, authorities: &[CertificateDer<'_>]) -> Result<bool, CrlError> {
        let _lock = files::lock_folder_of(path)?;
        if let Ok(Some(present)) = Self::load(path, authorities)
            && present.number() >= self.number()
        {
            return Ok(false);
        }
        files::replace(path, format!("{}\n", self.pem()).as_bytes(), 0o644)?;
        files::sync_folder_of(path)?;
        Ok(true)
    }

    /// Its number, which only grows.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.0.number
    }

    /// The serial numbers in it, in small hexadecimal digits.
    pub fn serials(&self) -> impl Iterator<Item = &str> {
        self.0.revoked.iter().map(AsRef::as_ref)
    }

    /// When the authority signed it: lists are dated back, for hosts whose clocks are slow.
    #[must_use]
    pub fn signed_at(&self) -> Timestamp {
        issued_at(self.0.this_update)
    }

    /// When half of its time is over, and another one is to be signed.
    #[must_use]
    pub fn half_time(&self) -> Timestamp {
        part_of_life(self.0.this_update, self.0.next_update, 1, 2)
    }

    /// From when on it says that it holds.
    #[must_use]
    pub fn this_update(&self) -> Timestamp {
        self.0.this_update
    }

    /// By when the authority will have signed a newer one; after that this one is stale.
    #[must_use]
    pub fn next_update(&self) -> Timestamp {
        self.0.next_update
    }

    /// Whether there should be a newer one by now.
    #[must_use]
    pub fn is_stale(&self, now: Timestamp) -> bool {
        now > self.0.next_update
    }

    /// Whether the certificate of this serial number, in small hexadecimal digits, is revoked.
    #[must_use]
    pub fn revokes(&self, serial: &str) -> bool {
        self.0.revoked.contains(serial)
    }

    /// How many certificates it revokes.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.revoked.len()
    }

    /// The list as PEM text.
    #[must_use]
    pub fn pem(&self) -> &str {
        &self.0.pem
    }
}

impl fmt::Debug for Crl {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Contents { number, next_update, revoked, .. } = &*self.0;
        out.debug_struct("Crl").field("number", number).field("next_update", next_update).field("revoked", &revoked.len()).finish()
    }
}

fn has_signed(authority: &CertificateDer<'_>, list: &CertificateRevocationList<'_>) -> bool {
    let Ok((_, authority)) = X509Certificate::from_der(authority) else {
        return false;
    };
    let may_sign = match authority.key_usage() {
        Ok(Some(usage)) => usage.value.crl_sign(),
        Ok(None) => true,
        Err(_) => false,
    };
    may_sign
        && authority.is_ca()
        && list.issuer() == authority.subject()
        && list.signature_algorithm == list.tbs_cert_list.signature
        && list.verify_signature(authority.public_key()).is_ok()
}

/// Of a list whose signature is good. The number stands behind the serial numbers, so a list that was read only in part has none.
fn contents(pem: &str, list: &CertificateRevocationList<'_>) -> Result<Contents, CrlError> {
    if list.version() != Some(X509Version::V2) {
        return Err(CrlError::Form("its version is not 2"));
    }
    if list.extensions().iter().any(|extension| extension.critical) {
        return Err(CrlError::Form("it has critical extensions, which narrow what it says"));
    }
    let number = list.crl_number().and_then(|number| u64::try_from(number).ok()).ok_or(CrlError::Form("it has no number of 64 bits"))?;
    let next_update = list.next_update().ok_or(CrlError::Form("it does not say when the next one is due"))?;
    let at = |time| timestamp(time).map_err(|_| CrlError::Form("its times are out of range"));
    Ok(Contents {
        pem: pem.to_owned(),
        number,
        this_update: at(list.last_update())?,
        next_update: at(next_update)?,
        revoked: list.iter_revoked_certificates().map(|revoked| hex(revoked.raw_serial()).into_boxed_str()).collect(),
    })
}
