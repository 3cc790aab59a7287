//! Flows: several calls with dependencies, retries and undo, that survive the overlord. `file` is what a person writes, `plan` the graph that it means, `check`
//! what is refused before anything runs; `log` is what has happened, `record` what that adds up to, `advance` decides what is next, and `exec` does it.
//!
//! Each step is a job on each host, through the same door as every job. Nothing in here prints.

pub(crate) mod advance;
pub(crate) mod check;
pub(crate) mod condition;
pub(crate) mod exec;
pub(crate) mod file;
pub(crate) mod log;
pub(crate) mod plan;
pub(crate) mod record;
pub(crate) mod state;
pub(crate) mod value;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::time::Duration;

use common::job::JobId;
use common::job::retention::KEPT_AT_LEAST;
use common::method::{Catalogue, MethodName, MethodSpec};
use common::outcome::{ErrorCode, Verdict};
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::config::ConfigError;
use crate::envelope::later;
use crate::fleet::{CallError, Fleet, LinkError, Stop};
use crate::hosts::RosterError;
use advance::CallIds;
use exec::{Executor, Tell};
use file::Texts;
use log::{Event, FlowLog, Header, Line, LogError, Wish};
use plan::{At, Plan};
use record::Record;
use state::FlowState;

/// How often an id is drawn before it is given up.
const IDS_DRAWN_MAX: usize = 16;
/// So many flows are given up at most when a new one begins.
const TIDIED_AT_ONCE: usize = 20;
/// So many are looked at for that: those that nobody has ended stay.
const LOOKED_AT_ONCE: usize = 200;
/// How long hosts may take to say whether they have a method, before a flow begins.
const DESCRIBE_WITHIN: Duration = Duration::from_secs(5);

/// Why a flow is not run, or cannot be known.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FlowError {
    #[error("{}", listed(.0))]
    Problems(Vec<ConfigError>),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error(transparent)]
    Roster(#[from] RosterError),
    #[error(transparent)]
    Call(#[from] CallError),
    #[error("starting the runtime that talks to hosts")]
    Runtime(#[source] io::Error),
    #[error("the flow's log says what cannot be: {0}; nothing further is done")]
    Astray(String),
    #[error("the flow {flow} has ended: it is {state}")]
    Ended { flow: JobId, state: FlowState },
    #[error(
        "the flow {flow} has not ended: it is {state}; `overlord flow resume {flow}` goes on with it, `overlord flow cancel {flow}` ends it"
    )]
    NotEnded { flow: JobId, state: FlowState },
    #[error("no free flow id was found in {IDS_DRAWN_MAX} tries; try again")]
    Ids,
    #[error("the flow {flow} was started by {caller}, and this overlord's certificate is that of {own}")]
    OtherCaller { flow: JobId, caller: String, own: String },
}

fn listed(problems: &[ConfigError]) -> String {
    problems.iter().map(|problem| crate::chain(problem)).collect::<Vec<_>>().join("\n")
}

/// A flow as far as is known, and whether somebody works on it.
pub(crate) struct Known {
    pub(crate) record: Record,
    pub(crate) is_at_work: bool,
    /// How long its log is.
    pub(crate) bytes: u64,
}

/// One of all flows, or why it cannot be known.
pub(crate) type Listed = (JobId, Result<Known, FlowError>);

/// A flow that is written down and ready to be run by us.
pub(crate) struct Ready {
    pub(crate) id: JobId,
    executor: Executor,
}

impl Ready {
    /// Runs it: see [`Executor::run`].
    pub(crate) fn run(self, stop: &Stop, tell: Tell<'_>) -> Result<Record, FlowError> {
        self.executor.run(stop, tell)
    }
}

/// The flow of a file, with nothing wrong in it that can be known before it runs.
///
/// # Errors
/// Whatever is wrong, each with its line.
pub(crate) fn checked(fleet: &Fleet, path: &Path, vars: &Map<String, Value>) -> Result<(Texts, Plan), FlowError> {
    let texts = Texts::load(path).map_err(|error| FlowError::Problems(vec![error]))?;
    let plan = Plan::make(&texts, vars).map_err(FlowError::Problems)?;
    let mut problems = Vec::new();
    let learnt = learn(fleet, &plan, &mut problems)?;
    let builtin = Catalogue::builtin();
    problems.extend(check::problems(&plan, &|name| builtin.find(name).or_else(|| learnt.get(name)).cloned()));
    if problems.is_empty() { Ok((texts, plan)) } else { Err(FlowError::Problems(problems)) }
}

/// The methods that this version does not know itself, as the hosts that are to run them describe them; and what is wrong with targets.
fn learn(fleet: &Fleet, plan: &Plan, problems: &mut Vec<ConfigError>) -> Result<BTreeMap<MethodName, MethodSpec>, FlowError> {
    let builtin = Catalogue::builtin();
    let mut learnt = BTreeMap::new();
    let mut asked: BTreeSet<(String, &MethodName)> = BTreeSet::new();
    let mut wrong_targets: BTreeSet<String> = BTreeSet::new();
    for task in &plan.tasks {
        let Some(Value::String(target)) = plan.known(task.scope, &task.target) else { continue };
        let calls = std::iter::once(&task.call).chain(task.undo.as_ref().map(|undo| &undo.call));
        for call in calls {
            if !asked.insert((target.clone(), call)) || wrong_targets.contains(target.as_str()) {
                continue;
            }
            let found = fleet.target(&target);
            let found = match found {
                Ok(found) => found,
                Err(error) => {
                    wrong_targets.insert(target.clone());
                    problems.push(content(&task.at, format!("the task {}: {}", task.path, crate::chain(&error))));
                    continue;
                }
            };
            if builtin.find(call).is_some() {
                continue;
            }
            let answers = found.with_timeout(DESCRIBE_WITHIN).call("system.describe", json!({ "method": call }))?;
            let spec = answers.values().find_map(|outcome| match &outcome.verdict {
                Verdict::Ok { result } => serde_json::from_value::<MethodSpec>(result.clone()).ok(),
                _ => None,
            });
            let all_say_no =
                answers.values().all(|outcome| outcome.verdict.error().is_some_and(|error| error.is(ErrorCode::UnknownMethod)));
            match spec {
                Some(spec) => drop(learnt.insert(call.clone(), spec)),
                None if all_say_no => problems.push(content(&task.at, format!("the task {}: no host of {target} has {call}", task.path))),
                None => fleet.warn(&format!("whether a host of {target} has {call} could not be learnt before the flow begins")),
            }
        }
    }
    Ok(learnt)
}

fn content(at: &At, problem: String) -> ConfigError {
    ConfigError::Content { path: at.path.clone(), line: at.line, problem }
}

/// Writes a flow down, durably, ready to be run.
///
/// # Errors
/// Something is wrong in the file, or it cannot be written down.
pub(crate) fn begin(fleet: &Fleet, path: &Path, vars: Map<String, Value>) -> Result<Ready, FlowError> {
    let (texts, plan) = checked(fleet, path, &vars)?;
    let caller = fleet.link()?.caller.clone();
    if let Err(error) = tidy(fleet) {
        fleet.warn(&crate::chain(&error));
    }
    for _ in 0..IDS_DRAWN_MAX {
        let id = service::fresh_id();
        let header = Header {
            flow_id: id.clone(),
            caller: caller.clone(),
            name: plan.name.clone(),
            texts: texts.clone(),
            vars: vars.clone(),
            stamp: log::stamp(),
        };
        if let Some(log) = FlowLog::create(fleet.home(), header.clone())? {
            let record = Record::new(header, plan, Timestamp::now());
            let ids = CallIds { base: id.clone(), next: 1 };
            return Ok(Ready { id, executor: Executor::new(fleet, record, log, ids) });
        }
    }
    Err(FlowError::Ids)
}

/// Gives up some of the flows that ended so long ago, or are so many, that `retention` of overlord.toml lets them go: none in the 60 minutes after its end.
fn tidy(fleet: &Fleet) -> Result<(), FlowError> {
    let limits = &fleet.config().retention;
    let ids = log::list(fleet.home())?;
    let mut surplus = ids.len().saturating_sub(limits.count);
    let (mut looks, mut deleted) = (0, 0);
    for id in &ids {
        if looks == LOOKED_AT_ONCE || deleted == TIDIED_AT_ONCE {
            break;
        }
        let log = FlowLog::open(fleet.home(), id)?;
        let kept_for = if surplus > 0 { KEPT_AT_LEAST } else { limits.age };
        // What was written to since has not ended before.
        if log.quiet_for()? < kept_for {
            continue;
        }
        looks += 1;
        if is_given_up(log, id, kept_for)? {
            surplus = surplus.saturating_sub(1);
            deleted += 1;
        }
    }
    Ok(())
}

/// Deletes a flow that ended so long ago, and what somebody has left who died before he had begun one. What cannot be read is left for a person to look at.
fn is_given_up(mut log: FlowLog, id: &JobId, kept_for: Duration) -> Result<bool, FlowError> {
    if !log.try_lock()? {
        return Ok(false);
    }
    let Ok(lines) = log.read() else { return Ok(false) };
    let is_over = |record: Record| record.finished_at.is_some_and(|end| later(end, kept_for) <= Timestamp::now());
    let goes = lines.is_empty() || folded(id, &lines).is_ok_and(is_over);
    if goes {
        log.delete()?;
    }
    Ok(goes)
}

/// Takes up a flow that was suspended, or that nobody works on any more.
///
/// # Errors
/// It has ended, somebody works on it, it is another caller's, or its log cannot be used.
pub(crate) fn resume(fleet: &Fleet, text: &str) -> Result<Ready, FlowError> {
    let id = log::find(fleet.home(), text)?;
    let mut log = FlowLog::open(fleet.home(), &id)?;
    if !log.lock()? {
        return Err(LogError::AtWork { flow: id }.into());
    }
    let record = folded(&id, &log.read()?)?;
    if record.state.has_ended() {
        return Err(FlowError::Ended { flow: id, state: record.state });
    }
    let own = &fleet.link()?.caller;
    if record.header.caller != *own {
        return Err(FlowError::OtherCaller { flow: id, caller: record.header.caller.to_string(), own: own.to_string() });
    }
    // Ids of its own: whatever was sent before, these are others.
    let ids = CallIds { base: service::fresh_id(), next: 1 };
    Ok(Ready { id, executor: Executor::new(fleet, record, log, ids) })
}

/// What lines of a log add up to.
fn folded(id: &JobId, lines: &[Line]) -> Result<Record, FlowError> {
    let mut lines = lines.iter();
    let Some(Line { at, event: Event::Created(header), .. }) = lines.next() else {
        return Err(FlowError::Astray("it does not begin with what the flow is".to_owned()));
    };
    if header.flow_id != *id {
        return Err(FlowError::Astray(format!("it is that of {}", header.flow_id)));
    }
    let plan = Plan::make(&header.texts, &header.vars).map_err(FlowError::Problems)?;
    let mut record = Record::new((**header).clone(), plan, *at);
    for line in lines {
        record.apply(line).map_err(FlowError::Astray)?;
    }
    Ok(record)
}

/// How a flow stands. Asks no host.
///
/// # Errors
/// There is no such flow, or its log cannot be read.
pub(crate) fn known(fleet: &Fleet, text: &str) -> Result<Known, FlowError> {
    let id = log::find(fleet.home(), text)?;
    let mut log = FlowLog::open(fleet.home(), &id)?;
    // Whoever begins to work on it after this is seen by what it writes.
    let (is_at_work, bytes) = (log.is_at_work()?, log.bytes()?);
    Ok(Known { record: folded(&id, &log.read()?)?, is_at_work, bytes })
}

/// Whether anything is other than it was known.
///
/// # Errors
/// Its log cannot be read.
pub(crate) fn has_changed(fleet: &Fleet, known: &Known) -> Result<bool, FlowError> {
    let log = FlowLog::open(fleet.home(), &known.record.header.flow_id)?;
    Ok(log.is_at_work()? != known.is_at_work || log.bytes()? != known.bytes)
}

/// Every flow that is known, oldest first; those that cannot be read with the reason.
///
/// # Errors
/// The folder cannot be read.
pub(crate) fn all(fleet: &Fleet) -> Result<Vec<Listed>, FlowError> {
    let ids = log::list(fleet.home())?;
    Ok(ids.into_iter().map(|id| (id.clone(), known(fleet, id.as_str()))).collect())
}

/// Deletes a flow that has ended: its log. What its steps have left on hosts is theirs to keep. Gives its id.
///
/// # Errors
/// It has not ended, or its log cannot be used.
pub(crate) fn delete(fleet: &Fleet, text: &str) -> Result<JobId, FlowError> {
    let id = log::find(fleet.home(), text)?;
    let mut log = FlowLog::open(fleet.home(), &id)?;
    if !log.lock()? {
        return Err(LogError::AtWork { flow: id }.into());
    }
    let state = folded(&id, &log.read()?)?.state;
    if !state.has_ended() {
        return Err(FlowError::NotEnded { flow: id, state });
    }
    log.delete()?;
    Ok(id)
}

/// What became of a wish.
pub(crate) enum Granted {
    /// Whoever works on the flow will see to it.
    Told(JobId),
    /// Nobody works on it, and so it is done already.
    Done(JobId),
    /// Nobody works on it, and it takes some work: run it.
    Run(Box<Ready>),
}

/// Has a flow suspended, or cancelled.
///
/// # Errors
/// It has ended, or its log cannot be used.
pub(crate) fn wish(fleet: &Fleet, text: &str, wish: Wish) -> Result<Granted, FlowError> {
    let id = log::find(fleet.home(), text)?;
    let mut log = FlowLog::open(fleet.home(), &id)?;
    let is_ours = log.lock()?;
    let record = folded(&id, &log.read()?)?;
    if record.state.has_ended() {
        return Err(FlowError::Ended { flow: id, state: record.state });
    }
    let by = fleet.link()?.caller.to_string();
    let at = Timestamp::now();
    let asked = Line::new(at, Event::Wish { wish, by });
    let mut lines = vec![asked];
    if is_ours && wish == Wish::Suspend && record.state != FlowState::Suspended {
        // Whoever was to run it may have died before it began.
        let begun = (record.state == FlowState::Pending).then_some(FlowState::Running);
        let states = begun.into_iter().chain([FlowState::Suspended]);
        lines.extend(states.map(|state| Line::new(at, Event::Flow { state, cause: None })));
    }
    log.append(&lines)?;
    log.sync()?;
    // Whoever worked on it may have stopped before it heard the wish.
    let is_ours = is_ours || (wish == Wish::Cancel && !log.is_at_work()?);
    drop(log);
    match (is_ours, wish) {
        (false, _) => Ok(Granted::Told(id)),
        (true, Wish::Suspend) => Ok(Granted::Done(id)),
        (true, Wish::Cancel) => match resume(fleet, id.as_str()) {
            // Whoever worked on it has heard the wish after all.
            Err(FlowError::Ended { .. } | FlowError::Log(LogError::AtWork { .. })) => Ok(Granted::Told(id)),
            ready => ready.map(|ready| Granted::Run(Box::new(ready))),
        },
    }
}
