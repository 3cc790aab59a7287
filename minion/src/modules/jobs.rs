//! What can be asked about jobs: the specs of `jobs.*`, and their arguments once read. The door hands them to `crate::jobs`.

use common::job::{CallId, MinionJobId};
use common::outcome::{ErrorCode, Failure};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use super::{Method, Module, NoArguments};

pub(super) struct Jobs;

impl Module for Jobs {
    const NAME: &'static str = "jobs";

    fn methods() -> Vec<Method> {
        vec![
            Method::of_jobs::<OfJob>("jobs.status", "How far a job is; once it has ended, its outcome."),
            Method::of_jobs::<LogsWanted>("jobs.logs", "What a job has written so far, from an offset on; waits for more if asked to."),
            Method::of_jobs::<JobsWanted>("jobs.wait", "How jobs stand once all of them have ended, or the time is over."),
            Method::of_jobs::<NoArguments>("jobs.list", "The jobs that this host remembers."),
            Method::of_jobs::<OfJob>("jobs.cancel", "Stops a job."),
            Method::of_jobs::<OfJob>("jobs.delete", "Forgets a job that has ended; tells of it for the last time."),
            Method::of_jobs::<OfCall>(
                "jobs.fence",
                "Sees to it that a call which has not started here never will; tells of the job if it has.",
            ),
        ]
    }
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct OfJob {
    /// The job's id on this host.
    #[schemars(with = "String")]
    id: MinionJobId,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct OfCall {
    /// The call's id.
    #[schemars(with = "String")]
    call_id: CallId,
}

/// What is wanted of a job's output: the arguments of `jobs.logs`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LogsWanted {
    /// The job's id on this host.
    #[schemars(with = "String")]
    pub id: MinionJobId,
    /// From which byte of its stdout on.
    #[serde(default)]
    pub stdout: u64,
    /// From which byte of its stderr on.
    #[serde(default)]
    pub stderr: u64,
    /// At most so many bytes of each; without it, as many as fit into a reply.
    pub max_bytes: Option<u32>,
    /// How many milliseconds to wait for more where there is nothing yet; at most 20000.
    #[serde(default)]
    pub wait_ms: u32,
}

/// Which jobs are waited for: the arguments of `jobs.wait`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct JobsWanted {
    /// The jobs' ids on this host; at most 1000.
    #[schemars(with = "Vec<String>")]
    pub ids: Vec<MinionJobId>,
    /// How many milliseconds to wait; at most 20000, which is also what is waited unless said, but for a job, which may wait for ever.
    pub wait_ms: Option<u32>,
}

/// One call of `jobs.*`, read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JobsCall {
    /// `jobs.status`
    Status(MinionJobId),
    /// `jobs.logs`
    Logs(LogsWanted),
    /// `jobs.wait`
    Wait(JobsWanted),
    /// `jobs.list`
    List,
    /// `jobs.cancel`
    Cancel(MinionJobId),
    /// `jobs.delete`
    Delete(MinionJobId),
    /// `jobs.fence`
    Fence(CallId),
}

impl JobsCall {
    /// What `method` with `args`, bound to its spec, asks.
    ///
    /// # Errors
    /// `InvalidArguments`: an id that is none.
    pub fn read(method: &Method, args: Value) -> Result<Self, Failure> {
        let name = &method.spec().method;
        let job = |args| serde_json::from_value(args).map(|OfJob { id }| id).map_err(|error| method.invalid(&error));
        match name.method() {
            "status" => job(args).map(Self::Status),
            "logs" => serde_json::from_value(args).map(Self::Logs).map_err(|error| method.invalid(&error)),
            "wait" => serde_json::from_value(args).map(Self::Wait).map_err(|error| method.invalid(&error)),
            "list" => Ok(Self::List),
            "cancel" => job(args).map(Self::Cancel),
            "delete" => job(args).map(Self::Delete),
            "fence" => serde_json::from_value(args).map(|OfCall { call_id }| Self::Fence(call_id)).map_err(|error| method.invalid(&error)),
            _ => Err(Failure::new(ErrorCode::Internal, format!("{name} has a spec, and nothing that answers it"))),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::super::Registry;
    use super::*;
    use serde_json::json;

    #[test]
    fn every_spec_can_be_read() {
        let registry = Registry::builtin();
        let id = "54k2-9xqd-4fz1";
        let of_job = || json!({ "id": id });
        let args = [
            of_job(),
            json!({ "id": id, "stdout": 7 }),
            json!({ "ids": [id] }),
            json!({}),
            of_job(),
            of_job(),
            json!({ "call_id": "54k2-9xqd-4fz1/2" }),
        ];
        let names = ["jobs.status", "jobs.logs", "jobs.wait", "jobs.list", "jobs.cancel", "jobs.delete", "jobs.fence"];
        for (name, args) in names.into_iter().zip(args) {
            let method = registry.find(&name.parse().unwrap()).unwrap();
            assert!(JobsCall::read(method, args).is_ok(), "{name}");
        }
        assert_eq!(registry.specs().filter(|spec| spec.method.module() == "jobs").count(), 7);
    }

    #[test]
    fn what_is_no_id_is_told_with_the_usage() {
        let registry = Registry::builtin();
        let method = registry.find(&"jobs.status".parse().unwrap()).unwrap();
        let failure = JobsCall::read(method, json!({ "id": "../x" })).unwrap_err();
        assert!(failure.is(ErrorCode::InvalidArguments));
        assert!(
            failure.message.contains("\"../x\" is not a job id") && failure.message.ends_with("usage: jobs.status ID:string"),
            "{failure:?}"
        );
    }
}
