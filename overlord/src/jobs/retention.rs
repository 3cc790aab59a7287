//! Room for jobs: those that were kept long enough are given up, and where that makes no room a new one is refused. What may go is
//! the rule of [`common::job::retention`]; a job that has not ended, or whose dispatcher lives, is never touched here.

use std::cmp::Reverse;
use std::time::Duration;

use common::job::JobId;
use common::job::retention::{EndedJob, Holdings, KEPT_AT_LEAST};

use super::log::{self, JobLog, LogError};
use crate::fleet::Fleet;
use crate::store::{self, StoreError};

/// The most jobs that are given up at once: the rest have their turn with the next command.
const GIVEN_UP_MAX: usize = 100;
/// How long looking for them may take, and how long forgetting them, the waiting for the store aside.
const SWEEP_WITHIN: Duration = Duration::from_millis(500);

/// Why jobs could not be given up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SweepError {
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why there is no room for one more job, after all was given up that may be; none if there is.
pub(super) fn refusal(fleet: &Fleet) -> Result<Option<String>, LogError> {
    let rule = fleet.config().retention.rule();
    if rule.refusal(held(fleet)?).is_none() {
        return Ok(None);
    }
    if let Err(error) = sweep(fleet) {
        fleet.warn(&format!("jobs that were kept long enough could not be given up: {}", crate::chain(&error)));
    }
    let minutes = KEPT_AT_LEAST.as_secs() / 60;
    let refused = rule.refusal(held(fleet)?);
    Ok(refused.map(|why| format!("{why}; none of them may go yet, as each is kept for {minutes} minutes after its end, or has not ended")))
}

/// Gives up the jobs whose time has come, a bounded number of them.
pub(crate) fn sweep(fleet: &Fleet) -> Result<(), SweepError> {
    let (ended, held) = store::ended(fleet, SWEEP_WITHIN)?;
    sweep_of(fleet, ended, held)
}

/// The same, where it was looked up already what has `ended` and what is `held`.
pub(crate) fn sweep_of(fleet: &Fleet, mut ended: Vec<EndedJob<JobId>>, held: Holdings) -> Result<(), SweepError> {
    ended.sort_by_key(|job| Reverse(job.age));
    let ended = ended.into_iter().map(|EndedJob { id, age, proven, bytes }| EndedJob { id: (id, bytes), age, proven, bytes });
    let mut gone = Vec::new();
    for (job, bytes) in fleet.config().retention.rule().given_up(ended, held, GIVEN_UP_MAX) {
        if give_up(fleet, &job, bytes)? {
            gone.push(job);
        }
    }
    if gone.is_empty() {
        return Ok(());
    }
    log::sync_logs(fleet.home())?;
    Ok(store::forget(fleet, gone, SWEEP_WITHIN)?)
}

/// Deletes the log, unless somebody works for the job, or has written into its log since it was judged.
fn give_up(fleet: &Fleet, job: &JobId, bytes: u64) -> Result<bool, LogError> {
    let locked = match JobLog::open(fleet.home(), job).and_then(JobLog::try_lock) {
        Err(error) if error.is_missing() => return Ok(false),
        locked => locked?,
    };
    match locked {
        Some(log) if log.bytes()? == bytes => log.delete().map(|()| true),
        Some(_) | None => Ok(false),
    }
}

fn held(fleet: &Fleet) -> Result<Holdings, LogError> {
    let logs = log::list(fleet.home())?;
    Ok(Holdings { count: logs.len(), bytes: logs.iter().map(|(_, bytes)| bytes).sum() })
}
