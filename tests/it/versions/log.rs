//! Job logs that a newer overlord has written, or written to.

use std::fs;
use std::io::Write as _;

use common::seal;
use fleet::{Fleet, PATIENCE, wait_until};
use serde_json::{Value, json};

use super::{NEWER, Snapshot, assert_refused};

fn finished(fleet: &Fleet) -> String {
    let id = fleet.start_job(["*", "test.ping"]);
    fleet.wait_for_state(&id, "FINISHED");
    wait_until("the dispatcher to be gone", PATIENCE, || fleet.dispatcher(&id).is_none());
    id
}

fn body(line: &str) -> Value {
    serde_json::from_str::<Value>(line).unwrap()["body"].take()
}

#[test]
fn the_first_line_says_which_format_the_log_has() {
    let fleet = Fleet::start(1);
    let id = finished(&fleet);
    let log = fs::read_to_string(fleet.home().join("jobs").join(format!("{id}.log"))).unwrap();
    let first = body(log.lines().next().unwrap());
    assert_eq!((&first["format"], &first["by"]), (&json!(1), &json!(env!("CARGO_PKG_VERSION"))), "{first}");
}

#[test]
fn a_job_of_a_newer_overlord_is_refused_and_hides_no_other() {
    let fleet = Fleet::start(1);
    let (newer, ours) = (finished(&fleet), finished(&fleet));
    let path = fleet.home().join("jobs").join(format!("{newer}.log"));
    let text = fs::read_to_string(&path).unwrap();
    let (first, rest) = text.split_once('\n').unwrap();
    let mut first = body(first);
    first["format"] = json!(super::NEWER_FORMAT);
    first["by"] = json!(NEWER);
    // What this version cannot even read as a first line.
    first["event"] = json!("begun");
    fs::write(&path, [seal::seal(&first).unwrap(), format!("\n{rest}").into_bytes()].concat()).unwrap();
    fs::remove_dir_all(fleet.home().join("jobs.sled")).unwrap();
    let untouched = Snapshot::of(&fleet.home().join("jobs"));
    for words in [
        vec!["job-status", &newer],
        vec!["job-cancel", &newer],
        vec!["job-logs", &newer],
        vec!["job-retry", &newer, "--failed"],
        vec!["job-resume", &newer],
        vec!["job-delete", &newer],
    ] {
        let run = fleet.overlord(&words);
        assert_ne!(run.code(), 0, "{words:?}");
        assert_refused(&run.err(), "overlord", "overlord");
        assert!(run.err().contains(&path.display().to_string()), "it names the file: {}", run.err());
    }
    let listed = fleet.overlord(["job-list", "--output", "json"]).ok();
    assert_eq!(listed.json()["jobs"].as_array().unwrap().len(), 1, "{}", listed.out());
    assert_refused(&listed.err(), "overlord", "overlord");
    assert_eq!(fleet.overlord(["job-status", &ours, "--output", "json"]).ok().err(), "");
    assert_eq!(Snapshot::of(&fleet.home().join("jobs")), untouched);
}

#[test]
fn an_event_of_a_newer_overlord_is_passed_over_and_told() {
    let fleet = Fleet::start(1);
    let id = finished(&fleet);
    let before = fleet.job_status(&id);
    let mut log = fs::OpenOptions::new().append(true).open(fleet.home().join("jobs").join(format!("{id}.log"))).unwrap();
    let event = json!({ "at": "2030-01-01T00:00:00Z", "event": "noted", "note": "by a newer version" });
    log.write_all(&[seal::seal(&event).unwrap(), b"\n".to_vec()].concat()).unwrap();
    let told = fleet.overlord(["job-status", &id, "--output", "json"]).ok();
    assert_eq!(told.json(), before);
    assert!(told.err().contains("a newer overlord has written it, and this version does not know it"), "{}", told.err());
}
