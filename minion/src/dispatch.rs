//! The door. Every request of every connection comes through its [`Reception::enter`], and nothing reaches a method in any other way:
//! read → decide → audit → in time? → look up → bind → run.

#[doc(hidden)]
pub mod fuzzing;
mod read;
mod revocations;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use certs::trust::MinionTrust;
use common::identity::MinionName;
use common::outcome::{ErrorCode, Failure, Outcome};
use common::protocol::Accepted;
use common::protocol::certs::REVOCATIONS_HEADER;
use http::{HeaderMap, HeaderName, HeaderValue};
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use serde_json::Value;
use service::audit::{Audit, AuditError};
use service::{Knock, Reception, Visitor};
use tracing::{debug, error, info};

use crate::acl::{Acl, Decision, Scope};
use crate::audit::{Entry, Ruling};
use crate::caller::Caller;
use crate::config::Limits;
use crate::jobs::{JobCall, Jobs, MethodRun, Reader};
use crate::modules::{Context, JobsCall, Method, Place, Registry, RevocationsAsked};
use read::{Call, Form};

/// How far ahead a call's start-before may be. Until then a job cannot be given up; callers write five minutes, and clocks differ.
const START_AHEAD_MAX: SignedDuration = SignedDuration::from_hours(24);

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
    acl: Arc<Acl>,
    audit: Arc<Audit>,
    registry: Arc<Registry>,
    jobs: Arc<Jobs>,
    trust: Arc<MinionTrust>,
    call_time_max: Duration,
    job_time_max: Duration,
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

/// What running a call comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// The server answers it.
    Here,
    /// The jobs answer it.
    Jobs,
    /// The server's trust answers it.
    Trust,
    /// A process runs it, and the caller waits.
    Run,
    /// It becomes a job.
    Start,
}

impl Door {
    /// The door of the minion `name`. Doors of several minions may share their parts.
    #[must_use]
    pub fn new(name: MinionName, parts: Parts, limits: &Limits) -> Self {
        let Limits { call_time_max, job_time_max, result_max_bytes, .. } = *limits;
        let Parts { acl, audit, registry, jobs, trust } = parts;
        Self { name, acl, audit, registry, jobs, trust, call_time_max, job_time_max, result_max_bytes }
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
        let call = match read::read(&self.name, caller.name(), knock) {
            Ok(call) => call,
            Err(failure) => return Err(self.refuse(caller, knock, failure)),
        };
        let decision = self.acl.decide(caller.name(), &call.method);
        let audited = self.audit.record(&call.entry(&self.name, caller, &decision));
        let Decision::Allow { rule, scope } = decision else { return Err(self.deny(caller, &call, audited)) };
        debug!(caller = %caller.name(), method = call.envelope.method, call_id = %call.envelope.call_id, rule, "call allowed");
        self.require_in_time(&call)?;
        let method = self.registry.find(&call.method).ok_or_else(|| self.registry.unknown(&call.method))?;
        let way = way(method, call.form)?;
        require_audited(audited, way)?;
        let args = bind(method, &call)?;
        match way {
            Way::Here => Ok(Reply::Outcome(self.answer(method, args))),
            Way::Jobs => self.ask_jobs(caller, scope, JobsCall::read(method, args)?).await.map(Reply::Outcome),
            Way::Trust => self.revocations(caller, RevocationsAsked::read(method, args)?).await.map(Reply::Outcome),
            Way::Run => self.jobs.run(self.method_run(call, args, self.call_time_max)).await.map(Reply::Outcome),
            Way::Start => {
                let (text, start_before) = (call.text.clone(), call.envelope.start_before);
                let run = self.method_run(call, args, self.job_time_max);
                self.jobs.start(&self.name, JobCall { run, text, start_before }).await.map(Reply::Accepted)
            }
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
    fn refuse(&self, caller: &Caller, knock: Knock<'_>, failure: Failure) -> Failure {
        info!(caller = %caller.name(), peer = %caller.address(), reason = failure.message, "request refused");
        let entry = Entry {
            at: Timestamp::now(),
            caller: caller.name().as_str(),
            fingerprint: caller.fingerprint(),
            peer: caller.address(),
            method: &read::method_shown(knock),
            args_sha256: None,
            decision: Ruling::Refuse,
            rule: Some(&failure.message),
            call_id: None,
            minion_job_id: None,
        };
        log_unless_audited(self.audit.record(&entry));
        failure
    }

    fn deny(&self, caller: &Caller, call: &Call, audited: Result<(), AuditError>) -> Failure {
        let (name, method) = (caller.name(), &call.method);
        info!(caller = %name, peer = %caller.address(), %method, call_id = %call.envelope.call_id, "call denied");
        log_unless_audited(audited);
        let message = format!(
            "{}: no rule lets {name} call {method}; to allow it, put [[allow]] caller = \"{name}\" methods = [\"{method}\"] into a .toml file in {} there",
            self.name,
            self.acl.dir().display()
        );
        Failure::new(ErrorCode::Denied, message)
    }

    fn require_in_time(&self, call: &Call) -> Result<(), Failure> {
        let (now, start_before) = (Timestamp::now(), call.envelope.start_before);
        if start_before.duration_since(now) > START_AHEAD_MAX {
            let message = format!(
                "{}: its clock says {now}, and by its caller's clock the call may start until {start_before}, more than a day later; \
                 nothing was started; set the clocks right",
                self.name
            );
            return Err(Failure::new(ErrorCode::TooLate, message));
        }
        if now < start_before {
            return Ok(());
        }
        let message = format!(
            "{}: too late: its clock says {now}, and by its caller's clock the call was to start before {start_before}; \
             nothing was started; set the clocks right, or call again",
            self.name
        );
        Err(Failure::new(ErrorCode::TooLate, message))
    }

    fn answer(&self, method: &Method, args: Value) -> Outcome {
        let started_at = Some(Timestamp::now());
        let context = Context { minion: &self.name, registry: &self.registry, result_max_bytes: self.result_max_bytes };
        let answer = catch_unwind(AssertUnwindSafe(|| method.run(args, &context))).unwrap_or_else(|_| {
            error!(method = %method.spec().method, "a method panicked; this is a bug of the minion");
            Err(Failure::new(ErrorCode::Crashed, format!("{} panicked; the log of {} says where", method.spec().method, self.name)))
        });
        Outcome { verdict: answer.into(), started_at, finished_at: Some(Timestamp::now()) }
    }

    async fn ask_jobs(&self, caller: &Caller, scope: Scope, asked: JobsCall) -> Result<Outcome, Failure> {
        let started_at = Some(Timestamp::now());
        let reader = Reader { caller: caller.name().clone(), scope };
        let answer = match asked {
            JobsCall::Status(id) => serde_json::to_value(self.jobs.status(&reader, &id).await?),
            JobsCall::List => serde_json::to_value(self.jobs.list(&reader).await),
            JobsCall::Logs(wanted) => serde_json::to_value(self.jobs.logs(&reader, &wanted, self.reply_max_bytes()).await?),
            JobsCall::Cancel(id) => serde_json::to_value(self.jobs.cancel(&reader, &id).await?),
            JobsCall::Delete(id) => serde_json::to_value(self.jobs.delete(&reader, &id).await?),
            JobsCall::Fence(call_id) => serde_json::to_value(self.jobs.fence(&self.name, &reader, &call_id).await?),
        };
        let answer = answer.map_err(|error| Failure::new(ErrorCode::Internal, format!("{}: writing a report: {error}", self.name)))?;
        Ok(Outcome { verdict: Ok(answer).into(), started_at, finished_at: Some(Timestamp::now()) })
    }

    fn method_run(&self, call: Call, args: Value, time_max: Duration) -> MethodRun {
        let limit = call.envelope.limit().map_or(time_max, |limit| limit.min(time_max));
        MethodRun { method: call.method, args, call_id: call.envelope.call_id, caller: call.envelope.caller, limit }
    }
}

fn way(method: &Method, form: Form) -> Result<Way, Failure> {
    match (method.place(), form) {
        (Place::Server, Form::Call) => Ok(Way::Here),
        (Place::Process, Form::Call) => Ok(Way::Run),
        (Place::Jobs, Form::Call) => Ok(Way::Jobs),
        (Place::Trust, Form::Call) => Ok(Way::Trust),
        (Place::Server | Place::Process, Form::Job) => Ok(Way::Start),
        (place @ (Place::Jobs | Place::Trust), Form::Job) => {
            let (name, what) = (&method.spec().method, if place == Place::Jobs { "jobs" } else { "the server itself" });
            Err(Failure::new(ErrorCode::InvalidRequest, format!("{name} is about {what} and cannot be a job; call it without --async")))
        }
    }
}

/// Without its line in the audit log nothing is run. What the server answers itself goes on.
fn require_audited(audited: Result<(), AuditError>, way: Way) -> Result<(), Failure> {
    match (audited, way) {
        (Err(error), Way::Run | Way::Start) => {
            error!(%error, "a call is refused because it cannot be audited");
            Err(Failure::new(ErrorCode::Undelivered, format!("nothing is run that cannot be audited: {error}")))
        }
        (audited, Way::Here | Way::Jobs | Way::Trust | Way::Run | Way::Start) => {
            log_unless_audited(audited);
            Ok(())
        }
    }
}

fn log_unless_audited(audited: Result<(), AuditError>) {
    if let Err(error) = audited {
        error!(%error, "a decision is not in the audit log");
    }
}

fn bind(method: &Method, call: &Call) -> Result<Value, Failure> {
    let bound = method.spec().bind(&call.envelope.args);
    let args = bound.map_err(|error| Failure::new(ErrorCode::InvalidArguments, error.to_string()))?;
    method.check(&args).map(|()| args)
}

#[cfg(test)]
mod tests;
