//! What travels when a fleet upgrades itself: a package, in pieces, and by what it is known.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Brings a piece of a package to a host: [`Piece`] → [`Staged`].
pub const STAGE: &str = "minion.stage";

/// Installs a package that was brought before: an object whose `file` is a [`PackageId`].
pub const UPGRADE: &str = "minion.upgrade";

/// The largest package that is taken.
pub const PACKAGE_MAX_BYTES: u64 = 128 << 20;

/// The most bytes of a [`Piece`]: in base64, and in an envelope, less than the smallest `limits.body_max_bytes` that is the default.
pub const PIECE_MAX_BYTES: usize = 512 << 10;

const PREFIX: &str = "sha256:";
const DIGITS: usize = 64;

/// By what a package is known: `sha256:` and the SHA-256 of its file in small hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PackageId(String);

/// That a text is no [`PackageId`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`sha256:` and 64 small hexadecimal digits are wanted: `overlord TARGET minion.upgrade FILE --async` brings the file and writes them"
)]
pub struct InvalidPackageId;

impl PackageId {
    /// That of a package with these bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
        Self(digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// The digits alone.
    #[must_use]
    pub fn digits(&self) -> &str {
        &self.0
    }
}

impl FromStr for PackageId {
    type Err = InvalidPackageId;

    fn from_str(text: &str) -> Result<Self, InvalidPackageId> {
        let digits = text.strip_prefix(PREFIX).ok_or(InvalidPackageId)?;
        let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if digits.len() == DIGITS && digits.bytes().all(is_digit) { Ok(Self(digits.to_owned())) } else { Err(InvalidPackageId) }
    }
}

impl TryFrom<String> for PackageId {
    type Error = InvalidPackageId;

    fn try_from(text: String) -> Result<Self, InvalidPackageId> {
        text.parse()
    }
}

impl From<PackageId> for String {
    fn from(id: PackageId) -> Self {
        id.to_string()
    }
}

impl fmt::Display for PackageId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{PREFIX}{}", self.0)
    }
}

/// The arguments of [`STAGE`].
#[derive(Debug, Clone, Serialize)]
pub struct Piece<'p> {
    /// Of which package.
    pub file: &'p PackageId,
    /// How large the whole is.
    pub bytes: u64,
    /// Where the piece belongs; at most what the host has already.
    pub offset: u64,
    /// The piece itself in standard base64, at most [`PIECE_MAX_BYTES`] of it. An empty one asks what the host has.
    pub data: String,
}

/// The result of [`STAGE`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Staged {
    /// So many bytes, from the beginning on, the host has now; all of them, if its digest was right.
    pub have: u64,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;

    #[test]
    fn a_package_is_known_by_the_sha_256_of_its_file() {
        let id = PackageId::of(b"abc");
        // FIPS 180-2, B.1.
        assert_eq!(id.to_string(), "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(id.to_string().parse(), Ok(id));
        for bad in ["", "sha256:", "minion.deb", &format!("sha256:{}", "A".repeat(64)), &format!("sha256:{}/", "a".repeat(63))] {
            assert_eq!(bad.parse::<PackageId>(), Err(InvalidPackageId), "{bad}");
        }
    }
}
