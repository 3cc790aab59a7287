//! Hosts that lie, and more items than a machine has memory for.

use std::process::Command;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fleet::{Fleet, PATIENCE, Question, Running, binaries, peak_bytes, wait_until};
use serde_json::{Value, json};

use super::{items, lines, map, message};

/// A result for each item that was asked for, as an honest host would say it.
fn honest(question: &Question) -> Value {
    let chunk = &question.envelope["args"]["json"];
    let outcome = json!({ "state": "ok", "result": 1, "started_at": "2026-01-01T00:00:00Z", "finished_at": "2026-01-01T00:00:00Z" });
    let outcomes = vec![outcome; chunk["items"].as_array().unwrap().len()];
    json!({ "state": "ok", "result": { "first": chunk["first"], "outcomes": outcomes } })
}

type Lie = fn(&mut Value);

#[test]
fn a_host_that_answers_for_other_items_is_not_believed() {
    let lies: [(Lie, &str); 6] = [
        (|answer| drop(answer["result"]["outcomes"].as_array_mut().unwrap().pop()), "it answered for "),
        (|answer| answer["result"]["outcomes"].as_array_mut().unwrap().push(json!({ "state": "ok", "result": 2 })), "it answered for "),
        (|answer| answer["result"]["first"] = json!(77), "from 77 on"),
        (|answer| answer["result"] = json!([1, 2, 3]), "not what became of items"),
        (|answer| answer["result"]["outcomes"][0]["state"] = json!("running"), "not what became of items"),
        (|answer| *answer = json!({ "state": "failed", "error": { "code": 1, "message": "all of them" } }), "all of them"),
    ];
    for (lie, words) in lies {
        let fleet = Fleet::builder().hosts(1).stopped().start();
        let liar = fleet.liar("web1", move |question, answering| {
            let mut answer = honest(question);
            lie(&mut answer);
            answering.result(question, &answer)
        });
        fleet.set_address("web1", &liar.address().to_string());
        let run = map(&fleet, "test.square", (0..4).map(|number| json!(number)), &[]).expect(4);
        let (lines, summary) = lines(&run, 4);
        assert_eq!(summary, json!({ "lost": 4 }), "{words}: {}", run.out());
        assert!(message(&lines[0]).contains(words), "{words}: {}", lines[0]);
    }
}

/// One that begins nothing, for ever, does not keep the command for ever.
#[test]
fn a_host_that_begins_nothing_gets_nothing_more() {
    let fleet = Fleet::builder().hosts(1).stopped().start();
    let liar = fleet.liar("web1", |question, answering| {
        let mut answer = honest(question);
        for outcome in answer["result"]["outcomes"].as_array_mut().unwrap() {
            *outcome = json!({ "state": "undelivered", "error": { "code": 7, "message": "not today" } });
        }
        answering.result(question, &answer)
    });
    fleet.set_address("web1", &liar.address().to_string());
    let run = map(&fleet, "test.square", (0..4).map(|number| json!(number)), &[]).expect(4);
    let (lines, summary) = lines(&run, 4);
    assert_eq!(summary, json!({ "undelivered": 4 }));
    assert!(message(&lines[0]).contains("no host takes it: web1: not today"), "{}", lines[0]);
    assert_eq!(liar.asked().len(), 5);
}

/// What may be dealt beyond the first that nobody has heard of has a bound: results wait for that one.
#[test]
fn no_host_runs_far_ahead_of_one_that_is_slow() {
    const ITEMS: usize = 60_000;
    const AHEAD_MAX_ITEMS: usize = 16_384;
    let fleet = Fleet::builder().hosts(2).stopped().start();
    let (let_go, held) = channel::<()>();
    let held = Mutex::new(held);
    // How many items hosts were given, and when last.
    let dealt = Arc::new(Mutex::new((0, Instant::now())));
    let note = |question: &Question, dealt: &Mutex<(usize, Instant)>| {
        let count = question.envelope["args"]["json"]["items"].as_array().unwrap().len();
        let mut dealt = dealt.lock().unwrap();
        *dealt = (dealt.0 + count, Instant::now());
    };
    let (of_slow, of_quick) = (Arc::clone(&dealt), Arc::clone(&dealt));
    let slow = fleet.liar("web1", move |question, answering| {
        note(question, &of_slow);
        let _let_go = held.lock().unwrap().recv();
        answering.result(question, &honest(question))
    });
    let quick = fleet.liar("web2", move |question, answering| {
        note(question, &of_quick);
        answering.result(question, &honest(question))
    });
    fleet.set_addresses(&[("web1", &slow.address().to_string()), ("web2", &quick.address().to_string())]);
    let file = items(&fleet, (0..ITEMS).map(|number| json!(number)));
    let running = fleet.overlord_spawn(["map", "*", "test.square", "--items", &file]);
    let is_quiet = || dealt.lock().unwrap().1.elapsed() > Duration::from_secs(1);
    wait_until("nobody to get more", PATIENCE, || dealt.lock().unwrap().0 >= AHEAD_MAX_ITEMS && is_quiet());
    let count = dealt.lock().unwrap().0;
    assert!((AHEAD_MAX_ITEMS..=AHEAD_MAX_ITEMS + 256).contains(&count), "{count} items");
    drop(let_go);
    assert_eq!(running.wait().ok().err(), format!("{ITEMS} ok\n"));
}

#[test]
fn a_million_items_take_no_more_memory_than_a_few() {
    const ITEMS: usize = 1_000_000;
    /// Far below what a million outcomes would take.
    const MOST_BYTES: u64 = 120 << 20;
    let fleet = Fleet::builder().hosts(1).stopped().start();
    let liar = fleet.liar("web1", |question, answering| answering.result(question, &honest(question)));
    fleet.set_address("web1", &liar.address().to_string());
    let file = items(&fleet, (0..ITEMS).map(|number| json!(number)));
    let out = fleet.root().join("out");
    let mut command = Command::new("sh");
    command
        .args(["-c", "exec \"$0\" map '*' test.square --items \"$1\" > \"$2\""])
        .arg(&binaries().overlord)
        .args([&file, out.to_str().unwrap()]);
    command.env("OVERLORD_HOME", fleet.home());
    let mut running = Running::start(command);
    let mut peak = 0;
    wait_until("the map to end", Duration::from_secs(300), || {
        peak = peak.max(peak_bytes(running.pid()).unwrap_or(0));
        !running.is_running()
    });
    let run = running.wait_at_most(Duration::from_secs(310)).ok();
    assert_eq!(run.err(), format!("{ITEMS} ok\n"));
    assert_eq!(std::fs::read_to_string(out).unwrap().lines().count(), ITEMS);
    assert!((1 << 20..MOST_BYTES).contains(&peak), "{peak}");
}
