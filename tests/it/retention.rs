//! How long jobs are kept by the overlord, what a full store says, and deleting jobs by hand.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use fleet::{Fleet, PATIENCE, Run, Running, binaries, wait_until};
use serde_json::json;

/// The library that gives a program another time, where it is installed (Debian's `faketime`).
fn faketime() -> Option<PathBuf> {
    let folders = fs::read_dir("/usr/lib").into_iter().flatten().flatten().map(|entry| entry.path());
    folders.chain(["/usr/lib64".into()]).map(|folder| folder.join("faketime/libfaketime.so.1")).find(|path| path.exists())
}

/// The overlord, so much later by every clock. All commands on a home have to be run so, as the time since boot is another, too.
fn later(fleet: &Fleet, library: &PathBuf, minutes: u32, args: &[&str]) -> Run {
    at(fleet, library, minutes, false, args)
}

/// The overlord after the clock was set forward, while no time has passed.
fn set_forward(fleet: &Fleet, library: &PathBuf, minutes: u32, args: &[&str]) -> Run {
    at(fleet, library, minutes, true, args)
}

fn at(fleet: &Fleet, library: &PathBuf, minutes: u32, only_the_wall_clock: bool, args: &[&str]) -> Run {
    let mut command = Command::new(&binaries().overlord);
    command.args(args).env("OVERLORD_HOME", fleet.home()).env("FLEET_ROOT", fleet.root());
    command.env("LD_PRELOAD", library).env("FAKETIME", format!("+{minutes}m"));
    if only_the_wall_clock {
        command.env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    }
    Running::start(command).wait()
}

/// Waits for the end of a job, and of its dispatcher.
fn finish(fleet: &Fleet, id: &str) {
    let _ = fleet.overlord(["job-status", id, "--wait"]).ok();
    wait_until("the dispatcher to be gone", PATIENCE, || fleet.dispatcher(id).is_none());
}

fn forget_the_store(fleet: &Fleet) {
    fs::remove_dir_all(fleet.home().join("jobs.sled")).unwrap();
}

fn listed(run: &Run) -> Vec<String> {
    run.json()["jobs"].as_array().unwrap().iter().map(|job| job["job_id"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_job_is_kept_for_an_hour_after_its_end_and_its_age_and_then_given_up() {
    let Some(library) = faketime() else { return };
    let fleet = Fleet::builder().hosts(1).overlord_toml("[retention]\nage = \"2h\"\n").start();
    let id = fleet.start_job(["*", "test.add", "23", "45"]);
    finish(&fleet, &id);
    // When it ended is noticed by the clocks that the rest of the test goes by.
    forget_the_store(&fleet);
    for minutes in [0, 59, 119] {
        let _ = later(&fleet, &library, minutes, &["job-list"]).ok();
        let status = later(&fleet, &library, minutes, &["job-status", &id, "--output", "json"]).ok().json();
        assert_eq!(status["hosts"]["web1"]["result"], 68, "after {minutes} minutes");
    }
    // The list that gives it up still has it.
    assert_eq!(listed(&later(&fleet, &library, 121, &["job-list", "--output", "json"]).ok()), [id.as_str()]);
    let run = later(&fleet, &library, 121, &["job-status", &id]).expect(4);
    assert!(run.out().contains("LOST") && run.err().contains("no job"), "{}{}", run.out(), run.err());
    assert!(listed(&later(&fleet, &library, 121, &["job-list", "--output", "json"]).ok()).is_empty());
    assert!(!fleet.home().join("jobs").join(format!("{id}.log")).exists());
}

#[test]
fn a_clock_that_is_set_gives_up_nothing_early() {
    let Some(library) = faketime() else { return };
    let fleet = Fleet::builder().hosts(1).overlord_toml("[retention]\nage = \"1h\"\ncount = 1\n").start();
    let id = fleet.start_job(["*", "test.add", "23", "45"]);
    finish(&fleet, &id);
    for _ in 0..2 {
        let _ = set_forward(&fleet, &library, 60 * 24 * 400, &["job-list"]).ok();
    }
    assert_eq!(fleet.job_status(&id)["hosts"]["web1"]["result"], 68);
}

#[test]
fn a_job_that_has_not_ended_is_never_given_up_or_deleted() {
    let Some(library) = faketime() else { return };
    let fleet = Fleet::builder().hosts(1).overlord_toml("[retention]\nage = \"1h\"\ncount = 1\n").start();
    let gate = fleet.root().join("gate");
    let id = fleet.start_job(["*", "command.run", &format!("while [ ! -e {} ]; do sleep 0.02; done", gate.display())]);
    let _ = fleet.wait_for_state(&id, "PARTIAL");
    wait_until("the dispatcher to be gone", PATIENCE, || fleet.dispatcher(&id).is_none());
    forget_the_store(&fleet);
    for minutes in [0, 60 * 24] {
        assert_eq!(listed(&later(&fleet, &library, minutes, &["job-list", "--output", "json"]).ok()), [id.as_str()]);
    }
    let refused = fleet.overlord(["job-delete", &id]).expect(75);
    assert!(refused.err().contains("job-cancel") && refused.out().is_empty(), "{}", refused.err());
    fs::write(gate, "").unwrap();
    finish(&fleet, &id);
    let _ = fleet.overlord(["job-delete", &id]).ok();
}

#[test]
fn a_full_store_refuses_new_jobs_until_one_may_go() {
    let Some(library) = faketime() else { return };
    for limit in ["count = 2", "bytes = 1000"] {
        let fleet = Fleet::builder().hosts(1).overlord_toml(&format!("[retention]\n{limit}\n")).start();
        let first = fleet.start_job(["*", "test.add", "23", "45"]);
        finish(&fleet, &first);
        let second = fleet.start_job(["*", "test.add", "1", "1"]);
        finish(&fleet, &second);
        let told = fleet.minion("web1").audit().len();
        let key = format!("retention.{}", limit.split(' ').next().unwrap());
        for _ in 0..2 {
            let refused = fleet.overlord(["*", "test.ping", "--async"]).expect(1);
            let words = [key.as_str(), "overlord.toml", "overlord job-delete", "60 minutes"];
            assert!(words.iter().all(|word| refused.err().contains(word)), "{}", refused.err());
            assert!(refused.out().is_empty());
        }
        assert_eq!(fleet.minion("web1").audit().len(), told, "nothing was sent");
        for id in [&first, &second] {
            assert_eq!(fleet.job_status(id)["state"], "FINISHED", "nothing was given up");
        }
        forget_the_store(&fleet);
        for minutes in [0, 61, 61] {
            let _ = later(&fleet, &library, minutes, &["job-list"]).ok();
        }
        assert_eq!(fleet.job_status(&first)["state"], "LOST", "the oldest has made room");
        let _ = fleet.start_job(["*", "test.ping"]);
    }
}

#[test]
fn a_job_that_nobody_asks_about_gets_its_end_by_those_that_follow() {
    let Some(library) = faketime() else { return };
    let fleet = Fleet::start(1);
    let flag = fleet.root().join("flag");
    let id = fleet.start_job(["*", "command.run", &format!("echo done > {}", flag.display())]);
    wait_until("it to have run", PATIENCE, || fs::read_to_string(&flag).is_ok_and(|text| text == "done\n"));
    wait_until("the dispatcher to be gone", PATIENCE, || fleet.dispatcher(&id).is_none());
    let spools = fleet.minion("web1").spools_dir();
    wait_until("its end", PATIENCE, || fs::read_dir(&spools).unwrap().flatten().any(|spool| spool.path().join("outcome.json").exists()));
    let next = later(&fleet, &library, 11, &["*", "test.ping", "--async"]).ok().out().trim().to_owned();
    wait_until("the dispatcher to be gone", PATIENCE, || fleet.dispatcher(&next).is_none());
    // The list asks no host.
    let list = later(&fleet, &library, 11, &["job-list", "--output", "json"]).ok().json();
    let job = list["jobs"].as_array().unwrap().iter().find(|job| job["job_id"] == *id).unwrap();
    assert_eq!((&job["state"], &job["hosts"]), (&json!("FINISHED"), &json!({ "ok": 1 })), "{list}");
}

#[test]
fn a_deleted_job_is_gone_and_hides_no_other() {
    let fleet = Fleet::start(2);
    let ids: Vec<String> = (0..3).map(|_| fleet.start_job(["*", "test.add", "23", "45"])).collect();
    ids.iter().for_each(|id| finish(&fleet, id));
    fleet.minion("web2").stop();
    let run = fleet.overlord(["job-delete", &ids[0], &ids[1], "--output", "json"]).ok();
    for id in &ids[..2] {
        let deleted = &run.json()["jobs"][id];
        assert_eq!(deleted["deleted"], true, "{deleted}");
        assert_eq!(deleted["hosts"]["web2"]["deleted"], false, "{deleted}");
        assert!(deleted["hosts"]["web2"]["reason"].as_str().unwrap().contains("cannot reach web2"), "{deleted}");
        assert!(deleted["hosts"]["web1"]["deleted"].is_boolean(), "{deleted}");
        assert_eq!(fleet.overlord(["job-status", id, "--output", "json"]).expect(4).json()["state"], "LOST");
    }
    assert!(run.err().contains("web2") && run.err().contains("by its own retention"), "{}", run.err());
    assert_eq!(listed(&fleet.overlord(["job-list", "--output", "json"]).ok()), [ids[2].as_str()]);
    assert_eq!(fleet.job_status(&ids[2])["hosts"]["web2"]["result"], 68);

    let again = fleet.overlord(["job-delete", &ids[0], &ids[2], "--output", "json"]).expect(4);
    assert_eq!(again.json()["jobs"][&ids[0]]["deleted"], false);
    assert_eq!(again.json()["jobs"][&ids[2]]["deleted"], true, "one that is not known keeps no other");
    assert!(again.err().contains("no job"), "{}", again.err());
}

#[test]
fn the_list_has_what_has_not_ended_and_the_newest_of_the_rest() {
    let fleet = Fleet::start(1);
    let gate = fleet.root().join("gate");
    let running = fleet.start_job(["*", "command.run", &format!("while [ ! -e {} ]; do sleep 0.02; done", gate.display())]);
    let _ = fleet.wait_for_state(&running, "PARTIAL");
    let ids: Vec<String> = (0..23).map(|_| fleet.start_job(["*", "test.ping"])).collect();
    ids.iter().for_each(|id| finish(&fleet, id));
    let newest: Vec<&String> = ids.iter().rev().take(20).chain([&running]).collect();
    let short = fleet.overlord(["job-list", "--output", "json"]).ok();
    assert_eq!(listed(&short).iter().collect::<Vec<_>>(), newest);
    assert_eq!(short.json()["more"], 3);
    assert!(short.err().contains("3 older jobs") && short.err().contains("--all"), "{}", short.err());
    let all = fleet.overlord(["job-list", "--all", "--output", "json"]).ok();
    assert_eq!((listed(&all).len(), &all.json()["more"], all.err().as_str()), (24, &json!(0), ""));
    let text = fleet.overlord(["job-list"]).ok();
    assert!(text.out().contains(&running) && !text.out().contains(&ids[0]), "{}", text.out());
    fs::write(gate, "").unwrap();
}
