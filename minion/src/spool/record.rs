//! What the files of a spool hold.

use std::io;

use common::identity::CallerName;
use common::job::{CallId, MinionJobId};
use common::outcome::Verdict;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::call::{Ask, Proof};
use crate::jobs::MethodRun;

/// The first file of a spool: who asked for what.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SpoolRequest {
    /// The job's id here, and the folder's name.
    pub minion_job_id: MinionJobId,
    /// What to run; none in a fence.
    pub run: Option<MethodRun>,
    /// Who asked.
    pub caller: CallerName,
    /// Under which call id.
    pub call_id: CallId,
    /// The call as it came, and by what it was believed: a job that waits keeps the acceptance that it had. Before calls were signed there was
    /// none.
    #[serde(default)]
    pub ask: Option<Ask>,
    /// The caller's certificate, its DER in base64, where the call does not bring it: of a job that another has submitted, while that certificate was
    /// good.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<String>,
    /// Until when it may come again, and is known as a repetition by this spool.
    pub start_before: Timestamp,
    /// When the host accepted it.
    pub accepted_at: Timestamp,
    /// Whether it was to start as soon as it was accepted, and not to wait.
    pub starts_at_once: bool,
}

impl SpoolRequest {
    /// The certificate by which its caller was believed, in base64; none if it had ended by then, which is so of what jobs submit alone.
    #[must_use]
    pub fn certificate(&self) -> Option<&str> {
        match &self.ask.as_ref()?.proof {
            Proof::Signed { certificate, .. } => Some(certificate),
            Proof::Token { .. } => self.certificate.as_deref(),
        }
    }
}

/// The text of the lock file: the method was started. The default stands for a text that cannot be read, but is there.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Started {
    /// When; none if that cannot be read.
    pub at: Option<Timestamp>,
    /// In which boot of the host.
    pub boot_id: String,
}

/// The text of `cancel.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CancelRequest {
    /// Who wants it stopped.
    pub by: CallerName,
    /// Since when.
    pub at: Timestamp,
}

/// Why a job whose daemon is dead is lost, as of a host whose present boot is `boot_id`.
#[must_use]
pub fn lost_reason(started: Option<&Started>, boot_id: &str) -> Verdict {
    Verdict::lost(match started {
        None => "its job daemon was gone, and no start is noted: whether it has run is not known",
        Some(started) if started.boot_id.is_empty() => "its job daemon was killed or the host rebooted while it ran",
        Some(started) if started.boot_id != boot_id => "the host rebooted while it ran",
        Some(_) => "its job daemon was killed while it ran",
    })
}

/// This boot of the host, as the kernel names it.
///
/// # Errors
/// `/proc` does not tell.
pub fn boot_id() -> io::Result<String> {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|text| text.trim().to_owned())
}
