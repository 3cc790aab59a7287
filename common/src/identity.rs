//! Who is who: names of hosts and callers, and the role that a certificate carries.
//!
//! A name is a DNS name in lower case, so that it can stand in a certificate, a path and a URI unchanged.
//! Whether a peer may bear a name is the business of the `certs` crate, not of this file.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The longest name in bytes: the longest DNS name (RFC 1035, 2.3.4).
pub const NAME_MAX_BYTES: usize = 253;

/// The scheme of the URI in which a certificate carries its role.
const ROLE_SCHEME: &str = "fleet:";

/// Why a text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "\"{name}\" is not a name: letters, digits, `-`, `_` and `.`, at most {NAME_MAX_BYTES} bytes, \
     each part starting and ending with a letter or digit"
)]
pub struct InvalidName {
    /// The text as it was given, control characters escaped.
    pub name: String,
}

fn normal_name(text: &str) -> Result<String, InvalidName> {
    let part_is_sound = |part: &str| {
        let bytes = part.as_bytes();
        let ends = [bytes.first(), bytes.last()];
        !part.is_empty()
            && part.len() <= 63
            && ends.iter().all(|end| end.is_some_and(u8::is_ascii_alphanumeric))
            && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    if text.len() <= NAME_MAX_BYTES && text.split('.').all(part_is_sound) {
        Ok(text.to_ascii_lowercase())
    } else {
        Err(InvalidName { name: text.escape_debug().take(NAME_MAX_BYTES).collect() })
    }
}

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The name in lower case.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;

            fn from_str(text: &str) -> Result<Self, InvalidName> {
                normal_name(text).map(Self)
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidName;

            fn try_from(text: String) -> Result<Self, InvalidName> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.pad(&self.0)
            }
        }
    };
}

name_type!(
    /// The name of a host under management: the name in its certificate, compared without regard to case.
    MinionName
);
name_type!(
    /// The name of a caller: the name in a certificate that has the overlord role.
    CallerName
);

/// The URI of the role that has no name, for there is one authority alone.
const AUTHORITY_URI: &str = "fleet:authority";

/// What a certificate lets its bearer be. Written into it as a URI: `fleet:overlord/NAME`, `fleet:minion/NAME` or `fleet:authority`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// May call minions, as this caller.
    Overlord(CallerName),
    /// May serve as this host.
    Minion(MinionName),
    /// May speak for the fleet's authority: `overlord certs serve`.
    Authority,
}

impl Role {
    /// The name without the role.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Overlord(name) => name.as_str(),
            Self::Minion(name) => name.as_str(),
            Self::Authority => self.kind(),
        }
    }

    /// `overlord`, `minion` or `authority`.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Overlord(_) => "overlord",
            Self::Minion(_) => "minion",
            Self::Authority => "authority",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Authority => out.write_str(AUTHORITY_URI),
            Self::Overlord(_) | Self::Minion(_) => write!(out, "{ROLE_SCHEME}{}/{}", self.kind(), self.name()),
        }
    }
}

/// Why a URI is not a role.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRole {
    /// It is none of `fleet:overlord/NAME`, `fleet:minion/NAME` and `fleet:authority`.
    #[error(
        "\"{}\" is not a role: fleet:overlord/NAME, fleet:minion/NAME or fleet:authority",
        .0.escape_debug().take(NAME_MAX_BYTES).collect::<String>()
    )]
    Form(String),
    /// The name in it is not a name.
    #[error(transparent)]
    Name(#[from] InvalidName),
}

impl FromStr for Role {
    type Err = InvalidRole;

    fn from_str(uri: &str) -> Result<Self, InvalidRole> {
        if uri == AUTHORITY_URI {
            return Ok(Self::Authority);
        }
        let form = || InvalidRole::Form(uri.to_owned());
        let (kind, name) = uri.strip_prefix(ROLE_SCHEME).and_then(|rest| rest.split_once('/')).ok_or_else(form)?;
        match kind {
            "overlord" => Ok(Self::Overlord(name.parse()?)),
            "minion" => Ok(Self::Minion(name.parse()?)),
            _ => Err(form()),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;

    #[test]
    fn names_are_lower_case_dns_names() {
        assert_eq!("Web1.Example.COM".parse::<MinionName>().unwrap().as_str(), "web1.example.com");
        for bad in ["", ".", "a..b", "-a", "a-", "a/b", "a b", "ü", "a\n", &"a".repeat(64), &"a.".repeat(200)] {
            assert!(bad.parse::<MinionName>().is_err(), "{bad:?}");
        }
    }

    /// A certificate may carry a mebibyte in the place of a role.
    #[test]
    fn what_is_no_role_is_repeated_in_part() {
        let error = "\u{1e}".repeat(1 << 20).parse::<Role>().unwrap_err().to_string();
        assert!(error.len() < 400 && !error.contains(char::is_control), "{} bytes", error.len());
    }

    #[test]
    fn a_role_reads_back_as_it_was_written() {
        for uri in ["fleet:overlord/admin", "fleet:minion/web1.example.com", "fleet:authority"] {
            assert_eq!(uri.parse::<Role>().unwrap().to_string(), uri);
        }
        for bad in ["fleet:root/a", "overlord/a", "fleet:minion/", "fleet:minion/a/b", "fleet:minion", "fleet:authority/a"] {
            assert!(bad.parse::<Role>().is_err(), "{bad:?}");
        }
    }
}
