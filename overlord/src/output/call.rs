//! The outcomes of a call, printed as they arrive: text in waves, JSON lines at once, one JSON document at the end.

use std::collections::BTreeMap;
use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use common::identity::MinionName;
use common::job::HostState;
use common::outcome::Outcome;
use indicatif::ProgressBar;
use serde_json::{Map, Value, json};

use super::{Format, Output, text};
use crate::aggregate::fold;

/// On a terminal, what has arrived is printed when nothing new has come for so long: slow hosts hold back no fast ones.
const WAVE_AFTER: Duration = Duration::from_millis(300);

/// What the call came to.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Tally {
    pub(crate) counts: BTreeMap<HostState, usize>,
}

impl Tally {
    pub(crate) fn count(&mut self, state: HostState) {
        *self.counts.entry(state).or_default() += 1;
    }

    pub(crate) fn hosts(&self) -> usize {
        self.counts.values().sum()
    }

    /// The bits of the exit status.
    pub(crate) fn exit_bits(&self) -> u8 {
        self.counts.keys().fold(0, |bits, state| bits | state.exit_bit())
    }
}

/// Prints what arrives until the channel closes.
pub(crate) fn print_arrivals(output: &mut Output, bar: &ProgressBar, arrivals: &Receiver<(MinionName, Outcome)>) -> io::Result<Tally> {
    let mut tally = Tally::default();
    let mut waiting: Vec<(MinionName, Outcome)> = Vec::new();
    let prints_waves = output.format() == Format::Text && output.is_terminal();
    loop {
        let arrival = if prints_waves && !waiting.is_empty() {
            arrivals.recv_timeout(WAVE_AFTER)
        } else {
            arrivals.recv().map_err(|_| RecvTimeoutError::Disconnected)
        };
        match arrival {
            Ok((host, outcome)) => {
                tally.count(outcome.verdict.state());
                bar.inc(1);
                if output.format() == Format::Jsonl {
                    bar.suspend(|| print_line(output, &host, &outcome))?;
                } else {
                    waiting.push((host, outcome));
                }
            }
            Err(RecvTimeoutError::Timeout) => {
                bar.suspend(|| print_text(output, &waiting))?;
                waiting.clear();
            }
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    bar.finish_and_clear();
    match output.format() {
        Format::Text => print_text(output, &waiting)?,
        Format::Json => print_document(output, waiting)?,
        Format::Jsonl => output.print_json(&json!({ "summary": tally.counts }))?,
    }
    Ok(tally)
}

fn print_text(output: &mut Output, answers: &[(MinionName, Outcome)]) -> io::Result<()> {
    let groups = fold(answers.iter().map(|(host, outcome)| (host, &outcome.verdict)));
    let shown: String = groups.iter().map(|group| text::group(group, None)).collect();
    if shown.is_empty() { Ok(()) } else { output.print(&shown) }
}

fn print_line(output: &mut Output, host: &MinionName, outcome: &Outcome) -> io::Result<()> {
    let mut line = Map::new();
    line.insert("host".to_owned(), json!(host));
    line.extend(fields(outcome));
    output.print_json(&line)
}

fn print_document(output: &mut Output, mut answers: Vec<(MinionName, Outcome)>) -> io::Result<()> {
    answers.sort_by(|(one, _), (other, _)| one.cmp(other));
    let hosts: Map<String, Value> = answers.into_iter().map(|(host, outcome)| (host.into(), Value::Object(fields(&outcome)))).collect();
    output.print_json(&json!({ "hosts": hosts }))
}

/// The fields of an outcome, the times as null where there is none.
fn fields(outcome: &Outcome) -> Map<String, Value> {
    let mut fields = super::job::verdict_fields(outcome.verdict.state(), Some(&outcome.verdict));
    fields.insert("started_at".to_owned(), json!(outcome.started_at));
    fields.insert("finished_at".to_owned(), json!(outcome.finished_at));
    fields
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;
    use common::outcome::Verdict;
    use jiff::Timestamp;

    #[test]
    fn an_outcome_has_its_result_or_its_error() {
        let fields = |verdict: Verdict| Value::Object(fields(&Outcome::not_run(verdict, Timestamp::UNIX_EPOCH)));
        assert_eq!(
            fields(Verdict::Ok { result: json!(null) }),
            json!({ "state": "ok", "result": null, "started_at": null, "finished_at": "1970-01-01T00:00:00Z" })
        );
        assert_eq!(
            fields(Verdict::lost("gone")),
            json!({ "state": "lost", "error": { "code": 6, "message": "gone" }, "started_at": null, "finished_at": "1970-01-01T00:00:00Z" })
        );
    }

    #[test]
    fn the_exit_status_is_the_sum_of_what_happened() {
        let mut tally = Tally::default();
        assert_eq!(tally.exit_bits(), 0);
        for (state, bits) in [(HostState::Ok, 0), (HostState::Denied, 2), (HostState::Lost, 6), (HostState::Ok, 6)] {
            tally.count(state);
            assert_eq!(tally.exit_bits(), bits);
        }
        assert_eq!(tally.hosts(), 4);
    }
}
