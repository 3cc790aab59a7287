//! What the lines of a flow's log add up to: where each task is, and what it has given. Pure. An event that cannot follow what was there before is refused;
//! an end that is told twice, or of a call that nobody has sent, changes nothing.

mod values;

pub(crate) use values::Seen;

use std::collections::{BTreeMap, HashMap};

use common::identity::MinionName;
use common::job::{CallId, HostState};
use common::outcome::{Outcome, Verdict};
use jiff::Timestamp;
use serde_json::Value;

use super::log::{Begun, Cause, Event, Header, Line, Wish};
use super::plan::{Plan, Task};
use super::state::{FlowState, TaskState};

/// How many names a reference is followed through.
const FOLLOWED_MAX: usize = 64;

/// A flow as far as is known.
#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) header: Header,
    pub(crate) plan: Plan,
    pub(crate) state: FlowState,
    /// What it was before it was suspended.
    pub(crate) before: FlowState,
    pub(crate) cause: Option<Cause>,
    pub(crate) tasks: Vec<TaskRecord>,
    pub(crate) blocks: Vec<BlockRecord>,
    pub(crate) created_at: Timestamp,
    pub(crate) finished_at: Option<Timestamp>,
    /// Somebody wants it suspended, or cancelled.
    pub(crate) is_to_suspend: bool,
    pub(crate) cancelled_by: Option<String>,
    /// Every failure, also of what succeeded later.
    pub(crate) history: Vec<Past>,
    /// Which cell a call is for.
    calls: HashMap<CallId, (usize, usize, bool)>,
    /// How many calls are on their way to each host.
    pub(crate) busy: BTreeMap<MinionName, usize>,
    /// How many calls are on their way.
    pub(crate) in_flight: usize,
    ends: u64,
}

/// A failure that was tried again, or not.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Past {
    pub(crate) path: String,
    pub(crate) attempt: u32,
    pub(crate) at: Timestamp,
    pub(crate) cause: Cause,
}

/// Where a task is.
#[derive(Debug, Clone)]
pub(crate) struct TaskRecord {
    pub(crate) state: TaskState,
    pub(crate) cause: Option<Cause>,
    /// Which time this is, from 1; 0 before the first.
    pub(crate) attempt: u32,
    pub(crate) items: Option<Vec<Value>>,
    pub(crate) cells: Vec<Cell>,
    pub(crate) begun_at: Option<Timestamp>,
    pub(crate) ended_at: Option<Timestamp>,
    /// Not before then it is tried again; none if it is not.
    pub(crate) again_at: Option<Timestamp>,
    /// The how manieth it was that ended.
    pub(crate) order: u64,
}

/// One item on one host, or on one of several.
#[derive(Debug, Clone)]
pub(crate) struct Cell {
    pub(crate) item: Option<usize>,
    /// None: any.
    pub(crate) host: Option<MinionName>,
    pub(crate) runs: Vec<Run>,
    pub(crate) undo: Vec<Run>,
}

/// One call.
#[derive(Debug, Clone)]
pub(crate) struct Run {
    pub(crate) host: MinionName,
    pub(crate) call_id: CallId,
    pub(crate) attempt: u32,
    pub(crate) sent_at: Timestamp,
    pub(crate) outcome: Option<Outcome>,
    pub(crate) ended_at: Option<Timestamp>,
}

/// Where a block is.
#[derive(Debug, Clone, Default)]
pub(crate) struct BlockRecord {
    /// Which time this is, from 0.
    pub(crate) round: u32,
    pub(crate) is_retreating: bool,
    pub(crate) not_before: Option<Timestamp>,
}

impl Run {
    pub(crate) fn state(&self) -> Option<HostState> {
        self.outcome.as_ref().map(|outcome| outcome.verdict.state())
    }

    pub(crate) fn result(&self) -> Option<&Value> {
        match &self.outcome.as_ref()?.verdict {
            Verdict::Ok { result } => Some(result),
            _ => None,
        }
    }
}

impl Cell {
    pub(crate) fn result(&self) -> Option<&Value> {
        self.runs.last()?.result()
    }

    pub(crate) fn is_ok(&self) -> bool {
        self.result().is_some()
    }

    /// What is to be undone here, on each host the last of it: what was done, what may have run as its end is not known, and with `also_failed` what
    /// has begun and failed.
    pub(crate) fn to_undo(&self, also_failed: bool) -> Vec<&Run> {
        let has_begun = |run: &Run| run.outcome.as_ref().is_some_and(|outcome| outcome.started_at.is_some());
        let is_meant = |run: &Run| match run.state() {
            Some(HostState::Ok | HostState::Lost) => true,
            _ => also_failed && has_begun(run),
        };
        let mut last: BTreeMap<&MinionName, &Run> = BTreeMap::new();
        for run in self.runs.iter().filter(|run| is_meant(run)) {
            last.insert(&run.host, run);
        }
        last.into_values().collect()
    }

    /// The calls that undo it on that host, or try to.
    pub(crate) fn undone_on(&self, host: &MinionName) -> impl DoubleEndedIterator<Item = &Run> {
        self.undo.iter().filter(move |run| run.host == *host)
    }
}

impl TaskRecord {
    fn new() -> Self {
        Self {
            state: TaskState::Pending,
            cause: None,
            attempt: 0,
            items: None,
            cells: Vec::new(),
            begun_at: None,
            ended_at: None,
            again_at: None,
            order: 0,
        }
    }

    /// The hosts where what it did is to be undone, if anything is.
    pub(crate) fn is_to_undo(&self, task: &Task) -> bool {
        match self.state {
            TaskState::Success => true,
            TaskState::Failure => {
                let also_failed = task.undo.as_ref().is_some_and(|undo| undo.also_failed);
                task.undo.is_some() && self.cells.iter().any(|cell| !cell.to_undo(also_failed).is_empty())
            }
            _ => false,
        }
    }

    fn item(&self, cell: &Cell) -> Option<&Value> {
        self.items.as_ref()?.get(cell.item?)
    }
}

impl Record {
    /// The flow of a log's first line.
    pub(crate) fn new(header: Header, plan: Plan, created_at: Timestamp) -> Self {
        let tasks = plan.tasks.iter().map(|_| TaskRecord::new()).collect();
        let blocks = plan.blocks.iter().map(|_| BlockRecord::default()).collect();
        Self {
            header,
            plan,
            state: FlowState::Pending,
            before: FlowState::Running,
            cause: None,
            tasks,
            blocks,
            created_at,
            finished_at: None,
            is_to_suspend: false,
            cancelled_by: None,
            history: Vec::new(),
            calls: HashMap::new(),
            busy: BTreeMap::new(),
            in_flight: 0,
            ends: 0,
        }
    }

    /// The task that a call is for.
    pub(crate) fn task_of(&self, call_id: &CallId) -> Option<usize> {
        self.calls.get(call_id).map(|(task, ..)| *task)
    }

    /// The calls that were sent and of which no end is known: task, cell, and whether it undoes.
    pub(crate) fn open_calls(&self) -> Vec<(usize, usize, bool, Run)> {
        let open = |(call, (task, cell, undo)): (&CallId, &(usize, usize, bool))| {
            let cell_record = self.tasks.get(*task)?.cells.get(*cell)?;
            let runs = if *undo { &cell_record.undo } else { &cell_record.runs };
            let run = runs.iter().find(|run| run.call_id == *call && run.outcome.is_none())?;
            Some((*task, *cell, *undo, run.clone()))
        };
        self.calls.iter().filter_map(open).collect()
    }

    /// Takes in what has happened.
    ///
    /// # Errors
    /// It cannot have happened after what had happened before.
    pub(crate) fn apply(&mut self, line: &Line) -> Result<(), String> {
        match &line.event {
            Event::Created(_) => Err("a second first line".to_owned()),
            Event::Flow { state, cause } => self.apply_flow(*state, cause.as_deref(), line.at),
            Event::Task { task, state, cause, begun, again_at } => {
                self.apply_task(*task, *state, (cause.as_deref(), begun.as_ref(), *again_at), line.at)
            }
            Event::Sent { task, cell, undo, host, call_id } => self.apply_sent((*task, *cell, *undo), host, call_id, line.at),
            Event::Ended { call_id, outcome } => {
                self.apply_end(call_id, outcome, line.at);
                Ok(())
            }
            Event::Retreat { block, cause } => self.apply_retreat(*block, cause, line.at),
            Event::Again { block, round, not_before } => self.apply_again(*block, *round, *not_before),
            Event::Wish { wish, by } => {
                match wish {
                    Wish::Suspend => self.is_to_suspend = !self.state.has_ended(),
                    // Who wants it undone wants it undone now.
                    Wish::Cancel => {
                        self.is_to_suspend = false;
                        self.cancelled_by = self.cancelled_by.take().or_else(|| Some(by.clone()));
                    }
                }
                Ok(())
            }
        }
    }

    fn apply_flow(&mut self, state: FlowState, cause: Option<&Cause>, at: Timestamp) -> Result<(), String> {
        if !self.state.may_become(state) {
            return Err(format!("the flow was {} and became {state}", self.state));
        }
        if state == FlowState::Suspended {
            self.before = self.state;
        }
        if self.state == FlowState::Suspended || state == FlowState::Suspended {
            self.is_to_suspend = false;
        }
        self.state = state;
        // The first cause is the one that counts.
        self.cause = self.cause.take().or_else(|| cause.cloned());
        self.finished_at = state.has_ended().then_some(at);
        Ok(())
    }

    fn apply_task(
        &mut self,
        index: usize,
        state: TaskState,
        (cause, begun, again_at): (Option<&Cause>, Option<&Begun>, Option<Timestamp>),
        at: Timestamp,
    ) -> Result<(), String> {
        let (record, task) = self.tasks.get_mut(index).zip(self.plan.task(index)).ok_or("of a task that the flow has not")?;
        if !record.state.may_become(state) {
            return Err(format!("the task {} was {} and became {state}", task.path, record.state));
        }
        record.state = state;
        record.again_at = again_at;
        match state {
            TaskState::Pending => *record = TaskRecord::new(),
            TaskState::Running => {
                let begun = begun.ok_or_else(|| format!("the task {} runs, and not on what", task.path))?;
                if begun.attempt <= 1 {
                    record.cells = cells(begun);
                    record.items.clone_from(&begun.items);
                }
                record.attempt = begun.attempt;
                record.begun_at = Some(at);
                record.ended_at = None;
            }
            TaskState::Reverting => {}
            TaskState::Success | TaskState::Failure | TaskState::Ignore | TaskState::Reverted | TaskState::RevertFailure => {
                record.ended_at = Some(at);
            }
        }
        if let TaskState::Success | TaskState::Failure = state {
            self.ends += 1;
            record.order = self.ends;
        }
        if state == TaskState::Success {
            record.cause = None;
        }
        if let Some(cause) = cause {
            record.cause = Some(cause.clone());
            self.history.push(Past { path: task.path.clone(), attempt: record.attempt, at, cause: cause.clone() });
        }
        Ok(())
    }

    fn apply_sent(
        &mut self,
        (task, cell, undo): (usize, usize, bool),
        host: &MinionName,
        call_id: &CallId,
        at: Timestamp,
    ) -> Result<(), String> {
        let record = self.tasks.get_mut(task).filter(|record| record.state.is_at_work()).ok_or("a call of a task that is not at work")?;
        if self.calls.contains_key(call_id) {
            return Err(format!("the call {call_id} was sent twice"));
        }
        let attempt = record.attempt;
        let cell_record = record.cells.get_mut(cell).ok_or("a call of a cell that the task has not")?;
        let runs = if undo { &mut cell_record.undo } else { &mut cell_record.runs };
        // What is undone on several hosts is undone on all of them at once.
        if runs.iter().any(|run| run.outcome.is_none() && (!undo || run.host == *host)) {
            return Err("a call while another is on its way".to_owned());
        }
        runs.push(Run { host: host.clone(), call_id: call_id.clone(), attempt, sent_at: at, outcome: None, ended_at: None });
        self.calls.insert(call_id.clone(), (task, cell, undo));
        *self.busy.entry(host.clone()).or_default() += 1;
        self.in_flight += 1;
        Ok(())
    }

    /// An end that was told before, or is of no call that was sent, changes nothing.
    fn apply_end(&mut self, call_id: &CallId, outcome: &Outcome, at: Timestamp) {
        let Some((task, cell, undo)) = self.calls.get(call_id) else { return };
        let Some(cell) = self.tasks.get_mut(*task).and_then(|task| task.cells.get_mut(*cell)) else { return };
        let runs = if *undo { &mut cell.undo } else { &mut cell.runs };
        let Some(run) = runs.iter_mut().find(|run| run.call_id == *call_id && run.outcome.is_none()) else { return };
        run.outcome = Some(outcome.clone());
        run.ended_at = Some(at);
        if let Some(count) = self.busy.get_mut(&run.host) {
            *count = count.saturating_sub(1);
        }
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    fn apply_retreat(&mut self, block: usize, cause: &Cause, at: Timestamp) -> Result<(), String> {
        let record = self.blocks.get_mut(block).filter(|block| !block.is_retreating).ok_or("a block that gives up twice")?;
        record.is_retreating = true;
        let path = self.plan.blocks.get(block).map(|block| block.path.clone()).unwrap_or_default();
        self.history.push(Past { path, attempt: record.round + 1, at, cause: cause.clone() });
        Ok(())
    }

    fn apply_again(&mut self, block: usize, round: u32, not_before: Timestamp) -> Result<(), String> {
        let is_retreating = self.blocks.get(block).is_some_and(|block| block.is_retreating);
        if !is_retreating {
            return Err("a block begins again that had not given up".to_owned());
        }
        for (index, record) in self.blocks.iter_mut().enumerate() {
            if self.plan.blocks.get(index).is_some_and(|within| within.outer.contains(&block)) {
                *record = BlockRecord::default();
            }
            if index == block {
                *record = BlockRecord { round, is_retreating: false, not_before: Some(not_before) };
            }
        }
        Ok(())
    }
}

fn cells(begun: &Begun) -> Vec<Cell> {
    let items: Vec<Option<usize>> = match &begun.items {
        Some(items) => (0..items.len()).map(Some).collect(),
        None => vec![None],
    };
    let hosts: Vec<Option<&MinionName>> = if begun.hosts.is_empty() { vec![None] } else { begun.hosts.iter().map(Some).collect() };
    let of_item = |item: Option<usize>| {
        hosts.iter().map(move |host| Cell { item, host: host.cloned(), runs: Vec::new(), undo: Vec::new() }).collect::<Vec<_>>()
    };
    items.into_iter().flat_map(of_item).collect()
}
