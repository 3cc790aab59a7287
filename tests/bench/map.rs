//! A map of 1,000 trivial items on one host, beside Palpable's `client.map` of the same on the same machine, where that is installed.

use std::time::{Duration, Instant};

use fleet::Fleet;

use crate::peer::Peer;

const ITEMS: u32 = 1000;
const ROUNDS: usize = 9;
const PALPABLE: Peer = Peer { name: "palpable", python: "PALPABLE_PYTHON", script: "palpable_map.py" };

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
    match PALPABLE.run(ITEMS) {
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
