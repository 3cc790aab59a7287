//! The door. Every request of every connection comes through its [`Reception::enter`], every call that a job submits through [`Door::submit`],
//! and nothing reaches a method in any other way: read → signed, or submitted by a job that runs? → [`Guard::pass`] → here, the jobs, or the
//! spawner, whose guard looks again.

#[doc(hidden)]
pub mod fuzzing;
mod read;
mod revocations;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use certs::trust::MinionTrust;
use common::identity::MinionName;
use common::outcome::{ErrorCode, Failure, Outcome};
use common::protocol::certs::REVOCATIONS_HEADER;
use common::protocol::map::CHUNK_PERIOD;
use common::protocol::{Accepted, Envelope};
use http::{HeaderMap, HeaderName, HeaderValue};
use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;
use service::audit::{Audit, COUNTED_FOR, Repeated, Repeats};
use service::{Knock, Reception, Visitor};
use tracing::error;

use crate::acl::Acl;
use crate::call::{Ask, Call, Proof};
use crate::caller::Caller;
use crate::config::Limits;
use crate::guard::{Bearer, Guard, Way};
use crate::jobs::{JobCall, Jobs, Reader, Waiter};
use crate::modules::{Context, JobsCall, Method, Registry, RevocationsAsked};
use crate::submit::Submission;

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
    /// Submissions that were refused before it was known for whom they call, by the user of the host who made them.
    repeats: Repeats<u32, u32>,
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
        Self {
            name,
            guard: Guard { acl, registry, call_time_max, job_time_max },
            audit,
            jobs,
            trust,
            result_max_bytes,
            repeats: Repeats::default(),
        }
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
        self.pass(caller.bearer(), call, ask, &|| ()).await
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
    /// Does what a job that runs here asks for, if its caller may. `said` is the text of a [`Submission`] by a process of `user`. Dropping the
    /// future stops a call that runs; a job goes on. Where the job begins to wait for others, which may take long, `settle` is called.
    ///
    /// # Errors
    /// A refusal: nothing was run.
    pub async fn submit(&self, user: u32, said: &[u8], settle: &(dyn Fn() + Sync)) -> Result<Reply, Failure> {
        let Submission { call, job, code } = Submission::read(said).map_err(|failure| self.refuse_unproved(user, failure))?;
        let ask = Ask { minion: self.name.clone(), call, proof: Proof::Token { job: job.clone(), code } };
        let known = self.jobs.bearer(ask.clone()).await;
        let (caller, fingerprint) = known.map_err(|failure| self.refuse_unproved(user, failure))?;
        let bearer = Bearer { caller: caller.as_str(), fingerprint: &fingerprint, address: None, parent: Some(&job) };
        let call = Call::parse(&self.name, &caller, &ask.call);
        let call = call.map_err(|failure| self.guard.refuse(bearer, "", failure, &*self.audit))?;
        self.pass(bearer, call, ask, settle).await
    }

    /// Anybody on the host can be refused as often as he likes: the first few times in a minute stand in the audit log, and of the others how many
    /// they were.
    fn refuse_unproved(&self, user: u32, failure: Failure) -> Failure {
        if self.repeats.is_repeated(user, user, Instant::now()) {
            return failure;
        }
        self.guard.refuse(Bearer::UNKNOWN, "", failure, &*self.audit)
    }

    /// When [`Door::tell_repeats`] has something to tell.
    #[must_use]
    pub fn repeats_due_at(&self) -> Option<Instant> {
        self.repeats.due_at()
    }

    /// Writes down how often was refused what has been counted for a minute at `now`.
    pub fn tell_repeats(&self, now: Instant) {
        for Repeated { first, more } in self.repeats.due(now) {
            let whose = first.map_or_else(|| "other users".to_owned(), |user| format!("the user {user}"));
            let why = format!("{more} more submissions of {whose} were refused within {} s", COUNTED_FOR.as_secs());
            let _told = self.guard.refuse(Bearer::UNKNOWN, "", Failure::new(ErrorCode::LimitReached, why), &*self.audit);
        }
    }

    /// Has the guard look at a call, whoever brought it, and does what it comes to.
    async fn pass(&self, bearer: Bearer<'_>, call: Call, ask: Ask, settle: &(dyn Fn() + Sync)) -> Result<Reply, Failure> {
        let passed = self.guard.pass(&self.name, bearer, &call, &*self.audit)?;
        match passed.way {
            Way::Here => Ok(Reply::Outcome(self.answer(passed.method, passed.args))),
            Way::Jobs => {
                let asked = JobsCall::read(passed.method, passed.args)?;
                let reader = Reader { caller: call.envelope.caller, scope: passed.scope };
                self.ask_jobs(reader, asked, ask, Waiter { job: bearer.parent, settle }).await.map(Reply::Outcome)
            }
            Way::Trust if bearer.parent.is_some() => {
                let message = format!("{}: {} is between overlords and the server, and no job's business", self.name, call.method);
                Err(self.guard.refuse(bearer, &call.envelope.method, Failure::new(ErrorCode::InvalidRequest, message), &*self.audit))
            }
            Way::Trust => {
                let asked = RevocationsAsked::read(passed.method, passed.args)?;
                self.revocations(bearer, asked).await.map(Reply::Outcome)
            }
            Way::Run => self.jobs.run(ask, self.guard.limit(&call)).await.map(Reply::Outcome),
            Way::Map => self.jobs.run(ask, self.guard.limit(&call).saturating_add(CHUNK_PERIOD)).await.map(Reply::Outcome),
            Way::Start => self.jobs.start(self.job_call(call, ask)).await.map(Reply::Accepted),
        }
    }

    fn answer(&self, method: &Method, args: Value) -> Outcome {
        let started_at = Timestamp::now();
        let context = Context::of_server(&self.name, &self.guard.registry, self.result_max_bytes);
        let answer = catch_unwind(AssertUnwindSafe(|| method.run(args, &context))).unwrap_or_else(|_| {
            error!(method = %method.spec().method, "a method panicked; this is a bug of the minion");
            Err(Failure::new(ErrorCode::Crashed, format!("{} panicked; the log of {} says where", method.spec().method, self.name)))
        });
        Outcome::ran(answer.into(), started_at, Timestamp::now())
    }

    async fn ask_jobs(&self, reader: Reader, asked: JobsCall, ask: Ask, waiter: Waiter<'_>) -> Result<Outcome, Failure> {
        let started_at = Timestamp::now();
        let answer = match asked {
            JobsCall::Status(id) => serde_json::to_value(self.jobs.status(&reader, &id).await?),
            JobsCall::List => serde_json::to_value(self.jobs.list(&reader).await),
            JobsCall::Logs(wanted) => serde_json::to_value(self.jobs.logs(&reader, &wanted, ask, self.reply_max_bytes()).await?),
            JobsCall::Wait(wanted) => serde_json::to_value(self.jobs.wait(&reader, &wanted, waiter, self.result_max_bytes).await?),
            JobsCall::Cancel(id) => serde_json::to_value(self.jobs.cancel(&reader, &id, ask).await?),
            JobsCall::Delete(id) => serde_json::to_value(self.jobs.delete(&reader, &id, ask).await?),
            JobsCall::Fence(call_id) => serde_json::to_value(self.jobs.fence(&reader, &call_id, ask).await?),
        };
        let answer = answer.map_err(|error| Failure::new(ErrorCode::Internal, format!("{}: writing a report: {error}", self.name)))?;
        Ok(Outcome::ran(Ok(answer).into(), started_at, Timestamp::now()))
    }

    fn job_call(&self, call: Call, ask: Ask) -> JobCall {
        let Envelope { call_id, caller, start_before, .. } = call.envelope;
        JobCall { ask, caller, call_id, start_before }
    }
}

#[cfg(test)]
mod tests;
