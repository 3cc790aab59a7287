//! Asking hosts how far a job is: whom to ask what, and what the answers mean. Only [`ask`] talks to hosts; the rest is pure.

use std::time::{Duration, Instant};

use common::identity::MinionName;
use common::job::{CallId, Event, HostRecord, HostState, JobRecord, LogLine, MinionJobId, News};
use common::outcome::{ErrorCode, Outcome, Verdict};
use common::protocol::{Arguments, JobProgress, JobReport};
use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde_json::json;

use super::JobError;
use crate::buckets::fan_out;
use crate::client::{NoAnswer, Sent, newer};
use crate::envelope::{Letter, Message, later};
use crate::fleet::{Fleet, Link, Stop, gossip};

/// A question to one host about one sending of a job.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Inquiry {
    pub(crate) host: MinionName,
    pub(crate) attempt: u32,
    pub(crate) question: Question,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Question {
    /// How far is it?
    Status(MinionJobId),
    /// Stop it.
    Cancel(MinionJobId),
    /// Forget it: it has ended.
    Delete(MinionJobId),
    /// Did it reach you? If not, it never may: the host refuses that call from now on.
    Fence(CallId),
}

/// A question, and the answer.
pub(crate) type Answered = (Inquiry, Result<JobReport, Unheard>);

/// Why a host did not say how far it is.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Unheard {
    /// It is not in the roster: that says nothing about the host.
    Unlisted,
    /// It gave no answer that says so.
    NoAnswer(NoAnswer),
}

impl Unheard {
    /// The reason, for a person.
    pub(crate) fn reason(&self, host: &MinionName) -> String {
        match self {
            Self::Unlisted => format!("{host} is no longer in hosts.toml, so it cannot be asked"),
            Self::NoAnswer(silence) => silence.reason().to_owned(),
        }
    }
}

impl Inquiry {
    /// The same, to have the job stopped. Where it may not have arrived, the fence does that.
    pub(crate) fn into_cancel(self) -> Self {
        let question = match self.question {
            Question::Status(id) => Question::Cancel(id),
            other => other,
        };
        Self { question, ..self }
    }

    fn method_and_args(&self) -> (&'static str, Arguments) {
        match &self.question {
            Question::Status(id) => ("jobs.status", Arguments::Json(json!({ "id": id }))),
            Question::Delete(id) => ("jobs.delete", Arguments::Json(json!({ "id": id }))),
            Question::Cancel(id) => ("jobs.cancel", Arguments::Json(json!({ "id": id }))),
            Question::Fence(call) => ("jobs.fence", Arguments::Json(json!({ "call_id": call }))),
        }
    }
}

/// Whom to ask: hosts that have not ended, or are lost. What is still being sent is left to its dispatcher while that lives.
pub(crate) fn inquiries(record: &JobRecord, is_dispatching: bool) -> Vec<Inquiry> {
    let is_open = |host: &HostRecord| !host.state.is_final() || host.state == HostState::Lost;
    let open = record.hosts.iter().filter(|(_, host)| is_open(host));
    let asked = open.filter_map(|(name, host)| {
        let question = match &host.minion_job_id {
            Some(id) => Question::Status(id.clone()),
            None if is_dispatching && host.state == HostState::Pending => return None,
            None => Question::Fence(CallId::new(record.header.job_id.clone(), host.attempt)),
        };
        Some(Inquiry { host: name.clone(), attempt: host.attempt, question })
    });
    asked.collect()
}

/// Asks all of them, each with a deadline of its own, and gives the answers to `each` as they come. A host that is not in the
/// roster cannot be asked. Of those whose turn has not come when it is `until`, nothing is said.
pub(crate) fn ask(
    fleet: &Fleet,
    link: &Link,
    inquiries: Vec<Inquiry>,
    until: Option<Instant>,
    mut each: impl FnMut(Answered),
) -> Result<(), JobError> {
    let roster = fleet.roster()?;
    let mut letters: Vec<(Inquiry, Letter)> = Vec::new();
    for inquiry in inquiries {
        let (method, args) = inquiry.method_and_args();
        let call_id = CallId::new(service::fresh_id(), 1);
        let message = Message { call_id, caller: link.caller.clone(), method: method.to_owned(), args, limit: None };
        match message.letters(roster.find(&inquiry.host)).pop() {
            Some(letter) => letters.push((inquiry, letter)),
            None => each((inquiry, Err(Unheard::Unlisted))),
        }
    }
    let within = fleet.config().poll_timeout;
    let work = |(inquiry, letter): (Inquiry, Letter)| async move {
        if until.is_some_and(|until| Instant::now() >= until) {
            return None;
        }
        let answer = link.client.ask::<Outcome>(&letter, within, &Sent::default()).await;
        let answer = answer.and_then(|outcome| result(outcome, "a job's report"));
        Some((inquiry, answer.map_err(|silence| Unheard::NoAnswer(silence.shortened()))))
    };
    fan_out(letters, fleet.config().forks, work, |arrivals| arrivals.iter().flatten().for_each(each))?;
    if until.is_none_or(|until| Instant::now() < until) {
        gossip::carry_on(fleet, link, &Stop::new(), until);
    }
    Ok(())
}

/// The answer, unless it is none to what was asked of the job of `record`: a host must not make up how far it is by what it says of another.
pub(crate) fn checked(record: &JobRecord, (inquiry, answer): Answered) -> Answered {
    let problem = answer.as_ref().ok().and_then(|report| problem_of(record, &inquiry, report));
    match problem {
        Some(problem) => (inquiry, Err(Unheard::NoAnswer(NoAnswer::Silent(problem)))),
        None => (inquiry, answer),
    }
}

fn problem_of(record: &JobRecord, inquiry: &Inquiry, report: &JobReport) -> Option<String> {
    let call_id = CallId::new(record.header.job_id.clone(), inquiry.attempt);
    if report.call_id != call_id || report.minion_job_id != MinionJobId::derive(&inquiry.host, &record.header.caller, &call_id) {
        return Some("it answered about another job".to_owned());
    }
    match &report.progress {
        JobProgress::Ended(_) | JobProgress::Going { state: HostState::Queued | HostState::Running, .. } => None,
        JobProgress::Going { state, .. } => Some(format!("it says that the job is {state}, and not how it came to that")),
    }
}

/// The result within the answer to a question about a job; `what` it should be is told where it is not.
pub(super) fn result<R: DeserializeOwned>(outcome: Outcome, what: &str) -> Result<R, NoAnswer> {
    match outcome.verdict {
        Verdict::Ok { result } => R::deserialize(&result).map_err(|error| {
            let newer = newer::unknown_state(&result);
            NoAnswer::Silent(newer.unwrap_or_else(|| format!("it answered something that is not {what}: {error}")))
        }),
        Verdict::Failed { error }
        | Verdict::Denied { error }
        | Verdict::Cancelled { error }
        | Verdict::TimedOut { error }
        | Verdict::Undelivered { error }
        | Verdict::Lost { error } => Err(NoAnswer::Refused(error)),
    }
}

/// What the answer says that is new. `record` is told of it, too.
pub(crate) fn news(record: &mut JobRecord, (inquiry, answer): &Answered, lost_after: Duration) -> Vec<LogLine> {
    let now = Timestamp::now();
    let mut lines = Vec::new();
    let Some(before) = record.hosts.get(&inquiry.host).cloned() else { return lines };
    for news in meaning(record, &before, inquiry, answer, (now, lost_after)) {
        let event = Event::Heard { host: inquiry.host.clone(), attempt: inquiry.attempt, news };
        let line = LogLine { at: now, event };
        let known = record.hosts.get(&inquiry.host).cloned();
        record.apply(&line);
        if record.hosts.get(&inquiry.host).zip(known).is_some_and(|(now, known)| is_to_be_kept(&known, now)) {
            lines.push(line);
        }
    }
    lines
}

/// Whether what is known now is worth a line in the log. A job that is waited for long reports more often than that is.
fn is_to_be_kept(before: &HostRecord, now: &HostRecord) -> bool {
    let is_far = now.progress.as_ref().is_some_and(|progress| progress.is_news_after(before.progress.as_ref()));
    is_far || HostRecord { progress: before.progress.clone(), ..now.clone() } != *before
}

fn meaning(
    record: &JobRecord,
    host: &HostRecord,
    inquiry: &Inquiry,
    answer: &Result<JobReport, Unheard>,
    (now, lost_after): (Timestamp, Duration),
) -> Vec<News> {
    let lost = |reason: String| vec![News::Ended(Outcome::not_run(Verdict::lost(reason), now))];
    match answer {
        Ok(report) => heard(host, report),
        Err(Unheard::NoAnswer(silence)) if silence.is_refusal(ErrorCode::UnknownJob) => {
            let (name, job) = (&inquiry.host, &record.header.job_id);
            lost(format!(
                "{name} does not know the job {job} any more: it has given it up by its own retention, its state was lost, or it was \
                 installed anew"
            ))
        }
        // It says so itself, and why: there is nothing to wait for.
        Err(Unheard::NoAnswer(NoAnswer::Refused(failure))) if failure.is(ErrorCode::Lost) => {
            vec![News::Ended(Outcome::not_run(Verdict::Lost { error: failure.clone() }, now))]
        }
        // Listed again, it says itself what became of the job.
        Err(unlisted @ Unheard::Unlisted) => missed(host, "could not be asked", &unlisted.reason(&inquiry.host), (now, lost_after)),
        Err(Unheard::NoAnswer(silence)) => {
            let what = match silence {
                NoAnswer::NotSent(_) | NoAnswer::TooLarge(_) => "could not be asked",
                NoAnswer::Silent(_) => "has not answered",
                NoAnswer::Refused(_) => "has refused to say",
            };
            missed(host, what, silence.reason(), (now, lost_after))
        }
    }
}

fn heard(host: &HostRecord, report: &JobReport) -> Vec<News> {
    let state = report.progress.state();
    let mut news = Vec::new();
    // What a fence has just stopped was never accepted.
    if host.minion_job_id.is_none() && state != HostState::Undelivered {
        let state = if state.is_final() { HostState::Queued } else { state };
        news.push(News::Accepted { minion_job_id: report.minion_job_id.clone(), state });
    }
    news.push(match &report.progress {
        JobProgress::Ended(outcome) => News::Ended(outcome.clone()),
        JobProgress::Going { state, started_at, progress } => {
            News::Going { state: *state, started_at: *started_at, progress: progress.clone() }
        }
    });
    news
}

/// The host did not say. After `lost_after` of that, the job is lost there, until the host comes back.
fn missed(host: &HostRecord, what: &str, reason: &str, (now, lost_after): (Timestamp, Duration)) -> Vec<News> {
    match &host.unreachable {
        Some(contact) if later(contact.since, lost_after) <= now => {
            let since = contact.since.strftime("%Y-%m-%dT%H:%M:%SZ");
            vec![News::GivenUp { reason: format!("nothing was heard of the job since {since}; at last the host {what}: {reason}") }]
        }
        _ => vec![News::Unreachable { reason: reason.to_owned() }],
    }
}
