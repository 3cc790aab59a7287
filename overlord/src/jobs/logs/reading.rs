//! One host's output, piece by piece, from its beginning to the end that is wanted. A host may lie about all of it: every loop here makes
//! progress, pauses, or ends.

use std::time::{Duration, Instant};

use common::job::{CallId, HostState};
use common::outcome::{ErrorCode, Outcome};
use common::protocol::{Arguments, JobLogs, LOGS_WAIT_MAX_MS, Stream, logs_chunk_bytes};
use serde_json::json;
use tokio::time::sleep;

use super::answer::{Answer, Asked};
use super::{Follow, LogEnd, LogEvent, Sink, Source};
use crate::client::{Client, NoAnswer, Sent};
use crate::envelope::{Letter, Message};
use crate::fleet::{Fleet, LinkError};
use crate::jobs::{Job, log, poll};

/// The most that is asked for of each stream at once.
const ASKED_MAX_BYTES: u32 = 64 * 1024;
/// The largest answer to that that is read: each byte may become six, and there is something around them.
const ANSWER_MAX_BYTES: u32 = 2 * 6 * ASKED_MAX_BYTES + 64 * 1024;
/// What a host gives of a stream at once at least, if there is so much; and how many more answers than that makes are taken.
const GIVEN_MIN_BYTES: u32 = 4096;
const ANSWERS_SPARE: u64 = 8;
/// The pause before a host is asked for more that has told all it has: a job that writes a little all the time makes no more calls than that.
const CAUGHT_UP_PAUSE: Duration = Duration::from_millis(200);
/// The pause before a host is asked again that the job has not reached yet.
const DELIVERY_PAUSE: Duration = Duration::from_millis(500);
/// How soon a host that does not answer is asked again, at first; each time it takes half as long again.
const AWAY_FIRST: Duration = Duration::from_millis(200);
/// How late, at last.
const AWAY_LONGEST: Duration = Duration::from_secs(5);

/// Since when a host does not answer, and how long it is given now.
#[derive(Clone, Copy)]
struct Away {
    since: Instant,
    pause: Duration,
}

/// How much of each stream is wanted, and in how many more answers.
#[derive(Clone, Copy)]
struct Goal {
    sizes_bytes: [u64; 2],
    answers_left: u64,
}

/// The reading of one host.
pub(super) struct Reading<'a> {
    job: &'a Job,
    client: &'a Client,
    source: Source,
    follow: Follow,
    sink: &'a Sink,
    asked: Asked,
    logs_max_bytes: u64,
    away: Option<Away>,
    goal: Option<Goal>,
}

/// What hosts are asked for their output with.
pub(super) fn client(fleet: &Fleet) -> Result<Client, LinkError> {
    Ok(fleet.link()?.client.taking_at_most(ANSWER_MAX_BYTES))
}

impl<'a> Reading<'a> {
    pub(super) fn new(job: &'a Job, client: &'a Client, source: Source, follow: Follow, sink: &'a Sink) -> Self {
        let config = job.fleet.config();
        let answer_max_bytes = usize::try_from(config.result_max_bytes).unwrap_or(usize::MAX);
        let asked = Asked {
            job: job.id.clone(),
            minion_job_id: source.minion_job_id.clone(),
            offsets: [0, 0],
            max_bytes: logs_chunk_bytes(answer_max_bytes).min(ASKED_MAX_BYTES),
        };
        Self { job, client, source, follow, sink, asked, logs_max_bytes: config.logs_max_bytes, away: None, goal: None }
    }

    /// Reads, and gives how far it came.
    pub(super) async fn read(mut self) -> LogEnd {
        loop {
            let was_dispatching = self.source.is_unconfirmed && self.is_dispatching().await;
            let (end, pause) = match self.ask().await {
                Ok(logs) => match self.asked.check(logs) {
                    Ok(answer) => self.take(answer).await,
                    Err(problem) => (Some(LogEnd::Unread(problem)), Duration::ZERO),
                },
                Err(silence) => self.miss(&silence, was_dispatching),
            };
            match end {
                Some(end) => return end,
                None => sleep(pause).await,
            }
        }
    }

    /// Gives on what has come. The end, if that is all, or else how long to wait before more is asked for.
    async fn take(&mut self, mut answer: Answer) -> (Option<LogEnd>, Duration) {
        (self.away, self.source.is_unconfirmed) = (None, false);
        self.asked.offsets = answer.offsets;
        let is_news = answer.is_news();
        for ((stream, bytes), next) in Stream::ALL.into_iter().zip(std::mem::take(&mut answer.bytes)).zip(answer.offsets) {
            if !bytes.is_empty() {
                self.sink.give(LogEvent::Piece { host: self.source.host.name.clone(), stream, bytes, next }).await;
            }
        }
        let pause = if answer.has_reached(answer.sizes_bytes) || !is_news { CAUGHT_UP_PAUSE } else { Duration::ZERO };
        (self.end(&answer, is_news), pause)
    }

    /// How it ends, if it does with this answer.
    fn end(&mut self, answer: &Answer, is_news: bool) -> Option<LogEnd> {
        let unread = |reason: String| Some(LogEnd::Unread(reason));
        let max_bytes = self.logs_max_bytes;
        if answer.offsets.iter().any(|offset| *offset > max_bytes) {
            return unread(format!(
                "it has more output than the {max_bytes} bytes that logs_max_bytes in overlord.toml allows; the rest is left out"
            ));
        }
        if answer.state == HostState::Undelivered {
            return unread(format!("the job never started there; `overlord job-status {}` says why", self.asked.job));
        }
        let goal = self.goal(answer);
        let is_read = match self.follow {
            Follow::SoFar => answer.has_reached(goal.sizes_bytes) || (!is_news && answer.has_all_but_a_letter(goal.sizes_bytes)),
            Follow::ToTheEnd => answer.complete,
        };
        if is_read {
            return Some(LogEnd::Read(answer.state));
        }
        let may_wait = self.follow == Follow::ToTheEnd && !answer.state.is_final();
        if (!is_news && !may_wait) || goal.answers_left == 0 {
            return unread("it says that it has more output, and does not give it".to_owned());
        }
        None
    }

    /// What is there now is wanted, and no more than that, from a host whose output grows: what it had at first. A host that gives next to
    /// nothing at a time is not listened to for ever, but a job that is followed may write as little as it likes.
    fn goal(&mut self, answer: &Answer) -> Goal {
        let first = || {
            let sizes_bytes = answer.sizes_bytes.map(|size| size.min(self.logs_max_bytes.saturating_add(1)));
            let least = u64::from(self.asked.max_bytes.min(GIVEN_MIN_BYTES).saturating_sub(3).max(1));
            let answers = sizes_bytes.iter().map(|size| size / least).max().unwrap_or_default().saturating_add(ANSWERS_SPARE);
            Goal { sizes_bytes, answers_left: if self.follow == Follow::SoFar { answers } else { u64::MAX } }
        };
        let goal = self.goal.unwrap_or_else(first);
        self.goal = Some(Goal { answers_left: goal.answers_left.saturating_sub(1), ..goal });
        goal
    }

    /// What to do when there was no answer: how it ends, or how long to wait before the host is asked again.
    fn miss(&mut self, silence: &NoAnswer, was_dispatching: bool) -> (Option<LogEnd>, Duration) {
        let is_on_its_way = self.source.is_unconfirmed && silence.is_refusal(ErrorCode::UnknownJob);
        if is_on_its_way && was_dispatching && self.follow == Follow::ToTheEnd {
            self.away = None;
            return (None, DELIVERY_PAUSE);
        }
        let reason = if is_on_its_way {
            let why = if was_dispatching { "it is still being sent there" } else { "it has not arrived there" };
            format!("{why}; `overlord job-status {}` says how it stands", self.asked.job)
        } else {
            silence.reason().to_owned()
        };
        let away = self.away.unwrap_or(Away { since: Instant::now(), pause: AWAY_FIRST });
        let may_pass = self.follow == Follow::ToTheEnd && may_pass(silence);
        if !may_pass || away.since.elapsed() >= self.job.fleet.config().lost_after {
            return (Some(LogEnd::Unread(reason)), Duration::ZERO);
        }
        if self.away.is_none() {
            self.sink.tell(LogEvent::Away { host: self.source.host.name.clone(), reason });
        }
        self.away = Some(Away { pause: (away.pause + away.pause / 2).min(AWAY_LONGEST), ..away });
        (None, away.pause)
    }

    /// Whether the job is still being sent to hosts. Where that cannot be told, it is not waited for.
    async fn is_dispatching(&self) -> bool {
        let (home, id) = (self.job.fleet.home().clone(), self.job.id.clone());
        let probed = tokio::task::spawn_blocking(move || log::is_dispatching(&home, &id)).await;
        matches!(probed, Ok(Ok(true)))
    }

    async fn ask(&self) -> Result<JobLogs, NoAnswer> {
        let wait_ms = match self.follow {
            Follow::SoFar => 0,
            Follow::ToTheEnd => LOGS_WAIT_MAX_MS,
        };
        let within = self.job.fleet.config().poll_timeout.saturating_add(Duration::from_millis(wait_ms.into()));
        let letter = self.letter(wait_ms)?;
        let outcome = self.client.ask::<Outcome>(&letter, within, &Sent::default()).await?;
        poll::result(outcome, "a job's output")
    }

    fn letter(&self, wait_ms: u32) -> Result<Letter, NoAnswer> {
        let link = self.job.fleet.link().map_err(|error| NoAnswer::NotSent(crate::chain(&error)))?;
        let [stdout, stderr] = self.asked.offsets;
        let (id, max_bytes) = (&self.asked.minion_job_id, self.asked.max_bytes);
        let message = Message {
            call_id: CallId::new(service::fresh_id(), 1),
            caller: link.caller.clone(),
            method: "jobs.logs".to_owned(),
            args: Arguments::Json(json!({ "id": id, "stdout": stdout, "stderr": stderr, "max_bytes": max_bytes, "wait_ms": wait_ms })),
            limit: None,
        };
        message.letters([&self.source.host]).pop().ok_or_else(|| NoAnswer::NotSent("there is nobody to ask".to_owned()))
    }
}

/// Whether the host may answer if it is asked again later. What it refuses for good it will refuse again.
fn may_pass(silence: &NoAnswer) -> bool {
    match silence {
        NoAnswer::NotSent(_) | NoAnswer::Silent(_) => true,
        NoAnswer::Refused(_) => silence.is_refusal(ErrorCode::LimitReached) || silence.is_refusal(ErrorCode::Internal),
    }
}
