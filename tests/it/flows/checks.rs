//! What is found in a flow's file before anything runs, and what its values are when they are used.

use std::fs;

use fleet::Fleet;
use serde_json::json;

use super::{file, mark, ran, ran_file, run, states};

fn step(name: &str, call: &str, args: &str, more: &str) -> String {
    format!("[[step]]\nname = \"{name}\"\ntarget = \"web1\"\ncall = \"{call}\"\nargs = {args}\n{more}\n")
}

/// Refused by `check` and by `run`, with this reason, and nothing has run.
fn assert_refused(fleet: &Fleet, text: &str, problem: &str) {
    let file = file(fleet, text);
    for verb in ["check", "run"] {
        let run = fleet.overlord(["flow", verb, &file]).expect(64);
        assert!(run.err().contains(problem), "{verb}: {problem}\n{}", run.err());
    }
    assert_eq!(fleet.overlord(["flow", "list", "--output", "json"]).ok().json(), json!([]));
}

/// One captured host must not command the others.
#[test]
fn what_a_host_says_never_becomes_a_line_of_shell_on_another() {
    let fleet = Fleet::start(1);
    let says = step("says", "test.echo", "[\"; touch /tmp/owned\"]", "provides = \"said\"");
    let typed = step("says", "test.echo", "[5]", "provides = { said = { path = \"\", type = \"integer\" } }");
    let line = |reference: &str| step("runs", "command.run", &format!("{{ line = \"echo ${{{reference}}}\" }}"), "");
    let refusal = "is what a host says, and would be run by the shell of others";
    assert_refused(&fleet, &(says.clone() + &line("said")), &format!("flow.toml:8: the task runs: ${{said}} {refusal}"));
    assert_refused(&fleet, &(says.clone() + &line("item") + "for_each = \"${said}\""), refusal);
    for of_flow in ["flow.error.message", "flow"] {
        assert_refused(&fleet, &(says.clone() + &line(of_flow).replace("[[step]]", "[[finally]]")), refusal);
    }
    // What undoes a task is run by a shell as well, and may be given what others have said.
    let undone = |reference: &str| {
        let undo = format!("undo = {{ call = \"command.run\", args = {{ line = \"echo ${{{reference}}}\" }} }}");
        step("runs", "test.ping", "[]", &undo)
    };
    for reference in ["said", "flow.error.message", "flow"] {
        assert_refused(&fleet, &(says.clone() + &undone(reference)), &format!("the task runs: undo: ${{{reference}}} {refusal}"));
    }
    fs::write(fleet.root().join("sub.toml"), "inputs = { x = \"string\" }\n".to_owned() + &line("x")).unwrap();
    let sub = "[[step]]\nname = \"sub\"\nflow = \"sub.toml\"\nvars = { x = \"${said}\" }\n";
    assert_refused(&fleet, &(says.clone() + sub), refusal);
    let ran = ran_file(&fleet);
    let env = step("runs", "command.run", &format!("{{ line = \"echo \\\"$SAID\\\" >> {ran}\", env = {{ SAID = \"${{said}}\" }} }}"), "");
    let _done = run(&fleet, &(says + &env)).ok();
    assert_eq!(super::ran(&fleet), ["; touch /tmp/owned"]);
    let _done = run(&fleet, &(typed + &line("said"))).ok();
    let _what_it_said_itself = run(&fleet, &undone("result")).ok();
}

#[test]
fn a_flow_that_runs_itself_is_refused_at_once() {
    let fleet = Fleet::start(1);
    let sub = |name: &str, file: &str| format!("[[step]]\nname = \"{name}\"\nflow = \"{file}\"\n");
    fs::write(fleet.root().join("other.toml"), ["a", "b", "c"].map(|name| sub(name, "flow.toml")).concat()).unwrap();
    assert_refused(&fleet, &["a", "b", "c"].map(|name| sub(name, "other.toml")).concat(), "which runs it itself");
    // Nobody runs himself, and yet it would be millions.
    for number in 0..15 {
        let next = ["a", "b", "c"].map(|name| sub(name, &format!("f{}.toml", number + 1))).concat();
        fs::write(fleet.root().join(format!("f{number}.toml")), next).unwrap();
    }
    fs::write(fleet.root().join("f15.toml"), step("a", "test.ping", "[]", "")).unwrap();
    assert_refused(&fleet, &sub("a", "f0.toml"), "a flow runs 1000 sub-flows at most");
}

#[test]
fn a_method_that_nobody_has_is_found_though_the_target_is_a_var() {
    let fleet = Fleet::start(1);
    let text = "[vars]\nhosts = \"web*\"\n".to_owned() + &step("a", "nobody.has_it", "[]", "").replace("\"web1\"", "\"${hosts}\"");
    assert_refused(&fleet, &text, "no host of web* has nobody.has_it");
    let values = "retry = { for_each = [\"web1\", \"web1\"], as = \"t\" }";
    let text = step("a", "test.ping", "[]", values).replace("\"web1\"\ncall", "\"${t}\"\ncall");
    assert_refused(&fleet, &text, "its target is found once, and its retry has another value each time");
    let text = step("a", "test.ping", "[]", "retry = { times = 1001 }");
    assert_refused(&fleet, &text, "retry.times is 1000 at most");
}

/// What a block provides that may begin anew is there for others once the block is done, and not before.
#[test]
fn a_value_of_a_block_that_begins_anew_is_used_outside_once_it_is_done() {
    let fleet = Fleet::start(1);
    let ran_file = ran_file(&fleet);
    let text = format!(
        "block = \"graph\"\n[[step]]\nname = \"block\"\nblock = \"linear\"\nretry = {{ for_each = [1, 2], as = \"v\" }}\n\
         [[step.step]]\nname = \"gives\"\ntarget = \"web1\"\ncall = \"test.echo\"\nargs = [\"${{v}}\"]\nprovides = {{ x = {{ path = \"\", type = \"integer\" }} }}\n\
         [[step.step]]\nname = \"fails_first\"\ntarget = \"web1\"\ncall = \"command.run\"\nargs = {{ line = \"test ${{v}} = 2\" }}\n\
         [[step]]\nname = \"outside\"\ntarget = \"web1\"\ncall = \"command.run\"\nargs = {{ line = \"echo ${{x}} >> {ran_file}\" }}\n"
    );
    let document = run(&fleet, &text).ok().json();
    assert_eq!(ran(&fleet), ["2"], "{document}");
}

/// A log of a version to come is no damaged one.
#[test]
fn a_newer_log_names_the_version_that_reads_it() {
    let fleet = Fleet::start(1);
    let document = run(&fleet, &mark(&fleet, "one", "web1", "")).ok().json();
    assert_eq!(states(&document), [("one", "SUCCESS")]);
    let id = document["flow_id"].as_str().unwrap();
    let body = json!({ "number": 0, "at": "2030-01-01T00:00:00Z", "event": { "created": { "format": 9, "by": "9.1.0", "odd": true } } });
    fs::write(fleet.home().join(format!("flows/{id}.log")), common::seal::seal(&body).unwrap()).unwrap();
    let mut text = fs::read(fleet.home().join(format!("flows/{id}.log"))).unwrap();
    text.push(b'\n');
    fs::write(fleet.home().join(format!("flows/{id}.log")), text).unwrap();
    let run = fleet.overlord(["flow", "status", id]).expect(1);
    assert!(run.err().contains("has format 9") && run.err().contains("overlord 9.1.0"), "{}", run.err());
}
