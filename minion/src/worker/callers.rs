//! What methods ask a worker's daemon for: to have a task done, to stop one, to say how it is. Who may ask was decided before, by the door.

use std::os::unix::net::UnixStream;

use common::outcome::{ErrorCode, Failure};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};

use super::config::WorkerConfig;
use super::daemon::Daemon;
use super::desk::{Room, Task, Ticket, Whereabouts};
use super::reach::Asker;
use super::wire::{Line, Request, Wire};
use crate::acl::Scope;

/// The most connections of callers at once: each call of `worker.*` has one.
const CALLERS_MAX: usize = 4096;
/// What stands around a payload, which is written as it is in base64, and letter for letter with six bytes in text.
const LINE_MARGIN_BYTES: usize = 4096;
const ESCAPED_BYTES: usize = 6;
/// As much of a task's id as is said again of one that is not there.
const ID_MAX_LETTERS: usize = 200;

/// `task.run`
#[derive(Deserialize)]
struct Run {
    payload: Value,
    #[serde(default)]
    by: String,
}

/// `task.cancel`
#[derive(Deserialize)]
struct Cancel {
    task_id: String,
    #[serde(flatten)]
    asker: Asker,
}

impl Daemon {
    /// A caller has connected.
    pub(super) fn meet(&mut self, stream: UnixStream) {
        let line_max = self.config.payload_max_bytes.saturating_mul(ESCAPED_BYTES).saturating_add(LINE_MARGIN_BYTES);
        let Ok(mut wire) = Wire::new(stream, line_max) else { return };
        if self.callers.len() >= CALLERS_MAX {
            let message = format!("{}: {CALLERS_MAX} callers are connected, which is the most; try again", self.home.worker);
            wire.send(&json!({ "jsonrpc": "2.0", "id": null, "error": Failure::new(ErrorCode::LimitReached, message) }));
            return;
        }
        self.callers_met += 1;
        self.callers.insert(self.callers_met, wire);
    }

    /// Does what has come over a caller's connection.
    pub(super) fn hear_caller(&mut self, caller: u64) {
        let lines = self.callers.get_mut(&caller).map(Wire::read).unwrap_or_default();
        // Who has hung up by now has given up, and was told so: nothing may begin for it any more.
        if self.callers.get(&caller).is_none_or(Wire::is_over) {
            return;
        }
        for line in lines {
            let (id, answer) = match line {
                Line::Whole(line) => match serde_json::from_slice::<Request>(&line) {
                    Ok(request) => (request.id.clone(), self.answer_caller(caller, request)),
                    Err(error) => (Value::Null, Some(Err(Failure::new(ErrorCode::Parse, format!("not a request: {error}"))))),
                },
                Line::TooLong => (Value::Null, Some(Err(self.payload_too_large()))),
            };
            let Some(wire) = self.callers.get_mut(&caller) else { return };
            match answer {
                Some(Err(error)) if id.is_null() => wire.send(&json!({ "jsonrpc": "2.0", "id": null, "error": error })),
                Some(answer) => wire.answer(&id, answer),
                None => {}
            }
        }
    }

    /// Forgets the callers that are gone: what waits for them is not done, and what is under way for them is to stop.
    pub(super) fn drop_callers(&mut self) {
        let gone: Vec<u64> = self.callers.iter().filter(|(_, wire)| wire.is_over()).map(|(caller, _)| *caller).collect();
        for caller in gone {
            self.callers.remove(&caller);
            for slot in self.desk.hang_up(caller) {
                self.ask_to_stop(slot, "stopped because its caller hung up".to_owned());
            }
        }
    }

    /// The answer; none: it comes when the task has ended.
    fn answer_caller(&mut self, caller: u64, request: Request) -> Option<Result<Value, Failure>> {
        let Request { id, method, params } = request;
        match method.as_str() {
            "task.run" => match self.take_task(caller, id, params) {
                Ok(()) => None,
                Err(refusal) => Some(Err(refusal)),
            },
            "task.cancel" => Some(self.cancel(params)),
            "worker.list" => Some(read(params).map(|asker| self.report(&asker))),
            _ => {
                let message = format!("the daemon of {} knows no {method}: it is of another version; restart it", self.home.worker);
                Some(Err(Failure::new(ErrorCode::UnknownMethod, message)))
            }
        }
    }

    fn take_task(&mut self, caller: u64, request: Value, params: Value) -> Result<(), Failure> {
        let Run { payload, by } = read(params)?;
        let bytes = payload_bytes(&payload)?;
        if bytes > self.config.payload_max_bytes {
            return Err(self.payload_too_large());
        }
        let worker = &self.home.worker;
        if self.ends_by.is_some() {
            return Err(Failure::new(ErrorCode::Undelivered, format!("{worker}: the worker is ending; nothing was run; try again")));
        }
        let free = self.slots.iter().filter(|slot| slot.instance.as_ref().is_some_and(|instance| instance.fetch.is_some())).count();
        let room = Room { tasks: self.config.queue_max.saturating_add(free), bytes: self.config.queue_max_bytes };
        let ticket = Ticket { caller, request };
        match self.desk.accept(ticket, by, (payload, bytes), room) {
            Some(_id) => {
                self.deal();
                Ok(())
            }
            None => {
                let (waiting, WorkerConfig { queue_max, queue_max_bytes, .. }) = (self.desk.waiting(), &*self.config);
                let message = format!(
                    "{worker}: {waiting} tasks wait already, and queue_max, {queue_max}, or queue_max_bytes, {queue_max_bytes}, lets no more; try again later"
                );
                Err(Failure::new(ErrorCode::LimitReached, message))
            }
        }
    }

    /// Stops one task: one that waits at once, one that is under way by asking its instance.
    fn cancel(&mut self, params: Value) -> Result<Value, Failure> {
        let Cancel { task_id, asker } = read(params)?;
        let why = format!("cancelled by {} at {}", asker.by, Timestamp::now());
        match self.desk.task(&task_id) {
            Some(task) if !sees(&asker, task) => return Err(self.others(task, &asker)),
            _ => {}
        }
        match self.desk.find(&task_id) {
            Whereabouts::Waiting => {
                if let Some(task) = self.desk.withdraw(&task_id) {
                    self.tell(&task, Err(super::tend::cancelled(&task.id, &why)));
                }
                Ok(json!({ "task_id": task_id, "was": "queued" }))
            }
            Whereabouts::With(slot) => {
                self.ask_to_stop(slot, why);
                Ok(json!({ "task_id": task_id, "was": "running" }))
            }
            Whereabouts::Nowhere => {
                let task: String = task_id.chars().take(ID_MAX_LETTERS).collect();
                let message =
                    format!("{} has no task {task:?}: it has ended, or was never here; worker.list names those that run", self.home.worker);
                Err(Failure::new(ErrorCode::UnknownJob, message))
            }
        }
    }

    fn others(&self, task: &Task, asker: &Asker) -> Failure {
        let message = format!(
            "{}: task {} is another caller's; {} stops those of others where a rule lets {} call jobs.cancel, too",
            self.home.worker, task.id, asker.by, asker.by
        );
        Failure::new(ErrorCode::Denied, message)
    }

    fn payload_too_large(&self) -> Failure {
        let message = format!("{}: the payload is larger than payload_max_bytes, {}", self.home.worker, self.config.payload_max_bytes);
        Failure::new(ErrorCode::LimitReached, message)
    }
}

/// Whether a task is one that `asker` may hear of, and stop.
pub(super) fn sees(asker: &Asker, task: &Task) -> bool {
    asker.scope == Scope::All || task.by == asker.by
}

/// How many bytes a payload has.
fn payload_bytes(payload: &Value) -> Result<usize, Failure> {
    if let Some(text) = payload.get("text").and_then(Value::as_str) {
        return Ok(text.len());
    }
    let Some(coded) = payload.get("base64").and_then(Value::as_str) else {
        return Err(Failure::new(ErrorCode::InvalidArguments, "a payload is {\"text\"} or {\"base64\"}"));
    };
    Ok(base64_bytes(coded))
}

/// How many bytes this base64 stands for.
pub(super) fn base64_bytes(coded: &str) -> usize {
    let padding = coded.bytes().rev().take_while(|byte| *byte == b'=').count();
    (coded.len() / 4 * 3).saturating_sub(padding)
}

fn read<T: serde::de::DeserializeOwned>(params: Value) -> Result<T, Failure> {
    serde_json::from_value(params).map_err(|error| Failure::new(ErrorCode::InvalidArguments, error.to_string()))
}
