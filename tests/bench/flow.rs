//! A flow of 1,000 trivial tasks over 10 hosts, beside TaskFlow's worker engine with as many on the same machine, where that and redis are installed; what a
//! task costs on top of a call, and how soon a task is sent once the one before it has ended.

use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use fleet::Fleet;
use jiff::Timestamp;
use serde_json::Value;

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

/// Tasks one after the other on one host, beside as many calls.
fn chain(fleet: &Fleet) {
    for (what, lines) in [("call", "target = \"web1\"\nrun = \"call\""), ("job", "target = \"web1\"")] {
        chain_of(fleet, what, lines);
    }
}

fn chain_of(fleet: &Fleet, what: &str, lines: &str) {
    let linear = file(fleet, "linear", CHAIN, lines);
    let document = fleet.overlord(["flow", "run", &linear, "--output", "json"]).ok().json();
    let tasks = document.get("tasks").and_then(Value::as_array).unwrap();
    let time = |task: &Value, name: &str| task.pointer(&format!("/runs/0/{name}")).unwrap().as_str().unwrap().parse::<Timestamp>().unwrap();
    let between = |from: Timestamp, to: Timestamp| Duration::try_from(to.duration_since(from)).unwrap_or_default();
    let steps: Vec<Duration> = tasks.iter().map(|task| between(time(task, "sent_at"), time(task, "ended_at"))).collect();
    let next = tasks.iter().zip(tasks.iter().skip(1));
    let pauses: Vec<Duration> = next.map(|(one, next)| between(time(one, "ended_at"), time(next, "sent_at"))).collect();
    let target = overlord::Fleet::open(fleet.home()).unwrap().target("web1").unwrap();
    let call = |number: u32| {
        let started = Instant::now();
        target.call("test.echo", serde_json::json!([number])).unwrap();
        started.elapsed()
    };
    let calls: Vec<Duration> = (0..CHAIN).map(call).collect();
    println!("a step of a linear flow, run as a {what}: {}", crate::spread(&steps));
    println!("a call of the same:                   {}", crate::spread(&calls));
    let (step, call) = (crate::median(steps).as_secs_f64(), crate::median(calls).as_secs_f64());
    println!("a step costs {:.2} ms on top of a call (goal: at most 1)", (step - call) * 1e3);
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
