//! What the overlord keeps, when the disk and the folder are not as they should be: the answer is the same.

use std::fs;
use std::process::Command;
use std::time::{Duration, SystemTime};

use fleet::{Fleet, PATIENCE, Running, wait_until};

/// A job that has ended and whose dispatcher is gone.
fn ended_job(fleet: &Fleet) -> String {
    let id = fleet.start_job(["*", "test.add", "23", "45"]);
    let _ = fleet.overlord(["job-status", &id, "--wait"]).ok();
    wait_until("the dispatcher to be gone", PATIENCE, || fleet.dispatcher(&id).is_none());
    id
}

#[test]
fn odd_files_among_the_logs_hide_no_job_and_are_none() {
    let fleet = Fleet::start(1);
    let id = ended_job(&fleet);
    let logs = fleet.home().join("jobs");
    fs::create_dir(logs.join("0000-0000-0000.log")).unwrap();
    fs::copy(logs.join(format!("{id}.log")), logs.join(format!("{}.log", id.replace('-', "")))).unwrap();
    let listed = fleet.overlord(["job-list", "--output", "json"]).ok().json();
    assert_eq!(listed["jobs"].as_array().unwrap().len(), 1, "{listed}");
}

/// The full disk is a small one of its own, seen by the command alone; where no such can be made, there is nothing to test.
#[test]
fn a_job_is_read_on_a_full_disk_and_its_store_is_left_alone() {
    let fleet = Fleet::start(1);
    let id = ended_job(&fleet);
    let is_permitted = Command::new("unshare").args(["-m", "true"]).output().is_ok_and(|run| run.status.success());
    if !is_permitted {
        return;
    }
    let home = fleet.home().display().to_string();
    let overlord = fleet::binaries().overlord.display().to_string();
    let script = format!(
        "set -e; mkdir {home}/full; mount -t tmpfs -o size=1m tmpfs {home}/full; \
         cp -r {home}/certs {home}/hosts.toml {home}/jobs {home}/full/; cat /dev/zero > {home}/full/ballast 2>/dev/null || true; \
         for n in 1 2; do {overlord} --home {home}/full job-status {id}; {overlord} --home {home}/full job-list; done; ls {home}/full"
    );
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", &script]);
    let run = Running::start(command).wait().ok();
    assert_eq!(run.out().matches("FINISHED").count(), 4, "{}\n{}", run.out(), run.err());
    assert!(run.err().contains("log alone") && !run.out().contains("damaged"), "{}\n{}", run.out(), run.err());
}

#[test]
fn what_hosts_say_is_shown_on_a_read_only_disk_though_it_cannot_be_kept() {
    let fleet = Fleet::start(1);
    let gate = fleet.root().join("gate");
    let id = fleet.start_job(["*", "command.run", &format!("while [ ! -e {} ]; do sleep 0.02; done; echo done", gate.display())]);
    let _ = fleet.wait_for_state(&id, "PARTIAL");
    wait_until("the dispatcher to be gone", PATIENCE, || fleet.dispatcher(&id).is_none());
    let is_permitted = Command::new("unshare").args(["-m", "true"]).output().is_ok_and(|run| run.status.success());
    if !is_permitted {
        return;
    }
    fs::write(gate, "").unwrap();
    let web1 = fleet.minion("web1");
    let outcome = |spool: &String| web1.spool(spool).join("outcome.json").exists();
    wait_until("its end", PATIENCE, || web1.spools().iter().any(outcome));
    let (home, overlord) = (fleet.home().display().to_string(), fleet::binaries().overlord.display().to_string());
    let script = format!(
        "set -e; mount --bind {home} {home}; mount -o remount,bind,ro {home}; ! touch {home}/ballast 2>/dev/null; \
         {overlord} --home {home} job-status {id}; {overlord} --home {home} job-status {id}"
    );
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", &script]);
    let run = Running::start(command).wait().ok();
    assert_eq!(run.out().matches("FINISHED").count(), 2, "{}\n{}", run.out(), run.err());
    assert!(run.out().contains("done") && run.err().contains("could not be kept"), "{}\n{}", run.out(), run.err());
    assert_eq!(fleet.job_status(&id)["hosts"]["web1"]["result"]["stdout"], "done\n", "and is kept as soon as it can be");
}

#[test]
fn a_log_in_which_nothing_stands_is_no_job_and_goes() {
    let fleet = Fleet::start(1);
    let id = ended_job(&fleet);
    let empty = fleet.home().join("jobs").join("0000-0000-0000.log");
    fs::write(&empty, "").unwrap();
    let none = fleet.overlord(["job-delete", "0000-0000-0000"]).expect(4);
    assert!(none.err().contains("no job 0000-0000-0000"), "{}", none.err());
    assert!(empty.exists(), "somebody may be beginning it");
    let made = SystemTime::now() - Duration::from_secs(61);
    fs::File::options().append(true).open(&empty).unwrap().set_modified(made).unwrap();
    let listed = fleet.overlord(["job-list", "--output", "json"]).ok();
    assert_eq!((listed.json()["jobs"].as_array().unwrap().len(), listed.err().as_str()), (1, ""));
    assert!(!empty.exists());
    assert_eq!(fleet.job_status(&id)["state"], "FINISHED");
}
