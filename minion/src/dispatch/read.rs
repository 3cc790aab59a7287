//! What a request asks, and the proof that its caller asks it.

use common::identity::{CallerName, MinionName};
use common::method::METHOD_MAX_BYTES;
use common::outcome::{ErrorCode, Failure};
use common::protocol::CallParams;
use service::Knock;

use crate::call::{Ask, Call, require_signed, said};
use crate::caller::Caller;

/// What `knock` asks of the minion `name`, by the `caller` of its certificate, who has signed it.
pub(super) fn read(name: &MinionName, caller: &Caller, knock: Knock<'_>) -> Result<(Call, Ask), Failure> {
    let (method, params) = single_call(knock)?;
    let call = parse(name, caller.name(), method, &params.call)?;
    require_signed(name, caller.certificate(), &params.call, &params.signature)?;
    let ask = Ask { minion: name.clone(), call: params.call, proof: caller.proof(params.signature) };
    Ok((call, ask))
}

/// What `text`, which came as the request's `method`, asks of the minion `name` for `caller`.
pub(super) fn parse(name: &MinionName, caller: &CallerName, method: &str, text: &str) -> Result<Call, Failure> {
    let call = Call::parse(name, caller, text)?;
    if call.envelope.method == method { Ok(call) } else { Err(invalid("the request's method is not the envelope's".into())) }
}

/// The method and the parameters of a single call with an id.
pub(super) fn single_call(knock: Knock<'_>) -> Result<(&str, CallParams), Failure> {
    let (method, params) = match knock {
        Knock::Call { method, params } => (method, params),
        Knock::Batch => return Err(invalid("a batch is refused as a whole, and nothing of it was run: send one call a request".into())),
        Knock::WithoutId { .. } => {
            return Err(invalid(
                "a call without an id, or with one that is neither a number nor a string, is not run: nobody could be answered".into(),
            ));
        }
        Knock::Malformed(why) => return Err(invalid(why.into())),
    };
    let params = serde_json::from_str(params)
        .map_err(|error| invalid(format!("`params` is not {{\"call\": \"…\", \"signature\": \"…\"}}: {}", said(&error))))?;
    Ok((method, params))
}

fn invalid(problem: String) -> Failure {
    Failure::new(ErrorCode::InvalidRequest, problem)
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
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;

    #[test]
    fn only_a_single_call_with_an_id_is_read() {
        for knock in
            [Knock::Batch, Knock::WithoutId { method: "test.ping" }, Knock::Malformed("no"), Knock::Call { method: "a.b", params: "[]" }]
        {
            assert!(single_call(knock).unwrap_err().is(ErrorCode::InvalidRequest), "{knock:?}");
        }
    }
}
