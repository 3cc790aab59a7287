//! How a job stands, all hosts together. Pure.

use common::job::{JobRecord, JobState};

/// How a job stands.
#[derive(Debug, Clone, PartialEq)]
pub struct JobStatus {
    /// All that is known of it, host by host.
    pub record: JobRecord,
    /// It is still being sent to hosts.
    pub is_dispatching: bool,
}

impl JobStatus {
    /// RUNNING, PARTIAL, FINISHED or LOST.
    #[must_use]
    pub fn state(&self) -> JobState {
        self.record.state(self.is_dispatching)
    }
}
