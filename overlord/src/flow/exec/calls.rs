//! Calls that end with whoever runs the flow: several of one method to one host travel together, as a chunk of a map, as many as the host is quick with.

use std::time::Duration;

use common::method::MethodName;
use common::outcome::{ErrorCode, Failure, Outcome, Verdict};
use common::protocol::Arguments;
use common::protocol::map::{CHUNK_PERIOD, Chunk, Chunked, MAP_PREFIX};
use serde_json::Value;

use super::step::{Errand, Pace, Steps, fenced, not_run};
use crate::client::{Line, NoAnswer, Sent};
use crate::fleet::ANSWER_GRACE;

/// How long a host is to be busy with calls that are sent together.
const TOGETHER_AIM: Duration = Duration::from_millis(50);
/// So many calls are sent together at most.
const TOGETHER_MAX: usize = 64;
/// So many times more than the time before.
const GROWTH: usize = 8;
/// So many bytes of arguments, or of one call: a host takes bodies of a few times that.
const TOGETHER_BYTES: usize = 256 << 10;

/// How many calls of a method are sent together.
#[derive(Debug, Clone, Copy)]
pub(super) struct Together {
    now: usize,
    /// More were too large.
    most: usize,
}

impl Default for Together {
    fn default() -> Self {
        Self { now: 1, most: TOGETHER_MAX }
    }
}

/// How many calls of this method are to be sent together.
pub(super) fn together(pace: &Pace, method: &MethodName) -> usize {
    pace.borrow().get(method).copied().unwrap_or_default().now
}

/// Those that are sent together: so many, and no more than fit.
pub(super) fn packed(errands: Vec<Errand>, most: usize) -> Vec<Vec<Errand>> {
    let (mut packs, mut bytes) = (Vec::<Vec<Errand>>::new(), 0);
    for errand in errands {
        let own = errand.args.as_ref().map_or(0, |args| args.to_string().len());
        match packs.last_mut().filter(|pack| pack.len() < most && bytes + own <= TOGETHER_BYTES) {
            Some(pack) => {
                bytes += own;
                pack.push(errand);
            }
            None => {
                bytes = own;
                packs.push(vec![errand]);
            }
        }
    }
    packs
}

impl Steps<'_> {
    /// What becomes of calls of one method to one host, which end with us.
    pub(super) async fn call(&self, errands: Vec<Errand>) -> Vec<Outcome> {
        let Some(first) = errands.first() else { return Vec::new() };
        let line = self.lines.borrow_mut().get_mut(&first.host.name).and_then(Vec::pop).unwrap_or_default();
        let outcomes = self.call_by(&line, &errands).await;
        self.lines.borrow_mut().entry(first.host.name.clone()).or_default().push(line);
        self.learn_pace(&first.method, &outcomes);
        outcomes
    }

    /// By the hosts' own clocks, which do not count the way there and back.
    fn learn_pace(&self, method: &MethodName, outcomes: &[Outcome]) {
        let spans = outcomes.iter().filter_map(|outcome| Duration::try_from(outcome.finished_at?.duration_since(outcome.started_at?)).ok());
        let (took, count) = spans.fold((Duration::ZERO, 0_usize), |(took, count), span| (took + span, count + 1));
        if count == 0 {
            return;
        }
        let each = took.as_nanos() / u128::try_from(count).unwrap_or(1);
        let fit = usize::try_from(TOGETHER_AIM.as_nanos() / each.max(1)).unwrap_or(usize::MAX);
        let mut pace = self.pace.borrow_mut();
        let together = pace.entry(method.clone()).or_default();
        together.now = fit.clamp(1, count.saturating_mul(GROWTH)).min(together.most);
    }

    async fn call_by(&self, line: &Line, errands: &[Errand]) -> Vec<Outcome> {
        let all = |outcome: Outcome| errands.iter().map(|_| outcome.clone()).collect::<Vec<_>>();
        let Some(first) = errands.first() else { return Vec::new() };
        let mut checked = Vec::with_capacity(errands.len());
        for errand in errands {
            checked.push(self.arguments(line, errand).await);
        }
        // One that cannot be sent costs the others nothing: they are sent without it.
        if checked.iter().any(Result::is_err) {
            return checked.into_iter().map(|checked| checked.map_or_else(not_run, |_| not_begun())).collect();
        }
        let args = checked.into_iter().filter_map(Result::ok).collect();
        match self.call_together(line, first, args).await {
            Ok(outcomes) if outcomes.len() == errands.len() => outcomes,
            Ok(_) => {
                all(not_run(Verdict::lost("it answered for another number of calls than it was asked: what became of them is not known")))
            }
            // Alone each may be small enough.
            Err(NoAnswer::TooLarge(_)) if errands.len() > 1 => {
                let most = errands.len() / 2;
                self.pace.borrow_mut().insert(first.method.clone(), Together { now: most, most });
                all(not_begun())
            }
            Err(NoAnswer::Refused(failure)) if failure.is(ErrorCode::UnknownMethod) => {
                all(not_run(Verdict::Undelivered { error: failure }))
            }
            Err(no_answer) => all(not_run(no_answer.into_verdict())),
        }
    }

    /// One call, or several as a chunk of a map.
    async fn call_together(&self, line: &Line, first: &Errand, mut args: Vec<Value>) -> Result<Vec<Outcome>, NoAnswer> {
        let nobody = || NoAnswer::NotSent("there is nobody to ask".to_owned());
        let step = Some((&first.call_id, first.limit));
        if args.len() == 1 {
            let args = args.pop().unwrap_or_default();
            let letter = self.letter(first, first.method.to_string(), Arguments::Json(args), step).ok_or_else(nobody)?;
            let within = first.limit.saturating_add(ANSWER_GRACE);
            return self.link.client.ask_by::<Outcome>(line, &letter, within, &Sent::default()).await.map(|outcome| vec![outcome]);
        }
        let chunk = Chunk { first: 0, items: args.into_iter().map(Arguments::Json).collect() };
        let chunk = serde_json::to_value(&chunk).map_err(|error| NoAnswer::NotSent(error.to_string()))?;
        let letter = self.letter(first, format!("{MAP_PREFIX}{}", first.method), Arguments::Json(chunk), step).ok_or_else(nobody)?;
        let within = first.limit.saturating_add(CHUNK_PERIOD).saturating_add(ANSWER_GRACE);
        let outcome = self.link.client.ask_by::<Outcome>(line, &letter, within, &Sent::default()).await?;
        match outcome.verdict {
            Verdict::Ok { result } => {
                let chunked = serde_json::from_value::<Chunked>(result).map_err(|error| NoAnswer::Silent(error.to_string()))?;
                Ok(chunked.outcomes.into_iter().map(fenced).collect())
            }
            other => Err(NoAnswer::Silent(other.error().map(|error| error.message.clone()).unwrap_or_default())),
        }
    }
}

/// It is to be sent again, alone.
fn not_begun() -> Outcome {
    not_run(Verdict::Undelivered { error: Failure::new(ErrorCode::Fenced, "it was not sent yet") })
}
