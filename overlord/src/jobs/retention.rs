//! Room for jobs: those that were kept long enough are given up, and where that makes no room a new one is refused; hosts are asked after jobs
//! that nobody asks about, as only what is known to have ended can go. What may go is the rule of [`common::job::retention`]; a job that has not ended, or whose dispatcher lives, is never touched here.

use std::cmp::Reverse;
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};

use common::job::JobId;
use common::job::retention::{EndedJob, Holdings, KEPT_AT_LEAST};

use jiff::Timestamp;

use super::Job;
use super::log::{self, JobLog, LogError};
use crate::envelope::later;
use crate::fleet::Fleet;
use crate::map::kept;
use crate::store::{self, Standing, StoreError};

/// The most jobs that are given up at once: the rest have their turn with the next command.
const GIVEN_UP_MAX: usize = 100;
/// How long looking for them may take, and how long forgetting them, the waiting for the store aside.
const SWEEP_WITHIN: Duration = Duration::from_millis(500);
/// The most jobs that are asked after at once.
const ASKED_MAX: usize = 20;
/// How long asking after them may take, besides what the last host may take to answer.
const ASKED_WITHIN: Duration = Duration::from_secs(30);
/// A job of which nothing was heard for so long is one that nobody asks about; the others are left to those who started them.
const QUIET_FOR: Duration = Duration::from_secs(10 * 60);

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
    if let Err(error) = make_room(fleet) {
        fleet.warn(&format!("jobs that were kept long enough could not be given up: {}", crate::chain(&error)));
    }
    let minutes = KEPT_AT_LEAST.as_secs() / 60;
    let refused = rule.refusal(held(fleet)?);
    Ok(refused.map(|why| format!("{why}; none of them may go yet, as each is kept for {minutes} minutes after its end, or has not ended")))
}

/// Gives up what may go. Where that is not enough, jobs are asked after, however lately something was heard of them.
fn make_room(fleet: &Fleet) -> Result<(), SweepError> {
    let Standing { ended, open, held } = store::standing(fleet, SWEEP_WITHIN)?;
    sweep_of(fleet, ended, held)?;
    if fleet.config().retention.rule().refusal(self::held(fleet)?).is_some() && ask_after(fleet, &open, Duration::ZERO, chance()) > 0 {
        sweep(fleet)?;
    }
    Ok(())
}

/// What is done for the jobs of earlier days once a new one is sent: those whose time has come are given up, and hosts are asked after those
/// of which nobody has heard for a while.
pub(super) fn tidy(fleet: &Fleet) -> Result<(), SweepError> {
    let Standing { ended, open, held } = store::standing(fleet, SWEEP_WITHIN)?;
    let swept = sweep_of(fleet, ended, held);
    ask_after(fleet, &open, QUIET_FOR, chance());
    swept
}

/// Gives up the jobs whose time has come, a bounded number of them.
pub(crate) fn sweep(fleet: &Fleet) -> Result<(), SweepError> {
    let Standing { ended, held, .. } = store::standing(fleet, SWEEP_WITHIN)?;
    sweep_of(fleet, ended, held)
}

/// The same, where it was looked up already what has `ended` and what is `held`.
pub(crate) fn sweep_of(fleet: &Fleet, mut ended: Vec<EndedJob<JobId>>, held: Holdings) -> Result<(), SweepError> {
    ended.sort_by_key(|job| Reverse(job.age));
    let ended = ended.into_iter().map(|EndedJob { id, age, proven, bytes }| EndedJob { id: (id, bytes), age, proven, bytes });
    let mut gone = Vec::new();
    for (job, bytes) in fleet.config().retention.rule().given_up(ended, held, GIVEN_UP_MAX) {
        match give_up(fleet, &job, bytes) {
            Ok(true) => gone.push(job),
            Ok(false) => {}
            // One that cannot be removed keeps no other.
            Err(error) => fleet.warn(&format!("the job {job} cannot be given up: {}", crate::chain(&error))),
        }
    }
    let swept = log::sweep_empty(fleet.home());
    kept::sweep(fleet.home());
    if gone.is_empty() {
        return Ok(swept?);
    }
    let synced = log::sync_logs(fleet.home());
    store::forget(fleet, gone, SWEEP_WITHIN)?;
    Ok(swept.and(synced)?)
}

/// Asks how those jobs stand which nobody sends, and of which nothing was heard for `quiet`: what has ended while nobody asked gets its end.
/// One process does so at a time. Gives how many have been asked after.
pub(super) fn ask_after(fleet: &Fleet, open: &[(JobId, Timestamp)], quiet: Duration, chance: usize) -> usize {
    let now = Timestamp::now();
    // A clock that was set back makes no job a young one for ever.
    let is_quiet = |heard_at: &Timestamp| *heard_at > now || later(*heard_at, quiet) <= now;
    let is_sent = |job: &JobId| !log::is_dispatching(fleet.home(), job).unwrap_or(true);
    let quiet: Vec<&JobId> = open.iter().filter(|(_, heard_at)| is_quiet(heard_at)).map(|(job, _)| job).collect();
    if quiet.is_empty() {
        return 0;
    }
    let lock = match the_asker(fleet) {
        Ok(Some(lock)) => lock,
        Ok(None) => return 0,
        Err(error) => {
            fleet.warn(&format!("jobs are not asked after: {error}"));
            return 0;
        }
    };
    let until = Instant::now() + ASKED_WITHIN;
    let mut asked = 0;
    for job in chosen(&quiet, chance).filter(|job| is_sent(job)).take(ASKED_MAX) {
        if Instant::now() >= until {
            break;
        }
        asked += 1;
        if let Err(error) = Job::known_as(fleet, job).status_until(Some(until)) {
            fleet.warn(&format!("asking after the job {job}: {}", crate::chain(&error)));
        }
    }
    drop(lock);
    asked
}

/// All of them, the oldest first; or, as often, from one on that chance picks, as the oldest may be those that take longest to end.
fn chosen<'j>(jobs: &[&'j JobId], chance: usize) -> impl Iterator<Item = &'j JobId> {
    let start = if chance.is_multiple_of(2) { 0 } else { chance / 2 % jobs.len().max(1) };
    jobs.iter().copied().cycle().skip(start).take(jobs.len())
}

fn chance() -> usize {
    usize::try_from(Timestamp::now().subsec_nanosecond()).unwrap_or(0) / 1000
}

/// The lock of who asks after jobs; none if somebody else does.
fn the_asker(fleet: &Fleet) -> io::Result<Option<File>> {
    let path = fleet.home().asking_lock();
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
    }
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
