//! The audit log: every decision is in it once, whatever its files go through; and in the systemd journal, where there is one.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::PathBuf;

use fleet::raw::{ReadOnly, envelope, read_response};
use fleet::{Fleet, Follow, Minion, PATIENCE, Step, wait_until};
use serde_json::{Value, json};

/// Small enough that a few decisions fill a file.
const SMALL_FILES: &str = "[audit]\nmax_bytes = 2048\nfiles = 1000\n";
const SMALL_FILES_BYTES: u64 = 2048;
const TEST_ALONE: &str = "[[allow]]\ncaller = \"admin\"\nmethods = [\"test.*\"]\n";

/// One call over the wire: its id, and whether it was answered.
fn call(fleet: &Fleet, method: &str) -> (String, bool) {
    let envelope = envelope("admin", "web1", method, json!([]));
    let answered = fleet.raw_overlord("web1").call(&envelope).is_ok();
    (envelope.call_id.to_string(), answered)
}

/// Every line of every file of the log, each file within its size.
fn all_lines(minion: &Minion) -> Vec<Value> {
    let read = |file: PathBuf| {
        let text = fs::read_to_string(&file).unwrap();
        assert!(text.len() as u64 <= SMALL_FILES_BYTES, "{} holds {} bytes", file.display(), text.len());
        text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("torn: {line}"))).collect::<Vec<Value>>()
    };
    minion.audit_files().into_iter().flat_map(read).collect()
}

/// How often each call stands there with which decision.
fn decisions(minion: &Minion) -> BTreeMap<String, Vec<String>> {
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for line in all_lines(minion) {
        if let Some(call) = line["call_id"].as_str() {
            found.entry(call.to_owned()).or_default().push(line["decision"].as_str().unwrap().to_owned());
        }
    }
    found
}

#[test]
fn every_decision_of_concurrent_calls_is_in_one_line_of_one_file() {
    const CALLERS: usize = 4;
    const ROUNDS: usize = 10;
    let fleet = Fleet::builder().hosts(1).acl(TEST_ALONE).minion_toml(SMALL_FILES).start();
    let web1 = fleet.minion("web1");
    let calls: Vec<(String, &str)> = std::thread::scope(|scope| {
        let caller = || {
            let mut made = Vec::new();
            for _ in 0..ROUNDS {
                made.push((call(&fleet, "test.ping").0, "allow"));
                made.push((call(&fleet, "command.run").0, "deny"));
                let batch = fleet.raw_overlord("web1").post(b"[]").unwrap();
                assert_eq!(batch.status, 200);
            }
            made
        };
        let callers: Vec<_> = (0..CALLERS).map(|_| scope.spawn(caller)).collect();
        callers.into_iter().flat_map(|caller| caller.join().unwrap()).collect()
    });
    let found = decisions(web1);
    assert_eq!(found.len(), calls.len());
    for (id, decision) in calls {
        assert_eq!(found[&id], [decision], "{id}");
    }
    let refused = all_lines(web1).iter().filter(|line| line["decision"] == "refuse").count();
    assert_eq!(refused, CALLERS * ROUNDS);
    assert!(web1.audit_files().len() > 10, "{:?}", web1.audit_files());
}

#[test]
fn no_kill_between_two_steps_of_a_rotation_loses_a_line() {
    /// Each rotation takes some five.
    const CALLS_MAX: usize = 200;
    let fleet = Fleet::builder().hosts(1).acl(TEST_ALONE).minion_toml(SMALL_FILES).start();
    let web1 = fleet.minion("web1");
    let mut calls = Vec::new();
    let make = |calls: &mut Vec<(String, bool)>| {
        assert!(calls.len() < CALLS_MAX, "so many calls, and no rotation: {:?}", web1.audit_files());
        calls.push(call(&fleet, "test.ping"));
        calls.last().is_some_and(|(_, answered)| *answered)
    };
    // Deep enough that a rotation has several steps, each of which is once the last one.
    while web1.audit_files().len() < 6 {
        assert!(make(&mut calls));
    }
    for number in 1..=5 {
        let step = Step { calls: &["rename", "renameat", "renameat2"], number };
        let fail_point = step.wait_in(web1.pid(), Follow::Children);
        while make(&mut calls) {}
        assert!(fail_point.let_go(), "it died, and not of step {number}");
        web1.kill9();
        web1.start();
        assert!(make(&mut calls));
    }
    let found = decisions(web1);
    for (id, answered) in &calls {
        let lines = found.get(id).map_or(0, Vec::len);
        assert!(lines == 1 || (lines == 0 && !answered), "{id}: answered {answered}, {lines} lines");
    }
    // What a kill left in the middle is a gap; the next rotation closes it.
    let more = web1.state_dir().join(format!("audit.log.{}", web1.audit_files().len()));
    assert!(!more.exists(), "{} is behind a gap", more.display());
}

#[test]
fn the_oldest_lines_go_and_what_is_kept_is_bounded() {
    let fleet = Fleet::builder().hosts(1).acl(TEST_ALONE).minion_toml("[audit]\nmax_bytes = 2048\nfiles = 2\n").start();
    let web1 = fleet.minion("web1");
    let calls: Vec<String> = (0..30).map(|_| call(&fleet, "test.ping").0).collect();
    let kept: Vec<String> = all_lines(web1).iter().map(|line| line["call_id"].as_str().unwrap().to_owned()).collect();
    assert_eq!(web1.audit_files().len(), 3);
    assert!(!web1.state_dir().join("audit.log.3").exists());
    assert!(!kept.is_empty() && calls.ends_with(&kept), "{kept:?} of {calls:?}");
}

#[test]
fn every_decision_is_in_the_journal_with_its_fields() {
    let fleet = Fleet::builder().hosts(1).own_journal().acl(TEST_ALONE).start();
    let web1 = fleet.minion("web1");
    let _before_there_was_one = call(&fleet, "test.ping");
    let journal = web1.journal();
    let (allowed, _) = call(&fleet, "test.ping");
    let (denied, _) = call(&fleet, "command.run");
    let _refused = fleet.raw_overlord("web1").post(b"[]").unwrap();
    let entries = journal.wait_for("the refusal", |entry| entry.get("DECISION").is_some_and(|decision| decision == "refuse"));
    let lines = web1.audit();
    assert_eq!((entries.len(), lines.len()), (3, 4), "{entries:#?}");
    for (entry, line) in entries.iter().zip(&lines[1..]) {
        for key in ["caller", "method", "decision", "rule", "call_id", "peer", "fingerprint", "at", "args_sha256"] {
            assert_eq!(entry.get(&key.to_uppercase()).map(String::as_str), line[key].as_str(), "{key} of {entry:#?}");
        }
        assert_eq!(entry["SYSLOG_IDENTIFIER"], "minion");
    }
    let told = |number: usize| (entries[number]["PRIORITY"].as_str(), entries[number]["MESSAGE"].as_str());
    assert_eq!((entries[0]["CALL_ID"].as_str(), entries[1]["CALL_ID"].as_str()), (allowed.as_str(), denied.as_str()));
    assert_eq!((told(0), told(1)), (("5", "admin may call test.ping"), ("4", "no rule lets admin call command.run")));
    // The journal goes and comes again, as when it is restarted.
    drop(journal);
    assert!(call(&fleet, "test.ping").1);
    let journal = web1.journal();
    let (again, _) = call(&fleet, "test.ping");
    let entries = journal.wait_for("a decision", |entry| entry.get("CALL_ID") == Some(&again));
    assert!(entries.iter().all(|entry| entry.get("CALL_ID").is_none_or(|id| *id == again)), "{entries:#?}");
}

#[test]
fn a_journal_that_takes_nothing_holds_no_call_up_and_hears_what_it_missed() {
    const CALLS: usize = 2500;
    let fleet = Fleet::builder().hosts(1).own_journal().acl(TEST_ALONE).start();
    let web1 = fleet.minion("web1");
    let journal = web1.journal();
    // One connection, for there are more calls than the queue and the kernel's own would hold.
    let client = fleet.raw_overlord("web1");
    let mut connection = client.connect().unwrap();
    for number in 0..CALLS {
        let body = client.signed(number.into(), &envelope("admin", "web1", "test.ping", json!([]))).to_string();
        let head = format!("POST / HTTP/1.1\r\nhost: web1\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n", body.len());
        connection.write_all((head + &body).as_bytes()).unwrap();
        let answer: Value = serde_json::from_slice(&read_response(&mut ReadOnly(&mut connection)).unwrap().body).unwrap();
        assert_eq!(answer["result"]["result"], "pong", "{answer}");
    }
    assert_eq!(web1.audit().len(), CALLS);
    let sent = |entries: &[fleet::Fields]| entries.iter().filter(|entry| entry.contains_key("CALL_ID")).count();
    let missed = |entries: &[fleet::Fields]| -> usize {
        let told = entries.iter().filter_map(|entry| entry["MESSAGE"].strip_prefix("the journal did not keep up: ")?.split(' ').next());
        told.map(|number| number.parse::<usize>().unwrap()).sum()
    };
    wait_until("every decision to be there, or to be counted", PATIENCE, || {
        let entries = journal.entries();
        sent(&entries) + missed(&entries) == CALLS
    });
    let missing = missed(&journal.entries());
    assert!(missing > 0, "the journal took everything: make more calls");
    assert!(!web1.stderr().contains("journal"), "{}", web1.stderr());
}

#[test]
fn without_a_journal_nothing_is_printed_for_an_allowed_call() {
    let fleet = Fleet::builder().hosts(1).own_journal().start();
    let web1 = fleet.minion("web1");
    // The last that it says of itself.
    wait_until("the start to be over", PATIENCE, || web1.stderr().contains("nobody renews"));
    let before = web1.stderr();
    let _ = fleet.overlord(["*", "test.ping"]).ok();
    assert_eq!(web1.stderr(), before);
}
