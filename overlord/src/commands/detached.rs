//! What `--async`, `job-retry` and `job-resume` have in common: a dispatcher is forked, and what it says first is printed.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use common::identity::MinionName;
use common::job::JobId;
use serde::{Deserialize, Serialize};

use super::{HOST_UNKNOWN, OK, Refusal};
use crate::client::REASON_MAX_CHARS;
use crate::daemon::detach;
use crate::fleet::Fleet;
use crate::jobs::dispatcher::Errand;
use crate::output::{Format, Output, remark};

/// How long the dispatcher may take to say something, besides what it waits for hosts.
pub(super) const WORD_WITHIN: Duration = Duration::from_secs(600);
/// The most hosts that are told one by one why they are not sent a job again: they may be all of a large fleet.
const LEFT_TOLD_MAX: usize = 20;

/// What a dispatcher has to say to a person, who is told by the command that started it.
#[derive(Debug, Default, Clone)]
pub(super) struct Said(Arc<Mutex<Vec<String>>>);

impl Said {
    /// The fleet, whose warnings are kept here. What comes once the job is sent nobody hears, and is not kept.
    pub(super) fn by(fleet: Fleet) -> (Fleet, Self) {
        let said = Self::default();
        let keep = said.clone();
        let warned = move |text: &str| {
            let mut said = keep.0.lock().unwrap_or_else(PoisonError::into_inner);
            if said.len() < LEFT_TOLD_MAX {
                said.push(text.to_owned());
            }
        };
        (fleet.with_warnings(warned), said)
    }
}

/// What a dispatcher tells the command that started it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Report {
    /// The job is on the disk.
    Started { job: JobId, remarks: Vec<String>, status: u8 },
    /// Nothing was done.
    Refused { status: u8, message: String },
}

impl Report {
    pub(super) fn started(job: &JobId, said: &Said) -> Self {
        let said = said.0.lock().unwrap_or_else(PoisonError::into_inner);
        let remarks = said.iter().take(LEFT_TOLD_MAX).map(|text| shortened(text)).collect();
        Self::Started { job: job.clone(), remarks, status: OK }
    }

    /// With what was found out about hosts that are not sent anything.
    pub(super) fn resumed(job: &JobId, left: &BTreeMap<MinionName, String>, is_sending: bool) -> Self {
        let told = left.iter().take(LEFT_TOLD_MAX);
        let mut remarks: Vec<String> = told.map(|(host, why)| format!("{host} is not sent it again: {}", shortened(why))).collect();
        if let more @ 1.. = left.len().saturating_sub(LEFT_TOLD_MAX) {
            remarks.push(format!("{more} more hosts are not sent it again: look at `overlord job-status {job}`"));
        }
        if !is_sending && left.is_empty() {
            remarks.push(format!("nothing to send again: the job {job} has reached every host, or each of its items has its end"));
        }
        Self::Started { job: job.clone(), remarks, status: if is_sending || left.is_empty() { OK } else { HOST_UNKNOWN } }
    }
}

fn shortened(reason: &str) -> String {
    reason.chars().take(REASON_MAX_CHARS).collect()
}

/// Runs `prepare` in a process of its own, prints what came of it, for which it waits `patience`, and leaves that process to send
/// what it prepared.
pub(super) fn run(
    mut output: Output,
    patience: Duration,
    prepare: impl FnOnce() -> Result<(Report, Option<Errand>), Refusal>,
) -> Result<u8, Refusal> {
    let word = detach(patience, |word| {
        let (report, dispatch) = prepare().unwrap_or_else(|Refusal { status, message }| (Report::Refused { status, message }, None));
        word.say(&serde_json::to_string(&report).unwrap_or_default());
        if let Some(errand) = dispatch {
            errand.run();
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "a test may panic")]
    use super::*;

    #[test]
    fn what_is_told_of_a_large_fleet_stays_small() {
        let job: JobId = "54k2-9xqd-4fz1".parse().unwrap();
        let left = |hosts: usize| (0..hosts).map(|host| (format!("n{host}").parse().unwrap(), "x".repeat(100_000))).collect();
        let report = Report::resumed(&job, &left(1000), false);
        assert!(serde_json::to_string(&report).unwrap().len() < 100_000);
        let Report::Started { remarks, status, .. } = report else { panic!("{report:?}") };
        assert_eq!((remarks.len(), status), (LEFT_TOLD_MAX + 1, HOST_UNKNOWN));
        assert_eq!(remarks.last().unwrap(), "980 more hosts are not sent it again: look at `overlord job-status 54k2-9xqd-4fz1`");
        let Report::Started { remarks, .. } = Report::resumed(&job, &left(1), false) else { panic!() };
        assert_eq!(remarks.len(), 1);
    }
}
