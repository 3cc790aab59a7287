//! A new job like an earlier one, on those of its hosts where that came to a certain end.

use std::collections::BTreeSet;

use common::job::{HostState, JobId};

use super::dispatcher::Dispatch;
use super::parcel::Parcel;
use super::{Job, JobError, StartError};
use crate::targets::{TargetError, job_term};

/// Why a job is not run again.
#[derive(Debug, thiserror::Error)]
pub enum RetryError {
    /// Nothing can be said of the job.
    #[error(transparent)]
    Job(#[from] JobError),
    /// Its hosts cannot be found in the roster.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// The new job cannot be started.
    #[error(transparent)]
    Start(#[from] StartError),
    /// There is nobody to run it again.
    #[error("no host of the job {job} that is in hosts.toml is {}; `overlord job-status {job}` says how it stands", .states.join(" or "))]
    NoHost {
        /// The earlier job.
        job: JobId,
        /// The states that were asked for.
        states: Vec<String>,
    },
}

impl Job {
    /// Starts a new job with the same method, arguments and time limit on the hosts of this one that are in one of `states`, once the hosts
    /// that have not ended or are lost have been asked. What is started so on a host that is `lost` may run there a second time.
    ///
    /// # Errors
    /// The job is still being sent, no host of the roster is in these states, or the new job cannot be written down.
    pub fn retry(&self, states: &BTreeSet<HostState>) -> Result<Self, RetryError> {
        let dispatch = prepare(self, states)?;
        Ok(Self::launch(&self.fleet, dispatch)?)
    }
}

/// Writes the new job down.
pub(crate) fn prepare(job: &Job, states: &BTreeSet<HostState>) -> Result<Dispatch, RetryError> {
    let status = job.status()?;
    if status.is_dispatching {
        return Err(JobError::Dispatching { job: job.id.clone() }.into());
    }
    let instead = format!(
        "`overlord job-status ID --output jsonl` names the items that are to be run again; give them to `overlord map TARGET {} --items FILE`",
        status.record.header.method
    );
    job.check_no_map(&status.record.header, &instead)?;
    let no_host = || RetryError::NoHost { job: job.id.clone(), states: states.iter().map(ToString::to_string).collect() };
    // Whoever reads the new job's target shall not read of states that no host is in.
    let there: BTreeSet<HostState> = status.record.hosts.values().map(|host| host.state).filter(|state| states.contains(state)).collect();
    if there.is_empty() {
        return Err(no_host());
    }
    let target = match job.fleet.target(&job_term::expression(&job.id, &there)) {
        Err(TargetError::Nothing { .. }) => return Err(no_host()),
        target => target?,
    };
    let header = status.record.header;
    if Parcel::is_needed(&header.method) {
        return Err(JobError::NotKept { job: job.id.clone() }.into());
    }
    let target = match header.job_limit_ms {
        Some(limit) => target.with_job_timeout(std::time::Duration::from_millis(limit)),
        None => target,
    };
    Ok(Dispatch::begin(&target, &header.method, header.args, Some(job.id.clone()))?)
}
