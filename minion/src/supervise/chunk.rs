//! A chunk of items that one process works through: what that process says of each item, a line at a time, and what its supervisor makes of
//! it. Of a process that died, or was killed at an item's limit, the items that had ended keep their outcomes, the one that was under way has one,
//! and the rest was never begun. It replaces no process: who asked sends the rest again, or gives it to another host.

use std::io::Write as _;
use std::time::{Duration, Instant};

use common::outcome::{ErrorCode, Failure, Outcome, Verdict};
use common::protocol::Arguments;
use common::protocol::map::{CHUNK_ANSWER_BYTES, CHUNK_PERIOD, Chunk, Chunked};
use jiff::Timestamp;
use serde_json::Value;

use super::Station;
use super::child::{Answer, encode};
use crate::jobs::MethodRun;

/// The first letters of the lines: of an item that begins, and of one that has ended. Behind each stands when, behind the second the answer.
const BEGUN: char = 'B';
const ENDED: char = 'E';

/// In the process: works through the items, and says of each when it begins and how it has ended. `item` answers to one whose arguments are bound; or
/// it is why none can be run.
pub(super) fn work(
    station: &Station,
    run: &MethodRun,
    chunk: &Chunk,
    item: Result<impl Fn(Value) -> Answer, Failure>,
    says: &mut std::fs::File,
) -> std::io::Result<()> {
    let (begun, mut said_bytes) = (Instant::now(), 0);
    let mut lines = Vec::new();
    for (index, args) in (chunk.first..).zip(&chunk.items) {
        if said_bytes > CHUNK_ANSWER_BYTES || begun.elapsed() >= CHUNK_PERIOD {
            break;
        }
        // What the one before came to, and that this one begins, in one piece: it is out before it begins.
        writeln!(lines, "{BEGUN}{}", Timestamp::now())?;
        says.write_all(&lines)?;
        lines.clear();
        let answer = match &item {
            Ok(item) => bind(station, run, index, args).map_or_else(Answer::Error, item),
            Err(failure) => Answer::Error(failure.clone()),
        };
        write!(lines, "{ENDED}{} ", Timestamp::now())?;
        lines.extend(encode(&answer, station.limits.result_max_bytes));
        lines.push(b'\n');
        said_bytes += lines.len();
    }
    says.write_all(&lines)
}

fn bind(station: &Station, run: &MethodRun, index: u64, args: &Arguments) -> Result<Value, Failure> {
    let method = station.registry.find(&run.method).ok_or_else(|| station.registry.unknown(&run.method))?;
    let bound = method.spec().bind(args);
    bound.map_err(|error| Failure::new(ErrorCode::InvalidArguments, format!("item {index}: {error}")))
}

/// How far the process is, as its supervisor knows.
#[derive(Debug)]
pub(super) struct Course {
    first: u64,
    count: usize,
    /// Of each item.
    limit: Duration,
    outcomes: Vec<Outcome>,
    /// Since when the next one is under way.
    begun_at: Option<Timestamp>,
}

impl Course {
    pub(super) fn of(chunk: &Chunk, limit: Duration) -> Self {
        Self { first: chunk.first, count: chunk.items.len(), limit, outcomes: Vec::with_capacity(chunk.items.len()), begun_at: None }
    }

    /// Takes the whole lines out of what it said; `true` if an item has begun, whose time runs from now on.
    pub(super) fn take_in(&mut self, said: &mut Vec<u8>) -> bool {
        let Some(end) = said.iter().rposition(|byte| *byte == b'\n') else { return false };
        let lines: Vec<u8> = said.drain(..=end).collect();
        let mut has_begun = false;
        for line in lines.split(|byte| *byte == b'\n') {
            has_begun |= self.hear(line).is_some();
        }
        has_begun
    }

    /// Takes note of a line; something if by it an item has begun. What a process says that is out of its mind changes nothing.
    fn hear(&mut self, line: &[u8]) -> Option<()> {
        let line = str::from_utf8(line).ok()?;
        if let Some(at) = line.strip_prefix(BEGUN) {
            let may_begin = self.begun_at.is_none() && self.outcomes.len() < self.count;
            self.begun_at = Some(at.parse().ok().filter(|_| may_begin)?);
            return Some(());
        }
        let (at, answer) = line.strip_prefix(ENDED)?.split_once(' ')?;
        let (at, answer) = (at.parse().ok()?, serde_json::from_str::<Answer>(answer).ok()?);
        self.outcomes.push(Outcome::ran(answer.verdict(), self.begun_at.take()?, at));
        None
    }

    /// The [`Chunked`] as a result, where the process has `ended` so.
    pub(super) fn verdict(self, ended: &Verdict, at: Timestamp) -> Verdict {
        serde_json::to_value(self.finish(ended, at)).map_or_else(
            |error| Verdict::lost(format!("what became of the items cannot be written: {error}")),
            |result| Verdict::Ok { result },
        )
    }

    /// What became of all of them.
    fn finish(mut self, ended: &Verdict, at: Timestamp) -> Chunked {
        let had_its_time = |begun_at| Duration::try_from(at.duration_since(begun_at)).is_ok_and(|ran| ran >= self.limit);
        let under_way = self.begun_at.map(|begun_at| match ended {
            Verdict::TimedOut { .. } if !had_its_time(begun_at) => {
                let why = "it was begun in the moment in which the one before it was stopped at its time limit";
                Outcome::ran(Verdict::lost(why), begun_at, at)
            }
            ended => Outcome::ran(ended.clone(), begun_at, at),
        });
        let why = match &under_way {
            Some(_) => format!("it was not begun: the process ended at the item {} before it", self.index()),
            None if self.outcomes.is_empty() => {
                let how = ended.error().map(|error| error.message.as_str()).unwrap_or_default();
                format!("it was not begun: {how}")
            }
            None => "it was not begun: the process had worked long enough on the items before it, or had ended".to_owned(),
        };
        self.outcomes.extend(under_way);
        self.outcomes.resize_with(self.count, || Outcome::not_run(Verdict::undelivered(why.clone()), at));
        Chunked { first: self.first, outcomes: self.outcomes }
    }

    /// Of the item that is under way, or is the next.
    fn index(&self) -> u64 {
        self.first.saturating_add(self.outcomes.len().try_into().unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may panic")]
    use super::*;
    use common::job::HostState;

    const AT: &str = "2026-01-01T00:00:00Z";

    fn states(said: &[String]) -> Vec<HostState> {
        let mut course = Course::of(&Chunk { first: 7, items: vec![Arguments::default(); 4] }, Duration::from_secs(9));
        let mut text = said.concat().into_bytes();
        course.take_in(&mut text);
        let crash = Verdict::Failed { error: Failure::new(ErrorCode::Crashed, "its process died") };
        let chunked = course.finish(&crash, AT.parse().unwrap());
        assert_eq!((chunked.first, chunked.outcomes.len()), (7, 4));
        chunked.outcomes.iter().map(|outcome| outcome.verdict.state()).collect()
    }

    #[test]
    fn what_was_said_before_the_death_stands_and_the_rest_was_not_begun() {
        let (begun, ended) = (format!("B{AT}\n"), format!("E{AT} {{\"ok\":1}}\n"));
        let (ok, failed, never) = (HostState::Ok, HostState::Failed, HostState::Undelivered);
        assert_eq!(states(&[]), [never; 4]);
        assert_eq!(states(std::slice::from_ref(&begun)), [failed, never, never, never]);
        assert_eq!(states(&[begun.clone(), ended.clone()]), [ok, never, never, never]);
        assert_eq!(states(&[begun.clone(), ended.clone(), begun.clone()]), [ok, failed, never, never]);
        let torn = ended[..20].to_owned();
        assert_eq!(states(&[begun.clone(), ended.clone(), begun.clone(), torn]), [ok, failed, never, never]);
    }

    #[test]
    fn only_who_had_its_time_timed_out() {
        let limit = Failure::new(ErrorCode::TimedOut, "its time is over");
        for (at, state) in [("2026-01-01T00:00:08Z", HostState::Lost), ("2026-01-01T00:00:09Z", HostState::TimedOut)] {
            let mut course = Course::of(&Chunk { first: 0, items: vec![Arguments::default()] }, Duration::from_secs(9));
            course.take_in(&mut format!("B{AT}\n").into_bytes());
            let chunked = course.finish(&Verdict::TimedOut { error: limit.clone() }, at.parse().unwrap());
            assert_eq!(chunked.outcomes[0].verdict.state(), state);
        }
    }

    #[test]
    fn a_process_that_is_out_of_its_mind_makes_up_no_item() {
        let (begun, ended) = (format!("B{AT}\n"), format!("E{AT} {{\"ok\":1}}\n"));
        let (ok, never) = (HostState::Ok, HostState::Undelivered);
        assert_eq!(states(&[ended.clone(), "x\n".into(), "E\n".into(), "B\n".into()]), [never; 4], "none has begun");
        let many: Vec<String> = std::iter::repeat_n([begun, ended].concat(), 9).collect();
        assert_eq!(states(&many), [ok; 4]);
    }
}
