//! What the processes of methods do to those who watch over them.

use std::fs;
use std::time::Duration;

use fleet::raw::{envelope, request};
use fleet::{Fleet, PATIENCE, wait_until};
use nix::sys::signal::Signal;
use serde_json::json;

use super::lines;

/// A caller who hangs up is told so by nobody, but what he started ends.
#[test]
fn an_interrupted_call_ends_on_the_host() {
    let fleet = Fleet::start(1);
    let runs = fleet.root().join("runs");
    let call = fleet.overlord_spawn(["*", "command.run", &format!("echo started >> {}; sleep 600", runs.display()), "--output", "json"]);
    wait_until("the command to start", PATIENCE, || lines(&runs) == 1);
    call.signal(Signal::SIGINT);
    let run = call.wait().expect(130);
    assert_eq!(run.json()["hosts"]["web1"]["state"], "lost", "{}", run.out());
    wait_until("the command to be gone", PATIENCE, || fleet.running("sleep 600").is_empty());
}

#[test]
fn a_synchronous_call_is_killed_at_its_time_limit() {
    let fleet = Fleet::start(1);
    let run = fleet.overlord(["*", "command.run", "sleep 600", "--timeout", "1s", "--output", "json"]).expect(2);
    assert_eq!(run.json()["hosts"]["web1"]["state"], "timed_out", "{}", run.out());
    assert!(run.took < Duration::from_secs(10), "{:?}", run.took);
    assert!(fleet.running("sleep 600").is_empty(), "{:#?}", fleet.processes());
}

/// More jobs end at once than their server can be told of: they must not count as running afterwards.
#[test]
fn places_are_free_as_soon_as_jobs_have_ended() {
    let fleet = Fleet::builder().hosts(1).minion_toml("[limits]\nprocesses_max = 20\n").start();
    let web1 = fleet.minion("web1");
    let gate = fleet.root().join("gate");
    let wait = json!([format!("while [ ! -e {} ]; do sleep 0.02; done", gate.display())]);
    let client = fleet.raw_overlord("web1");
    let start = |args: &serde_json::Value| {
        client.post_json(&request(1.into(), &envelope("admin", "web1", "async.command.run", args.clone()))).unwrap()
    };
    for _job in 0..20 {
        let accepted = start(&wait);
        assert!(accepted["result"]["minion_job_id"].is_string(), "{accepted}");
    }
    let refused = start(&wait);
    assert!(refused["error"]["message"].as_str().unwrap().contains("processes_max"), "{refused}");
    web1.pause();
    fs::write(&gate, "").unwrap();
    wait_until("all to end", PATIENCE, || web1.spools().iter().all(|id| web1.spool(id).join("outcome.json").exists()));
    web1.resume();
    for _job in 0..20 {
        let accepted = start(&json!(["true"]));
        assert!(accepted["result"]["minion_job_id"].is_string(), "{accepted}");
    }
}

/// Who asked first may have died between writing his wish down and waking the daemon.
#[test]
fn a_wish_to_cancel_that_woke_nobody_is_heard_when_it_is_repeated() {
    let fleet = Fleet::start(1);
    let web1 = fleet.minion("web1");
    let id = fleet.start_job(["*", "test.sleep", "600"]);
    let _ = fleet.wait_for_state(&id, "PARTIAL");
    let wish = json!({ "by": "first", "at": "2026-01-01T00:00:00Z" });
    fs::write(web1.spool(&web1.spools()[0]).join("cancel.json"), wish.to_string()).unwrap();
    let _ = fleet.overlord(["job-cancel", &id]).ok();
    let status = fleet.overlord(["job-status", &id, "--output", "json"]).expect(2).json();
    assert_eq!(status["hosts"]["web1"]["error"]["data"]["by"], "first", "{status}");
}

/// Some supervisors and container entry points leave SIGCHLD ignored, which survives exec.
#[test]
fn a_minion_hears_of_its_children_though_it_was_started_deaf() {
    let fleet = Fleet::builder().hosts(1).stopped().start();
    let web1 = fleet.minion("web1");
    let mut command = std::process::Command::new("sh");
    let line = format!("trap '' CHLD; exec {} --config {} serve", fleet::binaries().minion.display(), web1.config_file().display());
    command.args(["-c", &line]).env("FLEET_ROOT", fleet.root());
    let _deaf = fleet::Running::start(command);
    wait_until("it to listen", PATIENCE, || std::net::TcpStream::connect(web1.address()).is_ok());
    let sum = fleet.overlord(["*", "test.add", "1", "2", "--timeout", "20s", "--output", "json"]).ok().json();
    assert_eq!(sum["hosts"]["web1"]["result"], 3, "{sum}");
}
