//! Jobs as the overlord sees them: [`Job`] is the handle; `log` is what is known, `dispatcher` sends, `poll` asks how far it is.

pub(crate) mod dispatcher;
pub(crate) mod log;
pub(crate) mod poll;
mod status;

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use common::identity::MinionName;
use common::job::{HostState, InvalidId, JobId, JobRecord, LogLine, normal_prefix};
use common::protocol::Arguments;

use crate::buckets::BucketError;
use crate::fleet::{Fleet, LinkError, Target};
use crate::hosts::RosterError;
use crate::store::{self, StoreError};
use dispatcher::Dispatch;
pub use dispatcher::StartError;
use log::{JobLog, LogError, LogFile};
use poll::{Answered, Inquiry};
pub use status::JobStatus;

/// The most ids that an error lists.
const LISTED_MAX: usize = 10;
/// How soon a job that is waited for is asked again, at first; each time it takes half as long again.
const WAIT_FIRST: Duration = Duration::from_millis(100);
/// How late, at last.
const WAIT_LONGEST: Duration = Duration::from_secs(5);

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
    /// The job is still being sent.
    #[error("the job {job} is still being sent to its hosts; try again when `overlord job-status {job}` does not say RUNNING")]
    Dispatching {
        /// The job.
        job: JobId,
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
    Store(#[from] StoreError),
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

/// What became of the wish to cancel a job on one host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cancellation {
    /// The host was told; this is the job's state there now.
    Told(HostState),
    /// It had ended before.
    HadEnded(HostState),
    /// It is still being sent there: it can be cancelled once it has been.
    BeingSent,
    /// The host could not be told.
    Unreachable(String),
}

/// A job that was started, here or by another program on the same home.
#[derive(Debug, Clone)]
pub struct Job {
    fleet: Fleet,
    id: JobId,
}

impl Job {
    pub(crate) fn start(target: &Target, method: &str, args: Arguments) -> Result<Self, StartError> {
        let dispatch = Dispatch::begin(target, method, args)?;
        let job = Self { fleet: target.fleet().clone(), id: dispatch.job_id().clone() };
        let spawned = thread::Builder::new().name("dispatcher".to_owned()).spawn(move || dispatch.run());
        spawned.map(|_| job.clone()).map_err(|source| StartError::Thread { job: job.id, source })
    }

    pub(crate) fn find(fleet: &Fleet, text: &str) -> Result<Self, JobError> {
        let prefix = normal_prefix(text)?;
        if prefix.is_empty() {
            text.parse::<JobId>()?;
        }
        let known = log::list(fleet.home())?;
        let mut ids: Vec<JobId> = known.into_iter().map(|(id, _)| id).filter(|id| id.as_str().starts_with(&prefix)).collect();
        match (ids.pop(), ids.is_empty()) {
            (Some(id), true) => Ok(Self { fleet: fleet.clone(), id }),
            (Some(id), false) => {
                ids.push(id);
                Err(JobError::Ambiguous { text: prefix, ids })
            }
            (None, _) => Err(JobError::Unknown { text: prefix }),
        }
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> &JobId {
        &self.id
    }

    /// How it stands on every host. Hosts that have not ended, or are `lost`, are asked, all at once; what they say is kept.
    /// A host that does not answer, or is not in the roster any more, stays as it was known, with a note.
    ///
    /// # Errors
    /// The job's log or the store cannot be read. That hosts cannot be asked at all is a warning.
    pub fn status(&self) -> Result<JobStatus, JobError> {
        let known = self.known()?;
        let inquiries = poll::inquiries(&known.record, known.is_dispatching);
        if inquiries.is_empty() {
            return Ok(known);
        }
        match self.ask(&known.record, inquiries) {
            Ok(answers) => self.learn(known, answers),
            Err(error) => {
                self.fleet.warn(&format!("hosts cannot be asked, so this is what was known before: {}", crate::chain(&error)));
                Ok(known)
            }
        }
    }

    /// How it stands as far as is known; no host is asked.
    ///
    /// # Errors
    /// The job's log or the store cannot be read.
    pub fn known(&self) -> Result<JobStatus, JobError> {
        // In this order: a dispatcher that ends in between has written all that it knows.
        let is_dispatching = log::is_dispatching(self.fleet.home(), &self.id)?;
        let record = store::with_store(&self.fleet, |store| store.record(&self.id))?;
        let record = record.ok_or_else(|| JobError::Unknown { text: self.id.to_string() })?;
        Ok(JobStatus { record, is_dispatching })
    }

    /// Asks again and again, every 100 ms at first and every 5 s at last, until it has ended or `within` has passed.
    ///
    /// # Errors
    /// As [`Job::status`].
    pub fn wait(&self, within: Duration) -> Result<JobStatus, JobError> {
        self.wait_each(Some(within), |_| ())
    }

    /// As [`Job::wait`], perhaps without end, and gives each status to `each`.
    ///
    /// # Errors
    /// As [`Job::status`].
    pub fn wait_each(&self, within: Option<Duration>, mut each: impl FnMut(&JobStatus)) -> Result<JobStatus, JobError> {
        let deadline = within.and_then(|within| Instant::now().checked_add(within));
        let mut pause = WAIT_FIRST;
        loop {
            let status = self.status()?;
            each(&status);
            let left = deadline.map_or(pause, |deadline| deadline.saturating_duration_since(Instant::now()));
            if status.state().has_ended() || left.is_zero() {
                return Ok(status);
            }
            thread::sleep(pause.min(left));
            pause = (pause + pause / 2).min(WAIT_LONGEST);
        }
    }

    /// Asks every host that holds the job, or `only` that one, to stop it, and says what became of that.
    ///
    /// # Errors
    /// The host is not one of the job's, hosts cannot be asked, or the log or store cannot be used.
    pub fn cancel(&self, only: Option<&MinionName>) -> Result<BTreeMap<MinionName, Cancellation>, JobError> {
        let known = self.known()?;
        if let Some(host) = only.filter(|host| !known.record.hosts.contains_key(host)) {
            return Err(JobError::NotAMember { job: self.id.clone(), host: host.clone() });
        }
        let is_meant = |host: &MinionName| only.is_none_or(|only| only == host);
        let mut inquiries = poll::inquiries(&known.record, known.is_dispatching);
        inquiries.retain(|inquiry| is_meant(&inquiry.host));
        let mut told = BTreeMap::new();
        for (name, host) in known.record.hosts.iter().filter(|(name, _)| is_meant(name)) {
            let fate = if host.state.is_final() { Cancellation::HadEnded(host.state) } else { Cancellation::BeingSent };
            told.insert(name.clone(), fate);
        }
        if inquiries.is_empty() {
            return Ok(told);
        }
        let answers = self.ask(&known.record, inquiries.into_iter().map(Inquiry::into_cancel).collect())?;
        for (inquiry, answer) in &answers {
            told.insert(
                inquiry.host.clone(),
                match answer {
                    Ok(report) => Cancellation::Told(report.progress.state()),
                    Err(silence) => Cancellation::Unreachable(silence.reason().to_owned()),
                },
            );
        }
        self.learn(known, answers)?;
        Ok(told)
    }

    fn ask(&self, record: &JobRecord, inquiries: Vec<Inquiry>) -> Result<Vec<Answered>, JobError> {
        let link = self.fleet.link()?;
        // A fence binds the caller who set it: another's would leave the call free to start.
        if link.caller != record.header.caller {
            let (caller, own) = (record.header.caller.to_string(), link.caller.to_string());
            return Err(JobError::OtherCaller { job: self.id.clone(), caller, own });
        }
        poll::ask(&self.fleet, link, inquiries)
    }

    /// Writes down what is new, and gives what is known then.
    fn learn(&self, known: JobStatus, answers: Vec<Answered>) -> Result<JobStatus, JobError> {
        let mut record = known.record;
        let lines = poll::news(&mut record, &answers, self.fleet.config().lost_after);
        match self.write_down(&lines) {
            Ok(()) if lines.is_empty() => Ok(JobStatus { record, is_dispatching: known.is_dispatching }),
            Ok(()) => self.known(),
            Err(error) => {
                self.fleet.warn(&format!("what the hosts said could not be kept: {}", crate::chain(&error)));
                Ok(JobStatus { record, is_dispatching: known.is_dispatching })
            }
        }
    }

    fn write_down(&self, lines: &[LogLine]) -> Result<(), LogError> {
        if lines.is_empty() {
            return Ok(());
        }
        append_all(&mut JobLog::open(self.fleet.home(), &self.id)?, lines)
    }
}

fn append_all<F: LogFile>(log: &mut JobLog<F>, lines: &[LogLine]) -> Result<(), LogError> {
    lines.iter().try_for_each(|line| log.append(line))?;
    log.sync()
}

#[cfg(test)]
mod tests;
