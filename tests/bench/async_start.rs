//! How long `overlord '*' test.ping --async` takes to print its id and to exit, with 1,000 hosts; beside `overlord --version`,
//! which is the bare start of the program.

use std::process::Command;
use std::time::{Duration, Instant};

use fleet::Simulated;

const HOSTS: usize = 1000;
const ROUNDS: usize = 7;

pub(crate) fn run() {
    let simulated = Simulated::start(HOSTS);
    let (mut ids, mut versions, mut bare) = (Vec::new(), Vec::new(), Vec::new());
    for _round in 0..ROUNDS {
        let (took, id) = time(simulated.overlord_command(&["*", "test.ping", "--async"]));
        ids.push(took);
        // The next round starts from rest.
        let _ = simulated.overlord_spawn(&["job-status", id.trim(), "--wait"]).wait_at_most(Duration::from_secs(300)).ok();
        versions.push(time(simulated.overlord_command(&["--version"])).0);
        bare.push(time(Command::new("/bin/true")).0);
    }
    println!("--async to {HOSTS} hosts, until its id is printed: {} (goal: 100 ms)", crate::spread(&ids));
    println!("overlord --version:                              {} (goal: below 10 ms)", crate::spread(&versions));
    println!("/bin/true:                                       {}", crate::spread(&bare));
}

/// How long `command` takes until it has exited, and what it printed.
fn time(mut command: Command) -> (Duration, String) {
    let started = Instant::now();
    let output = command.output().unwrap();
    let took = started.elapsed();
    assert!(output.status.success(), "{output:?}");
    (took, String::from_utf8(output.stdout).unwrap())
}
