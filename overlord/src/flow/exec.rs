//! Running a flow: what `advance` decides is written into the log, and then done; what hosts say is written into the log, and then decided upon.
//!
//! Each step is a job: it is known by its call id, which stands in the log, synced, before it is sent. So whoever goes on after a kill asks the host what
//! became of it, and never sends it again unless the host says that it never began, and never will.

mod calls;
mod patience;
mod step;

use std::cell::{Cell as Flag, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::pin::Pin;
use std::time::{Duration, Instant};

use common::identity::MinionName;
use common::job::{CallId, HostState};
use common::method::MethodName;
use common::outcome::{ErrorCode, Outcome};
use futures_util::future::FutureExt as _;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use jiff::Timestamp;

use super::FlowError;
use super::advance::{Advance, CallIds, Surroundings};
use super::file::RunKind;
use super::log::{Event, FlowLog, Line};
use super::plan::Task;
use super::record::{Record, Seen};
use super::state::FlowState;
use super::value::NoValue;
use crate::buckets::forks_max;
use crate::envelope::later;
use crate::fleet::{Fleet, Link, Stop, gossip};
use crate::hosts::Roster;
use step::{Errand, Pace, Steps, Work};

/// How often it is looked whether somebody wants the flow suspended or cancelled.
const HEAR_EVERY: Duration = Duration::from_millis(50);
/// How long a host that has not taken a task is left alone first; each time twice as long.
const AVOID_FOR: Duration = Duration::from_millis(500);
/// How long at most: less than a task is likely to have.
const AVOID_LONGEST: Duration = Duration::from_secs(2);

/// What is told of a flow while it runs.
pub(crate) type Tell<'t> = &'t mut dyn FnMut(&Record, &[Line]);

/// A flow that is run by us.
pub(crate) struct Executor {
    fleet: Fleet,
    record: Record,
    log: FlowLog,
    ids: CallIds,
    /// When it was taken up, by the wall and by the clock that nobody sets: all waits go by the latter.
    since: (Timestamp, Instant),
    /// Lines that are not written yet.
    unwritten: Vec<Line>,
}

/// What there is besides the flow: hosts, and how they were of late.
struct Field {
    fleet: Fleet,
    roster: Roster,
    targets: RefCell<HashMap<String, Result<Vec<MinionName>, String>>>,
    avoided: RefCell<Avoided>,
    turn: Flag<usize>,
    pace: Pace,
    forks: usize,
}

/// Which hosts are given nothing, or not a certain task: until when, and how often that was found.
type Avoided = BTreeMap<(MinionName, Option<usize>), (Instant, u32)>;

/// What is to be sent now.
struct Sending {
    task: usize,
    cell: usize,
    undo: bool,
    host: MinionName,
    call_id: CallId,
}

/// What has come back.
enum Arrival {
    Ended(Vec<(CallId, MinionName, Outcome)>),
    Told,
}

type Flying<'f> = FuturesUnordered<Pin<Box<dyn Future<Output = Arrival> + 'f>>>;

impl Executor {
    pub(crate) fn new(fleet: &Fleet, record: Record, log: FlowLog, ids: CallIds) -> Self {
        Self { fleet: fleet.clone(), record, log, ids, since: (Timestamp::now(), Instant::now()), unwritten: Vec::new() }
    }

    fn now(&self) -> Timestamp {
        let (wall, instant) = self.since;
        later(wall, instant.elapsed())
    }

    /// Runs it until it has ended or is suspended, or `stop` is stopped: then it is left as it is, for somebody to resume.
    ///
    /// # Errors
    /// There is nothing to call with, or the log cannot be written.
    pub(crate) fn run(mut self, stop: &Stop, tell: Tell<'_>) -> Result<Record, FlowError> {
        let fleet = self.fleet.clone();
        let link = fleet.link()?;
        let forks = usize::from(fleet.config().forks.min(forks_max()));
        let field = Field {
            fleet: fleet.clone(),
            roster: fleet.roster()?,
            targets: RefCell::default(),
            avoided: RefCell::default(),
            turn: Flag::new(0),
            pace: Pace::default(),
            forks,
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(FlowError::Runtime)?;
        let done = runtime.block_on(self.work(link, &field, stop, tell));
        runtime.shutdown_background();
        done?;
        if !stop.is_stopped() {
            gossip::carry_on(&fleet, link, stop, None);
        }
        Ok(self.record)
    }

    async fn work(&mut self, link: &Link, field: &Field, stop: &Stop, tell: Tell<'_>) -> Result<(), FlowError> {
        let steps = Steps::new(link, &field.pace);
        let mut flying: Flying<'_> = FuturesUnordered::new();
        self.wake_up()?;
        for (task, _, undo, run) in self.record.open_calls() {
            let is_job = undo || self.record.plan.task(task).is_some_and(|task| task.run == RunKind::Job);
            match self.errand(field, task, &run.host, &run.call_id, None) {
                // It may have been sent, or not: the host knows.
                Some(errand) if is_job => flying.push(Box::pin(carry(&steps, errand, Work::Adopt))),
                Some(_) => self.hear(field, run.call_id, &run.host, step::orphaned())?,
                None => self.hear(field, run.call_id, &run.host, step::gone(&run.host, HostState::Lost))?,
            }
        }
        let mut was_cancelled = false;
        loop {
            self.hear_wishes()?;
            let sent = self.advance(field, tell)?;
            self.send(sent, &steps, field, &flying)?;
            if self.record.state.has_ended() || self.record.state == FlowState::Suspended || stop.is_stopped() {
                return Ok(());
            }
            if self.record.cancelled_by.is_some() && !std::mem::replace(&mut was_cancelled, true) {
                for errand in self.open_jobs(field) {
                    flying.push(Box::pin(cancel(&steps, errand)));
                }
            }
            self.wait(&mut flying, field, stop).await?;
        }
    }

    /// Sends what was decided: jobs one by one, and calls of one method to one host together, as many as it is quick with.
    fn send<'f>(&mut self, sent: Vec<Sending>, steps: &'f Steps<'f>, field: &Field, flying: &Flying<'f>) -> Result<(), FlowError> {
        let mut quick: BTreeMap<(MinionName, MethodName, Duration), Vec<Errand>> = BTreeMap::new();
        for Sending { task, cell, undo, host, call_id } in sent {
            let is_call = !undo && self.record.plan.task(task).is_some_and(|task| task.run == RunKind::Call);
            match self.errand(field, task, &host, &call_id, Some((cell, undo))) {
                Some(errand) if is_call => {
                    quick.entry((host, errand.method.clone(), errand.limit)).or_default().push(errand);
                }
                Some(errand) => flying.push(Box::pin(carry(steps, errand, Work::Send))),
                None => self.hear(field, call_id, &host, step::gone(&host, HostState::Undelivered))?,
            }
        }
        for ((_, method, _), errands) in quick {
            for together in calls::packed(errands, calls::together(&field.pace, &method)) {
                flying.push(Box::pin(call(steps, together)));
            }
        }
        Ok(())
    }

    /// Takes up a flow that was suspended, or was to be.
    fn wake_up(&mut self) -> Result<(), FlowError> {
        // What was wished before is over: somebody wants it to go on.
        self.record.is_to_suspend = false;
        if self.record.state == FlowState::Suspended {
            let state = self.record.before;
            self.note(Event::Flow { state, cause: None })?;
        }
        Ok(())
    }

    fn note(&mut self, event: Event) -> Result<(), FlowError> {
        let line = Line::new(self.now(), event);
        self.record.apply(&line).map_err(FlowError::Astray)?;
        self.unwritten.push(line);
        Ok(())
    }

    fn hear(&mut self, field: &Field, call_id: CallId, host: &MinionName, outcome: Outcome) -> Result<(), FlowError> {
        field.judge(host, self.record.task_of(&call_id), &outcome);
        self.note(Event::Ended { call_id, outcome: Box::new(outcome) })
    }

    fn hear_wishes(&mut self) -> Result<(), FlowError> {
        for wish in self.log.wishes()? {
            self.record.apply(&wish).map_err(FlowError::Astray)?;
        }
        Ok(())
    }

    /// Decides what is next, and writes it down; gives what is to be sent now.
    fn advance(&mut self, field: &Field, tell: Tell<'_>) -> Result<Vec<Sending>, FlowError> {
        let now = self.now();
        let mut advance = Advance {
            record: &mut self.record,
            around: field,
            ids: &mut self.ids,
            now,
            since: self.since.0,
            lines: Vec::new(),
            look_at: None,
        };
        let decided = advance.run();
        field.turn.set(field.turn.get().wrapping_add(1));
        let lines = std::mem::take(&mut advance.lines);
        decided.map_err(FlowError::Astray)?;
        let first = self.unwritten.len();
        self.unwritten.extend(lines);
        self.log.append(&self.unwritten)?;
        let is_sending = self.unwritten.iter().any(|line| matches!(line.event, Event::Sent { .. } | Event::Flow { .. }));
        if is_sending {
            self.log.sync()?;
        }
        if !self.unwritten.is_empty() {
            tell(&self.record, &self.unwritten);
        }
        let lines = std::mem::take(&mut self.unwritten);
        let sent = lines.into_iter().skip(first).filter_map(|line| match line.event {
            Event::Sent { task, cell, undo, host, call_id } => Some(Sending { task, cell, undo, host, call_id }),
            _ => None,
        });
        Ok(sent.collect())
    }

    /// Waits until something comes back, or it is time to look.
    async fn wait(&mut self, flying: &mut Flying<'_>, field: &Field, stop: &Stop) -> Result<(), FlowError> {
        let first = tokio::select! {
            biased;
            arrival = flying.next(), if !flying.is_empty() => arrival,
            () = tokio::time::sleep(HEAR_EVERY) => None,
            () = stop.stopped() => None,
        };
        let mut arrival = first;
        while let Some(arrived) = arrival {
            if let Arrival::Ended(ends) = arrived {
                for (call_id, host, outcome) in ends {
                    self.hear(field, call_id, &host, outcome)?;
                }
            }
            // What else has come is decided upon together.
            arrival = if flying.is_empty() { None } else { flying.next().now_or_never().flatten() };
        }
        Ok(())
    }

    /// What it takes to carry a call to its host; none if the host is not in the roster any more.
    fn errand(&self, field: &Field, task: usize, host: &MinionName, call_id: &CallId, cell: Option<(usize, bool)>) -> Option<Errand> {
        let host = field.roster.find(host)?.clone();
        let task_plan = self.record.plan.task(task)?;
        let limit = task_plan.timeout.unwrap_or_else(|| field.timeout());
        let mut errand = Errand::new(host, call_id.clone(), &task_plan.call, limit, task_plan.lost_after);
        let Some((cell, undo)) = cell else { return Some(errand) };
        let record = self.record.tasks.get(task)?;
        let cell = record.cells.get(cell)?;
        let (args, run) = match task_plan.undo.as_ref().filter(|_| undo) {
            Some(undo) => {
                errand.method.clone_from(&undo.call);
                errand.limit = undo.timeout.unwrap_or(limit);
                let undone = cell.to_undo(undo.also_failed).into_iter().find(|run| run.host == errand.host.name)?;
                let may_go_on = undone.state() == Some(HostState::Lost) && task_plan.run == RunKind::Job;
                errand.behind = may_go_on.then(|| undone.call_id.clone());
                (&undo.args, undone)
            }
            None => (&task_plan.args, cell.runs.last()?),
        };
        let seen = Seen { task: record, cell, run };
        let args = args.render(&|reference| self.record.value(task_plan.scope, reference, Some(seen)));
        errand.args = args.map_err(|(NoValue::Ignored(why) | NoValue::Missing(why))| why);
        Some(errand)
    }

    /// The jobs that are stopped when the flow is cancelled: neither what undoes nor what runs in the end.
    fn open_jobs(&self, field: &Field) -> Vec<Errand> {
        let open = self.record.open_calls().into_iter().filter(|(_, _, undo, _)| !undo);
        let is_meant = |task: &Task| task.run == RunKind::Job && !task.is_finally;
        open.filter(|(task, ..)| self.record.plan.task(*task).is_some_and(is_meant))
            .filter_map(|(task, _, _, run)| self.errand(field, task, &run.host, &run.call_id, None))
            .collect()
    }
}

async fn carry(steps: &Steps<'_>, errand: Errand, work: Work) -> Arrival {
    let (call_id, host) = (errand.call_id.clone(), errand.host.name.clone());
    Arrival::Ended(vec![(call_id, host, steps.carry(errand, work).await)])
}

async fn call(steps: &Steps<'_>, errands: Vec<Errand>) -> Arrival {
    let names: Vec<(CallId, MinionName)> = errands.iter().map(|errand| (errand.call_id.clone(), errand.host.name.clone())).collect();
    let outcomes = steps.call(errands).await;
    Arrival::Ended(names.into_iter().zip(outcomes).map(|((call_id, host), outcome)| (call_id, host, outcome)).collect())
}

async fn cancel(steps: &Steps<'_>, errand: Errand) -> Arrival {
    steps.cancel(&errand).await;
    Arrival::Told
}

impl Field {
    /// Remembers who has not taken what was offered: one that has not the method may be offered anything else.
    fn judge(&self, host: &MinionName, task: Option<usize>, outcome: &Outcome) {
        let mut avoided = self.avoided.borrow_mut();
        let is = |code| outcome.verdict.error().is_some_and(|error| error.is(code));
        let key = (host.clone(), task.filter(|_| is(ErrorCode::UnknownMethod)));
        match outcome.verdict.state() {
            // What was not begun because others took too long says nothing of the host.
            HostState::Undelivered if is(ErrorCode::Fenced) => {}
            HostState::Undelivered | HostState::Lost => {
                let times = avoided.get(&key).map_or(0, |(_, times)| *times);
                let pause = AVOID_FOR.saturating_mul(2_u32.saturating_pow(times)).min(AVOID_LONGEST);
                avoided.insert(key, (Instant::now() + pause, times.saturating_add(1)));
            }
            _ => avoided.retain(|(avoided, _), _| avoided != host),
        }
    }
}

impl Surroundings for Field {
    fn hosts(&self, target: &str) -> Result<Vec<MinionName>, String> {
        let found = || self.fleet.target(target).map(|target| target.hosts().cloned().collect()).map_err(|error| crate::chain(&error));
        self.targets.borrow_mut().entry(target.to_owned()).or_insert_with(found).clone()
    }

    fn pick(&self, task: usize, hosts: &[MinionName], record: &Record) -> Option<MinionName> {
        let (avoided, now) = (self.avoided.borrow(), Instant::now());
        let is_free = |host: &&MinionName| {
            let keys = [((*host).clone(), None), ((*host).clone(), Some(task))];
            keys.iter().all(|key| avoided.get(key).is_none_or(|(until, _)| *until <= now))
        };
        let busy = |host: &MinionName| record.busy.get(host).copied().unwrap_or(0);
        // Of those with the least to do the next in turn, so that no host is always the first.
        let turn = self.turn.get();
        let count = hosts.len().max(1);
        let place = |at: usize| (at + count - turn % count) % count;
        let free = hosts.iter().enumerate().filter(|(_, host)| is_free(host));
        free.min_by_key(|(at, host)| (busy(host), place(*at))).map(|(_, host)| host.clone())
    }

    fn timeout(&self) -> Duration {
        self.fleet.config().timeout
    }

    fn forks(&self, task: &Task) -> usize {
        let together = match task.run {
            RunKind::Job => 1,
            RunKind::Call => calls::together(&self.pace, &task.call),
        };
        self.forks.saturating_mul(together)
    }
}
