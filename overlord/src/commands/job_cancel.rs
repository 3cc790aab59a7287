//! `overlord job-cancel ID [HOST]`.

use std::collections::BTreeMap;

use common::identity::MinionName;
use common::job::HostState;
use serde_json::{Map, Value, json};

use super::{HOST_UNKNOWN, NOT_ENDED, OK, Refusal};
use crate::aggregate::{compressed, counted_items};
use crate::cli::JobCancelArgs;
use crate::fleet::Fleet;
use crate::jobs::{Cancellation, MapCancellation};
use crate::output::{Format, Output, harmless, remark};

pub(super) fn run(fleet: &Fleet, mut output: Output, args: &JobCancelArgs) -> Result<u8, Refusal> {
    let job = fleet.job(&args.job.id)?;
    if args.host.is_none()
        && let Some(cancelled) = job.cancel_map()?
    {
        return tell_of_map(output, job.id().as_str(), &cancelled);
    }
    let told = job.cancel(args.host.as_ref())?;
    match output.format() {
        Format::Text => output.print(&shown(&told))?,
        Format::Json => {
            let hosts: Map<String, Value> = told.iter().map(|(host, fate)| (host.to_string(), document(fate))).collect();
            output.print_json(&json!({ "hosts": hosts }))?;
        }
        Format::Jsonl => {
            for (host, fate) in &told {
                let mut line = json!({ "host": host });
                if let (Some(line), Value::Object(fields)) = (line.as_object_mut(), document(fate)) {
                    line.extend(fields);
                }
                output.print_json(&line)?;
            }
        }
    }
    Ok(told.values().map(status).max().unwrap_or(OK))
}

/// Its items are too many to be told of one by one.
fn tell_of_map(mut output: Output, job: &str, cancelled: &MapCancellation) -> Result<u8, Refusal> {
    let MapCancellation { had_ended, has_ended, tally } = cancelled;
    match output.format() {
        Format::Text if *had_ended => output.print(&format!("had ended before: {}", counted_items(&tally.counts)))?,
        Format::Text => output.print(&counted_items(&tally.counts))?,
        Format::Json | Format::Jsonl => output.print_json(&json!({ "job_id": job, "told": !had_ended, "items": tally.counts }))?,
    }
    if !has_ended {
        remark(&format!("it was told to end, and has not yet; look at `overlord job-status {job}`"));
    }
    Ok(if *has_ended { OK } else { NOT_ENDED })
}

/// To have stopped it is what was wanted, whatever that makes of the job.
fn status(fate: &Cancellation) -> u8 {
    match fate {
        Cancellation::Told(_) | Cancellation::HadEnded(_) => OK,
        Cancellation::Unreachable(_) => HOST_UNKNOWN,
        Cancellation::BeingSent => NOT_ENDED,
    }
}

fn shown(told: &BTreeMap<MinionName, Cancellation>) -> String {
    let mut by_fate: BTreeMap<String, Vec<&MinionName>> = BTreeMap::new();
    for (host, fate) in told {
        by_fate.entry(words(fate)).or_default().push(host);
    }
    by_fate.iter().map(|(fate, hosts)| format!("{}: {fate}\n", compressed(hosts))).collect()
}

fn words(fate: &Cancellation) -> String {
    match fate {
        Cancellation::Told(state @ (HostState::Queued | HostState::Running)) => format!("told to stop, still {state}"),
        Cancellation::Told(state) => state.to_string(),
        Cancellation::HadEnded(state) => format!("had ended before: {state}"),
        Cancellation::BeingSent => "still being sent there; cancel it again in a moment".to_owned(),
        Cancellation::Unreachable(reason) => format!("not told: {}", harmless(reason).replace('\n', " ")),
    }
}

fn document(fate: &Cancellation) -> Value {
    match fate {
        Cancellation::Told(state) => json!({ "told": true, "state": state }),
        Cancellation::HadEnded(state) => json!({ "told": false, "state": state }),
        Cancellation::BeingSent => json!({ "told": false, "state": HostState::Pending }),
        Cancellation::Unreachable(reason) => json!({ "told": false, "state": null, "unreachable": reason }),
    }
}
