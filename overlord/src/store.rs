//! `jobs.sled`: the fold of all job logs, from which status is answered. Only `store/` of the crate names sled.
//!
//! It is open for as long as one piece of work takes, never while hosts are asked. It can always be rebuilt: with each job it
//! keeps how many bytes of the log are folded, so what is missing is read from the log before anything is answered. A store
//! that is damaged is set aside, one of a newer version is left alone, and where none can be used the logs are folded in memory.

mod access;
mod db;
mod fold;
mod format;

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use common::job::retention::{EndedJob, Holdings};
use common::job::{HostState, JobHeader, JobId, JobRecord};
use jiff::Timestamp;

use crate::fleet::Fleet;
use crate::home::Home;
use crate::jobs::log::{self, LogError};
use access::with_store;
use fold::{Fold, counts};

/// Why the job store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Others have it open.
    #[error(
        "other commands have been using {} for {waited:?}; try again, or raise store_wait in overlord.toml", .path.display()
    )]
    Busy {
        /// The store.
        path: PathBuf,
        /// For how long it was waited.
        waited: Duration,
    },
    /// It does not come to an end: the disk is full, or hangs.
    #[error("the job store {} is stuck: nothing came of it within {waited:?}", .path.display())]
    Stuck {
        /// The store.
        path: PathBuf,
        /// For how long it was waited.
        waited: Duration,
    },
    /// Its files cannot be used.
    #[error("{doing} {}", .path.display())]
    File {
        /// What was being done.
        doing: &'static str,
        /// With what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// It holds what it cannot hold.
    #[error("the job store {} is damaged: {reason}", .path.display())]
    Damaged {
        /// The store.
        path: PathBuf,
        /// How that was noticed.
        reason: String,
    },
    /// A log cannot be read.
    #[error(transparent)]
    Log(#[from] LogError),
    /// A log does not say what the job is, and neither does the store.
    #[error("its log is damaged: {problem}")]
    LogDamaged {
        /// Where, and how.
        problem: String,
    },
}

/// A job in brief.
#[derive(Debug, Clone, PartialEq)]
pub struct JobSummary {
    /// The job.
    pub job_id: JobId,
    /// `module.method`.
    pub method: String,
    /// The target as it was typed.
    pub target: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// How many of its hosts are in which state; of a map, of its items.
    pub counts: BTreeMap<HostState, usize>,
    /// It is a map.
    pub is_map: bool,
}

impl JobSummary {
    fn of(record: JobRecord) -> Self {
        let counts = counts(&record);
        let JobRecord { header: JobHeader { job_id, method, target, map, .. }, created_at, .. } = record;
        Self { job_id, method, target, created_at, counts, is_map: map.is_some() }
    }
}

/// All that the job's log says, and which the store then says, too. None if there is no log, or one in which nothing stands.
///
/// # Errors
/// Nothing can be read, or what the job is cannot: [`StoreError::LogDamaged`].
pub(crate) fn record(fleet: &Fleet, job: &JobId) -> Result<Option<JobRecord>, StoreError> {
    let own = job.clone();
    match with_store(fleet, move |store| store.record(&own)) {
        Err(error) if is_of_the_store(&error) => {
            fleet.warn(&format!("this is from the job's log alone: {}", crate::chain(&error)));
            match from_log(fleet.home(), job, |problem| fleet.warn(problem)) {
                // The store may say what the log does not, once it can be used.
                Err(StoreError::LogDamaged { .. }) => Err(error),
                told => told,
            }
        }
        done => done,
    }
}

/// Brings the store up to the job's log.
pub(crate) fn fold(fleet: &Fleet, job: &JobId) -> Result<(), StoreError> {
    let own = job.clone();
    with_store(fleet, move |store| store.record(&own).map(|_| ()))
}

/// Which jobs are listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Listed {
    /// All.
    All,
    /// Those that have not ended, and so many of the others, the newest.
    Newest(usize),
}

/// What there is.
#[derive(Debug, Default)]
pub(crate) struct Overview {
    /// The jobs that are listed, in brief, oldest first.
    pub(crate) jobs: Vec<JobSummary>,
    /// How many are not.
    pub(crate) more: usize,
    /// Those that have ended.
    pub(crate) ended: Vec<EndedJob<JobId>>,
    /// All.
    pub(crate) held: Holdings,
}

/// Every job in brief.
pub(crate) fn overview(fleet: &Fleet, listed: Listed) -> Result<Overview, StoreError> {
    match with_store(fleet, move |store| store.overview(listed)) {
        Err(error) if is_of_the_store(&error) => {
            fleet.warn(&format!("this is from the job logs alone: {}", crate::chain(&error)));
            let mut overview = Overview::default();
            for (job, _) in log::list(fleet.home())? {
                match from_log(fleet.home(), &job, |problem| fleet.warn(problem)) {
                    Ok(record) => overview.jobs.extend(record.map(JobSummary::of)),
                    Err(error) => fleet.warn(&of_job(&job, &error)),
                }
            }
            Ok(overview)
        }
        done => done,
    }
}

/// How far the jobs are, as far as is known.
#[derive(Debug, Default)]
pub(crate) struct Standing {
    /// Those that have ended.
    pub(crate) ended: Vec<EndedJob<JobId>>,
    /// The others, oldest first, and when something was last heard of each.
    pub(crate) open: Vec<(JobId, Timestamp)>,
    /// All.
    pub(crate) held: Holdings,
}

/// Which jobs are known to have ended and which not, and how much there is in all. Logs that were written to since they were last looked at are read
/// for no longer than `within`. Of jobs whose logs are gone the store forgets what it holds.
pub(crate) fn standing(fleet: &Fleet, within: Duration) -> Result<Standing, StoreError> {
    with_store(fleet, move |store| store.standing(Instant::now() + within))
}

/// Forgets jobs whose logs are gone, for no longer than `within`; of what is left [`standing`] reminds it.
pub(crate) fn forget(fleet: &Fleet, jobs: Vec<JobId>, within: Duration) -> Result<(), StoreError> {
    with_store(fleet, move |store| store.forget(&jobs, Instant::now() + within))
}

fn of_job(job: &JobId, error: &StoreError) -> String {
    format!("the job {job} cannot be listed: {}", crate::chain(error))
}

/// What the store cannot say, the logs can.
fn is_of_the_store(error: &StoreError) -> bool {
    match error {
        StoreError::Busy { .. } | StoreError::Stuck { .. } | StoreError::File { .. } | StoreError::Damaged { .. } => true,
        StoreError::Log(_) | StoreError::LogDamaged { .. } => false,
    }
}

fn from_log(home: &Home, job: &JobId, warn: impl Fn(&str)) -> Result<Option<JobRecord>, StoreError> {
    let path = home.job_log(job);
    if !log::exists(home, job)? {
        return Ok(None);
    }
    let mut fold = Fold::default();
    let mut header_problem = None;
    log::read(&path, 0, |line| match line {
        Ok(line) => fold.add(&line),
        Err(damage) => {
            warn(&damage.problem);
            fold.miss(&damage);
            if damage.is_header {
                header_problem = Some(damage.problem);
            }
        }
    })?;
    match (fold.close().0, header_problem) {
        (None, Some(problem)) => Err(StoreError::LogDamaged { problem }),
        (record, _) => Ok(record),
    }
}

#[cfg(test)]
mod tests;
