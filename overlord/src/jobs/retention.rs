//! Room for jobs: those that were kept long enough are given up, and where that makes no room a new one is refused. What may go is
//! the rule of [`common::job::retention`]; a job that has not ended, or whose dispatcher lives, is never touched here.

use std::time::Duration;

use common::job::JobId;
use common::job::retention::{Holdings, KEPT_AT_LEAST};

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
    let held = held(fleet)?;
    let ended = store::ended(fleet, SWEEP_WITHIN)?;
    let sizes: std::collections::BTreeMap<JobId, u64> = ended.iter().map(|job| (job.id.clone(), job.bytes)).collect();
    let mut gone = Vec::new();
    for job in fleet.config().retention.rule().given_up::<JobId>(ended, held).into_iter().take(GIVEN_UP_MAX) {
        if give_up(fleet, &job, sizes.get(&job).copied().unwrap_or(0))? {
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
