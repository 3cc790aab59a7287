//! Deleting a job that has ended: on its hosts, as far as they can be asked, and then here.

use std::collections::BTreeMap;
use std::time::Duration;

use common::identity::MinionName;
use common::job::JobRecord;
use common::outcome::ErrorCode;

use super::log::{self, JobLog, LockedLog};
use super::poll::{self, Inquiry, Question, Unheard};
use super::{Job, JobError, JobStatus};
use crate::store;

/// How long the store may take to forget it; what is left is forgotten later.
const FORGET_WITHIN: Duration = Duration::from_secs(5);

/// What became of a job on a host that held it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Deletion {
    /// The host has deleted it.
    Deleted,
    /// The host did not know it any more.
    WasGone,
    /// The host could not be asked, or refuses, for this reason; it drops the job when its own retention says so.
    Kept(String),
}

impl Job {
    /// Deletes the job: its hosts are asked to, all at once, and whatever they say it is deleted here. Gives what became of it on each
    /// host that held it.
    ///
    /// # Errors
    /// It has not ended, or is still being sent; or it cannot be deleted here.
    pub fn delete(&self) -> Result<BTreeMap<MinionName, Deletion>, JobError> {
        // It may have ended without our knowing.
        let status = match self.status() {
            Err(JobError::Damaged { .. }) => None,
            status => Some(status?),
        };
        let log = self.open_log()?.lock()?.ok_or_else(|| JobError::Dispatching { job: self.id.clone() })?;
        let told = match status {
            // Of what nobody can know there is nobody to tell.
            None => BTreeMap::new(),
            Some(_) => {
                // The log is ours now: nobody sends it again from here on.
                let JobStatus { record, .. } = self.known()?;
                if !record.state(false).has_ended() {
                    return Err(JobError::NotEnded { job: self.id.clone() });
                }
                self.tell_holders(&record)
            }
        };
        self.delete_here(log)?;
        Ok(told)
    }

    pub(super) fn open_log(&self) -> Result<JobLog, JobError> {
        JobLog::open(self.fleet.home(), &self.id).map_err(|error| self.missing(error))
    }

    fn delete_here(&self, log: LockedLog) -> Result<(), JobError> {
        log.delete()?;
        log::sync_logs(self.fleet.home())?;
        // Without its log it is no job any more; what the store holds of it is swept at some later time.
        if let Err(error) = store::forget(&self.fleet, vec![self.id.clone()], FORGET_WITHIN) {
            self.fleet.warn(&crate::chain(&error));
        }
        Ok(())
    }

    fn tell_holders(&self, record: &JobRecord) -> BTreeMap<MinionName, Deletion> {
        let holders = record.hosts.iter().filter_map(|(name, host)| Some((name, host.attempt, host.minion_job_id.clone()?)));
        let inquiries: Vec<Inquiry> =
            holders.map(|(name, attempt, id)| Inquiry { host: name.clone(), attempt, question: Question::Delete(id) }).collect();
        let unasked = |reason: &str| inquiries.iter().map(|one| (one.host.clone(), Deletion::Kept(reason.to_owned()))).collect();
        let mut told: BTreeMap<_, _> = unasked("it was not asked");
        if inquiries.is_empty() {
            return told;
        }
        let link = match self.fleet.link() {
            Ok(link) => link,
            Err(error) => return unasked(&crate::chain(&error)),
        };
        let (caller, own) = (&record.header.caller, &link.caller);
        let asked = poll::ask(&self.fleet, link, inquiries.clone(), None, |(inquiry, answer)| {
            let fate = match answer {
                Ok(_) => Deletion::Deleted,
                // To others than who started it a host may say of any job that it knows none such.
                Err(Unheard::NoAnswer(silence)) if silence.is_refusal(ErrorCode::UnknownJob) && caller != own => {
                    Deletion::Kept(format!("it was started by {caller}, and this overlord's certificate is that of {own}"))
                }
                Err(Unheard::NoAnswer(silence)) if silence.is_refusal(ErrorCode::UnknownJob) => Deletion::WasGone,
                Err(unheard) => Deletion::Kept(unheard.reason(&inquiry.host)),
            };
            told.insert(inquiry.host, fate);
        });
        match asked {
            Ok(()) => told,
            Err(error) => unasked(&crate::chain(&error)),
        }
    }
}
