//! One answer as lines for a person: a header with the hosts, and below it, indented, what they said.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use common::outcome::{ErrorCode, Failure, Verdict};
use serde_json::Value;

use super::harmless;
use crate::aggregate::{Group, compressed};

/// Put before each line of a host, so that none can pass for one of ours.
const INDENT: &str = "  ";

/// The group's header and answer; the header has the `note`, if there is one, in brackets behind the state.
pub(crate) fn group(group: &Group<'_>, note: Option<&str>) -> String {
    let hosts = compressed(&group.hosts);
    let state = group.verdict.state();
    let state = note.map_or_else(|| state.to_string(), |note| format!("{state} ({note})"));
    match group.verdict {
        Verdict::Ok { result } => format!("{hosts}  {state}\n{}", value(result)),
        Verdict::Failed { error }
        | Verdict::Denied { error }
        | Verdict::Cancelled { error }
        | Verdict::TimedOut { error }
        | Verdict::Undelivered { error }
        | Verdict::Lost { error } => failure(&hosts, &state, error),
    }
}

fn failure(hosts: &str, state: &str, error: &Failure) -> String {
    let data = match &error.data {
        Some(data) if error.is(ErrorCode::ExitStatus) || command(data).is_some() => value(data),
        // What else is there is for programs; the message says it in words.
        _ => String::new(),
    };
    let mut message = harmless(&error.message).trim_end().replace('\n', &format!("\n{INDENT}"));
    if message.is_empty() {
        message = format!("error {}", error.code);
    }
    format!("{hosts}: {state}: {message}\n{data}")
}

/// A result as indented lines; none for null.
fn value(result: &Value) -> String {
    match (result, command(result)) {
        (Value::Null, _) => String::new(),
        (_, Some(ran)) => ran,
        (Value::String(text), _) => indented(text),
        (other, _) => indented(&serde_json::to_string(other).unwrap_or_default()),
    }
}

/// What a command wrote, if that is what the value is: `{"rc", "stdout", "stderr"}`.
fn command(value: &Value) -> Option<String> {
    let fields = value.as_object()?;
    let (_, out, err) = (fields.get("rc")?, fields.get("stdout")?, fields.get("stderr")?);
    let err = written(err)?;
    let heading = if err.is_empty() { "" } else { "  (stderr)\n" };
    Some(format!("{}{heading}{err}", written(out)?))
}

fn written(stream: &Value) -> Option<String> {
    match stream {
        Value::String(text) => Some(indented(text)),
        Value::Object(fields) => {
            let bytes = BASE64.decode(fields.get("base64")?.as_str()?).ok()?;
            let chunks = bytes.utf8_chunks().map(|chunk| {
                let invalid: String = chunk.invalid().iter().map(|byte| format!("\\x{byte:02x}")).collect();
                format!("{}{invalid}", chunk.valid())
            });
            Some(indented(&chunks.collect::<String>()))
        }
        _ => None,
    }
}

/// The text with each line put in, harmless.
fn indented(text: &str) -> String {
    if text.is_empty() {
        return String::new();
    }
    harmless(text.strip_suffix('\n').unwrap_or(text)).split('\n').map(|line| format!("{INDENT}{line}\n")).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;
    use serde_json::json;

    fn shown(verdict: &Verdict) -> String {
        let name = "web1".parse().unwrap();
        group(&Group { hosts: vec![&name], verdict }, None)
    }

    #[test]
    fn answers_stand_below_their_hosts() {
        for (result, text) in [
            (json!(null), "web1  ok\n"),
            (json!("pong"), "web1  ok\n  pong\n"),
            (json!("two\nlines\n"), "web1  ok\n  two\n  lines\n"),
            (json!(68), "web1  ok\n  68\n"),
            (json!({ "rc": 0, "stdout": "out\n", "stderr": "" }), "web1  ok\n  out\n"),
            (json!({ "rc": 0, "stdout": "", "stderr": "err" }), "web1  ok\n  (stderr)\n  err\n"),
            (json!({ "rc": 0, "stdout": { "base64": "YRv/YgoA" }, "stderr": "" }), "web1  ok\n  a\\x1b\\xffb\n  \\x00\n"),
            (json!({ "rc": 0 }), "web1  ok\n  {\"rc\":0}\n"),
        ] {
            assert_eq!(shown(&Verdict::Ok { result }), text);
        }
    }

    #[test]
    fn a_failure_says_why_and_a_command_what_it_wrote() {
        let error = Failure::new(ErrorCode::ExitStatus, "exit status 3").with_data(json!({ "rc": 3, "stdout": "a", "stderr": "b" }));
        assert_eq!(shown(&Verdict::Failed { error }), "web1: failed: exit status 3\n  a\n  (stderr)\n  b\n");
        assert_eq!(shown(&Verdict::lost("gone")), "web1: lost: gone\n");
    }

    #[test]
    fn no_host_can_write_a_line_of_ours() {
        let shown = [shown(&Verdict::Ok { result: json!("x\nweb2  ok\r\x1b[1A") }), shown(&Verdict::lost("x\nweb2  ok"))];
        for text in shown {
            let lines: Vec<&str> = text.lines().collect();
            assert!(
                lines.iter().skip(1).all(|line| line.starts_with(INDENT)) && lines.len() == 2 + usize::from(text.contains("  x")),
                "{text}"
            );
            assert!(!text.contains('\x1b') && !text.contains('\r'));
        }
    }
}
