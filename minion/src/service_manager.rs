//! What systemd hears of a unit of type `notify`: that it is ready, what it does, and that it still lives, see sd_notify(3). Where nobody wants to
//! hear it, nothing is said.

use std::time::{Duration, Instant};

use sd_notify::NotifyState;

/// It is told so often within the time after which it counts as hung (`WatchdogSec=` of the unit).
const SIGNS_IN_TIME: u32 = 3;

/// The unit has started, and what it does now, in a line.
pub(crate) fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// What it does now, in a line.
pub(crate) fn status(status: &str) {
    tell(&[NotifyState::Status(status)]);
}

/// Signs of life, if any are wanted.
#[derive(Debug)]
pub(crate) struct SignsOfLife {
    every: Option<Duration>,
    next: Instant,
}

impl SignsOfLife {
    /// The first is due at once.
    pub(crate) fn begin() -> Self {
        Self { every: sd_notify::watchdog_enabled().map(|within| within / SIGNS_IN_TIME), next: Instant::now() }
    }

    /// How often [`SignsOfLife::give`] is to be called, or more often.
    pub(crate) fn every(&self) -> Option<Duration> {
        self.every
    }

    /// Gives one if it is due.
    pub(crate) fn give(&mut self) {
        let now = Instant::now();
        if let Some(every) = self.every
            && self.next <= now
        {
            self.next = now + every / 2;
            tell(&[NotifyState::Watchdog]);
        }
    }
}

fn tell(news: &[NotifyState<'_>]) {
    // Who does not hear it, ends us when its time is up; there is nothing better to do.
    let _unheard = sd_notify::notify(news);
}
