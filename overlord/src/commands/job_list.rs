//! `overlord job-list`: asks no host.

use std::collections::BTreeSet;

use common::job::{HostState, JobId, JobState};
use serde_json::{Value, json};

use super::{OK, Refusal};
use crate::aggregate::counted;
use crate::fleet::Fleet;
use crate::jobs::{JobError, log};
use crate::output::job::moment;
use crate::output::{Format, Output, remark, table};
use crate::store::JobSummary;

pub(super) fn run(fleet: &Fleet, mut output: Output) -> Result<u8, Refusal> {
    // A dispatcher that ends before the jobs are read has written all that it knows; one that begins before is found afterwards.
    let mut dispatching = BTreeSet::new();
    for (job, _) in log::list(fleet.home()).map_err(JobError::from)? {
        if is_dispatching(fleet, &job) {
            dispatching.insert(job);
        }
    }
    let jobs = fleet.jobs()?.into_iter().rev();
    let jobs: Vec<_> = jobs
        .map(|job| {
            let state = state(fleet, &job, &dispatching);
            (job, state)
        })
        .collect();
    match output.format() {
        Format::Json => output.print_json(&json!({ "jobs": jobs.iter().map(document).collect::<Vec<_>>() }))?,
        Format::Jsonl => jobs.iter().try_for_each(|job| output.print_json(&document(job)))?,
        Format::Text if jobs.is_empty() => remark("no job was started here; `overlord TARGET MODULE.METHOD --async` starts one"),
        Format::Text => output.print(&shown(&jobs))?,
    }
    Ok(OK)
}

/// Whether a job is still being sent matters only where a host is pending.
fn state(fleet: &Fleet, job: &JobSummary, dispatching: &BTreeSet<JobId>) -> JobState {
    let is_pending = job.counts.get(&HostState::Pending).is_some_and(|count| *count > 0);
    let is_dispatching = is_pending && (dispatching.contains(&job.job_id) || is_dispatching(fleet, &job.job_id));
    let hosts = job.counts.iter().flat_map(|(state, count)| std::iter::repeat_n(*state, *count));
    JobState::of(hosts, is_dispatching)
}

/// A log that cannot be opened hides no other; that it cannot be read is told by those who read it.
fn is_dispatching(fleet: &Fleet, job: &JobId) -> bool {
    log::is_dispatching(fleet.home(), job).unwrap_or(false)
}

fn document((job, state): &(JobSummary, JobState)) -> Value {
    json!({
        "job_id": job.job_id, "state": state, "code": state.code(), "method": job.method, "target": job.target,
        "started_at": job.created_at, "hosts": job.counts,
    })
}

fn shown(jobs: &[(JobSummary, JobState)]) -> String {
    let row = |(job, state): &(JobSummary, JobState)| {
        [job.job_id.to_string(), state.to_string(), job.method.clone(), job.target.clone(), counted(&job.counts), moment(job.created_at)]
    };
    table(["JOB", "STATE", "METHOD", "TARGET", "HOSTS", "STARTED"], jobs.iter().map(row))
}
