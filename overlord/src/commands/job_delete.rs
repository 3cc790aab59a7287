//! `overlord job-delete ID...`: jobs that have ended, here and on their hosts.

use std::collections::BTreeMap;

use common::identity::MinionName;
use serde_json::{Map, Value, json};

use super::{OK, Refusal};
use crate::aggregate::compressed;
use crate::chain;
use crate::cli::JobDeleteArgs;
use crate::fleet::Fleet;
use crate::jobs::{Deletion, retention};
use crate::output::{Format, Output, remark};

/// The most reasons that are told for one job: each may be that of one host of a large fleet.
const REASONS_TOLD_MAX: usize = 20;

type Told = BTreeMap<MinionName, Deletion>;

pub(super) fn run(fleet: &Fleet, mut output: Output, args: &JobDeleteArgs) -> Result<u8, Refusal> {
    let (mut documents, mut status) = (Map::new(), OK);
    for text in &args.ids {
        let (id, deleted) = delete(fleet, text);
        let document = match &deleted {
            Ok(told) => {
                remark_kept(&id, told);
                json!({ "deleted": true, "hosts": hosts(told) })
            }
            Err(refusal) => {
                remark(&refusal.message);
                json!({ "deleted": false, "reason": refusal.message, "hosts": {} })
            }
        };
        status = status.max(deleted.as_ref().map_or_else(|refusal| refusal.status, |_| OK));
        match output.format() {
            Format::Text if deleted.is_ok() => output.print(&format!("{id}: deleted"))?,
            Format::Text => {}
            Format::Json => drop(documents.insert(id, document)),
            Format::Jsonl => {
                let mut line = Map::from_iter([("job_id".to_owned(), json!(id))]);
                line.extend(document.as_object().cloned().unwrap_or_default());
                output.print_json(&line)?;
            }
        }
    }
    if output.format() == Format::Json {
        output.print_json(&json!({ "jobs": documents }))?;
    }
    if let Err(error) = retention::sweep(fleet) {
        remark(&chain(&error));
    }
    Ok(status)
}

/// The job's id, or what was given for one, and what became of it.
fn delete(fleet: &Fleet, text: &str) -> (String, Result<Told, Refusal>) {
    match fleet.job(text) {
        Ok(job) => (job.id().to_string(), job.delete().map_err(Refusal::from)),
        Err(error) => (text.to_owned(), Err(error.into())),
    }
}

/// Says which hosts keep it for the time being, and why.
fn remark_kept(id: &str, told: &Told) {
    let mut by_reason: BTreeMap<&str, Vec<&MinionName>> = BTreeMap::new();
    for (host, fate) in told {
        if let Deletion::Kept(reason) = fate {
            by_reason.entry(reason).or_default().push(host);
        }
    }
    for (reason, hosts) in by_reason.iter().take(REASONS_TOLD_MAX) {
        let hosts = compressed(hosts);
        remark(&format!("{id}: deleted here; {hosts} drops it by its own retention, and has not done so now: {reason}"));
    }
    if let more @ 1.. = by_reason.values().skip(REASONS_TOLD_MAX).map(Vec::len).sum::<usize>() {
        remark(&format!("{id}: {more} more hosts drop it by their own retention; `--output json` says why"));
    }
}

fn hosts(told: &Told) -> Map<String, Value> {
    let document = |fate: &Deletion| match fate {
        Deletion::Deleted => json!({ "deleted": true, "reason": null }),
        Deletion::WasGone => json!({ "deleted": true, "reason": "the host did not know it any more" }),
        Deletion::Kept(reason) => json!({ "deleted": false, "reason": reason }),
    };
    told.iter().map(|(host, fate)| (host.to_string(), document(fate))).collect()
}
