//! One host's output, piece by piece, from its beginning to the end that is wanted. A host may lie about all of it: every loop here makes
//! progress, pauses, or ends.

use std::time::{Duration, Instant};

use common::job::{CallId, HostState};
use common::outcome::{ErrorCode, Outcome};
use common::protocol::{Arguments, JobLogs, LOGS_WAIT_MAX_MS, Stream, logs_chunk_bytes};
use serde_json::json;
use tokio::time::sleep;

use super::answer::{Answer, Asked, KEPT_BACK_MAX_BYTES};
use super::{Follow, LogEnd, LogEvent, Sink, Source};
use crate::client::{Client, NoAnswer, Sent};
use crate::envelope::{Letter, Message};
use crate::fleet::{Fleet, LinkError};
use crate::jobs::{Job, log, poll};

/// The most that is asked for of each stream at once.
const ASKED_MAX_BYTES: u32 = 64 * 1024;
/// The largest answer to that that is read: each byte may become six, and there is something around them.
const ANSWER_MAX_BYTES: u32 = 2 * 6 * ASKED_MAX_BYTES + 64 * 1024;
/// What a host gives of a stream at once at least, if there is so much; and how many answers are taken that give less.
const GIVEN_MIN_BYTES: u32 = 4096;
const SHORT_ANSWERS_MAX: u32 = 8;
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
    /// How much of each stream is wanted.
    goal_bytes: Option<[u64; 2]>,
    short_answers: u32,
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
            is_child: source.is_child,
            offsets: [0, 0],
            max_bytes: logs_chunk_bytes(answer_max_bytes).min(ASKED_MAX_BYTES),
        };
        Self {
            job,
            client,
            source,
            follow,
            sink,
            asked,
            logs_max_bytes: config.logs_max_bytes,
            away: None,
            goal_bytes: None,
            short_answers: 0,
        }
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
        // Of a job that is followed there may be more by the time its host has counted what there is.
        let is_short = self.follow == Follow::SoFar && answer.is_shorter_than(self.given_min_bytes());
        self.short_answers += u32::from(is_short);
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
        let goal_bytes = self.goal_bytes(answer);
        let is_read = match self.follow {
            Follow::SoFar => answer.has_reached(goal_bytes) || (!is_news && answer.has_all_but_a_letter(goal_bytes)),
            Follow::ToTheEnd => answer.complete,
        };
        if is_read {
            return Some(LogEnd::Read(answer.state));
        }
        // A host that gives next to nothing at a time is not listened to for ever, but a job that is followed may write as little as it likes.
        let may_wait = self.follow == Follow::ToTheEnd && !answer.state.is_final();
        if !may_wait && (!is_news || self.short_answers > SHORT_ANSWERS_MAX) {
            return unread("it says that it has more output, and does not give it".to_owned());
        }
        None
    }

    /// What is there now is wanted, and no more than that, from a host whose output grows: what it had at first.
    fn goal_bytes(&mut self, answer: &Answer) -> [u64; 2] {
        let max_bytes = self.logs_max_bytes.saturating_add(1);
        *self.goal_bytes.get_or_insert_with(|| answer.sizes_bytes.map(|size| size.min(max_bytes)))
    }

    /// What a host gives of a stream that has so much, whatever it keeps back of a letter.
    fn given_min_bytes(&self) -> u64 {
        u64::from(self.asked.max_bytes.min(GIVEN_MIN_BYTES)).saturating_sub(KEPT_BACK_MAX_BYTES)
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
        NoAnswer::NotSent(_) | NoAnswer::TooLarge(_) | NoAnswer::Silent(_) => true,
        NoAnswer::Refused(_) => silence.is_refusal(ErrorCode::LimitReached) || silence.is_refusal(ErrorCode::Internal),
    }
}
