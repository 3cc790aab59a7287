//! The life of a job, as the overlord tells it.

use std::fs;
use std::time::Duration;

use fleet::{COMMAND_TIMEOUT, Fleet, PATIENCE, wait_for, wait_until};
use serde_json::{Value, json};

/// A command that says where it runs, and then waits until the test lets it go on.
fn gated(fleet: &Fleet, hosts: &str) -> String {
    let gate = fleet.root().join("gate");
    format!(
        "case $MINION_NAME in {hosts}) while [ ! -e {gate} ]; do sleep 0.02; done;; esac; echo done on $MINION_NAME",
        gate = gate.display()
    )
}

fn open_gate(fleet: &Fleet) {
    fs::write(fleet.root().join("gate"), "").unwrap();
}

/// What a minion itself says of one of its jobs, by the door.
fn on_minion(fleet: &Fleet, host: &str, minion_job_id: &str) -> Value {
    let run = fleet.overlord([host, "jobs.status", minion_job_id, "--output", "json"]).ok();
    run.json()["hosts"][host]["result"].clone()
}

/// Six steps: RUNNING until every host holds the job, PARTIAL until every host is done, FINISHED. One host is held up, so that dispatch takes as long as the test wants.
#[test]
fn a_job_goes_from_running_over_partial_to_finished() {
    let fleet = Fleet::builder().hosts(2).overlord_toml("connect_timeout = \"60s\"\n").start();
    let known = fleet.overlord(["web1", "jobs.list", "--output", "json"]).ok().json();
    assert_eq!(known["hosts"]["web1"]["result"], json!({ "jobs": [], "more": 0 }), "step 1: the minions know nothing");
    fleet.minion("web2").pause();
    let id = fleet.start_job(["*", "command.run", &gated(&fleet, "web*"), "--timeout", "60s"]);

    let status = wait_for("web1 to hold the job", PATIENCE, || {
        Some(fleet.job_status(&id)).filter(|status| status["hosts"]["web1"]["minion_job_id"].is_string())
    });
    assert_eq!((&status["state"], &status["code"]), (&json!("RUNNING"), &json!(0)), "step 2: {status}");
    assert_eq!(status["hosts"]["web2"]["state"], "pending", "{status}");
    let web1_id = status["hosts"]["web1"]["minion_job_id"].as_str().unwrap().to_owned();
    assert_eq!(on_minion(&fleet, "web1", &web1_id)["state"], "running");

    fleet.minion("web2").resume();
    let status = fleet.wait_for_state(&id, "PARTIAL");
    assert_eq!(status["code"], 3, "step 3: {status}");
    let web2_id = status["hosts"]["web2"]["minion_job_id"].as_str().unwrap().to_owned();
    assert_eq!(status["hosts"]["web1"]["minion_job_id"], web1_id.as_str());
    assert_eq!(on_minion(&fleet, "web2", &web2_id)["state"], "running");

    open_gate(&fleet);
    let status = fleet.wait_for_state(&id, "FINISHED");
    assert_eq!(status["code"], 1, "step 6: {status}");
    for (host, minion_job_id) in [("web1", &web1_id), ("web2", &web2_id)] {
        assert_eq!(status["hosts"][host]["state"], "ok");
        assert_eq!(status["hosts"][host]["result"]["stdout"], format!("done on {host}\n"));
        assert_eq!(status["hosts"][host]["minion_job_id"], minion_job_id.as_str());
        assert_eq!(on_minion(&fleet, host, minion_job_id)["state"], "ok");
    }
    fleet.assert_no_leaks();
}

#[test]
fn a_slow_host_hides_no_fast_ones_result() {
    let fleet = Fleet::start(2);
    let id = fleet.start_job(["*", "command.run", &gated(&fleet, "web2")]);
    let status = wait_for("web1 to be done", COMMAND_TIMEOUT, || {
        Some(fleet.job_status(&id)).filter(|status| status["hosts"]["web1"]["state"] == "ok")
    });
    assert_eq!(status["state"], "PARTIAL", "{status}");
    assert_eq!(status["hosts"]["web1"]["result"]["stdout"], "done on web1\n");
    assert_eq!(status["hosts"]["web2"]["state"], "running");
    let slow_id = status["hosts"]["web2"]["minion_job_id"].clone();
    assert!(slow_id.is_string(), "{status}");
    let _ = fleet.overlord(["job-status", &id]).expect(75);

    open_gate(&fleet);
    let status = fleet.wait_for_state(&id, "FINISHED");
    assert_eq!(status["hosts"]["web1"]["result"]["stdout"], "done on web1\n");
    assert_eq!(status["hosts"]["web2"]["result"]["stdout"], "done on web2\n");
    assert_eq!(status["hosts"]["web2"]["minion_job_id"], slow_id);
    let _ = fleet.overlord(["job-status", &id]).ok();
}

#[test]
fn a_finished_job_is_read_without_asking_anyone() {
    let fleet = Fleet::start(3);
    let id = fleet.start_job(["*", "test.add", "23", "45"]);
    let before = fleet.overlord(["job-status", &id, "--wait", "--output", "json"]).ok();
    let asked: Vec<_> = fleet.minions().iter().map(|minion| minion.audit().len()).collect();
    let again = fleet.overlord(["job-status", &id, "--output", "json"]).ok();
    assert_eq!(again.json(), before.json());
    assert_eq!(fleet.minions().iter().map(|minion| minion.audit().len()).collect::<Vec<_>>(), asked, "a minion was asked");

    fleet.minions().iter().for_each(fleet::Minion::stop);
    let after = fleet.overlord(["job-status", &id, "--output", "json"]).ok();
    assert_eq!(after.json(), before.json());
    for host in ["web1", "web2", "web3"] {
        assert_eq!(after.json()["hosts"][host]["result"], 68);
    }
}

#[test]
fn an_unknown_job_is_lost_and_nothing_is_waited_for() {
    let fleet = Fleet::start(1);
    let _ = fleet.start_job(["*", "test.ping"]);
    let run = fleet.overlord(["job-status", "0000-0000-0000", "--output", "json"]).expect(4);
    assert_eq!((&run.json()["state"], &run.json()["code"]), (&json!("LOST"), &json!(2)));
    let waited = fleet.overlord(["job-status", "0000-0000-0000", "--wait"]).expect(4);
    assert!(waited.out().contains("LOST"), "{}", waited.out());
    assert!(waited.took < Duration::from_secs(5), "it waited for {:?}", waited.took);
    let _ = fleet.overlord(["job-status", "not/an/id"]).expect(64);
}

#[test]
fn an_unambiguous_beginning_of_an_id_will_do() {
    let fleet = Fleet::start(1);
    let first = fleet.start_job(["*", "test.add", "1", "1"]);
    let second = fleet.start_job(["*", "test.add", "2", "2"]);
    let common = first.chars().zip(second.chars()).take_while(|(one, other)| one == other).count();
    let ambiguous = fleet.overlord(["job-status", &first[..common]]).expect(64);
    for id in [&first, &second] {
        assert!(ambiguous.err().contains(id.as_str()), "{}", ambiguous.err());
    }
    let prefix = second[..=common].to_uppercase();
    let run = fleet.overlord(["job-status", &prefix, "--wait", "--output", "json"]).ok();
    assert_eq!((&run.json()["job_id"], &run.json()["hosts"]["web1"]["result"]), (&json!(second), &json!(4)));
}

#[test]
fn an_exploding_method_is_a_structured_error_on_every_host() {
    let fleet = Fleet::start(3);
    let call = fleet.overlord(["*", "test.explode", "the message", "--output", "json"]).expect(2).json();
    let id = fleet.start_job(["*", "test.explode", "the message"]);
    let job = fleet.overlord(["job-status", &id, "--wait", "--output", "json"]).expect(2).json();
    assert_eq!(job["state"], "FINISHED");
    for answers in [&call, &job] {
        for host in ["web1", "web2", "web3"] {
            let answer = &answers["hosts"][host];
            assert_eq!(answer["state"], "failed", "{answers}");
            assert_eq!(answer["error"]["message"], "the message");
            assert_eq!(answer["error"]["data"]["type"], "explosion");
        }
    }
}

#[test]
fn jobs_are_listed_the_newest_first_and_nobody_is_asked() {
    let fleet = Fleet::start(1);
    let ids: Vec<_> = ["1", "2", "3"].map(|number| fleet.start_job(["*", "test.add", number, number])).into();
    for id in &ids {
        let _ = fleet.overlord(["job-status", id, "--wait"]).ok();
    }
    fleet.minion("web1").stop();
    let listed = fleet.overlord(["job-list", "--output", "json"]).ok().json();
    let listed: Vec<_> = listed["jobs"].as_array().unwrap().iter().map(|job| job["job_id"].as_str().unwrap().to_owned()).collect();
    assert_eq!(listed, ids.iter().rev().cloned().collect::<Vec<_>>());
    let text = fleet.overlord(["job-list"]).ok().out();
    assert!(ids.iter().all(|id| text.contains(id.as_str())), "{text}");
}

#[test]
fn a_jobs_environment_names_it() {
    let fleet = Fleet::start(1);
    let id = fleet.start_job(["*", "command.run", "echo $MINION_NAME $OVERLORD_JOB_ID $MINION_JOB_ID"]);
    let status = fleet.overlord(["job-status", &id, "--wait", "--output", "json"]).ok().json();
    let host = &status["hosts"]["web1"];
    let minion_job_id = host["minion_job_id"].as_str().unwrap();
    assert_eq!(host["result"]["stdout"], format!("web1 {id} {minion_job_id}\n"));
}

#[test]
fn a_job_is_stopped_with_all_that_it_started() {
    let fleet = Fleet::builder().hosts(1).minion_toml("[limits]\ncancel_grace = \"200ms\"\n").start();
    let pids = fleet.root().join("pids");
    let stubborn = format!(
        "trap '' TERM; echo $$ >> {0}; (trap '' TERM; echo $(exec sh -c 'echo $PPID') >> {0}; setsid sleep 600) & \
         setsid sh -c 'echo $$ >> {0}; exec sleep 600' & wait; sleep 600",
        pids.display()
    );
    let id = fleet.start_job(["*", "command.run", &stubborn]);
    let started = wait_for("its processes to run", PATIENCE, || {
        let text = fs::read_to_string(&pids).unwrap_or_default();
        let pids: Vec<i32> = text.split_whitespace().map(|pid| pid.parse().unwrap()).collect();
        Some(pids).filter(|pids| pids.len() == 3)
    });
    let _ = fleet.wait_for_state(&id, "PARTIAL");
    let _ = fleet.overlord(["job-cancel", &id]).ok();
    let status = fleet.overlord(["job-status", &id, "--wait", "--output", "json"]).expect(2).json();
    let host = &status["hosts"]["web1"];
    assert_eq!((&host["state"], &host["error"]["data"]["by"]), (&json!("cancelled"), &json!("admin")), "{status}");
    assert!(host["error"]["data"]["at"].is_string());
    wait_until("its processes to be gone", PATIENCE, || {
        started.iter().all(|pid| !fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default().contains("600"))
    });
    assert!(fleet.running("sleep 600").is_empty(), "{:#?}", fleet.processes());
    let again = fleet.overlord(["job-cancel", &id]).ok();
    assert!(again.out().contains("cancelled") || again.err().contains("cancelled"), "{}{}", again.out(), again.err());
}

#[test]
fn a_jobs_time_limit_is_kept_by_its_own_daemon_though_the_server_is_dead() {
    let fleet = Fleet::start(1);
    let id = fleet.start_job(["*", "command.run", "sleep 600", "--job-timeout", "1s"]);
    let web1 = fleet.minion("web1");
    wait_until("the job to run", PATIENCE, || web1.spools().len() == 1);
    web1.kill9();
    let spool = web1.spool(&web1.spools()[0]);
    wait_until("the outcome to be written", PATIENCE, || spool.join("outcome.json").exists());
    web1.start();
    let status = fleet.overlord(["job-status", &id, "--wait", "--output", "json"]).expect(2).json();
    assert_eq!(status["hosts"]["web1"]["state"], "timed_out", "{status}");
    assert!(fleet.running("sleep 600").is_empty(), "{:#?}", fleet.processes());
}

/// While one host is still being sent the job, another's result is there already.
#[test]
fn a_host_that_is_not_reached_yet_hides_no_result() {
    let fleet = Fleet::builder().hosts(2).overlord_toml("connect_timeout = \"60s\"\n").start();
    fleet.minion("web2").pause();
    let id = fleet.start_job(["*", "test.add", "23", "45", "--timeout", "60s"]);
    let status =
        wait_for("web1 to be done", PATIENCE, || Some(fleet.job_status(&id)).filter(|status| status["hosts"]["web1"]["state"] == "ok"));
    assert_eq!((&status["state"], &status["hosts"]["web1"]["result"]), (&json!("RUNNING"), &json!(68)), "{status}");
    assert_eq!(status["hosts"]["web2"]["state"], "pending", "{status}");
    fleet.minion("web2").resume();
    assert_eq!(fleet.wait_for_state(&id, "FINISHED")["hosts"]["web2"]["result"], 68);
}
