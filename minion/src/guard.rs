//! What every call passes before anything is done for it: decide → audit → in time? → look up → bind. It is one function, and nothing goes
//! round it. Two processes each have a guard of their own: the server, and the spawner, which believes nothing that the server says.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use common::format::VERSION;
use common::identity::MinionName;
use common::job::MinionJobId;
use common::method::MethodName;
use common::outcome::{ErrorCode, Failure};
use jiff::Timestamp;
use serde_json::Value;
use service::audit::AuditError;
use tracing::{debug, error, info};

use crate::acl::{Acl, Decision, Scope};
use crate::audit::{Entry, Log, Ruling};
use crate::call::{Call, Form};
use crate::jobs::MethodRun;
use crate::modules::{Method, Place, Registry};

/// Who asks, as far as a guard needs to know.
#[derive(Debug, Clone, Copy)]
pub struct Bearer<'a> {
    /// The name in his certificate; empty if that is not known.
    pub caller: &'a str,
    /// The SHA-256 of his certificate, in hex; likewise.
    pub fingerprint: &'a str,
    /// Where his connection comes from; the spawner sees none.
    pub address: Option<SocketAddr>,
    /// The job that submits the call, if one does.
    pub parent: Option<&'a MinionJobId>,
}

impl Bearer<'_> {
    /// Who is not known, or not believed.
    pub const UNKNOWN: Self = Self { caller: "", fingerprint: "", address: None, parent: None };
}

/// What a call comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
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
    /// A process runs it for item after item, and the caller waits.
    Map,
}

/// What a guard goes by.
#[derive(Debug, Clone)]
pub struct Guard {
    /// Who may do what.
    pub acl: Arc<Acl>,
    /// What can be called.
    pub registry: Arc<Registry>,
    /// The longest run of a synchronous call.
    pub call_time_max: Duration,
    /// The longest run of a job.
    pub job_time_max: Duration,
}

/// A call that has passed.
#[derive(Debug)]
pub struct Passed<'a> {
    /// What it comes to.
    pub way: Way,
    /// The method.
    pub method: &'a Method,
    /// Its arguments, as the method reads them.
    pub args: Value,
    /// For `jobs.*` and `worker.*`: whose.
    pub scope: Scope,
    /// As which user it runs; none: as the spawner.
    pub run_as: Option<String>,
}

impl Guard {
    /// Lets `call` pass, if its bearer may make it and it can be made.
    ///
    /// # Errors
    /// A refusal: nothing was done. It stands in the log.
    pub fn pass(&self, name: &MinionName, bearer: Bearer<'_>, call: &Call, audit: &impl Log) -> Result<Passed<'_>, Failure> {
        let decision = self.acl.decide(&call.envelope.caller, &call.method);
        let audited = audit.record(&entry(name, bearer, call, &decision));
        let Decision::Allow { rule, scope, run_as } = decision else { return Err(self.deny(name, bearer, call, audited)) };
        debug!(caller = bearer.caller, method = call.envelope.method, call_id = %call.envelope.call_id, rule, "call allowed");
        call.require_in_time(name, Timestamp::now())?;
        let method = self.registry.find(&call.method).ok_or_else(|| self.unknown(name, &call.method))?;
        let way = way(method, call.form)?;
        require_audited(audited, way)?;
        let args = call.bind(method)?;
        Ok(Passed { way, method, args, scope, run_as })
    }

    /// Writes down that what was to be a call is refused before rules could be asked, and gives the refusal back.
    #[must_use]
    pub fn refuse(&self, bearer: Bearer<'_>, method: &str, failure: Failure, audit: &impl Log) -> Failure {
        info!(caller = bearer.caller, peer = ?bearer.address, reason = failure.message, "request refused");
        let entry = Entry {
            at: Timestamp::now(),
            caller: bearer.caller,
            fingerprint: bearer.fingerprint,
            peer: bearer.address,
            method,
            args_sha256: None,
            decision: Ruling::Refuse,
            rule: Some(&failure.message),
            run_as: None,
            call_id: None,
            minion_job_id: None,
            submitted_by: bearer.parent,
        };
        log_unless_audited(audit.record(&entry));
        failure
    }

    /// For how long `call` may run; of a map, each of its items.
    #[must_use]
    pub fn limit(&self, call: &Call) -> Duration {
        let time_max = match call.form {
            Form::Call | Form::Map => self.call_time_max,
            Form::Job => self.job_time_max,
        };
        call.envelope.limit().map_or(time_max, |limit| limit.min(time_max))
    }

    /// What is run for `call`, which has passed.
    #[must_use]
    pub fn method_run(&self, call: &Call, passed: Passed<'_>) -> MethodRun {
        MethodRun {
            method: call.method.clone(),
            args: passed.args,
            call_id: call.envelope.call_id.clone(),
            caller: call.envelope.caller.clone(),
            limit: self.limit(call),
            run_as: passed.run_as,
            scope: passed.scope,
        }
    }

    /// A method that this version does not have; another may.
    fn unknown(&self, name: &MinionName, method: &MethodName) -> Failure {
        let failure = self.registry.unknown(method);
        let message = format!(
            "{name} runs minion {VERSION}, which has {}; if a newer version has it, upgrade {name}; `overlord {name} system.list_methods` lists what \
             it has now",
            failure.message
        );
        Failure { message, ..failure }
    }

    fn deny(&self, name: &MinionName, bearer: Bearer<'_>, call: &Call, audited: Result<(), AuditError>) -> Failure {
        let (caller, method) = (bearer.caller, &call.method);
        info!(caller, peer = ?bearer.address, %method, call_id = %call.envelope.call_id, "call denied");
        log_unless_audited(audited);
        let message = format!(
            "{name}: no rule lets {caller} call {method}; to allow it, put [[allow]] caller = \"{caller}\" methods = [\"{method}\"] into a .toml \
             file in {} there",
            self.acl.dir().display()
        );
        Failure::new(ErrorCode::Denied, message)
    }
}

/// What `method` comes to where it is called in this `form`.
fn way(method: &Method, form: Form) -> Result<Way, Failure> {
    match (method.place(), form) {
        (Place::Server, Form::Call) => Ok(Way::Here),
        (Place::Process, Form::Call) => Ok(Way::Run),
        (Place::Jobs, Form::Call) => Ok(Way::Jobs),
        (Place::Trust, Form::Call) => Ok(Way::Trust),
        (Place::Server | Place::Process, Form::Job) => Ok(Way::Start),
        (Place::Server | Place::Process, Form::Map) => Ok(Way::Map),
        (Place::Jobs | Place::Trust, Form::Map) => {
            let name = &method.spec().method;
            Err(Failure::new(ErrorCode::InvalidRequest, format!("{name} is about this host as a whole and cannot be mapped; call it")))
        }
        (place @ (Place::Jobs | Place::Trust), Form::Job) => {
            let (name, what) = (&method.spec().method, if place == Place::Jobs { "jobs" } else { "the server itself" });
            Err(Failure::new(ErrorCode::InvalidRequest, format!("{name} is about {what} and cannot be a job; call it without --async")))
        }
    }
}

/// The line for the audit log.
fn entry<'a>(name: &MinionName, bearer: Bearer<'a>, call: &'a Call, decision: &'a Decision) -> Entry<'a> {
    let (decision, rule, run_as) = match decision {
        Decision::Allow { rule, run_as, .. } => (Ruling::Allow, Some(rule.as_str()), run_as.as_deref()),
        Decision::Deny => (Ruling::Deny, None, None),
    };
    let args = serde_json::to_vec(&call.envelope.args).unwrap_or_default();
    let digest = ring::digest::digest(&ring::digest::SHA256, &args);
    Entry {
        at: Timestamp::now(),
        caller: bearer.caller,
        fingerprint: bearer.fingerprint,
        peer: bearer.address,
        method: &call.envelope.method,
        args_sha256: Some(digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()),
        decision,
        rule,
        run_as,
        call_id: Some(call.envelope.call_id.to_string()),
        minion_job_id: call.job(name),
        submitted_by: bearer.parent,
    }
}

/// Without its line in the audit log nothing is run. What the server answers itself goes on.
fn require_audited(audited: Result<(), AuditError>, way: Way) -> Result<(), Failure> {
    match (audited, way) {
        (Err(error), Way::Run | Way::Start | Way::Map) => {
            error!(%error, "a call is refused because it cannot be audited");
            Err(Failure::new(ErrorCode::Undelivered, format!("nothing is run that cannot be audited: {error}")))
        }
        (audited, Way::Here | Way::Jobs | Way::Trust | Way::Run | Way::Start | Way::Map) => {
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
