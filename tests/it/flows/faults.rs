//! Flows against kills: of who runs them, of hosts, and of what hosts say.

use std::collections::BTreeMap;
use std::fs;

use fleet::{Fleet, PATIENCE, wait_until};
use serde_json::{Value, json};

use super::{file, mark, ran, ran_file, run, states, status, wait_for_state};

/// A task that leaves its name, and then waits for a file.
fn held(fleet: &Fleet, name: &str, more: &str) -> String {
    let (ran, gate) = (ran_file(fleet), fleet.root().join("gate").display().to_string());
    format!(
        "[[step]]\nname = \"{name}\"\ntarget = \"web1\"\ncall = \"command.run\"\n\
         args = {{ line = \"echo {name} >> {ran}; until [ -e {gate} ]; do sleep 0.02; done; echo {name}-end >> {ran}\" }}\n{more}\n"
    )
}

fn open_gate(fleet: &Fleet) {
    fs::write(fleet.root().join("gate"), "").unwrap();
}

fn wait_for_line(fleet: &Fleet, line: &str) {
    wait_until("a task to have run", PATIENCE, || ran(fleet).iter().any(|ran| ran == line));
}

/// Starts a flow behind, and gives its id.
fn begin(fleet: &Fleet, text: &str) -> String {
    let file = file(fleet, text);
    fleet.overlord(["flow", "run", &file, "--async"]).ok().out().trim().to_owned()
}

#[test]
fn a_flow_that_is_suspended_and_killed_goes_on_with_what_is_left() {
    let fleet = Fleet::start(1);
    let text = [mark(&fleet, "one", "web1", ""), held(&fleet, "two", ""), mark(&fleet, "three", "web1", "")].concat();
    let id = begin(&fleet, &text);
    wait_for_line(&fleet, "two");
    assert_eq!(status(&fleet, &id)["state"], "RUNNING");
    drop(fleet.overlord(["flow", "suspend", &id]).ok());
    open_gate(&fleet);
    let document = wait_for_state(&fleet, &id, "SUSPENDED");
    assert_eq!(states(&document), [("one", "SUCCESS"), ("two", "SUCCESS"), ("three", "PENDING")]);
    // On another machine: the home alone comes along.
    let elsewhere = fleet.root().join("elsewhere");
    copy(&fleet.home(), &elsewhere);
    let elsewhere = elsewhere.to_str().unwrap();
    let document = fleet.overlord(["--home", elsewhere, "flow", "resume", &id, "--output", "json"]).ok().json();
    assert_eq!(document["state"], "SUCCESS");
    assert_eq!(ran(&fleet), ["one web1", "two", "two-end", "three web1"]);
    let run = fleet.overlord(["--home", elsewhere, "flow", "resume", &id]).expect(64);
    assert!(run.err().contains("has ended: it is SUCCESS"), "{}", run.err());
    fleet.assert_no_leaks();
}

fn copy(from: &std::path::Path, to: &std::path::Path) {
    let done = std::process::Command::new("cp").arg("-a").args([from, to]).status().unwrap();
    assert!(done.success());
}

#[test]
fn who_runs_a_flow_is_killed_in_the_middle_of_a_step_that_is_then_not_repeated() {
    let fleet = Fleet::start(1);
    let text = [mark(&fleet, "one", "web1", ""), held(&fleet, "two", ""), mark(&fleet, "three", "web1", "")].concat();
    let file = file(&fleet, &text);
    let running = fleet.overlord_spawn(["flow", "run", &file]);
    wait_for_line(&fleet, "two");
    running.kill9();
    let id = fleet.overlord(["flow", "list", "--output", "json"]).ok().json()[0]["flow_id"].as_str().unwrap().to_owned();
    let shown = fleet.overlord(["flow", "status", &id]).expect(75).out();
    assert!(shown.contains("RUNNING") && shown.contains(&format!("overlord flow resume {id}")), "{shown}");
    let resumed = fleet.overlord_spawn(["flow", "resume", &id, "--output", "json"]);
    wait_until("somebody to work on it", PATIENCE, || status(&fleet, &id)["at_work"] == true);
    let second = fleet.overlord(["flow", "resume", &id]).expect(75);
    assert!(second.err().contains("is at work already"), "{}", second.err());
    open_gate(&fleet);
    assert_eq!(resumed.wait().ok().json()["state"], "SUCCESS");
    assert_eq!(ran(&fleet), ["one web1", "two", "two-end", "three web1"]);
}

/// Killed again and again at moments that nobody chose, a flow of many steps runs each once, on each host.
#[test]
fn kills_at_any_moment_repeat_nothing_and_lose_nothing() {
    let fleet = Fleet::start(2);
    let steps = 24;
    let text: String = (0..steps).map(|step| mark(&fleet, &format!("s{step}"), "web*", "")).collect();
    let file = file(&fleet, &text);
    let mut running = fleet.overlord_spawn(["flow", "run", &file]);
    let mut id = None;
    for round in 1_usize.. {
        // So that each time some of it gets done: the kill hits wherever it is by then.
        let done = ran(&fleet).len();
        wait_until("something to have run, or the end", PATIENCE, || ran(&fleet).len() > done + round % 5 || !running.is_running());
        if running.is_running() {
            running.kill9();
        }
        drop(running.wait());
        let id = id.get_or_insert_with(|| {
            fleet.overlord(["flow", "list", "--output", "json"]).ok().json()[0]["flow_id"].as_str().unwrap().to_owned()
        });
        if status(&fleet, id)["state"] == "SUCCESS" {
            assert!(round > 3, "it was killed too seldom: {round}");
            break;
        }
        running = fleet.overlord_spawn(["flow", "resume", id]);
    }
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for line in ran(&fleet) {
        *counts.entry(line).or_default() += 1;
    }
    assert!(counts.values().all(|count| *count == 1), "{counts:?}");
    assert_eq!(counts.len(), 2 * steps);
    fleet.assert_no_leaks();
}

#[test]
fn a_flow_that_is_cancelled_stops_what_runs_and_undoes_what_is_done() {
    let fleet = Fleet::start(1);
    let undo =
        format!("undo = {{ call = \"command.run\", args = {{ line = \"echo undo-two >> {}\" }}, also_failed = true }}", ran_file(&fleet));
    let text = [mark(&fleet, "one", "web1", ""), held(&fleet, "two", &undo), mark(&fleet, "three", "web1", "")].concat();
    let id = begin(&fleet, &text);
    wait_for_line(&fleet, "two");
    drop(fleet.overlord(["flow", "cancel", &id]).ok());
    let document = wait_for_state(&fleet, &id, "REVERTED");
    assert_eq!(states(&document), [("one", "REVERTED"), ("two", "REVERTED"), ("three", "PENDING")]);
    assert_eq!(document["cause"]["state"], "cancelled");
    assert_eq!(ran(&fleet), ["one web1", "two", "undo-two", "undo-one web1"]);
    let watched = fleet.overlord(["flow", "status", &id, "--watch"]).expect(2).out();
    assert!(watched.contains("REVERTED"), "{watched}");
    fleet.assert_no_leaks();
}

/// `web1` dies with a task; who asked for that learns it within the time that the task gives it.
#[test]
fn a_host_that_dies_with_a_task_never_hangs_a_flow() {
    for (policy, code, state) in [("fail", 4, "REVERTED"), ("again", 0, "SUCCESS")] {
        let fleet = Fleet::start(2);
        let line = format!("echo $MINION_NAME >> {}; test $MINION_NAME = web2 || sleep 60", ran_file(&fleet));
        let task = format!(
            "[[step]]\nname = \"a\"\ntarget = \"web[1-2]\"\nhosts = \"any\"\ncall = \"command.run\"\nargs = {{ line = \"{line}\" }}\n\
             lost = \"{policy}\"\nlost_after = \"1s\"\n"
        );
        let file = file(&fleet, &task);
        let running = fleet.overlord_spawn(["flow", "run", &file, "--output", "json"]);
        wait_until("the task to run", PATIENCE, || !ran(&fleet).is_empty());
        assert_eq!(ran(&fleet), ["web1"], "the first in turn");
        fleet.minion("web1").kill9();
        let document = running.wait().expect(code).json();
        assert_eq!(document["state"], state, "{document}");
        let expected: &[&str] = if policy == "again" { &["web1", "web2"] } else { &["web1"] };
        assert_eq!(ran(&fleet), expected);
        if policy == "fail" {
            assert_eq!(document["cause"]["state"], "lost");
            assert!(document["cause"]["error"]["message"].as_str().unwrap().contains("it may have run"), "{document}");
        }
    }
}

/// A call ends with who runs the flow: that it may have run is said, or it runs again where that is allowed; what is a job is never repeated.
#[test]
fn a_call_that_was_under_way_when_its_flow_was_killed_is_lost_or_runs_again() {
    for (policy, code, state) in [("fail", 4, "REVERTED"), ("again", 0, "SUCCESS")] {
        let fleet = Fleet::start(1);
        let text = mark(&fleet, "one", "web1", "") + &held(&fleet, "two", &format!("run = \"call\"\nlost = \"{policy}\""));
        let file = file(&fleet, &text);
        let running = fleet.overlord_spawn(["flow", "run", &file]);
        wait_for_line(&fleet, "two");
        running.kill9();
        drop(running.wait());
        open_gate(&fleet);
        let id = fleet.overlord(["flow", "list", "--output", "json"]).ok().json()[0]["flow_id"].as_str().unwrap().to_owned();
        let document = fleet.overlord(["flow", "resume", &id, "--output", "json"]).expect(code).json();
        assert_eq!(document["state"], state, "{document}");
        let begun = ran(&fleet).iter().filter(|line| *line == "two").count();
        if policy == "fail" {
            assert_eq!((&document["cause"]["state"], begun), (&json!("lost"), 1));
            assert!(document["cause"]["error"]["message"].as_str().unwrap().contains("who ran the flow died"), "{document}");
        } else {
            assert_eq!(begun, 2);
        }
    }
}

/// Calls that travel together have each an end of their own, and a bad one costs the others nothing.
#[test]
fn calls_of_one_method_that_travel_together_keep_apart() {
    let fleet = Fleet::start(2);
    let items: Vec<String> = (0..300).map(|item| if item == 117 { "\"x\"".to_owned() } else { item.to_string() }).collect();
    let text = format!(
        "[[step]]\nname = \"a\"\ntarget = \"*\"\nhosts = \"any\"\ncall = \"test.square\"\nargs = [\"${{item}}\"]\nfor_each = [{}]\nrun = \"call\"\n\
         max_fail = 1\nprovides = \"squares\"\n",
        items.join(", ")
    );
    let document = run(&fleet, &text).ok().json();
    let squares = document["values"]["squares"].as_array().unwrap();
    assert!(squares.iter().enumerate().all(|(item, square)| if item == 117 {
        square.is_null()
    } else {
        square.as_u64() == Some((item * item) as u64)
    }));
    let bad = &document["tasks"][0]["runs"][117];
    assert_eq!((&bad["item"], &bad["state"], &bad["error"]["code"]), (&json!("x"), &json!("failed"), &json!(-32602)), "{bad}");
    let together = fleet.minions().iter().flat_map(|minion| minion.audit()).filter(|line| line["method"] == "map.test.square").count();
    assert!((1..150).contains(&together), "{together}");
}

/// Neither what is sent nor what comes back need fit into one body.
#[test]
fn large_calls_travel_in_as_many_bodies_as_they_need() {
    let fleet = Fleet::start(1);
    let text = "[[step]]\nname = \"make\"\ntarget = \"web1\"\nhosts = \"any\"\ncall = \"command.run\"\n\
                args = { line = \"head -c 200000 /dev/zero | tr '\\\\0' x\" }\nprovides = { text = \"stdout\" }\n\
                [[step]]\nname = \"echo\"\ntarget = \"web1\"\nhosts = \"any\"\ncall = \"test.echo\"\nargs = [\"${text}${item}\"]\nrun = \"call\"\nprovides = \"all\"\n";
    let items: Vec<String> = (0..60).map(|item| item.to_string()).collect();
    let document = run(&fleet, &format!("{text}for_each = [{}]\n", items.join(", "))).ok().json();
    let all = document["values"]["all"].as_array().unwrap();
    assert!(
        all.iter()
            .enumerate()
            .all(|(at, text)| text.as_str().is_some_and(|text| text.len() > 200_000 && text.ends_with(&format!("x{at}"))))
    );
    let sent = document["tasks"][1]["runs"].as_array().unwrap().iter().map(|run| run["tries"].as_u64().unwrap()).max();
    assert!(sent < Some(10), "{sent:?} times");
}

/// A minion that is killed and started again in the middle of a task has the task all the same.
#[test]
fn a_minion_that_comes_back_tells_what_became_of_its_task() {
    let fleet = Fleet::start(1);
    let text = [held(&fleet, "one", ""), mark(&fleet, "two", "web1", "")].concat();
    let file = file(&fleet, &text);
    let running = fleet.overlord_spawn(["flow", "run", &file, "--output", "json"]);
    wait_for_line(&fleet, "one");
    fleet.minion("web1").kill9();
    open_gate(&fleet);
    wait_for_line(&fleet, "one-end");
    fleet.minion("web1").start();
    assert_eq!(running.wait().ok().json()["state"], "SUCCESS");
    assert_eq!(ran(&fleet), ["one", "one-end", "two web1"]);
}

#[test]
fn no_capable_host_is_an_error_at_the_time_limit_and_nothing_is_undone_that_never_ran() {
    let fleet = Fleet::start(2);
    let undo =
        format!("undo = {{ call = \"command.run\", args = {{ line = \"echo undone >> {}\" }}, also_failed = true }}", ran_file(&fleet));
    let text = format!(
        "{}[[step]]\nname = \"a\"\ntarget = \"*\"\nhosts = \"any\"\ncall = \"worker.run\"\nargs = [\"nobody\", \"x\"]\ntimeout = \"1s\"\n{undo}\n",
        mark(&fleet, "first", "web1", "")
    );
    let document = run(&fleet, &text).expect(4).json();
    assert_eq!(document["state"], "REVERTED");
    assert_eq!(states(&document), [("first", "REVERTED"), ("a", "FAILURE")]);
    assert_eq!(document["cause"]["state"], "undelivered");
    let took = document["duration_ms"].as_u64().unwrap();
    assert!((1000..6000).contains(&took), "{took}");
    assert_eq!(ran(&fleet), ["first web1", "undo-first web1"]);
    let asked = |method: &str| fleet.minions().iter().flat_map(|minion| minion.audit()).filter(|line| line["method"] == method).count();
    assert_eq!((asked("async.worker.run"), asked("worker.list") > 0), (0, true), "it goes to none that has no such worker");
}

#[test]
fn a_host_that_is_down_is_passed_over_for_one_that_is_there() {
    let fleet = Fleet::start(2);
    fleet.minion("web1").kill9();
    let text = "[[step]]\nname = \"a\"\ntarget = \"*\"\nhosts = \"any\"\ncall = \"test.echo\"\nargs = [\"${item}\"]\nfor_each = [1, 2, 3, 4, 5, 6]\nprovides = \"all\"\n";
    let document = run(&fleet, text).ok().json();
    assert_eq!(document["values"]["all"], json!([1, 2, 3, 4, 5, 6]));
    assert!(document["tasks"][0]["runs"].as_array().unwrap().iter().all(|run| run["host"] == "web2"), "{document}");
}

#[test]
fn a_damaged_log_is_refused_and_the_place_named() {
    let fleet = Fleet::start(1);
    let document = run(&fleet, &mark(&fleet, "one", "web1", "")).ok().json();
    let id = document["flow_id"].as_str().unwrap();
    let log = fleet.home().join(format!("flows/{id}.log"));
    let text = fs::read_to_string(&log).unwrap();
    assert!(text.lines().filter(|line| !line.is_empty()).all(|line| serde_json::from_str::<Value>(line).is_ok()));
    fs::write(&log, text.replace("\"SUCCESS\"", "\"FAILURE\"")).unwrap();
    let run = fleet.overlord(["flow", "status", id]).expect(4);
    assert!(run.err().contains("is damaged at byte"), "{}", run.err());
    let whole = text.trim_end();
    fs::write(&log, whole.get(..whole.len() - 9).unwrap()).unwrap();
    assert_eq!(status(&fleet, id)["state"], "RUNNING", "a line that was cut off was not acted upon");
    assert_eq!(fleet.overlord(["flow", "resume", id, "--output", "json"]).ok().json()["state"], "SUCCESS");
    assert_eq!(ran(&fleet), ["one web1"]);
}

/// One flipped bit anywhere in what was done makes the log one that is not gone by: what was done would be done again.
#[test]
fn a_log_of_which_a_line_is_lost_is_refused_wherever_it_is_damaged() {
    let fleet = Fleet::start(1);
    let text = [mark(&fleet, "one", "web1", ""), held(&fleet, "two", "")].concat();
    let file = file(&fleet, &text);
    let running = fleet.overlord_spawn(["flow", "run", &file]);
    wait_for_line(&fleet, "two");
    running.kill9();
    drop(running.wait());
    let id = fleet.overlord(["flow", "list", "--output", "json"]).ok().json()[0]["flow_id"].as_str().unwrap().to_owned();
    let log = fleet.home().join(format!("flows/{id}.log"));
    let whole = fs::read(&log).unwrap();
    let mut begin = 0;
    for line in whole.split_inclusive(|byte| *byte == b'\n') {
        let end = begin + line.len();
        for at in [begin, begin + 4, end.saturating_sub(2)].into_iter().filter(|_| line.len() > 1) {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            fs::write(&log, damaged).unwrap();
            let run = fleet.overlord(["flow", "resume", &id]).expect(4);
            assert!(run.err().contains("is damaged at byte"), "{at}: {}", run.err());
        }
        begin = end;
    }
    fs::write(&log, whole).unwrap();
    open_gate(&fleet);
    assert_eq!(fleet.overlord(["flow", "resume", &id, "--output", "json"]).ok().json()["state"], "SUCCESS");
    assert_eq!(ran(&fleet), ["one web1", "two", "two-end"]);
}

/// Every host on which it ran, or may have, has it undone there, and with the value that it had there.
#[test]
fn a_task_is_undone_on_each_host_where_it_ran_with_what_it_had_there() {
    let fleet = Fleet::start(2);
    let undo = format!(
        "undo = {{ call = \"command.run\", args = {{ line = \"echo undo $MINION_NAME ${{m}} >> {}\" }}, also_failed = true }}",
        ran_file(&fleet)
    );
    let any = format!(
        "[[step]]\nname = \"a\"\ntarget = \"web*\"\nhosts = \"any\"\ncall = \"command.run\"\nargs = {{ line = \"exit 1\" }}\n\
         retry = {{ for_each = [\"A\", \"B\"], as = \"m\" }}\n{undo}\n"
    );
    let document = run(&fleet, &any).expect(2).json();
    assert_eq!(document["state"], "REVERTED");
    let mut undone = ran(&fleet);
    undone.sort();
    assert!(undone == ["undo web1 A", "undo web2 B"] || undone == ["undo web1 B", "undo web2 A"], "{undone:?}");

    fs::remove_file(ran_file(&fleet)).unwrap();
    let each = format!(
        "[[step]]\nname = \"a\"\ntarget = \"web*\"\ncall = \"command.run\"\nargs = {{ line = \"test $MINION_NAME = web1 || test ${{m}} = B\" }}\n\
         retry = {{ for_each = [\"A\", \"B\"], as = \"m\" }}\n{undo}\n[[step]]\nname = \"b\"\ntarget = \"web1\"\ncall = \"test.explode\"\nargs = [\"x\"]\n"
    );
    assert_eq!(run(&fleet, &each).expect(2).json()["state"], "REVERTED");
    let mut undone = ran(&fleet);
    undone.sort();
    assert_eq!(undone, ["undo web1 A", "undo web2 B"]);
}

/// A task that was lost may still run when its host is back: it is stopped first, and then undone; never beside it.
#[test]
fn what_was_lost_and_still_runs_is_stopped_before_it_is_undone() {
    let fleet = Fleet::start(1);
    let undo =
        format!("undo = {{ call = \"command.run\", args = {{ line = \"echo undo-one >> {}\" }}, timeout = \"60s\" }}", ran_file(&fleet));
    let file = file(&fleet, &held(&fleet, "one", &format!("lost_after = \"1s\"\n{undo}")));
    let running = fleet.overlord_spawn(["flow", "run", &file, "--output", "json"]);
    wait_for_line(&fleet, "one");
    let web1 = fleet.minion("web1");
    web1.kill9();
    let id = fleet.overlord(["flow", "list", "--output", "json"]).ok().json()[0]["flow_id"].as_str().unwrap().to_owned();
    wait_until("the task to be undone", PATIENCE, || status(&fleet, &id)["tasks"][0]["state"] == "REVERTING");
    web1.start();
    let document = running.wait().expect(4).json();
    assert_eq!(document["state"], "REVERTED", "{document}");
    let lost = document["tasks"][0]["runs"][0]["minion_job_id"].as_str().unwrap();
    let told = fleet.overlord(["web1", "jobs.status", lost, "--output", "json"]).ok().json();
    assert_eq!(told["hosts"]["web1"]["result"]["state"], "cancelled", "it was stopped, and did not come to its end: {told}");
    assert_eq!(ran(&fleet), ["one", "undo-one"]);
    fleet.assert_no_leaks();
}

#[test]
fn a_host_that_is_being_started_again_is_waited_for_to_undo_what_it_did() {
    let fleet = Fleet::start(2);
    let text = mark(&fleet, "one", "web1", "")
        + &held(&fleet, "two", "").replace("web1", "web2").replace("undo-", "")
        + "[[step]]\nname = \"three\"\ntarget = \"web2\"\ncall = \"test.explode\"\nargs = [\"x\"]\n";
    let file = file(&fleet, &text);
    let running = fleet.overlord_spawn(["flow", "run", &file, "--output", "json"]);
    wait_for_line(&fleet, "two");
    fleet.minion("web1").kill9();
    open_gate(&fleet);
    let id = fleet.overlord(["flow", "list", "--output", "json"]).ok().json()[0]["flow_id"].as_str().unwrap().to_owned();
    wait_until("it to be tried", PATIENCE, || status(&fleet, &id)["tasks"][0]["runs"][0]["undo"]["state"] == "undelivered");
    fleet.minion("web1").start();
    assert_eq!(running.wait().expect(2).json()["state"], "REVERTED");
    assert_eq!(ran(&fleet), ["one web1", "two", "two-end", "undo-one web1"]);
}

#[test]
fn a_cancelled_flow_runs_what_runs_in_the_end_though_it_was_to_be_suspended() {
    let fleet = Fleet::start(1);
    let tell = format!(
        "[[finally]]\nname = \"tell\"\ntarget = \"web1\"\ncall = \"command.run\"\nargs = {{ line = \"sleep 0.3; echo ${{flow.state}} >> {}\" }}\n",
        ran_file(&fleet)
    );
    let text = [mark(&fleet, "one", "web1", ""), held(&fleet, "two", ""), tell].concat();
    let id = begin(&fleet, &text);
    wait_for_line(&fleet, "two");
    let _to_be_suspended = fleet.overlord(["flow", "suspend", &id]).ok();
    let _told = fleet.overlord(["flow", "cancel", &id]).ok();
    let document = wait_for_state(&fleet, &id, "REVERTED");
    assert_eq!(states(&document), [("one", "REVERTED"), ("two", "FAILURE"), ("tell", "SUCCESS")]);
    assert_eq!(ran(&fleet), ["one web1", "two", "undo-one web1", "REVERTED"]);
}

/// Nothing is under way then but what runs in the end, and that is not what was to be stopped.
#[test]
fn a_flow_that_is_cancelled_while_it_pauses_runs_what_runs_in_the_end() {
    let fleet = Fleet::start(1);
    let pauses = "[[step]]\nname = \"pauses\"\ntarget = \"web1\"\ncall = \"test.explode\"\nargs = [\"x\"]\nretry = { times = 2, pause = \"1h\", most = \"1h\" }\n";
    let tell = mark(&fleet, "tell", "web1", "").replace("[[step]]", "[[finally]]").replace("line = \"", "line = \"sleep 0.5; ");
    let tell: String = tell.lines().filter(|line| !line.starts_with("undo")).map(|line| line.to_owned() + "\n").collect();
    let id = begin(&fleet, &(pauses.to_owned() + &tell));
    wait_until("it to pause", PATIENCE, || status(&fleet, &id)["tasks"][0]["again_at"].is_string());
    let _told = fleet.overlord(["flow", "cancel", &id]).ok();
    let document = wait_for_state(&fleet, &id, "REVERTED");
    assert_eq!(states(&document), [("pauses", "FAILURE"), ("tell", "SUCCESS")]);
    assert_eq!(ran(&fleet), ["tell web1"]);
}

/// Whatever a host says of a job that should long have ended, the flow goes on.
#[test]
fn a_job_that_its_host_calls_running_for_ever_is_lost_in_the_end() {
    let fleet = Fleet::start(1);
    // Long enough to be stopped before it is over.
    let text = held(&fleet, "one", "timeout = \"6s\"\nlost_after = \"1s\"");
    let file = file(&fleet, &text);
    let running = fleet.overlord_spawn(["flow", "run", &file, "--output", "json"]);
    wait_for_line(&fleet, "one");
    let minion = fleet.minion("web1");
    let daemon = fleet::wait_for("the job's daemon", PATIENCE, || minion.job_daemon(&minion.spools()[0]));
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(daemon.pid), nix::sys::signal::Signal::SIGSTOP).unwrap();
    let document = running.wait().expect(4).json();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(daemon.pid), nix::sys::signal::Signal::SIGCONT).unwrap();
    assert_eq!((&document["state"], &document["cause"]["state"]), (&json!("REVERTED"), &json!("lost")), "{document}");
    let message = document["cause"]["error"]["message"].as_str().unwrap();
    assert!(message.contains("its host says that it is running, long after its limit of 6s"), "{message}");
}

#[test]
fn what_a_host_has_not_costs_it_nothing_else_and_a_host_that_is_gone_was_sent_nothing() {
    let fleet = Fleet::start(1);
    let text = "block = \"unordered\"\n[[step]]\nname = \"a\"\ntarget = \"web1\"\nhosts = \"any\"\ncall = \"worker.run\"\nargs = [\"nobody\", \"x\"]\ntimeout = \"3s\"\nmax_fail = 1\n\
                [[step]]\nname = \"b\"\ntarget = \"web1\"\nhosts = \"any\"\ncall = \"test.ping\"\ntimeout = \"1s\"\nretry = { for_each = [1, 2], as = \"t\" }\n";
    let document = run(&fleet, text).ok().json();
    assert_eq!(states(&document), [("a", "SUCCESS"), ("b", "SUCCESS")], "{document}");
    assert!(document["tasks"][1]["duration_ms"].is_null() && document["tasks"][1]["attempt"] == 1, "{document}");
}
