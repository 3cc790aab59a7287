//! One host's way to its items: it takes a chunk, has the host work on it over a connection that is kept, and tells what became of it; again and
//! again. What a host says counts only if it is about that very chunk.

use std::pin::pin;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use common::job::CallId;
use common::outcome::{Outcome, Verdict};
use common::protocol::Arguments;
use common::protocol::map::{CHUNK_MAX_ITEMS, CHUNK_PERIOD, Chunk, Chunked, MAP_PREFIX};
use jiff::Timestamp;
use serde_json::Value;
use tokio::sync::SemaphorePermit;

use super::Table;
use super::deal::{Deal, Dealt, Ended, Item, Wanted};
use crate::client::{Line, NoAnswer, Sent};
use crate::envelope::{Letter, Message};
use crate::fleet::ANSWER_GRACE;

/// How long a host is to work on a chunk: long beside the way there and back, and short beside what a person notices.
const CHUNK_AIM: Duration = Duration::from_millis(50);
/// So much larger a chunk may be than the one before.
const GROWTH: usize = 16;
/// How much text a chunk has at most, unless it is one item: minions take a mebibyte unless they are told otherwise, and it is put into JSON twice.
const CHUNK_TEXT_BYTES: usize = 256 * 1024;
/// The pauses before a chunk is sent again whose answer did not come: about as long as a minion takes to start.
const AGAIN_AFTER: [Duration; 4] =
    [Duration::from_millis(100), Duration::from_millis(200), Duration::from_millis(500), Duration::from_millis(1000)];
/// About what a value takes in memory besides its text.
const VALUE_BYTES: usize = 48;
/// About what an outcome takes besides its result.
const OUTCOME_BYTES: usize = 256;

/// A lane to one of the hosts.
pub(super) struct Lane {
    host: usize,
    line: Line,
    pace: Wanted,
}

/// What became of a chunk's items; those of which nothing is said were not begun.
#[derive(Debug, Default)]
pub(crate) struct Fates {
    pub(crate) ended: Vec<Ended>,
    /// They may have run, and are dealt again.
    pub(crate) doubted: Vec<u64>,
}

impl Fates {
    /// As [`Deal::lose`] decides.
    pub(crate) fn lose(&mut self, deal: &mut Deal, host: usize, item: Item, outcome: Outcome) {
        let index = item.index;
        match deal.lose(host, item, outcome) {
            Some(ended) => self.ended.push(ended),
            None => self.doubted.push(index),
        }
    }
}

/// Why a chunk's outcome says nothing of its items.
type NotUnderstood = String;

impl Lane {
    pub(super) fn to(host: usize) -> Self {
        Self { host, line: Line::default(), pace: Wanted { items: 1, bytes: CHUNK_TEXT_BYTES } }
    }

    /// Works until there is nothing left to do for this host.
    pub(super) async fn work(mut self, table: &Table<'_>, ends: Sender<Ended>) {
        while let Some((chunk, permit)) = self.take(table).await {
            let Some(number) = table.note_dealt(self.host, &chunk).await else {
                give_back_all(&mut table.deal(), chunk);
                break;
            };
            let sent = Sent::default();
            let dealt_at = Instant::now();
            let answer = tokio::select! {
                biased;
                answer = self.ask(table, &chunk, &sent) => Some(answer),
                () = table.stop.stopped() => None,
            };
            drop(permit);
            let ended = {
                let mut deal = table.deal();
                let indexes: Vec<u64> = chunk.iter().map(|item| item.index).collect();
                let mut fates = Fates::default();
                self.settle(&mut deal, chunk, dealt_at, answer, &sent, &mut fates);
                // Before anyone else gets what was given back: that is noted behind this.
                table.note_done(number, self.host, &indexes, &fates);
                fates.ended
            };
            for one in ended {
                // Who collects may have stopped, and has stopped us then.
                let _unread = ends.send(one);
            }
            table.news.notify_waiters();
        }
        // Others may wait for what this host had.
        table.news.notify_waiters();
    }

    async fn take<'t>(&self, table: &'t Table<'_>) -> Option<(Vec<Item>, SemaphorePermit<'t>)> {
        loop {
            let mut news = pin!(table.news.notified());
            news.as_mut().enable();
            let permit = table.forks.acquire().await.ok()?;
            if table.stop.is_stopped() {
                table.deal().stop();
                return None;
            }
            // In a statement of its own: the lock must be free again.
            let dealt = table.deal().deal(self.host, self.pace, Instant::now());
            let rests_until = match dealt {
                Dealt::Chunk(chunk) => return Some((chunk, permit)),
                Dealt::Over => return None,
                Dealt::Wait => None,
                Dealt::Rest(until) => Some(until),
            };
            drop(permit);
            tokio::select! {
                () = rest(rests_until) => {}
                () = news => {}
                () = table.stop.stopped() => {}
            }
        }
    }

    async fn ask(&self, table: &Table<'_>, chunk: &[Item], sent: &Sent) -> Result<Outcome, NoAnswer> {
        let letter = self.letter(table, chunk)?;
        let within = table.target.timeout().saturating_add(CHUNK_PERIOD).saturating_add(ANSWER_GRACE);
        let deadline = Instant::now() + within;
        let answer = table.link.client.ask_by(&self.line, &letter, within, sent).await;
        let Err(silence @ NoAnswer::Silent(_)) = answer else { return answer };
        self.ask_again(table, &letter, deadline).await.ok_or(silence)
    }

    /// What comes of a chunk whose answer did not come, if it is known after all: the host runs a call once, by its id, so the very same is sent again; it
    /// runs if it did not come the first time, and is refused if it did.
    async fn ask_again(&self, table: &Table<'_>, letter: &Letter, deadline: Instant) -> Option<Outcome> {
        for pause in AGAIN_AFTER {
            tokio::time::sleep(pause).await;
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            match table.link.client.ask_by(&self.line, letter, left, &Sent::default()).await {
                Ok(outcome) => return Some(outcome),
                Err(NoAnswer::NotSent(_)) => {}
                Err(_) => return None,
            }
        }
        None
    }

    fn letter(&self, table: &Table<'_>, chunk: &[Item]) -> Result<Letter, NoAnswer> {
        let first = chunk.first().map_or(0, |item| item.index);
        let chunk = Chunk { first, items: chunk.iter().map(|item| item.args.clone()).collect() };
        let args = serde_json::to_value(&chunk).map_err(|error| NoAnswer::NotSent(error.to_string()))?;
        let message = Message {
            call_id: CallId::new(service::fresh_id(), 1),
            caller: table.link.caller.clone(),
            method: format!("{MAP_PREFIX}{}", table.method),
            args: Arguments::Json(args),
            limit: Some(table.target.timeout()),
        };
        let letter = message.letters(table.target.members().get(self.host)).pop();
        letter.ok_or_else(|| NoAnswer::NotSent("there is nobody to ask".to_owned()))
    }

    /// What came of a chunk that was dealt then.
    fn settle(
        &mut self,
        deal: &mut Deal,
        chunk: Vec<Item>,
        dealt_at: Instant,
        answer: Option<Result<Outcome, NoAnswer>>,
        sent: &Sent,
        fates: &mut Fates,
    ) {
        let host = self.host;
        let not_run = |verdict| Outcome::not_run(verdict, Timestamp::now());
        match answer {
            Some(Ok(outcome)) => match outcomes_of(outcome, &chunk) {
                Ok(outcomes) => self.settle_each(deal, chunk, dealt_at, outcomes, fates),
                Err(problem) => lose_all(deal, host, chunk, dealt_at, Verdict::lost(problem), fates),
            },
            Some(Err(NoAnswer::TooLarge(_))) if chunk.len() > 1 => {
                self.pace.bytes = chunk.iter().map(|item| item.bytes).sum::<usize>() / 2;
                give_back_all(deal, chunk);
            }
            Some(Err(NoAnswer::TooLarge(reason))) => {
                let outcome = not_run(Verdict::undelivered(reason));
                fates.ended.extend(chunk.into_iter().filter_map(|item| deal.refuse(host, item, outcome.clone())));
            }
            Some(Err(no)) if may_have_run(&no) => lose_all(deal, host, chunk, dealt_at, Verdict::lost(no.reason()), fates),
            Some(Err(no)) => {
                give_back_all(deal, chunk);
                deal.blame(host, dealt_at, no.into_verdict(), Instant::now());
            }
            None => {
                deal.stop();
                if sent.is_set() {
                    let outcome = not_run(Verdict::lost("interrupted while it was under way; the host stops what it had begun"));
                    fates.ended.extend(chunk.iter().map(|item| deal.end(host, item, outcome.clone(), OUTCOME_BYTES)));
                } else {
                    give_back_all(deal, chunk);
                }
            }
        }
    }

    fn settle_each(&mut self, deal: &mut Deal, chunk: Vec<Item>, dealt_at: Instant, outcomes: Vec<Outcome>, fates: &mut Fates) {
        let host = self.host;
        let (mut done, mut last, span) = (0_usize, None, span(&outcomes).min(dealt_at.elapsed()));
        for (item, outcome) in chunk.into_iter().zip(outcomes) {
            match outcome.verdict {
                Verdict::Undelivered { .. } => {
                    last = Some(outcome.verdict);
                    deal.give_back(item);
                }
                Verdict::Lost { .. } => {
                    last = Some(outcome.verdict.clone());
                    fates.lose(deal, host, item, outcome);
                }
                _ => {
                    done += 1;
                    let bytes = OUTCOME_BYTES + weight(&outcome.verdict);
                    fates.ended.push(deal.end(host, &item, outcome, bytes));
                }
            }
        }
        if done > 0 {
            deal.thank(host);
            self.pace.items = next_size(self.pace.items, done, span);
        } else if let Some(verdict) = last {
            deal.blame(host, dealt_at, verdict, Instant::now());
        }
    }
}

/// Until then, or for ever.
async fn rest(until: Option<Instant>) {
    match until {
        Some(until) => tokio::time::sleep_until(until.into()).await,
        None => std::future::pending().await,
    }
}

/// Whether any of the chunk's items may have run, of which the host did not say what became of them.
fn may_have_run(no: &NoAnswer) -> bool {
    match no {
        NoAnswer::NotSent(_) | NoAnswer::TooLarge(_) => false,
        NoAnswer::Silent(_) => true,
        NoAnswer::Refused(failure) => !failure.is_before_start(),
    }
}

fn give_back_all(deal: &mut Deal, chunk: Vec<Item>) {
    chunk.into_iter().for_each(|item| deal.give_back(item));
}

fn lose_all(deal: &mut Deal, host: usize, chunk: Vec<Item>, dealt_at: Instant, verdict: Verdict, fates: &mut Fates) {
    let outcome = Outcome::not_run(verdict.clone(), Timestamp::now());
    chunk.into_iter().for_each(|item| fates.lose(deal, host, item, outcome.clone()));
    deal.blame(host, dealt_at, verdict, Instant::now());
}

/// What a host says became of each item of the chunk. All of them may have run where it says something else.
fn outcomes_of(outcome: Outcome, chunk: &[Item]) -> Result<Vec<Outcome>, NotUnderstood> {
    let result = match outcome.verdict {
        Verdict::Ok { result } => result,
        other => {
            let message = other.error().map(|error| error.message.as_str()).unwrap_or_default();
            return Err(format!("the host answered {} for the items together: {message}", other.state()));
        }
    };
    let chunked: Chunked =
        serde_json::from_value(result).map_err(|error| format!("it answered something that is not what became of items: {error}"))?;
    let first = chunk.first().map_or(0, |item| item.index);
    if chunked.first != first || chunked.outcomes.len() != chunk.len() {
        return Err(format!(
            "it answered for {} items from {} on, and was asked for {} from {first} on: what became of these is not known",
            chunked.outcomes.len(),
            chunked.first,
            chunk.len()
        ));
    }
    Ok(chunked.outcomes.into_iter().map(essence).collect())
}

/// What is kept of an outcome until it is printed: a host may say any amount beside it.
fn essence(outcome: Outcome) -> Outcome {
    let Outcome { verdict, started_at, finished_at, .. } = outcome;
    Outcome { started_at, finished_at, ..Outcome::not_run(verdict, Timestamp::UNIX_EPOCH) }
}

/// How long a host has worked on its items, by its own clock.
fn span(outcomes: &[Outcome]) -> Duration {
    let begun = outcomes.iter().find_map(|outcome| outcome.started_at);
    let ended = outcomes.iter().rev().filter(|outcome| outcome.started_at.is_some()).find_map(|outcome| outcome.finished_at);
    begun.zip(ended).and_then(|(begun, ended)| Duration::try_from(ended.duration_since(begun)).ok()).unwrap_or_default()
}

/// How many items the next chunk is to have, where of one of `size` so many are `done` after `span`.
fn next_size(size: usize, done: usize, span: Duration) -> usize {
    let each = span.as_nanos() / u128::try_from(done.max(1)).unwrap_or(1);
    let fit = usize::try_from(CHUNK_AIM.as_nanos() / each.max(1)).unwrap_or(usize::MAX);
    fit.clamp(1, size.saturating_mul(GROWTH)).min(CHUNK_MAX_ITEMS)
}

/// About how much memory a verdict takes.
fn weight(verdict: &Verdict) -> usize {
    match verdict {
        Verdict::Ok { result } => value_weight(result),
        other => other.error().map_or(0, |error| {
            let more: usize = error.more.names().filter_map(|name| error.more.get(name)).map(value_weight).sum();
            error.message.len() + error.data.as_ref().map_or(0, value_weight) + more
        }),
    }
}

fn value_weight(value: &Value) -> usize {
    VALUE_BYTES
        + match value {
            Value::String(text) => text.len(),
            Value::Array(values) => values.iter().map(value_weight).sum(),
            Value::Object(fields) => fields.iter().map(|(name, field)| name.len() + VALUE_BYTES + value_weight(field)).sum(),
            Value::Null | Value::Bool(_) | Value::Number(_) => 0,
        }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_grow_to_what_a_host_does_in_fifty_milliseconds() {
        let ms = Duration::from_millis;
        assert_eq!(next_size(1, 1, Duration::ZERO), GROWTH);
        assert_eq!(next_size(200, 200, ms(1)), CHUNK_MAX_ITEMS);
        assert_eq!(next_size(16, 16, ms(16)), 50);
        assert_eq!(next_size(64, 64, ms(6400)), 1, "slow items go one by one");
        assert_eq!(next_size(64, 5, ms(500)), 1, "of which the host left most");
        assert_eq!(next_size(1, 1, ms(3000)), 1);
    }
}
