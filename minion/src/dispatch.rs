//! The door. Every request of every connection comes through its [`Reception::enter`], and nothing reaches a method in any other way:
//! read → signed? → [`Guard::pass`] → here, the jobs, or the spawner, whose guard looks again.

#[doc(hidden)]
pub mod fuzzing;
mod read;
mod revocations;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use certs::trust::MinionTrust;
use common::identity::MinionName;
use common::outcome::{ErrorCode, Failure, Outcome};
use common::protocol::certs::REVOCATIONS_HEADER;
use common::protocol::{Accepted, Envelope};
use http::{HeaderMap, HeaderName, HeaderValue};
use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;
use service::audit::Audit;
use service::{Knock, Reception, Visitor};
use tracing::error;

use crate::acl::{Acl, Scope};
use crate::call::{Ask, Call};
use crate::caller::Caller;
use crate::config::Limits;
use crate::guard::{Guard, Way};
use crate::jobs::{JobCall, Jobs, Reader};
use crate::modules::{Context, JobsCall, Method, Registry, RevocationsAsked};

/// What a caller who was let in gets: the `result` of the JSON-RPC response.
#[derive(Debug, Clone, Serialize)]
#[serde(untagged)]
pub enum Reply {
    /// Of a call: how it ended.
    Outcome(Outcome),
    /// Of an `async.` call: the job.
    Accepted(Accepted),
}

/// The door of one minion.
#[derive(Debug)]
pub struct Door {
    name: MinionName,
    guard: Guard,
    audit: Arc<Audit>,
    jobs: Arc<Jobs>,
    trust: Arc<MinionTrust>,
    result_max_bytes: usize,
}

/// What a door asks, and hands calls to.
#[derive(Debug, Clone)]
pub struct Parts {
    /// Who may do what.
    pub acl: Arc<Acl>,
    /// Where each decision is written.
    pub audit: Arc<Audit>,
    /// What can be called.
    pub registry: Arc<Registry>,
    /// What runs it.
    pub jobs: Arc<Jobs>,
    /// What the server goes by.
    pub trust: Arc<MinionTrust>,
}

impl Door {
    /// The door of the minion `name`. Doors of several minions may share their parts.
    #[must_use]
    pub fn new(name: MinionName, parts: Parts, limits: &Limits) -> Self {
        let Limits { call_time_max, job_time_max, result_max_bytes, .. } = *limits;
        let Parts { acl, audit, registry, jobs, trust } = parts;
        Self { name, guard: Guard { acl, registry, call_time_max, job_time_max }, audit, jobs, trust, result_max_bytes }
    }
}

impl Reception for Door {
    type Caller = Caller;
    type Reply = Reply;

    fn admit(&self, visitor: Visitor) -> Result<Caller, String> {
        visitor.try_into()
    }

    /// Does what `caller` asks for, if it may. Dropping the future stops a call that runs; a job goes on.
    ///
    /// # Errors
    /// A refusal: nothing was run. How a method that did run ended, badly too, is an [`Outcome`].
    async fn enter(&self, caller: &Caller, knock: Knock<'_>) -> Result<Reply, Failure> {
        let refused = |failure| self.guard.refuse(caller.bearer(), &read::method_shown(knock), failure, &*self.audit);
        let (call, ask) = read::read(&self.name, caller, knock).map_err(refused)?;
        let passed = self.guard.pass(&self.name, caller.bearer(), &call, &*self.audit)?;
        match passed.way {
            Way::Here => Ok(Reply::Outcome(self.answer(passed.method, passed.args))),
            Way::Jobs => {
                let asked = JobsCall::read(passed.method, passed.args)?;
                self.ask_jobs(caller, passed.scope, asked, ask).await.map(Reply::Outcome)
            }
            Way::Trust => {
                let asked = RevocationsAsked::read(passed.method, passed.args)?;
                self.revocations(caller, asked).await.map(Reply::Outcome)
            }
            Way::Run => self.jobs.run(ask, self.guard.limit(&call)).await.map(Reply::Outcome),
            Way::Start => self.jobs.start(self.job_call(call, ask)).await.map(Reply::Accepted),
        }
    }

    fn reply_max_bytes(&self) -> usize {
        /// A report's fields around a result, and an answer's own margin.
        const MARGIN_BYTES: usize = 256 * 1024;
        self.result_max_bytes.saturating_add(MARGIN_BYTES)
    }

    fn reply_too_large(&self) -> Failure {
        let message = format!("{}: the reply would be larger than limits.result_max_bytes allows; ask for less at once", self.name);
        Failure::new(ErrorCode::ResultTooLarge, message)
    }

    /// Whoever called sees by it that this host's revocation list is older than its own, or newer.
    fn mark(&self, headers: &mut HeaderMap) {
        headers.insert(HeaderName::from_static(REVOCATIONS_HEADER), HeaderValue::from(self.trust.now().crl_number()));
    }
}

impl Door {
    fn answer(&self, method: &Method, args: Value) -> Outcome {
        let started_at = Some(Timestamp::now());
        let context = Context { minion: &self.name, registry: &self.guard.registry, result_max_bytes: self.result_max_bytes };
        let answer = catch_unwind(AssertUnwindSafe(|| method.run(args, &context))).unwrap_or_else(|_| {
            error!(method = %method.spec().method, "a method panicked; this is a bug of the minion");
            Err(Failure::new(ErrorCode::Crashed, format!("{} panicked; the log of {} says where", method.spec().method, self.name)))
        });
        Outcome { verdict: answer.into(), started_at, finished_at: Some(Timestamp::now()) }
    }

    async fn ask_jobs(&self, caller: &Caller, scope: Scope, asked: JobsCall, ask: Ask) -> Result<Outcome, Failure> {
        let started_at = Some(Timestamp::now());
        let reader = Reader { caller: caller.name().clone(), scope };
        let answer = match asked {
            JobsCall::Status(id) => serde_json::to_value(self.jobs.status(&reader, &id).await?),
            JobsCall::List => serde_json::to_value(self.jobs.list(&reader).await),
            JobsCall::Logs(wanted) => serde_json::to_value(self.jobs.logs(&reader, &wanted, ask, self.reply_max_bytes()).await?),
            JobsCall::Cancel(id) => serde_json::to_value(self.jobs.cancel(&reader, &id, ask).await?),
            JobsCall::Delete(id) => serde_json::to_value(self.jobs.delete(&reader, &id, ask).await?),
            JobsCall::Fence(call_id) => serde_json::to_value(self.jobs.fence(&reader, &call_id, ask).await?),
        };
        let answer = answer.map_err(|error| Failure::new(ErrorCode::Internal, format!("{}: writing a report: {error}", self.name)))?;
        Ok(Outcome { verdict: Ok(answer).into(), started_at, finished_at: Some(Timestamp::now()) })
    }

    fn job_call(&self, call: Call, ask: Ask) -> JobCall {
        let Envelope { call_id, caller, start_before, .. } = call.envelope;
        JobCall { ask, caller, call_id, start_before }
    }
}

#[cfg(test)]
mod tests;
