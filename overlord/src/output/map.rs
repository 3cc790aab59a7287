//! The outcomes of a map, printed in the order of the items, as they come: on standard output a line for each item, so that line N is of the item of
//! line N; in text the result alone, and an empty line where there is none, which standard error then speaks of.

use std::io;

use common::job::HostState;
use common::outcome::Verdict;
use indicatif::ProgressBar;
use serde_json::{Map, Value, json};

use super::call::Tally;
use super::job::verdict_fields;
use super::{Format, Output, harmless_json, remark};
use crate::map::deal::Ended;

/// The most items that are told of one by one on standard error: they may be a million.
const TOLD_MAX: usize = 20;

/// Prints what comes.
pub(crate) struct MapPrinter<'o> {
    output: &'o mut Output,
    bar: ProgressBar,
    tally: Tally,
    printed: u64,
    wrong: usize,
}

impl<'o> MapPrinter<'o> {
    pub(crate) fn new(output: &'o mut Output, bar: ProgressBar) -> Self {
        Self { output, bar, tally: Tally::default(), printed: 0, wrong: 0 }
    }

    /// Prints the next item's end.
    pub(crate) fn print(&mut self, ended: &Ended) -> io::Result<()> {
        let verdict = &ended.outcome.verdict;
        self.tally.count(verdict.state());
        let bar = self.bar.clone();
        bar.inc(1);
        bar.suspend(|| match (self.output.format(), verdict) {
            (Format::Text, Verdict::Ok { result }) => self.output.print_json(result),
            (Format::Text, _) => self.output.relay("\n"),
            (Format::Jsonl, _) => self.output.print_json(&fields(ended)),
            (Format::Json, _) => {
                let text = serde_json::to_string(&fields(ended))?;
                let before = if self.printed == 0 { "{\"items\":[" } else { "," };
                self.output.relay(&format!("{before}{}", harmless_json(&text)))
            }
        })?;
        self.printed += 1;
        if self.output.format() == Format::Text {
            self.tell(ended);
        }
        Ok(())
    }

    fn tell(&mut self, ended: &Ended) {
        let Some(error) = ended.outcome.verdict.error() else { return };
        self.wrong += 1;
        let host = ended.host.as_ref().map(|host| format!(" on {host}")).unwrap_or_default();
        let state = ended.outcome.verdict.state();
        if self.wrong <= TOLD_MAX {
            self.bar.suspend(|| remark(&format!("item {}{host}: {state}: {}", ended.index, error.message)));
        }
    }

    /// Prints what stands behind the last item. `untouched` items were not even begun with.
    pub(crate) fn close(mut self, untouched: u64) -> io::Result<Tally> {
        self.bar.finish_and_clear();
        if let more @ 1.. = self.wrong.saturating_sub(TOLD_MAX) {
            remark(&format!("{more} more items have no result; --output jsonl says why, for each"));
        }
        let untouched = usize::try_from(untouched).unwrap_or(usize::MAX);
        if untouched > 0 {
            *self.tally.counts.entry(HostState::Undelivered).or_default() += untouched;
            remark(&format!("interrupted: {untouched} items, from {} on, were not sent", self.printed));
        }
        match self.output.format() {
            Format::Text => {}
            Format::Jsonl => self.output.print_json(&json!({ "summary": self.tally.counts }))?,
            Format::Json => {
                let before = if self.printed == 0 { "{\"items\":[" } else { "" };
                self.output.print(&format!("{before}],\"summary\":{}}}", json!(self.tally.counts)))?;
            }
        }
        Ok(self.tally)
    }
}

/// Which item, where, and how it ended.
fn fields(ended: &Ended) -> Map<String, Value> {
    let mut fields = Map::from_iter([("index".to_owned(), json!(ended.index)), ("host".to_owned(), json!(ended.host))]);
    fields.extend(verdict_fields(ended.outcome.verdict.state(), Some(&ended.outcome.verdict)));
    fields
}
