//! A length of time as people write it: `500ms`, `1h 30m`, `7d`.

use std::time::Duration;

use jiff::{Span, SpanRelativeTo};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

/// Why a text is not a length of time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{text}\" is not a length of time, which looks like 500ms, 10s, 1h 30m or 7d, and is more than 0")]
pub struct InvalidPeriod {
    /// The text as it was given, control characters escaped.
    pub text: String,
}

/// The length of time that `text` names. A day has 24 hours.
///
/// # Errors
/// It is none, or not more than zero.
pub fn parse(text: &str) -> Result<Duration, InvalidPeriod> {
    let invalid = || InvalidPeriod { text: text.escape_debug().take(100).collect() };
    let span: Span = text.parse().map_err(|_| invalid())?;
    let signed = span.to_duration(SpanRelativeTo::days_are_24_hours()).map_err(|_| invalid())?;
    Duration::try_from(signed).ok().filter(|period| !period.is_zero()).ok_or_else(invalid)
}

/// The same for serde's `deserialize_with`.
pub(crate) fn deserialize<'de, D: Deserializer<'de>>(input: D) -> Result<Duration, D::Error> {
    parse(&String::deserialize(input)?).map_err(D::Error::custom)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;

    #[test]
    fn people_write_them_so() {
        for (text, milliseconds) in [("500ms", 500), ("10s", 10_000), ("1h 30m", 5_400_000), ("7d", 604_800_000), ("1h30m", 5_400_000)] {
            assert_eq!(parse(text).unwrap(), Duration::from_millis(milliseconds), "{text}");
        }
        for bad in ["", "10", "0s", "-1s", "1 month", "soon", "1y"] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }
}
