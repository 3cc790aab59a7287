//! Real commands, run from a test's thread; what they write is copied to nowhere, or to a file.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may panic")]
use super::super::super::Registry;
use super::*;
use std::fs::File;

fn null() -> CopyTo {
    Box::new(File::options().write(true).open("/dev/null").unwrap())
}

fn run_with(args: Value, result_max_bytes: usize, copies: [CopyTo; 2]) -> Result<Value, Failure> {
    let (registry, minion) = (Registry::builtin(), "web1".parse().unwrap());
    let context = Context::of_server(&minion, &registry, result_max_bytes);
    run_copying(serde_json::from_value(args).unwrap(), &context, copies)
}

fn run(args: Value) -> Result<Value, Failure> {
    run_with(args, 1 << 20, [null(), null()])
}

fn line(line: &str) -> Result<Value, Failure> {
    run(json!({ "line": line }))
}

#[test]
fn a_line_goes_through_a_shell_and_argv_does_not() {
    assert_eq!(line("echo $((1+1)); echo e >&2").unwrap(), json!({ "rc": 0, "stdout": "2\n", "stderr": "e\n" }));
    let argv = run(json!({ "argv": ["echo", "$HOME", "a  b"], "stdin": "" })).unwrap();
    assert_eq!(argv["stdout"], "$HOME a  b\n");
}

#[test]
fn cwd_env_and_stdin_arrive() {
    let args = json!({ "line": "pwd; echo $A; cat", "cwd": "/usr", "env": { "A": "x y" }, "stdin": "in\n" });
    assert_eq!(run(args).unwrap()["stdout"], "/usr\nx y\nin\n");
}

#[test]
fn more_input_than_a_pipe_holds_goes_in_while_as_much_comes_out() {
    let input = "0123456789abcdef".repeat(1 << 14);
    let result = run(json!({ "argv": ["cat"], "stdin": input })).unwrap();
    assert_eq!(result["stdout"].as_str().unwrap(), input);
    assert_eq!(run(json!({ "argv": ["true"], "stdin": input })).unwrap()["rc"], 0);
}

#[test]
fn another_status_than_0_is_a_failure_with_the_same_object() {
    let failure = line("echo o; echo why >&2; exit 3").unwrap_err();
    assert!(failure.is(ErrorCode::ExitStatus));
    assert_eq!(failure.message, "exit status 3: why");
    assert_eq!(failure.data.unwrap(), json!({ "rc": 3, "stdout": "o\n", "stderr": "why\n" }));
    let killed = line("kill -9 $$").unwrap_err();
    assert_eq!(killed.message, "killed by SIGKILL");
    assert_eq!(killed.data.unwrap(), json!({ "rc": 137, "stdout": "", "stderr": "", "signal": 9 }));
}

#[test]
fn what_cannot_be_started_says_why() {
    let failure = run(json!({ "argv": ["/no/such"] })).unwrap_err();
    assert_eq!(failure.data, Some(json!({ "type": "not_started" })));
    assert!(failure.message.contains("\"/no/such\": No such file"), "{failure:?}");
    let failure = run(json!({ "line": "ls", "cwd": "/no/such" })).unwrap_err();
    assert!(failure.message.contains("in /no/such, which is no folder"), "{failure:?}");
}

#[test]
fn a_timeout_stops_the_whole_group_and_keeps_what_was_written() {
    let begun = Instant::now();
    let failure = run(json!({ "line": "echo begun; sleep 60 & sleep 60; echo no", "timeout": "300ms" })).unwrap_err();
    assert!(begun.elapsed() < STOP_GRACE, "{:?}", begun.elapsed());
    let data = failure.data.unwrap();
    assert_eq!((&data["type"], &data["stdout"], &data["rc"]), (&json!("timeout"), &json!("begun\n"), &json!(143)));
    let deaf = run(json!({ "line": "trap '' TERM; while :; do sleep 0.1; done", "timeout": 0.1 })).unwrap_err();
    assert_eq!(deaf.data.unwrap()["signal"], 9);
}

#[test]
fn a_grandchild_in_the_background_keeps_nobody_waiting() {
    let begun = Instant::now();
    let result = line("sleep 15 & echo done").unwrap();
    assert_eq!(result["stdout"], "done\n");
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
}

#[test]
fn one_that_closes_its_streams_is_waited_for() {
    assert_eq!(line("exec >&- 2>&-; sleep 0.2; exit 4").unwrap_err().data.unwrap()["rc"], 4);
}

#[test]
fn a_result_stays_below_its_limit_and_says_what_was_cut() {
    let result = run_with(json!({ "line": "head -c 3000000 /dev/zero; echo e >&2" }), 100_000, [null(), null()]).unwrap();
    assert_eq!((&result["cut"], &result["stderr"]), (&json!({ "stdout": 3_000_000 }), &json!("e\n")));
    assert!(result.to_string().len() < 100_000);
}

#[test]
fn what_is_no_text_arrives_whole() {
    assert_eq!(line(r"printf '\377\0'").unwrap()["stdout"], json!({ "base64": "/wA=" }));
    assert_eq!(line(r"printf 'a\033[31m\0b'").unwrap()["stdout"], "a\u{1b}[31m\0b");
}

#[test]
fn everything_is_copied_through_and_a_copy_that_breaks_changes_nothing() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let full: CopyTo = Box::new(File::options().write(true).open("/dev/full").unwrap());
    let result = run_with(json!({ "line": "seq 100000; echo e >&2" }), 10_000, [Box::new(file.reopen().unwrap()), full]).unwrap();
    assert_eq!(std::fs::read_to_string(file.path()).unwrap().lines().count(), 100_000);
    assert_eq!((&result["stderr"], result["cut"]["stdout"].as_u64()), (&json!("e\n"), Some(588_895)));
}
