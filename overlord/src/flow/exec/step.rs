//! One step on one host: a job that is sent, waited for and believed only if it is about that very call. What may have been sent and was not answered is
//! asked after, and never sent again: only the host can say that it never began.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use common::identity::MinionName;
use common::job::{CallId, HostState, MinionJobId};
use common::method::{Catalogue, MethodName, MethodSpec};
use common::outcome::{ErrorCode, Failure, Outcome, Verdict};
use common::protocol::{ASYNC_PREFIX, Accepted, Arguments, JobProgress, JobReport, JobsWaited};
use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::calls::Together;
use super::patience::{Patience, Silence, Waiting};
use crate::client::{Line, NoAnswer, Sent};
use crate::envelope::{Letter, Message};
use crate::fleet::{ANSWER_GRACE, Link};
use crate::hosts::Host;

/// How long a host may take to accept a step, or to say something that it knows.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// How long it is asked to wait for a step's end, in one question.
const WAIT_AT_ONCE: Duration = Duration::from_secs(20);
/// The pause before a host that did not answer is asked again, at first; each time twice as long.
pub(super) const ASK_AGAIN: Duration = Duration::from_millis(100);
pub(super) const ASK_AGAIN_LONGEST: Duration = Duration::from_secs(2);
/// The method by which resident workers work.
const WORKER_RUN: &str = "worker.run";

/// What is to be done on one host.
pub(super) struct Errand {
    pub(super) host: Host,
    pub(super) call_id: CallId,
    pub(super) method: MethodName,
    /// Or why there are none.
    pub(super) args: Result<Value, String>,
    pub(super) limit: Duration,
    pub(super) lost_after: Duration,
    /// The call of a job that was lost and may still run: its end comes first.
    pub(super) behind: Option<CallId>,
}

/// Whether it is sent now, or may have been.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Work {
    Send,
    Adopt,
}

/// The way to hosts: connections that are kept, and which host has which method.
pub(super) struct Steps<'l> {
    pub(super) link: &'l Link,
    pub(super) catalogue: Catalogue,
    pub(super) lines: RefCell<HashMap<MinionName, Vec<Line>>>,
    pub(super) capable: RefCell<HashSet<(MinionName, String)>>,
    pub(super) pace: &'l Pace,
}

/// How many calls of a method are sent together; one, unless it is known to be quick.
pub(super) type Pace = RefCell<HashMap<MethodName, Together>>;

impl Errand {
    pub(super) fn new(host: Host, call_id: CallId, method: &MethodName, limit: Duration, lost_after: Duration) -> Self {
        Self { host, call_id, method: method.clone(), args: Ok(Value::Null), limit, lost_after, behind: None }
    }
}

/// The outcome of a step on a host that cannot be found: `lost` if it may have been sent, and else `undelivered`.
pub(super) fn gone(host: &MinionName, state: HostState) -> Outcome {
    match state {
        HostState::Lost => not_run(Verdict::lost(format!("{host} is no longer in hosts.toml, so it cannot be asked what became of it"))),
        _ => not_run(Verdict::undelivered(format!("{host} is no longer in hosts.toml"))),
    }
}

/// The outcome of a call that was under way when whoever ran the flow died.
pub(super) fn orphaned() -> Outcome {
    not_run(Verdict::lost(
        "it was a call, and who ran the flow died while it was under way: it may have run (`run = \"job\"` outlives that)",
    ))
}

pub(super) fn not_run(verdict: Verdict) -> Outcome {
    Outcome::not_run(verdict, Timestamp::now())
}

impl<'l> Steps<'l> {
    pub(super) fn new(link: &'l Link, pace: &'l Pace) -> Self {
        Self { link, catalogue: Catalogue::builtin(), lines: RefCell::default(), capable: RefCell::default(), pace }
    }

    /// What becomes of it. It always comes back: a host that does not answer has lost it in the end.
    pub(super) async fn carry(&self, errand: Errand, work: Work) -> Outcome {
        let line = self.lines.borrow_mut().get_mut(&errand.host.name).and_then(Vec::pop).unwrap_or_default();
        let outcome = self.carry_by(&line, &errand, work).await;
        self.lines.borrow_mut().entry(errand.host.name.clone()).or_default().push(line);
        outcome
    }

    async fn carry_by(&self, line: &Line, errand: &Errand, work: Work) -> Outcome {
        if work == Work::Adopt {
            return self.ask_after(line, errand).await;
        }
        let args = match self.arguments(line, errand).await {
            Ok(args) => args,
            Err(verdict) => return not_run(verdict),
        };
        if let Some(behind) = &errand.behind {
            match self.see_it_end(line, errand, behind).await {
                Ok(true) => {}
                // There is nothing to undo then.
                Ok(false) => return not_run(Verdict::Ok { result: Value::from("it had never begun") }),
                Err(verdict) => return not_run(verdict),
            }
        }
        let letter =
            self.letter(errand, format!("{ASYNC_PREFIX}{}", errand.method), Arguments::Json(args), Some((&errand.call_id, errand.limit)));
        let Some(letter) = letter else { return gone(&errand.host.name, HostState::Undelivered) };
        match self.link.client.ask_by::<Accepted>(line, &letter, ANSWER_WITHIN, &Sent::default()).await {
            Ok(accepted) if accepted.minion_job_id == letter.minion_job_id() => self.wait(line, errand, &accepted.minion_job_id).await,
            Ok(_) | Err(NoAnswer::Silent(_)) => self.ask_after(line, errand).await,
            // It failed on the way, or does not know how far it came.
            Err(NoAnswer::Refused(failure)) if failure.is(ErrorCode::Internal) || failure.is(ErrorCode::Lost) => {
                self.ask_after(line, errand).await
            }
            Err(NoAnswer::Refused(failure)) if failure.is(ErrorCode::UnknownMethod) => not_run(Verdict::Undelivered { error: failure }),
            Err(no_answer) => not_run(no_answer.into_verdict()),
        }
    }

    /// The arguments of a step that its host has the method for.
    pub(super) async fn arguments(&self, line: &Line, errand: &Errand) -> Result<Value, Verdict> {
        let args = errand.args.clone().map_err(|problem| Verdict::Failed { error: Failure::of_kind("flow_value", problem) })?;
        self.look_for_method(line, errand, &args).await.map(|()| args)
    }

    /// Stops a job that was lost, if it still runs: what undoes it must not run beside it. `false` if it had never begun, and never will. What cannot be
    /// learnt leaves the undoing for later.
    async fn see_it_end(&self, line: &Line, errand: &Errand, call_id: &CallId) -> Result<bool, Verdict> {
        let lost = Errand {
            call_id: call_id.clone(),
            args: Ok(Value::Null),
            behind: None,
            host: errand.host.clone(),
            method: errand.method.clone(),
            ..*errand
        };
        let mut silence = Silence::new(errand.lost_after);
        loop {
            let told = self.question::<JobReport>(line, errand, "jobs.fence", json!({ "call_id": call_id }), ANSWER_WITHIN).await;
            let problem = match told {
                Ok(report) => match self.end_of(&lost, &report) {
                    Ok(Some(outcome)) => return Ok(outcome.verdict.state() != HostState::Undelivered),
                    Ok(None) => {
                        self.stop(line, errand, &report.minion_job_id).await;
                        "what is to be undone has not been stopped yet".to_owned()
                    }
                    Err(problem) => problem,
                },
                Err(NoAnswer::Refused(failure)) if failure.is(ErrorCode::Lost) => return Ok(true),
                Err(no_answer) => no_answer.reason().to_owned(),
            };
            if silence.goes_on(&problem).await.is_some() {
                return Err(Verdict::undelivered(problem));
            }
        }
    }

    /// A letter to the errand's host; of a step its call id and its limit.
    pub(super) fn letter(&self, errand: &Errand, method: String, args: Arguments, step: Option<(&CallId, Duration)>) -> Option<Letter> {
        let call_id = step.map_or_else(|| CallId::new(service::fresh_id(), 1), |(call_id, _)| call_id.clone());
        let message = Message { call_id, caller: self.link.caller.clone(), method, args, limit: step.map(|(_, limit)| limit) };
        message.letters([&errand.host]).pop()
    }

    async fn question<R: DeserializeOwned>(
        &self,
        line: &Line,
        errand: &Errand,
        method: &str,
        args: Value,
        within: Duration,
    ) -> Result<R, NoAnswer> {
        let letter = self.letter(errand, method.to_owned(), Arguments::Json(args), None);
        let letter = letter.ok_or_else(|| NoAnswer::NotSent("there is nobody to ask".to_owned()))?;
        let outcome = self.link.client.ask_by::<Outcome>(line, &letter, within, &Sent::default()).await?;
        match outcome.verdict {
            Verdict::Ok { result } => serde_json::from_value(result)
                .map_err(|error| NoAnswer::Silent(format!("it answered something else than was asked: {error}"))),
            other => Err(other.error().map_or_else(|| NoAnswer::Silent(String::new()), |error| NoAnswer::Refused(error.clone()))),
        }
    }

    /// Sees to it that the host advertises the method, and of a worker that it has that: once for each host and method.
    async fn look_for_method(&self, line: &Line, errand: &Errand, args: &Value) -> Result<(), Verdict> {
        let worker = (errand.method.as_str() == WORKER_RUN).then(|| args.get("worker").or_else(|| args.get(0))?.as_str()).flatten();
        if worker.is_none() && self.catalogue.find(&errand.method).is_some() {
            return Ok(());
        }
        let key = (errand.host.name.clone(), worker.map_or_else(|| errand.method.to_string(), |worker| format!("{WORKER_RUN} {worker}")));
        if self.capable.borrow().contains(&key) {
            return Ok(());
        }
        let answer = match worker {
            Some(worker) => self.question::<Value>(line, errand, "worker.list", json!({ "worker": worker }), ANSWER_WITHIN).await.map(drop),
            None => {
                let method = json!({ "method": errand.method });
                match self.question::<MethodSpec>(line, errand, "system.describe", method, ANSWER_WITHIN).await {
                    Ok(spec) => spec
                        .bind(&Arguments::Json(args.clone()))
                        .map(drop)
                        .map_err(|error| NoAnswer::Refused(Failure::new(ErrorCode::InvalidArguments, error.to_string()))),
                    Err(no_answer) => Err(no_answer),
                }
            }
        };
        match answer {
            // Who may not ask is told by the call itself.
            Ok(()) => drop(self.capable.borrow_mut().insert(key)),
            Err(NoAnswer::Refused(failure)) if failure.is(ErrorCode::Denied) => {}
            Err(NoAnswer::Refused(failure)) if failure.is(ErrorCode::InvalidArguments) && worker.is_none() => {
                return Err(Verdict::Failed { error: failure });
            }
            Err(NoAnswer::Refused(failure)) => {
                return Err(Verdict::Undelivered { error: Failure { code: ErrorCode::UnknownMethod as i32, ..failure } });
            }
            Err(NoAnswer::NotSent(reason) | NoAnswer::Silent(reason) | NoAnswer::TooLarge(reason)) => {
                return Err(Verdict::undelivered(reason));
            }
        }
        Ok(())
    }

    /// Waits for the end of a step that the host has.
    async fn wait(&self, line: &Line, errand: &Errand, id: &MinionJobId) -> Outcome {
        // Of what is short it is heard sooner that it does not end.
        let at_once = WAIT_AT_ONCE.min(errand.limit.saturating_add(errand.lost_after));
        let wait_ms = u64::try_from(at_once.as_millis()).unwrap_or(u64::MAX);
        let args = json!({ "ids": [id], "wait_ms": wait_ms });
        let (mut silence, mut patience) = (Silence::new(errand.lost_after), Patience::new(errand));
        loop {
            let asked_at = Instant::now();
            let waited = self.question::<JobsWaited>(line, errand, "jobs.wait", args.clone(), at_once + ANSWER_GRACE).await;
            match waited.and_then(|waited| waited.jobs.into_iter().next().ok_or_else(|| NoAnswer::Silent("it told of no job".to_owned()))) {
                Ok(report) => match self.end_of(errand, &report) {
                    Ok(Some(outcome)) => return patience.judged(outcome),
                    Ok(None) => {
                        silence = Silence::new(errand.lost_after);
                        match patience.after(report.progress.state()) {
                            Waiting::On => {}
                            Waiting::Stop => self.stop(line, errand, id).await,
                            Waiting::Over(lost) => return *lost,
                        }
                        // It was asked to wait, and did not.
                        if asked_at.elapsed() < ASK_AGAIN_LONGEST {
                            tokio::time::sleep(ASK_AGAIN).await;
                        }
                    }
                    Err(problem) => {
                        if let Some(lost) = silence.goes_on(&problem).await {
                            return lost;
                        }
                    }
                },
                Err(NoAnswer::Refused(failure)) if failure.is(ErrorCode::UnknownJob) || failure.is(ErrorCode::Lost) => {
                    return not_run(Verdict::lost(failure.message));
                }
                Err(no_answer) => {
                    if let Some(lost) = silence.goes_on(no_answer.reason()).await {
                        return lost;
                    }
                }
            }
        }
    }

    /// Asks the host what became of a step that it may have been sent: if it has not, it never will have it.
    async fn ask_after(&self, line: &Line, errand: &Errand) -> Outcome {
        let args = json!({ "call_id": errand.call_id });
        let mut silence = Silence::new(errand.lost_after);
        loop {
            match self.question::<JobReport>(line, errand, "jobs.fence", args.clone(), ANSWER_WITHIN).await {
                Ok(report) => {
                    let id = report.minion_job_id.clone();
                    match self.end_of(errand, &report) {
                        Ok(Some(outcome)) => return fenced(outcome),
                        Ok(None) => return self.wait(line, errand, &id).await,
                        Err(problem) => {
                            if let Some(lost) = silence.goes_on(&problem).await {
                                return lost;
                            }
                        }
                    }
                }
                Err(NoAnswer::Refused(failure)) if failure.is(ErrorCode::Lost) => return not_run(Verdict::lost(failure.message)),
                Err(no_answer) => {
                    if let Some(lost) = silence.goes_on(no_answer.reason()).await {
                        return lost;
                    }
                }
            }
        }
    }

    /// How it ended, if it has. A host must not make that up by what it says of another job.
    fn end_of(&self, errand: &Errand, report: &JobReport) -> Result<Option<Outcome>, String> {
        let id = MinionJobId::derive(&errand.host.name, &self.link.caller, &errand.call_id);
        if report.call_id != errand.call_id || report.minion_job_id != id {
            return Err("it answered about another job".to_owned());
        }
        match &report.progress {
            JobProgress::Ended(outcome) => Ok(Some(outcome.clone())),
            JobProgress::Going { state: HostState::Queued | HostState::Running, .. } => Ok(None),
            JobProgress::Going { state, .. } => Err(format!("it says that the step is {state}, and not how it came to that")),
        }
    }

    /// Has the host stop it, if it can be asked now.
    async fn stop(&self, line: &Line, errand: &Errand, id: &MinionJobId) {
        let _learnt_by_its_end = self.question::<Value>(line, errand, "jobs.cancel", json!({ "id": id }), ANSWER_WITHIN).await;
    }

    /// Has the host stop it. That it could not be told is found by waiting for its end.
    pub(super) async fn cancel(&self, errand: &Errand) {
        let line = Line::default();
        let id = MinionJobId::derive(&errand.host.name, &self.link.caller, &errand.call_id);
        let mut silence = Silence::new(errand.lost_after);
        loop {
            let told = self.question::<Value>(&line, errand, "jobs.cancel", json!({ "id": id }), ANSWER_WITHIN).await;
            match told {
                Ok(_) => return,
                // It may be on its way there.
                Err(no_answer) => {
                    if silence.goes_on(no_answer.reason()).await.is_some() {
                        return;
                    }
                }
            }
        }
    }
}

/// A step that a fence has kept from ever beginning was never sent, whoever asks.
pub(super) fn fenced(outcome: Outcome) -> Outcome {
    match outcome.verdict {
        Verdict::Undelivered { error } => {
            let error = Failure { code: ErrorCode::Fenced as i32, ..error };
            Outcome { verdict: Verdict::Undelivered { error }, ..outcome }
        }
        _ => outcome,
    }
}
