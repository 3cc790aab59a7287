//! A host's first certificate, or one that takes the place of a lost one, put where the host goes by it.
//!
//! It is checked as if it came from anybody. The certificate is written last, so that a host which has one has all the rest; each file is
//! there whole or not at all, and a kill at any point leaves what the same command puts right.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use common::identity::{MinionName, Role};
use jiff::Timestamp;
use rustls::pki_types::CertificateDer;

use crate::crl::{Crl, CrlError};
use crate::csr::{self, CsrError};
use crate::files::{self, FileError, WRITABLE_BY_OTHERS};
use crate::leaf::{Leaf, LeafError};
use crate::renewal::only_certificate;
use crate::tls::CaPin;
use crate::trust::TrustFiles;

/// The file of a host's folder that says where its authority is asked: `HOST:PORT` and a line's end.
pub const AUTHORITY_FILE: &str = "authority";
/// How long a line of PEM text is.
const LINE_CHARS: usize = 64;

/// Why what the authority gave is of no use.
#[derive(Debug, thiserror::Error)]
pub enum EnrolledError {
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// Our key cannot be used.
    #[error(transparent)]
    Key(#[from] CsrError),
    /// The revocation list cannot be used.
    #[error(transparent)]
    Crl(#[from] CrlError),
    /// It is not one certificate in PEM form.
    #[error("the authority's answer is not one certificate in PEM form")]
    NotPem,
    /// It is not one of a fleet.
    #[error("the certificate that the authority gave cannot be used")]
    Certificate(#[from] LeafError),
    /// Another authority issued it.
    #[error("the certificate that the authority gave was issued by another one")]
    Foreign,
    /// It is somebody else's.
    #[error("the certificate that the authority gave is one of {has}, and we are {ours}")]
    OtherRole {
        /// Whose it is.
        has: Role,
        /// Who we are.
        ours: Role,
    },
    /// It is for another key.
    #[error("the certificate that the authority gave is for another key than {}", .key.display())]
    OtherKey {
        /// Our key.
        key: PathBuf,
    },
    /// Its time is over, or has not begun.
    #[error("the certificate that the authority gave is good from {from} until {until}, and this host's clock says {now}: set the clock")]
    NotNow {
        /// From when it is valid.
        from: Timestamp,
        /// Until when it is valid.
        until: Timestamp,
        /// What the clock says.
        now: Timestamp,
    },
}

/// What a host has of its authority after its request was signed.
#[derive(Debug, Clone, Copy)]
pub struct Enrolled<'a> {
    /// The host.
    pub name: &'a MinionName,
    /// The authority's certificate, which the handshake has proved.
    pub ca: &'a CertificateDer<'a>,
    /// The host's certificate: PEM text.
    pub cert: &'a str,
    /// The revocation list: PEM text.
    pub crl: Option<&'a str>,
    /// Where the authority is asked: `HOST:PORT`.
    pub authority: &'a str,
}

/// The fingerprints of the authorities that a host's folder names; none if it names none yet.
///
/// # Errors
/// `ca.pem` is there, and cannot be read.
pub fn known_authorities(files: &TrustFiles) -> Result<Vec<CaPin>, FileError> {
    match files.ca.symlink_metadata() {
        Ok(_) => Ok(files::read_certificates(&files.ca)?.iter().map(CaPin::of).collect()),
        Err(_) => Ok(Vec::new()),
    }
}

/// Puts it into the folder of `files`: `ca.pem` if it is not there, the list if it is newer, the authority's address, and last the
/// certificate. What lies there already as it should is not written. Gives until when the certificate is valid.
///
/// # Errors
/// It is not for this host and this key, or does not fit into this time, or a file cannot be written: then the certificate that was there
/// is there still.
pub fn install(files: &TrustFiles, enrolled: &Enrolled<'_>) -> Result<Timestamp, EnrolledError> {
    let until = check(files, enrolled)?;
    write_first_authority(files, enrolled.ca)?;
    if let Some(crl) = enrolled.crl {
        let authorities = files::read_certificates(&files.ca)?;
        Crl::parse(crl, &authorities)?.install(&files.crl, &authorities)?;
    }
    let _lock = files::lock_folder_of(&files.cert)?;
    replace_if_other(&files::folder_of(&files.cert).join(AUTHORITY_FILE), &format!("{}\n", enrolled.authority))?;
    replace_if_other(&files.cert, enrolled.cert)?;
    Ok(until)
}

/// Puts the authority's certificate `ca` there as a file of this process's own user, whose number is `owner`, before all else is installed by
/// somebody who must not be able to replace it. One of that user's that is there, and that nobody else can write, stays.
///
/// # Errors
/// It cannot be written.
pub fn install_authority(files: &TrustFiles, ca: &CertificateDer<'_>, owner: u32) -> Result<(), FileError> {
    let _lock = files::lock_folder_of(&files.ca)?;
    let is_owners = |file: Metadata| file.is_file() && file.uid() == owner && file.mode() & WRITABLE_BY_OTHERS == 0;
    if files.ca.symlink_metadata().is_ok_and(is_owners) {
        return Ok(());
    }
    files::replace(&files.ca, pem(ca).as_bytes(), 0o644)?;
    files::sync_folder_of(&files.ca)
}

/// Of several at once, one writes it.
fn write_first_authority(files: &TrustFiles, ca: &CertificateDer<'_>) -> Result<(), FileError> {
    let _lock = files::lock_folder_of(&files.ca)?;
    if known_authorities(files)?.is_empty() { files::write_public(&files.ca, pem(ca).as_bytes()) } else { Ok(()) }
}

/// Whether it can be put there; gives until when the certificate is valid. Nothing is written.
///
/// # Errors
/// It is not for this host and this key, or does not fit into this time.
pub fn check(files: &TrustFiles, enrolled: &Enrolled<'_>) -> Result<Timestamp, EnrolledError> {
    let cert = only_certificate(&files.cert, enrolled.cert).map_err(|_| EnrolledError::NotPem)?;
    let (leaf, ours, now) = (Leaf::read(&cert)?, Role::Minion(enrolled.name.clone()), Timestamp::now());
    if !files::has_issued(enrolled.ca, &cert) {
        return Err(EnrolledError::Foreign);
    }
    if leaf.role != ours {
        return Err(EnrolledError::OtherRole { has: leaf.role, ours });
    }
    if leaf.key != csr::key_file_id(&files.key)? {
        return Err(EnrolledError::OtherKey { key: files.key.clone() });
    }
    if now < leaf.not_before || now >= leaf.not_after {
        return Err(EnrolledError::NotNow { from: leaf.not_before, until: leaf.not_after, now });
    }
    Ok(leaf.not_after)
}

/// A certificate in PEM form (RFC 7468).
fn pem(cert: &CertificateDer<'_>) -> String {
    let digits = STANDARD.encode(cert);
    let lines: Vec<_> = digits.as_bytes().chunks(LINE_CHARS).map(String::from_utf8_lossy).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}

fn replace_if_other(path: &Path, text: &str) -> Result<(), FileError> {
    if std::fs::read(path).is_ok_and(|present| present == text.as_bytes()) {
        return Ok(());
    }
    files::replace(path, text.as_bytes(), 0o644)?;
    files::sync_folder_of(path)
}
