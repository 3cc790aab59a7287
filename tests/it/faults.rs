//! What is killed, cut or asked twice, and what is true afterwards.

use std::fs;
use std::net::TcpListener;
use std::time::Duration;

use common::job::{CallId, JobId};
use fleet::raw::{envelope, request};
use fleet::{Fleet, PATIENCE, wait_for, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

fn kill9(pid: i32) {
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
}

fn lines(path: &std::path::Path) -> usize {
    fs::read_to_string(path).unwrap_or_default().lines().count()
}

#[test]
fn a_killed_minion_loses_no_result_and_starts_nothing_twice() {
    let fleet = Fleet::start(1);
    let (runs, gate) = (fleet.root().join("runs"), fleet.root().join("gate"));
    let line = format!("echo started >> {}; while [ ! -e {} ]; do sleep 0.02; done; echo survived", runs.display(), gate.display());
    let id = fleet.start_job(["*", "command.run", &line]);
    let _ = fleet.wait_for_state(&id, "PARTIAL");
    wait_until("the job to start", PATIENCE, || lines(&runs) == 1);
    fleet.minion("web1").kill9();
    let cut_off = fleet.job_status(&id);
    assert_eq!((&cut_off["state"], &cut_off["hosts"]["web1"]["state"]), (&json!("PARTIAL"), &json!("running")), "{cut_off}");
    assert!(cut_off["hosts"]["web1"]["unreachable"].is_object(), "{cut_off}");
    fs::write(&gate, "").unwrap();
    let spool = fleet.minion("web1").spool(&fleet.minion("web1").spools()[0]);
    wait_until("the outcome, while no server runs", PATIENCE, || spool.join("outcome.json").exists());
    fleet.minion("web1").start();
    let status = fleet.overlord(["job-status", &id, "--wait", "--output", "json"]).ok().json();
    assert_eq!(status["hosts"]["web1"]["result"]["stdout"], "survived\n", "{status}");
    assert_eq!(status["hosts"]["web1"]["unreachable"], json!(null), "{status}");
    assert_eq!(lines(&runs), 1);
}

#[test]
fn a_minion_that_is_stopped_in_order_leaves_its_jobs_running() {
    let fleet = Fleet::start(1);
    let (runs, gate) = (fleet.root().join("runs"), fleet.root().join("gate"));
    let line = format!("echo started >> {}; while [ ! -e {} ]; do sleep 0.02; done", runs.display(), gate.display());
    let id = fleet.start_job(["*", "command.run", &line]);
    wait_until("the job to start", PATIENCE, || lines(&runs) == 1);
    fleet.minion("web1").stop();
    fleet.minion("web1").start();
    assert_eq!(fleet.job_status(&id)["hosts"]["web1"]["state"], "running");
    fs::write(&gate, "").unwrap();
    let _ = fleet.overlord(["job-status", &id, "--wait"]).ok();
    assert_eq!(lines(&runs), 1);
}

#[test]
fn a_killed_job_daemon_is_lost_with_the_reason_and_takes_its_job_with_it() {
    let fleet = Fleet::start(1);
    let runs = fleet.root().join("runs");
    let id = fleet.start_job(["*", "command.run", &format!("echo started >> {}; sleep 600", runs.display())]);
    wait_until("the job to start", PATIENCE, || lines(&runs) == 1);
    let web1 = fleet.minion("web1");
    kill9(web1.job_daemon(&web1.spools()[0]).unwrap().pid);
    let run = fleet.overlord(["job-status", &id, "--output", "json"]).expect(4);
    let host = &run.json()["hosts"]["web1"];
    assert_eq!(host["state"], "lost", "{}", run.out());
    assert!(host["error"]["message"].as_str().unwrap().contains("job daemon was killed"), "{host}");
    assert_eq!(run.json()["state"], "LOST", "every host is lost");
    assert!(fleet.running("sleep 600").is_empty(), "{:#?}", fleet.processes());
    assert_eq!(lines(&runs), 1);
}

#[test]
fn a_killed_spawner_is_executed_afresh() {
    let fleet = Fleet::start(1);
    let web1 = fleet.minion("web1");
    let before = web1.spawner().unwrap();
    let gate = fleet.root().join("gate");
    let id = fleet.start_job(["*", "command.run", &format!("while [ ! -e {} ]; do sleep 0.02; done; echo survived", gate.display())]);
    let _ = fleet.wait_for_state(&id, "PARTIAL");
    kill9(before.pid);
    // A call that reaches it while it dies may have run, and is told so.
    wait_until("it to be gone", PATIENCE, || fleet.processes().iter().all(|process| process.pid != before.pid));
    let sum = fleet.overlord(["*", "test.add", "1", "2", "--output", "json"]).ok().json();
    assert_eq!(sum["hosts"]["web1"]["result"], 3);
    fs::write(&gate, "").unwrap();
    let status = fleet.overlord(["job-status", &id, "--wait", "--output", "json"]).ok().json();
    assert_eq!(status["hosts"]["web1"]["result"]["stdout"], "survived\n");
}

#[test]
fn the_same_call_twice_is_one_job_and_one_run() {
    let fleet = Fleet::start(1);
    let runs = fleet.root().join("runs");
    let job = envelope("admin", "web1", "async.command.run", json!([format!("echo started >> {}", runs.display())]));
    let client = fleet.raw_overlord("web1");
    let replies: Vec<_> = std::thread::scope(|scope| {
        let posts: Vec<_> = (0..8)
            .map(|id| {
                scope.spawn({
                    let (client, job) = (&client, &job);
                    move || client.post_json(&request(id.into(), job)).unwrap()
                })
            })
            .collect();
        posts.into_iter().map(|post| post.join().unwrap()).collect()
    });
    let ids: Vec<_> = replies.iter().map(|reply| reply["result"]["minion_job_id"].as_str().unwrap_or_else(|| panic!("{reply}"))).collect();
    assert!(ids.iter().all(|id| id == &ids[0]), "{replies:?}");
    assert_eq!(replies.iter().filter(|reply| reply["result"]["repeated"] == false).count(), 1, "{replies:?}");
    wait_until("the run to end", PATIENCE, || fleet.minion("web1").spool(ids[0]).join("outcome.json").exists());

    fleet.minion("web1").kill9();
    fleet.minion("web1").start();
    let after = fleet.raw_overlord("web1").post_json(&request(9.into(), &job)).unwrap();
    assert_eq!((after["result"]["minion_job_id"].as_str(), &after["result"]["repeated"]), (Some(ids[0]), &json!(true)), "{after}");
    assert_eq!(lines(&runs), 1);
}

#[test]
fn a_fenced_call_never_starts_however_often_and_late_it_comes() {
    let fleet = Fleet::start(1);
    let runs = fleet.root().join("runs");
    let job = envelope("admin", "web1", "async.command.run", json!([format!("echo started >> {}", runs.display())]));
    let fence = envelope("admin", "web1", "jobs.fence", json!([job.call_id]));
    let fenced = fleet.raw_overlord("web1").post_json(&request(1.into(), &fence)).unwrap();
    assert_eq!(fenced["result"]["result"]["state"], "undelivered", "{fenced}");
    for restart in [false, true] {
        if restart {
            fleet.minion("web1").kill9();
            fleet.minion("web1").start();
        }
        let refused = fleet.raw_overlord("web1").post_json(&request(2.into(), &job)).unwrap();
        assert_eq!(refused["error"]["code"], -32005, "{refused}");
    }
    assert_eq!(lines(&runs), 0);
}

#[test]
fn a_fence_comes_too_late_for_what_has_started() {
    let fleet = Fleet::start(1);
    let job = envelope("admin", "web1", "async.test.add", json!([1, 2]));
    let accepted = fleet.raw_overlord("web1").post_json(&request(1.into(), &job)).unwrap();
    let fence = envelope("admin", "web1", "jobs.fence", json!([job.call_id]));
    let report = wait_for("the job to end", PATIENCE, || {
        let report = fleet.raw_overlord("web1").post_json(&request(2.into(), &fence)).unwrap()["result"]["result"].clone();
        Some(report).filter(|report| report["state"] != "running")
    });
    assert_eq!((&report["state"], &report["result"]), (&json!("ok"), &json!(3)), "{report}");
    assert_eq!(report["minion_job_id"], accepted["result"]["minion_job_id"]);
}

#[test]
fn a_call_that_comes_too_late_is_not_started() {
    let fleet = Fleet::start(1);
    let mut job = envelope("admin", "web1", "async.test.add", json!([1, 2]));
    job.start_before = jiff::Timestamp::now() - jiff::SignedDuration::from_secs(1);
    let refused = fleet.raw_overlord("web1").post_json(&request(1.into(), &job)).unwrap();
    assert_eq!(refused["error"]["code"], -32003, "{refused}");
    assert_eq!(fleet.minion("web1").spools(), Vec::<String>::new());
}

/// The dispatcher dies when it has reached one of two hosts. The other never started, for ever, until the job is resumed.
#[test]
fn a_dead_dispatchers_hosts_are_fenced_and_can_be_resumed() {
    let fleet = Fleet::builder().hosts(2).overlord_toml("connect_timeout = \"60s\"\n").start();
    let runs = fleet.root().join("runs");
    fleet.minion("web2").pause();
    let id = fleet.start_job(["*", "command.run", &format!("echo $MINION_NAME >> {}", runs.display()), "--timeout", "60s"]);
    wait_for("web1 to hold the job", PATIENCE, || {
        Some(fleet.job_status(&id)).filter(|status| status["hosts"]["web1"]["minion_job_id"].is_string())
    });
    let refused = fleet.overlord(["job-resume", &id]);
    assert_ne!(refused.code(), 0, "its dispatcher lives");
    kill9(fleet.dispatcher(&id).unwrap().pid);
    wait_until("the dispatcher to be gone", PATIENCE, || fleet.dispatcher(&id).is_none());
    fleet.set_overlord_toml("connect_timeout = \"500ms\"\n");

    // The kernel lets go of a dead process's lock a moment after its files are out of sight.
    let cut_off = fleet.wait_for_state(&id, "PARTIAL");
    assert_eq!(cut_off["hosts"]["web2"]["state"], "pending", "{cut_off}");
    assert!(cut_off["hosts"]["web2"]["unreachable"].is_object(), "{cut_off}");

    fleet.minion("web2").resume();
    fleet.set_overlord_toml("");
    let status = fleet.wait_for_state(&id, "FINISHED");
    assert_eq!(status["hosts"]["web1"]["state"], "ok", "{status}");
    let web2 = &status["hosts"]["web2"];
    // What the kernel had taken in for the paused minion may have been served first: then it ran, once.
    if web2["state"] == "undelivered" {
        assert_eq!(web2["error"]["code"], -32005, "{status}");
        assert_eq!(lines(&runs), 1);
        let resumed = fleet.overlord(["job-resume", &id]).ok();
        assert_eq!(resumed.out().trim(), id);
        let status = fleet.wait_for_state(&id, "FINISHED");
        assert_eq!(status["hosts"]["web2"]["state"], "ok", "{status}");
    }
    wait_until("both hosts to have run it", PATIENCE, || lines(&runs) == 2);
    let mut ran: Vec<_> = fs::read_to_string(&runs).unwrap().lines().map(str::to_owned).collect();
    ran.sort();
    assert_eq!(ran, ["web1", "web2"]);
}

/// A host that takes the connection and is silent: whether it has the job is not known, and is not made up.
#[test]
fn a_silent_host_is_pending_and_unreachable_until_it_can_be_asked() {
    let fleet = Fleet::start(2);
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    fleet.set_address("web2", &silent.local_addr().unwrap().to_string());
    let id = fleet.start_job(["*", "test.ping", "--timeout", "1s"]);
    let status = fleet.wait_for_state(&id, "FINISHED");
    assert_eq!(status["hosts"]["web1"]["result"], "pong");
    assert_eq!(status["hosts"]["web2"]["state"], "undelivered", "no handshake, so nothing was sent: {status}");
}

#[test]
fn a_status_store_that_is_damaged_is_made_anew_from_the_spools() {
    let fleet = Fleet::start(1);
    let id = fleet.start_job(["*", "test.add", "23", "45"]);
    let web1 = fleet.minion("web1");
    let spool = wait_for("the job's spool", PATIENCE, || web1.spools().pop());
    wait_until("the job to end", PATIENCE, || web1.spool(&spool).join("outcome.json").exists());
    web1.kill9();
    let store = web1.state_dir().join("status.sled");
    fs::write(store.join("conf"), b"not what was written").unwrap();
    web1.start();
    assert!(web1.stderr().contains("damaged"), "{}", web1.stderr());
    wait_until("the spool to be taken in, before anyone asks about it", PATIENCE, || {
        let listed = fleet.overlord(["web1", "jobs.list", "--output", "json"]).ok().json();
        listed["hosts"]["web1"]["result"]["jobs"].as_array().unwrap().len() == 1
    });
    let status = fleet.overlord(["job-status", &id, "--wait", "--output", "json"]).ok().json();
    assert_eq!(status["hosts"]["web1"]["result"], 68);
    let aside = fs::read_dir(web1.state_dir()).unwrap().flatten().any(|entry| entry.file_name().to_string_lossy().contains("damaged-"));
    assert!(aside, "the damaged store is kept");
}

#[test]
fn a_job_store_that_is_damaged_is_made_anew_from_the_logs() {
    let fleet = Fleet::start(1);
    let id = fleet.start_job(["*", "test.add", "23", "45"]);
    let before = fleet.overlord(["job-status", &id, "--wait", "--output", "json"]).ok().json();
    // It uses the store once more at its end, and would be the one to find the damage.
    wait_until("the dispatcher to be gone", PATIENCE, || fleet.dispatcher(&id).is_none());
    fs::write(fleet.home().join("jobs.sled/conf"), b"not what was written").unwrap();
    let run = fleet.overlord(["job-status", &id, "--output", "json"]).ok();
    assert_eq!(run.json(), before);
    assert!(run.err().contains("damaged"), "{}", run.err());
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

/// Twenty jobs at random points of whose life the minion is killed: each has run once, and its result is there.
#[test]
fn a_minion_killed_again_and_again_tells_the_truth() {
    let fleet = Fleet::start(1);
    let runs = fleet.root().join("runs");
    let mut ids: Vec<JobId> = Vec::new();
    for round in 0..10_u64 {
        for _job in 0..2 {
            let id = fleet.start_job(["*", "command.run", &format!("echo $OVERLORD_JOB_ID >> {}; sleep 0.0{round}", runs.display())]);
            ids.push(id.parse().unwrap());
        }
        // From none of it done to all of it done.
        std::thread::sleep(Duration::from_millis(round * 7));
        fleet.minion("web1").kill9();
        fleet.minion("web1").start();
    }
    let ran = || fs::read_to_string(&runs).unwrap_or_default();
    for id in &ids {
        let run = fleet.overlord(["job-status", id.as_str(), "--wait", "--output", "json"]);
        let state = run.json()["hosts"]["web1"]["state"].as_str().unwrap().to_owned();
        let times = ran().lines().filter(|line| *line == id.as_str()).count();
        match state.as_str() {
            "ok" => assert_eq!(times, 1, "{id}: {}", run.out()),
            "undelivered" => assert_eq!(times, 0, "{id}: {}", run.out()),
            other => panic!("{id} is {other}, and nobody killed its daemon: {}", run.out()),
        }
        let call = CallId::new(id.clone(), 1);
        let derived = common::job::MinionJobId::derive(&"web1".parse().unwrap(), &"admin".parse().unwrap(), &call);
        assert!(times == 0 || fleet.minion("web1").spools().contains(&derived.to_string()));
    }
}

/// A volume that is not mounted for a while must not turn results into `lost`.
#[test]
fn spools_that_are_out_of_sight_for_a_while_lose_nothing() {
    let fleet = Fleet::start(1);
    let web1 = fleet.minion("web1");
    // Larger than what the status store keeps, so that the spool is needed.
    let id = fleet.start_job(["*", "command.run", "head -c 40000 /dev/zero | tr '\\0' x"]);
    let _ = fleet.overlord(["job-status", &id, "--wait"]).ok();
    let minion_job_id = fleet.job_status(&id)["hosts"]["web1"]["minion_job_id"].as_str().unwrap().to_owned();
    let asked = || fleet.overlord(["web1", "jobs.status", &minion_job_id, "--output", "json"]);
    let aside = web1.state_dir().join("elsewhere");
    fs::rename(web1.spools_dir(), &aside).unwrap();
    let blind = asked().expect(2).json();
    assert_eq!(blind["hosts"]["web1"]["error"]["code"], -32603, "it says that it cannot tell: {blind}");
    fs::rename(&aside, web1.spools_dir()).unwrap();
    let report = asked().ok().json()["hosts"]["web1"]["result"].clone();
    assert_eq!((&report["state"], report["result"]["stdout"].as_str().unwrap().len()), (&json!("ok"), 40000));
}

/// More jobs end at once than their server can be told of: they must not count as running afterwards.
#[test]
fn places_are_free_as_soon_as_jobs_have_ended() {
    let fleet = Fleet::builder().hosts(1).minion_toml("[limits]\njobs_max = 20\nqueue_max = 0\n").start();
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

/// `lost` is the one end that can be mended: by the host, once it can be asked again.
#[test]
fn a_host_that_comes_back_mends_what_was_lost() {
    let fleet = Fleet::builder().hosts(1).overlord_toml("lost_after = \"1s\"\n").start();
    let gate = fleet.root().join("gate");
    let id = fleet.start_job(["*", "command.run", &format!("while [ ! -e {} ]; do sleep 0.02; done; echo survived", gate.display())]);
    let before = fleet.wait_for_state(&id, "PARTIAL")["hosts"]["web1"]["minion_job_id"].clone();
    fleet.minion("web1").kill9();
    let lost = fleet.wait_for_state(&id, "LOST");
    assert!(lost["hosts"]["web1"]["error"]["message"].as_str().unwrap().contains("nothing was heard"), "{lost}");
    fs::write(&gate, "").unwrap();
    fleet.minion("web1").start();
    let status = fleet.wait_for_state(&id, "FINISHED");
    let web1 = &status["hosts"]["web1"];
    assert_eq!((&web1["result"]["stdout"], &web1["minion_job_id"]), (&json!("survived\n"), &before), "{status}");
}

/// The instant between looking for a spool and making it is short, so it is tried for many times.
#[test]
fn the_same_call_from_many_sides_at_once_is_one_run_every_time() {
    let fleet = Fleet::start(1);
    let (runs, client) = (fleet.root().join("runs"), fleet.raw_overlord("web1"));
    for round in 1..=20 {
        let job = envelope("admin", "web1", "async.command.run", json!([format!("echo {round} >> {}", runs.display())]));
        let start = std::sync::Barrier::new(8);
        let replies: Vec<_> = std::thread::scope(|scope| {
            let post = |id: u64| {
                let (client, job, start) = (&client, &job, &start);
                scope.spawn(move || {
                    start.wait();
                    client.post_json(&request(id.into(), job)).unwrap()
                })
            };
            (0..8).map(post).collect::<Vec<_>>().into_iter().map(|post| post.join().unwrap()).collect()
        });
        assert_eq!(replies.iter().filter(|reply| reply["result"]["repeated"] == false).count(), 1, "round {round}: {replies:?}");
        let spool = fleet.minion("web1").spool(replies[0]["result"]["minion_job_id"].as_str().unwrap());
        wait_until("the run to end", PATIENCE, || spool.join("outcome.json").exists());
        assert_eq!(lines(&runs), round, "round {round}");
    }
}
