//! `overlord job-list`: asks no host.

use std::collections::BTreeSet;

use common::job::{HostState, JobId, JobState};
use serde_json::{Value, json};

use super::{OK, Refusal};
use crate::aggregate::counted;
use crate::chain;
use crate::cli::JobListArgs;
use crate::fleet::Fleet;
use crate::jobs::{JobError, log, retention};
use crate::output::job::moment;
use crate::output::{Format, Output, remark, table};
use crate::store::{JobSummary, Listed, Overview};

/// How many jobs that have ended are listed unless all are asked for.
const ENDED_LISTED: usize = 20;

pub(super) fn run(fleet: &Fleet, mut output: Output, args: &JobListArgs) -> Result<u8, Refusal> {
    let listed = if args.all { Listed::All } else { Listed::Newest(ENDED_LISTED) };
    let (overview, dispatching) = settled(fleet, listed)?;
    let with_state = |job: JobSummary| {
        let is_dispatching = dispatching.contains(&job.job_id);
        let state = if job.is_map {
            JobState::of_items(&job.counts.iter().map(|(state, count)| (*state, *count as u64)).collect(), is_dispatching)
        } else {
            JobState::of(job.counts.iter().flat_map(|(state, count)| std::iter::repeat_n(*state, *count)), is_dispatching)
        };
        (job, state)
    };
    let jobs: Vec<_> = overview.jobs.into_iter().rev().map(with_state).collect();
    match output.format() {
        Format::Json => output.print_json(&json!({ "jobs": jobs.iter().map(document).collect::<Vec<_>>(), "more": overview.more }))?,
        Format::Jsonl => jobs.iter().try_for_each(|job| output.print_json(&document(job)))?,
        Format::Text if jobs.is_empty() => remark("no job was started here; `overlord TARGET MODULE.METHOD --async` starts one"),
        Format::Text => output.print(&shown(&jobs))?,
    }
    if overview.more > 0 {
        remark(&format!("{} older jobs have ended, too; `overlord job-list --all` lists them", overview.more));
    }
    if let Err(error) = retention::sweep_of(fleet, overview.ended, overview.held) {
        remark(&chain(&error));
    }
    Ok(OK)
}

/// What is known of the jobs, and which of them are still being sent.
fn settled(fleet: &Fleet, listed: Listed) -> Result<(Overview, BTreeSet<JobId>), JobError> {
    let at_work = |overview: &Overview| -> (BTreeSet<JobId>, BTreeSet<JobId>) {
        let pending = overview.jobs.iter().filter(|job| is_pending(job)).map(|job| job.job_id.clone());
        pending.partition(|job| is_dispatching(fleet, job))
    };
    let overview = fleet.overview(listed)?;
    let (dispatching, idle) = at_work(&overview);
    if idle.is_empty() {
        return Ok((overview, dispatching));
    }
    // A dispatcher that has ended since has written all that it knows, and one that begins meanwhile is found afterwards.
    let overview = fleet.overview(listed)?;
    let (begun, _) = at_work(&overview);
    Ok((overview, dispatching.union(&begun).cloned().collect()))
}

/// Whether a job is still being sent matters only where a host is pending.
fn is_pending(job: &JobSummary) -> bool {
    let is_meant = |state: &HostState| *state == HostState::Pending || job.is_map && !state.is_final();
    job.counts.iter().any(|(state, count)| *count > 0 && is_meant(state))
}

/// A log that cannot be opened hides no other; that it cannot be read is told by those who read it.
fn is_dispatching(fleet: &Fleet, job: &JobId) -> bool {
    log::is_dispatching(fleet.home(), job).unwrap_or(false)
}

fn document((job, state): &(JobSummary, JobState)) -> Value {
    let counted = if job.is_map { "items" } else { "hosts" };
    json!({
        "job_id": job.job_id, "state": state, "code": state.code(), "method": job.method, "target": job.target,
        "started_at": job.created_at, counted: job.counts,
    })
}

fn shown(jobs: &[(JobSummary, JobState)]) -> String {
    let row = |(job, state): &(JobSummary, JobState)| {
        [
            job.job_id.to_string(),
            state.to_string(),
            job.method.clone(),
            job.target.clone(),
            format!("{}{}", if job.is_map { "items: " } else { "" }, counted(&job.counts)),
            moment(job.created_at),
        ]
    };
    table(["JOB", "STATE", "METHOD", "TARGET", "HOSTS", "STARTED"], jobs.iter().map(row))
}
