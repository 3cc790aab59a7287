//! `overlord job-status ID [--wait]`.

mod map;

use std::collections::BTreeMap;
use std::io;
use std::ops::ControlFlow;

use common::identity::MinionName;
use common::job::JobState;
use common::job::map::MapTally;
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::{HOST_UNKNOWN, NOT_ENDED, Refusal};
use crate::aggregate::counted;
use crate::chain;
use crate::cli::JobStatusArgs;
use crate::fleet::Fleet;
use crate::jobs::{Job, JobError, JobStatus};
use crate::output::job::{counts, document, host_fields, job_fields, shown, unknown_document};
use crate::output::{Format, Output, is_unread_within, progress, progress_of, remark, remark_result};

pub(super) fn run(fleet: &Fleet, mut output: Output, args: &JobStatusArgs) -> Result<u8, Refusal> {
    let status = fleet.job(&args.job.id).and_then(|job| follow(&job, &mut output, args).map(|printed| (job, printed)));
    let (job, status) = match status {
        Ok((job, printed)) => (job, printed?),
        Err(error @ (JobError::Unknown { .. } | JobError::Damaged { .. })) => return print_unknown(&mut output, &args.job.id, &error),
        Err(error) => return Err(error.into()),
    };
    if let Some(tally) = &status.record.map {
        map::print(&mut output, &job, &status, tally)?;
        return Ok(exit_status(&status));
    }
    match output.format() {
        Format::Text => output.print(&shown(&status, Timestamp::now()))?,
        Format::Json => output.print_json(&document(&status))?,
        Format::Jsonl => output.print_json(&json!({ "summary": job_fields(&status) }))?,
    }
    if output.format() == Format::Text && status.record.hosts.len() > 1 {
        remark_result(&counted(&counts(&status)));
    }
    Ok(exit_status(&status))
}

fn exit_status(status: &JobStatus) -> u8 {
    match status.state() {
        JobState::Running | JobState::Partial => NOT_ENDED,
        JobState::Finished | JobState::Lost => status.record.exit_bits(),
    }
}

/// The status to print at the end. As JSON lines, each host is printed whenever something about it has changed. It is waited for
/// only as long as somebody reads what is printed.
fn follow(job: &Job, output: &mut Output, args: &JobStatusArgs) -> Result<io::Result<JobStatus>, JobError> {
    let mut lines = Changes::default();
    let mut tell = |status: &JobStatus| match output.format() {
        Format::Jsonl => lines.of(status).iter().try_for_each(|line| output.print_json(line)),
        Format::Text | Format::Json => Ok(()),
    };
    if !args.wait {
        let status = job.status()?;
        return Ok(tell(&status).map(|()| status));
    }
    let known = job.known()?.record;
    let bar = known.map.as_ref().map_or_else(|| progress(known.hosts.len()), |tally| progress_of(tally.items()));
    let waited = job.wait_each(args.timeout, |status, pause| {
        let ended = status.record.hosts.values().filter(|host| host.state.is_final()).count();
        let ended = status.record.map.as_ref().map_or(u64::try_from(ended).unwrap_or(u64::MAX), MapTally::ended);
        bar.set_position(ended);
        match bar.suspend(|| tell(status)) {
            Ok(()) if !pause.is_zero() && is_unread_within(pause) => ControlFlow::Break(io::ErrorKind::BrokenPipe.into()),
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => ControlFlow::Break(error),
        }
    })?;
    Ok(match waited {
        ControlFlow::Continue(status) => {
            bar.finish_and_clear();
            Ok(status)
        }
        ControlFlow::Break(error) => Err(error),
    })
}

/// What was printed of each host.
#[derive(Default)]
struct Changes {
    told: BTreeMap<MinionName, Map<String, Value>>,
}

impl Changes {
    fn of(&mut self, status: &JobStatus) -> Vec<Map<String, Value>> {
        let mut lines = Vec::new();
        for (name, host) in &status.record.hosts {
            let fields = host_fields(host);
            if self.told.get(name) != Some(&fields) {
                lines.push(Map::from_iter([("host".to_owned(), json!(name))].into_iter().chain(fields.clone())));
                self.told.insert(name.clone(), fields);
            }
        }
        lines
    }
}

/// That a job is not known, or cannot be, is an answer, too: it is LOST.
fn print_unknown(output: &mut Output, id: &str, error: &JobError) -> Result<u8, Refusal> {
    match output.format() {
        Format::Text => output.print(&format!("{}  {}", crate::output::harmless(id), JobState::Lost))?,
        Format::Json => output.print_json(&unknown_document(id, &chain(error)))?,
        Format::Jsonl => output.print_json(&json!({ "summary": unknown_document(id, &chain(error)) }))?,
    }
    remark(&chain(error));
    Ok(HOST_UNKNOWN)
}
