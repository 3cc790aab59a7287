//! What is cut off, lost on the way, or asked twice.

use std::net::TcpListener;

use fleet::raw::envelope;
use fleet::{Builder, Fleet, PATIENCE, Process, Proxy, wait_for, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::{Runs, lines};

/// Waits as short as a test needs them.
const IMPATIENT: &str = "connect_timeout = \"500ms\"\naccept_timeout = \"1s\"\npoll_timeout = \"1s\"\n";

/// Two hosts, each with a cable of its own.
fn networked() -> Builder {
    Fleet::builder().hosts(2).networked().overlord_toml(IMPATIENT)
}

/// Starts a job on both hosts that ends when the gate is opened, and waits until both run it.
fn start_gated(fleet: &Fleet, runs: &Runs) -> String {
    let gate = fleet.root().join("gate");
    let line = format!("{}; while [ ! -e {} ]; do sleep 0.02; done; echo survived", runs.note(), gate.display());
    let id = fleet.start_job(["*", "command.run", &line]);
    let _ = fleet.wait_for_state(&id, "PARTIAL");
    wait_until("both to run it", PATIENCE, || ["web1", "web2"].iter().all(|host| runs.count(&id, host) == 1));
    id
}

fn open_gate(fleet: &Fleet) {
    std::fs::write(fleet.root().join("gate"), "").unwrap();
}

/// The job still runs on web2, as far as is known, and that it cannot be asked is noted.
fn assert_out_of_reach(status: &Value) {
    assert_eq!((&status["state"], &status["hosts"]["web2"]["state"]), (&json!("PARTIAL"), &json!("running")), "{status}");
    assert!(status["hosts"]["web2"]["unreachable"]["reason"].is_string(), "{status}");
}

/// Both hosts ran it once, and what they have to say is there.
fn assert_survived(fleet: &Fleet, runs: &Runs, id: &str) {
    let status = fleet.overlord(["job-status", id, "--wait", "--output", "json"]).ok().json();
    for host in ["web1", "web2"] {
        assert_eq!(status["hosts"][host]["result"]["stdout"], "survived\n", "{status}");
        assert_eq!(status["hosts"][host]["unreachable"], json!(null), "{status}");
        assert_eq!(runs.count(id, host), 1, "{status}");
    }
}

fn signal(process: &Process, signal: Signal) {
    kill(Pid::from_raw(process.pid), signal).unwrap();
}

/// The call arrives and is carried out; what the host says of it does not, however often it is asked again.
#[test]
fn a_host_that_is_cut_off_during_dispatch_is_pending_until_it_can_be_asked() {
    let fleet = networked().start();
    let runs = Runs::of(&fleet);
    let web2 = fleet.minion("web2");
    let spawner = web2.spawner().unwrap();
    signal(&spawner, Signal::SIGSTOP);
    let accepting = || web2.audit().iter().any(|line| line["method"] == "command.run" || line["method"] == "async.command.run");
    let id = fleet.start_job(["*", "command.run", &runs.note()]);
    wait_until("the call to arrive", PATIENCE, accepting);
    fleet.black_hole("web2");
    signal(&spawner, Signal::SIGCONT);
    wait_until("it to run", PATIENCE, || runs.count(&id, "web2") == 1);
    wait_until("the dispatcher to give up", PATIENCE, || fleet.dispatcher(&id).is_none());
    let status = fleet.job_status(&id);
    let told = &status["hosts"]["web2"];
    assert_eq!((&status["state"], &told["state"]), (&json!("PARTIAL"), &json!("pending")), "{status}");
    assert!(told["unreachable"]["reason"].is_string(), "{status}");
    fleet.mend("web2");
    let status = fleet.overlord(["job-status", &id, "--wait", "--output", "json"]).ok().json();
    for host in ["web1", "web2"] {
        assert_eq!((&status["hosts"][host]["state"], runs.count(&id, host)), (&json!("ok"), 1), "{status}");
    }
}

#[test]
fn a_host_that_is_cut_off_during_a_job_keeps_its_result() {
    let cuts: [fn(&Fleet, &str); 2] = [Fleet::cut, Fleet::black_hole];
    for cut in cuts {
        let fleet = networked().start();
        let runs = Runs::of(&fleet);
        let id = start_gated(&fleet, &runs);
        cut(&fleet, "web2");
        assert_out_of_reach(&fleet.job_status(&id));
        open_gate(&fleet);
        let status = wait_for("web1's end", PATIENCE, || Some(fleet.job_status(&id)).filter(|now| now["hosts"]["web1"]["state"] == "ok"));
        assert_out_of_reach(&status);
        let _ = fleet.overlord(["job-status", &id]).expect(75);
        fleet.mend("web2");
        assert_survived(&fleet, &runs, &id);
        fleet.assert_no_leaks();
    }
}

/// It has the question, and may have the answer ready; the cable is cut before that has left.
#[test]
fn the_last_host_cut_off_during_a_poll_is_not_final() {
    let fleet = networked().start();
    let (runs, web2) = (Runs::of(&fleet), fleet.minion("web2"));
    let id = start_gated(&fleet, &runs);
    open_gate(&fleet);
    let ended = || web2.spools().iter().all(|id| web2.spool(id).join("outcome.json").exists());
    wait_until("the job to end on web2, where nobody asks", PATIENCE, ended);
    web2.pause();
    let poll = fleet.overlord_spawn(["job-status", &id, "--output", "json"]);
    wait_until("the question to be on its way", PATIENCE, || {
        let sockets = std::fs::read_to_string(format!("/proc/{}/net/tcp", web2.pid())).unwrap_or_default();
        // In state 01, established, with something in the receive queue.
        sockets.lines().any(|line| line.split_whitespace().nth(3) == Some("01") && !line.contains("00000000:00000000"))
    });
    fleet.black_hole("web2");
    web2.resume();
    let status = poll.wait().expect(75).json();
    assert_eq!(status["hosts"]["web1"]["state"], "ok", "{status}");
    assert_out_of_reach(&status);
    fleet.mend("web2");
    assert_survived(&fleet, &runs, &id);
}

/// The kernel of a host whose minion hangs takes connections all the same.
#[test]
fn a_minion_that_hangs_is_unreachable_and_nothing_is_lost() {
    let fleet = Fleet::builder().hosts(2).overlord_toml(IMPATIENT).start();
    let runs = Runs::of(&fleet);
    let id = start_gated(&fleet, &runs);
    fleet.minion("web2").pause();
    assert_out_of_reach(&fleet.job_status(&id));
    open_gate(&fleet);
    let status = wait_for("web1's end", PATIENCE, || Some(fleet.job_status(&id)).filter(|now| now["hosts"]["web1"]["state"] == "ok"));
    assert_out_of_reach(&status);
    fleet.minion("web2").resume();
    assert_survived(&fleet, &runs, &id);
}

/// A job whose acceptance got lost `times` times, between the host's doing it and our hearing of it.
fn lose_the_acceptance(times: usize) -> (Fleet, Proxy, Runs, String) {
    let fleet = Fleet::builder().hosts(1).overlord_toml(IMPATIENT).start();
    let web1 = fleet.minion("web1");
    let spools = web1.spools_dir();
    let is_accepted = move || {
        let is_spool = |entry: std::fs::DirEntry| entry.file_name().to_string_lossy().parse::<common::job::MinionJobId>().is_ok();
        std::fs::read_dir(&spools).is_ok_and(|mut spools| spools.any(|entry| is_spool(entry.unwrap())))
    };
    let proxy = Proxy::losing_answers(web1.address(), times, is_accepted);
    fleet.set_address("web1", &proxy.address().to_string());
    let runs = Runs::of(&fleet);
    let id = fleet.start_job(["*", "command.run", &runs.note()]);
    wait_until("the dispatcher to be done", PATIENCE, || fleet.dispatcher(&id).is_none());
    (fleet, proxy, runs, id)
}

#[test]
fn an_acceptance_that_got_lost_is_asked_for_again_and_the_job_runs_once() {
    let (fleet, proxy, runs, id) = lose_the_acceptance(1);
    assert_eq!(proxy.lost(), 1);
    assert_eq!(fleet.minion("web1").audit().iter().filter(|line| line["decision"] == "allow").count(), 2, "it was sent twice");
    let status = fleet.overlord(["job-status", &id, "--wait", "--output", "json"]).ok().json();
    assert_eq!((&status["hosts"]["web1"]["state"], runs.count(&id, "web1")), (&json!("ok"), 1), "{status}");
}

#[test]
fn an_acceptance_that_stays_lost_is_doubt_until_the_host_is_heard() {
    // Three sendings, and the first question after them.
    let (fleet, proxy, runs, id) = lose_the_acceptance(4);
    assert_eq!(proxy.lost(), 3);
    let status = fleet.job_status(&id);
    assert_eq!((&status["state"], &status["hosts"]["web1"]["state"]), (&json!("PARTIAL"), &json!("pending")), "{status}");
    assert!(status["hosts"]["web1"]["unreachable"]["reason"].is_string(), "{status}");
    assert_eq!(proxy.lost(), 4);
    let status = fleet.overlord(["job-status", &id, "--wait", "--output", "json"]).ok().json();
    assert_eq!((&status["hosts"]["web1"]["state"], runs.count(&id, "web1")), (&json!("ok"), 1), "{status}");
}

/// What it says of a host that it never reached is settled, though the host can be reached now; only a resumption sends it again.
#[test]
fn a_refused_dispatch_keeps_its_reason() {
    let fleet = Fleet::builder().hosts(2).overlord_toml(IMPATIENT).start();
    let runs = Runs::of(&fleet);
    fleet.minion("web2").stop();
    let id = fleet.start_job(["*", "command.run", &runs.note()]);
    let before = fleet.overlord(["job-status", &id, "--wait", "--output", "json"]).expect(4).json();
    let told = &before["hosts"]["web2"];
    assert_eq!(told["state"], "undelivered", "{before}");
    assert!(told["error"]["message"].as_str().unwrap().contains("refused"), "{before}");
    fleet.minion("web2").start();
    assert_eq!(fleet.job_status(&id), before);
    assert_eq!(runs.count(&id, "web2"), 0);
    let _ = fleet.overlord(["job-resume", &id]).ok();
    let after = fleet.overlord(["job-status", &id, "--wait", "--output", "json"]).ok().json();
    assert_eq!((&after["hosts"]["web2"]["state"], runs.count(&id, "web2")), (&json!("ok"), 1), "{after}");
    assert_eq!(runs.count(&id, "web1"), 1);
}

/// A captured request, sent again at any time: after the job's end, after restarts, after the store was lost.
#[test]
fn a_replayed_request_never_runs_again() {
    let fleet = Fleet::start(1);
    let (web1, runs) = (fleet.minion("web1"), fleet.root().join("runs"));
    let job = envelope("admin", "web1", "async.command.run", json!([format!("echo ran >> {}", runs.display())]));
    let client = fleet.raw_overlord("web1");
    let captured = client.signed(json!(1), &job);
    let post = || client.post_json(&captured).unwrap()["result"].clone();
    let first = post();
    assert_eq!(first["repeated"], false, "{first}");
    let spool = web1.spool(first["minion_job_id"].as_str().unwrap());
    wait_until("its end", PATIENCE, || spool.join("outcome.json").exists());
    for round in ["at once", "after a stop", "after a kill", "without its store"] {
        match round {
            "after a stop" => web1.stop(),
            "after a kill" | "without its store" => web1.kill9(),
            _ => {}
        }
        if round == "without its store" {
            std::fs::remove_dir_all(web1.state_dir().join("status.sled")).unwrap();
        }
        if !web1.is_running() {
            web1.start();
        }
        for again in [post(), post()] {
            let expected = (&first["minion_job_id"], &json!(true), &json!("ok"));
            assert_eq!((&again["minion_job_id"], &again["repeated"], &again["state"]), expected, "{round}: {again}");
        }
        assert_eq!(lines(&runs), 1, "{round}");
    }
}

#[test]
fn the_same_call_twice_is_one_job_and_one_run() {
    let fleet = Fleet::start(1);
    let runs = fleet.root().join("runs");
    let job = envelope("admin", "web1", "async.command.run", json!([format!("echo started >> {}", runs.display())]));
    let client = fleet.raw_overlord("web1");
    let replies: Vec<_> = std::thread::scope(|scope| {
        let posts: Vec<_> = (0..8)
            .map(|id: u64| {
                scope.spawn({
                    let (client, job) = (&client, &job);
                    // Each with a signature of its own.
                    move || client.post_json(&client.signed(id.into(), job)).unwrap()
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
    let after = fleet.raw_overlord("web1").call(&job).unwrap();
    assert_eq!((after["result"]["minion_job_id"].as_str(), &after["result"]["repeated"]), (Some(ids[0]), &json!(true)), "{after}");
    assert_eq!(lines(&runs), 1);
}

#[test]
fn a_fenced_call_never_starts_however_often_and_late_it_comes() {
    let fleet = Fleet::start(1);
    let runs = fleet.root().join("runs");
    let job = envelope("admin", "web1", "async.command.run", json!([format!("echo started >> {}", runs.display())]));
    let fence = envelope("admin", "web1", "jobs.fence", json!([job.call_id]));
    let fenced = fleet.raw_overlord("web1").call(&fence).unwrap();
    assert_eq!(fenced["result"]["result"]["state"], "undelivered", "{fenced}");
    for restart in [false, true] {
        if restart {
            fleet.minion("web1").kill9();
            fleet.minion("web1").start();
        }
        let refused = fleet.raw_overlord("web1").call(&job).unwrap();
        assert_eq!(refused["error"]["code"], -32005, "{refused}");
    }
    assert_eq!(lines(&runs), 0);
}

#[test]
fn a_fence_comes_too_late_for_what_has_started() {
    let fleet = Fleet::start(1);
    let job = envelope("admin", "web1", "async.test.add", json!([1, 2]));
    let accepted = fleet.raw_overlord("web1").call(&job).unwrap();
    let fence = envelope("admin", "web1", "jobs.fence", json!([job.call_id]));
    let report = wait_for("the job to end", PATIENCE, || {
        let report = fleet.raw_overlord("web1").call(&fence).unwrap()["result"]["result"].clone();
        Some(report).filter(|report| report["state"] != "queued" && report["state"] != "running")
    });
    assert_eq!((&report["state"], &report["result"]), (&json!("ok"), &json!(3)), "{report}");
    assert_eq!(report["minion_job_id"], accepted["result"]["minion_job_id"]);
}

#[test]
fn a_call_that_comes_too_late_is_not_started() {
    let fleet = Fleet::start(1);
    let mut job = envelope("admin", "web1", "async.test.add", json!([1, 2]));
    job.start_before = jiff::Timestamp::now() - jiff::SignedDuration::from_secs(1);
    let refused = fleet.raw_overlord("web1").call(&job).unwrap();
    assert_eq!(refused["error"]["code"], -32003, "{refused}");
    assert_eq!(fleet.minion("web1").spools(), Vec::<String>::new());
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
                    let request = client.signed(id.into(), job);
                    start.wait();
                    client.post_json(&request).unwrap()
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
