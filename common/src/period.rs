//! A length of time as people write it: `500ms`, `60s`, `1h 30m`, `90d`.

use std::time::Duration;

use jiff::{SignedDuration, Span, SpanRelativeTo};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

/// The longest there is, 100 years: sums of several stay within what clocks can count.
pub const LONGEST: Duration = Duration::from_secs(100 * 366 * 24 * 60 * 60);
/// As much of a text that is none as an error shows.
const SHOWN_MAX_CHARS: usize = 100;

/// Why a text is not a length of time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{text}\" is not a length of time: write it like 500ms, 60s, 1h 30m or 90d, more than 0 and at most 100 years")]
pub struct InvalidPeriod {
    /// The text as it was given, control characters escaped.
    pub text: String,
}

/// The length of time that `text` names, more than none and at most [`LONGEST`]. A day has 24 hours.
///
/// # Errors
/// It names none, or one out of these bounds.
pub fn parse(text: &str) -> Result<Duration, InvalidPeriod> {
    let exact = || text.parse::<SignedDuration>().ok();
    let days = || text.parse::<Span>().ok()?.to_duration(SpanRelativeTo::days_are_24_hours()).ok();
    let period = exact().or_else(days).and_then(|period| Duration::try_from(period).ok());
    period
        .filter(|period| !period.is_zero() && *period <= LONGEST)
        .ok_or_else(|| InvalidPeriod { text: text.escape_debug().take(SHOWN_MAX_CHARS).collect() })
}

/// The same for serde's `deserialize_with`.
///
/// # Errors
/// As [`parse`].
pub fn deserialize<'de, D: Deserializer<'de>>(input: D) -> Result<Duration, D::Error> {
    parse(&String::deserialize(input)?).map_err(D::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn periods_read_as_people_write_them() {
        for (text, ms) in
            [("500ms", 500), ("60s", 60_000), ("1h 30m", 5_400_000), ("1h30m", 5_400_000), ("90d", 7_776_000_000), ("1.5s", 1500)]
        {
            assert_eq!(parse(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for bad in ["", "60", "0s", "-3s", "300000d", "soon", "1 month", "1y"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
