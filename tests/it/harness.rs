//! The harness itself: what it says of processes is true, and what it started is gone in the end.

use std::process::Command;
use std::time::Duration;

use fleet::{Fleet, Minion, PATIENCE, wait_for, wait_until};

#[test]
fn dropping_a_fleet_kills_its_jobs_and_deletes_its_files() {
    let fleet = Fleet::start(2);
    let _ = fleet.start_job(["*", "test.sleep", "600"]);
    let daemon = |minion: &Minion| minion.spools().first().and_then(|id| minion.job_daemon(id));
    let daemons = fleet.minions().iter().map(|minion| wait_for("a job daemon", PATIENCE, || daemon(minion))).collect::<Vec<_>>();
    let root = fleet.root().to_owned();
    drop(fleet);
    assert!(!root.exists());
    for daemon in daemons {
        let command = std::fs::read_to_string(format!("/proc/{}/cmdline", daemon.pid)).unwrap_or_default();
        assert!(!command.contains(root.to_str().unwrap()), "{daemon:?} lives");
    }
}

#[test]
fn a_minion_that_was_killed_or_paused_can_come_back() {
    let fleet = Fleet::start(1);
    let web1 = fleet.minion("web1");
    web1.kill9();
    wait_until("its spawner to be gone", PATIENCE, || web1.spawner().is_none());
    web1.start();
    web1.pause();
    let paused = fleet.overlord(["*", "test.ping", "--timeout", "1s", "--output", "json"]).expect(4);
    assert_eq!(paused.json()["hosts"]["web1"]["state"], "undelivered", "{}", paused.out());
    web1.resume();
    let _ = fleet.overlord(["*", "test.ping"]).ok();
    web1.stop();
    fleet.assert_no_leaks();
}

#[test]
fn a_process_that_outlives_its_fleet_is_found() {
    let fleet = Fleet::builder().start();
    let mut child = Command::new("sleep").arg("60").env("LEAKED_FROM", fleet.root()).spawn().unwrap();
    let left = fleet.leaks_after(Duration::from_millis(100));
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(left.iter().map(|process| process.command.as_str()).collect::<Vec<_>>(), ["sleep 60"]);
    fleet.assert_no_leaks();
}

#[test]
fn the_wire_can_be_spoken_to_directly() {
    let fleet = Fleet::start(1);
    let envelope = fleet::raw::envelope("admin", "web1", "test.add", serde_json::json!([1, 2]));
    let admin = fleet.raw_overlord("web1");
    let answer = admin.post_json(&admin.signed(1.into(), &envelope)).unwrap();
    assert_eq!(answer["result"]["result"], 3, "{answer}");
    assert!(fleet.raw("web1", None).post(b"{}").is_err());
}

/// Who is cut off learns it at once; who is in a black hole learns nothing; and both come back.
#[test]
fn cables_can_be_cut_and_mended() {
    let fleet = Fleet::builder().hosts(2).networked().overlord_toml("connect_timeout = \"500ms\"\n").start();
    let state = || fleet.overlord(["*", "test.ping", "--output", "json"]).json()["hosts"].clone();
    assert_eq!((&state()["web1"]["state"], &state()["web2"]["state"]), (&"ok".into(), &"ok".into()));
    fleet.cut("web1");
    let cut = state();
    assert_eq!((&cut["web1"]["state"], &cut["web2"]["state"]), (&"undelivered".into(), &"ok".into()), "{cut}");
    assert!(cut["web1"]["error"]["message"].as_str().unwrap().contains("unreachable"), "{cut}");
    fleet.mend("web1");
    assert_eq!(state()["web1"]["state"], "ok");
    fleet.black_hole("web1");
    let gone = state();
    assert!(gone["web1"]["error"]["message"].as_str().unwrap().contains("500"), "it is a wait that ends, no refusal: {gone}");
    fleet.mend("web1");
    assert_eq!(state()["web1"]["state"], "ok");
    fleet.assert_no_leaks();
}

/// How many seconds the clock of what runs on the host is ahead of the machine's.
fn ahead(fleet: &Fleet) -> i64 {
    let run = fleet.overlord(["web1", "command.run", "date +%s", "--output", "json"]).ok().json();
    let date: i64 = run["hosts"]["web1"]["result"]["stdout"].as_str().unwrap().trim().parse().unwrap();
    date - jiff::Timestamp::now().as_second()
}

#[test]
fn time_can_pass_and_clocks_be_set() {
    for wall_alone in [false, true] {
        let described = Fleet::builder().hosts(1);
        let fleet = if wall_alone { described.faked_wall_clock().start() } else { described.faked_time().start() };
        assert!((-2..=2).contains(&ahead(&fleet)));
        if wall_alone {
            fleet.set_hosts_clock_by(-40);
            assert!((-42..=-38).contains(&ahead(&fleet)));
        } else {
            fleet.pass(Duration::from_secs(3600));
            assert!((3598..=3602).contains(&ahead(&fleet)));
        }
        fleet.assert_no_leaks();
    }
}

#[test]
fn a_disk_can_be_filled_and_freed() {
    let fleet = Fleet::builder().hosts(1).small_disk(64 << 20).minion_toml("[limits]\ndisk_reserve_bytes = 0\n").start();
    let web1 = fleet.minion("web1");
    let id = fleet.start_job(["*", "test.add", "1", "2"]);
    let _ = fleet.overlord(["job-status", &id, "--wait"]).ok();
    assert_eq!(web1.spools().len(), 1, "its spools are seen through the enclosure");
    web1.fill(0);
    assert!(std::fs::write(web1.state_dir().join("more"), "more").is_err());
    web1.free();
    std::fs::write(web1.state_dir().join("more"), "more").unwrap();
    fleet.assert_no_leaks();
}

#[test]
fn a_program_can_be_killed_at_any_of_its_steps() {
    let fleet = Fleet::start(1);
    let args = ["*", "test.ping", "--output", "json"];
    let (run, struck) = fleet.overlord_killed_at(fleet::Step { calls: &["connect"], number: 1 }, args);
    assert!(struck && run.status.code().is_none(), "{run:?}");
    let (run, struck) = fleet.overlord_killed_at(fleet::Step { calls: &["connect"], number: 50 }, args);
    assert!(!struck && run.status.success(), "{run:?}");
    let web1 = fleet.minion("web1");
    let point = fleet::Step { calls: &["mkdir", "mkdirat"], number: 1 }.wait_in(web1.spawner().unwrap().pid, fleet::Follow::Children);
    let id = fleet.start_job(["*", "test.ping"]);
    wait_until("the dispatcher to give up", PATIENCE, || fleet.dispatcher(&id).is_none());
    assert!(point.let_go());
    let _ = fleet.overlord(["job-status", &id, "--wait"]);
    assert!(web1.spawner().is_some(), "its child alone was killed");
    fleet.assert_no_leaks();
}
