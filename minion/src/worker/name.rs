//! The name of a worker: that of its file without `.toml`, and of its folder.

use std::fmt;
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

/// The longest name in bytes: sockets lie in a folder of this name, and the paths of sockets are short.
pub const NAME_MAX_BYTES: usize = 32;
/// As much of a text that is none as an error shows.
const SHOWN_MAX_CHARS: usize = 60;

/// A worker's name: letters, digits, `-` and `_`, of which the first is a letter or a digit.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct WorkerName(String);

/// Why a text is no worker's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not a worker's name: it has letters, digits, - and _, begins with a letter or digit, and has at most {NAME_MAX_BYTES}")]
pub struct InvalidWorkerName(String);

impl WorkerName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for WorkerName {
    type Err = InvalidWorkerName;

    fn from_str(text: &str) -> Result<Self, InvalidWorkerName> {
        let is_sound = text.len() <= NAME_MAX_BYTES
            && text.starts_with(|letter: char| letter.is_ascii_alphanumeric())
            && text.chars().all(|letter| letter.is_ascii_alphanumeric() || matches!(letter, '-' | '_'));
        if is_sound { Ok(Self(text.to_owned())) } else { Err(InvalidWorkerName(text.escape_debug().take(SHOWN_MAX_CHARS).collect())) }
    }
}

impl fmt::Display for WorkerName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for WorkerName {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        String::deserialize(input)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_leads_nowhere_else() {
        for name in ["pytask", "a", "7", "py-task_2", &"x".repeat(NAME_MAX_BYTES)] {
            assert!(name.parse::<WorkerName>().is_ok(), "{name}");
        }
        for name in ["", ".", "..", "a/b", "a.b", "-a", "_a", "ä", "a b", "a\0", &"x".repeat(NAME_MAX_BYTES + 1)] {
            assert!(name.parse::<WorkerName>().is_err(), "{name:?}");
        }
    }
}
