//! What the processes of methods do to those who watch over them.

use std::fs;
use std::time::Duration;

use fleet::raw::envelope;
use fleet::{Fleet, MemoryLimit, PATIENCE, Process, wait_for, wait_until};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::{Runs, kill9, lines};

/// What a job daemon may need at most, however much its job prints: a debug build's own code and a few buffers.
const DAEMON_PEAK_MAX_BYTES: u64 = 64 << 20;
/// What the server may need at most.
const SERVER_PEAK_MAX_BYTES: u64 = 128 << 20;
/// What is kept of a job's output here.
const OUTPUT_MAX_BYTES: u64 = 1 << 20;
/// What the mark of a cut may take beyond that.
const MARK_MAX_BYTES: u64 = 200;

/// What became of a command as a job on web1: asked until it has ended.
fn end_of(fleet: &Fleet, line: &str) -> Value {
    let id = fleet.start_job(["web1", "command.run", line]);
    fleet.overlord(["job-status", &id, "--wait", "--output", "json"]).json()["hosts"]["web1"].clone()
}

/// The job that runs now, and its id on web1, once it has left its line.
fn start(fleet: &Fleet, line: &str) -> (String, String) {
    let runs = Runs::of(fleet);
    let id = fleet.start_job(["web1", "command.run", &format!("{}; {line}", runs.note())]);
    wait_until("the job to start", PATIENCE, || runs.count(&id, "web1") == 1);
    let status = fleet.wait_for_state(&id, "PARTIAL");
    let minion_job_id = status["hosts"]["web1"]["minion_job_id"].as_str().unwrap().to_owned();
    (id, minion_job_id)
}

/// The daemon of a job was killed; its number, and that of the job's command, are strangers' now, who have nothing to fear.
#[test]
fn a_number_that_a_dead_job_had_is_a_strangers_and_nobody_signals_it() {
    let fleet = Fleet::builder().hosts(1).own_processes().start();
    let web1 = fleet.minion("web1");
    let (id, minion_job_id) = start(&fleet, "sleep 600");
    let daemon = web1.job_daemon(&minion_job_id).unwrap();
    // It leads no group, so its number is free when it is dead.
    let command = wait_for("the command", PATIENCE, || fleet.running("sleep 600").into_iter().find(|found| found.command == "sleep 600"));
    let numbers = [web1.own_pid(&daemon), web1.own_pid(&command)];
    kill9(daemon.pid);
    kill9(command.pid);
    let strangers = numbers.map(|number| web1.stranger(number));
    let _ = fleet.overlord(["job-cancel", &id]);
    let status = fleet.overlord(["job-status", &id, "--wait", "--output", "json"]).expect(4).json();
    assert_eq!(status["hosts"]["web1"]["state"], "lost", "{status}");
    assert!(strangers.iter().all(fleet::Stranger::lives), "{strangers:?}");
    web1.kill9();
    web1.start();
    let _ = fleet.overlord(["job-cancel", &id]);
    assert_eq!(fleet.job_status(&id)["hosts"]["web1"]["state"], "lost");
    assert!(strangers.iter().all(fleet::Stranger::lives), "{strangers:?}");
}

/// A process of the job ended, and its number is a stranger's, while the job goes on and is cancelled.
#[test]
fn a_stranger_with_the_number_of_a_jobs_dead_child_outlives_the_job() {
    let fleet = Fleet::builder().hosts(1).own_processes().start();
    let (web1, note) = (fleet.minion("web1"), fleet.root().join("pid"));
    let (id, _) = start(&fleet, &format!("sh -c 'echo $$ > {}'; sleep 600", note.display()));
    let number = wait_for("the child's number", PATIENCE, || fs::read_to_string(&note).ok()?.trim().parse().ok());
    let stranger = web1.stranger(number);
    let _ = fleet.overlord(["job-cancel", &id]).ok();
    assert_eq!(fleet.wait_for_state(&id, "FINISHED")["hosts"]["web1"]["state"], "cancelled");
    assert!(fleet.running("sleep 600").is_empty(), "{:#?}", fleet.processes());
    assert!(stranger.lives(), "{stranger:?}");
}

/// Daemons that a job leaves behind end with it, whatever they do to get away, and however they hold its output open.
#[test]
fn a_job_that_leaves_a_daemon_behind_ends_and_takes_it_along() {
    let fleet = Fleet::start(1);
    for escape in ["setsid sleep 600 &", "(setsid sh -c 'sleep 600 & sleep 600 &' &);", "setsid sh -c 'trap \"\" TERM HUP; sleep 600' &"] {
        let host = end_of(&fleet, &format!("{escape} echo done"));
        assert_eq!((&host["state"], &host["result"]["stdout"]), (&json!("ok"), &json!("done\n")), "{escape}: {host}");
        wait_until("what it left behind to be gone", PATIENCE, || fleet.running("sleep 600").is_empty());
    }
}

#[test]
fn a_job_that_closes_its_output_is_waited_for() {
    let fleet = Fleet::start(1);
    let gate = fleet.root().join("gate");
    let (id, _) = start(&fleet, &format!("echo first; exec >&- 2>&-; while [ ! -e {} ]; do sleep 0.02; done; exit 3", gate.display()));
    assert_eq!(fleet.job_status(&id)["hosts"]["web1"]["state"], "running");
    fs::write(&gate, "").unwrap();
    let status = fleet.overlord(["job-status", &id, "--wait", "--output", "json"]).expect(2).json();
    let data = &status["hosts"]["web1"]["error"]["data"];
    assert_eq!((&data["rc"], &data["stdout"]), (&json!(3), &json!("first\n")), "{status}");
}

/// The kernel takes the job's command, and nobody else.
#[test]
fn a_job_that_runs_out_of_memory_fails_and_says_so() {
    let Some(limit) = MemoryLimit::of(32 << 20) else { return };
    let fleet = Fleet::start(1);
    let web1 = fleet.minion("web1");
    let (server, spawner) = (web1.pid(), web1.spawner().unwrap());
    let host = end_of(&fleet, &format!("echo before; {}; exec tail /dev/zero", limit.join()));
    assert_eq!((&host["state"], &host["error"]["data"]["signal"]), (&json!("failed"), &json!(9)), "{host}");
    assert_eq!(host["error"]["data"]["stdout"], "before\n", "{host}");
    assert_eq!((web1.pid(), web1.spawner()), (server, Some(spawner)));
    assert_eq!(end_of(&fleet, "echo fine")["result"]["stdout"], "fine\n");
}

/// Its group is its own: neither its daemon nor another job is in it.
#[test]
fn a_job_that_kills_its_own_process_group_kills_nobody_else() {
    let fleet = Fleet::start(1);
    let (other, _) = start(&fleet, "sleep 600");
    for (signal, number) in [("KILL", 9), ("TERM", 15)] {
        let host = end_of(&fleet, &format!("echo before; kill -{signal} 0; sleep 600"));
        assert_eq!((&host["state"], &host["error"]["data"]["signal"]), (&json!("failed"), &json!(number)), "{host}");
        assert_eq!(host["error"]["data"]["stdout"], "before\n", "{host}");
    }
    assert_eq!(fleet.job_status(&other)["hosts"]["web1"]["state"], "running");
}

#[test]
fn a_job_that_ignores_every_signal_is_stopped_at_its_limit_and_when_cancelled() {
    let fleet = Fleet::builder().hosts(1).minion_toml("[limits]\ncancel_grace = \"200ms\"\n").start();
    let stubborn = "trap '' TERM INT HUP QUIT; while :; do sleep 600; done";
    let id = fleet.start_job(["web1", "command.run", stubborn, "--job-timeout", "1s"]);
    let status = fleet.overlord(["job-status", &id, "--wait", "--output", "json"]).expect(2).json();
    assert_eq!(status["hosts"]["web1"]["state"], "timed_out", "{status}");
    let (id, _) = start(&fleet, stubborn);
    let _ = fleet.overlord(["job-cancel", &id]).ok();
    assert_eq!(fleet.wait_for_state(&id, "FINISHED")["hosts"]["web1"]["state"], "cancelled");
    assert!(fleet.running("sleep 600").is_empty(), "{:#?}", fleet.processes());
}

fn with_small_outputs() -> Fleet {
    Fleet::builder().hosts(1).minion_toml(&format!("[limits]\noutput_max_bytes = {OUTPUT_MAX_BYTES}\ncancel_grace = \"200ms\"\n")).start()
}

/// The server, the spawner and the daemon have stayed small.
fn assert_small(fleet: &Fleet, daemon: &Process) {
    let web1 = fleet.minion("web1");
    let server = fleet.processes().into_iter().find(|process| process.pid == web1.pid()).unwrap();
    let peaks = [(daemon, DAEMON_PEAK_MAX_BYTES), (&web1.spawner().unwrap(), DAEMON_PEAK_MAX_BYTES), (&server, SERVER_PEAK_MAX_BYTES)];
    for (process, max) in peaks {
        let peak = process.peak_bytes().unwrap_or_else(|| panic!("{process:?} is gone"));
        assert!(peak <= max, "{process:?} has had {peak} bytes, and {max} is its bound");
    }
}

/// The file of its stdout has what may be kept of it, and says that it was cut.
fn assert_cut(fleet: &Fleet, minion_job_id: &str) {
    let kept = fs::read(fleet.minion("web1").spool(minion_job_id).join("stdout")).unwrap();
    assert!((OUTPUT_MAX_BYTES..=OUTPUT_MAX_BYTES + MARK_MAX_BYTES).contains(&(kept.len() as u64)), "{} bytes", kept.len());
    let end = String::from_utf8_lossy(&kept[kept.len() - 100..]).into_owned();
    assert!(end.contains("[cut: the first 1048576 of "), "{end}");
}

#[test]
fn a_job_that_prints_a_gigabyte_is_cut_and_says_so() {
    const PRINTED: u64 = 1_000_000_000;
    let fleet = with_small_outputs();
    let [gate, printed] = ["gate", "printed"].map(|name| fleet.root().join(name));
    let line = format!("yes | head -c {PRINTED}; touch {}; while [ ! -e {} ]; do sleep 0.02; done", printed.display(), gate.display());
    let (id, minion_job_id) = start(&fleet, &line);
    let daemon = fleet.minion("web1").job_daemon(&minion_job_id).unwrap();
    wait_until("it to have printed all", 3 * PATIENCE, || printed.exists());
    assert_small(&fleet, &daemon);
    fs::write(&gate, "").unwrap();
    let status = fleet.overlord(["job-status", &id, "--wait", "--output", "json"]).ok().json();
    let result = &status["hosts"]["web1"]["result"];
    assert_eq!(result["cut"]["stdout"], PRINTED, "{}", status["hosts"]["web1"]["state"]);
    assert!(result["stdout"].as_str().unwrap().starts_with("y\ny\n"));
    assert_cut(&fleet, &minion_job_id);
}

#[test]
fn a_job_that_prints_without_end_can_be_cancelled() {
    let fleet = with_small_outputs();
    let (id, minion_job_id) = start(&fleet, "yes");
    let daemon = fleet.minion("web1").job_daemon(&minion_job_id).unwrap();
    let stdout = fleet.minion("web1").spool(&minion_job_id).join("stdout");
    wait_until("it to have printed more than is kept", PATIENCE, || fs::metadata(&stdout).is_ok_and(|file| file.len() >= OUTPUT_MAX_BYTES));
    assert_small(&fleet, &daemon);
    let _ = fleet.overlord(["job-cancel", &id]).ok();
    let status = fleet.wait_for_state(&id, "FINISHED");
    assert_eq!(status["hosts"]["web1"]["state"], "cancelled", "{status}");
    assert_cut(&fleet, &minion_job_id);
    assert!(fleet.running("yes").is_empty(), "{:#?}", fleet.processes());
}

/// The time limit is kept though there is always something to read.
#[test]
fn a_job_that_prints_without_end_is_stopped_at_its_time_limit() {
    let fleet = with_small_outputs();
    let id = fleet.start_job(["web1", "command.run", "yes", "--job-timeout", "1s"]);
    let status = fleet.overlord(["job-status", &id, "--wait", "--output", "json"]).expect(2).json();
    assert_eq!(status["hosts"]["web1"]["state"], "timed_out", "{status}");
    assert!(fleet.running("yes").is_empty(), "{:#?}", fleet.processes());
}

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
    let fleet = Fleet::builder().hosts(1).minion_toml("[limits]\njobs_max = 20\nqueue_max = 0\n").start();
    let web1 = fleet.minion("web1");
    let gate = fleet.root().join("gate");
    let wait = json!([format!("while [ ! -e {} ]; do sleep 0.02; done", gate.display())]);
    let client = fleet.raw_overlord("web1");
    let start = |args: &serde_json::Value| client.call(&envelope("admin", "web1", "async.command.run", args.clone())).unwrap();
    for _job in 0..20 {
        let accepted = start(&wait);
        assert!(accepted["result"]["minion_job_id"].is_string(), "{accepted}");
    }
    let refused = start(&wait);
    assert!(refused["error"]["message"].as_str().unwrap().contains("jobs_max"), "{refused}");
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
    fs::write(web1.spool(&web1.spools()[0]).join("cancel.json"), common::seal::seal(&wish).unwrap()).unwrap();
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
