//! One task, there and back: a method in a process of its own, and a task of a worker, over a connection that is kept and by the command.

use std::time::{Duration, Instant};

use fleet::Fleet;
use serde_json::{Value, json};

use crate::kept::Kept;
use crate::workers::describe_echo;

const KEPT_TIMES: usize = 500;
const COMMAND_TIMES: usize = 50;

pub(crate) fn run() {
    let fleet = Fleet::start(1);
    describe_echo(&fleet, 1);
    let mut kept = Kept::to(&fleet, "web1");
    let calls = [("test.echo", json!(["x"])), ("worker.run", json!(["echo", "x"]))];
    for (method, args) in &calls {
        let took = times(KEPT_TIMES, || drop(checked(kept.ask(method, args.clone()))));
        println!("{method} in a process of its own, on a kept connection: {} (goal: at most 5 ms)", crate::spread(&took));
    }
    for (method, args) in &calls {
        let words: Vec<&str> =
            ["web1", method].into_iter().chain(args.as_array().unwrap().iter().map(|word| word.as_str().unwrap())).collect();
        let took = times(COMMAND_TIMES, || drop(fleet.overlord(&words).ok()));
        println!("overlord {}, the program's start included: {}", words.join(" "), crate::spread(&took));
    }
}

fn checked(outcome: Value) -> Value {
    assert_eq!(outcome["state"], "ok", "{outcome}");
    outcome
}

/// How long each of so many takes, after one that warms up.
fn times(count: usize, mut work: impl FnMut()) -> Vec<Duration> {
    work();
    let timed = || {
        let started = Instant::now();
        work();
        started.elapsed()
    };
    std::iter::repeat_with(timed).take(count).collect()
}
