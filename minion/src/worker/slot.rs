//! The place of one instance in its worker: the instance, or since when and why there is none, and when the next one is started.

use std::rc::Rc;
use std::time::{Duration, Instant};

use super::config::{Backoff, WorkerConfig};
use super::desk::SlotId;
use super::instance::{Ending, Home, Instance};
use crate::process::Death;

/// An instance that lived for so long makes the pauses begin anew when it dies.
const WELL_AFTER: Duration = Duration::from_secs(60);
/// As much of what an instance wrote last as is told with its death.
const LAST_LINE_MAX_LETTERS: usize = 200;

/// A place for an instance.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) number: SlotId,
    pub(super) instance: Option<Instance>,
    /// When the next one is started, where there is none.
    pub(super) due: Instant,
    /// How many were started here.
    pub(super) starts: u64,
    /// Why the last one ended, or could not be started.
    pub(super) problem: Option<String>,
    /// The instance is to be replaced by another, once it has no task.
    pub(super) is_outdated: bool,
    pause: Option<Duration>,
}

impl Slot {
    pub(super) fn new(number: SlotId) -> Self {
        Self { number, instance: None, due: Instant::now(), starts: 0, problem: None, is_outdated: false, pause: None }
    }

    /// Starts an instance, or says why not, and waits before the next attempt.
    pub(super) fn start(&mut self, home: &Home, config: &Rc<WorkerConfig>) {
        self.starts += 1;
        self.is_outdated = false;
        match Instance::start(home, self.number, config) {
            Ok(instance) => {
                tracing::info!(worker = %home.worker, instance = self.number, pid = instance.pid.as_raw(), "an instance is started");
                self.instance = Some(instance);
            }
            Err(why) => self.fell(home, why, config.restart),
        }
    }

    /// Its instance has died, and was cleared away.
    pub(super) fn died(&mut self, home: &Home, death: Death) {
        let Some(instance) = self.instance.take() else { return };
        let lived = instance.started.elapsed();
        if instance.has_returned || lived >= WELL_AFTER {
            self.pause = None;
        }
        match instance.ending {
            // It was wanted so: the next one waits for nothing.
            Some(Ending::Told(_) | Ending::Killed) => self.due = Instant::now(),
            Some(Ending::Unwell) => {
                let why = instance.health.and_then(Result::err).unwrap_or_default();
                self.fell(home, why, instance.config.restart);
            }
            None => {
                let after = lived.as_secs_f64();
                let said = instance.last_line().map(|line| line.chars().take(LAST_LINE_MAX_LETTERS).collect::<String>());
                let said = said.map_or_else(String::new, |line| format!("; the last that it wrote is: {line}"));
                self.fell(home, format!("its process {} {after:.1} s after its start{said}", death), instance.config.restart);
            }
        }
    }

    fn fell(&mut self, home: &Home, why: String, backoff: Backoff) {
        let pause = next_pause(self.pause, backoff);
        tracing::warn!(worker = %home.worker, instance = self.number, why, ?pause, "an instance is gone, and is started again after a pause");
        self.problem = Some(why);
        self.pause = Some(pause);
        self.due = Instant::now() + pause;
    }
}

/// Twice the last one, within the bounds.
fn next_pause(last: Option<Duration>, backoff: Backoff) -> Duration {
    last.map_or(backoff.least, |last| last.saturating_mul(2)).min(backoff.most).max(backoff.least.min(backoff.most))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest() {
        let backoff = Backoff { least: Duration::from_secs(1), most: Duration::from_secs(6) };
        let mut pause = None;
        let pauses: Vec<u64> = std::iter::repeat_with(|| {
            pause = Some(next_pause(pause, backoff));
            pause.unwrap_or_default().as_secs()
        })
        .take(5)
        .collect();
        assert_eq!(pauses, [1, 2, 4, 6, 6]);
    }
}
