//! `overlord job-list`: asks no host.

use common::job::JobState;
use serde_json::{Value, json};

use super::{OK, Refusal};
use crate::aggregate::counted;
use crate::fleet::Fleet;
use crate::jobs::{JobError, log};
use crate::output::job::moment;
use crate::output::{Format, Output, remark, table};
use crate::store::JobSummary;

pub(super) fn run(fleet: &Fleet, mut output: Output) -> Result<u8, Refusal> {
    let mut jobs = Vec::new();
    for job in fleet.jobs()?.into_iter().rev() {
        let state = state(fleet, &job)?;
        jobs.push((job, state));
    }
    match output.format() {
        Format::Json => output.print_json(&json!({ "jobs": jobs.iter().map(document).collect::<Vec<_>>() }))?,
        Format::Jsonl => jobs.iter().try_for_each(|job| output.print_json(&document(job)))?,
        Format::Text if jobs.is_empty() => remark("no job was started here; `overlord TARGET MODULE.METHOD --async` starts one"),
        Format::Text => output.print(&shown(&jobs))?,
    }
    Ok(OK)
}

/// Whether a job is still being sent matters only where a host is pending.
fn state(fleet: &Fleet, job: &JobSummary) -> Result<JobState, JobError> {
    let is_pending = job.counts.get(&common::job::HostState::Pending).is_some_and(|count| *count > 0);
    let is_dispatching = is_pending && log::is_dispatching(fleet.home(), &job.job_id)?;
    let hosts = job.counts.iter().flat_map(|(state, count)| std::iter::repeat_n(*state, *count));
    Ok(JobState::of(hosts, is_dispatching))
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
