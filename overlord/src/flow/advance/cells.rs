//! A task at work: which of its cells are sent to whom, which are offered again, and when it has succeeded or failed.

use common::job::HostState;
use common::outcome::{ErrorCode, Failure, Outcome};
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use super::{Advance, target_of};
use crate::envelope::later;
use crate::flow::file::{HostsKind, LostPolicy};
use crate::flow::log::{Cause, Event};
use crate::flow::plan::Task;
use crate::flow::record::{Cell, Record, Run};
use crate::flow::state::{FlowState, TaskState};

/// So often a cell that was lost is run again, where that is allowed: what it does may be what kills hosts.
const LOST_AGAIN_MAX: usize = 3;
/// So often a cell is sent again that a host has been kept from beginning.
pub(super) const FENCED_MAX: usize = 20;
/// How long to wait before a cell that no host has taken is offered again, at first; each time twice as long.
pub(super) const OFFER_AGAIN: SignedDuration = SignedDuration::from_millis(500);
/// The same at most.
const OFFER_AGAIN_LONGEST: SignedDuration = SignedDuration::from_secs(10);

/// What is to be done with a cell, or to undo it.
pub(super) enum Fate {
    Done,
    Failed,
    InFlight,
    /// It is to be sent.
    Ready,
    /// The same, but not before then.
    Later(Timestamp),
}

impl Advance<'_> {
    pub(super) fn settle_running(&mut self, index: usize) -> Result<(), String> {
        let is_stopped = self.is_stopped(index);
        let Some(task) = self.record.plan.task(index) else { return Ok(()) };
        let (max_fail, forks) = (task.max_fail.clone(), task.forks.map_or(usize::MAX, usize::from));
        let at_once = self.around.forks(task);
        let deadline = self.deadline(index);
        let count = self.record.tasks.get(index).map_or(0, |task| task.cells.len());
        let allowed = max_fail.of(count);
        let (mut failed, mut flying, mut ready, mut waiting) = (0, 0, Vec::new(), None::<Timestamp>);
        for cell in 0..count {
            match self.fate(index, cell, deadline) {
                Fate::Done => {}
                Fate::Failed => failed += 1,
                Fate::InFlight => flying += 1,
                Fate::Ready => ready.push(cell),
                Fate::Later(at) => waiting = Some(waiting.map_or(at, |before| before.min(at))),
            }
        }
        let may_send = !is_stopped && failed <= allowed;
        if may_send && !self.record.is_to_suspend {
            for cell in ready.iter().copied() {
                if flying >= forks || self.record.in_flight >= at_once {
                    break;
                }
                match self.send(index, cell)? {
                    true => flying += 1,
                    false => waiting = Some(waiting.map_or(self.now + OFFER_AGAIN, |before| before.min(self.now + OFFER_AGAIN))),
                }
            }
        }
        let is_over = flying == 0 && (!may_send || (ready.is_empty() && waiting.is_none()));
        match (is_over, waiting) {
            (true, _) => self.end(index, allowed),
            (false, Some(at)) => {
                self.look_at(at);
                Ok(())
            }
            (false, None) => Ok(()),
        }
    }

    /// Until then a host is looked for that can take a task.
    pub(super) fn deadline(&self, index: usize) -> Timestamp {
        let begun = self.record.tasks.get(index).and_then(|task| task.begun_at).unwrap_or(self.now).max(self.since);
        let timeout = self.record.plan.task(index).and_then(|task| task.timeout).unwrap_or_else(|| self.around.timeout());
        later(begun, timeout)
    }

    fn fate(&self, index: usize, cell: usize, deadline: Timestamp) -> Fate {
        let (Some(record), Some(task)) = (self.record.tasks.get(index), self.record.plan.task(index)) else { return Fate::Failed };
        let Some(cell) = record.cells.get(cell) else { return Fate::Failed };
        if cell.is_ok() {
            return Fate::Done;
        }
        let Some(run) = cell.runs.last().filter(|run| run.attempt == record.attempt) else {
            return self.offered(task, deadline);
        };
        let Some(outcome) = &run.outcome else { return Fate::InFlight };
        match run.state() {
            Some(HostState::Undelivered) if is_offered_again(task, outcome) => {
                // What was fenced has not been offered yet.
                let fenced = cell.runs.iter().filter(|run| run.outcome.as_ref().is_some_and(is_fenced)).count();
                if is_fenced(outcome) && fenced <= FENCED_MAX {
                    return Fate::Ready;
                }
                let of_this_attempt = |run: &&Run| run.attempt == record.attempt && run.state() == Some(HostState::Undelivered);
                let offers = cell.runs.iter().filter(of_this_attempt).count();
                // Another host may be offered it at once.
                let pause = if task.hosts == HostsKind::Any { SignedDuration::ZERO } else { pause_behind_offers(offers) };
                if self.now >= deadline { Fate::Failed } else { self.not_before(run.ended_at.unwrap_or(self.now) + pause) }
            }
            Some(HostState::Lost) if task.lost == LostPolicy::Again => {
                let lost = cell.runs.iter().filter(|run| run.state() == Some(HostState::Lost)).count();
                if lost > LOST_AGAIN_MAX { Fate::Failed } else { Fate::Ready }
            }
            _ => Fate::Failed,
        }
    }

    pub(super) fn not_before(&self, at: Timestamp) -> Fate {
        if at <= self.now { Fate::Ready } else { Fate::Later(at) }
    }

    /// Of a cell that was not sent yet.
    fn offered(&self, task: &Task, deadline: Timestamp) -> Fate {
        if task.hosts == HostsKind::Any && self.now >= deadline { Fate::Failed } else { Fate::Ready }
    }

    /// Sends a cell, if there is a host for it.
    fn send(&mut self, index: usize, cell: usize) -> Result<bool, String> {
        let Some((task, record)) = self.record.plan.task(index).zip(self.record.tasks.get(index)) else { return Ok(false) };
        let own = record.cells.get(cell).and_then(|cell| cell.host.clone());
        let host = match own {
            Some(host) => Some(host),
            None => {
                let target = target_of(self.record, task).ok().and_then(|target| self.around.hosts(&target).ok());
                target.and_then(|hosts| self.around.pick(index, &hosts, self.record))
            }
        };
        let Some(host) = host else { return Ok(false) };
        let call_id = self.ids.draw();
        self.emit(Event::Sent { task: index, cell, undo: false, host, call_id })?;
        Ok(true)
    }

    /// A task has no call on its way, and none to send.
    pub(super) fn end(&mut self, index: usize, allowed: usize) -> Result<(), String> {
        let Some((task, record)) = self.record.plan.task(index).zip(self.record.tasks.get(index)) else { return Ok(()) };
        let failed: Vec<&Cell> = record.cells.iter().filter(|cell| !cell.is_ok()).collect();
        if failed.len() <= allowed {
            return self.task(index, TaskState::Success, None);
        }
        // The first of those that were sent is to blame, rather than one that was not begun for its sake.
        let blamed = failed.iter().find(|cell| cell.runs.iter().any(|run| run.outcome.is_some())).or_else(|| failed.first());
        let cause = blamed.map(|cell| cause_of(self.record, task, record.items.as_deref(), cell, failed.len() - 1));
        let again_at = self.again_at(index);
        self.emit(Event::Task { task: index, state: TaskState::Failure, cause: cause.map(Box::new), begun: None, again_at })
    }

    /// When a task that has failed is tried again by itself; none if it is not.
    pub(super) fn again_at(&self, index: usize) -> Option<Timestamp> {
        let (task, record) = self.record.plan.task(index).zip(self.record.tasks.get(index))?;
        let retry = task.retry.as_ref().filter(|_| !self.is_stopped(index))?;
        let times = match retry.times {
            Some(times) => times,
            None => u32::try_from(self.record.retry_values(task.scope, retry.values.as_ref(), 64)?.len()).unwrap_or(u32::MAX),
        };
        (record.attempt < times).then(|| later(self.now, retry.pause_behind(record.attempt.saturating_sub(1))))
    }
}

/// It was found, after somebody who ran the flow had died, that it had never been sent.
pub(super) fn is_fenced(outcome: &Outcome) -> bool {
    outcome.verdict.error().is_some_and(|error| error.is(ErrorCode::Fenced))
}

/// How long a host that has not taken something so many times is left alone.
pub(super) fn pause_behind_offers(offers: usize) -> SignedDuration {
    let times = u32::try_from(offers.saturating_sub(1)).unwrap_or(u32::MAX);
    OFFER_AGAIN.saturating_mul(2_i32.saturating_pow(times)).min(OFFER_AGAIN_LONGEST)
}

/// Whether what was not taken may be taken later, or elsewhere: all but what the host will not take at any time.
fn is_offered_again(task: &Task, outcome: &Outcome) -> bool {
    let is_final = |error: &Failure| error.is(ErrorCode::WrongAudience);
    task.hosts == HostsKind::Any || !outcome.verdict.error().is_some_and(is_final)
}

fn cause_of(record: &Record, task: &Task, items: Option<&[Value]>, cell: &Cell, others: usize) -> Cause {
    match cell.runs.iter().rev().find(|run| run.outcome.is_some()) {
        Some(run) => cause_of_run(task, items, cell, run, false, others),
        None => {
            let stopped = task.hosts == HostsKind::Each || record.state == FlowState::Reverting;
            let target = target_of(record, task).unwrap_or_default();
            let why = if stopped {
                "it was not begun, as something else had failed".to_owned()
            } else {
                format!("no host of {target} has taken it within its time limit: none that answers has {} and room for it", task.call)
            };
            let error = Failure::new(ErrorCode::Undelivered, why);
            let item = items.zip(cell.item).and_then(|(items, at)| items.get(at).cloned());
            let host = cell.host.clone();
            Cause { task: Some(task.path.clone()), undo: false, host, item, state: "undelivered".to_owned(), error, others }
        }
    }
}

pub(super) fn cause_of_run(task: &Task, items: Option<&[Value]>, cell: &Cell, run: &Run, undo: bool, others: usize) -> Cause {
    let error = run.outcome.as_ref().and_then(|outcome| outcome.verdict.error().cloned());
    Cause {
        task: Some(task.path.clone()),
        undo,
        host: Some(run.host.clone()),
        item: items.zip(cell.item).and_then(|(items, at)| items.get(at).cloned()),
        state: run.state().map(|state| state.to_string()).unwrap_or_default(),
        error: error.unwrap_or_else(|| Failure::new(ErrorCode::Lost, "its end is not known")),
        others,
    }
}
