//! For the fuzz targets alone: what the authority reads, each by one thin function. It changes nothing.

use common::identity::MinionName;
use common::seal::{self, SealError};
use jiff::Timestamp;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::desk::Request;
use super::revoked::Revoked;
use super::token::{Token, TokenProblem, check_glob};
use super::{IssuedEntry, read_record};
use crate::csr::{Csr, CsrProblem};

/// What is read of a request for a certificate.
#[derive(Debug)]
pub struct Requested {
    /// What its key is known by.
    pub key: String,
    /// The SubjectPublicKeyInfo.
    pub public_key: Vec<u8>,
    /// A name in it that is not the one that was asked about.
    pub foreign_name: Option<String>,
}

/// A sealed file of the authority's folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sealed {
    /// `requests/NAME.json`
    Request,
    /// `revoked/SERIAL.json`
    Revoked,
    /// `tokens/DIGEST.json`
    Token,
    /// `crl.number`
    Number,
}

/// Reads a request, and asks it for a name that is not `name`.
///
/// # Errors
/// It is of no use.
pub fn requested(pem: &str, name: &MinionName) -> Result<Requested, CsrProblem> {
    let csr = Csr::read(pem)?;
    Ok(Requested { foreign_name: csr.foreign_name(name).map(str::to_owned), key: csr.key, public_key: csr.public_key })
}

/// What a record of an issued certificate says; nothing if it is damaged.
#[must_use]
pub fn record(serial: &str, bytes: &[u8]) -> Option<IssuedEntry> {
    read_record(serial, bytes)
}

/// Reads a sealed file, and gives it as it would be written anew.
///
/// # Errors
/// It cannot be read.
pub fn sealed(kind: Sealed, bytes: &[u8]) -> Result<Vec<u8>, SealError> {
    match kind {
        Sealed::Request => again::<Request>(bytes),
        Sealed::Revoked => again::<Revoked>(bytes),
        Sealed::Token => again::<Token>(bytes),
        Sealed::Number => again::<u64>(bytes),
    }
}

fn again<T: Serialize + DeserializeOwned>(bytes: &[u8]) -> Result<Vec<u8>, SealError> {
    seal::open::<T>(bytes).and_then(|value| seal::seal(&value).map_err(SealError::Content))
}

/// What a sealed token says to a request of `name` at `at`; nothing if it is no token.
#[must_use]
pub fn token(bytes: &[u8], name: &MinionName, at: Timestamp) -> Option<Result<(), TokenProblem>> {
    seal::open::<Token>(bytes).ok().map(|token| token.check(name, at))
}

/// Whether a token can be made for the names of this glob.
#[must_use]
pub fn is_glob(glob: &str) -> bool {
    check_glob(glob).is_ok()
}
