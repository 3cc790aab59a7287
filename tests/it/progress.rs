//! What jobs say of how far they are, and what is read of them again and again.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use common::protocol::Envelope;
use fleet::raw::envelope;
use fleet::{Fleet, PATIENCE, wait_for, wait_until};
use jiff::Timestamp;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

/// A line of a job that waits there until the test goes on.
fn gate(fleet: &Fleet, name: &str) -> String {
    format!("while [ ! -e {} ]; do sleep 0.02; done", gate_path(fleet, name).display())
}

fn gate_path(fleet: &Fleet, name: &str) -> PathBuf {
    fleet.root().join(format!("gate-{name}"))
}

fn open(fleet: &Fleet, name: &str) {
    fs::write(gate_path(fleet, name), "").unwrap();
}

fn host(fleet: &Fleet, id: &str, name: &str) -> Value {
    fleet.job_status(id)["hosts"][name].clone()
}

/// The first report that `is_meant`, as `job-status` tells it.
fn wait_for_progress(fleet: &Fleet, id: &str, is_meant: impl Fn(&Value) -> bool) -> Value {
    wait_for("the report", PATIENCE, || Some(host(fleet, id, "web1")["progress"].clone()).filter(|progress| is_meant(progress)))
}

fn ended(fleet: &Fleet, id: &str) -> Value {
    fleet.wait_for_state(id, "FINISHED")
}

#[test]
fn a_job_that_runs_says_how_far_it_is_and_what_is_beyond_its_bounds_counts_as_they_do() {
    let fleet = Fleet::start(1);
    let line = format!(
        "echo '7.5 x' >&$MINION_PROGRESS_FD; {}; echo no number >&3; echo NaN >&3; echo '-1 y' >&3; {}; echo 0.4 >&3",
        gate(&fleet, "a"),
        gate(&fleet, "b")
    );
    let id = fleet.start_job(["web1", "command.run", &line]);
    let first = wait_for_progress(&fleet, &id, Value::is_object);
    assert_eq!((&first["fraction"], &first["message"]), (&json!(1.0), &json!("x")), "{first}");
    let status = fleet.job_status(&id);
    let web1 = &status["hosts"]["web1"];
    assert_eq!((&web1["state"], web1.get("result"), &status["progress"]["fraction"]), (&json!("running"), None, &json!(1.0)), "{status}");
    assert!(web1["started_at"].is_string() && first["at"].as_str() >= web1["started_at"].as_str(), "{web1}");
    let text = fleet.overlord(["job-status", &id]).expect(75).out();
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[1].starts_with("started ") && lines[1].ends_with(" ago, 100 % done"), "{text}");
    assert!(lines[2].starts_with("web1: running since ") && lines[2].contains(", at 100 %, \"x\" (minion job "), "{text}");
    open(&fleet, "a");
    let second = wait_for_progress(&fleet, &id, |progress| progress["message"] == "y");
    assert_eq!(second["fraction"], json!(0.0), "{second}");
    open(&fleet, "b");
    let end = ended(&fleet, &id);
    let web1 = &end["hosts"]["web1"];
    assert_eq!((&web1["progress"]["fraction"], &web1["progress"]["message"]), (&json!(0.4), &json!("")), "{end}");
    assert_eq!((&web1["state"], &end["progress"]["fraction"]), (&json!("ok"), &json!(1.0)), "{end}");
    assert!(web1["duration_ms"].as_u64().is_some() && end["duration_ms"].as_u64().is_some(), "{end}");
    assert_eq!(host(&fleet, &id, "web1"), *web1);
}

#[test]
fn a_native_method_reports_too_and_over_all_is_the_mean_of_the_hosts() {
    let fleet = Fleet::start(2);
    let id = fleet.start_job(["web1", "test.progress", "--json", r#"{"reports":[0.1,[0.2,"b"],[7.5,"done"]]}"#]);
    let end = ended(&fleet, &id);
    assert_eq!((&end["hosts"]["web1"]["result"], &end["hosts"]["web1"]["progress"]["fraction"]), (&json!(3), &json!(1.0)), "{end}");
    // Reports of a call that is waited for are heard by nobody, however many they are.
    let many = format!("{{\"reports\":[{}0]}}", "0.5,".repeat(20_000));
    let called = fleet.overlord(["web1", "test.progress", "--json", &many, "--output", "json"]).ok().json();
    assert_eq!(called["hosts"]["web1"]["result"], 20_001, "{called}");

    let line = format!("[ $MINION_NAME = web2 ] || {{ echo 0.5 half >&3; {}; }}", gate(&fleet, "half"));
    let id = fleet.start_job(["web*", "command.run", &line]);
    wait_until("one half of two", PATIENCE, || fleet.job_status(&id)["progress"]["fraction"] == json!(0.75));
    open(&fleet, "half");
    assert_eq!(ended(&fleet, &id)["progress"]["fraction"], json!(1.0));
}

#[test]
fn whatever_the_end_the_last_report_is_kept() {
    let fleet = Fleet::builder().hosts(1).minion_toml("[limits]\ncancel_grace = \"1s\"\n").start();
    let failing = fleet.start_job(["web1", "test.progress", "--json", r#"{"reports":[[0.3,"copying"]],"fail":"boom"}"#]);
    for _again in 0..2 {
        let end = ended(&fleet, &failing);
        let web1 = &end["hosts"]["web1"];
        assert_eq!((&web1["state"], &web1["error"]["message"]), (&json!("failed"), &json!("boom")), "{end}");
        assert_eq!((&web1["progress"]["fraction"], &web1["progress"]["message"]), (&json!(0.3), &json!("copying")), "{end}");
        let text = fleet.overlord(["job-status", &failing]).expect(2).out();
        assert!(text.contains("web1: failed (from ") && text.contains(", at 30 %, \"copying\"): boom\n"), "{text}");
    }
    let timed_out = fleet.start_job(["web1", "command.run", "echo 0.5 >&3; sleep 600", "--job-timeout", "1s"]);
    let cancelled = fleet.start_job(["web1", "command.run", "echo 0.6 >&3; sleep 600"]);
    wait_for_progress(&fleet, &cancelled, Value::is_object);
    let _ = fleet.overlord(["job-cancel", &cancelled]).ok();
    let killed = fleet.start_job(["web1", "command.run", "echo 0.7 >&3; sleep 600"]);
    wait_for_progress(&fleet, &killed, Value::is_object);
    let daemon = fleet.minion("web1").job_daemon(&fleet.minion_job(&killed)).unwrap();
    kill(Pid::from_raw(daemon.pid), Signal::SIGKILL).unwrap();
    for (id, state, fraction) in [(timed_out, "timed_out", 0.5), (cancelled, "cancelled", 0.6), (killed, "lost", 0.7)] {
        let web1 = wait_for("the end", PATIENCE, || Some(host(&fleet, &id, "web1")).filter(|web1| web1["finished_at"].is_string()));
        assert_eq!((&web1["state"], &web1["progress"]["fraction"]), (&json!(state), &json!(fraction)), "{web1}");
    }
}

/// A server that is killed, with its spawner, and started again tells the same.
#[test]
fn progress_outlives_the_server() {
    let fleet = Fleet::start(1);
    let id = fleet.start_job(["web1", "command.run", &format!("echo 0.5 before >&3; {}; echo 0.9 after >&3", gate(&fleet, "restart"))]);
    wait_for_progress(&fleet, &id, Value::is_object);
    let web1 = fleet.minion("web1");
    web1.kill9();
    web1.start();
    let again = wait_for("the host to answer", PATIENCE, || Some(host(&fleet, &id, "web1")).filter(|web1| web1["unreachable"].is_null()));
    assert_eq!((&again["state"], &again["progress"]["message"]), (&json!("running"), &json!("before")), "{again}");
    open(&fleet, "restart");
    assert_eq!(ended(&fleet, &id)["hosts"]["web1"]["progress"]["message"], "after");
}

/// It is drained as fast as it comes, kept nowhere, and in nobody's way: the limit, the wish to cancel and the result come through.
#[test]
fn a_flood_of_reports_harms_nobody() {
    let fleet = Fleet::start(1);
    let flood = "yes '0.5 abcdefghijklmnopqrstuvwxyz' | head -c 1000000000 >&3; tr '\\0' x < /dev/zero | head -c 100000000 >&3; echo >&3; \
                 echo 0.75 last >&3; echo done";
    let id = fleet.start_job(["web1", "command.run", flood]);
    let web1 = ended(&fleet, &id)["hosts"]["web1"].clone();
    assert_eq!((&web1["result"]["stdout"], &web1["progress"]["message"]), (&json!("done\n"), &json!("last")), "{web1}");
    let spool = fleet.minion("web1").spool(web1["minion_job_id"].as_str().unwrap());
    let bytes: u64 = fs::read_dir(&spool).unwrap().map(|file| file.unwrap().metadata().unwrap().len()).sum();
    assert!(bytes < 64 * 1024, "{bytes} bytes lie in {}", spool.display());

    let endless = fleet.start_job(["web1", "command.run", "yes '0.5 x' >&3", "--job-timeout", "1s"]);
    let web1 = ended(&fleet, &endless)["hosts"]["web1"].clone();
    assert_eq!(web1["state"], "timed_out", "{web1}");
    assert!(web1["duration_ms"].as_u64().is_some_and(|took| took < 5000), "{web1}");
}

#[test]
fn what_a_report_says_steers_no_terminal() {
    let fleet = Fleet::start(1);
    let line = format!("printf '0.5 \\033[2J\\033]0;owned\\007\\rweb2  ok\\302\\233\\377\\n' >&3; {}", gate(&fleet, "hostile"));
    let id = fleet.start_job(["web1", "command.run", &line]);
    let progress = wait_for_progress(&fleet, &id, Value::is_object);
    assert_eq!(progress["message"], "\u{1b}[2J\u{1b}]0;owned\u{7}\rweb2  ok\u{9b}\u{fffd}", "JSON has it as it was said");
    let text = fleet.overlord(["job-status", &id]).expect(75).out();
    assert!(text.chars().all(|letter| letter == '\n' || !letter.is_control()), "{text:?}");
    assert!(text.contains("at 50 %, \"\\x1b[2J") && !text.lines().any(|line| line.starts_with("web2")), "{text}");
    let json = fleet.overlord(["job-status", &id, "--output", "json"]).expect(75).out();
    assert!(json.trim_end().chars().all(|letter| !letter.is_control()), "{json:?}");
    open(&fleet, "hostile");
    let _ = ended(&fleet, &id);
}

/// The job runs to its end, and its result is told; a report is missed, or told later.
#[test]
fn a_full_disk_takes_nothing_but_the_report() {
    let fleet = Fleet::builder().hosts(1).small_disk(48 << 20).minion_toml("[limits]\ndisk_reserve_bytes = 65536\n").start();
    let line =
        format!("{}; echo 0.5 full >&3; {}; echo 0.6 emptied >&3; {}", gate(&fleet, "fill"), gate(&fleet, "full"), gate(&fleet, "end"));
    let id = fleet.start_job(["web1", "command.run", &line]);
    let web1 = fleet.minion("web1");
    let spool = web1.spool(&fleet.minion_job(&id));
    wait_until("it to run", PATIENCE, || host(&fleet, &id, "web1")["state"] == "running");
    web1.fill(0);
    open(&fleet, "fill");
    wait_until("the report to have met the full disk", PATIENCE, || spool.join(".progress.json").exists());
    assert_eq!(host(&fleet, &id, "web1")["state"], "running");
    assert_eq!(host(&fleet, &id, "web1")["progress"], json!(null));
    web1.free();
    let late = wait_for_progress(&fleet, &id, Value::is_object);
    assert_eq!(late["message"], "full", "{late}");
    open(&fleet, "full");
    wait_for_progress(&fleet, &id, |progress| progress["message"] == "emptied");
    open(&fleet, "end");
    assert_eq!(ended(&fleet, &id)["hosts"]["web1"]["state"], "ok");
}

#[test]
fn a_report_that_is_damaged_was_not_made() {
    let fleet = Fleet::start(1);
    let id = fleet.start_job(["web1", "command.run", &format!("echo 0.5 >&3; {}", gate(&fleet, "damage"))]);
    wait_for_progress(&fleet, &id, Value::is_object);
    let spool = fleet.minion("web1").spool(&fleet.minion_job(&id));
    fs::write(spool.join("progress.json"), "{\"fraction\":0.9}").unwrap();
    let status = fleet.job_status(&id);
    assert_eq!((&status["hosts"]["web1"]["state"], &status["hosts"]["web1"]["unreachable"]), (&json!("running"), &json!(null)), "{status}");
    open(&fleet, "damage");
    assert_eq!(ended(&fleet, &id)["hosts"]["web1"]["progress"]["fraction"], json!(0.5));
}

#[test]
fn falsy_results_are_read_again_and_again_as_they_are() {
    let fleet = Fleet::start(1);
    for value in [json!(0), json!(""), json!(false), json!([]), json!(42)] {
        let id = fleet.start_job(["web1", "test.echo", "--json", &json!([value]).to_string()]);
        let _ = ended(&fleet, &id);
        let texts = [(); 3].map(|()| {
            assert_eq!(host(&fleet, &id, "web1")["result"], value, "as JSON");
            let text = fleet.overlord(["job-status", &id]).ok().out();
            assert_eq!(text.lines().count(), 4 - usize::from(value == json!("")), "{text}");
            text
        });
        let shown = if value == json!("") { String::new() } else { format!("  {value}\n") };
        assert!(texts[0].contains("web1  ok (from ") && texts[0].ends_with(&format!(")\n{shown}")), "{}", texts[0]);
        assert!(texts.iter().all(|text| *text == texts[0]), "{texts:?}");
    }
}

#[test]
fn nobody_reads_anothers_progress_or_result() {
    let fleet = Fleet::start(1);
    let acl = "[[allow]]\ncaller = \"admin\"\nmethods = [\"*\"]\n[[allow]]\ncaller = \"bob\"\nmethods = [\"test.*\"]\n";
    fleet.minion("web1").set_acl(acl);
    let bob = fleet.raw("web1", Some(&fleet.issue("fleet:overlord/bob")));
    let id = fleet.start_job(["web1", "command.run", &format!("echo '0.5 secret' >&3; {}; echo secret", gate(&fleet, "secret"))]);
    wait_for_progress(&fleet, &id, Value::is_object);
    let minion_job_id = fleet.minion_job(&id);
    let ask = || bob.call(&envelope("bob", "web1", "jobs.status", json!([minion_job_id]))).unwrap();
    let running = ask();
    open(&fleet, "secret");
    let _ = ended(&fleet, &id);
    for answer in [running, ask()] {
        assert_eq!(answer["error"]["code"], -32006, "{answer}");
        assert!(!answer.to_string().contains("secret"), "{answer}");
    }
    // His own he reads.
    let call = envelope("bob", "web1", "async.test.progress", json!({ "reports": [[0.5, "own"]] }));
    let own = bob.call(&Envelope { limit_ms: None, ..call }).unwrap()["result"]["minion_job_id"].clone();
    let report = wait_for("his own", PATIENCE, || {
        let report = bob.call(&envelope("bob", "web1", "jobs.status", json!([own]))).unwrap()["result"]["result"].clone();
        (report["state"] == "ok").then_some(report)
    });
    assert_eq!(report["progress"]["message"], "own", "{report}");
}

#[test]
fn a_silent_task_is_stopped_at_its_limit_to_the_second_and_one_that_exits_has_failed_at_once() {
    let fleet = Fleet::start(1);
    let silent = fleet.start_job(["web1", "command.run", "sleep 5", "--job-timeout", "3s"]);
    let begun = Instant::now();
    let exits = fleet.start_job(["web1", "command.run", "exit 3", "--job-timeout", "1h"]);
    let web1 = ended(&fleet, &exits)["hosts"]["web1"].clone();
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    assert_eq!((&web1["state"], &web1["error"]["data"]["rc"]), (&json!("failed"), &json!(3)), "{web1}");

    let minion_job_id = fleet.minion_job(&silent);
    let web1 = ended(&fleet, &silent)["hosts"]["web1"].clone();
    assert_eq!(web1["state"], "timed_out", "{web1}");
    let time = |name: &str| web1[name].as_str().unwrap().parse::<Timestamp>().unwrap();
    let took = time("finished_at").duration_since(time("started_at")).as_millis();
    assert!((3000..3900).contains(&took), "{took} ms");
    wait_until("its processes to be gone", PATIENCE, || {
        fleet.minion("web1").job_daemon(&minion_job_id).is_none() && fleet.running("sleep 5").is_empty()
    });
}
