//! Undoing: the task that ended last first, in a block that begins anew or in the whole flow.

use common::job::HostState;
use jiff::Timestamp;

use super::Advance;
use super::cells::{FENCED_MAX, Fate, OFFER_AGAIN, cause_of_run, is_fenced, pause_behind_offers};
use crate::envelope::later;
use crate::flow::log::Event;
use crate::flow::plan::{Task, Undo};
use crate::flow::record::Run;
use crate::flow::state::{FlowState, TaskState};

impl Advance<'_> {
    /// Goes on with undoing what is to be undone.
    pub(super) fn retreat(&mut self) -> Result<(), String> {
        if self.record.state == FlowState::Reverting {
            return self.undo_next(&|task: &Task| !task.is_finally).map(drop);
        }
        for block in 0..self.record.blocks.len() {
            let is = |block: usize| self.record.blocks.get(block).is_some_and(|block| block.is_retreating);
            let outer = self.record.plan.blocks.get(block).map(|block| block.outer.clone()).unwrap_or_default();
            if !is(block) || outer.into_iter().any(is) {
                continue;
            }
            if self.undo_next(&|task: &Task| task.blocks.contains(&block))? {
                self.begin_again(block)?;
            }
        }
        Ok(())
    }

    /// Begins to undo the task that ended last, once nothing among those that are meant is at work; `true` if nothing is left to undo.
    fn undo_next(&mut self, is_meant: &dyn Fn(&Task) -> bool) -> Result<bool, String> {
        let mut last: Option<(u64, usize)> = None;
        for (index, (task, record)) in self.record.plan.tasks.iter().zip(&self.record.tasks).enumerate() {
            if !is_meant(task) {
                continue;
            }
            if record.state.is_at_work() {
                return Ok(false);
            }
            if record.is_to_undo(task) {
                last = last.max(Some((record.order, index)));
            }
        }
        match last {
            None => Ok(true),
            Some(_) if self.record.is_to_suspend => Ok(false),
            Some((_, index)) => {
                self.task(index, TaskState::Reverting, None)?;
                self.settle_reverting(index)?;
                Ok(false)
            }
        }
    }

    /// Looks at a task that is being undone: sends what can be sent, and decides whether all of it is undone.
    pub(super) fn settle_reverting(&mut self, index: usize) -> Result<(), String> {
        let Some((task, record)) = self.record.plan.task(index).zip(self.record.tasks.get(index)) else { return Ok(()) };
        let at_once = self.around.forks(task);
        let Some(undo) = &task.undo else { return self.task(index, TaskState::Reverted, None) };
        let (mut flying, mut ready, mut waiting, mut failed) = (0, Vec::new(), None::<Timestamp>, None);
        for (at, cell) in record.cells.iter().enumerate() {
            for done in cell.to_undo(undo.also_failed) {
                match self.fate_of_undo(task, undo, cell.undone_on(&done.host)) {
                    Fate::Done => {}
                    Fate::InFlight => flying += 1,
                    Fate::Ready => ready.push((at, done.host.clone())),
                    Fate::Later(again) => waiting = Some(waiting.map_or(again, |before| before.min(again))),
                    Fate::Failed => failed = failed.or_else(|| Some((at, done.host.clone()))),
                }
            }
        }
        if let Some(again) = waiting {
            self.look_at(again);
        }
        for (cell, host) in ready.iter().cloned() {
            if self.record.is_to_suspend || self.record.in_flight >= at_once {
                return Ok(());
            }
            let call_id = self.ids.draw();
            self.emit(Event::Sent { task: index, cell, undo: true, host, call_id })?;
            flying += 1;
        }
        if flying > 0 || waiting.is_some() {
            return Ok(());
        }
        let Some((cell, host)) = failed else { return self.task(index, TaskState::Reverted, None) };
        let Some((task, record)) = self.record.plan.task(index).zip(self.record.tasks.get(index)) else { return Ok(()) };
        let run = record.cells.get(cell).and_then(|cell| Some((cell, cell.undone_on(&host).next_back()?)));
        let cause = run.map(|(cell, run)| cause_of_run(task, record.items.as_deref(), cell, run, true, 0));
        self.task(index, TaskState::RevertFailure, cause)
    }

    /// What is to be done where these calls were to undo something. One that a host has not taken is offered again for as long as one may run; others count.
    fn fate_of_undo<'r>(&self, task: &Task, undo: &Undo, mut tries: impl DoubleEndedIterator<Item = &'r Run>) -> Fate {
        let Some(last) = tries.next_back() else { return Fate::Ready };
        let Some((outcome, ended_at)) = last.outcome.as_ref().zip(last.ended_at) else { return Fate::InFlight };
        if last.state() == Some(HostState::Ok) {
            return Fate::Done;
        }
        let (mut taken, mut offered, mut first) = (0_u32, 0_usize, last.sent_at);
        for run in tries.chain(std::iter::once(last)) {
            if run.state() == Some(HostState::Undelivered) {
                offered += 1
            } else {
                taken += 1
            }
            first = first.min(run.sent_at);
        }
        if last.state() != Some(HostState::Undelivered) {
            return if taken < undo.times { self.not_before(ended_at + OFFER_AGAIN) } else { Fate::Failed };
        }
        if is_fenced(outcome) && offered <= FENCED_MAX {
            return Fate::Ready;
        }
        let timeout = undo.timeout.or(task.timeout).unwrap_or_else(|| self.around.timeout());
        match self.now >= later(first.max(self.since), timeout) {
            true => Fate::Failed,
            false => self.not_before(ended_at + pause_behind_offers(offered)),
        }
    }

    /// What was done in a block is undone: it begins anew, or what is around it gives up, too.
    fn begin_again(&mut self, block: usize) -> Result<(), String> {
        let within: Vec<usize> = self.tasks_in(block);
        let stuck =
            within.iter().copied().find(|index| self.record.tasks.get(*index).is_some_and(|task| task.state == TaskState::RevertFailure));
        if let Some(stuck) = stuck {
            let path = self.record.plan.blocks.get(block).map(|block| block.path.clone());
            let first = self.record.history.iter().rev().find(|past| Some(&past.path) == path.as_ref()).map(|past| past.cause.clone());
            let cause = first.or_else(|| self.record.tasks.get(stuck).and_then(|task| task.cause.clone()));
            return self.flow(FlowState::Reverting, cause);
        }
        let round = self.record.blocks.get(block).map_or(0, |block| block.round);
        let retry = self.record.plan.blocks.get(block).and_then(|block| block.retry.as_ref());
        let not_before = retry.map_or(self.now, |retry| later(self.now, retry.pause_behind(round)));
        for index in within {
            if self.record.tasks.get(index).is_some_and(|task| task.state != TaskState::Pending) {
                self.task(index, TaskState::Pending, None)?;
            }
        }
        self.emit(Event::Again { block, round: round + 1, not_before })
    }

    fn tasks_in(&self, block: usize) -> Vec<usize> {
        let tasks = self.record.plan.tasks.iter().enumerate();
        tasks.filter(|(_, task)| task.blocks.contains(&block)).map(|(index, _)| index).collect()
    }
}
