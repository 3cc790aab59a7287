//! Keys and certificates as files: written whole or not at all, secret from the first byte, and checked when they are read.
//!
//! Who issued them, and what they are used for, is the business of `authority` and `tls`.

use std::fmt;
use std::fs::{self, File, Permissions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use common::identity::Role;
use jiff::Timestamp;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use tempfile::NamedTempFile;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::crl::{Crl, StaleCrl};
use crate::leaf::{Leaf, LeafError, issued_at, part_of_life};

/// The largest file that is read: a certificate takes 1 KiB.
pub(crate) const FILE_MAX_BYTES: u64 = 1024 * 1024;
/// The bits of a mode by which others than its owner may write what has it.
pub const WRITABLE_BY_OTHERS: u32 = 0o022;
/// How long others who replace files in a folder are waited for: what they do takes milliseconds.
const LOCK_WITHIN: Duration = Duration::from_secs(5);
/// How often a locked folder is looked at again.
const LOCK_RETRY: Duration = Duration::from_millis(10);
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
    /// The folder stays locked.
    #[error("waiting for whoever else writes files in {}", .path.display())]
    Lock {
        /// The folder.
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

/// A certificate with its key and the authority it comes from, checked against each other, and what that authority has revoked.
#[derive(Clone)]
pub struct Credentials {
    authorities: Vec<CertificateDer<'static>>,
    pub(crate) certified_key: Arc<CertifiedKey>,
    leaf: Leaf,
    pub(crate) revocations: Revocations,
}

/// What is known of revoked certificates, and what it means if that is old.
#[derive(Debug, Clone, Default)]
pub(crate) struct Revocations {
    pub(crate) crl: Option<Crl>,
    pub(crate) stale: StaleCrl,
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
        let leaf = issued_leaf(ca, &authorities, cert, &chain)?;
        let certified_key = CertifiedKey::from_der(chain, key_der, &rustls::crypto::ring::default_provider())
            .map_err(|source| FileError::KeyMismatch { cert: cert.to_owned(), key: key.to_owned(), source })?;
        Ok(Self { authorities, certified_key: Arc::new(certified_key), leaf, revocations: Revocations::default() })
    }

    /// As [`Credentials::load`], with a certificate and a key that lie in no file.
    ///
    /// # Errors
    /// As [`Credentials::load`].
    pub fn made(ca: &Path, certified_key: CertifiedKey) -> Result<Self, FileError> {
        let authorities = read_certificates(ca)?;
        let leaf = issued_leaf(ca, &authorities, Path::new("that was just made"), &certified_key.cert)?;
        Ok(Self { authorities, certified_key: Arc::new(certified_key), leaf, revocations: Revocations::default() })
    }

    /// The same, going by a revocation list: peers that it names are refused in the handshake.
    #[must_use]
    pub fn with_crl(mut self, crl: Option<Crl>, stale: StaleCrl) -> Self {
        self.revocations = Revocations { crl, stale };
        self
    }

    /// The revocation list that they go by, if there is one.
    #[must_use]
    pub fn crl(&self) -> Option<&Crl> {
        self.revocations.crl.as_ref()
    }

    /// The certificates of the authorities that are trusted, at least one.
    #[must_use]
    pub fn authorities(&self) -> &[CertificateDer<'static>] {
        &self.authorities
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

    /// The certificate itself.
    #[must_use]
    pub fn cert(&self) -> Option<&CertificateDer<'static>> {
        self.certified_key.cert.first()
    }

    /// What its key is known by: the SHA-256 of the public key (SubjectPublicKeyInfo), in small hexadecimal digits. A renewal keeps it.
    #[must_use]
    pub fn key_id(&self) -> &str {
        &self.leaf.key
    }

    /// Its key's SubjectPublicKeyInfo.
    pub(crate) fn public_key(&self) -> &[u8] {
        &self.leaf.public_key
    }

    /// Which of the authorities has issued it.
    pub(crate) fn issuer(&self) -> Option<&CertificateDer<'static>> {
        let end_entity = self.certified_key.cert.first()?;
        self.authorities.iter().find(|authority| has_issued(authority, end_entity))
    }

    /// Until when it is valid.
    #[must_use]
    pub fn not_after(&self) -> Timestamp {
        self.leaf.not_after
    }

    /// Its serial number, in small hexadecimal digits.
    #[must_use]
    pub fn serial(&self) -> &str {
        &self.leaf.serial
    }

    /// When it was issued: its life is counted from here, not from [`Credentials::not_before`], which lies
    /// [`CLOCK_SKEW`](crate::authority::CLOCK_SKEW) earlier.
    #[must_use]
    pub fn issued_at(&self) -> Timestamp {
        issued_at(self.leaf.not_before)
    }

    /// When half of its life is over: from then on it is to be renewed.
    #[must_use]
    pub fn renewal_due_at(&self) -> Timestamp {
        part_of_life(self.leaf.not_before, self.leaf.not_after, 1, 2)
    }

    /// When two thirds of its life are over: if it has not been renewed by then, something is wrong.
    #[must_use]
    pub fn overdue_at(&self) -> Timestamp {
        part_of_life(self.leaf.not_before, self.leaf.not_after, 2, 3)
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Credentials").field("leaf", &self.leaf).finish_non_exhaustive()
    }
}

/// Every certificate of a PEM file, at least one.
pub(crate) fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, FileError> {
    parse_certificates(&read_limited(path, None)?, path)
}

/// As [`read_certificates`], of a text that `path` is named for in errors.
pub(crate) fn parse_certificates(text: &[u8], path: &Path) -> Result<Vec<CertificateDer<'static>>, FileError> {
    let not_pem = || FileError::NotPem { path: path.to_owned(), what: "certificate" };
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(text).collect::<Result<_, _>>().map_err(|_| not_pem())?;
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

/// Locks the folder in which `path` lies against others who replace files in it. Ends with the file that is given.
pub(crate) fn lock_folder_of(path: &Path) -> Result<File, FileError> {
    let folder = folder_of(path);
    let failed = |source| FileError::Lock { path: folder.to_owned(), source };
    let file = File::open(folder).map_err(failed)?;
    let deadline = Instant::now() + LOCK_WITHIN;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => thread::sleep(LOCK_RETRY),
            Err(TryLockError::WouldBlock) => return Err(failed(io::ErrorKind::TimedOut.into())),
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
    }
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
    parse_key(&read_secret(path)?, path)
}

fn parse_key(text: &[u8], path: &Path) -> Result<PrivateKeyDer<'static>, FileError> {
    PrivateKeyDer::from_pem_slice(text).map_err(|_| FileError::NotPem { path: path.to_owned(), what: "private key" })
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

/// What the first certificate of a chain says, if one of the authorities has issued it.
fn issued_leaf(ca: &Path, authorities: &[CertificateDer<'_>], cert: &Path, chain: &[CertificateDer<'_>]) -> Result<Leaf, FileError> {
    let end_entity = chain.first().ok_or_else(|| FileError::NotPem { path: cert.to_owned(), what: "certificate" })?;
    let leaf = Leaf::read(end_entity).map_err(|source| FileError::Certificate { path: cert.to_owned(), source })?;
    if !authorities.iter().any(|authority| has_issued(authority, end_entity)) {
        return Err(FileError::ForeignAuthority { cert: cert.to_owned(), ca: ca.to_owned() });
    }
    Ok(leaf)
}

/// Whether the authority has signed the certificate. Of validity it says nothing.
pub(crate) fn has_issued(authority: &CertificateDer<'_>, cert: &CertificateDer<'_>) -> bool {
    let (Ok((_, authority)), Ok((_, cert))) = (X509Certificate::from_der(authority), X509Certificate::from_der(cert)) else {
        return false;
    };
    authority.is_ca() && cert.issuer() == authority.subject() && cert.verify_signature(Some(authority.public_key())).is_ok()
}
