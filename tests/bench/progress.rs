//! A job that says how far it is, started, waited for until it has ended, and its result read, one after the other; beside a task of Ladon's of
//! the same on the same machine, where that is installed. Ladon keeps its tasks in memory; ours are on the disk at each answer.

use std::time::{Duration, Instant};

use fleet::Fleet;
use serde_json::json;

use crate::kept::Kept;
use crate::peer::Peer;

const JOBS: u32 = 300;
const ROUNDS: usize = 5;
const LADON: Peer = Peer { name: "ladon", python: "LADON_PYTHON", script: "ladon_tasks.py" };

pub(crate) fn run() {
    let fleet = Fleet::start(1);
    let mut kept = Kept::to(&fleet, "web1");
    for _ in 0..20 {
        round_trip(&mut kept);
    }
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        let started = Instant::now();
        (0..JOBS).for_each(|_| round_trip(&mut kept));
        times.push(started.elapsed());
    }
    println!("{JOBS} jobs with progress, one after the other, on a kept connection: {}", crate::spread(&times));
    let ours = rate(crate::median(times));
    println!("that is {ours:.0} round trips/s");
    match LADON.run(JOBS) {
        Ok(took) => {
            let theirs = rate(took);
            println!("Ladon, {JOBS} tasks with progress: {:.1} ms, {theirs:.0} round trips/s", took.as_secs_f64() * 1e3);
            println!("ratio: {:.1} (goal: at least 3)", ours / theirs);
        }
        Err(why) => println!("Ladon: left out: {why}"),
    }
}

fn rate(took: Duration) -> f64 {
    f64::from(JOBS) / took.as_secs_f64()
}

/// Starts a job, waits for its end, and looks at its result and its last progress.
fn round_trip(kept: &mut Kept) {
    let accepted = kept.ask("async.test.progress", json!([[[0.5, "half"], [1, "done"]]]));
    let waited = kept.ask("jobs.wait", json!({ "ids": [accepted["minion_job_id"]] }));
    let report = &waited["result"]["jobs"][0];
    assert_eq!((&report["result"], &report["progress"]["fraction"]), (&json!(2), &json!(1.0)), "{waited}");
}
