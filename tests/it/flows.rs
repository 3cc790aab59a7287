//! `overlord flow`: what flows from one call to the next, what is refused before anything runs, what is undone and in which order, and that a kill at any
//! moment repeats nothing and loses nothing.

mod checks;
mod faults;

use std::fs;
use std::path::Path;
use std::time::Duration;

use fleet::{Fleet, PATIENCE, Run, wait_for};
use serde_json::{Value, json};

/// Writes a flow's file, and gives its path.
fn file(fleet: &Fleet, text: &str) -> String {
    let path = fleet.root().join("flow.toml");
    fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

/// Runs a flow to its end, whatever that is.
fn run(fleet: &Fleet, text: &str) -> Run {
    let file = file(fleet, text);
    fleet.overlord(["flow", "run", &file, "--output", "json"])
}

/// A task that leaves its name in a file, with the host's.
fn mark(fleet: &Fleet, name: &str, target: &str, more: &str) -> String {
    let ran = ran_file(fleet);
    format!(
        "[[step]]\nname = \"{name}\"\ntarget = \"{target}\"\ncall = \"command.run\"\nargs = {{ line = \"echo {name} $MINION_NAME >> {ran}\" }}\n\
         undo = {{ call = \"command.run\", args = {{ line = \"echo undo-{name} $MINION_NAME >> {ran}\" }} }}\n{more}\n"
    )
}

fn ran_file(fleet: &Fleet) -> String {
    fleet.root().join("ran").display().to_string()
}

/// What has run, a line each.
fn ran(fleet: &Fleet) -> Vec<String> {
    let text = fs::read_to_string(fleet.root().join("ran")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

/// The states of the tasks of a flow.
fn states(document: &Value) -> Vec<(&str, &str)> {
    document["tasks"].as_array().unwrap().iter().map(|task| (task["name"].as_str().unwrap(), task["state"].as_str().unwrap())).collect()
}

fn status(fleet: &Fleet, id: &str) -> Value {
    fleet.overlord(["flow", "status", id, "--output", "json"]).json()
}

/// Waits until a flow is in that state and nobody works on it.
fn wait_for_state(fleet: &Fleet, id: &str, state: &str) -> Value {
    wait_for(&format!("the flow to be {state}"), PATIENCE, || {
        let document = status(fleet, id);
        (document["state"] == state && document["at_work"] == false).then_some(document)
    })
}

fn add(name: &str, a: &str, b: &str, provides: &str) -> String {
    format!(
        "[[step]]\nname = \"{name}\"\ntarget = \"web*\"\nhosts = \"any\"\ncall = \"test.add\"\nargs = [{a}, {b}]\nprovides = \"{provides}\"\n"
    )
}

/// The first example of TaskFlow's worker engine.
#[test]
fn a_linear_flow_gives_the_results_of_the_example() {
    let fleet = Fleet::start(1);
    let text = format!(
        "[vars]\nx = 111\ny = 222\nz = 333\n[[step]]\nname = \"one\"\ntarget = \"web1\"\ncall = \"test.echo\"\nargs = [1]\nprovides = \"result1\"\n{}{}",
        add("two", "\"${x}\"", "\"${y}\"", "sum"),
        add("three", "\"${sum}\"", "\"${z}\"", "result2")
    );
    let document = run(&fleet, &text).ok().json();
    assert_eq!((&document["state"], &document["values"]["result1"]), (&json!("SUCCESS"), &json!(1)));
    assert_eq!(document["values"]["result2"].as_f64(), Some(666.0), "{document}");
    let file = file(&fleet, &text);
    let document = fleet.overlord(["flow", "run", &file, "--var", "z=-333", "--output", "json"]).ok().json();
    assert_eq!(document["values"]["result2"].as_f64(), Some(0.0));
    fleet.assert_no_leaks();
}

/// TaskFlow's example of a graph: the tasks stand in the file in no order, and values alone make one.
#[test]
fn a_graph_runs_in_the_order_of_its_values() {
    let fleet = Fleet::start(2);
    let steps = [
        ("seven", "x6", "x6", "x7"),
        ("six", "x5", "x4", "x6"),
        ("five", "x1", "x3", "x5"),
        ("four", "x2", "y5", "x4"),
        ("three", "x1", "x2", "x3"),
        ("two", "y3", "y4", "x2"),
        ("one", "y1", "y2", "x1"),
    ];
    let mut text = "block = \"graph\"\nvars = { y1 = 1, y2 = 3, y3 = 5, y4 = 7, y5 = 9 }\n".to_owned();
    for (name, a, b, provides) in steps {
        text.push_str(&add(name, &format!("\"${{{a}}}\""), &format!("\"${{{b}}}\""), provides));
    }
    let document = run(&fleet, &text).ok().json();
    let values = ["x1", "x2", "x3", "x4", "x5", "x6", "x7"].map(|name| document["values"][name].as_f64().unwrap());
    assert_eq!(values, [4.0, 12.0, 16.0, 21.0, 20.0, 41.0, 82.0]);
    let order = fleet.overlord(["flow", "graph", &file(&fleet, &text)]).ok().out();
    assert!(order.contains("seven  test.add  after six"), "{order}");
    let dot = fleet.overlord(["flow", "graph", &file(&fleet, &text), "--dot"]).ok().out();
    assert!(dot.contains("\"three\" -> \"five\";"), "{dot}");
}

#[test]
fn what_was_done_is_undone_in_reverse_and_the_first_error_is_told() {
    let fleet = Fleet::start(2);
    let fail = "[[step]]\nname = \"third\"\ntarget = \"web1\"\ncall = \"command.run\"\nargs = { line = \"echo why >&2; exit 3\" }\n";
    let undo = format!("undo = {{ call = \"command.run\", args = {{ line = \"echo undo-third >> {}\" }} }}\n", ran_file(&fleet));
    let text = [
        mark(&fleet, "first", "web1", ""),
        mark(&fleet, "second", "web*", ""),
        fail.to_owned() + &undo,
        mark(&fleet, "fourth", "web1", ""),
    ];
    let run = run(&fleet, &text.concat()).expect(2);
    let document = run.json();
    assert_eq!(document["state"], "REVERTED");
    assert_eq!(states(&document), [("first", "REVERTED"), ("second", "REVERTED"), ("third", "FAILURE"), ("fourth", "PENDING")]);
    let cause = &document["cause"];
    assert_eq!((&cause["task"], &cause["host"], &cause["state"]), (&json!("third"), &json!("web1"), &json!("failed")));
    assert_eq!((&cause["error"]["code"], &cause["error"]["data"]["rc"]), (&json!(2), &json!(3)), "{cause}");
    assert_eq!(cause["error"]["data"]["stderr"], "why\n");
    let mut ran = ran(&fleet);
    ran[1..3].sort();
    ran[3..5].sort();
    assert_eq!(ran, ["first web1", "second web1", "second web2", "undo-second web1", "undo-second web2", "undo-first web1"]);
    fleet.assert_no_leaks();
}

#[test]
fn an_undo_that_fails_is_another_end_than_one_that_works() {
    let fleet = Fleet::start(1);
    let bad = "[[step]]\nname = \"second\"\ntarget = \"web1\"\ncall = \"test.ping\"\nundo = { call = \"test.explode\", args = [\"stuck\"], times = 2 }\n";
    let fail = "[[step]]\nname = \"third\"\ntarget = \"web1\"\ncall = \"test.explode\"\nargs = [\"first cause\"]\n";
    let tell = format!(
        "[[finally]]\nname = \"tell\"\ntarget = \"web1\"\ncall = \"command.run\"\nargs = {{ line = \"echo ${{flow.state}} $WHY >> {}\", env = {{ WHY = \"${{flow.error.message}}\" }} }}\n",
        ran_file(&fleet)
    );
    let document = run(&fleet, &[&mark(&fleet, "first", "web1", ""), bad, fail, &tell].concat()).expect(2).json();
    assert_eq!(document["state"], "FAILURE");
    let expected = [("first", "REVERTED"), ("second", "REVERT_FAILURE"), ("third", "FAILURE"), ("tell", "SUCCESS")];
    assert_eq!(states(&document), expected);
    assert_eq!(document["cause"]["error"]["message"], "first cause");
    assert_eq!(document["tasks"][1]["cause"]["error"]["message"], "stuck");
    assert_eq!(ran(&fleet), ["first web1", "undo-first web1", "FAILURE first cause"]);
}

#[test]
fn a_retry_for_each_stops_at_the_first_value_that_works() {
    let fleet = Fleet::start(1);
    let ran_file = ran_file(&fleet);
    let text = format!(
        "[[step]]\nname = \"block\"\nblock = \"linear\"\nretry = {{ for_each = [1, 2, 3, 4], as = \"v\" }}\n\
         [[step.step]]\nname = \"before\"\ntarget = \"web1\"\ncall = \"test.echo\"\nargs = [\"${{v}}\"]\nprovides = \"worked\"\n\
         undo = {{ call = \"command.run\", args = {{ line = \"echo undo ${{result}} >> {ran_file}\" }} }}\n\
         [[step.step]]\nname = \"try\"\ntarget = \"web1\"\ncall = \"command.run\"\nargs = {{ line = \"echo ${{v}} >> {ran_file}; test ${{v}} -ge 3\" }}\n"
    );
    let document = run(&fleet, &text).ok().json();
    assert_eq!(ran(&fleet), ["1", "undo 1", "2", "undo 2", "3"]);
    assert_eq!(document["values"]["worked"], 3);
    let history: Vec<&Value> = document["history"].as_array().unwrap().iter().filter(|past| past["name"] == "block").collect();
    assert_eq!(history.len(), 2, "{document}");
    assert_eq!((&history[1]["attempt"], &history[1]["cause"]["error"]["data"]["rc"]), (&json!(2), &json!(1)));
}

#[test]
fn a_task_is_tried_again_where_it_failed_and_with_a_pause() {
    let fleet = Fleet::start(2);
    let line = format!("echo $MINION_NAME >> {0}; test $MINION_NAME = web1 || test $(grep -c web2 {0}) -ge 3", ran_file(&fleet));
    let text = format!(
        "[[step]]\nname = \"a\"\ntarget = \"web*\"\ncall = \"command.run\"\nargs = {{ line = '{line}' }}\nretry = {{ times = 3, pause = \"100ms\" }}\n"
    );
    let document = run(&fleet, &text).ok().json();
    let ran = ran(&fleet);
    assert_eq!((ran.iter().filter(|line| *line == "web1").count(), ran.len()), (1, 4), "{ran:?}");
    assert_eq!(document["tasks"][0]["attempt"], 3);
    assert!(document["duration_ms"].as_u64().unwrap() >= 300, "100 ms and then 200: {document}");
}

#[test]
fn decisions_items_shares_and_sub_flows_do_what_they_say() {
    let fleet = Fleet::start(3);
    let sub = "inputs = { n = \"number\" }\n[[step]]\nname = \"square\"\ntarget = \"web*\"\nhosts = \"any\"\ncall = \"test.square\"\nargs = [\"${n}\"]\nprovides = \"squared\"\n";
    fs::write(fleet.root().join("sub.toml"), sub).unwrap();
    let text = "
block = \"graph\"
vars = { on = false, list = [1, 2, 3] }
[[step]]
name = \"each\"
target = \"web*\"
hosts = \"any\"
call = \"test.add\"
args = [\"${item}\", 10]
for_each = \"${list}\"
provides = \"sums\"
[[step]]
name = \"off\"
target = \"web1\"
call = \"test.echo\"
args = [5]
when = \"on\"
provides = \"nothing\"
[[step]]
name = \"follows\"
target = \"web1\"
call = \"test.echo\"
args = [\"${nothing}\"]
[[step]]
name = \"names\"
target = \"*\"
call = \"test.echo\"
args = [\"${host}\"]
provides = \"names\"
[[step]]
name = \"some\"
target = \"*\"
call = \"command.run\"
args = { line = \"test $MINION_NAME != web2 && echo $MINION_NAME\" }
max_fail = \"34%\"
provides = \"some\"
[[step]]
name = \"sub\"
flow = \"sub.toml\"
vars = { n = \"${sums.2}\" }
provides = { outcome = \"squared\" }
[[step]]
name = \"last\"
target = \"web1\"
call = \"test.add\"
args = [\"${outcome}\", 1]
provides = \"last\"
";
    let document = run(&fleet, text).ok().json();
    let values = &document["values"];
    let sums: Vec<f64> = values["sums"].as_array().unwrap().iter().map(|sum| sum.as_f64().unwrap()).collect();
    assert_eq!(sums, [11.0, 12.0, 13.0]);
    assert_eq!(values["names"], json!({ "web1": "web1", "web2": "web2", "web3": "web3" }));
    let some: Vec<&String> = values["some"].as_object().unwrap().keys().collect();
    assert_eq!(some, ["web1", "web3"], "web2 has failed, and one of three may");
    assert_eq!(values["last"].as_f64(), Some(170.0));
    let states = states(&document);
    assert!(states.contains(&("off", "IGNORE")) && states.contains(&("follows", "IGNORE")), "{states:?}");
    assert!(states.contains(&("sub/square", "SUCCESS")), "{states:?}");
}

#[test]
fn what_cannot_work_is_refused_before_anything_runs() {
    let fleet = Fleet::start(1);
    let first = mark(&fleet, "first", "web1", "");
    let step = |call: &str, args: &str, more: &str| {
        format!("{first}[[step]]\nname = \"a\"\ntarget = \"web1\"\ncall = \"{call}\"\nargs = {args}\n{more}")
    };
    for (text, problem) in [
        (step("test.add", "[\"5\", 1]", ""), "flow.toml:9: the task a: test.add: `a` wants number, not \"5\""),
        (step("nobody.has_it", "[]", ""), "flow.toml:9: the task a: no host of web1 has nobody.has_it"),
        (step("test.ping", "[]", "").replace("web1\"\ncall = \"test.ping", "nowhere\"\ncall = \"test.ping"), "no host is named nowhere"),
        (step("test.echo", "[\"${x}\"]", "provides = \"x\""), "flow.toml:9: a cycle"),
        (
            step("test.ping", "[]", "provides = \"x\"\n")
                + "[[step]]\nname = \"b\"\ntarget = \"web1\"\ncall = \"test.ping\"\nprovides = \"x\"",
            "two provide x",
        ),
        (step("test.ping", "[]", "provide = \"x\""), "flow.toml:13: unknown field `provide`"),
    ] {
        let file = file(&fleet, &text);
        for verb in ["check", "run"] {
            let run = fleet.overlord(["flow", verb, &file]).expect(64);
            assert!(run.err().contains(problem), "{verb}: {problem}\n{}", run.err());
        }
    }
    assert_eq!(ran(&fleet), Vec::<String>::new());
    assert_eq!(fleet.overlord(["flow", "list", "--output", "json"]).ok().json(), json!([]), "and none is written down");
    let good = file(&fleet, &first);
    assert_eq!(fleet.overlord(["flow", "check", &good]).ok().out(), "flow: nothing is wrong with its 1 tasks\n");
}

#[test]
fn the_schema_is_that_of_the_file() {
    let fleet = Fleet::builder().hosts(0).start();
    let schema = fleet.overlord(["flow", "schema"]).ok().json();
    assert_eq!(schema["additionalProperties"], false);
    let committed = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/flows/flow.schema.json");
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&committed, fleet.overlord(["flow", "schema"]).ok().out()).unwrap();
    }
    let text = fs::read_to_string(&committed).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), schema, "UPDATE=1 writes it anew");
}

#[test]
fn what_has_ended_is_deleted_on_request_and_else_goes_by_age_and_count() {
    let fleet = Fleet::builder().hosts(1).faked_time().start();
    let one = "[[step]]\nname = \"a\"\ntarget = \"web1\"\ncall = \"test.ping\"\n";
    let held = format!(
        "[[step]]\nname = \"a\"\ntarget = \"web1\"\ncall = \"command.run\"\nargs = {{ line = \"until [ -e {} ]; do sleep 0.02; done\" }}\n",
        fleet.root().join("gate").display()
    );
    let id_of = |text: &str| fleet.overlord(["flow", "run", &file(&fleet, text), "--async"]).ok().out().trim().to_owned();
    let ended = run(&fleet, one).ok().json()["flow_id"].as_str().unwrap().to_owned();
    let running = id_of(&held);
    let refused = fleet.overlord(["flow", "delete", &running, &ended, "nobody"]).expect(75);
    assert!(refused.err().contains("is at work already") && refused.err().contains(&format!("{ended} is deleted")), "{}", refused.err());
    assert!(refused.err().contains("nobody"), "{}", refused.err());
    let left = || -> Vec<String> {
        let flows = fleet.overlord(["flow", "list", "--output", "json"]).ok().json();
        flows.as_array().unwrap().iter().map(|flow| flow["flow_id"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(left(), std::slice::from_ref(&running));
    fs::write(fleet.root().join("gate"), "").unwrap();
    let _ended = wait_for_state(&fleet, &running, "SUCCESS");
    // An hour passes, and none more than one may be kept: the next flow gives up the one before it.
    fs::write(fleet.home().join("overlord.toml"), "[retention]\ncount = 1\n").unwrap();
    let _kept = id_of(one);
    assert!(left().contains(&running), "in the hour after its end it is kept in any case");
    fleet.pass(Duration::from_secs(61 * 60));
    let last = id_of(one);
    let _ended = wait_for_state(&fleet, &last, "SUCCESS");
    assert!(!left().contains(&running) && left().contains(&last), "{:?}", left());
}
