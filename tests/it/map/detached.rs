//! `overlord map --async`: the map goes on behind its command, whatever becomes of who deals it; no item runs twice, and none is lost that is not said to be.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use fleet::{Fleet, PATIENCE, Run, Running, wait_for, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::{items, lines, marks, message};

fn start(fleet: &Fleet, method: &str, all: impl IntoIterator<Item = Value>, more: &[&str]) -> String {
    let file = items(fleet, all);
    let run = fleet.overlord(["map", "*", method, "--items", &file, "--async"].iter().chain(more)).ok();
    run.out().trim().to_owned()
}

fn status(fleet: &Fleet, job: &str) -> Value {
    fleet.overlord(["job-status", job, "--output", "json"]).json()
}

/// What became of each item, once the map has ended.
fn results(fleet: &Fleet, job: &str) -> Run {
    fleet.overlord(["job-status", job, "--wait", "--timeout", "120s", "--output", "jsonl"])
}

fn kept(fleet: &Fleet, job: &str, kind: &str) -> std::path::PathBuf {
    fleet.home().join("jobs").join(format!("{job}.{kind}"))
}

/// An item that tells in `ran` that it ran, and takes a moment.
fn telling(ran: &Path, item: usize, pause: &str) -> Value {
    json!([format!("echo {item} >> {}; sleep {pause}; echo {item}", ran.display())])
}

/// How often each item ran.
fn runs(ran: &Path) -> BTreeMap<u64, usize> {
    let mut runs = BTreeMap::new();
    for item in std::fs::read_to_string(ran).unwrap_or_default().lines() {
        *runs.entry(item.parse().unwrap()).or_default() += 1;
    }
    runs
}

fn kill_dispatcher(fleet: &Fleet, job: &str) {
    if let Some(dispatcher) = fleet.dispatcher(job) {
        // It may have ended meanwhile.
        let _gone = kill(Pid::from_raw(dispatcher.pid), Signal::SIGKILL);
    }
    // What is being killed has no command line any more, and holds its lock for a moment longer.
    wait_until("the dispatcher to be gone", PATIENCE, || fleet.dispatcher(job).is_none() && status(fleet, job)["state"] != "RUNNING");
}

#[test]
fn an_id_comes_at_once_and_every_result_in_order() {
    let fleet = Fleet::start(3);
    let go = marks(&fleet).join("go");
    let line = |item: usize| json!([format!("until [ -e {} ]; do sleep 0.02; done; echo {item}", go.display())]);
    let job = start(&fleet, "command.run", (0..60).map(line), &[]);
    let status = wait_for("items to be under way", PATIENCE, || {
        Some(status(&fleet, &job)).filter(|status| status["items"]["states"]["running"] == 3)
    });
    assert_eq!(
        (&status["state"], &status["items"]["count"], &status["progress"]["fraction"]),
        (&json!("RUNNING"), &json!(60), &json!(0.0))
    );
    assert_eq!(status["hosts"]["web2"]["items"], json!({ "running": 1 }));
    let run = fleet.overlord(["job-status", &job]).expect(75);
    assert!(run.out().contains("map of command.run on *") && run.out().contains("60 items: 57 pending, 3 running"), "{}", run.out());
    assert!(fleet.overlord(["job-list"]).ok().out().contains("items: 57 pending, 3 running"));
    let _ = fleet.overlord(["job-delete", &job]).expect(75);
    std::fs::write(go, "").unwrap();
    let run = results(&fleet, &job).ok();
    let (lines, summary) = lines(&run, 60);
    assert_eq!((&summary["state"], &summary["items"]["states"]), (&json!("FINISHED"), &json!({ "ok": 60 })));
    assert!(lines.iter().enumerate().all(|(item, line)| line["result"]["stdout"] == format!("{item}\n")), "{}", run.out());
    assert!(!kept(&fleet, &job, "items").exists(), "its items are needed no more");
    assert_eq!(results(&fleet, &job).ok().out(), run.out(), "it is read again and again");
    assert!(fleet.overlord(["job-list"]).ok().out().contains("FINISHED"));
    let _ = fleet.overlord(["job-delete", &job]).ok();
    assert!(!kept(&fleet, &job, "log").exists());
    fleet.assert_no_leaks();
}

/// Chunks are the unit: neither the log nor the time to read it grows by a line for each item.
#[test]
fn many_items_take_few_bytes() {
    let fleet = Fleet::start(2);
    let job = start(&fleet, "test.square", (0..20_000).map(|number| json!(number)), &[]);
    let run = results(&fleet, &job).ok();
    let (lines, _) = lines(&run, 20_000);
    assert!(lines.iter().zip(0_u64..).all(|(line, number)| line["result"] == number * number));
    let log = std::fs::read_to_string(kept(&fleet, &job, "log")).unwrap();
    assert!(log.len() < 20_000 * 60, "{} bytes", log.len());
    assert!(log.lines().filter(|line| !line.is_empty()).count() < 20_000 / 20, "{} lines", log.lines().count());
    assert!(log.lines().next().unwrap().contains("\"format\":2"), "older versions leave it alone");
}

/// Killed again and again, wherever it is: each item ran once at most, and those that did not end are said to be lost.
#[test]
fn a_dispatcher_that_is_killed_runs_nothing_twice_and_loses_nothing_in_silence() {
    let fleet = Fleet::start(2);
    let ran = marks(&fleet).join("ran");
    let job = start(&fleet, "command.run", (0..300).map(|item| telling(&ran, item, "0.01")), &[]);
    for round in 1..=6 {
        wait_until("some to have run", PATIENCE, || runs(&ran).len() >= round * 23 || fleet.dispatcher(&job).is_none());
        kill_dispatcher(&fleet, &job);
        let _ = status(&fleet, &job);
        let _ = fleet.overlord(["job-resume", &job]).ok();
    }
    let run = results(&fleet, &job);
    let (lines, _) = lines(&run, 300);
    let runs = runs(&ran);
    assert!(runs.values().all(|count| *count == 1), "{runs:?}");
    for line in &lines {
        let index = line["index"].as_u64().unwrap();
        match line["state"].as_str().unwrap() {
            "ok" => assert!(runs.contains_key(&index) && line["result"]["stdout"] == format!("{index}\n"), "{line}"),
            "lost" => assert!(message(line).contains("may have run"), "{line}"),
            other => panic!("{other}: {line}"),
        }
    }
    let lost = lines.iter().filter(|line| line["state"] == "lost").count();
    assert!(lost < 150, "{lost} are lost");
}

/// With `--retries`, what was under way when the dispatcher died runs a second time, and not a third.
#[test]
fn what_may_have_run_runs_again_where_that_was_asked_for() {
    let fleet = Fleet::start(1);
    let ran = marks(&fleet).join("ran");
    let go = fleet.root().join("go");
    let line =
        |item: usize| json!([format!("echo {item} >> {}; until [ -e {} ]; do sleep 0.02; done; echo {item}", ran.display(), go.display())]);
    let job = start(&fleet, "command.run", (0..5).map(line), &["--retries", "1"]);
    wait_until("the first to run", PATIENCE, || runs(&ran).len() == 1);
    kill_dispatcher(&fleet, &job);
    let stopped = status(&fleet, &job);
    assert_eq!((&stopped["state"], &stopped["items"]["states"]["running"]), (&json!("PARTIAL"), &json!(1)));
    let run = fleet.overlord(["job-status", &job]).expect(75);
    assert!(run.err().contains(&format!("overlord job-resume {job}")), "{}", run.err());
    let _ = fleet.overlord(["job-resume", &job]).ok();
    wait_until("it to run again", PATIENCE, || runs(&ran).get(&0) == Some(&2));
    kill_dispatcher(&fleet, &job);
    std::fs::write(go, "").unwrap();
    let _ = fleet.overlord(["job-resume", &job]).ok();
    let run = results(&fleet, &job).expect(4);
    let (lines, summary) = lines(&run, 5);
    assert_eq!(summary["items"]["states"], json!({ "ok": 4, "lost": 1 }), "{}", run.out());
    assert_eq!((&lines[0]["state"], runs(&ran)[&0]), (&json!("lost"), 2));
}

#[test]
fn of_two_who_go_on_at_once_one_does() {
    let fleet = Fleet::start(1);
    let ran = marks(&fleet).join("ran");
    let job = start(&fleet, "command.run", (0..40).map(|item| telling(&ran, item, "0.05")), &[]);
    wait_until("some to have run", PATIENCE, || runs(&ran).len() > 2);
    let run = fleet.overlord(["job-resume", &job]).expect(75);
    assert!(run.err().contains("is still being sent"), "{}", run.err());
    kill_dispatcher(&fleet, &job);
    let both = [fleet.overlord_spawn(["job-resume", &job]), fleet.overlord_spawn(["job-resume", &job])].map(|one| one.wait().code());
    assert_eq!(BTreeSet::from(both), BTreeSet::from([0, 75]));
    let run = results(&fleet, &job);
    let (_, summary) = lines(&run, 40);
    assert!(runs(&ran).values().all(|count| *count == 1));
    assert_eq!(summary["state"], "FINISHED");
    assert!(fleet.overlord(["job-resume", &job]).ok().err().contains("nothing to send again"));
}

#[test]
fn a_map_that_is_cancelled_ends_and_its_host_stops() {
    let fleet = Fleet::start(1);
    let line = |item: usize| json!([if item == 3 { "sleep 4327".to_owned() } else { format!("sleep 0.1; echo {item}") }]);
    for is_dispatching in [true, false] {
        let job = start(&fleet, "command.run", (0..50).map(line), &["--timeout", "600s"]);
        wait_until("the fourth to begin", PATIENCE, || !fleet.running("sleep 4327").is_empty());
        if !is_dispatching {
            kill_dispatcher(&fleet, &job);
        }
        let run = fleet.overlord(["job-cancel", &job, "web1"]).expect(64);
        assert!(run.err().contains(&format!("`overlord job-cancel {job}` without a host")), "{}", run.err());
        let run = fleet.overlord(["job-cancel", &job]).ok();
        assert_eq!(run.out(), "3 ok, 46 cancelled, 1 lost\n");
        wait_until("the host to stop it", PATIENCE, || fleet.running("sleep 4327").is_empty());
        let run = results(&fleet, &job).expect(6);
        let (lines, summary) = lines(&run, 50);
        assert_eq!((&summary["state"], &lines[3]["state"]), (&json!("FINISHED"), &json!("lost")), "{}", run.out());
        assert_eq!((&lines[9]["state"], &lines[9]["error"]["data"]["by"]), (&json!("cancelled"), &json!("admin")), "{}", lines[9]);
        assert!(fleet.overlord(["job-cancel", &job]).ok().out().starts_with("had ended before: 3 ok"));
        assert!(fleet.overlord(["job-resume", &job]).ok().err().contains("nothing to send again"));
        assert!(!kept(&fleet, &job, "items").exists());
        let _ = fleet.overlord(["job-delete", &job]).ok();
    }
}

#[test]
fn what_makes_no_sense_for_items_is_refused_with_what_does() {
    let fleet = Fleet::start(1);
    let job = start(&fleet, "test.square", [json!(3), json!("x")], &[]);
    let run = results(&fleet, &job).expect(2);
    assert_eq!(lines(&run, 2).1["items"]["states"], json!({ "ok": 1, "failed": 1 }));
    for (words, said) in [
        (vec!["job-logs", &job], "is a map: what its items gave is in `overlord job-status"),
        (vec!["job-retry", &job, "--failed"], "`overlord map TARGET test.square --items FILE`"),
        (vec![&*format!("@job:{job}"), "test.ping"], "its hosts have no states"),
    ] {
        let run = fleet.overlord(words);
        assert!(run.code() != 0 && run.err().contains(said), "{}", run.err());
    }
}

#[test]
fn items_that_cannot_be_taken_in_start_nothing_and_leave_nothing() {
    let fleet = Fleet::builder().hosts(1).overlord_toml("items_max_bytes = 1000\n").start();
    let left = || std::fs::read_dir(fleet.home().join("jobs")).map_or(0, Iterator::count);
    for (all, target, code, said) in [
        (vec![json!("x".repeat(600)), json!("x".repeat(600))], "*", 64, "more than the 1000 bytes that items_max_bytes"),
        (vec![], "*", 64, "holds no items"),
        (vec![json!(1)], "nobody", 66, "nobody"),
    ] {
        let file = items(&fleet, all);
        let run = fleet.overlord(["map", target, "test.square", "--items", &file, "--async"]).expect(code);
        assert!(run.err().contains(said) && run.out().is_empty(), "{}", run.err());
        assert_eq!(left(), 0);
    }
    let _ = fleet.overlord(["map", "*", "test.square", "--items", "/nonexistent/items", "--async"]).expect(64);
    assert_eq!((left(), fleet.minion("web1").audit().len()), (0, 0));
}

/// Nothing is dealt that cannot be read again as it was; how it stands is told all the same.
#[test]
fn items_that_were_changed_or_are_gone_are_not_dealt() {
    let fleet = Fleet::start(1);
    let ran = marks(&fleet).join("ran");
    let job = start(&fleet, "command.run", (0..100).map(|item| telling(&ran, item, "0.05")), &[]);
    wait_until("some to have run", PATIENCE, || runs(&ran).len() > 2);
    kill_dispatcher(&fleet, &job);
    let path = kept(&fleet, &job, "items");
    let whole = std::fs::read_to_string(&path).unwrap();
    for spoil in [true, false] {
        match spoil {
            true => std::fs::write(&path, whole.replace("echo 50", "echo 51")).unwrap(),
            false => std::fs::remove_file(&path).unwrap(),
        }
        let run = fleet.overlord(["job-resume", &job]).expect(1);
        let error = run.err();
        assert!(error.contains(&format!("{job}.items cannot be used")) && error.contains(&format!("overlord job-cancel {job}")), "{error}");
        assert_eq!(status(&fleet, &job)["state"], "PARTIAL");
    }
    std::fs::write(&path, whole).unwrap();
    let _ = fleet.overlord(["job-resume", &job]).ok();
    let _ = results(&fleet, &job);
    assert!(runs(&ran).len() >= 98 && runs(&ran).values().all(|count| *count == 1));
}

/// A home that is copied while nobody deals goes on where it was copied to.
#[test]
fn a_home_that_was_copied_goes_on() {
    let fleet = Fleet::start(1);
    let ran = marks(&fleet).join("ran");
    let job = start(&fleet, "command.run", (0..60).map(|item| telling(&ran, item, "0.02")), &[]);
    wait_until("some to have run", PATIENCE, || runs(&ran).len() > 5);
    kill_dispatcher(&fleet, &job);
    let copy = fleet.root().join("copy");
    let copied = std::process::Command::new("cp").arg("-a").arg(fleet.home()).arg(&copy).status().unwrap();
    assert!(copied.success());
    let home = copy.to_str().unwrap();
    let _ = fleet.overlord(["--home", home, "job-resume", &job]).ok();
    let run = fleet.overlord(["--home", home, "job-status", &job, "--wait", "--timeout", "120s", "--output", "jsonl"]);
    let (lines, _) = lines(&run, 60);
    assert!(lines.iter().all(|line| line["state"] == "ok" || line["state"] == "lost"), "{}", run.out());
    assert!(runs(&ran).values().all(|count| *count == 1));
}

/// Where what is about to be sent cannot be written down it is not sent, and with room again it goes on. The full disk is a small one of its own, seen by the
/// commands alone; where no such can be made, there is nothing to test.
#[test]
fn a_full_disk_stops_the_dealing_and_runs_nothing_twice() {
    let fleet = Fleet::start(1);
    if !Command::new("unshare").args(["-m", "true"]).output().is_ok_and(|run| run.status.success()) {
        return;
    }
    let ran = marks(&fleet).join("ran");
    let file = items(&fleet, (0..120).map(|item| telling(&ran, item, "0.06")));
    let (home, overlord) = (fleet.home().display().to_string(), fleet::binaries().overlord.display().to_string());
    // The items take some 12 KiB, and the first lines of the log, so that room for few more is left.
    let script = format!(
        "set -e; mkdir {home}/full; mount -t tmpfs -o size=1m tmpfs {home}/full; cp -r {home}/certs {home}/hosts.toml {home}/full/; \
         export OVERLORD_HOME={home}/full; id=$({overlord} map '*' command.run --items {file} --async); \
         cat /dev/zero > {home}/full/ballast 2>/dev/null || true; \
         until {overlord} job-status $id | grep -q PARTIAL; do sleep 0.1; done; cp {ran} {ran}.before; rm {home}/full/ballast; \
         {overlord} job-resume $id >&2; {overlord} job-status $id --wait --timeout 60s --output jsonl || true",
        ran = ran.display()
    );
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", &script]);
    let run = Running::start(command).wait().ok();
    let (lines, _) = lines(&run, 120);
    let before = std::fs::read_to_string(ran.with_extension("before")).unwrap().lines().count();
    assert!(before < 110, "{before} ran before the disk was full");
    assert!(runs(&ran).values().all(|count| *count == 1), "{:?}", runs(&ran));
    assert!(lines.iter().all(|line| line["state"] == "ok" || line["state"] == "lost"), "{}", run.out());
}
