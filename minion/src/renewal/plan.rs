//! When a certificate is to be renewed, and when trying again is: pure, but for what is drawn.

use std::time::Duration;

use certs::files::Credentials;
use jiff::{SignedDuration, Timestamp};

use crate::random::share;

/// What of its life is added to the half after which a certificate is renewed, at the most, so that hosts which got theirs together do not
/// ask together.
const JITTER_PART: i32 = 12;
/// What of its life passes between two tries, within these bounds.
const RETRY_PART: i32 = 100;
const RETRY_SHORTER: f64 = 0.75;
const RETRY_LONGER: f64 = 1.25;
const RETRY_LEAST: SignedDuration = SignedDuration::from_secs(1);
const RETRY_MOST: SignedDuration = SignedDuration::from_hours(1);

/// The plan for one certificate.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Plan {
    serial: String,
    due_at: Timestamp,
    /// Tried before, it is not tried again before this.
    retry_at: Timestamp,
    retry: SignedDuration,
    /// From when on it is an alarm that it is not renewed.
    pub(super) overdue_at: Timestamp,
    /// Its end.
    pub(super) until: Timestamp,
}

impl Plan {
    /// The plan for the certificate of `credentials`; `share`, from 0 to 1, is the one that was drawn for it.
    pub(super) fn of(credentials: &Credentials, share: f64) -> Self {
        let until = credentials.not_after();
        let life = until.duration_since(credentials.issued_at()).max(SignedDuration::ZERO);
        let later = (life / JITTER_PART).mul_f64(share);
        Self {
            serial: credentials.serial().to_owned(),
            due_at: credentials.renewal_due_at().checked_add(later).unwrap_or(until),
            retry_at: Timestamp::UNIX_EPOCH,
            retry: (life / RETRY_PART).clamp(RETRY_LEAST, RETRY_MOST),
            overdue_at: credentials.overdue_at(),
            until,
        }
    }

    /// Makes another plan if the certificate is another. When it may be tried again stays, so that no certificate is asked for in a hurry.
    pub(super) fn follow(&mut self, credentials: &Credentials, now: Timestamp) {
        // A clock that was set back must not make the pause longer.
        self.retry_at = self.retry_at.min(now.checked_add(self.retry.mul_f64(RETRY_LONGER)).unwrap_or(now));
        if self.serial != credentials.serial() {
            *self = Self { retry_at: self.retry_at, ..Self::of(credentials, share()) };
        }
    }

    /// When it is to be asked for.
    pub(super) fn next_try(&self) -> Timestamp {
        self.due_at.max(self.retry_at)
    }

    /// It was asked for at `now`: the next try comes after the pause, by `share` a little longer or shorter.
    pub(super) fn tried(&mut self, now: Timestamp, share: f64) {
        self.retry_at = now.checked_add(self.retry.mul_f64(RETRY_SHORTER + share * (RETRY_LONGER - RETRY_SHORTER))).unwrap_or(self.until);
    }

    /// When its state changes for the worse, after `now`.
    pub(super) fn alarms_after(&self, now: Timestamp) -> impl Iterator<Item = Timestamp> {
        [self.overdue_at, self.until].into_iter().filter(move |at| *at > now)
    }
}

/// How long from `now` to `at`; no time if it has passed.
pub(super) fn until(now: Timestamp, at: Timestamp) -> Duration {
    Duration::try_from(at.duration_since(now)).unwrap_or(Duration::ZERO)
}

/// `period` after `now`.
pub(super) fn after(now: Timestamp, period: Duration) -> Timestamp {
    now.checked_add(period).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;
    use certs::authority::{Authority, CLOCK_SKEW, Validity, write_folder};

    fn credentials(life: SignedDuration) -> (Credentials, Timestamp) {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::init(&dir.path().join("ca"), Duration::from_secs(86_400 * 3650)).unwrap();
        let issued_at = Timestamp::from_second(Timestamp::now().as_second()).unwrap();
        let validity = Validity { not_before: issued_at - CLOCK_SKEW, not_after: issued_at + life };
        let issued = authority.issue_within(&["fleet:minion/web1".parse().unwrap()], validity).unwrap().remove(0);
        let folder = write_folder(dir.path(), authority.ca_pem(), None, &issued).unwrap();
        let load = Credentials::load(&folder.join("ca.pem"), &folder.join("cert.pem"), &folder.join("key.pem"));
        (load.unwrap(), issued_at)
    }

    #[test]
    fn it_is_due_between_half_and_seven_twelfths_of_its_life() {
        let (credentials, issued_at) = credentials(SignedDuration::from_secs(1200));
        let due = |share| Plan::of(&credentials, share).next_try().duration_since(issued_at).as_secs();
        assert_eq!((due(0.0), due(0.5), due(1.0)), (600, 650, 700));
        let plan = Plan::of(&credentials, 1.0);
        assert_eq!((plan.overdue_at.duration_since(issued_at).as_secs(), plan.retry.as_secs()), (800, 12));
    }

    #[test]
    fn a_try_is_followed_by_a_pause_also_when_the_certificate_has_changed() {
        let (short, issued_at) = credentials(SignedDuration::from_secs(2));
        let mut plan = Plan::of(&short, 0.0);
        let now = issued_at + SignedDuration::from_secs(60);
        plan.tried(now, 0.5);
        assert_eq!(plan.next_try(), now + RETRY_LEAST);
        let (other, _) = credentials(SignedDuration::from_secs(2));
        plan.follow(&other, now);
        assert_eq!((plan.serial.as_str(), plan.next_try()), (other.serial(), now + RETRY_LEAST));
        plan.follow(&short, issued_at);
        assert!(plan.next_try() <= issued_at + SignedDuration::from_secs(2), "the clock was set back");
        let (long, _) = credentials(SignedDuration::from_hours(24 * 90));
        assert_eq!(Plan::of(&long, 0.0).retry, RETRY_MOST);
    }
}
