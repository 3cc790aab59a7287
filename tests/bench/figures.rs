//! `cargo bench -p fleet`: the figures that the project is held to, each beside the bare limit of the same machine in the same run.
//! It prints and judges nothing: machines are shared and noisy. `cargo bench -p fleet -- NAME` runs one of them.

#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a benchmark prints, and has nobody to give an error to"
)]

mod async_start;
mod calls;
mod flow;
mod idle;
mod kept;
mod map;
mod peer;
mod progress;
mod restart;
mod round_trip;
mod signing;
mod starts;
mod status;
mod workers;

use std::time::Duration;

fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let all: [(&str, fn()); 12] = [
        ("calls", calls::run),
        ("async", async_start::run),
        ("idle", idle::run),
        ("starts", starts::run),
        ("signing", signing::run),
        ("restart", restart::run),
        ("status", status::run),
        ("map", map::run),
        ("round_trip", round_trip::run),
        ("workers", workers::run),
        ("progress", progress::run),
        ("flow", flow::run),
    ];
    for (name, run) in all {
        if wanted.is_empty() || wanted.iter().any(|word| word == name) {
            println!("== {name}");
            run();
        }
    }
}

/// The middle one of several times.
fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

/// `times` as one line: the smallest, the middle and the largest, in milliseconds.
fn spread(times: &[Duration]) -> String {
    let ms = |time: Option<&Duration>| time.map_or(0.0, |time| time.as_secs_f64() * 1e3);
    format!(
        "min {:.1} ms, median {:.1} ms, max {:.1} ms",
        ms(times.iter().min()),
        median(times.to_vec()).as_secs_f64() * 1e3,
        ms(times.iter().max())
    )
}
