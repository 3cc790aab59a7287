//! How far a method says it is: a fraction, a few words, and when it said so.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The most letters of a report's message that are kept.
pub const PROGRESS_MESSAGE_MAX_LETTERS: usize = 200;

/// How far one has to come on, and how long it may take, until it is worth writing down anew where every line is kept.
const NEWS_FRACTION: f64 = 0.01;
const NEWS_SECONDS: i64 = 60;

/// The last report of a method, in JSON `{"fraction", "message", "at"}`. However it is made, or read, the fraction is from 0 to 1 and the message not
/// longer than [`PROGRESS_MESSAGE_MAX_LETTERS`]. The message is the method's own: it is made harmless where it is shown.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(from = "Said")]
pub struct Progress {
    fraction: f64,
    message: String,
    at: Timestamp,
}

/// What is read, which may be anybody's.
#[derive(Deserialize)]
struct Said {
    fraction: f64,
    #[serde(default)]
    message: String,
    at: Timestamp,
}

impl From<Said> for Progress {
    fn from(Said { fraction, message, at }: Said) -> Self {
        Self::new(fraction, &message, at)
    }
}

impl Progress {
    /// A report: a fraction below 0 counts as 0, one above 1 as 1, and what is no number as 0.
    #[must_use]
    pub fn new(fraction: f64, message: &str, at: Timestamp) -> Self {
        // Of the two zeros the one without a sign.
        let fraction = if fraction.is_nan() { 0.0 } else { fraction.clamp(0.0, 1.0) + 0.0 };
        Self { fraction, message: message.chars().take(PROGRESS_MESSAGE_MAX_LETTERS).collect(), at }
    }

    /// What one line says that a method has written, without its newline: `FRACTION [MESSAGE]`. None if it does not begin with a number.
    #[must_use]
    pub fn read(line: &str, at: Timestamp) -> Option<Self> {
        let line = line.trim();
        let (number, message) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let fraction = number.parse::<f64>().ok().filter(|fraction| fraction.is_finite())?;
        Some(Self::new(fraction, message.trim_start(), at))
    }

    /// From 0 to 1.
    #[must_use]
    pub fn fraction(&self) -> f64 {
        self.fraction
    }

    /// In the method's own words; empty if it said none.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }

    /// When it was reported, by the host's clock.
    #[must_use]
    pub fn at(&self) -> Timestamp {
        self.at
    }

    /// Whether it says so much more than `before` that it is written down where every line is kept: it has come on, or back, by a hundredth, or a minute
    /// has passed.
    #[must_use]
    pub fn is_news_after(&self, before: Option<&Self>) -> bool {
        before.is_none_or(|before| {
            (self.fraction - before.fraction).abs() >= NEWS_FRACTION || self.at.duration_since(before.at).as_secs().abs() >= NEWS_SECONDS
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::float_cmp, reason = "a test may panic, and these numbers are exact")]
    use super::*;
    use serde_json::json;

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    fn read(line: &str) -> Option<(f64, String)> {
        Progress::read(line, NOW).map(|progress| (progress.fraction, progress.message))
    }

    #[test]
    fn a_line_is_a_fraction_and_a_message() {
        for (line, fraction, message) in [
            ("0.5 half done", 0.5, "half done"),
            ("7.5 x", 1.0, "x"),
            ("-1 y", 0.0, "y"),
            ("1", 1.0, ""),
            ("0", 0.0, ""),
            ("  .25\ttabs  and more \r", 0.25, "tabs  and more"),
            ("1e-2", 0.01, ""),
        ] {
            assert_eq!(read(line).unwrap(), (fraction, message.to_owned()), "{line:?}");
        }
        for none in ["", " ", "NaN", "inf", "-inf", "half", "50%", "0,5", "\u{1b}[2J", "true"] {
            assert_eq!(read(none), None, "{none:?}");
        }
    }

    #[test]
    fn whatever_is_read_is_within_its_bounds() {
        let long = "ä".repeat(1000);
        let read: Progress = serde_json::from_value(json!({ "fraction": -0.0, "message": long, "at": NOW, "more": 1 })).unwrap();
        assert!(read.fraction == 0.0 && read.fraction.is_sign_positive());
        assert_eq!(read.message.chars().count(), PROGRESS_MESSAGE_MAX_LETTERS);
        assert_eq!(serde_json::from_value::<Progress>(json!({ "fraction": 9, "at": NOW })).unwrap().fraction, 1.0);
        for bad in [json!({ "fraction": "1", "at": NOW }), json!({ "fraction": null, "at": NOW }), json!({ "fraction": 1 })] {
            assert!(serde_json::from_value::<Progress>(bad).is_err());
        }
    }

    #[test]
    fn small_steps_are_no_news() {
        let at = |fraction, seconds| Progress::new(fraction, "", Timestamp::from_second(seconds).unwrap());
        assert!(at(0.0, 0).is_news_after(None));
        assert!(!at(0.505, 1).is_news_after(Some(&at(0.5, 0))));
        assert!(at(0.52, 1).is_news_after(Some(&at(0.5, 0))));
        assert!(at(0.4, 1).is_news_after(Some(&at(0.5, 0))));
        assert!(at(0.5, 61).is_news_after(Some(&at(0.5, 0))));
    }
}
