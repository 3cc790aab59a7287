//! One-time tokens: each stands for an administrator's signing, once, for a while, perhaps for some names alone. The authority keeps a
//! token's digest, never the token.

use std::time::Duration;

use common::identity::MinionName;
use globset::{GlobBuilder, GlobSet};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::leaf::{fingerprint, hex};
use crate::request::{RequestError, random};

/// Bytes of a token: enough that guessing is hopeless (NIST SP 800-63B, 5.1.2.2 asks for 20 bits behind a limit on attempts; there is none).
const TOKEN_BYTES: usize = 20;

/// What is kept of a token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Token {
    /// For which names; none: for any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) names: Option<String>,
    pub(super) made_at: Timestamp,
    pub(super) expires_at: Timestamp,
    /// By whom and when it was used up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) used: Option<Used>,
    /// What a newer version has written besides: it is kept.
    #[serde(flatten)]
    pub(super) more: Map<String, Value>,
}

/// The one request that a token has signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Used {
    pub(super) by: MinionName,
    pub(super) at: Timestamp,
}

/// Why a token signs nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenProblem {
    /// The authority never made it, or made it so long ago that it is forgotten.
    #[error("the token is not one of this authority's")]
    Unknown,
    /// It was used.
    #[error("the token was used already, by {by} on {at}")]
    Used {
        /// Who used it.
        by: MinionName,
        /// When.
        at: Timestamp,
    },
    /// Its time is over.
    #[error("the token has expired on {at}")]
    Expired {
        /// Since when.
        at: Timestamp,
    },
    /// It is for other names.
    #[error("the token is for {names} alone")]
    OtherName {
        /// For which.
        names: String,
    },
}

/// A new token, and for how long it is good. It is shown once, and kept nowhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewToken {
    /// The token.
    pub token: String,
    /// What it is known by, in small hexadecimal digits: of no use without it.
    pub digest: String,
    /// When it expires.
    pub expires_at: Timestamp,
}

/// Text that nobody guesses.
pub(super) fn draw() -> Result<String, RequestError> {
    Ok(hex(&random::<TOKEN_BYTES>()?))
}

/// What a token is known by, in small hexadecimal digits.
#[must_use]
pub fn digest(token: &str) -> String {
    fingerprint(token.trim().as_bytes())
}

impl Token {
    pub(super) fn new(names: Option<String>, now: Timestamp, ttl: Duration) -> Result<Self, RequestError> {
        let expires_at = now.checked_add(ttl).map_err(|_| RequestError::Range)?;
        Ok(Self { names, made_at: now, expires_at, used: None, more: Map::new() })
    }

    /// Whether it signs a request of `name` at `now`.
    pub(super) fn check(&self, name: &MinionName, now: Timestamp) -> Result<(), TokenProblem> {
        if let Some(Used { by, at }) = &self.used {
            return Err(TokenProblem::Used { by: by.clone(), at: *at });
        }
        if now >= self.expires_at {
            return Err(TokenProblem::Expired { at: self.expires_at });
        }
        match &self.names {
            Some(names) if !matches(names, name) => Err(TokenProblem::OtherName { names: names.clone() }),
            _ => Ok(()),
        }
    }
}

/// # Errors
/// The glob is none, or too large: what globset says of it.
pub(super) fn check_glob(glob: &str) -> Result<(), String> {
    compiled(glob).map(drop).map_err(|error| error.to_string())
}

fn matches(glob: &str, name: &MinionName) -> bool {
    compiled(glob).is_ok_and(|glob| glob.is_match(name.as_str()))
}

/// A set of one: of all that globset compiles it alone says so, and does not panic, where a glob becomes too large.
fn compiled(glob: &str) -> Result<GlobSet, globset::Error> {
    GlobSet::builder().add(GlobBuilder::new(glob).case_insensitive(true).build()?).build()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;

    #[test]
    fn a_token_is_for_one_use_some_names_and_a_while() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let name = |name: &str| name.parse::<MinionName>().unwrap();
        let mut token = Token::new(Some("Web*".into()), now, Duration::from_secs(60)).unwrap();
        assert_eq!(token.check(&name("web1"), now), Ok(()));
        assert!(matches!(token.check(&name("db1"), now), Err(TokenProblem::OtherName { .. })));
        assert!(matches!(token.check(&name("web1"), token.expires_at), Err(TokenProblem::Expired { .. })));
        token.used = Some(Used { by: name("web1"), at: now });
        assert!(matches!(token.check(&name("web1"), now), Err(TokenProblem::Used { .. })));
    }

    /// globset panics where such a glob is compiled alone.
    #[test]
    fn a_glob_that_is_too_large_is_refused_and_matches_nothing() {
        let glob = "?*".repeat(60_000);
        assert!(check_glob(&glob).is_err());
        let now = Timestamp::UNIX_EPOCH;
        let token = Token::new(Some(glob), now, Duration::from_secs(60)).unwrap();
        assert!(matches!(token.check(&"web1".parse().unwrap(), now), Err(TokenProblem::OtherName { .. })));
    }

    #[test]
    fn tokens_are_long_and_never_the_same() {
        let (a, b) = (draw().unwrap(), draw().unwrap());
        assert_eq!((a.len(), a == b), (2 * TOKEN_BYTES, false));
        assert_eq!(digest(&a), digest(&format!(" {a}\n")));
    }
}
