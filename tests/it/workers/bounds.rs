//! What bounds a worker: limits of the kernel, times at which it is replaced, pauses between starts, and files that run out.

use std::time::{Duration, Instant};

use fleet::flood::{limit_files, open_files, processor_time};
use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::*;

/// Writes down each start, and serves.
fn noting(file: &Path, rest: &str) -> String {
    format!("import os\nwith open({file:?}, 'a') as note: print(os.getpid(), file=note)\n{rest}")
}

fn starts(file: &Path) -> Vec<i32> {
    fs::read_to_string(file).unwrap_or_default().lines().filter_map(|line| line.parse().ok()).collect()
}

#[test]
fn an_instance_that_oversteps_a_limit_is_refused_or_killed_and_its_caller_is_told() {
    let host = Host::start();
    host.pytask("[limits]\nmemory_max_bytes = 268435456\nopen_files_max = 40\n");
    let pid = host.pid("pytask", 1);
    for (payload, kind) in [("x = bytearray(1 << 30)", "MemoryError"), ("x = [open('/dev/null') for _ in range(64)]", "OSError")] {
        let refused = host.run("pytask", payload);
        assert_eq!((&refused["state"], &refused["error"]["data"]["type"]), (&json!("failed"), &json!(kind)), "{refused}");
    }
    assert_eq!((host.run("pytask", "print(1, end='')")["result"].as_str(), host.pid("pytask", 1)), (Some("1"), pid));

    let file = examples().join("pytask.py");
    host.worker("busy", &["python3", "-Bu", file.to_str().unwrap()], "[limits]\ncpu_max_seconds = 1\n[restart]\nleast = \"50ms\"\n");
    let killed = host.run("busy", "while True: pass");
    assert_eq!((&killed["state"], &killed["error"]["data"]["type"]), (&json!("failed"), &json!("worker_died")), "{killed}");
    assert!(killed["error"]["message"].as_str().unwrap().contains("was killed by SIG"), "{killed}");
    assert_eq!(host.run("busy", "print('next', end='')")["result"], "next");
    assert!(host.instance("busy", 1)["problem"].as_str().unwrap().contains("was killed by SIG"));
}

#[test]
fn instances_are_replaced_at_their_time_of_the_day_once() {
    const HOURS: i64 = 5;
    let host = Host { fleet: Fleet::builder().hosts(1).faked_wall_clock().start() };
    let note = host.fleet.root().join("starts");
    let at = (Timestamp::now() + jiff::SignedDuration::from_hours(HOURS)).to_zoned(TimeZone::UTC).strftime("%H:%M").to_string();
    host.python("daily", &noting(&note, ECHO), &format!("restart_at = \"{at}\"\n"));
    assert_eq!(starts(&note).len(), 1);
    for (hours, count) in [(HOURS, 2), (24, 3)] {
        host.fleet.set_hosts_clock_by(hours * 3600);
        wait_until("the next instance", PATIENCE, || starts(&note).len() == count);
    }
    // To set it back replaces nothing, and what is due next is due on the day that it is then. Two answers: it has looked between them.
    host.fleet.set_hosts_clock_by(-(HOURS + 24) * 3600);
    for list in [host.list("daily"), host.list("daily")] {
        assert_eq!((&list["instances"][0]["starts"], &list["instances"][0]["problem"]), (&json!(3), &Value::Null), "{list}");
    }
    host.fleet.set_hosts_clock_by(HOURS * 3600);
    wait_until("the next instance", PATIENCE, || starts(&note).len() == 4);
}

#[test]
fn pauses_grow_from_death_to_death_and_begin_anew_with_one_that_has_returned_a_result() {
    let host = Host::start();
    let well = host.fleet.root().join("well");
    let program = format!(
        "import os\nif os.path.exists({well:?}):\n    worker = Worker()\n    task = worker.task_fetch()\n    \
         worker.task_return(task.id, 'done')\n    worker.flush()\nsys.exit(3)\n"
    );
    let file = host.python_file("frail", &program);
    host.describe("frail", &["python3", file.to_str().unwrap()], "[restart]\nleast = \"20ms\"\nmost = \"160ms\"\n");
    let pauses = || -> Vec<String> {
        let of_line = |line: &str| line.split_once("pause=").map(|(_, rest)| rest.split_whitespace().next().unwrap_or_default().to_owned());
        host.web1().stderr().lines().filter(|line| line.contains("an instance is gone")).filter_map(of_line).collect()
    };
    wait_until("the longest pause, twice", PATIENCE, || pauses().len() >= 5);
    assert_eq!(pauses()[..5], ["20ms", "40ms", "80ms", "160ms", "160ms"]);
    fs::write(&well, "").unwrap();
    wait_until("it to be idle", PATIENCE, || host.list("frail")["idle"] == 1);
    let before = pauses().len();
    fs::remove_file(&well).unwrap();
    assert_eq!(host.run("frail", "x")["result"], "done");
    wait_until("pauses to have grown again", PATIENCE, || pauses().len() >= before + 4);
    assert_eq!(pauses()[before..before + 4], ["20ms", "40ms", "80ms", "160ms"]);
}

#[test]
fn a_daemon_that_has_no_file_left_for_a_caller_costs_no_processor_and_loses_no_task() {
    let host = Host::start();
    host.pytask("");
    let mark = host.fleet.root().join("mark");
    let (gate, line) = host.gate("gate");
    let first = host.spawn("pytask", &line);
    host.wait_until_busy("pytask", 1);
    let daemon = i32::try_from(host.list("pytask")["daemon_pid"].as_i64().unwrap()).unwrap();
    let (begun, before) = (Instant::now(), processor_time(daemon).unwrap());
    limit_files(daemon, open_files(daemon));
    let waiting: Vec<_> = (0..6).map(|number| host.spawn("pytask", &format!("print({number}, end='')"))).collect();
    let complaints = || host.web1().stderr().matches("cannot take a connection").count();
    wait_until("it to say so", PATIENCE, || complaints() > 0);
    let given_up = format!("open({mark:?}, 'w')");
    let given_up = host.fleet.overlord(["web1", "worker.run", "pytask", &given_up, "--timeout", "2s", "--output", "json"]);
    assert_eq!(outcome(&given_up)["state"], "timed_out");
    let (elapsed, used) = (begun.elapsed(), processor_time(daemon).unwrap() - before);
    assert!(elapsed >= Duration::from_secs(2) && used < elapsed / 4, "it took {used:?} of the processor within {elapsed:?}");
    assert_eq!(complaints(), 1, "it is said once");
    // What was under way goes on, and who waits has its turn as soon as there are files.
    fs::write(gate, "").unwrap();
    assert_eq!(outcome(&first.wait())["result"], "through");
    limit_files(daemon, 1024);
    for (number, call) in waiting.into_iter().enumerate() {
        assert_eq!(outcome(&call.wait())["result"], number.to_string());
    }
    assert_eq!(host.instance("pytask", 1)["starts"], 1);
    assert!(!mark.exists(), "its caller had been told that it was stopped, and it was run");
}

#[test]
fn a_spawner_and_a_daemon_that_are_killed_are_there_again_though_nobody_calls() {
    let host = Host { fleet: Fleet::builder().hosts(1).minion_toml("[limits]\nreconcile_every = \"1h\"\n").start() };
    let note = host.fleet.root().join("starts");
    host.python("noting", &noting(&note, ECHO), "");
    let daemon = i32::try_from(host.list("noting")["daemon_pid"].as_i64().unwrap()).unwrap();
    kill9(host.web1().spawner().unwrap().pid);
    kill9(daemon);
    wait_until("another instance", PATIENCE, || starts(&note).len() == 2);
    assert_eq!(host.run("noting", "again")["result"], "again");
}
