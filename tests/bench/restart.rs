//! How long a minion with 100,000 retained jobs takes from its start until it serves; beside one with none. And how long it takes to make its
//! status store anew from as many spools.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use common::identity::CallerName;
use common::job::{CallId, JobId, MinionJobId};
use common::outcome::{Outcome, Verdict};
use common::seal;
use fleet::Fleet;
use jiff::{SignedDuration, Timestamp};
use minion::call::{Ask, Proof};
use minion::spool::SpoolRequest;
use serde_json::json;

const JOBS: u32 = 100_000;
const ROUNDS: usize = 5;

pub(crate) fn run() {
    let fleet = Fleet::builder().hosts(1).minion_toml("[retention]\ncount = 200000\n").start();
    let web1 = fleet.minion("web1");
    println!("restart with no job:         {}", crate::spread(&restarts(&fleet)));
    web1.stop();
    let made = Instant::now();
    (0..JOBS).for_each(|number| make_spool(&web1.spools_dir(), number));
    println!("making {JOBS} spools took {:.1} s", made.elapsed().as_secs_f64());
    web1.start();
    let started = Instant::now();
    while listed(&fleet) < JOBS as usize {
        assert!(started.elapsed() < Duration::from_secs(600), "only {} jobs were taken in", listed(&fleet));
        std::thread::sleep(Duration::from_millis(200));
    }
    println!("status store made anew from {JOBS} spools, while serving: {:.1} s", started.elapsed().as_secs_f64());
    println!("restart with {JOBS} jobs:    {} (goal: 200 ms)", crate::spread(&restarts(&fleet)));
}

fn listed(fleet: &Fleet) -> usize {
    let list = fleet.overlord(["web1", "jobs.list", "--output", "json"]).ok().json();
    let of = |name| list.pointer(&format!("/hosts/web1/result/{name}"));
    let more = of("more").and_then(serde_json::Value::as_u64).unwrap_or(0);
    of("jobs").and_then(serde_json::Value::as_array).map_or(0, Vec::len) + usize::try_from(more).unwrap()
}

/// From the start of the process until a call is answered.
fn restarts(fleet: &Fleet) -> Vec<Duration> {
    let web1 = fleet.minion("web1");
    let client = fleet.raw_overlord("web1");
    let ping = fleet::raw::envelope("admin", "web1", "test.ping", json!([]));
    let restart = |_| {
        web1.kill9();
        let started = Instant::now();
        web1.start_without_waiting();
        while client.post_json(&client.signed(1.into(), &ping)).is_err() {
            assert!(started.elapsed() < Duration::from_secs(60), "it does not come back");
            std::thread::sleep(Duration::from_millis(1));
        }
        started.elapsed()
    };
    (0..ROUNDS).map(restart).collect()
}

/// A job that ended a while ago, without the syncs of a real one.
fn make_spool(spools: &Path, number: u32) {
    let (minion, caller): (_, CallerName) = ("web1".parse().unwrap(), "admin".parse().unwrap());
    let at = Timestamp::now() - SignedDuration::from_secs(i64::from(JOBS - number));
    let call_id = CallId::new(JobId::new(at, number), 1);
    let minion_job_id = MinionJobId::derive(&minion, &caller, &call_id);
    let dir = spools.join(minion_job_id.as_str());
    fs::create_dir(&dir).unwrap();
    let request = SpoolRequest {
        minion_job_id,
        run: None,
        caller,
        call_id,
        ask: Some(Ask {
            minion: "web1".parse().unwrap(),
            call: "x".repeat(300),
            proof: Proof::Signed { signature: "x".repeat(96), certificate: "x".repeat(800) },
        }),
        certificate: None,
        start_before: at,
        accepted_at: at,
        starts_at_once: false,
    };
    let outcome = Outcome::ran(Verdict::Ok { result: json!("x".repeat(100)) }, at, at);
    fs::write(dir.join("lock"), "").unwrap();
    fs::write(dir.join("request.json"), seal::seal(&request).unwrap()).unwrap();
    fs::write(dir.join("outcome.json"), seal::seal(&outcome).unwrap()).unwrap();
}
