//! Clocks that are wrong, that are set, and time that passes.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use fleet::raw::envelope;
use fleet::{Fleet, PATIENCE, wait_for, wait_until};
use serde_json::{Value, json};

use super::{Runs, lines};

const HOUR: i64 = 3600;
const MINUTE: Duration = Duration::from_secs(60);
/// Lines of `minion.toml` that make a host keep as little of what has ended as it may.
const KEEP_LITTLE: &str = "[retention]\ncount = 30\n";

fn gate(fleet: &Fleet) -> PathBuf {
    fleet.root().join("gate")
}

/// A job that ends when the gate is opened.
fn start_gated(fleet: &Fleet, runs: &Runs) -> String {
    let line = format!("{}; while [ ! -e {} ]; do sleep 0.02; done; echo survived", runs.note(), gate(fleet).display());
    let id = fleet.start_job(["*", "command.run", &line]);
    let _ = fleet.wait_for_state(&id, "PARTIAL");
    wait_until("it to start", PATIENCE, || runs.count(&id, "web1") == 1);
    id
}

fn status_of_web1(fleet: &Fleet, id: &str) -> Value {
    fleet.job_status(id)["hosts"]["web1"].clone()
}

#[test]
fn a_host_whose_clock_is_an_hour_slow_runs_jobs_and_tells_the_truth() {
    let fleet = Fleet::builder().hosts(1).faked_wall_clock().start();
    let runs = Runs::of(&fleet);
    fleet.set_hosts_clock_by(-HOUR);
    let id = fleet.start_job(["*", "command.run", &runs.note()]);
    let status = fleet.overlord(["job-status", &id, "--wait", "--output", "json"]).ok().json();
    assert_eq!((&status["hosts"]["web1"]["state"], runs.count(&id, "web1")), (&json!("ok"), 1), "{status}");
}

/// It must refuse: by its clock, whoever sent that has given it up long ago. It says why, and what to do; and it starts nothing later.
#[test]
fn a_host_whose_clock_is_an_hour_fast_refuses_and_says_why() {
    let fleet = Fleet::builder().hosts(1).faked_wall_clock().start();
    let runs = Runs::of(&fleet);
    fleet.set_hosts_clock_by(HOUR);
    let id = fleet.start_job(["*", "command.run", &runs.note()]);
    let status = fleet.overlord(["job-status", &id, "--wait", "--output", "json"]).expect(4).json();
    let host = &status["hosts"]["web1"];
    assert_eq!(host["state"], "undelivered", "{status}");
    assert!(host["error"]["message"].as_str().unwrap().contains("set the clocks right"), "{status}");
    fleet.set_hosts_clock_by(-HOUR);
    assert_eq!(fleet.job_status(&id), status);
    assert_eq!(runs.count(&id, "web1"), 0);
    let _ = fleet.overlord(["job-resume", &id]).ok();
    let status = fleet.overlord(["job-status", &id, "--wait", "--output", "json"]).ok().json();
    assert_eq!((&status["hosts"]["web1"]["state"], runs.count(&id, "web1")), (&json!("ok"), 1), "{status}");
}

/// While the clock is wrong the host may not be heard; what it ran is not lost, and not run again.
#[test]
fn a_clock_that_is_set_during_a_job_changes_nothing_about_it() {
    for jump in [-HOUR, HOUR] {
        let fleet = Fleet::builder().hosts(1).faked_wall_clock().start();
        let (runs, web1) = (Runs::of(&fleet), fleet.minion("web1"));
        let id = start_gated(&fleet, &runs);
        fleet.set_hosts_clock_by(jump);
        let told = status_of_web1(&fleet, &id);
        assert_eq!(told["state"], "running", "by {jump}: {told}");
        web1.kill9();
        web1.start();
        let told = status_of_web1(&fleet, &id);
        assert_eq!(told["state"], "running", "by {jump}, and started again: {told}");
        fs::write(gate(&fleet), "").unwrap();
        let spool = web1.spool(&web1.spools()[0]);
        wait_until("its end", PATIENCE, || spool.join("outcome.json").exists());
        fleet.set_hosts_clock_by(-jump);
        let status = fleet.overlord(["job-status", &id, "--wait", "--output", "json"]).ok().json();
        assert_eq!(status["hosts"]["web1"]["result"]["stdout"], "survived\n", "by {jump}: {status}");
        assert_eq!(runs.count(&id, "web1"), 1);
    }
}

/// A time limit is a length of time: it neither ends early when the clock jumps ahead, nor late when it falls back.
#[test]
fn a_clock_that_is_set_moves_no_time_limit() {
    for (limit, jump, ends) in [("2s", -HOUR, true), ("10m", HOUR, false)] {
        let fleet = Fleet::builder().hosts(1).faked_wall_clock().start();
        let runs = Runs::of(&fleet);
        let line = format!("{}; sleep 600", runs.note());
        let begun = Instant::now();
        let id = fleet.start_job(["*", "command.run", &line, "--job-timeout", limit]);
        wait_until("it to start", PATIENCE, || runs.count(&id, "web1") == 1);
        let _ = fleet.wait_for_state(&id, "PARTIAL");
        fleet.set_hosts_clock_by(jump);
        let web1 = fleet.minion("web1");
        let outcome = web1.spool(&web1.spools()[0]).join("outcome.json");
        if ends {
            wait_until("the limit to end it", PATIENCE, || outcome.exists());
            assert!(begun.elapsed() >= Duration::from_secs(2), "{:?}", begun.elapsed());
            let status = fleet.overlord(["job-status", &id, "--wait", "--output", "json"]).expect(2).json();
            assert_eq!(status["hosts"]["web1"]["state"], "timed_out", "{status}");
        } else {
            // Something wakes the daemon, which looks at the time then.
            let wake = web1.spool(&web1.spools()[0]).join("wake");
            for _look in 0..3 {
                fs::OpenOptions::new().write(true).open(&wake).and_then(|mut wake| std::io::Write::write_all(&mut wake, b"!")).unwrap();
            }
            assert_eq!(status_of_web1(&fleet, &id)["state"], "running");
            fleet.set_hosts_clock_by(-jump);
            assert_eq!(status_of_web1(&fleet, &id)["state"], "running");
        }
    }
}

/// A captured call is in time again where the clock is set back; it has run already.
#[test]
fn a_call_replayed_on_a_host_whose_clock_was_set_back_does_not_run_again() {
    let fleet = Fleet::builder().hosts(1).faked_wall_clock().start();
    let (web1, runs) = (fleet.minion("web1"), fleet.root().join("runs"));
    let job = envelope("admin", "web1", "async.command.run", json!([format!("echo ran >> {}", runs.display())]));
    let client = fleet.raw_overlord("web1");
    let captured = client.signed(json!(1), &job);
    let post = || client.post_json(&captured).unwrap();
    let first = post();
    let spool = web1.spool(first["result"]["minion_job_id"].as_str().unwrap());
    wait_until("its end", PATIENCE, || spool.join("outcome.json").exists());
    for jump in [HOUR, -HOUR, -HOUR, HOUR] {
        fleet.set_hosts_clock_by(jump);
        web1.kill9();
        web1.start();
        let again = post();
        let is_known = again["result"]["repeated"] == true && again["result"]["state"] == "ok";
        assert!(is_known || again["error"]["code"] == -32003, "{jump}: {again}");
        assert_eq!(lines(&runs), 1, "{jump}: {again}");
    }
}

/// Jobs that come and go while another waits.
fn traffic(fleet: &Fleet, jobs: usize) {
    for number in 0..jobs {
        let id = fleet.start_job(["*", "test.add", "1", &number.to_string()]);
        let status = fleet.overlord(["job-status", &id, "--wait", "--output", "json"]).ok().json();
        assert_eq!(status["hosts"]["web1"]["result"], 1 + number, "{status}");
    }
}

#[test]
fn a_job_of_61_minutes_is_running_all_along_and_its_result_is_kept_for_an_hour() {
    let fleet = Fleet::builder().hosts(1).minion_toml(KEEP_LITTLE).faked_time().start();
    let runs = Runs::of(&fleet);
    let id = start_gated(&fleet, &runs);
    for minutes in [15, 15, 15, 16] {
        fleet.pass(MINUTE * minutes);
        traffic(&fleet, 5);
        let told = status_of_web1(&fleet, &id);
        assert_eq!((&told["state"], &told["unreachable"]), (&json!("running"), &json!(null)), "{told}");
    }
    fs::write(gate(&fleet), "").unwrap();
    let status = fleet.overlord(["job-status", &id, "--wait", "--output", "json"]).ok().json();
    let host = &status["hosts"]["web1"];
    assert_eq!(host["result"]["stdout"], "survived\n", "{status}");
    let [began, ended] = ["started_at", "finished_at"].map(|key| host[key].as_str().unwrap().parse::<jiff::Timestamp>().unwrap());
    assert!(ended.duration_since(began).as_mins() >= 61, "{host}");

    let minion_job_id = host["minion_job_id"].as_str().unwrap();
    let on_host = || fleet.overlord(["web1", "jobs.status", minion_job_id, "--output", "json"]).json()["hosts"]["web1"].clone();
    for minutes in [20, 20, 19] {
        fleet.pass(MINUTE * minutes);
        traffic(&fleet, 7);
        let kept = on_host();
        assert_eq!(kept["result"]["result"]["stdout"], "survived\n", "after its end, {minutes} more minutes: {kept}");
        assert_eq!(fleet.job_status(&id), status, "reads are repeatable");
    }
    let jobs_in_all = 1 + 4 * 5 + 3 * 7;
    assert!(fleet.minion("web1").spools().len() <= 30, "of {jobs_in_all} jobs, the oldest had to go");
    fleet.minion("web1").kill9();
    fleet.minion("web1").start();
    let kept = wait_for("the host to answer", PATIENCE, || Some(on_host()).filter(|told| told["state"] == "ok"));
    assert_eq!(kept["result"]["result"]["stdout"], "survived\n", "{kept}");
    fleet.assert_no_leaks();
}
