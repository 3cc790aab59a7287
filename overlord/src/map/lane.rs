//! One host's way to its items: it takes a chunk, has the host work on it over a connection that is kept, and tells what became of it; again and
//! again. What a host says counts only if it is about that very chunk.

use std::pin::pin;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use common::job::CallId;
use common::outcome::{ErrorCode, Outcome, Verdict};
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
/// How long a host that got nothing done is left alone first; each time twice as long.
const PAUSE: Duration = Duration::from_millis(200);
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
            let begun = Instant::now();
            let answer = tokio::select! {
                biased;
                answer = self.ask(table, &chunk, &sent) => Some(answer),
                () = table.stop.stopped() => None,
            };
            drop(permit);
            let (ended, pause) = {
                let mut deal = table.deal();
                let indexes: Vec<u64> = chunk.iter().map(|item| item.index).collect();
                let mut fates = Fates::default();
                let pause = self.settle(&mut deal, chunk, answer, &sent, begun.elapsed(), &mut fates);
                // Before anyone else gets what was given back: that is noted behind this.
                table.note_done(number, self.host, &indexes, &fates);
                (fates.ended, pause)
            };
            for one in ended {
                // Who collects may have stopped, and has stopped us then.
                let _unread = ends.send(one);
            }
            table.news.notify_waiters();
            if let Some(failures) = pause {
                table.leave_alone(failures).await;
            }
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
            let dealt = table.deal().deal(self.host, self.pace);
            match dealt {
                Dealt::Chunk(chunk) => return Some((chunk, permit)),
                Dealt::Over => return None,
                Dealt::Wait => drop(permit),
            }
            tokio::select! {
                () = news => {}
                () = table.stop.stopped() => {}
            }
        }
    }

    async fn ask(&self, table: &Table<'_>, chunk: &[Item], sent: &Sent) -> Result<Outcome, NoAnswer> {
        let letter = self.letter(table, chunk)?;
        let within = table.target.timeout().saturating_add(CHUNK_PERIOD).saturating_add(ANSWER_GRACE);
        table.link.client.ask_by(&self.line, &letter, within, sent).await
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

    /// What came of a chunk, and how often in a row the host got nothing done, if it may go on after a pause.
    fn settle(
        &mut self,
        deal: &mut Deal,
        chunk: Vec<Item>,
        answer: Option<Result<Outcome, NoAnswer>>,
        sent: &Sent,
        took: Duration,
        fates: &mut Fates,
    ) -> Option<u32> {
        let host = self.host;
        match answer {
            Some(Ok(outcome)) => match outcomes_of(outcome, &chunk) {
                Ok(outcomes) => self.settle_each(deal, chunk, outcomes, took, fates),
                Err(problem) => lose_all(deal, host, chunk, Verdict::lost(problem), fates),
            },
            Some(Err(NoAnswer::TooLarge(_))) if chunk.len() > 1 => {
                self.pace.bytes = chunk.iter().map(|item| item.bytes).sum::<usize>() / 2;
                give_back_all(deal, chunk);
                None
            }
            Some(Err(NoAnswer::TooLarge(reason))) => {
                let outcome = Outcome::not_run(Verdict::undelivered(reason), Timestamp::now());
                fates.ended.extend(chunk.iter().map(|item| deal.end(host, item, outcome.clone(), OUTCOME_BYTES)));
                None
            }
            Some(Err(NoAnswer::Silent(reason))) => lose_all(deal, host, chunk, Verdict::lost(reason), fates),
            Some(Err(NoAnswer::Refused(failure))) if failure.is(ErrorCode::Internal) || failure.is(ErrorCode::Lost) => {
                lose_all(deal, host, chunk, Verdict::lost(failure.message), fates)
            }
            Some(Err(NoAnswer::Refused(failure))) => {
                give_back_all(deal, chunk);
                deal.blame(host, failure.into_refusal())
            }
            Some(Err(NoAnswer::NotSent(reason))) => {
                give_back_all(deal, chunk);
                deal.blame(host, Verdict::undelivered(reason))
            }
            None => {
                deal.stop();
                if sent.is_set() {
                    let verdict = Verdict::lost("interrupted while it was under way; the host stops what it had begun");
                    let outcome = Outcome::not_run(verdict, Timestamp::now());
                    fates.ended.extend(chunk.iter().map(|item| deal.end(host, item, outcome.clone(), OUTCOME_BYTES)));
                } else {
                    give_back_all(deal, chunk);
                }
                None
            }
        }
    }

    fn settle_each(&mut self, deal: &mut Deal, chunk: Vec<Item>, outcomes: Vec<Outcome>, took: Duration, fates: &mut Fates) -> Option<u32> {
        let host = self.host;
        let (mut done, mut last, span) = (0_usize, None, span(&outcomes).min(took));
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
            return None;
        }
        last.and_then(|verdict| deal.blame(host, verdict))
    }
}

impl Table<'_> {
    /// Until a host that got nothing done so often in a row may be asked again, or there is nothing to ask it for.
    async fn leave_alone(&self, failures: u32) {
        let until = tokio::time::Instant::now() + PAUSE * 2_u32.saturating_pow(failures.saturating_sub(1));
        loop {
            let mut news = pin!(self.news.notified());
            news.as_mut().enable();
            let is_over = self.deal().is_over();
            if is_over || self.stop.is_stopped() {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep_until(until) => return,
                () = news => {}
                () = self.stop.stopped() => return,
            }
        }
    }
}

fn give_back_all(deal: &mut Deal, chunk: Vec<Item>) {
    chunk.into_iter().for_each(|item| deal.give_back(item));
}

fn lose_all(deal: &mut Deal, host: usize, chunk: Vec<Item>, verdict: Verdict, fates: &mut Fates) -> Option<u32> {
    let outcome = Outcome::not_run(verdict.clone(), Timestamp::now());
    chunk.into_iter().for_each(|item| fates.lose(deal, host, item, outcome.clone()));
    deal.blame(host, verdict)
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
    Ok(chunked.outcomes)
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
        other => other.error().map_or(0, |error| error.message.len() + error.data.as_ref().map_or(0, value_weight)),
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
