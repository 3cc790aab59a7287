//! The harness itself: what it says of processes is true, and what it started is gone in the end.

use std::process::Command;
use std::time::Duration;

use fleet::{Fleet, Minion, PATIENCE, wait_for, wait_until};

#[test]
fn dropping_a_fleet_kills_its_jobs_and_deletes_its_files() {
    let fleet = Fleet::start(2);
    let _ = fleet.start_job(["*", "test.sleep", "600"]);
    let daemon = |minion: &Minion| minion.spools().first().and_then(|id| minion.job_daemon(id));
    let daemons = fleet.minions().iter().map(|minion| wait_for("a job daemon", PATIENCE, || daemon(minion))).collect::<Vec<_>>();
    let root = fleet.root().to_owned();
    drop(fleet);
    assert!(!root.exists());
    for daemon in daemons {
        let command = std::fs::read_to_string(format!("/proc/{}/cmdline", daemon.pid)).unwrap_or_default();
        assert!(!command.contains(root.to_str().unwrap()), "{daemon:?} lives");
    }
}

#[test]
fn a_minion_that_was_killed_or_paused_can_come_back() {
    let fleet = Fleet::start(1);
    let web1 = fleet.minion("web1");
    web1.kill9();
    wait_until("its spawner to be gone", PATIENCE, || web1.spawner().is_none());
    web1.start();
    web1.pause();
    let paused = fleet.overlord(["*", "test.ping", "--timeout", "1s", "--output", "json"]).expect(4);
    assert_eq!(paused.json()["hosts"]["web1"]["state"], "undelivered", "{}", paused.out());
    web1.resume();
    let _ = fleet.overlord(["*", "test.ping"]).ok();
    web1.stop();
    fleet.assert_no_leaks();
}

#[test]
fn a_process_that_outlives_its_fleet_is_found() {
    let fleet = Fleet::builder().start();
    let mut child = Command::new("sleep").arg("60").env("LEAKED_FROM", fleet.root()).spawn().unwrap();
    let left = fleet.leaks_after(Duration::from_millis(100));
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(left.iter().map(|process| process.command.as_str()).collect::<Vec<_>>(), ["sleep 60"]);
    fleet.assert_no_leaks();
}

#[test]
fn the_wire_can_be_spoken_to_directly() {
    let fleet = Fleet::start(1);
    let envelope = fleet::raw::envelope("admin", "web1", "test.add", serde_json::json!([1, 2]));
    let answer = fleet.raw_overlord("web1").post_json(&fleet::raw::request(1.into(), &envelope)).unwrap();
    assert_eq!(answer["result"]["result"], 3, "{answer}");
    assert!(fleet.raw("web1", None).post(b"{}").is_err());
}
