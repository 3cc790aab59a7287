//! How a map stands: how many items are in which state, over all and by host; and, as JSON lines, each item in its order.

use std::io;

use common::job::JobState;
use common::job::map::MapTally;
use jiff::Timestamp;
use serde_json::json;

use super::Refusal;
use crate::jobs::{Job, JobStatus};
use crate::output::job::map::{document, item_fields, shown, summary};
use crate::output::{Format, Output, remark};

pub(super) fn print(output: &mut Output, job: &Job, status: &JobStatus, tally: &MapTally) -> Result<(), Refusal> {
    let now = Timestamp::now();
    match output.format() {
        Format::Text => output.print(&shown(status, tally, now))?,
        Format::Json => output.print_json(&document(status, tally, now))?,
        Format::Jsonl => {
            print_items(output, job, status)??;
            output.print_json(&json!({ "summary": summary(status, tally, now) }))?;
        }
    }
    if status.state() == JobState::Partial {
        remark(&format!("nobody deals its items; `overlord job-resume {0}` goes on, `overlord job-cancel {0}` ends it", job.id()));
    }
    Ok(())
}

/// The outer error is of the log, the inner of standard output.
fn print_items(output: &mut Output, job: &Job, status: &JobStatus) -> Result<io::Result<()>, Refusal> {
    let Some(mut results) = job.results(&status.record.header)? else { return Ok(Ok(())) };
    for index in 0.. {
        let Some(item) = results.item(index).map_err(|error| Refusal::internal(format!("reading what became of item {index}: {error}")))?
        else {
            break;
        };
        if let Err(unread) = output.print_json(&item_fields(&item)) {
            return Ok(Err(unread));
        }
    }
    Ok(Ok(()))
}
