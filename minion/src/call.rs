//! A call as its caller wrote it, and by what it is believed. The server reads it from a request, and the spawner reads it again from what
//! the server hands on: neither takes the other's word. It decides nothing.

mod token;

use certs::signature;
use common::format::VERSION;
use common::identity::{CallerName, MinionName};
use common::job::MinionJobId;
use common::method::MethodName;
use common::outcome::{ErrorCode, Failure};
use common::protocol::map::{CHUNK_MAX_ITEMS, Chunk, MAP_PREFIX};
use common::protocol::{ASYNC_PREFIX, AUDIENCE_MAX, Arguments, Envelope};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio_rustls::rustls::pki_types::CertificateDer;

use crate::modules::Method;

pub use token::{InvalidToken, Token};

/// How far ahead a call's start-before may be. Until then a job cannot be given up; callers write five minutes, and clocks differ.
pub(crate) const START_AHEAD_MAX: SignedDuration = SignedDuration::from_hours(24);
/// How much of a reader's complaint is repeated.
const QUOTED_MAX_LETTERS: usize = 200;

/// A call on its way from the server to the spawner, and, of a job, what stays in its spool: the words of the caller, and the proof that
/// they are his.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ask {
    /// The host that is meant.
    pub minion: MinionName,
    /// The envelope, as it came.
    pub call: String,
    /// By what it is believed.
    pub proof: Proof,
}

/// By what a call is believed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Proof {
    /// Its caller has signed it.
    Signed {
        /// The signature, in base64.
        signature: String,
        /// The caller's certificate: its DER, in base64.
        certificate: String,
    },
    /// A job that runs on this host has submitted it, for its own caller.
    Token {
        /// The job.
        job: MinionJobId,
        /// The HMAC of the call that the job's [`Token`] gives, in hex.
        code: String,
    },
}

/// Whether the caller waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// He waits for the outcome.
    Call,
    /// He gets a job's id.
    Job,
    /// He waits for the outcomes of a chunk of items.
    Map,
}

/// One call that rules can be asked about.
#[derive(Debug)]
pub struct Call {
    /// What its caller wrote.
    pub envelope: Envelope,
    /// Without `async.` or `map.`.
    pub method: MethodName,
    /// Whether the caller waits.
    pub form: Form,
}

impl Call {
    /// What `text`, an envelope, asks of the minion `name` for `caller`.
    ///
    /// # Errors
    /// `InvalidRequest`: it is no envelope, or has too large an audience. `Denied`: it is somebody else's. `WrongAudience`: it is not for this
    /// host. `UnknownMethod`: it names what can be no method.
    pub fn parse(name: &MinionName, caller: &CallerName, text: &str) -> Result<Self, Failure> {
        let invalid = |problem: String| Failure::new(ErrorCode::InvalidRequest, problem);
        let envelope: Envelope = serde_json::from_str(text)
            .map_err(|error| invalid(format!("`call` is not an envelope that {name}, minion {VERSION}, can read: {}", said(&error))))?;
        if envelope.caller != *caller {
            let message = format!("{name}: the envelope is {}'s, and who brings it has proved to be {caller}", envelope.caller);
            return Err(Failure::new(ErrorCode::Denied, message));
        }
        if envelope.audience.len() > AUDIENCE_MAX {
            return Err(invalid(format!("an audience of {} names: at most {AUDIENCE_MAX} in one envelope", envelope.audience.len())));
        }
        if !envelope.audience.contains(name) {
            return Err(Failure::new(ErrorCode::WrongAudience, format!("this is {name}, and the envelope is not for it")));
        }
        let forms = [(ASYNC_PREFIX, Form::Job), (MAP_PREFIX, Form::Map)];
        let form = forms.into_iter().find_map(|(prefix, form)| Some((envelope.method.strip_prefix(prefix)?, form)));
        let (bare, form) = form.unwrap_or((envelope.method.as_str(), Form::Call));
        let method = bare.parse().map_err(|error| Failure::new(ErrorCode::UnknownMethod, format!("{name}: {error}")))?;
        Ok(Self { envelope, method, form })
    }

    /// That it may start on the minion `name` at `now`.
    ///
    /// # Errors
    /// `TooLate`: its start-before has passed, or is a day away, because one of the clocks is wrong.
    pub fn require_in_time(&self, name: &MinionName, now: Timestamp) -> Result<(), Failure> {
        let start_before = self.envelope.start_before;
        if start_before.duration_since(now) > START_AHEAD_MAX {
            let message = format!(
                "{name}: its clock says {now}, and by its caller's clock the call may start until {start_before}, more than a day later; \
                 nothing was started; set the clocks right"
            );
            return Err(Failure::new(ErrorCode::TooLate, message));
        }
        if now < start_before {
            return Ok(());
        }
        let message = format!(
            "{name}: too late: its clock says {now}, and by its caller's clock the call was to start before {start_before}; \
             nothing was started; set the clocks right, or call again"
        );
        Err(Failure::new(ErrorCode::TooLate, message))
    }

    /// Its arguments, as `method` reads them; of a map as they came, for each item is bound when its turn comes.
    ///
    /// # Errors
    /// `InvalidArguments`, with the usage.
    pub fn bind(&self, method: &Method) -> Result<Value, Failure> {
        if self.form == Form::Map {
            return self.chunk().map(|_| Value::Null);
        }
        let bound = method.spec().bind(&self.envelope.args);
        let args = bound.map_err(|error| Failure::new(ErrorCode::InvalidArguments, error.to_string()))?;
        method.check(&args).map(|()| args)
    }

    /// The items of a map.
    ///
    /// # Errors
    /// `InvalidArguments`: it is no map, or has none or too many.
    pub fn chunk(&self) -> Result<Chunk, Failure> {
        let invalid = |why: String| Failure::new(ErrorCode::InvalidArguments, format!("{}: {why}", self.envelope.method));
        let Arguments::Json(args) = &self.envelope.args else { return Err(invalid("it takes a chunk of items".to_owned())) };
        let chunk = Chunk::deserialize(args).map_err(|error| invalid(said(&error)))?;
        match chunk.items.len() {
            1..=CHUNK_MAX_ITEMS => Ok(chunk),
            count => Err(invalid(format!("{count} items: there are 1 to {CHUNK_MAX_ITEMS} in a chunk"))),
        }
    }

    /// The id of the job that it asks the minion `name` for; none if it asks for no job.
    #[must_use]
    pub fn job(&self, name: &MinionName) -> Option<MinionJobId> {
        (self.form == Form::Job).then(|| MinionJobId::derive(name, &self.envelope.caller, &self.envelope.call_id))
    }
}

/// That `signature` over the envelope `text` was made with the key of the certificate `cert`.
///
/// # Errors
/// `Denied`: it was not.
pub fn require_signed(name: &MinionName, cert: &CertificateDer<'_>, text: &str, signature: &str) -> Result<(), Failure> {
    signature::verify(cert, text, signature).map_err(|error| {
        let message = format!("{name}: the call is not signed with the key of its caller's certificate: {error}");
        Failure::new(ErrorCode::Denied, message)
    })
}

/// What serde says, without the mebibyte that it may quote.
pub(crate) fn said(error: &serde_json::Error) -> String {
    error.to_string().chars().take(QUOTED_MAX_LETTERS).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may panic")]
    use super::*;
    use serde_json::json;

    fn envelope() -> Value {
        json!({
            "call_id": "54k2-9xqd-4fz1", "caller": "admin", "audience": ["web2", "web1"], "method": "async.test.add",
            "args": { "words": ["1", "2"] }, "start_before": "2026-01-01T00:00:00Z",
        })
    }

    fn parse(envelope: &Value) -> Result<Call, Failure> {
        Call::parse(&"web1".parse().unwrap(), &"admin".parse().unwrap(), &envelope.to_string())
    }

    fn changed(key: &str, value: Value) -> Result<Call, Failure> {
        let mut envelope = envelope();
        envelope.as_object_mut().unwrap().insert(key.to_owned(), value);
        parse(&envelope)
    }

    #[test]
    fn a_call_is_read() {
        let call = parse(&envelope()).unwrap();
        assert_eq!((call.method.as_str(), call.form), ("test.add", Form::Job));
        assert!(call.job(&"web1".parse().unwrap()).is_some());
        assert_eq!(changed("method", json!("test.add")).unwrap().form, Form::Call);
    }

    #[test]
    fn what_is_not_for_us_is_refused() {
        let code = |result: Result<Call, Failure>| result.unwrap_err().code;
        assert_eq!(code(changed("caller", json!("root"))), ErrorCode::Denied as i32);
        assert_eq!(code(changed("audience", json!(["web2"]))), ErrorCode::WrongAudience as i32);
        assert_eq!(code(changed("audience", json!([]))), ErrorCode::WrongAudience as i32);
        let many: Vec<String> = (0..=AUDIENCE_MAX).map(|number| format!("web{number}")).collect();
        assert_eq!(code(changed("audience", json!(many))), ErrorCode::InvalidRequest as i32);
        for method in ["test", "async.test", "async.async.test.add", "Test.add", "a.b.c", ""] {
            assert_eq!(code(changed("method", json!(method))), ErrorCode::UnknownMethod as i32, "{method}");
        }
    }

    #[test]
    fn it_starts_in_its_time_alone() {
        let (call, name) = (parse(&envelope()).unwrap(), "web1".parse().unwrap());
        let in_time = |at: &str| call.require_in_time(&name, at.parse().unwrap());
        assert!(in_time("2025-12-31T23:59:59Z").is_ok() && in_time("2025-12-31T00:00:00Z").is_ok());
        for late in ["2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z", "2025-12-30T23:59:59Z"] {
            assert!(in_time(late).unwrap_err().is(ErrorCode::TooLate), "{late}");
        }
    }

    #[test]
    fn deep_nesting_is_refused_and_not_followed() {
        let deep = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
        let text = envelope().to_string().replace("\"words\":[\"1\",\"2\"]", &format!("\"json\":{deep}"));
        let failure = Call::parse(&"web1".parse().unwrap(), &"admin".parse().unwrap(), &text).unwrap_err();
        assert!(failure.is(ErrorCode::InvalidRequest) && failure.message.contains("recursion limit"), "{failure:?}");
    }
}
