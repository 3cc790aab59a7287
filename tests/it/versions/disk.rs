//! Folders that say which format they have: the spools, both stores, the authority.

use std::fs;

use fleet::{Fleet, PATIENCE, wait_until};
use serde_json::json;

use super::{Snapshot, assert_refused, mark_as_newer};

fn finished(fleet: &Fleet, words: &[&str]) -> String {
    let id = fleet.start_job(words);
    fleet.wait_for_state(&id, "FINISHED");
    wait_until("the dispatcher to be gone", PATIENCE, || fleet.dispatcher(&id).is_none());
    id
}

#[test]
fn spools_of_a_newer_version_are_refused_and_nothing_in_them_is_touched() {
    let fleet = Fleet::start(1);
    let web1 = fleet.minion("web1");
    let id = finished(&fleet, &["*", "test.add", "23", "45"]);
    let before = fleet.job_status(&id);
    web1.stop();
    let mark = fs::read(web1.spools_dir().join("format")).unwrap();
    mark_as_newer(&web1.spools_dir());
    let (spools, store) = (Snapshot::of(&web1.spools_dir()), Snapshot::of(&web1.state_dir().join("status.sled")));
    let checked = fleet.check("web1").expect(1);
    assert_refused(&checked.out(), "minion", "overlord-minion");
    for _again in 0..2 {
        web1.start_without_waiting();
        assert!(!web1.wait_for_end().success());
    }
    assert_refused(&web1.stderr(), "minion", "overlord-minion");
    assert!(web1.stderr().contains(&web1.spools_dir().join("format").display().to_string()), "it names the file");
    assert_eq!(Snapshot::of(&web1.spools_dir()), spools);
    assert_eq!(Snapshot::of(&web1.state_dir().join("status.sled")), store, "what stands on the spools is not touched either");

    // The version that wrote them is installed again.
    fs::write(web1.spools_dir().join("format"), mark).unwrap();
    web1.start();
    assert_eq!(fleet.job_status(&id), before);
}

#[test]
fn what_a_version_before_the_marks_has_left_goes_on_and_gets_them() {
    let fleet = Fleet::start(1);
    let web1 = fleet.minion("web1");
    let ended = finished(&fleet, &["*", "test.add", "23", "45"]);
    let before = fleet.job_status(&ended);
    // Its daemon outlives the server and the spawner, and writes as the version that started it does.
    let gate = fleet.root().join("gate");
    let running =
        fleet.start_job(["*", "command.run", &format!("while ! test -e {}; do sleep 0.05; done; echo once >>{0}", gate.display())]);
    fleet.wait_for_state(&running, "PARTIAL");
    wait_until("it to run", PATIENCE, || fleet.job_status(&running)["hosts"]["web1"]["state"] == "running");
    web1.kill9();
    wait_until("the spawner to be gone", PATIENCE, || web1.spawner().is_none());
    let marks = [web1.spools_dir(), web1.state_dir().join("status.sled"), fleet.home().join("jobs.sled"), fleet.home().join("certs")];
    let marks = marks.map(|folder| folder.join("format"));
    let texts = marks.each_ref().map(|mark| fs::read(mark).unwrap());
    marks.iter().for_each(|mark| fs::remove_file(mark).unwrap());

    web1.start();
    assert_eq!(fleet.job_status(&ended), before);
    fs::write(&gate, "").unwrap();
    let status = fleet.wait_for_state(&running, "FINISHED");
    assert_eq!(status["hosts"]["web1"]["state"], "ok", "{status}");
    assert_eq!(fs::read_to_string(&gate).unwrap(), "once\n");
    let _ = fleet.overlord(["certs", "token"]).ok();
    assert_eq!(marks.each_ref().map(|mark| fs::read(mark).unwrap()), texts);
}

#[test]
fn a_status_store_of_a_newer_version_is_left_for_it_and_the_host_goes_on() {
    let fleet = Fleet::start(1);
    let web1 = fleet.minion("web1");
    let id = finished(&fleet, &["*", "test.add", "23", "45"]);
    let listed = || fleet.overlord(["*", "jobs.list", "--output", "json"]).ok().json()["hosts"]["web1"]["result"]["jobs"].clone();
    let before = listed();
    web1.stop();
    let (store, beside) = (web1.state_dir().join("status.sled"), web1.state_dir().join("status.sled.format-1"));
    let mark = fs::read(store.join("format")).unwrap();
    mark_as_newer(&store);
    let untouched = Snapshot::of(&store);
    web1.start();
    wait_until("the store to be filled from the spools", PATIENCE, || listed() == before);
    assert_refused(&web1.stderr(), "minion", "overlord-minion");
    assert!(beside.is_dir());
    let later = finished(&fleet, &["*", "test.ping"]);
    web1.stop();
    assert_eq!(Snapshot::of(&store), untouched);

    // The version that wrote it comes back, and takes in what happened meanwhile.
    fs::write(store.join("format"), mark).unwrap();
    web1.start();
    wait_until("what happened meanwhile to be known", PATIENCE, || listed().as_array().is_some_and(|jobs| jobs.len() == 2));
    assert!(!beside.exists());
    for job in [id, later] {
        assert_eq!(fleet.job_status(&job)["state"], "FINISHED");
    }
}

#[test]
fn a_job_store_of_a_newer_version_is_left_for_it_and_the_logs_answer() {
    let fleet = Fleet::start(1);
    let id = finished(&fleet, &["*", "test.add", "23", "45"]);
    let before = fleet.job_status(&id);
    let store = fleet.home().join("jobs.sled");
    let mark = fs::read(store.join("format")).unwrap();
    mark_as_newer(&store);
    let untouched = Snapshot::of(&store);
    for _again in 0..2 {
        let told = fleet.overlord(["job-status", &id, "--output", "json"]).ok();
        assert_eq!(told.json(), before);
        assert_refused(&told.err(), "overlord", "overlord");
    }
    let later = finished(&fleet, &["*", "test.ping"]);
    let listed = fleet.overlord(["job-list", "--output", "json"]).ok();
    assert_eq!(listed.json()["jobs"].as_array().unwrap().len(), 2, "{}", listed.out());
    assert_refused(&listed.err(), "overlord", "overlord");
    assert_eq!(Snapshot::of(&store), untouched);

    fs::write(store.join("format"), mark).unwrap();
    for job in [&id, &later] {
        let told = fleet.overlord(["job-status", job, "--output", "json"]).ok();
        assert_eq!((told.err().as_str(), &told.json()["state"]), ("", &json!("FINISHED")));
    }
}

#[test]
fn an_authority_of_a_newer_version_is_left_alone_and_calls_go_on() {
    let fleet = Fleet::start(1);
    let certs = fleet.home().join("certs");
    mark_as_newer(&certs);
    let untouched = Snapshot::of(&certs);
    let out = fleet.root().join("out");
    for words in [
        vec!["certs", "issue", "web7", "--out", out.to_str().unwrap()],
        vec!["certs", "list"],
        vec!["certs", "token"],
        vec!["certs", "revoke", "web1"],
        vec!["certs", "serve", "--listen", "127.0.0.1:0"],
    ] {
        let run = fleet.overlord(&words);
        assert_ne!(run.code(), 0, "{words:?}");
        assert_refused(&run.err(), "overlord", "overlord");
    }
    let _ = fleet.overlord(["*", "test.ping"]).ok();
    assert_eq!(Snapshot::of(&certs), untouched);
}
