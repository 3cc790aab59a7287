//! What instances say: that they want a task, what came of it, how far it is. An instance has one task at a time, and what it says of another is refused.

use std::time::Instant;

use common::outcome::{ErrorCode, Failure};
use nix::sys::signal::Signal;
use serde::Deserialize;
use serde_json::{Value, json};

use super::callers::base64_bytes;
use super::daemon::Daemon;
use super::desk::{SlotId, Task, Wish};
use super::tend::cancelled;
use super::wire::{Line, Request, Wire};
use crate::process::Death;

/// What an instance may ask for.
const METHODS: &str = "task.fetch, task.return, task.progress";
/// As much of a message, or of a kind of error, as is kept.
const MESSAGE_MAX_LETTERS: usize = 4000;
const KIND_MAX_LETTERS: usize = 100;
const PROGRESS_MAX_LETTERS: usize = 200;

/// `task.return`
#[derive(Deserialize)]
struct Returned {
    task_id: String,
    #[serde(default)]
    result: Value,
    error: Option<WorkersError>,
}

/// What a worker says of a task that it could not do.
#[derive(Deserialize)]
struct WorkersError {
    #[serde(default)]
    message: String,
    #[serde(default, rename = "type")]
    kind: String,
    data: Option<Value>,
}

/// `task.progress`
#[derive(Deserialize)]
struct Progressed {
    task_id: String,
    fraction: f64,
    #[serde(default)]
    message: String,
}

impl Daemon {
    /// A connection of an instance.
    pub(super) fn wire(&mut self, slot: SlotId, wire: u64) -> Option<&mut Wire> {
        self.slot(slot)?.instance.as_mut()?.wires.get_mut(&wire)
    }

    /// Does what has come over a connection of an instance.
    pub(super) fn hear_instance(&mut self, slot: SlotId, wire: u64) {
        let lines = self.wire(slot, wire).map(Wire::read).unwrap_or_default();
        for line in lines {
            let (id, answer) = match line {
                Line::Whole(line) => match serde_json::from_slice::<Request>(&line) {
                    Ok(request) => (request.id.clone(), self.answer_instance(slot, wire, request)),
                    Err(error) => (Value::Null, Some(Err(Failure::new(ErrorCode::Parse, format!("not a request: {error}"))))),
                },
                Line::TooLong => (Value::Null, Some(Err(self.result_too_large(slot)))),
            };
            let Some(wire) = self.wire(slot, wire) else { return };
            match answer {
                // What cannot be answered under its id, is told without one.
                Some(Err(error)) if id.is_null() => wire.send(&json!({ "jsonrpc": "2.0", "id": null, "error": error })),
                Some(answer) => wire.answer(&id, answer),
                None => {}
            }
        }
        if let Some(instance) = self.slot(slot).and_then(|slot| slot.instance.as_mut()) {
            instance.drop_wires();
        }
    }

    /// The answer; none: it comes later, with a task.
    fn answer_instance(&mut self, slot: SlotId, wire: u64, request: Request) -> Option<Result<Value, Failure>> {
        let Request { id, method, params } = request;
        match method.as_str() {
            "task.fetch" if id.is_null() => Some(Err(invalid("task.fetch wants an id"))),
            "task.fetch" => {
                self.fetch(slot, wire, id);
                None
            }
            "task.return" => Some(read(params).and_then(|returned| self.take_result(slot, returned))),
            "task.progress" => Some(read(params).and_then(|progressed| self.take_progress(slot, progressed))),
            _ => Some(Err(Failure::new(ErrorCode::UnknownMethod, format!("no method {method:?}: there are {METHODS}")))),
        }
    }

    /// It waits for a task from now on. One that it has got before and has not returned, it returns no more.
    fn fetch(&mut self, number: SlotId, wire: u64, id: Value) {
        if let Some(task) = self.desk.lose(number) {
            let message = format!("{}: its instance fetched another task without returning task {}", self.home.worker, task.id);
            self.tell(&task, Err(Failure::of_kind("abandoned", message)));
        }
        let Some(slot) = self.slot(number) else { return };
        let Some(instance) = &mut slot.instance else { return };
        if let Some((earlier, id)) = instance.fetch.take()
            && let Some(wire) = instance.wires.get_mut(&earlier)
        {
            wire.answer(&id, Err(invalid("another task.fetch of this instance has taken the place of this one")));
        }
        if instance.ending.is_none() {
            instance.has_fetched = true;
            instance.fetch = Some((wire, id));
        }
    }

    fn take_result(&mut self, slot: SlotId, returned: Returned) -> Result<Value, Failure> {
        let Returned { task_id, result, error } = returned;
        if result_bytes(&result) > self.config.result_max_bytes && self.desk.held(slot).is_some_and(|task| task.id == task_id) {
            return Err(self.result_too_large(slot));
        }
        let Some(task) = self.desk.settle(slot, &task_id) else { return Err(strange(&task_id)) };
        if let Some(instance) = self.slot(slot).and_then(|slot| slot.instance.as_mut()) {
            instance.has_returned = true;
        }
        let answer = match (error, &task.wish) {
            (None, _) => Ok(json!({ "task_id": task.id, "result": result })),
            (Some(_), Some(wish)) => Err(cancelled(&task.id, &wish.why)),
            (Some(error), None) => Err(error.into_failure(&task.id)),
        };
        self.tell(&task, answer);
        Ok(json!({}))
    }

    /// Its task fails, and the instance hears the same.
    fn result_too_large(&mut self, slot: SlotId) -> Failure {
        let message = format!("{}: a result is larger than result_max_bytes, {}", self.home.worker, self.config.result_max_bytes);
        let failure = Failure::new(ErrorCode::ResultTooLarge, message);
        if let Some(task) = self.desk.lose(slot) {
            self.tell(&task, Err(failure.clone()));
        }
        failure
    }

    fn take_progress(&mut self, slot: SlotId, progressed: Progressed) -> Result<Value, Failure> {
        let Progressed { task_id, fraction, message } = progressed;
        let Some(task) = self.desk.held_mut(slot).filter(|task| task.id == task_id) else { return Err(strange(&task_id)) };
        let fraction = fraction.clamp(0.0, 1.0);
        let message: String = message.chars().take(PROGRESS_MAX_LETTERS).collect();
        task.progress = Some((fraction, message.clone()));
        let ticket = task.ticket.clone();
        if let Some(caller) = self.callers.get_mut(&ticket.caller) {
            let params = json!({ "request": ticket.request, "task_id": task_id, "fraction": fraction, "message": message });
            caller.hint(&json!({ "jsonrpc": "2.0", "method": "task.progress", "params": params }));
        }
        Ok(json!({}))
    }

    /// Hands out what waits, to whoever waits for it.
    pub(super) fn deal(&mut self) {
        let now = Instant::now();
        for slot in &mut self.slots {
            if self.desk.waiting() == 0 {
                return;
            }
            let number = slot.number;
            let Some(instance) = slot.instance.as_mut().filter(|instance| instance.ending.is_none()) else { continue };
            let Some((wire, id)) = instance.fetch.take() else { continue };
            let Some(connection) = instance.wires.get_mut(&wire).filter(|connection| !connection.is_deaf()) else { continue };
            let Some(task) = self.desk.hand_out(number, now) else { continue };
            instance.got_on = wire;
            connection.answer(&id, Ok(json!({ "task_id": task.id, "payload": task.payload })));
        }
    }

    /// An instance's process is dead: the caller of its task learns it at once, and no other task is touched.
    pub(super) fn lose_task(&mut self, slot: SlotId, death: Death) {
        let pid = self.slot(slot).and_then(|slot| slot.instance.as_ref()).map_or(0, |instance| instance.pid.as_raw());
        let why = self.slot(slot).and_then(|slot| slot.instance.as_ref()?.health.clone()?.err());
        let Some(task) = self.desk.lose(slot) else { return };
        let answer = match (&task.wish, why) {
            (Some(wish), _) => cancelled(&task.id, &wish.why),
            (None, why) => {
                let died = why.map_or_else(|| death.to_string(), |why| format!("was killed because {why}"));
                let message = format!(
                    "{}: the process of its instance {slot}, {pid}, {died} while it worked on task {}; the task may have been done in part",
                    self.home.worker, task.id
                );
                Failure::new(ErrorCode::Crashed, message).with_data(json!({ "type": "worker_died", "task_id": task.id }))
            }
        };
        self.tell(&task, Err(answer));
    }

    /// Asks an instance to stop its task: a line to who reads, and SIGURG, which nobody dies of, to who does not.
    pub(super) fn ask_to_stop(&mut self, slot: SlotId, why: String) {
        let kill_at = Instant::now() + self.config.cancel_grace;
        let Some(task) = self.desk.held_mut(slot) else { return };
        if task.wish.is_some() {
            return;
        }
        task.wish = Some(Wish { why, kill_at });
        let line = json!({ "jsonrpc": "2.0", "method": "task.cancel", "params": { "task_id": task.id } });
        let Some(instance) = self.slot(slot).and_then(|slot| slot.instance.as_mut()) else { return };
        let got_on = instance.got_on;
        if let Some(wire) = instance.wires.get_mut(&got_on) {
            wire.hint(&line);
        }
        instance.signal(Signal::SIGURG);
    }

    /// Tells the caller of a task what came of it, and counts that.
    pub(super) fn tell(&mut self, task: &Task, answer: Result<Value, Failure>) {
        match &answer {
            Ok(_) => self.done += 1,
            Err(_) => self.failed += 1,
        }
        if let Some(caller) = self.callers.get_mut(&task.ticket.caller) {
            caller.answer(&task.ticket.request, answer);
        }
    }
}

impl WorkersError {
    fn into_failure(self, task: &str) -> Failure {
        let Self { message, kind, data } = self;
        let message: String = message.chars().take(MESSAGE_MAX_LETTERS).collect();
        let kind: String = kind.chars().take(KIND_MAX_LETTERS).collect();
        let kind = if kind.is_empty() { "task".to_owned() } else { kind };
        let more = json!({ "type": kind, "task_id": task, "data": data });
        Failure::new(ErrorCode::Failed, if message.is_empty() { format!("task {task} failed") } else { message }).with_data(more)
    }
}

/// How large a result is: text and bytes as such, all else as JSON text.
fn result_bytes(result: &Value) -> usize {
    let coded = result.as_object().filter(|fields| fields.len() == 1).and_then(|fields| fields.get("base64")?.as_str());
    match (result, coded) {
        (Value::String(text), _) => text.len(),
        (_, Some(coded)) => base64_bytes(coded),
        _ => serde_json::to_vec(result).map_or(0, |text| text.len()),
    }
}

fn read<T: serde::de::DeserializeOwned>(params: Value) -> Result<T, Failure> {
    serde_json::from_value(params).map_err(|error| invalid(&error.to_string()))
}

fn invalid(problem: &str) -> Failure {
    Failure::new(ErrorCode::InvalidArguments, problem)
}

fn strange(task: &str) -> Failure {
    let task: String = task.chars().take(KIND_MAX_LETTERS).collect();
    Failure::new(ErrorCode::UnknownJob, format!("task {task:?} is not this instance's, or no more: what is said of it is refused"))
}
