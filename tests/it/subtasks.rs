//! Jobs that submit jobs and wait for them: however deep, with one place for all of them.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use fleet::raw::envelope;
use fleet::{Fleet, PATIENCE, binaries, wait_for, wait_until};
use serde_json::{Value, json};

/// A host where one job at a time runs.
fn one_place() -> Fleet {
    let fleet = Fleet::builder().hosts(1).minion_toml("[limits]\njobs_max = 1\n").start();
    let first = fleet.start_job(["web1", "test.ping"]);
    let _ = fleet.wait_for_state(&first, "FINISHED");
    fleet
}

/// A program of the fleet's, in which `minion` is the real one.
fn program(fleet: &Fleet, name: &str, text: &str) -> PathBuf {
    let path = fleet.root().join(name);
    let minion = binaries().minion.display().to_string();
    let text = text
        .replace("MINION ", &format!("{minion} "))
        .replace("SELF", path.to_str().unwrap())
        .replace("ROOT", fleet.root().to_str().unwrap());
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

fn line(path: &Path, args: &str) -> String {
    format!("{} {args}", path.display())
}

fn run(fleet: &Fleet, line: &str) -> String {
    fleet.start_job(["web1", "command.run", line])
}

fn web1(status: &Value) -> &Value {
    &status["hosts"]["web1"]
}

fn ended(fleet: &Fleet, id: &str) -> Value {
    let status = fleet.wait_for_state(id, "FINISHED");
    assert_eq!(web1(&status)["state"], "ok", "{status}");
    web1(&status).clone()
}

fn report(fleet: &Fleet, minion_job_id: &str) -> Value {
    let answer = fleet.raw_overlord("web1").call(&envelope("admin", "web1", "jobs.status", json!([minion_job_id]))).unwrap();
    answer["result"]["result"].clone()
}

fn followups(web1: &Value) -> Vec<String> {
    web1["followup"].as_array().unwrap().iter().map(|id| id.as_str().unwrap().to_owned()).collect()
}

fn said(root: &Path, name: &str) -> Option<String> {
    fs::read_to_string(root.join(name)).ok().filter(|text| text.ends_with('\n')).map(|text| text.trim().to_owned())
}

/// What a job prints that waited for others: of each line what the child wrote to its stdout.
const OUT: &str = r#"sed 's/.*"stdout":"\([^"]*\)".*/\1/; s/\\n/\n/g'"#;

/// Every node of the tree is a job that waits for its two halves; there are 199 of them, of which nearly half wait at once.
#[test]
fn a_merge_sort_of_100_numbers_by_recursive_subtasks_needs_one_place() {
    let fleet = one_place();
    let sort = program(
        &fleet,
        "sort",
        &format!(
            "#!/bin/sh\n[ $# -le 1 ] && {{ echo $1; exit; }}\nhalf=$(($# / 2)); left=; i=0\n\
             while [ $i -lt $half ]; do left=\"$left $1\"; shift; i=$((i + 1)); done\n\
             id() {{ sed 's/.*\"minion_job_id\":\"\\([^\"]*\\)\".*/\\1/'; }}\n\
             a=$(MINION submit --async command.run \"SELF $left\" | id) || exit\n\
             b=$(MINION submit --async command.run \"SELF $*\" | id) || exit\n\
             out=$(MINION wait $a $b) || exit\n\
             printf '%s\\n' \"$out\" | {OUT} | sed '/^$/d' | sort -n\n"
        ),
    );
    let numbers: Vec<u32> = (0..100).map(|number| number * 37 % 101).collect();
    let words: Vec<String> = numbers.iter().map(u32::to_string).collect();
    let id = run(&fleet, &line(&sort, &words.join(" ")));
    let waited = fleet.overlord_spawn(["job-status", &id, "--wait", "--output", "json"]).wait_at_most(PATIENCE * 15).ok().json();
    let sorted: Vec<u32> = web1(&waited)["result"]["stdout"].as_str().unwrap().lines().map(|line| line.parse().unwrap()).collect();
    let mut right = numbers;
    right.sort_unstable();
    assert_eq!(sorted, right);
    assert_eq!(followups(web1(&waited)).len(), 2, "{waited}");
    assert_eq!(fleet.minion("web1").spools().len(), 200, "a job for each node, and the first");
}

/// Each step submits the next and ends; nobody waits. The ids lead from the first to the last.
#[test]
fn a_greatest_common_divisor_is_a_chain_of_followups() {
    let fleet = one_place();
    let gcd = program(
        &fleet,
        "gcd",
        "#!/bin/sh\n[ $2 = 0 ] && { echo $1; exit; }\nMINION submit --async command.run \"SELF $2 $(($1 % $2))\" > /dev/null\n",
    );
    let first = run(&fleet, &line(&gcd, "1362 67365"));
    let mut last = ended(&fleet, &first);
    let mut steps = 0;
    while let Some(next) = followups(&json!({ "followup": last.get("followup").cloned().unwrap_or(json!([])) })).first() {
        last = wait_for("the next step", PATIENCE, || Some(report(&fleet, next)).filter(|report| report["finished_at"].is_string()));
        steps += 1;
    }
    assert_eq!((&last["result"]["stdout"], steps), (&json!("3\n"), 7), "{last}");
}

#[test]
fn a_subtask_that_is_not_waited_for_and_then_one_that_is_do_not_hang_on_one_place() {
    let fleet = one_place();
    let parent = program(
        &fleet,
        "parent",
        "#!/bin/sh\nMINION submit --async command.run 'sleep 0.1; echo first >> ROOT/order' && MINION submit --wait command.run 'echo second >> ROOT/order; \
         echo out'\n echo parent >> ROOT/order\n",
    );
    let id = run(&fleet, &line(&parent, ""));
    let web1 = ended(&fleet, &id);
    let lines: Vec<Value> = web1["result"]["stdout"].as_str().unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((&lines[0]["state"], &lines[1]["state"], &lines[1]["result"]["stdout"]), (&json!("queued"), &json!("ok"), &json!("out\n")));
    let children = followups(&web1);
    assert_eq!(children, [&lines[0], &lines[1]].map(|line| line["minion_job_id"].as_str().unwrap()));
    assert_eq!(fs::read_to_string(fleet.root().join("order")).unwrap(), "first\nsecond\nparent\n");
    let text = fleet.overlord(["job-status", &id]).ok().out();
    assert!(text.contains(", 2 jobs submitted)\n"), "{text}");

    // What a child wrote is read by its id.
    let logs = fleet.overlord(["job-logs", &id, "web1", "--child", &children[1]]).ok();
    assert_eq!(logs.out(), "out\n");
    let followed = fleet.overlord(["job-logs", &id, "web1", "--child", &children[1], "--follow"]).ok();
    assert_eq!(followed.out(), "out\n");
    let unknown = fleet.overlord(["job-logs", &id, "web1", "--child", "0000-0000-0000"]).expect(4);
    assert!(unknown.err().contains("knows no job"), "{}", unknown.err());
    let _ = fleet.overlord(["job-logs", &id, "--child", &children[1]]).expect(64);
    // As any other job of the caller's there is, whoever has submitted it.
    let other = run(&fleet, "echo other");
    let _ = ended(&fleet, &other);
    let logs = fleet.overlord(["job-logs", &id, "web1", "--child", &fleet.minion_job(&other)]).ok();
    assert_eq!(logs.out(), "other\n");
}

/// The place is given back before the answer: two jobs that waited for one and the same go on one after the other, and both before who has only queued.
#[test]
fn a_job_that_waited_has_a_place_again_before_it_goes_on() {
    let fleet = one_place();
    let waiter = program(
        &fleet,
        "waiter",
        "#!/bin/sh\nMINION wait $(cat ROOT/child) > /dev/null\nmkdir ROOT/alone || echo together >> ROOT/order\nsleep 0.3\nrmdir ROOT/alone\n\
         echo $1 >> ROOT/order\n",
    );
    let parent = program(
        &fleet,
        "parent",
        &format!(
            "#!/bin/sh\nMINION submit --async command.run '{0} first'; MINION submit --async command.run '{0} second'\n\
             MINION submit --async command.run 'touch ROOT/runs; while [ ! -e ROOT/gate ]; do sleep 0.02; done' |\n\
             sed 's/.*job_id\":\"\\([^\"]*\\)\".*/\\1/' > ROOT/child\n",
            waiter.display()
        ),
    );
    let parent = ended(&fleet, &run(&fleet, &line(&parent, "")));
    // The child waits behind both waiters: it can start only if neither has the place.
    wait_until("the child to run", PATIENCE, || fleet.root().join("runs").exists());
    let behind =
        run(&fleet, &format!("[ ! -e {0}/alone ] || echo together >> {0}/order; echo behind >> {0}/order", fleet.root().display()));
    wait_until("it to wait", PATIENCE, || web1(&fleet.job_status(&behind))["state"] == "queued");
    fs::write(fleet.root().join("gate"), "").unwrap();
    let _ = ended(&fleet, &behind);
    assert_eq!(fs::read_to_string(fleet.root().join("order")).unwrap(), "first\nsecond\nbehind\n");
    assert!(followups(&parent).iter().all(|id| report(&fleet, id)["state"] == "ok"));
}

/// The wait is broken off, and asked for again; what waited for a place goes on waiting.
#[test]
fn a_kill_of_server_and_spawner_while_jobs_wait_costs_nothing() {
    let fleet = one_place();
    let parent = program(
        &fleet,
        "parent",
        "#!/bin/sh\nMINION submit --wait command.run 'echo child > ROOT/child; while [ ! -e ROOT/gate ]; do sleep 0.02; done; echo done >> ROOT/runs' && \
         echo parent >> ROOT/runs\n",
    );
    let id = run(&fleet, &line(&parent, ""));
    wait_until("the child to run", PATIENCE, || said(fleet.root(), "child").is_some());
    let behind = run(&fleet, &format!("echo behind >> {}/runs", fleet.root().display()));
    wait_until("it to wait", PATIENCE, || self::web1(&fleet.job_status(&behind))["state"] == "queued");
    let web1 = fleet.minion("web1");
    for _twice in 0..2 {
        web1.kill9();
        web1.start();
    }
    let spawner = web1.spawner().unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(spawner.pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    wait_until("another spawner", PATIENCE, || {
        let _asks_it = fleet.overlord(["web1", "test.echo", "x"]);
        web1.spawner().is_some_and(|other| other.pid != spawner.pid)
    });
    fs::write(fleet.root().join("gate"), "").unwrap();
    let parent = ended(&fleet, &id);
    let _ = ended(&fleet, &behind);
    let runs = fs::read_to_string(fleet.root().join("runs")).unwrap();
    let mut lines: Vec<&str> = runs.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["behind", "done", "parent"], "each once");
    assert_eq!(followups(&parent).len(), 1);
}

/// Whoever ends otherwise than well, his jobs are named too; and what he waited for has ended badly is told by the exit status.
#[test]
fn how_children_end_is_told_and_whoever_ends_badly_names_them_too() {
    let fleet = one_place();
    let parent = program(
        &fleet,
        "parent",
        "#!/bin/sh\nMINION submit --wait command.run 'echo why >&2; exit 3'; echo status $? >> ROOT/status\nsleep 600\n",
    );
    let id = run(&fleet, &line(&parent, ""));
    wait_until("the child to have failed", PATIENCE, || said(fleet.root(), "status").as_deref() == Some("status 2"));
    let minion_job_id = fleet.minion_job(&id);
    let daemon = fleet.minion("web1").job_daemon(&minion_job_id).unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(daemon.pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    let lost = fleet.wait_for_state(&id, "LOST");
    let children = followups(web1(&lost));
    assert_eq!((&web1(&lost)["state"], children.len()), (&json!("lost"), 1), "{lost}");
    assert_eq!(report(&fleet, &children[0])["error"]["data"]["rc"], 3);

    // A job whose waiting process is gone goes on, and so does what it waited for.
    let impatient = program(
        &fleet,
        "impatient",
        "#!/bin/sh\nid=$(MINION submit --async command.run 'while [ ! -e ROOT/gate ]; do sleep 0.02; done' | sed 's/.*job_id\":\"\\([^\"]*\\)\".*/\\1/')\n\
         MINION wait $id --timeout 1s; echo timeout $? >> ROOT/statuses\nMINION wait $MINION_JOB_ID; echo itself $? >> ROOT/statuses\n\
         MINION wait 0000-0000-0000; echo nobody $? >> ROOT/statuses\ntouch ROOT/gate; MINION wait $id $id; echo end $? >> ROOT/statuses\n",
    );
    let id = run(&fleet, &line(&impatient, ""));
    let web1 = ended(&fleet, &id);
    assert_eq!(fs::read_to_string(fleet.root().join("statuses")).unwrap(), "timeout 75\nitself 2\nnobody 2\nend 0\n", "{web1}");
    let lines: Vec<Value> = web1["result"]["stdout"].as_str().unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let states: Vec<&str> = lines.iter().map(|line| line["state"].as_str().unwrap()).collect();
    assert_eq!(states, ["running", "failed", "failed", "ok", "ok"], "{lines:?}");
    assert!(web1["result"]["stderr"].as_str().unwrap().contains("would wait for itself"), "{web1}");
}

#[test]
fn a_job_submits_no_more_than_it_may() {
    let fleet = Fleet::builder().hosts(1).minion_toml("[limits]\nfollowups_max = 2\n").start();
    let parent = program(
        &fleet,
        "parent",
        "#!/bin/sh\nfor i in 1 2 3; do MINION submit --async test.echo $i > /dev/null; echo $? >> ROOT/statuses; done\n",
    );
    let id = run(&fleet, &line(&parent, ""));
    let web1 = ended(&fleet, &id);
    assert_eq!(fs::read_to_string(fleet.root().join("statuses")).unwrap(), "0\n0\n4\n");
    assert!(web1["result"]["stderr"].as_str().unwrap().contains("limits.followups_max"), "{web1}");
    assert_eq!((followups(&web1).len(), fleet.minion("web1").spools().len()), (2, 3));
}

/// A job ends while others of its processes still submit: whatever comes to be is named.
#[test]
fn what_is_submitted_in_the_last_moment_is_named_or_never_comes_to_be() {
    const PARENTS: usize = 24;
    let fleet = Fleet::start(1);
    let parent = program(
        &fleet,
        "parent",
        "#!/bin/sh\nfor i in 1 2 3 4 5 6; do MINION submit --async test.echo $i > /dev/null & done\n\
         sleep 0.0$1\n",
    );
    let ids: Vec<String> = (0..PARENTS).map(|number| run(&fleet, &line(&parent, &format!("{:02}", number * 4)))).collect();
    let ended: Vec<Value> = ids.iter().map(|id| ended(&fleet, id)).collect();
    let minion = fleet.minion("web1");
    wait_until("all to have ended", PATIENCE, || minion.spools().iter().all(|id| minion.spool(id).join("outcome.json").exists()));
    let mut known: Vec<String> = ended.iter().map(|web1| web1["minion_job_id"].as_str().unwrap().to_owned()).collect();
    known.extend(ended.iter().filter(|web1| web1["followup"].is_array()).flat_map(followups));
    let nameless: Vec<String> = minion.spools().into_iter().filter(|id| !known.contains(id)).collect();
    assert_eq!(nameless, Vec::<String>::new(), "{} are known", known.len());
}

/// An overlord waits, too, for so long as a call may take.
#[test]
fn an_overlord_waits_for_jobs_of_a_host() {
    let fleet = Fleet::start(1);
    let gate = fleet.root().join("gate");
    let id = run(&fleet, &format!("while [ ! -e {} ]; do sleep 0.02; done; echo done", gate.display()));
    let minion_job_id = fleet.minion_job(&id);
    let client = fleet.raw_overlord("web1");
    let wait =
        |wait_ms: u32| client.call(&envelope("admin", "web1", "jobs.wait", json!({ "ids": [minion_job_id], "wait_ms": wait_ms }))).unwrap();
    assert_eq!(wait(1)["result"]["result"]["jobs"][0]["state"], "running");
    let (waited, ()) = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| wait(20_000));
        let waits = || fleet.minion("web1").audit().iter().filter(|line| line["method"] == "jobs.wait").count();
        wait_until("it to be waited for", PATIENCE, || waits() == 2);
        fs::write(&gate, "").unwrap();
        (waiting.join().unwrap(), ())
    });
    assert_eq!(waited["result"]["result"]["jobs"][0]["result"]["stdout"], "done\n", "{waited}");
}
