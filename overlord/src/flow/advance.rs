//! What is to happen next in a flow, as events: which tasks begin, what is sent to whom, what has succeeded or failed, what is undone, and when all of it
//! is over. It decides, and neither talks to hosts nor writes: who carries it out logs the events first.

mod cells;
mod undo;

use common::identity::MinionName;
use common::job::{CallId, JobId};
use common::outcome::{ErrorCode, Failure};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::condition::Undecided;
use super::file::HostsKind;
use super::log::{Begun, Cause, Event, Line};
use super::plan::{Node, Task};
use super::record::Record;
use super::state::{FlowState, TaskState};
use super::value::NoValue;

/// The most items of a task.
const ITEMS_MAX: usize = 100_000;
/// The most cells of a task: its items times its hosts.
const CELLS_MAX: usize = 1_000_000;

/// What is known besides the flow.
pub(crate) trait Surroundings {
    /// The hosts of a target.
    fn hosts(&self, target: &str) -> Result<Vec<MinionName>, String>;
    /// The one of them that is to get the next cell of a task; none if none can take it now.
    fn pick(&self, task: usize, hosts: &[MinionName], record: &Record) -> Option<MinionName>;
    /// The time limit of a task that has none of its own.
    fn timeout(&self) -> std::time::Duration;
    /// So many calls are on their way at once when one of this task is sent.
    fn forks(&self, task: &Task) -> usize;
}

/// Call ids, each drawn once.
#[derive(Debug)]
pub(crate) struct CallIds {
    pub(crate) base: JobId,
    pub(crate) next: u32,
}

impl CallIds {
    fn draw(&mut self) -> CallId {
        let id = CallId::new(self.base.clone(), self.next);
        self.next = self.next.saturating_add(1);
        id
    }
}

/// One look at a flow.
pub(crate) struct Advance<'a> {
    pub(crate) record: &'a mut Record,
    pub(crate) around: &'a dyn Surroundings,
    pub(crate) ids: &'a mut CallIds,
    pub(crate) now: Timestamp,
    /// Since when it is run without a break: nobody was looking for hosts before.
    pub(crate) since: Timestamp,
    /// What is decided, in this order.
    pub(crate) lines: Vec<Line>,
    /// When to look again at the latest, though nothing has happened.
    pub(crate) look_at: Option<Timestamp>,
}

impl Advance<'_> {
    /// Decides until there is nothing more to decide.
    ///
    /// # Errors
    /// It decided what cannot be: a mistake in here.
    pub(crate) fn run(&mut self) -> Result<(), String> {
        if self.record.state == FlowState::Pending {
            self.flow(FlowState::Running, None)?;
        }
        loop {
            let before = self.lines.len();
            self.look_at = None;
            if !self.record.state.has_ended() && self.record.state != FlowState::Suspended {
                self.cancel()?;
                self.settle()?;
                self.give_up()?;
                self.retreat()?;
                self.begin()?;
                self.finish()?;
            }
            if self.lines.len() == before {
                return self.suspend();
            }
        }
    }

    fn emit(&mut self, event: Event) -> Result<(), String> {
        let line = Line::new(self.now, event);
        self.record.apply(&line)?;
        self.lines.push(line);
        Ok(())
    }

    fn flow(&mut self, state: FlowState, cause: Option<Cause>) -> Result<(), String> {
        self.emit(Event::Flow { state, cause: cause.map(Box::new) })
    }

    fn task(&mut self, task: usize, state: TaskState, cause: Option<Cause>) -> Result<(), String> {
        self.emit(Event::Task { task, state, cause: cause.map(Box::new), begun: None, again_at: None })
    }

    fn look_at(&mut self, at: Timestamp) {
        self.look_at = Some(self.look_at.map_or(at, |before| before.min(at)));
    }

    /// Once nothing is on its way any more.
    fn suspend(&mut self) -> Result<(), String> {
        let can = matches!(self.record.state, FlowState::Running | FlowState::Reverting);
        if can && self.record.is_to_suspend && self.record.in_flight == 0 {
            self.flow(FlowState::Suspended, None)?;
        }
        Ok(())
    }

    fn cancel(&mut self) -> Result<(), String> {
        let Some(by) = self.record.cancelled_by.clone().filter(|_| self.record.state == FlowState::Running) else { return Ok(()) };
        // What runs in the end tells how it ended, and has begun to.
        let has_begun = |index: &usize| self.record.tasks.get(*index).is_some_and(|task| task.state != TaskState::Pending);
        if self.record.plan.finally.iter().any(has_begun) {
            return Ok(());
        }
        let error = Failure::new(ErrorCode::Cancelled, format!("the flow was cancelled by {by}")).with_data(json!({ "by": by }));
        let cause = Cause { task: None, undo: false, host: None, item: None, state: "cancelled".to_owned(), error, others: 0 };
        self.flow(FlowState::Reverting, Some(cause))
    }

    /// Whether nothing further of a task may be begun, as something around it has failed.
    fn is_stopped(&self, index: usize) -> bool {
        let Some(task) = self.record.plan.task(index) else { return true };
        let retreats = |block: &usize| self.record.blocks.get(*block).is_some_and(|block| block.is_retreating);
        !task.is_finally && (self.record.state == FlowState::Reverting || task.blocks.iter().any(retreats))
    }

    /// Looks at every task that is at work: sends what can be sent, and decides what has ended.
    fn settle(&mut self) -> Result<(), String> {
        for index in 0..self.record.tasks.len() {
            match self.record.tasks.get(index).map(|task| task.state) {
                Some(TaskState::Running) => self.settle_running(index)?,
                Some(TaskState::Reverting) => self.settle_reverting(index)?,
                _ => {}
            }
        }
        Ok(())
    }

    /// Tries again what may be, and where nothing more helps gives up the block around it, or the flow.
    fn give_up(&mut self) -> Result<(), String> {
        for index in 0..self.record.tasks.len() {
            let Some((task, record)) = self.record.plan.task(index).zip(self.record.tasks.get(index)) else { continue };
            if record.state != TaskState::Failure || self.is_stopped(index) {
                continue;
            }
            match record.again_at {
                Some(at) if at > self.now => self.look_at(at),
                Some(_) if self.record.is_to_suspend => {}
                Some(_) => {
                    let hosts = record.cells.iter().filter_map(|cell| cell.host.clone()).collect();
                    let begun = Begun { attempt: record.attempt + 1, items: record.items.clone(), hosts };
                    self.run_task(index, begun)?;
                }
                None if task.is_finally => {}
                None => {
                    let (blocks, cause) = (task.blocks.clone(), record.cause.clone());
                    let Some(cause) = cause else { continue };
                    self.give_up_around(&blocks, cause)?;
                }
            }
        }
        Ok(())
    }

    fn give_up_around(&mut self, blocks: &[usize], cause: Cause) -> Result<(), String> {
        let with_rounds = blocks.iter().rev().copied().find(|block| self.has_rounds(*block));
        match with_rounds {
            Some(block) => self.emit(Event::Retreat { block, cause: Box::new(cause) }),
            None => self.flow(FlowState::Reverting, Some(cause)),
        }
    }

    fn has_rounds(&self, block: usize) -> bool {
        let Some((plan, record)) = self.record.plan.blocks.get(block).zip(self.record.blocks.get(block)) else { return false };
        let Some(retry) = &plan.retry else { return false };
        let times = retry.times.or_else(|| {
            let values = self.record.retry_values(plan.scope, retry.values.as_ref(), 64)?;
            u32::try_from(values.len()).ok()
        });
        !record.is_retreating && times.is_some_and(|times| record.round + 1 < times)
    }

    /// Begins every task that has what it needs.
    fn begin(&mut self) -> Result<(), String> {
        if self.record.state != FlowState::Running || self.record.is_to_suspend {
            return Ok(());
        }
        let ready = self.ready();
        for index in ready {
            self.begin_task(index)?;
        }
        Ok(())
    }

    /// The tasks that may begin, in order.
    fn ready(&mut self) -> Vec<usize> {
        let plan = &self.record.plan;
        let mut passed = vec![false; plan.graph.node_count()];
        let (mut ready, mut look_at) = (Vec::new(), None::<Timestamp>);
        for node in &plan.order {
            let is_reached = plan.needed_by(*node).all(|before| passed.get(before.index()).copied().unwrap_or(false));
            let has_passed = match plan.graph.node_weight(*node) {
                Some(Node::Task(index)) => {
                    let state = self.record.tasks.get(*index).map(|task| task.state);
                    if is_reached && state == Some(TaskState::Pending) && !self.is_stopped(*index) {
                        ready.push(*index);
                    }
                    state.is_some_and(TaskState::is_passed)
                }
                Some(Node::Start(block)) => match self.record.blocks.get(*block).and_then(|block| block.not_before) {
                    Some(at) if at > self.now => {
                        look_at = Some(look_at.map_or(at, |before| before.min(at)));
                        false
                    }
                    _ => is_reached,
                },
                Some(Node::End(_)) => is_reached,
                None => false,
            };
            if let Some(passed) = passed.get_mut(node.index()) {
                *passed = has_passed;
            }
        }
        if let Some(at) = look_at {
            self.look_at(at);
        }
        ready
    }

    fn begin_task(&mut self, index: usize) -> Result<(), String> {
        match self.prepared(index) {
            Ok(begun) => self.run_task(index, begun),
            Err(NoValue::Ignored(_)) => self.task(index, TaskState::Ignore, None),
            // What runs in the end has to do with what is there.
            Err(NoValue::Missing(_)) if self.record.plan.task(index).is_some_and(|task| task.is_finally) => {
                self.task(index, TaskState::Ignore, None)
            }
            Err(NoValue::Missing(why)) => {
                // It cannot even be said what is to be done.
                self.run_task(index, Begun { attempt: 1, items: Some(Vec::new()), hosts: Vec::new() })?;
                let path = self.record.plan.task(index).map(|task| task.path.clone());
                let error = Failure::of_kind("flow_value", why);
                let cause = Cause { task: path, undo: false, host: None, item: None, state: "failed".to_owned(), error, others: 0 };
                self.task(index, TaskState::Failure, Some(cause))
            }
        }
    }

    fn run_task(&mut self, index: usize, begun: Begun) -> Result<(), String> {
        let (task, state) = (index, TaskState::Running);
        self.emit(Event::Task { task, state, cause: None, begun: Some(begun), again_at: None })?;
        self.settle_running_unless_hopeless(index)
    }

    /// A task without a cell is one that cannot be begun, or has nothing to do: the caller, or the next look, decides.
    fn settle_running_unless_hopeless(&mut self, index: usize) -> Result<(), String> {
        if self.record.tasks.get(index).is_some_and(|task| task.cells.is_empty()) { Ok(()) } else { self.settle_running(index) }
    }

    /// What a task works on; or that it is ignored, or why it cannot begin.
    fn prepared(&self, index: usize) -> Result<Begun, NoValue> {
        let task = self.record.plan.task(index).ok_or_else(|| NoValue::Missing("there is no such task".to_owned()))?;
        for (scope, condition) in &task.when {
            match condition.holds(&|reference| self.record.value(*scope, reference, None)) {
                Ok(true) => {}
                Ok(false) => return Err(NoValue::Ignored("when does not hold".to_owned())),
                Err(Undecided::NoValue(no_value)) => return Err(no_value),
                Err(Undecided::Type(problem)) => return Err(NoValue::Missing(format!("when: {problem}"))),
            }
        }
        let find = |reference: &super::value::Reference| self.record.value(task.scope, reference, None);
        for name in &task.requires {
            find(&super::value::Reference { name: name.clone(), path: Vec::new() })?;
        }
        let own = |reference: &&super::value::Reference| !matches!(reference.name.as_str(), "item" | "host" | "result" | "flow");
        let of_retry = task.retry.as_ref().filter(|retry| retry.values.is_some()).map(|retry| retry.name.as_str());
        for reference in task.args.references().into_iter().filter(own).filter(|reference| Some(reference.name.as_str()) != of_retry) {
            find(reference)?;
        }
        let items = match task.for_each.as_ref().map(|items| items.render(&find)).transpose()? {
            None => None,
            Some(Value::Array(items)) if items.len() <= ITEMS_MAX => Some(items),
            Some(Value::Array(items)) => {
                return Err(NoValue::Missing(format!("for_each has {} items, and {ITEMS_MAX} is the most", items.len())));
            }
            Some(other) => return Err(NoValue::Missing(format!("for_each wants a list, not {other}"))),
        };
        let hosts = self.around.hosts(&target_of(self.record, task)?).map_err(NoValue::Missing)?;
        let hosts = if task.hosts == HostsKind::Each { hosts } else { Vec::new() };
        let cells = hosts.len().max(1).saturating_mul(items.as_ref().map_or(1, Vec::len));
        if cells > CELLS_MAX {
            return Err(NoValue::Missing(format!("its items times its hosts are {cells}, and {CELLS_MAX} is the most")));
        }
        Ok(Begun { attempt: 1, items, hosts })
    }

    /// Ends the flow when there is nothing left to do.
    fn finish(&mut self) -> Result<(), String> {
        let is_done = match self.record.state {
            FlowState::Running => {
                let main = self.record.plan.tasks.iter().zip(&self.record.tasks).filter(|(task, _)| !task.is_finally);
                main.map(|(_, record)| record).all(|record| record.state.is_passed())
                    && !self.record.blocks.iter().any(|block| block.is_retreating)
            }
            FlowState::Reverting => {
                let mut main = self.record.plan.tasks.iter().zip(&self.record.tasks).filter(|(task, _)| !task.is_finally);
                main.all(|(task, record)| !record.state.is_at_work() && !record.is_to_undo(task))
            }
            _ => false,
        };
        if !is_done || self.record.is_to_suspend {
            return Ok(());
        }
        for index in self.record.plan.finally.clone() {
            match self.record.tasks.get(index).map(|task| (task.state, task.again_at)) {
                Some((TaskState::Pending, _)) => return self.begin_task(index),
                Some((TaskState::Running, _)) | Some((TaskState::Failure, Some(_))) => return Ok(()),
                _ => {}
            }
        }
        let last = self.record.plan.finally.iter().filter_map(|index| self.record.tasks.get(*index));
        let failed = last.filter(|task| task.state == TaskState::Failure).find_map(|task| task.cause.clone());
        let is_well = failed.is_none() && !self.record.reverts_failed();
        let state = match (self.record.state, is_well) {
            (FlowState::Running, true) => FlowState::Success,
            (FlowState::Reverting, true) => FlowState::Reverted,
            _ => FlowState::Failure,
        };
        self.flow(state, failed)
    }
}

/// The target of a task, its references rendered.
pub(crate) fn target_of(record: &Record, task: &Task) -> Result<String, NoValue> {
    match task.target.render(&|reference| record.value(task.scope, reference, None))? {
        Value::String(target) => Ok(target),
        other => Err(NoValue::Missing(format!("the target is {other}, and should be a text"))),
    }
}
