//! What is killed, at a moment that the test chooses, and what is true afterwards.

use std::fs;
use std::time::Duration;

use common::job::{CallId, JobId};
use fleet::{Fleet, PATIENCE, wait_for, wait_until};
use serde_json::json;

use super::{kill9, lines, wait_until_dead};

#[test]
fn a_killed_minion_loses_no_result_and_starts_nothing_twice() {
    let fleet = Fleet::start(1);
    let (runs, gate) = (fleet.root().join("runs"), fleet.root().join("gate"));
    let line = format!("echo started >> {}; while [ ! -e {} ]; do sleep 0.02; done; echo survived", runs.display(), gate.display());
    let id = fleet.start_job(["*", "command.run", &line]);
    let _ = fleet.wait_for_state(&id, "PARTIAL");
    wait_until("the job to start", PATIENCE, || lines(&runs) == 1);
    fleet.minion("web1").kill9();
    let cut_off = fleet.job_status(&id);
    assert_eq!((&cut_off["state"], &cut_off["hosts"]["web1"]["state"]), (&json!("PARTIAL"), &json!("running")), "{cut_off}");
    assert!(cut_off["hosts"]["web1"]["unreachable"].is_object(), "{cut_off}");
    fs::write(&gate, "").unwrap();
    let spool = fleet.minion("web1").spool(&fleet.minion("web1").spools()[0]);
    wait_until("the outcome, while no server runs", PATIENCE, || spool.join("outcome.json").exists());
    fleet.minion("web1").start();
    let status = fleet.overlord(["job-status", &id, "--wait", "--output", "json"]).ok().json();
    assert_eq!(status["hosts"]["web1"]["result"]["stdout"], "survived\n", "{status}");
    assert_eq!(status["hosts"]["web1"]["unreachable"], json!(null), "{status}");
    assert_eq!(lines(&runs), 1);
}

#[test]
fn a_minion_that_is_stopped_in_order_leaves_its_jobs_running() {
    let fleet = Fleet::start(1);
    let (runs, gate) = (fleet.root().join("runs"), fleet.root().join("gate"));
    let line = format!("echo started >> {}; while [ ! -e {} ]; do sleep 0.02; done", runs.display(), gate.display());
    let id = fleet.start_job(["*", "command.run", &line]);
    wait_until("the job to start", PATIENCE, || lines(&runs) == 1);
    fleet.minion("web1").stop();
    fleet.minion("web1").start();
    assert_eq!(fleet.job_status(&id)["hosts"]["web1"]["state"], "running");
    fs::write(&gate, "").unwrap();
    let _ = fleet.overlord(["job-status", &id, "--wait"]).ok();
    assert_eq!(lines(&runs), 1);
}

#[test]
fn a_killed_job_daemon_is_lost_with_the_reason_and_takes_its_job_with_it() {
    let fleet = Fleet::start(1);
    let runs = fleet.root().join("runs");
    let id = fleet.start_job(["*", "command.run", &format!("echo started >> {}; sleep 600", runs.display())]);
    wait_until("the job to start", PATIENCE, || lines(&runs) == 1);
    // It may run before its host's answer is here.
    let _ = fleet.wait_for_state(&id, "PARTIAL");
    let web1 = fleet.minion("web1");
    let minion_job_id = web1.spools().remove(0);
    kill9(web1.job_daemon(&minion_job_id).unwrap().pid);
    wait_until_dead(&web1.spool(&minion_job_id));
    let run = fleet.overlord(["job-status", &id, "--output", "json"]).expect(4);
    let host = &run.json()["hosts"]["web1"];
    assert_eq!(host["state"], "lost", "{}", run.out());
    assert!(host["error"]["message"].as_str().unwrap().contains("job daemon was killed"), "{host}");
    assert_eq!(run.json()["state"], "LOST", "every host is lost");
    assert!(fleet.running("sleep 600").is_empty(), "{:#?}", fleet.processes());
    assert_eq!(lines(&runs), 1);
}

#[test]
fn a_killed_spawner_is_executed_afresh() {
    let fleet = Fleet::start(1);
    let web1 = fleet.minion("web1");
    let before = web1.spawner().unwrap();
    let gate = fleet.root().join("gate");
    let id = fleet.start_job(["*", "command.run", &format!("while [ ! -e {} ]; do sleep 0.02; done; echo survived", gate.display())]);
    let _ = fleet.wait_for_state(&id, "PARTIAL");
    kill9(before.pid);
    // A call that reaches it while it dies may have run, and is told so.
    wait_until("it to be gone", PATIENCE, || fleet.processes().iter().all(|process| process.pid != before.pid));
    let sum = fleet.overlord(["*", "test.add", "1", "2", "--output", "json"]).ok().json();
    assert_eq!(sum["hosts"]["web1"]["result"], 3);
    fs::write(&gate, "").unwrap();
    let status = fleet.overlord(["job-status", &id, "--wait", "--output", "json"]).ok().json();
    assert_eq!(status["hosts"]["web1"]["result"]["stdout"], "survived\n");
}

/// The dispatcher dies when it has reached one of two hosts. The other never started, for ever, until the job is resumed.
#[test]
fn a_dead_dispatchers_hosts_are_fenced_and_can_be_resumed() {
    let fleet = Fleet::builder().hosts(2).overlord_toml("connect_timeout = \"60s\"\n").start();
    let runs = fleet.root().join("runs");
    fleet.minion("web2").pause();
    let id = fleet.start_job(["*", "command.run", &format!("echo $MINION_NAME >> {}", runs.display()), "--timeout", "60s"]);
    wait_for("web1 to hold the job", PATIENCE, || {
        Some(fleet.job_status(&id)).filter(|status| status["hosts"]["web1"]["minion_job_id"].is_string())
    });
    let refused = fleet.overlord(["job-resume", &id]);
    assert_ne!(refused.code(), 0, "its dispatcher lives");
    kill9(fleet.dispatcher(&id).unwrap().pid);
    wait_until("the dispatcher to be gone", PATIENCE, || fleet.dispatcher(&id).is_none());
    fleet.set_overlord_toml("connect_timeout = \"500ms\"\n");

    // The kernel lets go of a dead process's lock a moment after its files are out of sight.
    let cut_off = fleet.wait_for_state(&id, "PARTIAL");
    assert_eq!(cut_off["hosts"]["web2"]["state"], "pending", "{cut_off}");
    assert!(cut_off["hosts"]["web2"]["unreachable"].is_object(), "{cut_off}");

    fleet.minion("web2").resume();
    fleet.set_overlord_toml("");
    let status = fleet.wait_for_state(&id, "FINISHED");
    assert_eq!(status["hosts"]["web1"]["state"], "ok", "{status}");
    let web2 = &status["hosts"]["web2"];
    // What the kernel had taken in for the paused minion may have been served first: then it ran, once.
    if web2["state"] == "undelivered" {
        assert_eq!(web2["error"]["code"], -32005, "{status}");
        assert_eq!(lines(&runs), 1);
        let resumed = fleet.overlord(["job-resume", &id]).ok();
        assert_eq!(resumed.out().trim(), id);
        let status = fleet.wait_for_state(&id, "FINISHED");
        assert_eq!(status["hosts"]["web2"]["state"], "ok", "{status}");
    }
    wait_until("both hosts to have run it", PATIENCE, || lines(&runs) == 2);
    let mut ran: Vec<_> = fs::read_to_string(&runs).unwrap().lines().map(str::to_owned).collect();
    ran.sort();
    assert_eq!(ran, ["web1", "web2"]);
}

/// Twenty jobs at random points of whose life the minion is killed: each has run once, and its result is there.
#[test]
fn a_minion_killed_again_and_again_tells_the_truth() {
    let fleet = Fleet::start(1);
    let runs = fleet.root().join("runs");
    let mut ids: Vec<JobId> = Vec::new();
    for round in 0..10_u64 {
        for _job in 0..2 {
            let id = fleet.start_job(["*", "command.run", &format!("echo $OVERLORD_JOB_ID >> {}; sleep 0.0{round}", runs.display())]);
            ids.push(id.parse().unwrap());
        }
        // From none of it done to all of it done.
        std::thread::sleep(Duration::from_millis(round * 7));
        fleet.minion("web1").kill9();
        fleet.minion("web1").start();
    }
    let ran = || fs::read_to_string(&runs).unwrap_or_default();
    for id in &ids {
        let run = fleet.overlord(["job-status", id.as_str(), "--wait", "--output", "json"]);
        let state = run.json()["hosts"]["web1"]["state"].as_str().unwrap().to_owned();
        let times = ran().lines().filter(|line| *line == id.as_str()).count();
        match state.as_str() {
            "ok" => assert_eq!(times, 1, "{id}: {}", run.out()),
            "undelivered" => assert_eq!(times, 0, "{id}: {}", run.out()),
            other => panic!("{id} is {other}, and nobody killed its daemon: {}", run.out()),
        }
        let call = CallId::new(id.clone(), 1);
        let derived = common::job::MinionJobId::derive(&"web1".parse().unwrap(), &"admin".parse().unwrap(), &call);
        assert!(times == 0 || fleet.minion("web1").spools().contains(&derived.to_string()));
    }
}

/// `lost` is the one end that can be mended: by the host, once it can be asked again.
#[test]
fn a_host_that_comes_back_mends_what_was_lost() {
    let fleet = Fleet::builder().hosts(1).overlord_toml("lost_after = \"1s\"\n").start();
    let gate = fleet.root().join("gate");
    let id = fleet.start_job(["*", "command.run", &format!("while [ ! -e {} ]; do sleep 0.02; done; echo survived", gate.display())]);
    let before = fleet.wait_for_state(&id, "PARTIAL")["hosts"]["web1"]["minion_job_id"].clone();
    fleet.minion("web1").kill9();
    let lost = fleet.wait_for_state(&id, "LOST");
    assert!(lost["hosts"]["web1"]["error"]["message"].as_str().unwrap().contains("nothing was heard"), "{lost}");
    fs::write(&gate, "").unwrap();
    fleet.minion("web1").start();
    let status = fleet.wait_for_state(&id, "FINISHED");
    let web1 = &status["hosts"]["web1"];
    assert_eq!((&web1["result"]["stdout"], &web1["minion_job_id"]), (&json!("survived\n"), &before), "{status}");
}
