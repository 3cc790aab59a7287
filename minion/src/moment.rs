//! A point in time by two clocks: the wall clock, which somebody may set, and the time since the boot, which nobody can.

use std::sync::OnceLock;
use std::time::Duration;

use jiff::Timestamp;
use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// When something was, such that it can be told how long ago that is, whatever was done to the wall clock meanwhile.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moment {
    /// By the wall clock.
    pub wall: Timestamp,
    /// In milliseconds since the boot, sleep included (`CLOCK_BOOTTIME`).
    pub since_boot_ms: u64,
    /// The boot that is meant.
    pub boot_id: String,
}

impl Moment {
    /// This moment.
    #[must_use]
    pub fn now() -> Self {
        static BOOT_ID: OnceLock<String> = OnceLock::new();
        // Where /proc does not name the boot, the wall clock has to do.
        let boot_id = BOOT_ID.get_or_init(|| crate::spool::boot_id().unwrap_or_default()).clone();
        let since_boot = clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from);
        Self { wall: Timestamp::now(), since_boot_ms: u64::try_from(since_boot.as_millis()).unwrap_or(u64::MAX), boot_id }
    }

    /// How long before `now` it was, as far as the clocks were right: within one boot by the clock that nobody can set.
    #[must_use]
    pub fn age(&self, now: &Self) -> Duration {
        if self.is_in_boot_of(now) {
            return self.proven_age(now);
        }
        let by_the_wall = Duration::try_from(now.wall.duration_since(self.wall)).unwrap_or(Duration::ZERO);
        by_the_wall.max(self.proven_age(now))
    }

    /// How long before `now` it was for certain: what was in an earlier boot is at least as old as this one.
    #[must_use]
    pub fn proven_age(&self, now: &Self) -> Duration {
        let before_boot_ms = if self.is_in_boot_of(now) { self.since_boot_ms } else { 0 };
        Duration::from_millis(now.since_boot_ms.saturating_sub(before_boot_ms))
    }

    fn is_in_boot_of(&self, now: &Self) -> bool {
        self.boot_id == now.boot_id && !now.boot_id.is_empty()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;

    #[test]
    fn a_clock_that_was_set_ages_nothing_within_a_boot() {
        let at = |second, since_boot_ms, boot: &str| Moment {
            wall: Timestamp::from_second(second).unwrap(),
            since_boot_ms,
            boot_id: boot.to_owned(),
        };
        let then = at(1000, 5000, "a");
        assert_eq!(then.age(&at(9000, 7000, "a")), Duration::from_secs(2));
        let later = at(1060, 1, "b");
        assert_eq!((then.age(&later), then.proven_age(&later)), (Duration::from_secs(60), Duration::from_millis(1)));
        assert_eq!(then.age(&at(900, 3000, "b")), Duration::from_secs(3), "it is at least as old as the boot");
        assert!(Moment::now().since_boot_ms > 0 && !Moment::now().boot_id.is_empty());
    }
}
