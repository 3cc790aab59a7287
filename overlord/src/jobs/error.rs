//! Why nothing can be said of a job, or done about it.

use common::identity::MinionName;
use common::job::{InvalidId, JobId};

use super::log::LogError;
use crate::buckets::BucketError;
use crate::fleet::LinkError;
use crate::hosts::RosterError;
use crate::store::StoreError;

/// The most ids that an error lists.
const LISTED_MAX: usize = 10;

/// Why nothing can be said of a job, or done about it.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// The text is no job id.
    #[error(transparent)]
    Id(#[from] InvalidId),
    /// Several jobs have ids that begin so.
    #[error("{} job ids begin with \"{text}\": {}", .ids.len(), listed(.ids))]
    Ambiguous {
        /// As it was given.
        text: String,
        /// The ids.
        ids: Vec<JobId>,
    },
    /// No job has it.
    #[error("no job {text} is known here; `overlord job-list` lists those that are")]
    Unknown {
        /// As it was given, or the id.
        text: String,
    },
    /// What it is cannot be read.
    #[error("the job {job} cannot be known: {reason}")]
    Damaged {
        /// The job.
        job: JobId,
        /// Which file, where, and how.
        reason: String,
    },
    /// It is still at work somewhere.
    #[error("the job {job} has not ended; stop it with `overlord job-cancel {job}`, and delete it then")]
    NotEnded {
        /// The job.
        job: JobId,
    },
    /// The job is still being sent.
    #[error("the job {job} is still being sent to its hosts; try again when `overlord job-status {job}` does not say RUNNING")]
    Dispatching {
        /// The job.
        job: JobId,
    },
    /// It had brought a package to its hosts, which is not kept here.
    #[error("{}", super::parcel::not_kept(.job))]
    NotKept {
        /// The job.
        job: JobId,
    },
    /// It is a map, with which that cannot be done.
    #[error("the job {job} is a map: {instead}")]
    IsMap {
        /// The job.
        job: JobId,
        /// What can be done.
        instead: String,
    },
    /// A map cannot go on.
    #[error(
        "the map {job} cannot go on: {reason}; `overlord job-status {job}` says how it stands, and `overlord job-cancel {job}` ends it"
    )]
    Stuck {
        /// The job.
        job: JobId,
        /// Why.
        reason: String,
    },
    /// Somebody else's.
    #[error("the job {job} was started by {caller}, and this overlord's certificate is that of {own}")]
    OtherCaller {
        /// The job.
        job: JobId,
        /// Who started it.
        caller: String,
        /// Who we are.
        own: String,
    },
    /// The host is not one of the job's.
    #[error("the job {job} was not sent to {host}; `overlord job-status {job}` lists its hosts")]
    NotAMember {
        /// The job.
        job: JobId,
        /// The host.
        host: MinionName,
    },
    /// The store cannot be used.
    #[error(transparent)]
    Store(StoreError),
    /// The log cannot be used.
    #[error(transparent)]
    Log(#[from] LogError),
    /// We cannot talk to hosts.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// There is no roster to find them in.
    #[error(transparent)]
    Roster(#[from] RosterError),
    /// Threads cannot be started.
    #[error(transparent)]
    Buckets(#[from] BucketError),
}

fn listed(ids: &[JobId]) -> String {
    let mut text: Vec<&str> = ids.iter().take(LISTED_MAX).map(JobId::as_str).collect();
    if ids.len() > LISTED_MAX {
        text.push("…");
    }
    text.join(" ")
}
