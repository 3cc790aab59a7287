//! How long `overlord '*' test.sleep 0 --async` takes to print its id and to exit, with 1,000 hosts; beside `overlord --version`,
//! which is the bare start of the program.

use std::time::{Duration, Instant};

use fleet::Simulated;

const HOSTS: usize = 1000;
const ROUNDS: usize = 7;

pub(crate) fn run() {
    let simulated = Simulated::start(HOSTS);
    let (mut ids, mut versions, mut bare, mut dispatched) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _round in 0..ROUNDS {
        let started = Instant::now();
        let job = simulated.overlord_spawn(&["*", "test.sleep", "0", "--async"]).wait().ok();
        ids.push(started.elapsed());
        let id = job.out().trim().to_owned();
        // The next round starts from rest.
        simulated.overlord_spawn(&["job-status", &id, "--wait", "--output", "json"]).wait_at_most(Duration::from_secs(300)).ok();
        dispatched.push(started.elapsed());
        let started = Instant::now();
        simulated.overlord_spawn(&["--version"]).wait().ok();
        versions.push(started.elapsed());
        let started = Instant::now();
        std::process::Command::new("/bin/true").status().unwrap();
        bare.push(started.elapsed());
    }
    println!("--async to {HOSTS} hosts, until its id is printed: {} (goal: 100 ms)", crate::spread(&ids));
    println!("the same, until every host has finished:         {}", crate::spread(&dispatched));
    println!("overlord --version:                              {} (goal: below 10 ms)", crate::spread(&versions));
    println!("/bin/true:                                       {}", crate::spread(&bare));
}
