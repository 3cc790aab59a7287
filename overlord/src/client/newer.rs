//! What a host of a newer version says that this one has no word for. Pure.

use common::format::VERSION;
use common::job::HostState;
use serde::Deserialize;
use serde_json::Value;

use super::shortened;

/// What is wrong with an answer that could not be read, if it names a state that this version does not know: it is told of that host alone.
pub(crate) fn unknown_state(answer: &Value) -> Option<String> {
    let state = [answer.get("state"), answer.pointer("/result/state")].into_iter().flatten().find(|state| is_unknown(state))?;
    let state = shortened(&state.to_string());
    Some(format!(
        "it answered with the state {state}, which overlord {VERSION} does not know: its minion is of a newer version; upgrade the overlord, and ask \
         again"
    ))
}

fn is_unknown(state: &Value) -> bool {
    state.is_string() && HostState::deserialize(state).is_err()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;
    use serde_json::json;

    #[test]
    fn a_state_of_a_newer_version_is_named() {
        for answer in [json!({ "state": "paused" }), json!({ "state": "ok", "result": { "state": "paused" } })] {
            let problem = unknown_state(&answer).unwrap();
            assert!(problem.contains("\"paused\"") && problem.contains("newer version"), "{problem}");
        }
        for answer in [json!({ "state": "running" }), json!({ "state": 7 }), json!(null), json!({ "result": "paused" })] {
            assert_eq!(unknown_state(&answer), None, "{answer}");
        }
    }
}
