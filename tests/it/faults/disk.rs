//! Files that are damaged, out of sight, or have no room.

use std::fs;

use fleet::{Fleet, PATIENCE, wait_for, wait_until};
use serde_json::json;

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
