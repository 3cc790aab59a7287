//! Jobs as the overlord sees them: [`Job`] is the handle; `log` is what is known, `dispatcher` sends, `poll` asks how far it is.

mod delete;
pub(crate) mod dispatcher;
mod error;
pub(crate) mod log;
pub(crate) mod logs;
pub(crate) mod map;
mod parcel;
pub(crate) mod poll;
pub(crate) mod retention;
pub(crate) mod retry;
mod status;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::ops::ControlFlow;
use std::thread;
use std::time::{Duration, Instant};

use common::identity::MinionName;
use common::job::{HostState, JobHeader, JobId, JobRecord, LogLine, normal_prefix};
use common::protocol::Arguments;

use crate::fleet::{Fleet, Target};
use crate::store::{self, StoreError};
pub use delete::Deletion;
use dispatcher::Dispatch;
pub use dispatcher::StartError;
pub use error::JobError;
use log::{JobLog, LogError};
pub use logs::{Follow, HostLogs, LOGS_TOGETHER_MAX_BYTES, LogEnd, LogEvent};
pub use map::MapCancellation;
pub use parcel::ParcelError;
use poll::{Answered, Inquiry, Question};
pub use retry::RetryError;
pub use status::JobStatus;

/// How soon a job that is waited for is asked again, at first; each time it takes half as long again.
const WAIT_FIRST: Duration = Duration::from_millis(100);
/// How late, at last.
const WAIT_LONGEST: Duration = Duration::from_secs(5);
/// How often a host is asked by one wish to cancel: by a fence, and then by the job's id there.
const CANCEL_ROUNDS: usize = 2;

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
        Self::launch(target.fleet(), Dispatch::begin(target, method, args, None)?)
    }

    fn launch(fleet: &Fleet, dispatch: Dispatch) -> Result<Self, StartError> {
        let job = Self { fleet: fleet.clone(), id: dispatch.job_id().clone() };
        let spawned = thread::Builder::new().name("dispatcher".to_owned()).spawn(move || dispatch.run());
        spawned.map(|_| job.clone()).map_err(|source| StartError::Thread { job: job.id, source })
    }

    fn known_as(fleet: &Fleet, id: &JobId) -> Self {
        Self { fleet: fleet.clone(), id: id.clone() }
    }

    pub(crate) fn find(fleet: &Fleet, text: &str) -> Result<Self, JobError> {
        let prefix = normal_prefix(text)?;
        if prefix.is_empty() {
            text.parse::<JobId>()?;
        }
        let job = |id| Self { fleet: fleet.clone(), id };
        if let Ok(id) = text.parse::<JobId>() {
            return if log::exists(fleet.home(), &id)? { Ok(job(id)) } else { Err(JobError::Unknown { text: prefix }) };
        }
        let known = log::list(fleet.home())?;
        let mut ids: Vec<JobId> = known.into_iter().map(|(id, _)| id).filter(|id| id.as_str().starts_with(&prefix)).collect();
        match (ids.pop(), ids.is_empty()) {
            (Some(id), true) => Ok(job(id)),
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
        self.status_until(None)
    }

    /// The same, where no host is asked any more once it is `until`: it stays as it was known.
    pub(crate) fn status_until(&self, until: Option<Instant>) -> Result<JobStatus, JobError> {
        let mut known = self.known()?;
        let inquiries = poll::inquiries(&known.record, known.is_dispatching);
        if inquiries.is_empty() {
            return Ok(known);
        }
        match self.learn(&mut known.record, (inquiries, until), |_| ()) {
            Ok(true) => self.known().map(|mut status| {
                status.record.take_progress(&known.record);
                status
            }),
            Ok(false) => Ok(known),
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
        // A dispatcher that ends before the record is read has written all that it knows; one that begins before, and has
        // written which hosts it sends the job again, is found afterwards.
        let is_dispatching = || log::is_dispatching(self.fleet.home(), &self.id).map_err(|error| self.missing(error));
        let was_dispatching = is_dispatching()?;
        let record = store::record(&self.fleet, &self.id).map_err(|error| match error {
            StoreError::LogDamaged { .. } => JobError::Damaged { job: self.id.clone(), reason: error.to_string() },
            other => JobError::Store(other),
        })?;
        let record = record.ok_or_else(|| JobError::Unknown { text: self.id.to_string() })?;
        Ok(JobStatus { record, is_dispatching: was_dispatching || is_dispatching()? })
    }

    /// A job whose log is gone was deleted.
    fn missing(&self, error: LogError) -> JobError {
        if error.is_missing() { JobError::Unknown { text: self.id.to_string() } } else { error.into() }
    }

    /// Asks again and again, every 100 ms at first and every 5 s at last, until it has ended or `within` has passed.
    ///
    /// # Errors
    /// As [`Job::status`].
    pub fn wait(&self, within: Duration) -> Result<JobStatus, JobError> {
        let sleep = |_: &JobStatus, pause| {
            thread::sleep(pause);
            ControlFlow::<Infallible>::Continue(())
        };
        match self.wait_each(Some(within), sleep)? {
            ControlFlow::Continue(status) => Ok(status),
            ControlFlow::Break(never) => match never {},
        }
    }

    /// As [`Job::wait`], perhaps without end. Each status is given to `each`, with how long to wait until the next is asked for, which
    /// is left to `each`, too: zero with the last. It may break off.
    ///
    /// # Errors
    /// As [`Job::status`].
    pub fn wait_each<B>(
        &self,
        within: Option<Duration>,
        mut each: impl FnMut(&JobStatus, Duration) -> ControlFlow<B>,
    ) -> Result<ControlFlow<B, JobStatus>, JobError> {
        let deadline = within.and_then(|within| Instant::now().checked_add(within));
        let mut pause = WAIT_FIRST;
        loop {
            let status = self.status()?;
            let left = deadline.map_or(pause, |deadline| deadline.saturating_duration_since(Instant::now()));
            let now = if status.state().has_ended() { Duration::ZERO } else { pause.min(left) };
            if let ControlFlow::Break(value) = each(&status, now) {
                return Ok(ControlFlow::Break(value));
            }
            if now.is_zero() {
                return Ok(ControlFlow::Continue(status));
            }
            pause = (pause + pause / 2).min(WAIT_LONGEST);
        }
    }

    /// Asks every host that holds the job, or `only` that one, to stop it, and says what became of that.
    ///
    /// # Errors
    /// The host is not one of the job's, hosts cannot be asked, or the log or store cannot be used.
    pub fn cancel(&self, only: Option<&MinionName>) -> Result<BTreeMap<MinionName, Cancellation>, JobError> {
        let JobStatus { mut record, is_dispatching } = self.known()?;
        self.check_no_map(&record.header, "it is ended as a whole, by `overlord job-cancel ID` without a host")?;
        if let Some(host) = only.filter(|host| !record.hosts.contains_key(host)) {
            return Err(JobError::NotAMember { job: self.id.clone(), host: host.clone() });
        }
        let is_meant = |host: &MinionName| only.is_none_or(|only| only == host);
        let mut inquiries = poll::inquiries(&record, is_dispatching);
        inquiries.retain(|inquiry| is_meant(&inquiry.host));
        let mut told = BTreeMap::new();
        for (name, host) in record.hosts.iter().filter(|(name, _)| is_meant(name)) {
            let fate = if host.state.is_final() { Cancellation::HadEnded(host.state) } else { Cancellation::BeingSent };
            told.insert(name.clone(), fate);
        }
        // A fence tells a host that holds the job nothing: such a host is told in a second round, by the id that it gave.
        for _ in 0..CANCEL_ROUNDS {
            if inquiries.is_empty() {
                break;
            }
            let asked = std::mem::take(&mut inquiries).into_iter().map(Inquiry::into_cancel).collect();
            self.learn(&mut record, (asked, None), |answered| {
                inquiries.extend(still_to_tell(answered));
                told.insert(answered.0.host.clone(), fate(answered));
            })?;
        }
        Ok(told)
    }

    fn check_caller(&self, header: &JobHeader) -> Result<(), JobError> {
        let own = &self.fleet.link()?.caller;
        if *own == header.caller {
            return Ok(());
        }
        Err(JobError::OtherCaller { job: self.id.clone(), caller: header.caller.to_string(), own: own.to_string() })
    }

    /// What makes no sense for items is refused.
    fn check_no_map(&self, header: &JobHeader, instead: &str) -> Result<(), JobError> {
        match header.map {
            Some(_) => Err(JobError::IsMap { job: self.id.clone(), instead: instead.replace("ID", self.id.as_str()) }),
            None => Ok(()),
        }
    }

    /// Asks, and gives every line that says something new to `keep`, and every answer to `each`, as it arrives. What is new is
    /// in `record` then, too.
    fn ask(
        &self,
        record: &mut JobRecord,
        (inquiries, until): (Vec<Inquiry>, Option<Instant>),
        mut keep: impl FnMut(&LogLine) -> Result<(), LogError>,
        mut each: impl FnMut(&Answered),
    ) -> Result<Learnt, JobError> {
        let link = self.fleet.link()?;
        // A fence binds the caller who set it: another's would leave the call free to start.
        self.check_caller(&record.header)?;
        let lost_after = self.fleet.config().lost_after;
        let mut learnt = Learnt { has_news: false, kept: Ok(()) };
        poll::ask(&self.fleet, link, inquiries, until, |answered| {
            let answered = poll::checked(record, answered);
            let lines = poll::news(record, &answered, lost_after);
            learnt.has_news |= !lines.is_empty();
            if learnt.kept.is_ok() {
                learnt.kept = lines.iter().try_for_each(&mut keep);
            }
            each(&answered);
        })?;
        Ok(learnt)
    }

    /// Asks, and writes down what is new, answer by answer. Gives whether there was news, and the log has all of it.
    fn learn(
        &self,
        record: &mut JobRecord,
        inquiries: (Vec<Inquiry>, Option<Instant>),
        each: impl FnMut(&Answered),
    ) -> Result<bool, JobError> {
        let mut opened: Option<JobLog> = None;
        let keep = |line: &LogLine| match &mut opened {
            Some(log) => log.append(line),
            None => opened.insert(JobLog::open(self.fleet.home(), &self.id)?).append(line),
        };
        let Learnt { has_news, kept } = self.ask(record, inquiries, keep, each)?;
        if !has_news {
            return Ok(false);
        }
        let kept = kept.and_then(|()| opened.map_or(Ok(()), |log| log.sync()));
        let kept = kept.inspect_err(|error| self.fleet.warn(&format!("what the hosts said could not be kept: {}", crate::chain(error))));
        Ok(kept.is_ok())
    }
}

/// What came of asking.
struct Learnt {
    has_news: bool,
    /// Once a line cannot be written, none is.
    kept: Result<(), LogError>,
}

/// What an answer to the wish means.
fn fate((inquiry, answer): &Answered) -> Cancellation {
    match answer {
        Ok(report) if matches!(inquiry.question, Question::Cancel(_)) || report.progress.state().is_final() => {
            Cancellation::Told(report.progress.state())
        }
        Ok(_) => Cancellation::Unreachable("it holds the job, and was not told to stop it".to_owned()),
        Err(unheard) => Cancellation::Unreachable(unheard.reason(&inquiry.host)),
    }
}

/// The question that stops the job on a host of which the fence found that it holds the job.
fn still_to_tell((inquiry, answer): &Answered) -> Option<Inquiry> {
    match (answer, &inquiry.question) {
        (Ok(report), Question::Fence(_)) if !report.progress.state().is_final() => {
            Some(Inquiry { question: Question::Cancel(report.minion_job_id.clone()), ..inquiry.clone() })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests;
