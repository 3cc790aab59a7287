//! Files that are damaged, out of sight, or have no room.

use std::fs;

use fleet::{Fleet, Minion, PATIENCE, wait_for, wait_until};
use serde_json::{Value, json};

use super::Runs;

/// A host's disk: enough for its store and a few jobs.
const DISK_BYTES: u64 = 48 << 20;
/// What of it new jobs may not take.
const RESERVE_BYTES: u64 = 8 << 20;

/// How a disk comes to take nothing more, and how it is mended.
type Trouble = (&'static str, fn(&Minion), fn(&Minion));
const TROUBLES: [Trouble; 2] = [("full", |minion| minion.fill(0), Minion::free), ("read-only", Minion::remount_ro, Minion::remount_rw)];

fn with_small_disk(reserve_bytes: u64) -> Fleet {
    let limits = format!("[limits]\ndisk_reserve_bytes = {reserve_bytes}\n");
    Fleet::builder().hosts(1).small_disk(DISK_BYTES).minion_toml(&limits).start()
}

/// A job that has printed, and ends with the rest when the gate is opened; its id, and that on the host.
fn start_gated(fleet: &Fleet, runs: &Runs) -> (String, String) {
    let gate = fleet.root().join("gate");
    let line = format!("{}; echo first; while [ ! -e {} ]; do sleep 0.02; done; echo last", runs.note(), gate.display());
    let id = fleet.start_job(["*", "command.run", &line]);
    wait_until("it to start", PATIENCE, || runs.count(&id, "web1") == 1);
    let status = fleet.wait_for_state(&id, "PARTIAL");
    (id, status["hosts"]["web1"]["minion_job_id"].as_str().unwrap().to_owned())
}

fn ask(fleet: &Fleet, words: &[&str]) -> Value {
    fleet.overlord([&["web1"], words, &["--output", "json"]].concat()).json()["hosts"]["web1"].clone()
}

/// A job that is ok, on a host that nobody has started again.
fn assert_accepts(fleet: &Fleet, runs: &Runs, trouble: &str) {
    let id = fleet.start_job(["*", "command.run", &runs.note()]);
    let status = fleet.overlord(["job-status", &id, "--wait", "--output", "json"]).json();
    assert_eq!((&status["hosts"]["web1"]["state"], runs.count(&id, "web1")), (&json!("ok"), 1), "after {trouble}: {status}");
}

/// What runs keeps its result, what is known can be read, what is new is refused with the reason; and all is well when the disk is.
#[test]
fn a_disk_that_takes_nothing_costs_no_result_and_no_restart() {
    for (trouble, bring, mend) in TROUBLES {
        let fleet = with_small_disk(0);
        let (web1, runs) = (fleet.minion("web1"), Runs::of(&fleet));
        let before = fleet.start_job(["*", "command.run", "echo before"]);
        let kept = fleet.overlord(["job-status", &before, "--wait", "--output", "json"]).ok().json()["hosts"]["web1"].clone();
        let (id, minion_job_id) = start_gated(&fleet, &runs);
        let server = web1.pid();
        bring(web1);
        assert_eq!(ask(&fleet, &["test.ping"])["result"], "pong", "{trouble}");
        let earlier = ask(&fleet, &["jobs.status", kept["minion_job_id"].as_str().unwrap()]);
        assert_eq!(earlier["result"]["result"]["stdout"], "before\n", "{trouble}: {earlier}");
        assert_eq!(ask(&fleet, &["jobs.status", &minion_job_id])["result"]["state"], "running", "{trouble}");

        let refused = fleet.start_job(["*", "command.run", &runs.note()]);
        let status = fleet.overlord(["job-status", &refused, "--wait", "--output", "json"]).expect(4).json();
        assert_eq!(status["hosts"]["web1"]["state"], "undelivered", "{trouble}: {status}");

        fs::write(fleet.root().join("gate"), "").unwrap();
        wait_until("the daemon to say that it cannot write", PATIENCE, || web1.stderr().contains("outcome cannot be written"));
        assert_eq!(ask(&fleet, &["jobs.status", &minion_job_id])["result"]["state"], "running", "{trouble}");
        mend(web1);
        let status = fleet.overlord(["job-status", &id, "--wait", "--output", "json"]).ok().json();
        assert_eq!(status["hosts"]["web1"]["result"]["stdout"], "first\nlast\n", "{trouble}: {status}");
        assert_accepts(&fleet, &runs, trouble);
        assert_eq!((web1.pid(), runs.count(&refused, "web1")), (server, 0), "{trouble}");
        fleet.assert_no_leaks();
    }
}

/// What a full disk did not take of a job's output is missing, and the file says so; the result has its own copy.
#[test]
fn output_that_a_full_disk_did_not_take_is_marked_as_cut() {
    let fleet = with_small_disk(0);
    let (web1, runs) = (fleet.minion("web1"), Runs::of(&fleet));
    let gate = fleet.root().join("gate");
    let line = format!(
        "{}; while [ ! -e {} ]; do sleep 0.02; done; yes | head -c 100000; touch {1}2; while [ ! -e {1}3 ]; do sleep 0.02; done",
        runs.note(),
        gate.display()
    );
    let id = fleet.start_job(["*", "command.run", &line]);
    wait_until("it to start", PATIENCE, || runs.count(&id, "web1") == 1);
    web1.fill(0);
    fs::write(&gate, "").unwrap();
    wait_until("it to have printed", PATIENCE, || gate.with_file_name("gate2").exists());
    web1.free();
    fs::write(gate.with_file_name("gate3"), "").unwrap();
    let status = fleet.overlord(["job-status", &id, "--wait", "--output", "json"]).ok().json();
    let host = &status["hosts"]["web1"];
    assert_eq!(host["result"]["stdout"].as_str().unwrap().len(), 100_000, "the result was never on that disk");
    let file = fs::read_to_string(web1.spool(host["minion_job_id"].as_str().unwrap()).join("stdout")).unwrap();
    assert!(file.len() < 100_000 && file.contains("[cut: the first "), "{} bytes are there, and no mark", file.len());
}

/// New jobs leave alone what those need that run.
#[test]
fn new_jobs_are_refused_below_the_reserve_and_accepted_above_it() {
    let fleet = with_small_disk(RESERVE_BYTES);
    let (web1, runs) = (fleet.minion("web1"), Runs::of(&fleet));
    let (id, _) = start_gated(&fleet, &runs);
    web1.fill(RESERVE_BYTES / 2);
    let refused = fleet.start_job(["*", "command.run", &runs.note()]);
    let status = fleet.overlord(["job-status", &refused, "--wait", "--output", "json"]).expect(4).json();
    let host = &status["hosts"]["web1"];
    assert_eq!((&host["state"], runs.count(&refused, "web1")), (&json!("undelivered"), 0), "{status}");
    assert!(host["error"]["message"].as_str().unwrap().contains("limits.disk_reserve_bytes"), "{status}");
    fs::write(fleet.root().join("gate"), "").unwrap();
    let status = fleet.overlord(["job-status", &id, "--wait", "--output", "json"]).ok().json();
    assert_eq!(status["hosts"]["web1"]["result"]["stdout"], "first\nlast\n", "{status}");
    web1.free();
    assert_accepts(&fleet, &runs, "below the reserve");
}

#[test]
fn a_status_store_that_is_damaged_is_made_anew_from_the_spools() {
    let fleet = Fleet::start(1);
    let id = fleet.start_job(["*", "test.add", "23", "45"]);
    let web1 = fleet.minion("web1");
    let spool = wait_for("the job's spool", PATIENCE, || web1.spools().pop());
    wait_until("the job to end", PATIENCE, || web1.spool(&spool).join("outcome.json").exists());
    web1.kill9();
    let store = web1.state_dir().join("status.sled");
    fs::write(store.join("conf"), b"not what was written").unwrap();
    web1.start();
    assert!(web1.stderr().contains("damaged"), "{}", web1.stderr());
    wait_until("the spool to be taken in, before anyone asks about it", PATIENCE, || {
        let listed = fleet.overlord(["web1", "jobs.list", "--output", "json"]).ok().json();
        listed["hosts"]["web1"]["result"]["jobs"].as_array().unwrap().len() == 1
    });
    let status = fleet.overlord(["job-status", &id, "--wait", "--output", "json"]).ok().json();
    assert_eq!(status["hosts"]["web1"]["result"], 68);
    let aside = fs::read_dir(web1.state_dir()).unwrap().flatten().any(|entry| entry.file_name().to_string_lossy().contains("damaged-"));
    assert!(aside, "the damaged store is kept");
}

#[test]
fn a_job_store_that_is_damaged_is_made_anew_from_the_logs() {
    let fleet = Fleet::start(1);
    let id = fleet.start_job(["*", "test.add", "23", "45"]);
    let before = fleet.overlord(["job-status", &id, "--wait", "--output", "json"]).ok().json();
    // It uses the store once more at its end, and would be the one to find the damage.
    wait_until("the dispatcher to be gone", PATIENCE, || fleet.dispatcher(&id).is_none());
    fs::write(fleet.home().join("jobs.sled/conf"), b"not what was written").unwrap();
    let run = fleet.overlord(["job-status", &id, "--output", "json"]).ok();
    assert_eq!(run.json(), before);
    assert!(run.err().contains("damaged"), "{}", run.err());
}

/// A volume that is not mounted for a while must not turn results into `lost`.
#[test]
fn spools_that_are_out_of_sight_for_a_while_lose_nothing() {
    let fleet = Fleet::start(1);
    let web1 = fleet.minion("web1");
    // Larger than what the status store keeps, so that the spool is needed.
    let id = fleet.start_job(["*", "command.run", "head -c 40000 /dev/zero | tr '\\0' x"]);
    let _ = fleet.overlord(["job-status", &id, "--wait"]).ok();
    let minion_job_id = fleet.job_status(&id)["hosts"]["web1"]["minion_job_id"].as_str().unwrap().to_owned();
    let asked = || fleet.overlord(["web1", "jobs.status", &minion_job_id, "--output", "json"]);
    let aside = web1.state_dir().join("elsewhere");
    fs::rename(web1.spools_dir(), &aside).unwrap();
    let blind = asked().expect(2).json();
    assert_eq!(blind["hosts"]["web1"]["error"]["code"], -32603, "it says that it cannot tell: {blind}");
    fs::rename(&aside, web1.spools_dir()).unwrap();
    let report = asked().ok().json()["hosts"]["web1"]["result"].clone();
    assert_eq!((&report["state"], report["result"]["stdout"].as_str().unwrap().len()), (&json!("ok"), 40000));
}
