//! `overlord map`: items dealt to hosts that have time, results in the items' order, and the truth about each item whatever happens to hosts.

mod detached;
mod hostile;
mod rights;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use fleet::{Fleet, PATIENCE, Proxy, Run, Running, binaries, wait_until};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

/// A file with an item a line.
fn items(fleet: &Fleet, items: impl IntoIterator<Item = Value>) -> String {
    let mut text = String::new();
    for item in items {
        writeln!(text, "{item}").unwrap();
    }
    let path = fleet.root().join("items.jsonl");
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

/// What a map of those comes to, whatever its exit status.
fn map(fleet: &Fleet, method: &str, all: impl IntoIterator<Item = Value>, more: &[&str]) -> Run {
    let file = items(fleet, all);
    fleet.overlord(["map", "*", method, "--items", &file, "--output", "jsonl"].iter().chain(more))
}

/// The lines of the items, which stand in order, and the summary behind them.
fn lines(run: &Run, count: usize) -> (Vec<Value>, Value) {
    let mut lines = run.json_lines();
    let summary = lines.pop().unwrap()["summary"].clone();
    let indexes: Vec<u64> = lines.iter().map(|line| line["index"].as_u64().unwrap()).collect();
    assert_eq!(indexes, (0..count as u64).collect::<Vec<_>>(), "{}", run.out());
    (lines, summary)
}

fn message(line: &Value) -> &str {
    line["error"]["message"].as_str().unwrap_or_default()
}

/// A folder for what items leave behind.
fn marks(fleet: &Fleet) -> PathBuf {
    let folder = fleet.root().join("marks");
    std::fs::create_dir(&folder).unwrap();
    folder
}

#[test]
fn a_thousand_squares_come_in_order_from_all_hosts() {
    let fleet = Fleet::start(3);
    let file = items(&fleet, (0..1000).map(|number| json!(number)));
    let squares: String = (0..1000_u64).map(|number| format!("{}\n", number * number)).collect();
    let run = fleet.overlord(["map", "*", "test.square", "--items", &file]).ok();
    assert_eq!(run.out(), squares);
    assert_eq!(run.err(), "1000 ok\n");
    let chunks = fleet.minions().iter().flat_map(|minion| minion.audit()).filter(|line| line["method"] == "map.test.square").count();
    assert!((6..200).contains(&chunks), "{chunks} lines in audit logs, one a chunk");
    let run = map(&fleet, "test.square", (0..1000).map(|number| json!({ "number": number })), &[]).ok();
    let (lines, summary) = lines(&run, 1000);
    assert!(lines.iter().zip(0_u64..).all(|(line, number)| line["state"] == "ok" && line["result"] == number * number), "{}", run.out());
    assert_eq!(summary, json!({ "ok": 1000 }));
    let document = fleet.overlord(["map", "*", "test.square", "--items", &file, "--output", "json"]).ok().json();
    assert_eq!((document["items"][999]["result"].as_u64(), &document["summary"]["ok"]), (Some(998_001), &json!(1000)));
    fleet.assert_no_leaks();
}

#[test]
fn commands_are_mapped_and_each_host_takes_its_share() {
    let fleet = Fleet::start(2);
    let meeting = marks(&fleet);
    // Nobody goes on before both hosts have begun.
    let line = |item: usize| {
        let here = meeting.display();
        json!([format!("touch {here}/$MINION_NAME; until [ -e {here}/web1 -a -e {here}/web2 ]; do sleep 0.02; done; echo {item}")])
    };
    let run = map(&fleet, "command.run", (0..40).map(line), &[]).ok();
    let (lines, _) = lines(&run, 40);
    assert!(lines.iter().enumerate().all(|(item, line)| line["result"]["stdout"] == format!("{item}\n")), "{}", run.out());
    for host in ["web1", "web2"] {
        assert!(lines.iter().any(|line| line["host"] == host), "{}", run.out());
    }
}

#[test]
fn one_bad_item_names_its_index_and_keeps_the_rest() {
    let fleet = Fleet::start(2);
    let all = (0..300).map(|number| if number == 117 { json!("x") } else { json!(number) });
    let run = map(&fleet, "test.square", all.clone(), &[]).expect(2);
    let (lines, summary) = lines(&run, 300);
    assert_eq!(summary, json!({ "ok": 299, "failed": 1 }));
    assert_eq!(lines[117]["error"]["code"], -32602);
    assert!(message(&lines[117]).contains("item 117: test.square: `number` wants number, not \"x\""), "{}", lines[117]);
    let file = items(&fleet, all);
    let run = fleet.overlord(["map", "*", "test.square", "--items", &file]).expect(2);
    let out = run.out();
    let text: Vec<&str> = out.split('\n').collect();
    assert_eq!((text[116], text[117], text[118], text.len()), ("13456", "", "13924", 301), "line N is item N");
    assert!(run.err().contains("item 117 on web") && run.err().contains("failed: item 117: test.square"), "{}", run.err());
}

#[test]
fn an_item_that_kills_its_process_is_set_aside_and_the_others_go_on() {
    let fleet = Fleet::start(1);
    let line = |item: usize| if item % 10 == 7 { json!(["kill -9 $PPID; sleep 60"]) } else { json!([format!("echo {item}")]) };
    let run = map(&fleet, "command.run", (0..50).map(line), &[]).expect(2);
    let (lines, summary) = lines(&run, 50);
    assert_eq!(summary, json!({ "ok": 45, "failed": 5 }), "{}", run.out());
    assert!(message(&lines[7]).contains("killed by SIGKILL before it gave a result"), "{}", lines[7]);
    assert_eq!(lines[7]["error"]["code"], 3);
}

/// The process that supervises a chunk is killed: what it has done is not known, and nobody runs it again.
#[test]
fn a_supervisor_that_is_killed_loses_what_was_under_way_and_nothing_else() {
    let fleet = Fleet::start(1);
    let ran = marks(&fleet);
    // So slow that each is a chunk of its own.
    let line = |item: usize| {
        let end = if item == 7 { "kill -9 $(cut -d' ' -f4 /proc/$PPID/stat)" } else { "true" };
        json!([format!("sleep 0.1; echo {item} >> {}/ran; {end}; echo {item}", ran.display())])
    };
    let run = map(&fleet, "command.run", (0..12).map(line), &[]).expect(4);
    let (lines, summary) = lines(&run, 12);
    assert_eq!(summary, json!({ "ok": 11, "lost": 1 }), "{}", run.out());
    assert!(message(&lines[7]).contains("it may have run"), "{}", lines[7]);
    let ran = std::fs::read_to_string(ran.join("ran")).unwrap();
    assert_eq!(ran.lines().count(), 12, "each ran once: {ran}");
}

#[test]
fn an_item_has_its_time_for_itself() {
    let fleet = Fleet::start(1);
    let run = map(&fleet, "test.sleep", [0.0, 0.01, 0.01, 20.0, 0.01, 0.7, 0.7, 0.01].map(|seconds| json!(seconds)), &["--timeout", "1s"])
        .expect(2);
    let (lines, summary) = lines(&run, 8);
    assert_eq!(summary, json!({ "ok": 7, "timed_out": 1 }), "{}", run.out());
    assert!(message(&lines[3]).contains("test.sleep was stopped at its time limit of 1s"), "{}", lines[3]);
    assert!(run.took < Duration::from_secs(15), "{:?}", run.took);
}

/// Quick ones make chunks large, so that the last two, which need 4.15 s together, are in one of them.
#[test]
fn the_time_of_an_item_begins_with_it_and_not_with_its_chunk() {
    let fleet = Fleet::start(1);
    let seconds = std::iter::repeat_n(0.0, 100).chain([0.45, 3.7]);
    let run = map(&fleet, "test.sleep", seconds.map(|seconds| json!(seconds)), &["--timeout", "4s"]).ok();
    assert_eq!(lines(&run, 102).1, json!({ "ok": 102 }), "{}", run.out());
}

/// `web1` begins one item and dies of its test; `web2` does the rest.
fn one_host_dies(retries: &str) -> (Run, Vec<u64>) {
    let fleet = Fleet::start(2);
    let marks = marks(&fleet);
    let line = |item: usize| {
        let here = marks.display();
        json!([format!(
            "echo {item} >> {here}/$MINION_NAME; if [ $MINION_NAME = web1 ]; then sleep 600; fi; until [ -s {here}/web1 ]; do sleep 0.02; done; echo {item}"
        )])
    };
    let file = items(&fleet, (0..20).map(line));
    let running =
        fleet.overlord_spawn(["map", "*", "command.run", "--items", &file, "--timeout", "600s", "--retries", retries, "--output", "jsonl"]);
    wait_until("web1 to begin", PATIENCE, || std::fs::read_to_string(marks.join("web1")).is_ok_and(|text| text.ends_with('\n')));
    fleet.minion("web1").kill9();
    let run = running.wait();
    let begun = std::fs::read_to_string(marks.join("web1")).unwrap();
    (run, begun.lines().map(|line| line.parse().unwrap()).collect())
}

#[test]
fn a_host_that_dies_loses_what_it_had_begun_and_another_does_the_rest() {
    let (run, begun) = one_host_dies("0");
    let run = run.expect(4);
    let (lines, summary) = lines(&run, 20);
    assert_eq!(summary, json!({ "ok": 19, "lost": 1 }), "{}", run.out());
    let lost: Vec<u64> = lines.iter().filter(|line| line["state"] == "lost").map(|line| line["index"].as_u64().unwrap()).collect();
    assert_eq!(lost, begun);
    assert_eq!(lines[usize::try_from(begun[0]).unwrap()]["host"], "web1");
    assert!(lines.iter().filter(|line| line["state"] == "ok").all(|line| line["host"] == "web2"), "{}", run.out());
}

#[test]
fn what_may_have_run_runs_a_second_time_where_that_was_asked_for() {
    let (run, begun) = one_host_dies("1");
    let run = run.expect(0);
    let (lines, _) = lines(&run, 20);
    assert_eq!(begun.len(), 1);
    assert!(lines.iter().all(|line| line["host"] == "web2"), "{}", run.out());
}

/// However often it may be run again: the third host is not risked for it.
#[test]
fn an_item_that_kills_hosts_is_set_aside_after_two_of_them() {
    let fleet = Fleet::start(3);
    let marks = marks(&fleet);
    for minion in fleet.minions() {
        std::fs::write(marks.join(minion.name()), minion.pid().to_string()).unwrap();
    }
    let line = |item: usize| match item {
        30 => json!([format!("kill -9 $(cat {}/$MINION_NAME); sleep 60", marks.display())]),
        _ => json!([format!("echo {item}")]),
    };
    let run = map(&fleet, "command.run", (0..100).map(line), &["--retries", "9"]).expect(4);
    let (lines, summary) = lines(&run, 100);
    assert_eq!(summary, json!({ "ok": 99, "lost": 1 }), "{}", run.out());
    assert!(message(&lines[30]).contains("it is set aside: what became of it is not known of 2 hosts"), "{}", lines[30]);
    let alive = fleet.minions().iter().filter(|minion| fleet.raw_overlord(minion.name()).post(b"x").is_ok()).count();
    assert_eq!(alive, 1);
}

/// A host that is told to stop answers what it has begun, and what comes next waits until it is there again.
#[test]
fn a_restart_in_the_middle_loses_nothing() {
    for in_flight in ["1", "8"] {
        let fleet = Fleet::start(1);
        let begun = marks(&fleet).join("begun");
        let line = |item: usize| {
            let mark = if item == 4 { format!("touch {}; sleep 0.5", begun.display()) } else { "true".to_owned() };
            json!([format!("sleep 0.1; {mark}; echo {item}")])
        };
        let file = items(&fleet, (0..40).map(line));
        let running = fleet.overlord_spawn(["map", "*", "command.run", "--items", &file, "--in-flight", in_flight]);
        wait_until("an item to be under way", PATIENCE, || begun.exists());
        fleet.minion("web1").stop();
        fleet.minion("web1").start();
        let run = running.wait().ok();
        assert_eq!((run.err().as_str(), run.out().lines().count()), ("40 ok\n", 40));
    }
}

/// What was to run a second time, and did not, may have run the first time.
#[test]
fn what_was_begun_on_the_only_host_is_lost_however_often_it_might_run() {
    let fleet = Fleet::start(1);
    let begun = marks(&fleet).join("begun");
    let file = items(&fleet, [json!([format!("touch {}; sleep 600", begun.display())]), json!(["true"])]);
    let running =
        fleet.overlord_spawn(["map", "*", "command.run", "--items", &file, "--timeout", "600s", "--retries", "3", "--output", "jsonl"]);
    wait_until("an item to be under way", PATIENCE, || begun.exists());
    fleet.minion("web1").kill9();
    let (lines, summary) = lines(&running.wait().expect(4), 2);
    assert_eq!(summary, json!({ "lost": 1, "undelivered": 1 }));
    assert_eq!((&lines[0]["state"], &lines[0]["host"]), (&json!("lost"), &json!("web1")));
}

#[test]
fn a_cable_that_is_cut_in_the_middle_loses_what_was_on_its_way() {
    let fleet = Fleet::start(1);
    let marks = marks(&fleet);
    let cut = marks.join("cut");
    let line = |item: usize| {
        let cut = if item == 5 { format!("touch {}", cut.display()) } else { "true".to_owned() };
        json!([format!("sleep 0.1; echo {item} >> {}/ran; {cut}; echo {item}", marks.display())])
    };
    let watched = cut.clone();
    let proxy = Proxy::losing_answers(fleet.minion("web1").address(), 1, move || watched.exists());
    fleet.set_address("web1", &proxy.address().to_string());
    let run = map(&fleet, "command.run", (0..12).map(line), &[]).expect(4);
    let (lines, summary) = lines(&run, 12);
    assert_eq!((summary, proxy.lost()), (json!({ "ok": 11, "lost": 1 }), 1), "{}", run.out());
    assert_eq!(lines[5]["state"], "lost", "{}", lines[5]);
    assert_eq!(std::fs::read_to_string(marks.join("ran")).unwrap().lines().count(), 12, "each ran once");
}

#[test]
fn a_host_that_cannot_be_reached_leaves_its_share_to_the_others() {
    let fleet = Fleet::start(3);
    fleet.minion("web2").stop();
    let run = map(&fleet, "test.square", (0..500).map(|number| json!(number)), &[]).ok();
    let (lines, _) = lines(&run, 500);
    assert!(lines.iter().all(|line| line["host"] != "web2"));
    for minion in ["web1", "web3"] {
        fleet.minion(minion).stop();
    }
    let run = map(&fleet, "test.square", [json!(1), json!(2)], &[]).expect(4);
    let (lines, _) = self::lines(&run, 2);
    assert_eq!((&lines[1]["state"], &lines[1]["host"]), (&json!("undelivered"), &json!(null)));
    assert!(message(&lines[1]).contains("no host takes it: web1: cannot reach web1"), "{}", lines[1]);
}

#[test]
fn an_interrupt_ends_it_with_what_is_known() {
    let fleet = Fleet::start(1);
    let line = |item: usize| json!([if item == 3 { "sleep 4321".to_owned() } else { format!("sleep 0.1; echo {item}") }]);
    let file = items(&fleet, (0..100).map(line));
    let mut running = fleet.overlord_spawn(["map", "*", "command.run", "--items", &file, "--output", "jsonl"]);
    for _ in 0..3 {
        let _line = running.next_line();
    }
    wait_until("the fourth to begin", PATIENCE, || !fleet.running("sleep 4321").is_empty());
    running.signal(Signal::SIGINT);
    let run = running.wait().expect(130);
    let (lines, summary) = lines(&run, 4);
    assert_eq!(summary, json!({ "ok": 3, "lost": 1, "undelivered": 96 }));
    assert!(message(&lines[3]).contains("interrupted while it was under way"), "{}", lines[3]);
    assert!(run.err().contains("interrupted: 96 items, from 4 on, were not sent"), "{}", run.err());
    wait_until("the host to stop it", PATIENCE, || fleet.running("sleep 4321").is_empty());
}

fn with_input(fleet: &Fleet, file: &str) -> Run {
    let mut command = Command::new("sh");
    command.args(["-c", "exec \"$0\" map '*' test.square --items - < \"$1\""]).arg(&binaries().overlord).arg(file);
    Running::start({
        command.env("OVERLORD_HOME", fleet.home());
        command
    })
    .wait()
}

#[test]
fn items_come_from_standard_input_too() {
    let fleet = Fleet::start(1);
    let path = fleet.root().join("lines");
    std::fs::write(&path, "3\n[4]\r\n{\"number\":5}").unwrap();
    assert_eq!(with_input(&fleet, path.to_str().unwrap()).ok().out(), "9\n16\n25\n");
    assert!(with_input(&fleet, "/dev/null").expect(64).err().contains("standard input holds no items"));
}

#[test]
fn lines_that_are_no_json_are_named_before_anything_is_sent() {
    let fleet = Fleet::builder().hosts(1).overlord_toml("call_max_bytes = 1000\n").start();
    let file = fleet.root().join("items");
    std::fs::write(&file, format!("1\n2,\n\n{}\n\"{}\"\n5\n", "[".repeat(70) + &"]".repeat(70), "x".repeat(5000))).unwrap();
    let run = fleet.overlord(["map", "*", "test.square", "--items", file.to_str().unwrap()]).expect(64);
    let error = run.err();
    for problem in [
        "line 2: no JSON",
        "line 3: it is empty",
        "line 4: arguments may be nested",
        "line 5: it is longer than the 1000 bytes that call_max_bytes",
    ] {
        assert!(error.contains(problem), "{problem}: {error}");
    }
    assert!(!error.contains("line 1:") && !error.contains("line 6:") && run.out().is_empty(), "{error}");
    let run = fleet.overlord(["map", "*", "test.square", "--items", "/nonexistent/items"]).expect(64);
    assert!(run.err().contains("/nonexistent/items"), "{}", run.err());
    assert_eq!(fleet.minion("web1").audit().len(), 0, "nothing was sent");
}

#[test]
fn an_item_that_is_too_large_for_a_host_names_the_limit_and_the_rest_is_sent_in_smaller_chunks() {
    let fleet = Fleet::builder().hosts(1).minion_toml("[limits]\nbody_max_bytes = 20000\n").start();
    let all = (0..60).map(|item| json!("x".repeat(if item == 31 { 30_000 } else { 3000 })));
    let run = map(&fleet, "test.echo", all, &[]).expect(4);
    let (lines, summary) = lines(&run, 60);
    assert_eq!(summary, json!({ "ok": 59, "undelivered": 1 }));
    assert!(message(&lines[31]).contains("limits.body_max_bytes"), "{}", lines[31]);
}

#[test]
fn an_item_that_is_too_large_for_one_host_goes_to_another() {
    let fleet = Fleet::builder().hosts(2).stopped().start();
    let config = fleet.minion("web1").config_file();
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, format!("{text}\n[limits]\nbody_max_bytes = 20000\n")).unwrap();
    fleet.minion("web1").start();
    fleet.minion("web2").start();
    let run = map(&fleet, "test.echo", (0..40).map(|_| json!("x".repeat(30_000))), &[]).ok();
    let (lines, _) = lines(&run, 40);
    assert!(lines.iter().all(|line| line["host"] == "web2"), "{}", run.out());
}

/// A chunk's results must fit into one answer, however small the items were.
#[test]
fn large_results_come_in_smaller_chunks() {
    let fleet = Fleet::start(1);
    // What the quick ones make large is a chunk whose results would be beyond the overlord's `result_max_bytes`.
    let item = |number: usize| json!([if number < 100 { "true" } else { "head -c 900000 /dev/zero | tr '\\0' x" }]);
    let run = map(&fleet, "command.run", (0..130).map(item), &[]).ok();
    let (lines, _) = lines(&run, 130);
    assert!(lines[100..].iter().all(|line| line["result"]["stdout"].as_str().unwrap().len() == 900_000));
}

#[test]
fn a_connection_is_kept_for_the_next_chunk() {
    let fleet = Fleet::start(1);
    let _ = map(&fleet, "test.square", (0..2000).map(|number| json!(number)), &[]).ok();
    let audit = fleet.minion("web1").audit();
    let peers: BTreeSet<String> =
        audit.iter().filter(|line| line["method"] == "map.test.square").map(|line| line["peer"].to_string()).collect();
    // One more where it was not ready soon enough for the next chunk.
    assert!(peers.len() <= 2 && audit.len() > 3 * peers.len(), "{peers:?}, {} calls", audit.len());
}

/// As deep as arguments and results may be nested, in whatever they travel.
#[test]
fn items_are_nested_as_deep_as_arguments() {
    let fleet = Fleet::start(1);
    let nested = |levels: usize| (0..levels).fold(json!(1), |inner, _| json!([inner]));
    let run = map(&fleet, "test.echo", [json!([nested(64)]), json!({ "value": nested(64) })], &[]).ok();
    assert_eq!(lines(&run, 2).0[1]["result"], nested(64));
}
