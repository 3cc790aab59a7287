//! The overlord killed at each of its steps: on entry of the Nth system call of a kind, for every N until the command gets through.
//! The command, the dispatcher that it leaves behind and every thread of both are followed.

use std::collections::BTreeSet;

use fleet::{Fleet, PATIENCE, Step, wait_until};
use serde_json::{Value, json};

use super::Runs;

/// What the overlord does to files and hosts, a kind at a time: each thread counts its own calls of that kind.
const KINDS: [&[&str]; 8] = [
    &["write"],
    &["writev", "sendto", "sendmsg"],
    &["fsync"],
    &["fdatasync"],
    &["pwrite64"],
    &["sync_file_range"],
    &["rename", "renameat", "renameat2", "unlink", "unlinkat"],
    &["mkdir", "mkdirat", "ftruncate"],
];

/// More steps of one kind than any command has.
const STEPS_MAX: usize = 100;

/// Does `round` for every step, until one gets through unharmed: `round` says whether it was harmed.
fn at_every_step(kinds: &[&[&str]], mut round: impl FnMut(Step<'_>) -> bool) {
    let mut harmed = 0;
    for calls in kinds {
        let unharmed = (1..STEPS_MAX).find(|number| !round(Step { calls, number: *number }));
        harmed += unharmed.unwrap_or_else(|| panic!("{calls:?}: after {STEPS_MAX} steps it still is killed")) - 1;
    }
    assert!(harmed >= kinds.len(), "the fail points did not strike: {harmed}");
}

/// The ids that `job-list` gives, with what it says of them.
fn listed(fleet: &Fleet) -> Vec<Value> {
    fleet.overlord(["job-list", "--output", "json"]).ok().json()["jobs"].as_array().unwrap().clone()
}

fn assert_hosts_true(runs: &Runs, id: &str, status: &Value) {
    for (host, told) in status["hosts"].as_object().unwrap() {
        runs.assert_true(id, host, told);
    }
}

/// Sends a job again where it never started, and waits for its end: it has run on every host, once. Every other time it is not asked
/// before how the job stands, which would find out much of what the resumption must find out.
fn assert_resumes(fleet: &Fleet, runs: &Runs, id: &str, at: Step<'_>) {
    if at.number.is_multiple_of(2) {
        assert_hosts_true(runs, id, &fleet.job_status(id));
    }
    let resumed = fleet.overlord(["job-resume", id]);
    assert_eq!(resumed.code(), 0, "{at:?}: {}", resumed.err());
    let status = fleet.overlord(["job-status", id, "--wait", "--output", "json"]);
    let told = status.json();
    assert_eq!(status.code(), 0, "{at:?}: {told}");
    for host in ["web1", "web2"] {
        assert_eq!((&told["hosts"][host]["state"], runs.count(id, host)), (&json!("ok"), 1), "{at:?}: {told}");
    }
}

fn start_killed_at_every_step(kinds: &[&[&str]]) {
    let fleet = Fleet::start(2);
    let runs = Runs::of(&fleet);
    let mut known = BTreeSet::new();
    at_every_step(kinds, |at| {
        let (run, struck) = fleet.overlord_killed_at(at, ["*", "command.run", &runs.note(), "--async"]);
        let printed = run.out().trim().to_owned();
        let now: BTreeSet<String> = listed(&fleet).iter().map(|job| job["job_id"].as_str().unwrap().to_owned()).collect();
        let new: Vec<_> = now.difference(&known).cloned().collect();
        assert!(new.len() <= 1, "{at:?}: one call, {new:?}");
        assert!(printed.is_empty() || new == [printed.clone()], "{at:?}: {printed} was printed, and {new:?} is listed");
        assert!(struck || !printed.is_empty(), "{at:?}: {run:?}");
        for id in &new {
            assert_resumes(&fleet, &runs, id, at);
        }
        known = now;
        struck
    });
    fleet.assert_no_leaks();
}

#[test]
fn a_start_killed_as_it_writes_is_no_job_or_a_true_one() {
    start_killed_at_every_step(&KINDS[..2]);
}

#[test]
fn a_start_killed_in_its_files_is_no_job_or_a_true_one() {
    start_killed_at_every_step(&KINDS[2..]);
}

#[test]
fn a_status_killed_at_any_step_can_be_asked_again() {
    let fleet = Fleet::start(2);
    let runs = Runs::of(&fleet);
    at_every_step(&KINDS, |at| {
        let id = fleet.start_job(["*", "command.run", &runs.note()]);
        wait_until("it to have run", PATIENCE, || ["web1", "web2"].iter().all(|host| runs.count(&id, host) == 1));
        let (_, struck) = fleet.overlord_killed_at(at, ["job-status", &id, "--output", "json"]);
        let status = fleet.overlord(["job-status", &id, "--wait", "--output", "json"]).ok().json();
        assert_eq!(status["state"], "FINISHED", "{at:?}: {status}");
        assert_hosts_true(&runs, &id, &status);
        let job = listed(&fleet).into_iter().find(|job| job["job_id"] == id.as_str()).unwrap();
        assert_eq!(job["state"], "FINISHED", "{at:?}: {job}");
        struck
    });
    fleet.assert_no_leaks();
}

#[test]
fn a_resumption_killed_at_any_step_can_be_resumed() {
    let fleet = Fleet::start(2);
    let runs = Runs::of(&fleet);
    // Nobody listens there.
    let nowhere = "127.0.0.1:9";
    at_every_step(&KINDS, |at| {
        fleet.set_address("web2", nowhere);
        let id = fleet.start_job(["*", "command.run", &runs.note()]);
        let half = fleet.overlord(["job-status", &id, "--wait", "--output", "json"]).expect(4).json();
        assert_eq!(half["hosts"]["web2"]["state"], "undelivered", "{half}");
        fleet.set_addresses(&[]);
        let (_, struck) = fleet.overlord_killed_at(at, ["job-resume", &id]);
        assert_resumes(&fleet, &runs, &id, at);
        struck
    });
    fleet.assert_no_leaks();
}

#[test]
fn a_cancellation_killed_at_any_step_can_be_repeated() {
    let fleet = Fleet::start(2);
    let runs = Runs::of(&fleet);
    let line = format!("{}; sleep 600", runs.note());
    at_every_step(&KINDS, |at| {
        let id = fleet.start_job(["*", "command.run", &line]);
        let _ = fleet.wait_for_state(&id, "PARTIAL");
        let (_, struck) = fleet.overlord_killed_at(at, ["job-cancel", &id]);
        let again = fleet.overlord(["job-cancel", &id]);
        assert_eq!(again.code(), 0, "{at:?}: {}{}", again.out(), again.err());
        let status = fleet.overlord(["job-status", &id, "--wait", "--output", "json"]).json();
        for host in ["web1", "web2"] {
            assert_eq!(status["hosts"][host]["state"], "cancelled", "{at:?}: {status}");
        }
        assert_hosts_true(&runs, &id, &status);
        struck
    });
    wait_until("what it ran to be gone", PATIENCE, || fleet.running("sleep 600").is_empty());
    fleet.assert_no_leaks();
}
