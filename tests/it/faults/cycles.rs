//! Cycles of kills at random: servers, spawners, job daemons, dispatchers and commands of the overlord, while forty jobs come and go.
//!
//! `FLEET_CYCLES` says how many cycles there are. Each prints its seed; `FLEET_SEED=SEED FLEET_CYCLES=1` does the same one again.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use fleet::{COMMAND_TIMEOUT, Fleet, PATIENCE, Process, wait_for, wait_until};
use serde_json::{Value, json};

use super::{Runs, kill9};

/// Cycles, unless `FLEET_CYCLES` says otherwise.
const CYCLES: u64 = 3;
const HOSTS: [&str; 2] = ["web1", "web2"];
/// Who start jobs at the same time, and how many each.
const STARTERS: u64 = 4;
const JOBS_EACH: u64 = 10;
/// Who check the jobs at the same time.
const CHECKERS: usize = 8;
/// The longest pause between two kills.
const PAUSE_MAX_MS: u64 = 100;

/// Numbers that follow from a seed: splitmix64.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }

    fn one_of<T>(&mut self, mut from: Vec<T>) -> Option<T> {
        let count = u64::try_from(from.len()).unwrap();
        (count > 0).then(|| from.swap_remove(usize::try_from(self.below(count)).unwrap()))
    }
}

#[test]
fn cycles_of_kills_at_random_tell_the_truth() {
    let number = |name: &str| env::var(name).ok().map(|text| text.parse::<u64>().unwrap_or_else(|_| panic!("{name} is no number: {text}")));
    let first = number("FLEET_SEED").unwrap_or_else(|| u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap());
    for seed in (first..).take(usize::try_from(number("FLEET_CYCLES").unwrap_or(CYCLES)).unwrap()) {
        println!("FLEET_SEED={seed}");
        cycle(seed);
    }
}

fn cycle(seed: u64) {
    let fleet = Fleet::start(HOSTS.len());
    let runs = Runs::of(&fleet);
    let is_over = AtomicBool::new(false);
    let (printed, kills) = thread::scope(|scope| {
        let (fleet, runs, is_over) = (&fleet, &runs, &is_over);
        let killers = [kill_servers, kill_daemons, kill_overlords].into_iter().zip(1000..).map(|(kill, number)| {
            let mut random = Random(seed.wrapping_mul(31).wrapping_add(number));
            scope.spawn(move || {
                let mut killed = 0;
                while !is_over.load(Ordering::Relaxed) {
                    killed += kill(fleet, &mut random);
                    thread::sleep(Duration::from_millis(random.below(PAUSE_MAX_MS)));
                }
                killed
            })
        });
        let killers: Vec<_> = killers.collect();
        let starters: Vec<_> = (1..=STARTERS)
            .map(|starter| {
                let random = Random(seed.wrapping_mul(31).wrapping_add(starter));
                scope.spawn(move || start_jobs(fleet, runs, random))
            })
            .collect();
        let printed: Vec<String> = starters.into_iter().flat_map(|starter| starter.join().unwrap()).collect();
        is_over.store(true, Ordering::Relaxed);
        (printed, killers.into_iter().map(|killer| killer.join().unwrap()).collect::<Vec<_>>())
    });
    println!(
        "seed {seed}: {} of {} jobs have an id; killed: {} servers and spawners, {} job daemons, {} of the overlord",
        printed.len(),
        STARTERS * JOBS_EACH,
        kills[0],
        kills[1],
        kills[2]
    );
    wait_until("the dispatchers to be done", COMMAND_TIMEOUT, || overlords(&fleet).is_empty());
    let listed = listed(&fleet);
    assert!(printed.iter().all(|id| listed.contains(id)), "{printed:?} were printed, and {listed:?} are listed");
    let jobs: Vec<&String> = listed.iter().collect();
    let lost: usize = thread::scope(|scope| {
        let share = |share| {
            let (fleet, runs) = (&fleet, &runs);
            scope.spawn(move || <[&String]>::iter(share).map(|id| assert_job(fleet, runs, id)).sum::<usize>())
        };
        let shares: Vec<_> = jobs.chunks(jobs.len().div_ceil(CHECKERS).max(1)).map(share).collect();
        shares.into_iter().map(|share| share.join().unwrap()).sum()
    });
    assert!(lost <= kills[1], "{lost} results are lost, and {} job daemons were killed", kills[1]);
    assert_hosts(&fleet, &runs);
    fleet.assert_no_leaks();
}

/// Starts jobs, and gives the ids that were printed; a command that was killed prints none.
fn start_jobs(fleet: &Fleet, runs: &Runs, mut random: Random) -> Vec<String> {
    let start = |_| {
        thread::sleep(Duration::from_millis(random.below(PAUSE_MAX_MS)));
        let line = format!("{}; sleep 0.{:02}", runs.note(), random.below(100));
        let run = fleet.overlord(["*", "command.run", &line, "--async"]);
        let id = run.out().trim().to_owned();
        assert!(id.is_empty() || id.parse::<common::job::JobId>().is_ok(), "{run:?}");
        (!id.is_empty()).then_some(id)
    };
    (0..JOBS_EACH).filter_map(start).collect()
}

/// Kills a server, which is started again, or a spawner, which starts again by itself.
fn kill_servers(fleet: &Fleet, random: &mut Random) -> usize {
    let minion = fleet.minion(HOSTS[usize::try_from(random.below(2)).unwrap()]);
    if random.below(2) == 0 {
        return minion.spawner().map_or(0, |spawner| kill(&spawner));
    }
    minion.kill9();
    minion.start();
    1
}

fn kill_daemons(fleet: &Fleet, random: &mut Random) -> usize {
    let minion = fleet.minion(HOSTS[usize::try_from(random.below(2)).unwrap()]);
    let is_open = |id: &String| !minion.spool(id).join("outcome.json").exists();
    let id = random.one_of(minion.spools().into_iter().filter(is_open).collect());
    id.and_then(|id| minion.job_daemon(&id)).map_or(0, |daemon| kill(&daemon))
}

fn kill_overlords(fleet: &Fleet, random: &mut Random) -> usize {
    random.one_of(overlords(fleet)).map_or(0, |overlord| kill(&overlord))
}

/// Commands that start jobs, and dispatchers.
fn overlords(fleet: &Fleet) -> Vec<Process> {
    let is_overlord = |process: &Process| process.command.split(' ').next().is_some_and(|program| program.ends_with("/overlord"));
    fleet.processes().into_iter().filter(is_overlord).collect()
}

/// Kills it, unless it has ended by itself; how many were killed.
fn kill(process: &Process) -> usize {
    if process.is_there() {
        kill9(process.pid);
        return 1;
    }
    0
}

fn listed(fleet: &Fleet) -> BTreeSet<String> {
    let jobs = fleet.overlord(["job-list", "--output", "json"]).ok().json()["jobs"].clone();
    jobs.as_array().unwrap().iter().map(|job| job["job_id"].as_str().unwrap().to_owned()).collect()
}

/// What is told of the job is true, and after a resumption it has run everywhere, once. How many of its results are lost.
fn assert_job(fleet: &Fleet, runs: &Runs, id: &str) -> usize {
    let before = fleet.job_status(id);
    for (host, told) in before["hosts"].as_object().unwrap() {
        runs.assert_true(id, host, told);
    }
    let is_undelivered = before["hosts"].as_object().unwrap().values().any(|told| told["state"] == "undelivered");
    if is_undelivered {
        let resumed = fleet.overlord(["job-resume", id]);
        assert_eq!(resumed.code(), 0, "{id}: {}", resumed.err());
    }
    let is_over = |status: &Value| status["state"] == "FINISHED" || status["state"] == "LOST";
    let status = match is_over(&before) && !is_undelivered {
        true => before,
        false => fleet.overlord(["job-status", id, "--wait", "--output", "json"]).json(),
    };
    assert_eq!(status["hosts"].as_object().unwrap().len(), HOSTS.len(), "{status}");
    let mut lost = 0;
    for (host, told) in status["hosts"].as_object().unwrap() {
        runs.assert_true(id, host, told);
        match told["state"].as_str().unwrap() {
            "ok" => assert_eq!(told["result"]["rc"], 0, "{id} on {host}: {told}"),
            "lost" => {
                println!("{id} on {host}: {}", told["error"]["message"]);
                lost += 1;
            }
            other => panic!("{id} is {other} on {host} after its resumption: {status}"),
        }
    }
    lost
}

/// Every spool has an outcome that can be read, and the host's own list agrees with it.
fn assert_hosts(fleet: &Fleet, runs: &Runs) {
    let ran = fs::read_to_string(&runs.0).unwrap_or_default();
    let distinct: BTreeSet<&str> = ran.lines().collect();
    assert_eq!(distinct.len(), ran.lines().count(), "something ran twice");
    for minion in fleet.minions() {
        let host = minion.name();
        let told = wait_for("the host's list", PATIENCE, || {
            let told = fleet.overlord([host, "jobs.list", "--output", "json"]).json()["hosts"][host]["result"].clone();
            Some(told).filter(Value::is_object)
        });
        for job in told["jobs"].as_array().unwrap() {
            let path = minion.spool(job["minion_job_id"].as_str().unwrap()).join("outcome.json");
            let text = fs::read(&path).unwrap_or_else(|error| panic!("{path:?}: {error}: {job}"));
            let outcome: Value = common::seal::open(&text).unwrap();
            assert_eq!(outcome["state"], job["state"], "{host}: {outcome}");
        }
        assert_eq!(
            told["jobs"].as_array().unwrap().len() + usize::try_from(told["more"].as_u64().unwrap()).unwrap(),
            minion.spools().len()
        );
        assert!(told["jobs"].as_array().unwrap().iter().all(|job| job["state"] != json!("running")), "{told}");
    }
}
