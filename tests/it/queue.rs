//! Jobs that wait for their turn on a host, and hosts that have no room for more.

use std::fs;

use fleet::raw::envelope;
use fleet::{Fleet, PATIENCE, wait_for, wait_until};
use serde_json::{Value, json};

/// A host that runs so many jobs at once and lets so many wait. It has looked through its spools: until then jobs only wait.
fn fleet(jobs_max: usize, queue_max: usize) -> Fleet {
    let fleet = Fleet::builder().hosts(1).minion_toml(&format!("[limits]\njobs_max = {jobs_max}\nqueue_max = {queue_max}\n")).start();
    let first = start(&fleet, &json!(["true"]));
    wait_until("the first job to have run", PATIENCE, || status(&fleet, &id(&first))["state"] == "ok");
    fleet
}

/// A command that writes `name` when it starts, and then waits for the gate.
fn gated(fleet: &Fleet, name: &str) -> Value {
    let (runs, gate) = (fleet.root().join("runs"), fleet.root().join("gate"));
    json!([format!("echo {name} >> {}; while [ ! -e {} ]; do sleep 0.02; done", runs.display(), gate.display())])
}

fn start(fleet: &Fleet, args: &Value) -> Value {
    let job = envelope("admin", "web1", "async.command.run", args.clone());
    fleet.raw_overlord("web1").call(&job).unwrap()
}

/// Starts a job and waits until it runs: the place of one that has just ended is free a moment later.
fn start_running(fleet: &Fleet, args: &Value) -> Value {
    let accepted = start(fleet, args);
    wait_until("the job to run", PATIENCE, || status(fleet, &id(&accepted))["state"] == "running");
    accepted
}

fn status(fleet: &Fleet, minion_job_id: &str) -> Value {
    fleet.overlord(["web1", "jobs.status", minion_job_id, "--output", "json"]).ok().json()["hosts"]["web1"]["result"].clone()
}

fn id(accepted: &Value) -> String {
    accepted["result"]["minion_job_id"].as_str().unwrap_or_else(|| panic!("{accepted}")).to_owned()
}

fn runs(fleet: &Fleet) -> Vec<String> {
    fs::read_to_string(fleet.root().join("runs")).unwrap_or_default().lines().map(str::to_owned).collect()
}

fn open_gate(fleet: &Fleet) {
    fs::write(fleet.root().join("gate"), "").unwrap();
}

#[test]
fn jobs_beyond_the_limit_wait_and_start_in_order() {
    let fleet = fleet(1, 3);
    let mut accepted = vec![start_running(&fleet, &gated(&fleet, "job0"))];
    accepted.extend((1..4).map(|job| start(&fleet, &gated(&fleet, &format!("job{job}")))));
    assert!(accepted[1..].iter().all(|accepted| accepted["result"]["state"] == "queued"), "{accepted:?}");
    let waiting = status(&fleet, &id(&accepted[3]));
    assert_eq!((&waiting["state"], &waiting["started_at"]), (&json!("queued"), &Value::Null), "{waiting}");

    let refused = start(&fleet, &gated(&fleet, "job4"));
    assert_eq!(refused["error"]["code"], -32004, "{refused}");
    let why = refused["error"]["message"].as_str().unwrap();
    assert!(why.contains("limits.jobs_max is 1") && why.contains("limits.queue_max 3") && why.contains("try again"), "{why}");

    open_gate(&fleet);
    wait_until("all to have ended", PATIENCE, || accepted.iter().all(|accepted| status(&fleet, &id(accepted))["state"] == "ok"));
    assert_eq!(runs(&fleet), ["job0", "job1", "job2", "job3"]);
}

/// The overlord's side of it: a job that waits is PARTIAL, and its result comes when its turn has come.
#[test]
fn a_job_that_waits_is_queued_for_the_overlord_too() {
    let fleet = fleet(1, 10);
    let _first = start_running(&fleet, &gated(&fleet, "first"));
    let id = fleet.start_job(["*", "test.add", "23", "45"]);
    let waiting = fleet.wait_for_state(&id, "PARTIAL");
    assert_eq!(waiting["hosts"]["web1"]["state"], "queued", "{waiting}");
    open_gate(&fleet);
    let ended = fleet.wait_for_state(&id, "FINISHED");
    assert_eq!(ended["hosts"]["web1"]["result"], 68, "{ended}");
}

#[test]
fn a_job_that_waits_survives_a_kill_of_everything_and_then_runs_once() {
    let fleet = fleet(1, 10);
    let mut accepted = vec![start_running(&fleet, &gated(&fleet, "job0"))];
    accepted.extend((1..4).map(|job| start(&fleet, &gated(&fleet, &format!("job{job}")))));
    let web1 = fleet.minion("web1");
    wait_until("the first to run", PATIENCE, || runs(&fleet).len() == 1);
    web1.kill9();
    web1.start();
    let again = start(&fleet, &gated(&fleet, "late"));
    assert_eq!(again["result"]["state"], "queued", "the one that runs still has the place: {again}");
    assert_eq!(runs(&fleet), ["job0"]);
    open_gate(&fleet);
    wait_until("all to have ended", PATIENCE, || {
        accepted.iter().chain([&again]).all(|accepted| status(&fleet, &id(accepted))["state"] == "ok")
    });
    assert_eq!(runs(&fleet), ["job0", "job1", "job2", "job3", "late"]);
}

#[test]
fn a_job_that_waits_is_cancelled_at_once_and_never_starts() {
    let fleet = fleet(1, 10);
    let first = start_running(&fleet, &gated(&fleet, "first"));
    let job = fleet.start_job(["*", "command.run", &format!("echo never >> {}", fleet.root().join("runs").display())]);
    let _ = fleet.wait_for_state(&job, "PARTIAL");
    let told = fleet.overlord(["job-cancel", &job]).ok();
    assert!(told.out().contains("cancelled"), "{}", told.out());
    let status_now = fleet.overlord(["job-status", &job, "--output", "json"]).expect(2).json();
    let host = &status_now["hosts"]["web1"];
    assert_eq!((&host["state"], &host["error"]["data"]["by"], &host["started_at"]), (&json!("cancelled"), &json!("admin"), &Value::Null));
    open_gate(&fleet);
    wait_until("the first to end", PATIENCE, || status(&fleet, &id(&first))["state"] == "ok");
    let last = start(&fleet, &json!(["true"]));
    wait_until("the place to be given on", PATIENCE, || status(&fleet, &id(&last))["state"] == "ok");
    assert_eq!(runs(&fleet), ["first"]);
}

/// Whoever asks for the same call again while it waits is told of the same job, and a fence comes too late for it.
#[test]
fn a_job_that_waits_is_one_job_however_often_it_is_asked_for() {
    let fleet = fleet(1, 10);
    let _first = start_running(&fleet, &gated(&fleet, "first"));
    let job = envelope("admin", "web1", "async.command.run", gated(&fleet, "second"));
    let client = fleet.raw_overlord("web1");
    let accepted = client.call(&job).unwrap();
    let again = client.call(&job).unwrap();
    assert_eq!((&again["result"]["state"], &again["result"]["repeated"]), (&json!("queued"), &json!(true)), "{again}");
    let fence = envelope("admin", "web1", "jobs.fence", json!([job.call_id]));
    let fenced = client.call(&fence).unwrap();
    assert_eq!(fenced["result"]["result"]["state"], "queued", "{fenced}");
    open_gate(&fleet);
    wait_until("it to have ended", PATIENCE, || status(&fleet, &id(&accepted))["state"] == "ok");
    assert_eq!(runs(&fleet), ["first", "second"]);
}

/// The child of the spawner that accepted a job can die before the job's daemon is there: nothing of a start is in the spool then.
#[test]
fn a_job_whose_daemon_died_before_its_start_waits_and_runs() {
    let fleet = fleet(1, 10);
    let first = start_running(&fleet, &gated(&fleet, "first"));
    let second = start(&fleet, &gated(&fleet, "second"));
    let web1 = fleet.minion("web1");
    web1.kill9();
    // As a daemon leaves it that was killed between its first file and its second.
    fs::write(web1.spool(&id(&second)).join("stderr"), "").unwrap();
    web1.start();
    open_gate(&fleet);
    for job in [&first, &second] {
        wait_until("it to have ended", PATIENCE, || status(&fleet, &id(job))["state"] == "ok");
    }
    assert_eq!(runs(&fleet), ["first", "second"]);
}

#[test]
fn below_the_reserve_of_the_disk_new_jobs_are_refused_and_reads_go_on() {
    let fleet = Fleet::builder().hosts(1).start();
    let before = start(&fleet, &json!(["echo kept"]));
    wait_until("it to have ended", PATIENCE, || status(&fleet, &id(&before))["state"] == "ok");
    let web1 = fleet.minion("web1");
    web1.stop();
    let config = fs::read_to_string(web1.config_file()).unwrap();
    fs::write(web1.config_file(), format!("{config}[limits]\ndisk_reserve_bytes = {}\n", i64::MAX)).unwrap();
    web1.start();
    let job = fleet.start_job(["*", "test.ping"]);
    let refused = fleet.wait_for_state(&job, "FINISHED");
    assert_eq!(refused["hosts"]["web1"]["state"], "undelivered", "{refused}");
    let why = refused["hosts"]["web1"]["error"]["message"].as_str().unwrap();
    assert!(why.contains("limits.disk_reserve_bytes is 9223372036854775807"), "{why}");
    assert_eq!(status(&fleet, &id(&before))["result"]["stdout"], "kept\n");
}

#[test]
fn a_host_that_keeps_as_many_jobs_as_it_may_refuses_more_and_drops_none() {
    let fleet = Fleet::builder().hosts(1).minion_toml("[retention]\ncount = 3\n").start();
    let kept: Vec<Value> = (0..3).map(|job| start(&fleet, &json!([format!("echo {job}")]))).collect();
    for restart in [false, true] {
        if restart {
            fleet.minion("web1").kill9();
            fleet.minion("web1").start();
            // It counts what it has when it has looked through it.
            wait_for("the count", PATIENCE, || start(&fleet, &json!(["true"]))["error"]["code"].as_i64());
        }
        wait_until("all to have ended", PATIENCE, || kept.iter().all(|job| status(&fleet, &id(job))["state"] == "ok"));
        let refused = start(&fleet, &json!(["true"]));
        let why = refused["error"]["message"].as_str().unwrap_or_else(|| panic!("{refused}"));
        assert!(why.contains("retention.count is 3") && why.contains("60 minutes"), "{why}");
    }
    for (number, job) in kept.iter().enumerate() {
        assert_eq!(status(&fleet, &id(job))["result"]["stdout"], format!("{number}\n"));
    }
}

/// A job can be deleted by its caller once it has ended and its call cannot come again; and then it does not come again.
#[test]
fn a_deleted_job_is_gone_and_its_call_starts_nothing() {
    let fleet = Fleet::start(1);
    let client = fleet.raw_overlord("web1");
    let ask = |method: &str, args: Value| client.call(&envelope("admin", "web1", method, args)).unwrap();
    let mut job = envelope("admin", "web1", "async.command.run", gated(&fleet, "once"));
    job.start_before = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(3);
    let accepted = client.call(&job).unwrap();
    let early = ask("jobs.delete", json!([id(&accepted)]));
    assert!(early["error"]["code"] == -32007 && early["error"]["message"].as_str().unwrap().contains("cancel it first"), "{early}");
    open_gate(&fleet);
    wait_until("it to have ended", PATIENCE, || status(&fleet, &id(&accepted))["state"] == "ok");
    let deleted = wait_for("its call to be too late", PATIENCE, || {
        let deleted = ask("jobs.delete", json!([id(&accepted)]));
        let is_early = deleted["error"]["message"].as_str().is_some_and(|why| why.contains("would start a second time"));
        (!is_early).then_some(deleted)
    });
    assert_eq!(deleted["result"]["result"]["state"], "ok", "{deleted}");
    assert_eq!(fleet.minion("web1").spools(), Vec::<String>::new());
    assert_eq!(ask("jobs.status", json!([id(&accepted)]))["error"]["code"], -32006);
    for restart in [false, true] {
        if restart {
            fleet.minion("web1").kill9();
            fleet.minion("web1").start();
        }
        assert_eq!(client.call(&job).unwrap()["error"]["code"], -32003, "a replay is too late");
        let fenced = ask("jobs.fence", json!([job.call_id]));
        assert_eq!(fenced["error"]["code"], 6, "that it never started would be untrue: {fenced}");
    }
    assert_eq!(runs(&fleet), ["once"]);
}
