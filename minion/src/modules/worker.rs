//! What can be asked of this host's resident workers: `crate::worker` has them.

use common::outcome::{ErrorCode, Failure};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};

use super::{Context, Method, Module};
use crate::worker::Reach;

pub(super) struct Worker;

impl Module for Worker {
    const NAME: &'static str = "worker";

    fn methods() -> Vec<Method> {
        vec![
            Method::new("worker.run", "Has a worker do a task, and gives what it returns.", run),
            Method::new("worker.list", "How the workers are, and each of their instances.", list),
            Method::new("worker.cancel", "Stops a task of a worker: by asking, then by killing the instance that has it.", cancel),
        ]
    }
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Run {
    /// The worker's name.
    worker: String,
    /// What it is to do: text, or bytes as `{"base64": "…"}`.
    payload: Payload,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct List {
    /// The worker's name; all workers unless said.
    worker: Option<String>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Cancel {
    /// The worker's name.
    worker: String,
    /// The task's id, as `worker.list` has it.
    task_id: String,
}

/// A task's payload as the worker is told it: `{"text"}` or `{"base64"}`.
struct Payload(Value);

impl<'de> Deserialize<'de> for Payload {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        use serde::de::Error as _;
        match Value::deserialize(input)? {
            Value::String(text) => Ok(Self(json!({ "text": text }))),
            coded if coded.as_object().is_some_and(|fields| fields.len() == 1) && common::outcome::value_bytes(coded.clone()).is_some() => {
                Ok(Self(coded))
            }
            _ => Err(D::Error::custom("`payload` is text, or bytes as {\"base64\": \"…\"}")),
        }
    }
}

impl JsonSchema for Payload {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Payload".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": ["string", "object"] })
    }
}

fn run(args: Run, context: &Context<'_>) -> Result<Value, Failure> {
    let Payload(payload) = args.payload;
    reach(context)?.run(&args.worker, &payload, &|fraction, message| context.progress.report(fraction, message)).map(|answer| answer.result)
}

fn list(args: List, context: &Context<'_>) -> Result<Value, Failure> {
    reach(context)?.list(args.worker.as_deref())
}

fn cancel(args: Cancel, context: &Context<'_>) -> Result<Value, Failure> {
    reach(context)?.cancel(&args.worker, &args.task_id)
}

fn reach<'a>(context: &Context<'a>) -> Result<&'a Reach, Failure> {
    context.workers.ok_or_else(|| Failure::new(ErrorCode::Internal, "workers are reached by a method's process alone"))
}
