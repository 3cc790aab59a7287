//! What `--async` and `job-resume` have in common: a dispatcher is forked, and what it says first is printed.

use std::collections::BTreeMap;
use std::time::Duration;

use common::identity::MinionName;
use common::job::JobId;
use serde::{Deserialize, Serialize};

use super::{HOST_UNKNOWN, OK, Refusal};
use crate::daemon::detach;
use crate::jobs::dispatcher::Dispatch;
use crate::output::{Format, Output, remark};

/// How long the dispatcher may take to say something. To resume a job it first asks every host that may have it.
const WORD_WITHIN: Duration = Duration::from_secs(600);

/// What a dispatcher tells the command that started it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Report {
    /// The job is on the disk.
    Started { job: JobId, remarks: Vec<String>, status: u8 },
    /// Nothing was done.
    Refused { status: u8, message: String },
}

impl Report {
    pub(super) fn started(job: &JobId) -> Self {
        Self::Started { job: job.clone(), remarks: Vec::new(), status: OK }
    }

    /// With what was found out about hosts that are not sent anything.
    pub(super) fn resumed(job: &JobId, left: &BTreeMap<MinionName, String>, is_sending: bool) -> Self {
        let mut remarks: Vec<String> = left.iter().map(|(host, why)| format!("{host} is not sent it again: {why}")).collect();
        if !is_sending && left.is_empty() {
            remarks.push(format!("nothing to send again: the job {job} has reached every host"));
        }
        Self::Started { job: job.clone(), remarks, status: if is_sending || left.is_empty() { OK } else { HOST_UNKNOWN } }
    }
}

/// Runs `prepare` in a process of its own, prints what came of it, and leaves that process to send what it prepared.
pub(super) fn run(mut output: Output, prepare: impl FnOnce() -> Result<(Report, Option<Dispatch>), Refusal>) -> Result<u8, Refusal> {
    let word = detach(WORD_WITHIN, |word| {
        let (report, dispatch) = prepare().unwrap_or_else(|Refusal { status, message }| (Report::Refused { status, message }, None));
        word.say(&serde_json::to_string(&report).unwrap_or_default());
        if let Some(dispatch) = dispatch {
            dispatch.run();
        }
    })?;
    match serde_json::from_str(&word) {
        Ok(Report::Started { job, remarks, status }) => {
            remarks.iter().for_each(|text| remark(text));
            match output.format() {
                Format::Text => output.print(job.as_str())?,
                Format::Json | Format::Jsonl => output.print_json(&serde_json::json!({ "job_id": job }))?,
            }
            Ok(status)
        }
        Ok(Report::Refused { status, message }) => Err(Refusal { status, message }),
        Err(_) => Err(crate::daemon::DaemonError::Died.into()),
    }
}
