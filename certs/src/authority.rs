//! The fleet's certificate authority: made once, it issues a certificate for every host and caller, and remembers each.
//!
//! Its folder holds `ca.pem`, `ca.key` and `issued/SERIAL.pem`. It never hands out a certificate that it has not recorded,
//! and never a certificate that outlasts its own. What is asked of it from outside is decided by its [`desk`].

pub mod desk;
mod error;
mod folder;
#[doc(hidden)]
pub mod fuzzing;
mod records;
mod refusal;
mod revoked;
mod token;

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::format::{Format, Program};
use common::identity::Role;
use jiff::Timestamp;
use rayon::prelude::*;
use rcgen::{Certificate, Issuer, KeyPair, PublicKeyData};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::files::{self, FileError};
use crate::format;
use crate::leaf::{Leaf, issued_at, part_of_life, timestamp};
pub use crate::request::{CLOCK_SKEW, RequestError, Validity};
use crate::request::{Particulars, key, validity};
use crate::tls::CaPin;
pub use error::AuthorityError;
use folder::{make_folder, publish, unfinished_folder};
pub use folder::{write_folder, write_overlord_folder};

/// The authority's certificate within its folder.
const CERT_FILE: &str = "ca.pem";
/// The authority's key within its folder.
const KEY_FILE: &str = "ca.key";
/// The folder of the certificates it has issued, within its folder.
const ISSUED_FOLDER: &str = "issued";

/// The format of the folder. Where it goes up, whoever holds `authority.lock` brings on what is older.
const FORMAT: Format = Format { number: 1, program: Program::Overlord };
const FORMAT_MODE: u32 = 0o644;

/// What stands between a certificate and the checksum (CRC-32) of its PEM text in a record.
const CHECKSUM: &str = "CRC32: ";

/// What the folder of an authority is called until it is complete.
const UNFINISHED_AUTHORITY: &str = ".unfinished-authority-";

/// An authority, ready to issue.
pub struct Authority {
    dir: PathBuf,
    cert_pem: String,
    cert: CertificateDer<'static>,
    pin: CaPin,
    not_after: Timestamp,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate that was just issued, with its key, which is kept nowhere else.
pub struct Issued {
    /// What its bearer may be.
    pub role: Role,
    /// The certificate.
    pub cert_pem: String,
    /// Its serial number, in small hexadecimal digits.
    pub serial: String,
    key_pem: String,
}

/// What is remembered of an issued certificate.
#[derive(Debug, Clone)]
pub struct IssuedEntry {
    /// What its bearer may be.
    pub role: Role,
    /// Its serial number, in small hexadecimal digits.
    pub serial: String,
    /// From when it is valid.
    pub not_before: Timestamp,
    /// Until when it is valid.
    pub not_after: Timestamp,
    /// The SHA-256 of its DER, in small hexadecimal digits.
    pub fingerprint: String,
    /// The SHA-256 of its public key (SubjectPublicKeyInfo), in small hexadecimal digits.
    pub key: String,
}

impl Authority {
    /// Makes a new authority in `dir`, whose certificate is valid for `valid`. The folder appears whole or not at all, so a run
    /// that crashed can simply be repeated.
    ///
    /// # Errors
    /// There is an authority in `dir`, or something else; or it cannot be made.
    pub fn init(dir: &Path, valid: Duration) -> Result<Self, AuthorityError> {
        refuse_occupied(dir)?;
        // Of several at once one wins, and sweeps the others' unfinished folders away: whatever they ran into, that is why.
        build(dir, valid).map_err(|error| refuse_occupied(dir).err().unwrap_or(error))?;
        Self::open(dir)
    }

    /// Opens the authority in `dir`.
    ///
    /// # Errors
    /// There is none, its key can be read by others, it is damaged, or of a newer version; then nothing is touched.
    pub fn open(dir: &Path) -> Result<Self, AuthorityError> {
        let (cert_path, key_path) = (dir.join(CERT_FILE), dir.join(KEY_FILE));
        if !cert_path.exists() {
            return Err(AuthorityError::Missing { dir: dir.to_owned() });
        }
        if !key_path.exists() {
            return Err(AuthorityError::Elsewhere { dir: dir.to_owned() });
        }
        format::age(dir, &FORMAT)?;
        let damaged = || AuthorityError::Damaged { dir: dir.to_owned() };
        let certs = files::read_certificates(&cert_path)?;
        let cert = certs.first().ok_or_else(damaged)?;
        let key_pem = String::from_utf8(files::read_secret(&key_path)?).map_err(|_| damaged())?;
        let key = KeyPair::from_pem(&key_pem).map_err(|_| damaged())?;
        let not_after = own_end(cert, &key).ok_or_else(damaged)?;
        let cert_pem = fs::read_to_string(&cert_path).map_err(|source| FileError::Read { path: cert_path.clone(), source })?;
        let issuer = Issuer::from_ca_cert_der(cert, key).map_err(|_| damaged())?;
        Ok(Self { dir: dir.to_owned(), cert_pem, cert: cert.clone(), pin: CaPin::of(cert), not_after, issuer })
    }

    /// The authority's certificate: what hosts and callers trust.
    #[must_use]
    pub fn ca_pem(&self) -> &str {
        &self.cert_pem
    }

    /// The fingerprint of its certificate: by it a host knows the authority that it enrols with.
    #[must_use]
    pub fn pin(&self) -> &CaPin {
        &self.pin
    }

    /// Until when the authority is valid; nothing that it issues lasts longer.
    #[must_use]
    pub fn not_after(&self) -> Timestamp {
        self.not_after
    }

    /// Issues a certificate, with a key of its own, for each of `roles`, valid from [`CLOCK_SKEW`] ago for `valid` from now, over
    /// all cores. Each is recorded durably before any is handed out. They come in the order of `roles`.
    ///
    /// # Errors
    /// They would outlast the authority, a host's name can be no server's name, or they cannot be recorded.
    pub fn issue(&self, roles: &[Role], valid: Duration) -> Result<Vec<Issued>, AuthorityError> {
        let validity = validity(Timestamp::now(), valid);
        self.issue_within(roles, validity.map_err(|source| AuthorityError::Request { subject: "the fleet".into(), source })?)
    }

    /// As [`Authority::issue`], with the validity given outright.
    ///
    /// # Errors
    /// As [`Authority::issue`].
    pub fn issue_within(&self, roles: &[Role], validity: Validity) -> Result<Vec<Issued>, AuthorityError> {
        if validity.not_after > self.not_after {
            return Err(AuthorityError::Outlasts { asked: validity.not_after, authority: self.not_after });
        }
        let issued = roles.par_iter().map(|role| self.issue_one(role, validity)).collect::<Result<_, _>>()?;
        files::sync_folder(&self.issued_dir())?;
        Ok(issued)
    }

    /// What the server of the authority shows: a key and a certificate that are written nowhere, good for `valid`, and the authority's
    /// own certificate behind it.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn server_identity(&self, valid: Duration) -> Result<CertifiedKey, AuthorityError> {
        let failed = |source| AuthorityError::Request { subject: "the authority's server".into(), source };
        let until = |now| validity(now, valid).map(|validity| self.within_our_own(validity));
        let particulars = Particulars::leaf(&Role::Authority, until(Timestamp::now()).map_err(failed)?).map_err(failed)?;
        let key = key().map_err(failed)?;
        let cert = particulars.params.signed_by(&key, &self.issuer).map_err(|error| failed(error.into()))?;
        let chain = vec![cert.der().clone(), self.cert.clone()];
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = rustls::crypto::ring::default_provider();
        CertifiedKey::from_der(chain, key, &provider).map_err(|_| AuthorityError::Damaged { dir: self.dir.clone() })
    }

    fn issue_one(&self, role: &Role, validity: Validity) -> Result<Issued, AuthorityError> {
        let key = key().map_err(|source| AuthorityError::Request { subject: role.to_string(), source })?;
        let (cert, serial) = self.certify(role, &key, validity)?;
        Ok(Issued { role: role.clone(), cert_pem: cert.pem(), serial, key_pem: key.serialize_pem() })
    }

    /// Signs a certificate for that key and records it; the record's name is not synced yet.
    fn certify(&self, role: &Role, key: &impl PublicKeyData, validity: Validity) -> Result<(Certificate, String), AuthorityError> {
        let failed = |source| AuthorityError::Request { subject: role.to_string(), source };
        let Particulars { params, serial } = Particulars::leaf(role, validity).map_err(failed)?;
        let cert = params.signed_by(key, &self.issuer).map_err(|error| failed(error.into()))?;
        // A serial number is the name of a file that is never overwritten: no two certificates have one.
        files::write_new(&self.issued_dir().join(format!("{serial}.pem")), record_text(&cert.pem()).as_bytes(), 0o644)?;
        Ok((cert, serial))
    }

    /// The same validity, ending no later than the authority.
    fn within_our_own(&self, Validity { not_before, not_after }: Validity) -> Validity {
        Validity { not_before, not_after: not_after.min(self.not_after) }
    }

    fn issued_dir(&self) -> PathBuf {
        self.dir.join(ISSUED_FOLDER)
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Authority").field("dir", &self.dir).field("not_after", &self.not_after).finish_non_exhaustive()
    }
}

impl Issued {
    /// The private key. Write it with [`files::write_secret`], and nowhere else.
    #[must_use]
    pub fn key_pem(&self) -> &str {
        &self.key_pem
    }
}

impl IssuedEntry {
    /// Whether its time has begun and is not over.
    #[must_use]
    pub fn is_valid_at(&self, now: Timestamp) -> bool {
        self.not_before <= now && now < self.not_after
    }

    /// When it was issued.
    #[must_use]
    pub fn issued_at(&self) -> Timestamp {
        issued_at(self.not_before)
    }

    /// When its bearer is to ask for the next one: at half of its life.
    #[must_use]
    pub fn renewal_due_at(&self) -> Timestamp {
        part_of_life(self.not_before, self.not_after, 1, 2)
    }

    /// When its bearer should have asked: at two thirds of its life.
    #[must_use]
    pub fn overdue_at(&self) -> Timestamp {
        part_of_life(self.not_before, self.not_after, 2, 3)
    }
}

impl From<Leaf> for IssuedEntry {
    fn from(leaf: Leaf) -> Self {
        let Leaf { role, serial, not_before, not_after, fingerprint, key, public_key: _ } = leaf;
        Self { role, serial, not_before, not_after, fingerprint, key }
    }
}

impl fmt::Debug for Issued {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Issued").field("role", &self.role).field("serial", &self.serial).finish_non_exhaustive()
    }
}

fn build(dir: &Path, valid: Duration) -> Result<(), AuthorityError> {
    let failed = |source| AuthorityError::Request { subject: "the authority".into(), source };
    let particulars = Particulars::authority(validity(Timestamp::now(), valid).map_err(failed)?).map_err(failed)?;
    let key = key().map_err(failed)?;
    let cert = particulars.params.self_signed(&key).map_err(|error| failed(error.into()))?;

    let parent = files::folder_of(dir);
    make_folder(parent)?;
    let unfinished = unfinished_folder(parent, UNFINISHED_AUTHORITY)?;
    files::write_new(&unfinished.path().join(KEY_FILE), key.serialize_pem().as_bytes(), 0o600)?;
    files::write_new(&unfinished.path().join(CERT_FILE), cert.pem().as_bytes(), 0o644)?;
    make_folder(&unfinished.path().join(ISSUED_FOLDER))?;
    format::mark(unfinished.path(), &FORMAT, FORMAT_MODE)?;
    publish(unfinished, dir)?;
    files::sweep(parent, UNFINISHED_AUTHORITY);
    Ok(())
}

fn refuse_occupied(dir: &Path) -> Result<(), AuthorityError> {
    if dir.join(CERT_FILE).exists() {
        return Err(AuthorityError::Exists { dir: dir.to_owned() });
    }
    match fs::read_dir(dir).map(|mut entries| entries.next().is_some()) {
        Ok(true) => Err(AuthorityError::Occupied { dir: dir.to_owned() }),
        Ok(false) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(AuthorityError::Folder { doing: "reading", path: dir.to_owned(), source }),
    }
}

/// Until when the authority's certificate is valid, if it is one and the key is its own.
fn own_end(cert: &CertificateDer<'_>, key: &KeyPair) -> Option<Timestamp> {
    let (_, cert) = X509Certificate::from_der(cert).ok()?;
    let own_key = cert.public_key().subject_public_key.data.as_ref() == key.public_key_raw();
    if cert.is_ca() && own_key { timestamp(cert.validity().not_after).ok() } else { None }
}

/// A record: the certificate, and behind it a checksum, so that damage never turns it into somebody else's.
fn record_text(pem: &str) -> String {
    format!("{pem}{CHECKSUM}{:08x}\n", crc32fast::hash(pem.as_bytes()))
}

/// The certificate of a record, if that is whole.
fn record_pem(text: &str) -> Option<&str> {
    let (pem, checksum) = text.split_once(CHECKSUM)?;
    (checksum.trim_end() == format!("{:08x}", crc32fast::hash(pem.as_bytes()))).then_some(pem)
}

fn read_record(serial: &str, bytes: &[u8]) -> Option<IssuedEntry> {
    let pem = record_pem(std::str::from_utf8(bytes).ok()?)?;
    let leaf = Leaf::read(&CertificateDer::from_pem_slice(pem.as_bytes()).ok()?).ok()?;
    (leaf.serial == serial).then(|| leaf.into())
}
