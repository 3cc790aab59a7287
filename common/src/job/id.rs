//! Ids: twelve letters and digits in three groups, `54k2-9xqd-4fz1`, in Crockford's base 32.
//!
//! A job id begins with its time, so ids sort by time. Reading is lenient: no difference of case, hyphens at will,
//! `o` for `0`, `i` and `l` for `1`.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::identity::{CallerName, MinionName};

/// Crockford's alphabet: no `i`, `l`, `o`, `u`.
const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
/// The letters and digits of an id, hyphens aside: 60 bits.
const ID_LETTERS: usize = 12;
/// The low bits of a job id are random; the rest is milliseconds since 1970, which lasts until the year 3084.
const RANDOM_BITS: u32 = 15;

/// Why a text is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{text}\" is not a job id, which looks like 54k2-9xqd-4fz1")]
pub struct InvalidId {
    /// The text as it was given, control characters escaped.
    pub text: String,
}

impl InvalidId {
    fn of(text: &str) -> Self {
        Self { text: text.escape_debug().take(100).collect() }
    }
}

fn letters(bits: u64) -> String {
    let mut text = String::with_capacity(14);
    for place in 0..ID_LETTERS {
        if place > 0 && place % 4 == 0 {
            text.push('-');
        }
        let digit = (bits >> (5 * (ID_LETTERS - 1 - place))) & 31;
        text.push(usize::try_from(digit).ok().and_then(|digit| ALPHABET.get(digit)).map_or('0', |byte| char::from(*byte)));
    }
    text
}

/// The beginning of an id as a person types it, in the form in which ids are written (lower case, hyphens in place),
/// so that it can be compared with [`str::starts_with`].
///
/// # Errors
/// It has a character that no id has, or too many.
pub fn normal_prefix(text: &str) -> Result<String, InvalidId> {
    let mut normal = String::with_capacity(14);
    for (count, letter) in text.chars().filter(|letter| *letter != '-').enumerate() {
        let letter = match letter.to_ascii_lowercase() {
            'o' => '0',
            'i' | 'l' => '1',
            other => other,
        };
        if count == ID_LETTERS || !u8::try_from(letter).is_ok_and(|byte| ALPHABET.contains(&byte)) {
            return Err(InvalidId::of(text));
        }
        if count > 0 && count % 4 == 0 {
            normal.push('-');
        }
        normal.push(letter);
    }
    Ok(normal)
}

macro_rules! id_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The id as it is written.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                let normal = normal_prefix(text)?;
                if normal.len() == 14 { Ok(Self(normal)) } else { Err(InvalidId::of(text)) }
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;

            fn try_from(text: String) -> Result<Self, InvalidId> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.pad(&self.0)
            }
        }
    };
}

id_type!(
    /// Names one job on the overlord.
    JobId
);
id_type!(
    /// Names one job on one host.
    ///
    /// It follows from the host, the caller and the call id: whoever asks twice asks for the same folder, so the file system
    /// itself sees to it that a call starts at most once, whatever crashed in between.
    MinionJobId
);

impl JobId {
    /// The id of a job made at `at`, told apart from others of the same millisecond by 15 bits of `random`.
    #[must_use]
    pub fn new(at: Timestamp, random: u32) -> Self {
        let milliseconds = u64::try_from(at.as_millisecond()).unwrap_or(0);
        let random = u64::from(random) & ((1 << RANDOM_BITS) - 1);
        Self(letters((milliseconds << RANDOM_BITS) | random))
    }

    /// When it was made, by the clock of who made it.
    #[must_use]
    pub fn made_at(&self) -> Timestamp {
        let digit = |byte: u8| ALPHABET.iter().position(|letter| *letter == byte).and_then(|digit| u64::try_from(digit).ok());
        let bits = self.0.bytes().filter_map(digit).fold(0_u64, |bits, digit| (bits << 5) | digit);
        i64::try_from(bits >> RANDOM_BITS).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok()).unwrap_or(Timestamp::MAX)
    }
}

impl MinionJobId {
    /// The id of `caller`'s call `call_id` on the host `minion`: 60 bits of the SHA-256 of the three.
    #[must_use]
    pub fn derive(minion: &MinionName, caller: &CallerName, call_id: &CallId) -> Self {
        let text = format!("{minion}\n{caller}\n{call_id}");
        let digest = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
        let bits = digest.as_ref().iter().take(8).fold(0_u64, |bits, byte| (bits << 8) | u64::from(*byte));
        Self(letters(bits))
    }
}

/// Names one call for the at-most-once rule: a job id, and from the second sending on `/2`, `/3` and so on behind it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CallId {
    job: JobId,
    attempt: u32,
}

impl CallId {
    /// The call id of the `attempt`th sending of `job`; the first is 1.
    #[must_use]
    pub fn new(job: JobId, attempt: u32) -> Self {
        Self { job, attempt: attempt.max(1) }
    }

    /// The job it belongs to.
    #[must_use]
    pub fn job(&self) -> &JobId {
        &self.job
    }
}

impl fmt::Display for CallId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.attempt {
            1 => write!(out, "{}", self.job),
            attempt => write!(out, "{}/{attempt}", self.job),
        }
    }
}

impl FromStr for CallId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let (job, attempt) = match text.split_once('/') {
            None => (text, 1),
            Some((job, number)) => {
                let attempt = number.parse().ok().filter(|attempt| *attempt >= 2 && number.starts_with(|c: char| c != '+'));
                (job, attempt.ok_or_else(|| InvalidId::of(text))?)
            }
        };
        Ok(Self { job: job.parse()?, attempt })
    }
}

impl TryFrom<String> for CallId {
    type Error = InvalidId;

    fn try_from(text: String) -> Result<Self, InvalidId> {
        text.parse()
    }
}

impl From<CallId> for String {
    fn from(id: CallId) -> Self {
        id.to_string()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;

    #[test]
    fn ids_sort_by_time_and_read_back() {
        let at = |ms| Timestamp::from_millisecond(ms).unwrap();
        let early = JobId::new(at(1_795_000_000_000), u32::MAX);
        let late = JobId::new(at(1_795_000_000_001), 0);
        assert!(early < late, "{early} {late}");
        assert_eq!(early.as_str().len(), 14);
        assert_eq!((early.made_at(), late.made_at()), (at(1_795_000_000_000), at(1_795_000_000_001)));
        assert_eq!(early.as_str().to_uppercase().replace('-', "").parse::<JobId>().unwrap(), early);
    }

    #[test]
    fn reading_forgives_what_people_mistake() {
        assert_eq!(normal_prefix("5O4I-l").unwrap(), "5041-1");
        assert_eq!(normal_prefix("").unwrap(), "");
        for bad in ["54k2-9xqd-4fz10", "u", "5 4", "../x"] {
            assert!(normal_prefix(bad).is_err(), "{bad:?}");
        }
        assert!("54k2-9xqd".parse::<JobId>().is_err());
    }

    #[test]
    fn a_minion_job_id_follows_from_who_asks_whom_for_what() {
        let derive = |minion: &str, caller: &str, call: &str| {
            MinionJobId::derive(&minion.parse().unwrap(), &caller.parse().unwrap(), &call.parse().unwrap())
        };
        let id = derive("web1", "admin", "54k2-9xqd-4fz1");
        assert_eq!(id, derive("WEB1", "admin", "54K29XQD4FZ1"));
        for other in [
            derive("web2", "admin", "54k2-9xqd-4fz1"),
            derive("web1", "ops", "54k2-9xqd-4fz1"),
            derive("web1", "admin", "54k2-9xqd-4fz1/2"),
        ] {
            assert_ne!(id, other);
        }
    }

    #[test]
    fn a_call_id_is_a_job_id_and_an_attempt() {
        for text in ["54k2-9xqd-4fz1", "54k2-9xqd-4fz1/2", "54k2-9xqd-4fz1/31"] {
            assert_eq!(text.parse::<CallId>().unwrap().to_string(), text);
        }
        for bad in ["54k2-9xqd-4fz1/1", "54k2-9xqd-4fz1/", "54k2-9xqd-4fz1/x", "54k2-9xqd-4fz1/+2", "54k2-9xqd-4fz1/2/3"] {
            assert!(bad.parse::<CallId>().is_err(), "{bad}");
        }
    }
}
