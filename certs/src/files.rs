//! Keys and certificates as files: written whole or not at all, secret from the first byte, and checked when they are read.
//!
//! Who issued them, and what they are used for, is the business of `authority` and `tls`.

use std::fmt;
use std::fs::{self, File, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::identity::Role;
use jiff::Timestamp;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use tempfile::NamedTempFile;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::leaf::{Leaf, LeafError};

/// The largest file that is read: a certificate takes 1 KiB.
const FILE_MAX_BYTES: u64 = 1024 * 1024;
/// What unfinished files and folders begin with; what a crash left of them can be deleted.
pub(crate) const UNFINISHED: &str = ".unfinished-";

/// Why a key or a certificate cannot be written or used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It cannot be read.
    #[error("reading {}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It cannot be written.
    #[error("writing {}", .path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Something lies there already; it stays as it is.
    #[error("{} exists already and is never overwritten: move it away first", .path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// Others than its owner can read the key.
    #[error("the key {path} can be read by others (mode {mode:04o}): run `chmod 600 {path}`", path = .path.display())]
    KeyExposed {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// There is no certificate, or no key, in PEM form in it, or it is larger than 1 MiB.
    #[error("{} holds no {what} in PEM form", .path.display())]
    NotPem {
        /// The file.
        path: PathBuf,
        /// What was looked for.
        what: &'static str,
    },
    /// The certificate is not one of a fleet.
    #[error("the certificate {} cannot be used", .path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// Why.
        source: LeafError,
    },
    /// The key cannot be used, or belongs to another certificate.
    #[error("the key {} does not belong to the certificate {}", .key.display(), .cert.display())]
    KeyMismatch {
        /// The certificate's file.
        cert: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// Why.
        source: rustls::Error,
    },
    /// The certificate comes from another authority.
    #[error("the certificate {} was not issued by the authority {}", .cert.display(), .ca.display())]
    ForeignAuthority {
        /// The certificate's file.
        cert: PathBuf,
        /// The authority's file.
        ca: PathBuf,
    },
}

/// Writes a file that only its owner may read, with mode 0600 from the first byte, and syncs it. It is there whole or not at all.
///
/// # Errors
/// Something lies at `path` already, or it cannot be written.
pub fn write_secret(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    write_new(path, bytes, 0o600)?;
    sync_folder_of(path)
}

/// Writes a file that everyone may read, with mode 0644, and syncs it. It is there whole or not at all.
///
/// # Errors
/// Something lies at `path` already, or it cannot be written.
pub fn write_public(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    write_new(path, bytes, 0o644)?;
    sync_folder_of(path)
}

/// A certificate with its key and the authority it comes from, checked against each other.
#[derive(Clone)]
pub struct Credentials {
    pub(crate) authorities: Vec<CertificateDer<'static>>,
    pub(crate) certified_key: Arc<CertifiedKey>,
    leaf: Leaf,
}

impl Credentials {
    /// Reads the three PEM files. An expired certificate is read like any other: [`Credentials::not_after`] says when it ends.
    ///
    /// # Errors
    /// A file cannot be read, the key can be read by others, the key does not belong to the certificate, the certificate does
    /// not come from the authority, or it carries no role or several.
    pub fn load(ca: &Path, cert: &Path, key: &Path) -> Result<Self, FileError> {
        let authorities = read_certificates(ca)?;
        let chain = read_certificates(cert)?;
        let key_der = read_key(key)?;
        let end_entity = chain.first().ok_or_else(|| FileError::NotPem { path: cert.to_owned(), what: "certificate" })?;
        let leaf = Leaf::read(end_entity).map_err(|source| FileError::Certificate { path: cert.to_owned(), source })?;
        if !authorities.iter().any(|authority| has_issued(authority, end_entity)) {
            return Err(FileError::ForeignAuthority { cert: cert.to_owned(), ca: ca.to_owned() });
        }
        let certified_key = CertifiedKey::from_der(chain, key_der, &rustls::crypto::ring::default_provider())
            .map_err(|source| FileError::KeyMismatch { cert: cert.to_owned(), key: key.to_owned(), source })?;
        Ok(Self { authorities, certified_key: Arc::new(certified_key), leaf })
    }

    /// What its bearer may be.
    #[must_use]
    pub fn role(&self) -> &Role {
        &self.leaf.role
    }

    /// The SHA-256 of the certificate's DER, in small hexadecimal digits.
    #[must_use]
    pub fn fingerprint(&self) -> &str {
        &self.leaf.fingerprint
    }

    /// From when it is valid.
    #[must_use]
    pub fn not_before(&self) -> Timestamp {
        self.leaf.not_before
    }

    /// Until when it is valid.
    #[must_use]
    pub fn not_after(&self) -> Timestamp {
        self.leaf.not_after
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Credentials").field("leaf", &self.leaf).finish_non_exhaustive()
    }
}

/// Every certificate of a PEM file, at least one.
pub(crate) fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, FileError> {
    let not_pem = || FileError::NotPem { path: path.to_owned(), what: "certificate" };
    let text = read_limited(path, None)?;
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(&text).collect::<Result<_, _>>().map_err(|_| not_pem())?;
    if certificates.is_empty() { Err(not_pem()) } else { Ok(certificates) }
}

/// The text of a PEM file that only its owner may read.
pub(crate) fn read_secret(path: &Path) -> Result<Vec<u8>, FileError> {
    read_limited(path, Some(0o077))
}

/// Writes `path` by way of an unfinished file beside it; its folder is not synced yet.
pub(crate) fn write_new(path: &Path, bytes: &[u8], mode: u32) -> Result<(), FileError> {
    match write_unfinished(path, bytes, mode)?.persist_noclobber(path) {
        Ok(_) => Ok(()),
        Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => Err(FileError::Exists { path: path.to_owned() }),
        Err(error) => Err(FileError::Write { path: path.to_owned(), source: error.error }),
    }
}

fn write_unfinished(path: &Path, bytes: &[u8], mode: u32) -> Result<NamedTempFile, FileError> {
    let failed = |source| FileError::Write { path: path.to_owned(), source };
    let mut unfinished = tempfile::Builder::new()
        .prefix(UNFINISHED)
        .permissions(Permissions::from_mode(mode))
        .tempfile_in(folder_of(path))
        .map_err(failed)?;
    unfinished.write_all(bytes).map_err(failed)?;
    unfinished.as_file().sync_all().map_err(failed)?;
    Ok(unfinished)
}

/// As [`write_new`], in place of what lies at `path`: whoever reads finds the one or the other, whole.
pub(crate) fn replace(path: &Path, bytes: &[u8], mode: u32) -> Result<(), FileError> {
    let unfinished = write_unfinished(path, bytes, mode)?;
    unfinished.persist(path).map(drop).map_err(|error| FileError::Write { path: path.to_owned(), source: error.error })
}

/// Makes the names in a folder last.
pub(crate) fn sync_folder(folder: &Path) -> Result<(), FileError> {
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(|source| FileError::Write { path: folder.to_owned(), source })
}

/// Makes the name of `path` last.
pub(crate) fn sync_folder_of(path: &Path) -> Result<(), FileError> {
    sync_folder(folder_of(path))
}

/// The folder in which `path` lies.
pub(crate) fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Deletes the folders in `folder` whose names begin with `prefix`: what crashed runs left. Best effort, as it is litter.
pub(crate) fn sweep(folder: &Path, prefix: &str) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(prefix) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, FileError> {
    PrivateKeyDer::from_pem_slice(&read_secret(path)?).map_err(|_| FileError::NotPem { path: path.to_owned(), what: "private key" })
}

/// The mode is asked of the open file, so that what was checked is what is read.
fn read_limited(path: &Path, forbidden_mode: Option<u32>) -> Result<Vec<u8>, FileError> {
    let failed = |source| FileError::Read { path: path.to_owned(), source };
    let file = File::open(path).map_err(failed)?;
    let mode = file.metadata().map_err(failed)?.permissions().mode() & 0o7777;
    if forbidden_mode.is_some_and(|forbidden| mode & forbidden != 0) {
        return Err(FileError::KeyExposed { path: path.to_owned(), mode });
    }
    let mut bytes = Vec::new();
    file.take(FILE_MAX_BYTES).read_to_end(&mut bytes).map_err(failed)?;
    Ok(bytes)
}

fn has_issued(authority: &CertificateDer<'_>, cert: &CertificateDer<'_>) -> bool {
    let (Ok((_, authority)), Ok((_, cert))) = (X509Certificate::from_der(authority), X509Certificate::from_der(cert)) else {
        return false;
    };
    authority.is_ca() && cert.issuer() == authority.subject() && cert.verify_signature(Some(authority.public_key())).is_ok()
}
