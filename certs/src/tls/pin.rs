//! The fingerprint by which a host that knows nothing of a fleet yet knows its authority.
//!
//! Whether a server proves to be certified by that authority is decided by the verifiers.

use std::fmt;
use std::str::FromStr;

use rustls::pki_types::CertificateDer;

use crate::leaf::fingerprint;

/// What may stand before the digits, as `openssl` and others print it, in any case.
const PREFIX: &str = "sha256:";
/// How many digits SHA-256 has.
const DIGITS: usize = 64;
/// As much of a text that is no fingerprint as is shown.
const SHOWN_MAX_CHARS: usize = 120;

/// SHA-256 of the DER of an authority's certificate.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CaPin(String);

/// A text is no fingerprint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not a fingerprint: {DIGITS} hexadecimal digits, with or without colons; `overlord certs status` prints it")]
pub struct InvalidPin(String);

impl CaPin {
    /// The fingerprint of a certificate.
    #[must_use]
    pub fn of(cert: &CertificateDer<'_>) -> Self {
        Self(fingerprint(cert))
    }

    /// The certificate of this fingerprint among those that a server has shown.
    #[must_use]
    pub fn find<'c, 'd>(&self, chain: &'c [CertificateDer<'d>]) -> Option<&'c CertificateDer<'d>> {
        chain.iter().find(|cert| Self::of(cert) == *self)
    }
}

impl fmt::Display for CaPin {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(&self.0)
    }
}

impl FromStr for CaPin {
    type Err = InvalidPin;

    fn from_str(text: &str) -> Result<Self, InvalidPin> {
        let lower = text.trim().to_ascii_lowercase();
        let digits: String = lower.strip_prefix(PREFIX).unwrap_or(&lower).chars().filter(|char| *char != ':').collect();
        if digits.len() == DIGITS && digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            Ok(Self(digits))
        } else {
            Err(InvalidPin(text.escape_debug().take(SHOWN_MAX_CHARS).collect()))
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;

    #[test]
    fn a_fingerprint_is_read_as_people_write_it() {
        let digits = "0123456789abcdef".repeat(4);
        let pairs: Vec<_> = digits.as_bytes().chunks(2).map(|pair| String::from_utf8_lossy(pair).to_uppercase()).collect();
        for text in
            [digits.clone(), digits.to_uppercase(), pairs.join(":"), format!("SHA256:{digits}"), format!(" sha256:{}\n", pairs.join(":"))]
        {
            assert_eq!(text.parse::<CaPin>().unwrap().to_string(), digits, "{text}");
        }
        for bad in
            ["", "sha256:", &digits[1..], &format!("{digits}0"), &format!("g{}", &digits[1..]), &format!("sha1:{digits}"), "\u{1b}[2J"]
        {
            let error = bad.parse::<CaPin>().unwrap_err().to_string();
            assert!(error.contains("64 hexadecimal digits") && !error.contains('\u{1b}'), "{error}");
        }
    }
}
