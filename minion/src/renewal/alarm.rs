//! Something is wrong: told in the log when it begins, when it changes, and once an hour while it lasts. It decides nothing.

use std::time::{Duration, Instant};

use tracing::{error, info, warn};

/// How often the same is told.
const TOLD_EVERY: Duration = Duration::from_secs(3600);

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Grade {
    /// Worth a line.
    Note,
    /// Somebody should look.
    Warning,
    /// An operator must act.
    Error,
}

/// One thing that can be wrong.
#[derive(Debug, Default)]
pub(super) struct Alarm(Option<Told>);

#[derive(Debug)]
struct Told {
    grade: Grade,
    text: String,
    at: Instant,
}

impl Alarm {
    /// Tells it, unless this very thing was told within the hour.
    pub(super) fn tell(&mut self, grade: Grade, text: &str) {
        if !self.is_new(grade, text, Instant::now()) {
            return;
        }
        match grade {
            Grade::Note => info!("{text}"),
            Grade::Warning => warn!("{text}"),
            Grade::Error => error!("{text}"),
        }
    }

    /// It is over: should it begin again, that is told at once.
    pub(super) fn over(&mut self) {
        self.0 = None;
    }

    /// What was told last, if it is not over.
    #[cfg(test)]
    pub(super) fn told(&self) -> Option<(Grade, &str)> {
        self.0.as_ref().map(|told| (told.grade, told.text.as_str()))
    }

    fn is_new(&mut self, grade: Grade, text: &str, now: Instant) -> bool {
        let is_same = |told: &Told| told.grade == grade && told.text == text && now.duration_since(told.at) < TOLD_EVERY;
        let is_new = !self.0.as_ref().is_some_and(is_same);
        if is_new {
            self.0 = Some(Told { grade, text: text.to_owned(), at: now });
        }
        is_new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_is_told_once_an_hour_and_a_change_at_once() {
        let (mut alarm, now) = (Alarm::default(), Instant::now());
        assert!(alarm.is_new(Grade::Note, "a", now));
        assert!(!alarm.is_new(Grade::Note, "a", now + TOLD_EVERY / 2));
        assert!(alarm.is_new(Grade::Warning, "a", now + TOLD_EVERY / 2));
        assert!(alarm.is_new(Grade::Warning, "b", now + TOLD_EVERY / 2));
        assert!(alarm.is_new(Grade::Warning, "b", now + TOLD_EVERY * 2));
        alarm.over();
        assert!(alarm.is_new(Grade::Warning, "b", now + TOLD_EVERY * 2));
    }
}
