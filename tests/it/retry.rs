//! Running a job again where it failed, was lost or never started; hosts by what became of a job there.

use std::fs;
use std::net::TcpListener;

use certs::authority::{Authority, Validity};
use fleet::{Fleet, PATIENCE, issue_into, wait_for, wait_until};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

/// A job with this command that has ended, and whose dispatcher is gone.
fn ended(fleet: &Fleet, line: &str) -> String {
    let id = fleet.start_job(["*", "command.run", line]);
    settle(fleet, &id);
    id
}

fn settle(fleet: &Fleet, id: &str) {
    let _ = fleet.overlord(["job-status", id, "--wait"]);
    wait_until("the dispatcher to be gone", PATIENCE, || fleet.dispatcher(id).is_none());
}

fn names(status: &Value) -> Vec<String> {
    status["hosts"].as_object().unwrap().keys().cloned().collect()
}

fn retry(fleet: &Fleet, id: &str, ends: &[&str]) -> String {
    let run = fleet.overlord([&["job-retry", id], ends].concat()).ok();
    let again = run.out().trim().to_owned();
    assert_eq!(run.out(), format!("{again}\n"), "the id alone");
    again
}

#[test]
fn a_job_runs_again_where_it_failed_and_nowhere_else() {
    let fleet = Fleet::start(3);
    let (flag, runs) = (fleet.root().join("flag"), fleet.root().join("runs"));
    let line = format!("echo $MINION_NAME >> {}; [ $MINION_NAME != web2 ] || [ -e {} ]", runs.display(), flag.display());
    let id = ended(&fleet, &line);
    fs::write(flag, "").unwrap();
    let again = retry(&fleet, &id, &["--failed", "--lost"]);
    let status = fleet.overlord(["job-status", &again, "--wait", "--output", "json"]).ok().json();
    assert_eq!((names(&status), &status["retry_of"], &status["method"]), (vec!["web2".to_owned()], &json!(id), &json!("command.run")));
    assert_eq!(status["hosts"]["web2"]["state"], "ok", "{status}");
    let text = fleet.overlord(["job-status", &again]).ok().out();
    assert!(text.contains(&format!("(retry of {id})")), "{text}");
    let first = fleet.job_status(&id);
    assert_eq!((&first["hosts"]["web2"]["state"], &first["retry_of"]), (&json!("failed"), &Value::Null), "the first stays as it ended");
    let mut ran: Vec<String> = fs::read_to_string(runs).unwrap().lines().map(str::to_owned).collect();
    ran.sort();
    assert_eq!(ran, ["web1", "web2", "web2", "web3"]);
    let nobody = fleet.overlord(["job-retry", &again, "--failed", "--undelivered"]).expect(66);
    assert!(nobody.err().contains(&again) && nobody.err().contains("undelivered") && nobody.out().is_empty(), "{}", nobody.err());
    let _ = fleet.overlord(["job-retry", &id]).expect(64);
    let _ = fleet.overlord(["job-retry", "0000-0000-0000", "--failed"]).expect(4);
}

#[test]
fn a_job_runs_again_where_it_never_started_or_was_lost() {
    let fleet = Fleet::start(2);
    let runs = fleet.root().join("runs");
    fleet.minion("web2").stop();
    let gate = fleet.root().join("gate");
    let line = format!("echo $MINION_NAME >> {}; while [ ! -e {} ]; do sleep 0.02; done", runs.display(), gate.display());
    let id = fleet.start_job(["*", "command.run", &line]);
    wait_until("web1 to run", PATIENCE, || fs::read_to_string(&runs).unwrap_or_default() == "web1\n");
    wait_until("the dispatcher to be gone", PATIENCE, || fleet.dispatcher(&id).is_none());
    let _ = fleet.overlord(["job-retry", &id, "--lost"]).expect(66);
    fleet.minion("web2").start();
    fs::write(&gate, "").unwrap();
    let never = retry(&fleet, &id, &["--undelivered"]);
    let status = fleet.overlord(["job-status", &never, "--wait", "--output", "json"]).ok().json();
    assert_eq!(names(&status), ["web2"]);
    assert_eq!(fs::read_to_string(&runs).unwrap(), "web1\nweb2\n");

    fs::remove_file(&gate).unwrap();
    let id = fleet.start_job(["web1", "command.run", &line]);
    wait_until("web1 to run", PATIENCE, || fs::read_to_string(&runs).unwrap().lines().count() == 3);
    let minion_job =
        wait_for("its id there", PATIENCE, || fleet.job_status(&id)["hosts"]["web1"]["minion_job_id"].as_str().map(str::to_owned));
    let daemon = fleet.minion("web1").job_daemon(&minion_job).unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(daemon.pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    settle(&fleet, &id);
    fs::write(&gate, "").unwrap();
    let lost = retry(&fleet, &id, &["--lost"]);
    let status = fleet.overlord(["job-status", &lost, "--wait", "--output", "json"]).ok().json();
    assert_eq!((&status["hosts"]["web1"]["state"], &status["retry_of"]), (&json!("ok"), &json!(id)), "{status}");
}

/// Lost is looked at again before anything runs a second time.
#[test]
fn what_was_lost_and_has_come_back_is_not_run_again() {
    let fleet = Fleet::builder().hosts(1).overlord_toml("lost_after = \"1s\"\n").start();
    let gate = fleet.root().join("gate");
    let id = fleet.start_job(["*", "command.run", &format!("while [ ! -e {} ]; do sleep 0.02; done; echo done", gate.display())]);
    let minion_job = fleet.wait_for_state(&id, "PARTIAL")["hosts"]["web1"]["minion_job_id"].as_str().unwrap().to_owned();
    let web1 = fleet.minion("web1");
    web1.kill9();
    let _ = fleet.wait_for_state(&id, "LOST");
    fs::write(gate, "").unwrap();
    wait_until("its end", PATIENCE, || web1.spool(&minion_job).join("outcome.json").exists());
    web1.start();
    wait_until("the dispatcher to be gone", PATIENCE, || fleet.dispatcher(&id).is_none());
    let _ = fleet.overlord(["job-retry", &id, "--lost"]).expect(66);
    assert_eq!(fleet.job_status(&id)["hosts"]["web1"]["result"]["stdout"], "done\n");
}

#[test]
fn hosts_are_named_by_what_became_of_a_job_there() {
    let fleet = Fleet::start(3);
    let id = ended(&fleet, "[ $MINION_NAME != web2 ]");
    let answered = |target: &str| names(&fleet.overlord([target, "test.ping", "--output", "json"]).ok().json());
    assert_eq!(answered(&format!("@job:{id}")), ["web1", "web2", "web3"]);
    assert_eq!(answered(&format!("@job:{id}:failed")), ["web2"]);
    assert_eq!(answered(&format!("*;!@job:{}:FAILED", id.to_uppercase())), ["web1", "web3"]);
    assert_eq!(answered(&format!("@job:{}:ok,!web1", &id[..13])), ["web3"]);
    let listed = fleet.overlord(["hosts", &format!("@job:{id}:failed"), "--output", "json"]).ok().json();
    assert_eq!(listed["hosts"][0]["name"], "web2");
    for (target, status, words) in [
        (format!("@job:{id}:lost"), 66, "matches none"),
        (format!("@job:{id}:unfinished"), 66, "matches none"),
        ("web1;@job:0000-0000-0000".to_owned(), 66, "no job 0000-0000-0000"),
        (format!("@job:{id}:broken"), 64, "timed_out"),
    ] {
        let run = fleet.overlord([target.as_str(), "test.ping"]).expect(status);
        assert!(run.err().contains(words), "{target}: {}", run.err());
    }
    let again = fleet.start_job([&format!("@job:{id}:failed"), "test.ping"]);
    assert_eq!(names(&fleet.wait_for_state(&again, "FINISHED")), ["web2"]);

    let roster = fs::read_to_string(fleet.home().join("hosts.toml")).unwrap();
    fs::write(fleet.home().join("hosts.toml"), roster.replace("web2", "db9")).unwrap();
    let run = fleet.overlord([&format!("@job:{id}"), "test.ping", "--output", "json"]).ok();
    assert_eq!(names(&run.json()), ["web1", "web3"]);
    assert!(run.err().contains("web2") && run.err().contains("no longer in hosts.toml"), "{}", run.err());
    let nobody = fleet.overlord(["job-retry", &id, "--failed"]).expect(66);
    assert!(nobody.err().contains("hosts.toml"), "{}", nobody.err());
}

#[test]
fn a_job_that_is_still_being_sent_is_not_run_again_yet() {
    let fleet = Fleet::builder().hosts(2).overlord_toml("connect_timeout = \"60s\"\n").start();
    fleet.minion("web2").pause();
    let id = fleet.start_job(["*", "command.run", "false", "--timeout", "60s"]);
    wait_until("web1 to have failed", PATIENCE, || fleet.job_status(&id)["hosts"]["web1"]["state"] == "failed");
    let _ = fleet.overlord(["job-retry", &id, "--failed"]).expect(75);
    let _ = fleet.overlord(["job-delete", &id]).expect(75);
    fleet.minion("web2").resume();
    settle(&fleet, &id);
}

#[test]
fn waiting_ends_when_a_host_is_given_up_as_lost() {
    let fleet = Fleet::builder().hosts(2).overlord_toml("lost_after = \"1s\"\n").start();
    let web2 = "case $MINION_NAME in web2) sleep 600;; esac";
    let both = fleet.start_job(["*", "command.run", web2]);
    let only = fleet.start_job(["web2", "command.run", "sleep 600"]);
    for id in [&both, &only] {
        let _ = fleet.wait_for_state(id, "PARTIAL");
    }
    fleet.minion("web2").kill9();
    for (id, state) in [(&both, "FINISHED"), (&only, "LOST")] {
        let status = fleet.overlord(["job-status", id, "--wait", "--output", "json"]).expect(4).json();
        assert_eq!((&status["state"], &status["hosts"]["web2"]["state"]), (&json!(state), &json!("lost")), "{status}");
        assert!(status["hosts"]["web2"]["error"]["message"].as_str().unwrap().contains("nothing was heard"), "{status}");
    }
}

#[test]
fn why_a_host_refused_a_job_stays_in_its_status() {
    let fleet = Fleet::builder().hosts(2).start();
    fleet.minion("web2").set_acl("[[allow]]\ncaller = \"admin\"\nmethods = [\"test.*\"]\n");
    let id = fleet.start_job(["*", "command.run", "echo ran"]);
    for _ in 0..2 {
        let status = fleet.overlord(["job-status", &id, "--wait", "--output", "json"]).expect(2).json();
        assert_eq!((&status["hosts"]["web2"]["state"], &status["hosts"]["web1"]["result"]["stdout"]), (&json!("denied"), &json!("ran\n")));
        assert!(status["hosts"]["web2"]["error"]["message"].as_str().unwrap().contains("command.run"), "{status}");
    }
}

/// Mid-job, one host gets another authority's certificate, one an expired one, one leaves the roster, and one is silent.
#[test]
fn a_host_that_cannot_be_asked_any_more_hides_no_other() {
    let fleet = Fleet::builder().hosts(5).overlord_toml("poll_timeout = \"2s\"\nconnect_timeout = \"1s\"\n").start();
    let id = fleet.start_job(["*", "command.run", "case $MINION_NAME in web1) echo done;; *) sleep 600;; esac"]);
    wait_until("all to have it", PATIENCE, || {
        let status = fleet.job_status(&id);
        status["hosts"].as_object().unwrap().values().all(|host| host["minion_job_id"].is_string())
    });
    let now = Timestamp::now();
    let valid = Validity { not_before: now - SignedDuration::from_mins(5), not_after: now + SignedDuration::from_hours(1) };
    let foreign = Authority::init(&fleet.root().join("foreign"), std::time::Duration::from_secs(7200)).unwrap();
    let stranger = issue_into(&fleet.root().join("issued"), &foreign, "fleet:minion/web2", valid);
    let short = Validity { not_before: now - SignedDuration::from_hours(1), not_after: now + SignedDuration::from_secs(3) };
    for (name, folder) in [("web2", stranger), ("web3", fleet.issue_within("fleet:minion/web3", short))] {
        fleet.minion(name).stop();
        fleet.minion(name).set_certs(&folder);
        fleet.minion(name).start();
    }
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    fleet.set_address("web5", &silent.local_addr().unwrap().to_string());
    let roster = fs::read_to_string(fleet.home().join("hosts.toml")).unwrap();
    fs::write(fleet.home().join("hosts.toml"), roster.replace("web4", "gone4")).unwrap();
    wait_until("a certificate to expire", PATIENCE, || Timestamp::now() > short.not_after + SignedDuration::from_secs(1));

    let status = fleet.overlord(["job-status", &id, "--output", "json"]).expect(75).json();
    assert_eq!((&status["state"], &status["hosts"]["web1"]["result"]["stdout"]), (&json!("PARTIAL"), &json!("done\n")), "{status}");
    for (name, why) in [("web2", "another authority"), ("web3", "expired"), ("web4", "no longer in hosts.toml"), ("web5", "no connection")]
    {
        let host = &status["hosts"][name];
        assert!(["queued", "running"].contains(&host["state"].as_str().unwrap()), "{host}");
        assert!(host["unreachable"]["reason"].as_str().unwrap().contains(why), "{name}: {host}");
    }
}
