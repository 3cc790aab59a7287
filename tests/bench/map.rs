//! A map of 1,000 trivial items on one host, beside Palpable's `client.map` of the same on the same machine, where that is installed.

use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use fleet::Fleet;

const ITEMS: u32 = 1000;
const ROUNDS: usize = 9;
/// The Python that has `palpable`, if it is not the first in `PATH`.
const PYTHON: &str = "PALPABLE_PYTHON";
/// The peer's exit status where it is not installed.
const NOT_INSTALLED: i32 = 3;

pub(crate) fn run() {
    let fleet = Fleet::start(1);
    let file = fleet.root().join("items");
    let items: String = (0..ITEMS).map(|number| format!("{number}\n")).collect();
    std::fs::write(&file, items).unwrap();
    let file = file.to_str().unwrap();
    let mut times = Vec::new();
    for round in 0..=ROUNDS {
        let started = Instant::now();
        let run = fleet.overlord(["map", "*", "test.square", "--items", file]).ok();
        let took = started.elapsed();
        assert_eq!(run.out().lines().count(), ITEMS as usize);
        // The first round warms up.
        if round > 0 {
            times.push(took);
        }
    }
    println!("overlord map, {ITEMS} squares, the program's start included: {}", crate::spread(&times));
    let ours = rate(crate::median(times));
    println!("that is {ours:.0} items/s");
    match palpable() {
        Ok(took) => {
            let theirs = rate(took);
            println!("Palpable's client.map, {ITEMS} squares: {:.1} ms, {theirs:.0} items/s", took.as_secs_f64() * 1e3);
            println!("ratio: {:.0} (goal: at least 100)", ours / theirs);
        }
        Err(why) => println!("Palpable: left out: {why}"),
    }
}

fn rate(took: Duration) -> f64 {
    f64::from(ITEMS) / took.as_secs_f64()
}

fn palpable() -> Result<Duration, String> {
    let python = std::env::var_os(PYTHON).unwrap_or_else(|| "python3".into());
    let port = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).map_err(|error| error.to_string())?.port();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("bench/peers/palpable_map.py");
    let mut command = Command::new(&python);
    command.arg("-u").arg(script).arg(ITEMS.to_string()).arg(port.to_string()).env("PYTHONDONTWRITEBYTECODE", "1");
    let output = command.output().map_err(|error| format!("{}: {error}", python.display()))?;
    if output.status.code() == Some(NOT_INSTALLED) {
        return Err(format!("{} does not have it: `pip install palpable`, and name that Python in {PYTHON}", python.display()));
    }
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let took = text.lines().find_map(|line| line.strip_prefix("took ")?.parse().ok());
    took.map(Duration::from_secs_f64).ok_or_else(|| format!("it has failed: {}", String::from_utf8_lossy(&output.stderr)))
}
