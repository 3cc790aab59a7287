#![allow(clippy::unwrap_used, reason = "a test may panic")]
use common::method::Catalogue;
use serde_json::json;

use super::super::check;
use super::*;

fn plan(text: &str) -> Result<Plan, String> {
    let made = Plan::make(&Texts::of(text), &Map::new());
    made.map_err(|problems| problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
}

/// What is wrong with it, in the end, one a line.
fn problems(text: &str) -> String {
    let catalogue = Catalogue::builtin();
    match plan(text) {
        Ok(plan) => {
            check::problems(&plan, &|name| catalogue.find(name).cloned()).iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
        }
        Err(problems) => problems,
    }
}

/// A task of a graph.
fn task(name: &str, args: &str, more: &str) -> String {
    format!("[[step]]\nname = \"{name}\"\ncall = \"test.add\"\ntarget = \"web1\"\nargs = {args}\n{more}\n")
}

#[test]
fn values_make_the_order_of_a_graph() {
    let text = format!(
        "block = \"graph\"\n{}{}{}",
        task("c", "[\"${x}\", \"${y}\"]", ""),
        task("b", "[\"${x}\", 1]", "provides = \"y\""),
        task("a", "[1, 1]", "provides = \"x\"")
    );
    let plan = plan(&text).unwrap();
    let shown = plan.shown();
    let lines: Vec<&str> = shown.lines().map(str::trim).collect();
    assert_eq!(lines, ["flow: 3 tasks", "a  test.add", "b  test.add  after a", "c  test.add  after a, b"]);
    assert!(plan.dot().contains("\"a\" -> \"c\";"), "{}", plan.dot());
    assert_eq!(problems(&text), "");
}

#[test]
fn linear_blocks_and_blocks_in_blocks_wait_for_those_before() {
    let text = "
[[step]]
name = \"first\"
call = \"test.ping\"
target = \"*\"
[[step]]
name = \"both\"
block = \"unordered\"
  [[step.step]]
  name = \"left\"
  call = \"test.ping\"
  target = \"*\"
  [[step.step]]
  name = \"right\"
  call = \"test.ping\"
  target = \"*\"
[[step]]
name = \"last\"
call = \"test.ping\"
target = \"*\"
";
    let shown = plan(text).unwrap().shown();
    for line in ["left  test.ping  after first", "right  test.ping  after first", "last  test.ping  after left, right"] {
        assert!(shown.contains(line), "{shown}");
    }
}

#[test]
fn what_cannot_work_is_told_with_its_line() {
    let ping = |name: &str, more: &str| format!("[[step]]\nname = \"{name}\"\ncall = \"test.ping\"\ntarget = \"*\"\n{more}\n");
    for (text, problem) in [
        ("stap = 1\n", "flow.toml:1: unknown field `stap`"),
        (&*ping("a", "tiemout = \"5s\""), "flow.toml:5: unknown field `tiemout`"),
        ("[[step]]\nname = \"a\"\n", "flow.toml:2: the step a is a task with a call, or a block"),
        (&*format!("\n{}{}", ping("a", ""), ping("a", "")), "flow.toml:8: two steps are named a"),
        (&*format!("{}{}", ping("a", "provides = \"x\""), ping("b", "provides = \"x\"")), "flow.toml:7: two provide x"),
        (&*task("a", "[1, \"${nothing}\"]", ""), "flow.toml:2: nothing provides nothing"),
        (&*ping("a", "after = [\"zzz\"]"), "flow.toml:2: after: there is no step zzz"),
        (&*ping("a", "when = \"x ==\""), "flow.toml:2: when: "),
        (&*ping("a", "max_fail = \"20\""), "flow.toml:2: max_fail is"),
        (&*ping("a", "retry = { pause = \"1s\" }"), "flow.toml:2: retry wants either times or for_each"),
        (&*ping("a", "timeout = \"5\""), "flow.toml:5: \"5\" is not a length of time"),
        (&*ping("1a", ""), "flow.toml:2: \"1a\" cannot be a step's name"),
        (&*ping("a", "provides = \"host\""), "flow.toml:2: \"host\" cannot be a value's name"),
        (&*task("a", "[1, \"${item}\"]", ""), "flow.toml:2: ${item} means nothing here"),
        (&*task("a", "[\"5\", 1]", ""), "flow.toml:2: the task a: test.add: `a` wants number, not \"5\""),
        (&*task("a", "[1]", ""), "flow.toml:2: the task a: test.add: `b` is missing"),
        (
            &*format!("[vars]\nv = \"5\"\n{}", task("a", "[1, \"${v}\"]", "")),
            "flow.toml:4: the task a: test.add: `b` wants number, and what it is given is string",
        ),
        (&*format!("[vars]\nv = 5\n{}", task("a", "[1, \"x${v}\"]", "")), "`b` wants number, and what it is given is string"),
        (
            &*format!("{}{}", ping("p", "provides = \"x\"").replace('*', "web1"), task("a", "[1, \"${x}\"]", "")),
            "`b` wants number, and what it is given is string",
        ),
        (
            &*format!("{}{}", ping("p", "provides = \"x\""), task("a", "[1, \"${x}\"]", "")),
            "`b` wants number, and what it is given is object",
        ),
        (
            &*ping("a", "undo = { call = \"test.add\", args = [1, true] }"),
            "flow.toml:2: the task a: undo: test.add: `b` wants number, not true",
        ),
        (
            &*format!("block = \"unordered\"\n{}{}", task("a", "[1, 1]", "provides = \"x\""), task("b", "[1, \"${x}\"]", "")),
            "flow.toml:9: x comes from a step of the same unordered block",
        ),
        (
            &*format!("{}{}", task("a", "[1, \"${y}\"]", "provides = \"x\""), task("b", "[1, \"${x}\"]", "provides = \"y\"")),
            "flow.toml:2: a cycle: each of these waits for another of them: a, b",
        ),
        (&*task("a", "[1, \"${x}\"]", "provides = \"x\""), "flow.toml:2: a cycle: each of these waits for another of them: a"),
        (
            &*format!("[inputs]\nversion = \"string\"\n{}", ping("a", "")),
            "flow.toml:2: the input version is missing: give it with --var version=VALUE",
        ),
    ] {
        let told = problems(text);
        assert!(told.contains(problem), "{text}\nwants {problem}\nis    {told}");
    }
}

#[test]
fn vars_are_of_the_type_of_their_defaults() {
    let text = "[vars]\nn = 1.5\ns = \"x\"\nl = []\n[inputs]\ni = \"any\"\n[[step]]\nname = \"a\"\ncall = \"test.ping\"\ntarget = \"*\"\n";
    let given =
        |values: Value| Plan::make(&Texts::of(text), values.as_object().unwrap()).map_err(|problems| problems.first().unwrap().to_string());
    let made = given(json!({ "n": "7", "s": "7", "l": "[1]", "i": "007" })).unwrap();
    let value = |name: &str| match made.source(0, name) {
        Some(Source::Value(value)) => value.clone(),
        other => unreachable!("{other:?}"),
    };
    assert_eq!([value("n"), value("s"), value("l"), value("i")], [json!(7), json!("7"), json!([1]), json!("007")]);
    assert!(given(json!({ "n": "x", "i": "1" })).unwrap_err().contains("--var n wants number, not \"x\""));
    assert!(given(json!({ "z": "x", "i": "1" })).unwrap_err().contains("no var or input of that name"));
}

#[test]
fn a_sub_flow_has_names_of_its_own() {
    let main = "
[[step]]
name = \"one\"
flow = \"sub.toml\"
vars = { n = 1 }
provides = { first = \"sum\" }
[[step]]
name = \"two\"
flow = \"sub.toml\"
vars = { n = \"${first}\" }
provides = { second = \"sum\" }
[[step]]
name = \"end\"
call = \"test.add\"
target = \"web1\"
args = [\"${first}\", \"${second}\"]
";
    let sub = "inputs = { n = \"number\" }\n[[step]]\nname = \"add\"\ncall = \"test.add\"\ntarget = \"web1\"\nargs = [\"${n}\", 10]\nprovides = \"sum\"\n";
    let texts = |main: &str| Texts {
        main: "flow.toml".into(),
        files: [("flow.toml".into(), main.to_owned()), ("sub.toml".into(), sub.to_owned())].into(),
    };
    let plan = Plan::make(&texts(main), &Map::new()).unwrap();
    assert!(plan.shown().contains("two/add  test.add  after one/add"), "{}", plan.shown());
    let catalogue = Catalogue::builtin();
    assert!(check::problems(&plan, &|name| catalogue.find(name).cloned()).is_empty());
    for (change, problem) in [
        (main.replace("second = \"sum\"", "second = \"zzz\""), "the sub-flow provides no zzz"),
        (main.replace("vars = { n = 1 }", ""), "the sub-flow one is not given its input n"),
        (main.replace("n = 1", "n = 1, m = 2"), "has no var or input m"),
    ] {
        let problems = Plan::make(&texts(&change), &Map::new()).unwrap_err();
        assert!(problems.iter().any(|told| told.to_string().contains(problem)), "{problems:?}");
    }
}
