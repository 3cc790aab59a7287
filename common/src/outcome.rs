//! What became of a call on one host: a verdict, with the result or the error, and when.

mod more;
mod progress;

use std::collections::BTreeMap;

use base64::Engine as _;
use jiff::Timestamp;
use serde::de::{DeserializeOwned, Deserializer, Error as _};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::job::{HostState, MinionJobId};
pub use more::More;
pub use progress::{PROGRESS_MESSAGE_MAX_LETTERS, Progress};

/// The numbers in `error.code`: JSON-RPC's own for a request that is not sound, ours for all else. Never renumbered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub enum ErrorCode {
    /// The body is not JSON (JSON-RPC 2.0, 5.1).
    Parse = -32700,
    /// Not one JSON-RPC call with an id, or not an envelope.
    InvalidRequest = -32600,
    /// This host has no such method.
    UnknownMethod = -32601,
    /// The arguments do not fit the method.
    InvalidArguments = -32602,
    /// The minion itself failed: its log says more.
    Internal = -32603,
    /// No rule lets this caller call this method.
    Denied = -32001,
    /// The envelope is not for this host.
    WrongAudience = -32002,
    /// The envelope's start-before has passed.
    TooLate = -32003,
    /// A limit of the minion is reached; the message names it.
    LimitReached = -32004,
    /// The call id was fenced: it never started and never will.
    Fenced = -32005,
    /// No job of that id that this caller may see.
    UnknownJob = -32006,
    /// It cannot be done to that job yet: it has not ended, or its call could still be sent again.
    TooEarly = -32007,
    /// The method said no.
    Failed = 1,
    /// A command ended with another status than 0.
    ExitStatus = 2,
    /// The method panicked, or its process died without a result.
    Crashed = 3,
    /// The time limit passed.
    TimedOut = 4,
    /// Somebody cancelled it.
    Cancelled = 5,
    /// It may have run, and its end is not known.
    Lost = 6,
    /// It never started: the host could not be reached, or was not asked.
    Undelivered = 7,
    /// The result was larger than `result_max_bytes`.
    ResultTooLarge = 8,
}

/// Refusals after which a later attempt may well succeed: the call never started, and it is not the method that said no.
const NEVER_STARTED: [ErrorCode; 5] =
    [ErrorCode::TooLate, ErrorCode::LimitReached, ErrorCode::Fenced, ErrorCode::WrongAudience, ErrorCode::Undelivered];

/// The others that are said of a call before it is begun.
const NOT_BEGUN: [ErrorCode; 5] =
    [ErrorCode::Denied, ErrorCode::UnknownMethod, ErrorCode::InvalidArguments, ErrorCode::InvalidRequest, ErrorCode::Parse];

/// An error as a caller reads it: `{"code", "message", "data"?}`. `data.type`, where present, names the kind of failure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Failure {
    /// See [`ErrorCode`]; unknown numbers are kept as they are.
    pub code: i32,
    /// One line for a person: what failed, why, and what to do next.
    pub message: String,
    /// More, for a program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<Value>,
    /// What a newer version says besides. It is kept, and handed on.
    #[serde(flatten)]
    pub more: More,
}

impl Failure {
    /// A failure without data.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self::of_code(code as i32, message)
    }

    /// The same, with a code that this version may not know.
    pub fn of_code(code: i32, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), data: None, more: More::default() }
    }

    /// A method's own failure of the kind `kind`, which a program finds in `data.type`.
    pub fn of_kind(kind: &str, message: impl Into<String>) -> Self {
        Self::new(ErrorCode::Failed, message).with_data(json!({ "type": kind }))
    }

    /// The same failure with `data`.
    #[must_use]
    pub fn with_data(mut self, data: Value) -> Self {
        self.data = Some(data);
        self
    }

    /// Whether the code is `code`.
    #[must_use]
    pub fn is(&self, code: ErrorCode) -> bool {
        self.code == code as i32
    }

    /// Whether it is one that is said only of what was not begun. Of all else, and of codes that this version does not know, that is not known.
    #[must_use]
    pub fn is_before_start(&self) -> bool {
        NEVER_STARTED.into_iter().chain(NOT_BEGUN).any(|code| self.is(code))
    }

    /// The verdict that this error means when a minion refuses a call with it, before anything ran.
    #[must_use]
    pub fn into_refusal(self) -> Verdict {
        let refused = |code: ErrorCode| self.code == code as i32;
        if refused(ErrorCode::Denied) {
            Verdict::Denied { error: self }
        } else if NEVER_STARTED.into_iter().any(refused) {
            Verdict::Undelivered { error: self }
        } else if refused(ErrorCode::Lost) {
            Verdict::Lost { error: self }
        } else {
            Verdict::Failed { error: self }
        }
    }
}

/// How it ended, with the result or the error: `{"state": "ok", "result": …}` or `{"state": …, "error": {…}}`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Verdict {
    /// The method gave this result.
    Ok {
        /// Any JSON; `null` and other falsy results included.
        #[serde(default)]
        result: Value,
    },
    /// The method said no, or could not be run.
    Failed {
        /// What it said.
        error: Failure,
    },
    /// No rule of the host allows it.
    Denied {
        /// The refusal.
        error: Failure,
    },
    /// It was stopped on request; `error.data` says `by` whom and `at` what time.
    Cancelled {
        /// Who and when.
        error: Failure,
    },
    /// It was stopped at its time limit.
    TimedOut {
        /// The limit.
        error: Failure,
    },
    /// It never started.
    Undelivered {
        /// Why.
        error: Failure,
    },
    /// It may have run, and its end is not known.
    Lost {
        /// Why.
        error: Failure,
    },
}

impl Verdict {
    /// The host's state that this verdict is.
    #[must_use]
    pub fn state(&self) -> HostState {
        match self {
            Self::Ok { .. } => HostState::Ok,
            Self::Failed { .. } => HostState::Failed,
            Self::Denied { .. } => HostState::Denied,
            Self::Cancelled { .. } => HostState::Cancelled,
            Self::TimedOut { .. } => HostState::TimedOut,
            Self::Undelivered { .. } => HostState::Undelivered,
            Self::Lost { .. } => HostState::Lost,
        }
    }

    /// The error, unless it is `ok`.
    #[must_use]
    pub fn error(&self) -> Option<&Failure> {
        match self {
            Self::Ok { .. } => None,
            Self::Failed { error }
            | Self::Denied { error }
            | Self::Cancelled { error }
            | Self::TimedOut { error }
            | Self::Undelivered { error }
            | Self::Lost { error } => Some(error),
        }
    }

    /// It never started, for this reason.
    pub fn undelivered(reason: impl Into<String>) -> Self {
        Self::Undelivered { error: Failure::new(ErrorCode::Undelivered, reason) }
    }

    /// It may have run, and its end is not known, for this reason.
    pub fn lost(reason: impl Into<String>) -> Self {
        Self::Lost { error: Failure::new(ErrorCode::Lost, reason) }
    }
}

impl From<Result<Value, Failure>> for Verdict {
    fn from(answer: Result<Value, Failure>) -> Self {
        match answer {
            Ok(result) => Self::Ok { result },
            Err(error) => Self::Failed { error },
        }
    }
}

/// A verdict and its times. On the wire, in the spool and in the job log: the verdict's fields with the times beside them.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Outcome {
    /// How it ended.
    #[serde(flatten)]
    pub verdict: Verdict,
    /// When the method started, by the host's clock; none if it did not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// When it ended, by the host's clock; for `undelivered` and `lost`, when that became known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Timestamp>,
    /// Of a job: how far its method said last that it was, however it ended; none if it said nothing. Boxed, because most say nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<Box<Progress>>,
    /// Of a job: the ids on its host of the jobs that it has submitted, in the order of their submission.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub followup: Vec<MinionJobId>,
    /// What a newer version says besides. It is kept, and handed on.
    #[serde(flatten)]
    pub more: More,
}

impl Outcome {
    /// A verdict on something that did not run on the host, learnt at `at`.
    #[must_use]
    pub fn not_run(verdict: Verdict, at: Timestamp) -> Self {
        Self { verdict, started_at: None, finished_at: Some(at), progress: None, followup: Vec::new(), more: More::default() }
    }

    /// A verdict on something that began and ended then.
    #[must_use]
    pub fn ran(verdict: Verdict, started_at: Timestamp, finished_at: Timestamp) -> Self {
        Self { started_at: Some(started_at), ..Self::not_run(verdict, finished_at) }
    }
}

/// By hand, because a flattened verdict would leave its own fields among those that are kept besides.
impl<'de> Deserialize<'de> for Outcome {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let mut fields = Map::<String, Value>::deserialize(from)?;
        let is_ok = fields.get("state").is_some_and(|state| state == "ok");
        let own = ["state", if is_ok { "result" } else { "error" }];
        let own: Map<_, _> = own.into_iter().filter_map(|name| fields.shift_remove_entry(name)).collect();
        let mut time = |name| fields.shift_remove(name).map(Option::<Timestamp>::deserialize).transpose().map(Option::flatten);
        let (started_at, finished_at) = (time("started_at"), time("finished_at"));
        let (progress, followup) = (take::<Option<_>>(&mut fields, "progress").flatten(), take::<Vec<_>>(&mut fields, "followup"));
        Ok(Self {
            verdict: Verdict::deserialize(Value::Object(own)).map_err(D::Error::custom)?,
            started_at: started_at.map_err(D::Error::custom)?,
            finished_at: finished_at.map_err(D::Error::custom)?,
            progress,
            followup: followup.unwrap_or_default(),
            more: fields.into_iter().collect::<BTreeMap<_, _>>().into(),
        })
    }
}

/// The field of that name, if it can be understood; else it stays where it is, and costs nobody the rest.
fn take<T: DeserializeOwned>(fields: &mut Map<String, Value>, name: &str) -> Option<T> {
    let value = T::deserialize(fields.get(name)?).ok()?;
    fields.shift_remove(name);
    Some(value)
}

/// A program's output as JSON without loss: a string if it is UTF-8, else `{"base64": "…"}`.
#[must_use]
pub fn bytes_value(bytes: &[u8]) -> Value {
    match std::str::from_utf8(bytes) {
        Ok(text) => Value::from(text),
        Err(_) => json!({ "base64": base64::engine::general_purpose::STANDARD.encode(bytes) }),
    }
}

/// The bytes that [`bytes_value`] wrote; none if the value is not one of its.
#[must_use]
pub fn value_bytes(value: Value) -> Option<Vec<u8>> {
    match value {
        Value::String(text) => Some(text.into_bytes()),
        Value::Object(fields) => base64::engine::general_purpose::STANDARD.decode(fields.get("base64")?.as_str()?).ok(),
        _ => None,
    }
}

/// How many bytes at the end of `bytes` begin a letter of UTF-8 and are not the whole of it: 0 to 3.
#[must_use]
pub fn cut_letter_bytes(bytes: &[u8]) -> usize {
    let is_cut = |tail: &[u8]| std::str::from_utf8(tail).is_err_and(|error| error.valid_up_to() == 0 && error.error_len().is_none());
    (1..=3).filter_map(|count| bytes.get(bytes.len().checked_sub(count)?..)).find(|tail| is_cut(tail)).map_or(0, <[u8]>::len)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;

    #[test]
    fn a_falsy_result_is_a_result() {
        for result in [json!(null), json!(0), json!(""), json!(false), json!([])] {
            let outcome = Outcome::not_run(Verdict::Ok { result: result.clone() }, Timestamp::UNIX_EPOCH);
            let text = serde_json::to_string(&outcome).unwrap();
            assert!(text.contains("\"result\""), "{text}");
            assert_eq!(serde_json::from_str::<Outcome>(&text).unwrap(), outcome);
        }
    }

    #[test]
    fn what_a_newer_version_says_besides_is_kept() {
        let newer = json!({
            "state": "failed", "error": { "code": 1, "message": "no", "data": 7, "hint": ["more"] }, "started_at": null, "result": 5,
            "finished_at": "2026-01-01T00:00:00Z", "usage": { "cpu_ms": 3 },
        });
        let read: Outcome = serde_json::from_value(newer.clone()).unwrap();
        assert_eq!(read.more.names().collect::<Vec<_>>(), ["result", "usage"]);
        let Verdict::Failed { error } = &read.verdict else { unreachable!("{read:?}") };
        assert_eq!((error.data.as_ref(), error.more.get("hint")), (Some(&json!(7)), Some(&json!(["more"]))));
        let mut kept = serde_json::to_value(&read).unwrap();
        kept.as_object_mut().unwrap().insert("started_at".to_owned(), json!(null));
        assert_eq!(kept, newer);
        let strange = json!({ "state": "ok", "result": 1, "progress": { "done": 1e308 }, "followup": "many" });
        let read: Outcome = serde_json::from_value(strange.clone()).unwrap();
        assert!(read.progress.is_none() && read.followup.is_empty());
        assert_eq!(serde_json::to_value(&read).unwrap(), strange);
        let ours = json!({ "state": "ok", "result": null, "started_at": "2026-01-01T00:00:00Z", "finished_at": "2026-01-01T00:00:01Z" });
        let read: Outcome = serde_json::from_value(ours.clone()).unwrap();
        assert!(read.more.is_empty() && read.started_at.is_some());
        assert_eq!(serde_json::to_value(&read).unwrap(), ours);
    }

    #[test]
    fn what_is_no_outcome_is_refused() {
        for bad in [
            json!({}),
            json!([]),
            json!({ "state": "paused" }),
            json!({ "state": "failed" }),
            json!({ "state": "failed", "error": 1 }),
            json!({ "state": "ok", "started_at": "yesterday" }),
        ] {
            assert!(serde_json::from_value::<Outcome>(bad.clone()).is_err(), "{bad}");
        }
    }

    #[test]
    fn bytes_travel_whole() {
        assert_eq!(bytes_value(b"a\x1b[31m\0"), json!("a\u{1b}[31m\0"));
        assert_eq!(bytes_value(b"\xff\x00"), json!({ "base64": "/wA=" }));
    }

    #[test]
    fn bytes_come_back_as_they_went() {
        for bytes in [&b""[..], b"a\0\n", b"\xff\x00", "ü".as_bytes()] {
            assert_eq!(value_bytes(bytes_value(bytes)).unwrap(), bytes);
        }
        for garbage in [json!(null), json!(1), json!([]), json!({}), json!({ "base64": 1 }), json!({ "base64": "?" })] {
            assert_eq!(value_bytes(garbage.clone()), None, "{garbage}");
        }
    }

    #[test]
    fn a_letter_that_is_cut_is_told_from_what_is_none() {
        for letter in ["a", "ü", "€", "😀"] {
            let text = format!("x{letter}").into_bytes();
            assert_eq!(cut_letter_bytes(&text), 0, "{letter}");
            for length in 2..text.len() {
                assert_eq!(cut_letter_bytes(text.get(..length).unwrap()), length - 1, "{letter}");
            }
        }
        for bytes in [&b""[..], b"\xff", b"\x80\x80", b"\xe0\x80", b"\xc3a", b"\xed\xa0"] {
            assert_eq!(cut_letter_bytes(bytes), 0, "{bytes:?}");
        }
    }

    #[test]
    fn refusals_keep_their_error() {
        let denied = Failure::new(ErrorCode::Denied, "no rule").into_refusal();
        assert_eq!((denied.state(), denied.error().unwrap().message.as_str()), (HostState::Denied, "no rule"));
        assert_eq!(Failure::new(ErrorCode::TooLate, "late").into_refusal().state(), HostState::Undelivered);
        assert_eq!(Failure::new(ErrorCode::UnknownMethod, "none").into_refusal().state(), HostState::Failed);
    }
}
