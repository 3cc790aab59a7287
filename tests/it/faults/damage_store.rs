//! A host's status store with flipped bits and cut ends, taken away in use, or without room: the spools tell what it does not.

use std::fs;

use fleet::raw::envelope;
use fleet::{Fleet, Minion, PATIENCE, wait_until};
use serde_json::{Value, json};

use super::damage::{CUTS, Damage, FLIPS, shortened};
use crate::damage_overlord::{cut, flip, spread};

/// Hosts that are damaged all at once, each in another place of its store.
#[test]
fn flipped_bits_and_cut_ends_of_the_status_store_change_nothing() {
    let damages: Vec<_> = Damage::all().collect();
    let fleet = Fleet::start(damages.len());
    let lines = ["echo $MINION_NAME", "head -c 20000 /dev/zero | tr '\\0' x; echo $MINION_NAME", "echo $MINION_NAME; exit 3"];
    let jobs = lines.map(|line| fleet.start_job(["*", "command.run", line]));
    let statuses = jobs.map(|job| fleet.overlord(["job-status", &job, "--wait", "--output", "json"]).json()["hosts"].clone());
    for file in ["db", "conf", "snap."] {
        fleet.minions().iter().for_each(Minion::kill9);
        let damaged: Vec<_> = fleet.minions().iter().zip(&damages).map(|(minion, damage)| damage_store(minion, file, *damage)).collect();
        // Which hosts have a snapshot depends on how they were started before.
        assert!(damaged.iter().filter(|damaged| **damaged).count() > if file == "snap." { 0 } else { FLIPS }, "{file}: {damaged:?}");
        std::thread::scope(|scope| fleet.minions().iter().for_each(|minion| drop(scope.spawn(|| minion.start()))));
        for (number, (minion, damage)) in fleet.minions().iter().zip(&damages).enumerate() {
            let what = format!("{file} {damage:?} of {}", minion.name());
            // Where nobody has asked about the jobs they must be found again unasked.
            if number.is_multiple_of(2) {
                wait_until_listed(&fleet, minion, statuses.len());
            }
            statuses.iter().for_each(|truth| assert_told(&fleet, minion, &truth[minion.name()], &what));
            wait_until_listed(&fleet, minion, statuses.len());
        }
        // A log with damage in it sled takes for one that ends there, and says nothing; what is missing then is found again as well.
        let aside = fleet.minions().iter().filter(|minion| minion.stderr().contains("the status store was damaged")).count();
        assert!(aside > 0 || file == "db", "{file}: no damage was noticed");
    }
    fleet.assert_no_leaks();
}

fn ask(fleet: &Fleet, minion: &Minion, method: &str, args: Value) -> Value {
    let call = envelope("admin", minion.name(), method, args);
    fleet.raw_overlord(minion.name()).call(&call).unwrap()["result"]["result"].clone()
}

/// A host says of a job what the overlord was told of it before.
fn assert_told(fleet: &Fleet, minion: &Minion, truth: &Value, what: &str) {
    let report = ask(fleet, minion, "jobs.status", json!([truth["minion_job_id"]]));
    for field in ["state", "result", "error", "started_at", "finished_at"] {
        assert_eq!(report[field], truth[field], "{what}: {}", shortened(&report));
    }
}

fn wait_until_listed(fleet: &Fleet, minion: &Minion, count: usize) {
    let is_listed = || ask(fleet, minion, "jobs.list", json!([]))["jobs"].as_array().is_some_and(|jobs| jobs.len() == count);
    wait_until("all jobs to be listed", PATIENCE, is_listed);
}

/// Damages what sled has written into a file of its store; the rest of a segment is zeros.
fn damage_store(minion: &Minion, file: &str, damage: Damage) -> bool {
    let entries = fs::read_dir(minion.state_dir().join("status.sled")).unwrap().flatten();
    let Some(entry) = entries.into_iter().find(|entry| entry.file_name().to_string_lossy().starts_with(file)) else { return false };
    let bytes = fs::read(entry.path()).unwrap();
    let used = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    match damage {
        Damage::Flip(number) => flip(&entry.path(), spread(used * 8, FLIPS).nth(number).unwrap()),
        Damage::Cut(number) => cut(&entry.path(), spread(used, CUTS).nth(number).unwrap()),
    }
    used > 0
}

/// The store's file goes, and what is in its place cannot be opened. The server goes on; and once that is mended it takes in
/// what has ended meanwhile, with no restart.
#[test]
fn a_status_store_that_fails_in_use_is_filled_again_once_it_is_mended() {
    let fleet = Fleet::builder().hosts(1).minion_toml("[limits]\nreconcile_every = \"1s\"\n").start();
    let web1 = fleet.minion("web1");
    let server = web1.pid();
    let run = |line: &str| {
        let id = fleet.start_job(["*", "command.run", line]);
        let status = fleet.overlord(["job-status", &id, "--wait", "--output", "json"]).ok().json()["hosts"]["web1"].clone();
        assert_eq!(status["result"]["stdout"], format!("{}\n", line.trim_start_matches("echo ")), "{status}");
        status["minion_job_id"].as_str().unwrap().to_owned()
    };
    let listed = || {
        let list = fleet.overlord(["web1", "jobs.list", "--output", "json"]).ok().json()["hosts"]["web1"]["result"]["jobs"].clone();
        list.as_array().unwrap().iter().filter(|job| job["state"] == "ok").count()
    };
    let before = run("echo before");
    wait_until("the store to have it", PATIENCE, || listed() == 1);
    let data = web1.state_dir().join("status.sled/db");
    fs::remove_file(&data).unwrap();
    std::os::unix::fs::symlink(web1.state_dir().join("no/such/file"), &data).unwrap();
    let meanwhile = [run("echo one"), run("echo two")];
    wait_until("the server to say so", PATIENCE, || web1.stderr().contains("the status store cannot be used"));
    for (id, result) in [(&before, "before\n"), (&meanwhile[0], "one\n"), (&meanwhile[1], "two\n")] {
        let told = fleet.overlord(["web1", "jobs.status", id, "--output", "json"]).ok().json();
        assert_eq!(told["hosts"]["web1"]["result"]["result"]["stdout"], result, "{told}");
    }
    fs::remove_file(&data).unwrap();
    wait_until("all to be listed", PATIENCE, || listed() == 3);
    assert_eq!(web1.pid(), server);
    let _after = run("echo after");
    wait_until("the next to be listed", PATIENCE, || listed() == 4);
    fleet.assert_no_leaks();
}

/// So little room that the spools take what ends, and the store is not to be written.
#[test]
fn what_ends_while_the_status_store_has_no_room_is_taken_in_later() {
    let limits = "[limits]\ndisk_reserve_bytes = 0\nreconcile_every = \"1s\"\n";
    let fleet = Fleet::builder().hosts(1).small_disk(48 << 20).minion_toml(limits).start();
    let web1 = fleet.minion("web1");
    let server = web1.pid();
    let run = |line: &str| {
        let id = fleet.start_job(["*", "command.run", line]);
        fleet.overlord(["job-status", &id, "--wait", "--output", "json"]).ok().json()["hosts"]["web1"].clone()
    };
    let listed = || {
        let list = fleet.overlord(["web1", "jobs.list", "--output", "json"]).ok().json()["hosts"]["web1"]["result"]["jobs"].clone();
        list.as_array().unwrap().len()
    };
    let _before = run("echo before");
    wait_until("the store to have it", PATIENCE, || listed() == 1);
    web1.fill(2 << 20);
    let meanwhile = run("echo meanwhile");
    assert_eq!(meanwhile["result"]["stdout"], "meanwhile\n", "{meanwhile}");
    wait_until("the server to say so", PATIENCE, || web1.stderr().contains("the status store cannot be used"));
    assert_eq!(listed(), 1, "the store was written all the same");
    web1.free();
    wait_until("both to be listed", PATIENCE, || listed() == 2);
    assert_eq!(web1.pid(), server);
    fleet.assert_no_leaks();
}
