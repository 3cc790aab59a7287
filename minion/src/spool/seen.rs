//! What a spool says to who may not read it: the server asks, a child of the spawner looks, and this is what travels between them.

use common::identity::CallerName;
use common::job::{CallId, MinionJobId};
use common::outcome::Progress;
use common::protocol::{JobProgress, JobReport};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Life, Spool, SpoolError, SpoolRequest};

/// Who asked for what, without the arguments.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Brief {
    /// The job's id here.
    pub minion_job_id: MinionJobId,
    /// Under which call id it was asked for.
    pub call_id: CallId,
    /// Who asked.
    pub caller: CallerName,
    /// For what.
    pub method: String,
    /// Until when the call may come again.
    pub start_before: Timestamp,
    /// When the host accepted it.
    pub accepted_at: Timestamp,
}

/// What a spool says.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Seen {
    /// Who asked for what; or, if that cannot be read and never will be, why.
    pub brief: Result<Brief, String>,
    /// What became of it.
    pub life: Life,
    /// How far it says that it is, if it runs.
    #[serde(default)]
    pub progress: Option<Progress>,
    /// How much of the disk a job takes that has ended.
    pub bytes: u64,
}

impl From<SpoolRequest> for Brief {
    fn from(request: SpoolRequest) -> Self {
        let method = request.run.map_or_else(|| "jobs.fence".to_owned(), |run| run.method.to_string());
        let SpoolRequest { minion_job_id, call_id, caller, start_before, accepted_at, .. } = request;
        Self { minion_job_id, call_id, caller, method, start_before, accepted_at }
    }
}

impl Brief {
    /// What the server tells of the job, whose state is `progress`.
    #[must_use]
    pub fn report(self, progress: JobProgress) -> JobReport {
        let Self { minion_job_id, call_id, caller, method, accepted_at, .. } = self;
        JobReport { minion_job_id, call_id, caller, method, accepted_at, progress }
    }
}

impl Seen {
    /// What `spool` says; none if it is not there.
    ///
    /// # Errors
    /// It cannot be read now.
    pub fn look(spool: &Spool) -> Result<Option<Self>, SpoolError> {
        if !spool.exists()? {
            return Ok(None);
        }
        match Self::read(spool) {
            // It was removed between the two looks.
            Err(_) if !spool.exists().unwrap_or(true) => Ok(None),
            seen => seen.map(Some),
        }
    }

    fn read(spool: &Spool) -> Result<Self, SpoolError> {
        let brief = match spool.request() {
            Ok(request) => Ok(request.into()),
            Err(damage) if damage.is_damage() => Err(damage.to_string()),
            Err(error) => return Err(error),
        };
        let life = spool.life()?;
        let progress = if matches!(life, Life::Running(_)) { spool.progress() } else { None };
        let bytes = if matches!(life, Life::Ended(_)) { spool.disk_bytes() } else { 0 };
        Ok(Self { brief, life, progress, bytes })
    }

    /// Nothing will come of it any more, and nobody has written that down.
    #[must_use]
    pub fn is_to_be_settled(&self) -> bool {
        match self.life {
            Life::Dead(_) | Life::Damaged(_) => true,
            Life::Queued => self.brief.is_err(),
            Life::Ended(_) | Life::Running(_) => false,
        }
    }
}
