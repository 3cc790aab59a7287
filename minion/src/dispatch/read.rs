//! What a request asks, before anyone decides on it: pure.

use common::identity::{CallerName, MinionName};
use common::job::MinionJobId;
use common::method::{METHOD_MAX_BYTES, MethodName};
use common::outcome::{ErrorCode, Failure};
use common::protocol::{ASYNC_PREFIX, AUDIENCE_MAX, CallParams, Envelope};
use jiff::Timestamp;
use service::Knock;

use crate::acl::Decision;
use crate::audit::{Entry, Ruling};
use crate::caller::Caller;

/// How much of a reader's complaint is repeated.
const QUOTED_MAX_LETTERS: usize = 200;

/// Whether the caller waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Call,
    Job,
}

/// One call that rules can be asked about.
#[derive(Debug)]
pub(super) struct Call {
    /// The envelope as it came.
    pub(super) text: String,
    pub(super) envelope: Envelope,
    /// Without `async.`.
    pub(super) method: MethodName,
    pub(super) form: Form,
}

/// What `knock` asks of the minion `name`, by the `caller` of its certificate.
pub(super) fn read(name: &MinionName, caller: &CallerName, knock: Knock<'_>) -> Result<Call, Failure> {
    let invalid = |problem: String| Failure::new(ErrorCode::InvalidRequest, problem);
    let (asked, params) = match knock {
        Knock::Call { method, params } => (method, params),
        Knock::Batch => return Err(invalid("a batch is refused as a whole, and nothing of it was run: send one call a request".into())),
        Knock::WithoutId { .. } => {
            return Err(invalid(
                "a call without an id, or with one that is neither a number nor a string, is not run: nobody could be answered".into(),
            ));
        }
        Knock::Malformed(why) => return Err(invalid(why.into())),
    };
    let params: CallParams = serde_json::from_str(params)
        .map_err(|error| invalid(format!("`params` is not {{\"call\": \"…\", \"signature\": \"…\"}}: {}", said(&error))))?;
    let envelope: Envelope =
        serde_json::from_str(&params.call).map_err(|error| invalid(format!("`call` is not an envelope: {}", said(&error))))?;
    if envelope.caller != *caller {
        let message = format!("{name}: the envelope is {}'s, and the certificate that brought it is {caller}'s", envelope.caller);
        return Err(Failure::new(ErrorCode::Denied, message));
    }
    if envelope.method != asked {
        return Err(invalid("the request's method is not the envelope's".into()));
    }
    if envelope.audience.len() > AUDIENCE_MAX {
        return Err(invalid(format!("an audience of {} names: at most {AUDIENCE_MAX} in one envelope", envelope.audience.len())));
    }
    if !envelope.audience.contains(name) {
        return Err(Failure::new(ErrorCode::WrongAudience, format!("this is {name}, and the envelope is not for it")));
    }
    let (bare, form) = match envelope.method.strip_prefix(ASYNC_PREFIX) {
        Some(bare) => (bare, Form::Job),
        None => (envelope.method.as_str(), Form::Call),
    };
    let method = bare.parse().map_err(|error| Failure::new(ErrorCode::UnknownMethod, format!("{name}: {error}")))?;
    Ok(Call { text: params.call, envelope, method, form })
}

/// What serde says, without the mebibyte that it may quote.
fn said(error: &serde_json::Error) -> String {
    error.to_string().chars().take(QUOTED_MAX_LETTERS).collect()
}

impl Call {
    /// The line for the audit log.
    pub(super) fn entry<'a>(&'a self, name: &MinionName, caller: &'a Caller, decision: &'a Decision) -> Entry<'a> {
        let (ruling, rule) = match decision {
            Decision::Allow { rule, .. } => (Ruling::Allow, Some(rule.as_str())),
            Decision::Deny => (Ruling::Deny, None),
        };
        let args = serde_json::to_vec(&self.envelope.args).unwrap_or_default();
        let digest = ring::digest::digest(&ring::digest::SHA256, &args);
        Entry {
            at: Timestamp::now(),
            caller: caller.name().as_str(),
            fingerprint: caller.fingerprint(),
            peer: caller.address(),
            method: &self.envelope.method,
            args_sha256: Some(digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()),
            decision: ruling,
            rule,
            call_id: Some(self.envelope.call_id.to_string()),
            minion_job_id: (self.form == Form::Job).then(|| MinionJobId::derive(name, caller.name(), &self.envelope.call_id)),
        }
    }
}

/// The method that `knock` names, for the audit log: bounded, control characters escaped.
pub(super) fn method_shown(knock: Knock<'_>) -> String {
    match knock {
        Knock::Call { method, .. } | Knock::WithoutId { method } => method.escape_debug().take(METHOD_MAX_BYTES).collect(),
        Knock::Batch | Knock::Malformed(_) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may panic")]
    use super::*;
    use serde_json::{Value, json};

    fn envelope() -> Value {
        json!({
            "call_id": "54k2-9xqd-4fz1", "caller": "admin", "audience": ["web2", "web1"], "method": "async.test.add",
            "args": { "words": ["1", "2"] }, "start_before": "2026-01-01T00:00:00Z",
        })
    }

    fn knock(method: &str, envelope: &str) -> Result<Call, Failure> {
        let params = json!({ "call": envelope, "signature": "" }).to_string();
        read(&"web1".parse().unwrap(), &"admin".parse().unwrap(), Knock::Call { method, params: &params })
    }

    fn changed(key: &str, value: Value) -> Result<Call, Failure> {
        let mut envelope = envelope();
        envelope.as_object_mut().unwrap().insert(key.to_owned(), value);
        knock(envelope["method"].as_str().unwrap(), &envelope.to_string())
    }

    #[test]
    fn a_call_is_read() {
        let text = envelope().to_string();
        let call = knock("async.test.add", &text).unwrap();
        assert_eq!((call.method.as_str(), call.form, call.text), ("test.add", Form::Job, text));
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
        assert_eq!(code(knock("test.ping", &envelope().to_string())), ErrorCode::InvalidRequest as i32);
        for method in ["test", "async.test", "async.async.test.add", "Test.add", "a.b.c", ""] {
            assert_eq!(code(changed("method", json!(method))), ErrorCode::UnknownMethod as i32, "{method}");
        }
    }

    #[test]
    fn deep_nesting_is_refused_and_not_followed() {
        let deep = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
        let text = envelope().to_string().replace("\"words\":[\"1\",\"2\"]", &format!("\"json\":{deep}"));
        let failure = knock("async.test.add", &text).unwrap_err();
        assert!(failure.is(ErrorCode::InvalidRequest) && failure.message.contains("recursion limit"), "{failure:?}");
    }

    #[test]
    fn only_a_single_call_with_an_id_is_read() {
        let (name, caller) = ("web1".parse().unwrap(), "admin".parse().unwrap());
        for knock in
            [Knock::Batch, Knock::WithoutId { method: "test.ping" }, Knock::Malformed("no"), Knock::Call { method: "a.b", params: "[]" }]
        {
            assert!(read(&name, &caller, knock).unwrap_err().is(ErrorCode::InvalidRequest), "{knock:?}");
        }
    }
}
