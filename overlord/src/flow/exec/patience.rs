//! How long it is waited for a step: for a host that does not answer, and for one that says again and again that the step has not ended.

use std::time::{Duration, Instant};

use common::job::HostState;
use common::outcome::{ErrorCode, Failure, Outcome, Verdict};

use super::step::{ASK_AGAIN, ASK_AGAIN_LONGEST, Errand, not_run};

/// How long it is waited for a job that its host says is there. The host keeps the job's time limit: one that does not, or cannot, is not believed for ever.
pub(super) struct Patience {
    /// How long it may wait on its host, and then run.
    limit: Duration,
    lost_after: Duration,
    since: (HostState, Instant),
    /// It has waited too long, and was to be stopped.
    is_stopped: bool,
}

/// What is done about a job that has not ended.
pub(super) enum Waiting {
    On,
    Stop,
    Over(Box<Outcome>),
}

impl Patience {
    pub(super) fn new(errand: &Errand) -> Self {
        Self { limit: errand.limit, lost_after: errand.lost_after, since: (HostState::Queued, Instant::now()), is_stopped: false }
    }

    pub(super) fn after(&mut self, state: HostState) -> Waiting {
        if self.since.0 != state {
            self.since = (state, Instant::now());
        }
        let lasts = self.since.1.elapsed();
        if lasts > self.limit.saturating_add(self.lost_after) {
            let (limit, state) = (self.limit, self.since.0);
            return Waiting::Over(Box::new(not_run(Verdict::lost(format!(
                "it may have run: its host says that it is {state}, long after its limit of {limit:?}"
            )))));
        }
        let is_late = state == HostState::Queued && lasts > self.limit;
        if is_late && !std::mem::replace(&mut self.is_stopped, true) { Waiting::Stop } else { Waiting::On }
    }

    /// A job that was taken has not been `undelivered`, whatever its host says; and one that we had stopped while it waited has not begun.
    pub(super) fn judged(&self, outcome: Outcome) -> Outcome {
        match &outcome.verdict {
            Verdict::Undelivered { error } => {
                not_run(Verdict::lost(format!("its host had taken it, and says now that it never started: {}", error.message)))
            }
            Verdict::Cancelled { .. } if self.is_stopped && outcome.started_at.is_none() => {
                let why = format!("it waited on its host for {:?}, and did not begin", self.limit);
                not_run(Verdict::Undelivered { error: Failure::new(ErrorCode::LimitReached, why) })
            }
            _ => outcome,
        }
    }
}

/// A host that does not answer, for how long.
pub(super) struct Silence {
    since: Instant,
    longest: Duration,
    pause: Duration,
}

impl Silence {
    pub(super) fn new(longest: Duration) -> Self {
        Self { since: Instant::now(), longest, pause: ASK_AGAIN }
    }

    /// Pauses; or says that it is lost, as nothing was heard for too long.
    pub(super) async fn goes_on(&mut self, reason: &str) -> Option<Outcome> {
        if self.since.elapsed() >= self.longest {
            let longest = self.longest;
            let why = format!("it may have run: for {longest:?} its host has not said how it ended; at last: {reason}");
            return Some(not_run(Verdict::lost(why)));
        }
        tokio::time::sleep(self.pause).await;
        self.pause = (self.pause * 2).min(ASK_AGAIN_LONGEST);
        None
    }
}
