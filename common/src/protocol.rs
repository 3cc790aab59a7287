//! What travels between an overlord and a minion: the envelope, and the replies.
//!
//! JSON-RPC 2.0 over HTTP/1.1 over TLS 1.3, one call a request: `method` is the envelope's method, `params` is
//! [`CallParams`], and the result is an [`Outcome`], or for an `async.` method [`Accepted`]; of a `map.` method see [`map`].
//! A refusal before anything ran is a JSON-RPC error whose fields are those of [`Failure`](crate::outcome::Failure).
//! Unknown fields are ignored everywhere, so that neighbouring versions understand each other.

pub mod certs;
mod logs;
pub mod map;
pub mod package;

use std::time::Duration;

use jiff::Timestamp;
use serde::de::{Deserializer, Error as _};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::identity::{CallerName, MinionName};
use crate::job::{CallId, HostState, MinionJobId};
use crate::outcome::{Outcome, Progress};

pub use logs::{JobLogs, LOGS_CHUNK_MAX_BYTES, LOGS_CHUNK_MIN_BYTES, LOGS_WAIT_MAX_MS, LogPiece, Stream, logs_chunk_bytes};

/// The port that a minion listens on unless told otherwise.
pub const DEFAULT_PORT: u16 = 51234;

/// The most names in one envelope's audience: larger targets are sent as several envelopes with one call id.
/// It keeps a request below 20 KiB, and yet is one text for many hosts.
pub const AUDIENCE_MAX: usize = 64;

/// How long a call may be accepted after its envelope was written, however long it may run then. Clocks differ: five minutes is what Kerberos lets
/// them differ by (RFC 4120, 5.5.1, "reasonable clock skew").
pub const START_WITHIN: Duration = Duration::from_secs(5 * 60);

/// Put before a method's name, it asks for a job instead of an answer.
pub const ASYNC_PREFIX: &str = "async.";

/// What a caller signs is this, and the bytes of [`CallParams::call`] behind it: so that nothing else that its key ever signs is a call.
pub const SIGNED_CONTEXT: &[u8] = b"overlord signed call 1\0";

/// The `params` of every call. The envelope is JSON *text*, so that its bytes, which are signed, travel verbatim over any number of hops.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallParams {
    /// The [`Envelope`] as JSON text.
    pub call: String,
    /// The caller's signature: ECDSA on P-256 with SHA-256 (ASN.1, DER) in standard base64 with padding, of [`SIGNED_CONTEXT`] and the bytes of
    /// `call`, made with the key of the certificate that brings it. One signature serves the whole audience.
    pub signature: String,
}

/// One call as its caller wrote it. One envelope serves every host of its audience.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Envelope {
    /// Names the call: for a job its job id, `/2` and up behind it when it is sent again.
    pub call_id: CallId,
    /// Who asks; must be the name in the certificate that brings it.
    pub caller: CallerName,
    /// The hosts it is for, at most [`AUDIENCE_MAX`].
    pub audience: Vec<MinionName>,
    /// `module.method`, `async.module.method`, or `map.module.method`.
    pub method: String,
    /// The arguments, not yet bound to the method's schema.
    pub args: Arguments,
    /// A host whose clock is past this refuses: the call never starts there.
    pub start_before: Timestamp,
    /// The time limit of the run in milliseconds, from its start; none: the host's own limit alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit_ms: Option<u64>,
}

impl Envelope {
    /// The time limit of the run.
    #[must_use]
    pub fn limit(&self) -> Option<Duration> {
        self.limit_ms.map(Duration::from_millis)
    }
}

/// Arguments as the caller gave them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Arguments {
    /// Words of a command line, each `VALUE` or `KEY=VALUE`; the method's schema on the host says what they mean.
    Words(Vec<String>),
    /// A list (by position) or an object (by name) of typed values.
    Json(Value),
}

/// Why a text gives no arguments.
#[derive(Debug, thiserror::Error)]
pub enum NotArguments {
    /// It is something else.
    #[error("--json is no JSON: {0}")]
    NotJson(#[from] serde_json::Error),
    /// It is one value, without a place or a name.
    #[error("--json wants a list, like [23,45], or an object, like {{\"a\":23}}")]
    NeitherListNorObject,
}

impl Arguments {
    /// The arguments that somebody has typed behind `--json`.
    ///
    /// # Errors
    /// It is neither a JSON list nor an object.
    pub fn from_json(text: &str) -> Result<Self, NotArguments> {
        match serde_json::from_str(text)? {
            value @ (Value::Array(_) | Value::Object(_)) => Ok(Self::Json(value)),
            _one_value => Err(NotArguments::NeitherListNorObject),
        }
    }
}

impl Default for Arguments {
    fn default() -> Self {
        Self::Words(Vec::new())
    }
}

/// The reply to an `async.` call: the host holds the job, durably.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {
    /// The job's id on this host.
    pub minion_job_id: MinionJobId,
    /// `queued`, or `running`; for a repeated call, whatever the job has come to.
    pub state: HostState,
    /// The job had been accepted before, by the same caller and call id; nothing was started now.
    pub repeated: bool,
}

/// What a minion says of one of its jobs: the result of `jobs.status`, an item of `jobs.list`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobReport {
    /// The job's id on this host.
    pub minion_job_id: MinionJobId,
    /// The call that asked for it.
    pub call_id: CallId,
    /// Who asked for it.
    pub caller: CallerName,
    /// `module.method`, without `async.`.
    pub method: String,
    /// When this host accepted it.
    pub accepted_at: Timestamp,
    /// How far it is.
    #[serde(flatten)]
    pub progress: JobProgress,
}

/// A minion's jobs, the newest first: the result of `jobs.list`. Results are left out; `jobs.status` has them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobList {
    /// At most [`LISTED_MAX`].
    pub jobs: Vec<ListedJob>,
    /// How many older ones there are besides.
    pub more: usize,
}

/// What became of jobs that were waited for: the result of `jobs.wait`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobsWaited {
    /// As many of them, in the order in which they were named, as fit into a reply; one at least.
    pub jobs: Vec<JobReport>,
    /// How many are left out behind them: whoever asks for those again has them at once.
    pub more: usize,
}

/// The most jobs that one call of `jobs.wait` names.
pub const WAITED_MAX: usize = 1000;

/// The most jobs in one [`JobList`]: they stay below a mebibyte.
pub const LISTED_MAX: usize = 2000;

/// One job of a [`JobList`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ListedJob {
    /// The job's id on this host.
    pub minion_job_id: MinionJobId,
    /// The call that asked for it.
    pub call_id: CallId,
    /// Who asked for it.
    pub caller: CallerName,
    /// `module.method`, without `async.`.
    pub method: String,
    /// When this host accepted it.
    pub accepted_at: Timestamp,
    /// How far it is.
    pub state: HostState,
}

impl From<JobReport> for ListedJob {
    fn from(report: JobReport) -> Self {
        let state = report.progress.state();
        let JobReport { minion_job_id, call_id, caller, method, accepted_at, .. } = report;
        Self { minion_job_id, call_id, caller, method, accepted_at, state }
    }
}

/// How far a job is on its host: the outcome's fields if it has ended, else the state and, if it runs, since when.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum JobProgress {
    /// It has ended.
    Ended(Outcome),
    /// It has not ended.
    Going {
        /// `queued` or `running`.
        state: HostState,
        /// When the method started.
        #[serde(skip_serializing_if = "Option::is_none")]
        started_at: Option<Timestamp>,
        /// How far the method said last that it is. What is no report was not made.
        #[serde(skip_serializing_if = "Option::is_none")]
        progress: Option<Progress>,
    },
}

/// By hand: the state says which it is, so that an end that cannot be understood is never taken for a job that goes on.
impl<'de> Deserialize<'de> for JobProgress {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Going {
            state: HostState,
            #[serde(default)]
            started_at: Option<Timestamp>,
            #[serde(default, deserialize_with = "progress_if_any")]
            progress: Option<Progress>,
        }
        let fields = Value::deserialize(from)?;
        let state = HostState::deserialize(fields.get("state").unwrap_or(&Value::Null)).map_err(D::Error::custom)?;
        if state.is_final() {
            return Outcome::deserialize(fields).map(Self::Ended).map_err(D::Error::custom);
        }
        let Going { state, started_at, progress } = Going::deserialize(fields).map_err(D::Error::custom)?;
        Ok(Self::Going { state, started_at, progress })
    }
}

fn progress_if_any<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Progress>, D::Error> {
    Ok(Progress::deserialize(Value::deserialize(from)?).ok())
}

impl JobProgress {
    /// The state on the host.
    #[must_use]
    pub fn state(&self) -> HostState {
        match self {
            Self::Ended(outcome) => outcome.verdict.state(),
            Self::Going { state, .. } => *state,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;
    use serde_json::json;

    #[test]
    fn progress_reads_back_ended_and_going() {
        let progress = json!({ "fraction": 0.5, "message": "half", "at": "2026-01-01T00:00:00Z" });
        for going in [
            json!({ "state": "running", "started_at": "2026-01-01T00:00:00Z" }),
            json!({ "state": "running", "started_at": "2026-01-01T00:00:00Z", "progress": progress }),
        ] {
            let read: JobProgress = serde_json::from_value(going.clone()).unwrap();
            assert_eq!(read.state(), HostState::Running);
            assert_eq!(serde_json::to_value(&read).unwrap(), going);
        }
        let no_end = json!({ "state": "ok", "result": 0, "finished_at": "never" });
        assert!(serde_json::from_value::<JobProgress>(no_end).is_err(), "it has ended, and not gone on");
        let ended = json!({ "state": "ok", "result": 0, "finished_at": "2026-01-01T00:00:00Z" });
        let read: JobProgress = serde_json::from_value(ended.clone()).unwrap();
        assert_eq!(read.state(), HostState::Ok);
        assert_eq!(serde_json::to_value(&read).unwrap(), ended);
    }

    #[test]
    fn json_arguments_are_a_list_or_an_object() {
        assert_eq!(Arguments::from_json("[23,45]").unwrap(), Arguments::Json(json!([23, 45])));
        assert_eq!(Arguments::from_json("{\"a\":23}").unwrap(), Arguments::Json(json!({ "a": 23 })));
        for bad in ["23", "", "{", "null"] {
            assert!(Arguments::from_json(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_envelope_of_a_newer_version_is_understood() {
        let newer = json!({
            "call_id": "54k2-9xqd-4fz1/2", "caller": "admin", "audience": ["web1"], "method": "async.test.add",
            "args": { "words": ["1", "2"] }, "start_before": "2026-01-01T00:00:00Z", "trace": "new",
        });
        assert_eq!(serde_json::from_value::<Envelope>(newer).unwrap().limit(), None);
    }
}
