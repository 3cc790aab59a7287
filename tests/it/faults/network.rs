//! What is cut off, lost on the way, or asked twice.

use std::net::TcpListener;

use fleet::raw::{envelope, request};
use fleet::{Fleet, PATIENCE, wait_for, wait_until};
use serde_json::json;

use super::lines;

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
