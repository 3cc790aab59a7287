//! A flow of 1,000 trivial tasks over 10 hosts, beside TaskFlow's worker engine with as many on the same machine, where that and redis are installed; what a
//! task costs on top of a call, and how soon a task is sent once the one before it has ended.

use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use fleet::Fleet;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::kept::Kept;

const TASKS: u32 = 1000;
const HOSTS: usize = 10;
const ROUNDS: usize = 5;
const CHAIN: u32 = 200;
/// The Python that has `taskflow`, `kombu` and `redis`, if it is not the first in `PATH`.
const PYTHON: &str = "TASKFLOW_PYTHON";
/// The redis server, if it is not in `PATH`.
const REDIS: &str = "REDIS_SERVER";
/// The peer's exit status where it is not installed.
const NOT_INSTALLED: i32 = 3;

pub(crate) fn run() {
    let fleet = Fleet::start(HOSTS);
    let wide = file(&fleet, "unordered", TASKS, "target = \"*\"\nhosts = \"any\"\nrun = \"call\"");
    let mut times = Vec::new();
    for round in 0..=ROUNDS {
        let started = Instant::now();
        let run = fleet.overlord(["flow", "run", &wide, "--output", "jsonl"]).ok();
        let took = started.elapsed();
        assert!(run.out().contains("\"SUCCESS\""));
        // The first round warms up.
        if round > 0 {
            times.push(took);
        }
    }
    println!("overlord flow, {TASKS} tasks over {HOSTS} hosts, the program's start included: {}", crate::spread(&times));
    let ours = f64::from(TASKS) / crate::median(times).as_secs_f64();
    println!("that is {ours:.0} tasks/s");
    chain(&fleet);
    match taskflow() {
        Ok(took) => {
            let theirs = f64::from(TASKS) / took.as_secs_f64();
            println!("TaskFlow's worker engine over redis, {TASKS} tasks: {:.1} ms, {theirs:.0} tasks/s", took.as_secs_f64() * 1e3);
            println!("ratio: {:.1} (goal: at least 20)", ours / theirs);
        }
        Err(why) => println!("TaskFlow: left out: {why}"),
    }
}

fn file(fleet: &Fleet, block: &str, tasks: u32, lines: &str) -> String {
    let path = fleet.root().join(format!("{block}.toml"));
    let step = |number| format!("[[step]]\nname = \"t{number}\"\ncall = \"test.echo\"\nargs = [{number}]\n{lines}\n");
    std::fs::write(&path, format!("block = \"{block}\"\n") + &(0..tasks).map(step).collect::<String>()).unwrap();
    path.to_str().unwrap().to_owned()
}

/// Tasks one after the other on one host, beside as many of the same calls, and jobs, on a connection that is kept.
fn chain(fleet: &Fleet) {
    let mut kept = Kept::to(fleet, "web1");
    let call = |kept: &mut Kept| assert_eq!(kept.ask("test.echo", json!([1]))["state"], "ok");
    chain_of(fleet, "call", "target = \"web1\"\nrun = \"call\"", || call(&mut kept));
    let mut kept = Kept::to(fleet, "web1");
    let job = |kept: &mut Kept| {
        let accepted = kept.ask("async.test.echo", json!([1]));
        let waited = kept.ask("jobs.wait", json!({ "ids": [accepted["minion_job_id"]] }));
        assert_eq!(waited["result"]["jobs"][0]["state"], "ok", "{waited}");
    };
    chain_of(fleet, "job", "target = \"web1\"", || job(&mut kept));
}

fn chain_of(fleet: &Fleet, what: &str, lines: &str, mut bare: impl FnMut()) {
    let linear = file(fleet, "linear", CHAIN, lines);
    let mut bares = Vec::new();
    let (mut cycles, mut pauses) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        bares.extend((0..CHAIN).map(|_| {
            let started = Instant::now();
            bare();
            started.elapsed()
        }));
        let document = fleet.overlord(["flow", "run", &linear, "--output", "json"]).ok().json();
        let tasks = document.get("tasks").and_then(Value::as_array).unwrap();
        let time =
            |task: &Value, name: &str| task.pointer(&format!("/runs/0/{name}")).unwrap().as_str().unwrap().parse::<Timestamp>().unwrap();
        let between = |from: Timestamp, to: Timestamp| Duration::try_from(to.duration_since(from)).unwrap_or_default();
        for (one, next) in tasks.iter().zip(tasks.iter().skip(1)) {
            cycles.push(between(time(one, "sent_at"), time(next, "sent_at")));
            pauses.push(between(time(one, "ended_at"), time(next, "sent_at")));
        }
    }
    println!("a task of a linear flow, run as a {what}, from one sending to the next: {}", crate::spread(&cycles));
    println!("a {what} of the same on a kept connection: {}", crate::spread(&bares));
    let (cycle, bare) = (crate::median(cycles).as_secs_f64(), crate::median(bares).as_secs_f64());
    println!("the flow adds {:.2} ms to a {what} (goal: at most 1)", (cycle - bare) * 1e3);
    println!("from the last dependency's end to the sending: {} (goal: at most 5 ms)", crate::spread(&pauses));
}

fn taskflow() -> Result<Duration, String> {
    let python = std::env::var_os(PYTHON).unwrap_or_else(|| "python3".into());
    let redis = std::env::var_os(REDIS).unwrap_or_else(|| "redis-server".into());
    let port = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).map_err(|error| error.to_string())?.port();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("bench/peers/taskflow_workers.py");
    let mut command = Command::new(&python);
    command.arg("-u").arg(script).arg(TASKS.to_string()).arg(HOSTS.to_string()).arg(port.to_string()).arg(&redis);
    let output = command.env("PYTHONDONTWRITEBYTECODE", "1").output().map_err(|error| format!("{}: {error}", python.display()))?;
    if output.status.code() == Some(NOT_INSTALLED) {
        let (python, redis) = (python.display(), redis.display());
        return Err(format!(
            "{python} or {redis} does not have it: `pip install taskflow kombu redis`, and name that Python in {PYTHON} and redis in {REDIS}"
        ));
    }
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let took = text.lines().find_map(|line| line.strip_prefix("took ")?.parse().ok());
    took.map(Duration::from_secs_f64).ok_or_else(|| format!("it has failed: {}", String::from_utf8_lossy(&output.stderr)))
}
