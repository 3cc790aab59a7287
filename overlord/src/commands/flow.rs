//! `overlord flow …`.

use std::io;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::call::stop_on_interrupt;
use super::detached::WORD_WITHIN;
use super::{INTERRUPTED, NOT_ENDED, OK, Refusal, home, open};
use crate::cli::{FlowCommand, FlowFileArgs, FlowGraphArgs, FlowResumeArgs, FlowRunArgs, FlowStatusArgs, Options};
use crate::daemon::{DaemonError, detach};
use crate::fleet::{Fleet, Stop};
use crate::flow::file::schema;
use crate::flow::log::{Line, Wish};
use crate::flow::record::Record;
use crate::flow::state::{FlowState, TaskState};
use crate::flow::{self, FlowError, Granted, Known, Ready};
use crate::output::flow::{cause_line, document, exit_bits, fields, line_document, list, shown};
use crate::output::{Format, Output, is_unread_within, progress_of_tasks, remark};

/// How often a flow that is watched is looked at.
const WATCH_EVERY: Duration = Duration::from_millis(250);

pub(super) fn run(options: &Options, output: Output, command: FlowCommand) -> Result<u8, Refusal> {
    match command {
        FlowCommand::Run(args) => begin(options, output, args),
        FlowCommand::Check(args) => check(&open(options)?, output, &args),
        FlowCommand::Graph(args) => graph(output, &args),
        FlowCommand::Schema => print_schema(output),
        FlowCommand::Status(args) => status(&open(options)?, output, &args),
        FlowCommand::List => print_list(&open(options)?, output),
        FlowCommand::Suspend(args) => grant(options, output, &args.id, Wish::Suspend),
        FlowCommand::Cancel(args) => grant(options, output, &args.id, Wish::Cancel),
        FlowCommand::Delete(args) => delete(&open(options)?, &args.ids),
        FlowCommand::Resume(args) => resume(options, output, &args),
    }
}

fn vars(args: &FlowFileArgs) -> Map<String, Value> {
    args.vars.iter().map(|(name, value)| (name.clone(), Value::from(value.as_str()))).collect()
}

fn begin(options: &Options, output: Output, args: FlowRunArgs) -> Result<u8, Refusal> {
    let (file, vars) = (args.flow.file.clone(), vars(&args.flow));
    if args.is_async {
        return behind(options, output, move |fleet| flow::begin(fleet, &file, vars));
    }
    let fleet = open(options)?;
    let ready = flow::begin(&fleet, &file, vars)?;
    carry_out(output, ready)
}

fn resume(options: &Options, output: Output, args: &FlowResumeArgs) -> Result<u8, Refusal> {
    let id = args.flow.id.clone();
    if args.is_async {
        return behind(options, output, move |fleet| flow::resume(fleet, &id));
    }
    carry_out(output, flow::resume(&open(options)?, &id)?)
}

/// What a process that works behind tells the command that started it.
#[derive(Debug, Serialize, Deserialize)]
enum Word {
    Started { flow: String },
    Refused { status: u8, message: String },
}

/// Prepares and runs a flow in a process of its own, and prints the id.
fn behind(options: &Options, mut output: Output, prepare: impl FnOnce(&Fleet) -> Result<Ready, FlowError>) -> Result<u8, Refusal> {
    let home = home(options)?;
    let word = detach(WORD_WITHIN, |word| {
        let prepared = Fleet::at(home).map_err(Refusal::from).and_then(|fleet| prepare(&fleet).map_err(Refusal::from));
        let (told, ready) = match prepared {
            Ok(ready) => (Word::Started { flow: ready.id.to_string() }, Some(ready)),
            Err(Refusal { status, message }) => (Word::Refused { status, message }, None),
        };
        word.say(&serde_json::to_string(&told).unwrap_or_default());
        if let Some(ready) = ready {
            // What goes wrong stands in the log, or leaves the flow for somebody to resume.
            let _in_the_log = ready.run(&Stop::new(), &mut |_, _| ());
        }
    })?;
    match serde_json::from_str(&word) {
        Ok(Word::Started { flow }) => {
            match output.format() {
                Format::Text => output.print(&flow)?,
                Format::Json | Format::Jsonl => output.print_json(&json!({ "flow_id": flow }))?,
            }
            Ok(OK)
        }
        Ok(Word::Refused { status, message }) => Err(Refusal { status, message }),
        Err(_) => Err(DaemonError::Died.into()),
    }
}

/// Runs it here, and prints how it has ended.
fn carry_out(mut output: Output, ready: Ready) -> Result<u8, Refusal> {
    let id = ready.id.clone();
    remark(&format!("the flow {id} runs; if this is interrupted, `overlord flow resume {id}` goes on"));
    let stop = Stop::new();
    stop_on_interrupt(stop.clone());
    let (mut bar, mut unread) = (None, None);
    let record = ready.run(&stop, &mut |record: &Record, lines: &[Line]| {
        let bar = bar.get_or_insert_with(|| progress_of_tasks(record.tasks.len()));
        let passed = record.tasks.iter().filter(|task| task.state.is_passed() || task.state == TaskState::Reverted).count();
        bar.set_position(u64::try_from(passed).unwrap_or(u64::MAX));
        if output.format() == Format::Jsonl && unread.is_none() {
            let told = lines.iter().filter_map(|line| line_document(record, line));
            unread = bar.suspend(|| told.into_iter().try_for_each(|line| output.print_json(&line)).err());
        }
    })?;
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    if let Some(error) = unread {
        return Err(error.into());
    }
    print(&mut output, &record, false)?;
    if stop.is_stopped() && !record.state.has_ended() {
        remark(&format!("interrupted: jobs that were sent go on, calls were stopped; `overlord flow resume {id}` goes on"));
        return Ok(INTERRUPTED);
    }
    Ok(status_of(&record))
}

fn status_of(record: &Record) -> u8 {
    if record.state.has_ended() { exit_bits(record) } else { NOT_ENDED }
}

fn print(output: &mut Output, record: &Record, is_at_work: bool) -> io::Result<()> {
    match output.format() {
        Format::Text => output.print(&shown(record, is_at_work)),
        Format::Json => output.print_json(&document(record, is_at_work)),
        Format::Jsonl => output.print_json(&json!({ "summary": fields(record, is_at_work) })),
    }
}

fn check(fleet: &Fleet, mut output: Output, args: &FlowFileArgs) -> Result<u8, Refusal> {
    let (_, plan) = flow::checked(fleet, &args.file, &vars(args))?;
    match output.format() {
        Format::Text => output.print(&format!("{}: nothing is wrong with its {} tasks", plan.name, plan.tasks.len()))?,
        Format::Json | Format::Jsonl => output.print_json(&json!({ "name": plan.name, "tasks": plan.tasks.len() }))?,
    }
    Ok(OK)
}

fn graph(mut output: Output, args: &FlowGraphArgs) -> Result<u8, Refusal> {
    let plan = plan_of(&args.flow.file, &vars(&args.flow))?;
    output.print(&crate::output::harmless(&if args.dot { plan.dot() } else { plan.shown() }))?;
    Ok(OK)
}

/// The graph of a file alone: no host is asked.
fn plan_of(file: &Path, vars: &Map<String, Value>) -> Result<flow::plan::Plan, Refusal> {
    let texts = flow::file::Texts::load(file).map_err(|error| FlowError::Problems(vec![error]))?;
    Ok(flow::plan::Plan::make(&texts, vars).map_err(FlowError::Problems)?)
}

fn print_schema(mut output: Output) -> Result<u8, Refusal> {
    output.print(&serde_json::to_string_pretty(&schema()).unwrap_or_default())?;
    Ok(OK)
}

fn status(fleet: &Fleet, mut output: Output, args: &FlowStatusArgs) -> Result<u8, Refusal> {
    let mut known = flow::known(fleet, &args.flow.id)?;
    if args.watch {
        known = watch(fleet, &mut output, known)?;
    }
    print(&mut output, &known.record, known.is_at_work)?;
    Ok(status_of(&known.record))
}

/// Prints changes until it has ended, or nobody works on it.
fn watch(fleet: &Fleet, output: &mut Output, mut known: Known) -> Result<Known, Refusal> {
    let id = known.record.header.flow_id.clone();
    let mut told: Vec<TaskState> = Vec::new();
    loop {
        tell_changes(output, &known.record, &mut told)?;
        if known.record.state.has_ended() || !known.is_at_work {
            return Ok(known);
        }
        if is_unread_within(WATCH_EVERY) {
            return Err(io::Error::from(io::ErrorKind::BrokenPipe).into());
        }
        if flow::has_changed(fleet, &known)? {
            known = flow::known(fleet, id.as_str())?;
        }
    }
}

fn tell_changes(output: &mut Output, record: &Record, told: &mut Vec<TaskState>) -> io::Result<()> {
    told.resize(record.tasks.len(), TaskState::Pending);
    for ((task, at), before) in record.plan.tasks.iter().zip(&record.tasks).zip(told) {
        if std::mem::replace(before, at.state) == at.state {
            continue;
        }
        match output.format() {
            Format::Text => {
                let why = at.cause.as_ref().filter(|_| !at.state.is_passed()).map(|cause| format!("  {}", cause_line(cause)));
                output.print(&crate::output::harmless(&format!("{}  {}{}", task.path, at.state, why.unwrap_or_default())))?;
            }
            Format::Jsonl => output.print_json(&json!({ "task": task.path, "state": at.state, "cause": at.cause }))?,
            Format::Json => {}
        }
    }
    Ok(())
}

fn print_list(fleet: &Fleet, mut output: Output) -> Result<u8, Refusal> {
    let flows = flow::all(fleet)?;
    match output.format() {
        Format::Text => output.print(&list(&flows))?,
        Format::Json | Format::Jsonl => {
            let documents = flows.iter().rev().map(|(id, known)| match known {
                Ok(Known { record, is_at_work, .. }) => Value::Object(fields(record, *is_at_work)),
                Err(error) => json!({ "flow_id": id, "state": null, "reason": crate::chain(error) }),
            });
            match output.format() {
                Format::Json => output.print_json(&documents.collect::<Vec<_>>())?,
                _ => documents.into_iter().try_for_each(|document| output.print_json(&document))?,
            }
        }
    }
    Ok(OK)
}

/// Each by itself: one that cannot be deleted keeps no other.
fn delete(fleet: &Fleet, ids: &[String]) -> Result<u8, Refusal> {
    let mut status = OK;
    for id in ids {
        match flow::delete(fleet, id) {
            Ok(id) => remark(&format!("the flow {id} is deleted")),
            Err(error) => {
                let refusal = Refusal::from(error);
                remark(&refusal.message);
                status = if status == OK { refusal.status } else { status };
            }
        }
    }
    Ok(status)
}

fn grant(options: &Options, output: Output, id: &str, wish: Wish) -> Result<u8, Refusal> {
    let fleet = open(options)?;
    match flow::wish(&fleet, id, wish)? {
        Granted::Told(id) => {
            let verb =
                if wish == Wish::Suspend { "suspended once what is on its way has ended" } else { "stopped, and what it has done undone" };
            remark(&format!("the flow {id} is told: it will be {verb}; see `overlord flow status {id} --watch`"));
            Ok(OK)
        }
        Granted::Done(id) => {
            remark(&format!("the flow {id} is {}; `overlord flow resume {id}` goes on", FlowState::Suspended));
            Ok(OK)
        }
        Granted::Run(ready) => carry_out(output, *ready),
    }
}
