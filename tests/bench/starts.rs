//! Durable job starts on one minion: how many a second over kept connections, and how long one takes; beside the bare limits of the
//! machine: a connection that answers without doing anything, and a file written, synced, renamed, and its folder synced.

use std::fs::File;
use std::io::Write as _;
use std::time::{Duration, Instant};

use fleet::Fleet;
use fleet::raw::{Client, Connection, envelope, read_response};
use serde_json::{Value, json};

/// Jobs that are started by callers at once, and by one caller alone.
const JOBS: usize = 3000;
const JOBS_ALONE: usize = 500;
const CALLERS: usize = 16;
const ROUNDS: usize = 3;

pub(crate) fn run() {
    let limits = "[limits]\njobs_max = 20000\nshutdown_grace = \"1s\"\n";
    for round in 1..=ROUNDS {
        // A fresh one each time: what runs is in the way of what starts.
        let fleet = Fleet::builder().hosts(1).minion_toml(limits).start();
        let client = fleet.raw_overlord("web1");
        let ping = alone(&client, JOBS_ALONE, "test.ping", &json!([]));
        let one = alone(&client, JOBS_ALONE, "async.test.sleep", &json!([600]));
        let (took, many) = together(&client, JOBS, "async.test.sleep", &json!([600]));
        let disk = bare_renames(&fleet.root().join("bare"), JOBS_ALONE);
        println!("round {round}: one after the other  {} (goal: median 1.5 ms)", crate::spread(&one));
        println!("         test.ping, so            {}", crate::spread(&ping));
        println!("         fsync+rename+fsync, bare {}", crate::spread(&disk));
        let rate = JOBS as f64 / took.as_secs_f64();
        println!("         {CALLERS} callers at once: {rate:.0} starts/s (goal: 1000), each {}", crate::spread(&many));
    }
    let fleet = Fleet::builder().hosts(1).minion_toml(limits).start();
    let (took, many) = together(&fleet.raw_overlord("web1"), JOBS, "async.test.add", &json!([1, 2]));
    println!("jobs that end at once, {CALLERS} callers: {:.0} starts/s, each {}", JOBS as f64 / took.as_secs_f64(), crate::spread(&many));
}

fn alone(client: &Client, count: usize, method: &str, args: &Value) -> Vec<Duration> {
    let mut connection = client.connect().unwrap();
    (0..count).map(|_| call(client, &mut connection, method, args)).collect()
}

fn together(client: &Client, count: usize, method: &str, args: &Value) -> (Duration, Vec<Duration>) {
    let started = Instant::now();
    let times = std::thread::scope(|scope| {
        let callers: Vec<_> = (0..CALLERS).map(|_| scope.spawn(|| alone(client, count / CALLERS, method, args))).collect();
        callers.into_iter().flat_map(|caller| caller.join().unwrap()).collect()
    });
    (started.elapsed(), times)
}

fn call(client: &Client, connection: &mut Connection, method: &str, args: &Value) -> Duration {
    let body = client.signed(1.into(), &envelope("admin", "web1", method, args.clone())).to_string();
    let head = format!("POST / HTTP/1.1\r\nhost: web1\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n", body.len());
    let started = Instant::now();
    connection.write_all(format!("{head}{body}").as_bytes()).unwrap();
    connection.flush().unwrap();
    let answer = read_response(connection).unwrap();
    let took = started.elapsed();
    let answer: Value = serde_json::from_slice(&answer.body).unwrap();
    assert!(answer.get("result").is_some(), "{answer}");
    took
}

fn bare_renames(folder: &std::path::Path, count: usize) -> Vec<Duration> {
    std::fs::create_dir(folder).unwrap();
    let write = |number: usize| {
        let started = Instant::now();
        let draft = folder.join("draft");
        let mut file = File::create(&draft).unwrap();
        file.write_all(&[b'x'; 400]).unwrap();
        file.sync_all().unwrap();
        std::fs::rename(&draft, folder.join(number.to_string())).unwrap();
        File::open(folder).unwrap().sync_all().unwrap();
        started.elapsed()
    };
    (0..count).map(write).collect()
}
