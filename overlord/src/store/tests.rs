//! The store against crashes: it is thrown away, cut and damaged here, and must answer the same.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may panic")]

use std::fs::{self, OpenOptions};
use std::sync::mpsc::Receiver;

use common::identity::MinionName;
use common::job::{Event, JobHeader, LogLine, News};
use common::outcome::{Outcome, Verdict};
use common::protocol::Arguments;
use serde_json::json;
use tempfile::TempDir;

use super::*;
use crate::jobs::JobError;
use crate::jobs::log::{JobLog, LockedLog};

const JOB: &str = "54k2-9xqd-4fz1";

fn fleet() -> (TempDir, Fleet, Receiver<String>) {
    let dir = tempfile::tempdir().unwrap();
    let (sender, warnings) = std::sync::mpsc::channel();
    let fleet = Fleet::open(dir.path()).unwrap().with_warnings(move |text| drop(sender.send(text.to_owned())));
    (dir, fleet, warnings)
}

fn job() -> JobId {
    JOB.parse().unwrap()
}

fn host(name: &str) -> MinionName {
    name.parse().unwrap()
}

fn create(fleet: &Fleet) -> LockedLog {
    let header = JobHeader {
        job_id: job(),
        caller: "admin".parse().unwrap(),
        target: "*".into(),
        method: "test.ping".into(),
        args: Arguments::default(),
        job_limit_ms: None,
        retry_of: None,
        map: None,
        hosts: vec![host("web1"), host("web2")],
    };
    LockedLog::create(fleet.home(), header).unwrap().unwrap()
}

fn hear(fleet: &Fleet, name: &str, attempt: u32, news: News) {
    let event = Event::Heard { host: host(name), attempt, news };
    JobLog::open(fleet.home(), &job()).unwrap().append(&LogLine { at: Timestamp::now(), event }).unwrap();
}

fn accepted(id: &str) -> News {
    News::Accepted { minion_job_id: id.parse().unwrap(), state: HostState::Queued }
}

fn ended(result: i32) -> News {
    News::Ended(Outcome::not_run(Verdict::Ok { result: json!(result) }, Timestamp::UNIX_EPOCH))
}

fn record(fleet: &Fleet) -> JobRecord {
    super::record(fleet, &job()).unwrap().unwrap()
}

#[test]
fn the_store_catches_up_before_it_answers() {
    let (_dir, fleet, _) = fleet();
    assert!(super::record(&fleet, &job()).unwrap().is_none());
    drop(create(&fleet));
    assert_eq!(record(&fleet).hosts[&host("web1")].state, HostState::Pending);
    hear(&fleet, "web1", 1, accepted("0000-0000-0001"));
    assert_eq!(record(&fleet).hosts[&host("web1")].state, HostState::Queued);
    hear(&fleet, "web1", 1, ended(3));
    let known = record(&fleet);
    assert_eq!(known.hosts[&host("web1")].minion_job_id.as_ref().unwrap().as_str(), "0000-0000-0001");
    assert_eq!(known.hosts[&host("web1")].state, HostState::Ok);
    assert_eq!(record(&fleet), known);
    let counts = overview(&fleet, Listed::All).unwrap().jobs[0].counts.clone();
    assert_eq!(counts, BTreeMap::from([(HostState::Pending, 1), (HostState::Ok, 1)]));
}

#[test]
fn a_minion_job_id_is_written_once_for_each_sending() {
    let (_dir, fleet, _) = fleet();
    drop(create(&fleet));
    hear(&fleet, "web1", 1, accepted("0000-0000-0001"));
    record(&fleet);
    hear(&fleet, "web1", 1, accepted("0000-0000-0002"));
    hear(&fleet, "web2", 1, News::Ended(Outcome::not_run(Verdict::undelivered("off"), Timestamp::UNIX_EPOCH)));
    let again = Event::Resumed { attempt: 2, hosts: vec![host("web2")] };
    JobLog::open(fleet.home(), &job()).unwrap().append(&LogLine { at: Timestamp::now(), event: again }).unwrap();
    hear(&fleet, "web2", 2, accepted("0000-0000-0003"));
    let known = record(&fleet);
    assert_eq!(known.hosts[&host("web1")].minion_job_id.as_ref().unwrap().as_str(), "0000-0000-0001");
    assert_eq!(known.hosts[&host("web2")].minion_job_id.as_ref().unwrap().as_str(), "0000-0000-0003");
}

#[test]
fn a_store_that_is_gone_or_damaged_is_built_again() {
    let (dir, fleet, warnings) = fleet();
    drop(create(&fleet));
    hear(&fleet, "web1", 1, accepted("0000-0000-0001"));
    hear(&fleet, "web1", 1, ended(3));
    let known = record(&fleet);
    fs::remove_dir_all(fleet.home().store_dir()).unwrap();
    assert_eq!(record(&fleet), known);
    assert!(warnings.try_recv().is_err());

    // What sled takes for an empty store, or a shorter one, is filled from the log without a word.
    let db = fleet.home().store_dir().join("db");
    for damage in [vec![], vec![0xff; 600_000], b"garbage".repeat(2000)] {
        fs::write(&db, damage).unwrap();
        assert_eq!(record(&fleet), known);
    }
    // What it stumbles over is set aside.
    fs::write(fleet.home().store_dir().join("conf"), b"garbage".repeat(2000)).unwrap();
    assert_eq!(record(&fleet), known);
    let warning = warnings.recv_timeout(Duration::from_secs(1)).unwrap();
    assert!(warning.contains("damaged") && warning.contains("set aside"), "{warning}");
    let aside = fs::read_dir(dir.path()).unwrap().flatten().filter(|entry| entry.file_name().to_string_lossy().contains("sled.damaged-"));
    assert!(aside.count() > 0);
}

#[test]
fn a_job_of_which_some_records_are_missing_or_cannot_be_read_is_folded_again() {
    let (_dir, fleet, warnings) = fleet();
    drop(create(&fleet));
    hear(&fleet, "web1", 1, accepted("0000-0000-0001"));
    hear(&fleet, "web1", 1, ended(3));
    let known = record(&fleet);
    let key = format!("{JOB}/web1");
    with_store(&fleet, move |store| {
        store.hosts.insert(key.as_str(), "[".repeat(200).as_str()).unwrap();
        store.has_changed.set(true);
        Ok(())
    })
    .unwrap();
    assert_eq!(record(&fleet), known);
    // A record as it was before: whole in itself, and not the one that belongs there.
    with_store(&fleet, move |store| {
        let key = format!("{JOB}/web1");
        let text = String::from_utf8(store.hosts.get(&key).unwrap().unwrap().to_vec()).unwrap();
        store.hosts.insert(key.as_str(), text.replace("\"result\":3", "\"result\":4").as_str()).unwrap();
        store.has_changed.set(true);
        Ok(())
    })
    .unwrap();
    assert_eq!(record(&fleet), known);
    for tree in ["hosts", "ids", "jobs", "marks"] {
        with_store(&fleet, move |store| {
            store.db.open_tree(tree).unwrap().clear().unwrap();
            store.has_changed.set(true);
            Ok(())
        })
        .unwrap();
        assert_eq!(record(&fleet), known, "{tree}");
        assert_eq!(record(&fleet), known, "{tree}");
        assert!(warnings.try_recv().is_err(), "the other jobs are not touched, and nobody is told");
    }
}

#[test]
fn a_log_that_lost_its_end_is_folded_anew() {
    let (_dir, fleet, _) = fleet();
    drop(create(&fleet));
    let path = fleet.home().job_log(&job());
    let length = fs::metadata(&path).unwrap().len();
    hear(&fleet, "web1", 1, accepted("0000-0000-0001"));
    record(&fleet);
    OpenOptions::new().write(true).open(&path).unwrap().set_len(length).unwrap();
    record(&fleet);
    hear(&fleet, "web2", 1, ended(1));
    assert_eq!(record(&fleet).hosts[&host("web2")].state, HostState::Ok);
}

/// Flips a bit of the log's `line`th line, from 0.
fn damage_line(fleet: &Fleet, line: usize) {
    let path = fleet.home().job_log(&job());
    let mut bytes = fs::read(&path).unwrap();
    let starts: Vec<usize> = (0..bytes.len()).filter(|at| (*at == 0 || bytes[at - 1] == b'\n') && bytes[*at] != b'\n').collect();
    bytes[starts[line] + 30] ^= 1;
    fs::write(&path, bytes).unwrap();
}

#[test]
fn a_damaged_first_line_is_read_from_the_store_or_the_job_cannot_be_known() {
    let (_dir, fleet, warnings) = fleet();
    drop(create(&fleet));
    hear(&fleet, "web1", 1, ended(3));
    let known = record(&fleet);
    damage_line(&fleet, 0);
    assert_eq!(record(&fleet), known);
    with_store(&fleet, |store| {
        store.db.open_tree("marks").unwrap().clear().unwrap();
        store.has_changed.set(true);
        Ok(())
    })
    .unwrap();
    assert_eq!(record(&fleet), known);
    let told: Vec<String> = warnings.try_iter().collect();
    assert!(
        told.iter().any(|text| text.contains("at byte 0 is damaged")) && told.iter().any(|text| text.contains("all the same")),
        "{told:?}"
    );

    fs::remove_dir_all(fleet.home().store_dir()).unwrap();
    let error = super::record(&fleet, &job()).unwrap_err();
    assert!(error.to_string().contains("its log is damaged: ") && error.to_string().contains("at byte 0"), "{error}");
    assert!(overview(&fleet, Listed::All).unwrap().jobs.is_empty());
    assert!(warnings.try_iter().any(|text| text.contains("cannot be listed")));
}

#[test]
fn a_damaged_line_that_may_have_told_of_a_sending_leaves_nothing_undelivered() {
    let (_dir, fleet, warnings) = fleet();
    drop(create(&fleet));
    let undelivered = || News::Ended(Outcome::not_run(Verdict::undelivered("off"), Timestamp::UNIX_EPOCH));
    hear(&fleet, "web1", 1, undelivered());
    hear(&fleet, "web2", 1, ended(1));
    let again = Event::Resumed { attempt: 2, hosts: vec![host("web1")] };
    JobLog::open(fleet.home(), &job()).unwrap().append(&LogLine { at: Timestamp::now(), event: again }).unwrap();
    damage_line(&fleet, 3);
    let known = record(&fleet);
    assert_eq!((known.hosts[&host("web1")].state, known.hosts[&host("web1")].attempt), (HostState::Pending, 2));
    assert!(warnings.try_iter().any(|text| text.contains("is damaged and passed over")));
    // Said once: what is folded is not read again.
    assert_eq!(record(&fleet), known);
    assert!(warnings.try_recv().is_err());
    hear(&fleet, "web1", 2, undelivered());
    assert_eq!(record(&fleet).hosts[&host("web1")].state, HostState::Undelivered);
}

/// A line of a host and one of a sending, of which damage to the line's end between them makes one.
#[test]
fn a_damaged_stretch_that_looks_like_a_hosts_line_may_have_told_of_a_sending_too() {
    let (_dir, fleet, _) = fleet();
    drop(create(&fleet));
    hear(&fleet, "web1", 1, News::Ended(Outcome::not_run(Verdict::undelivered("off"), Timestamp::UNIX_EPOCH)));
    hear(&fleet, "web2", 1, ended(1));
    let again = Event::Resumed { attempt: 2, hosts: vec![host("web1")] };
    JobLog::open(fleet.home(), &job()).unwrap().append(&LogLine { at: Timestamp::now(), event: again }).unwrap();
    let path = fleet.home().job_log(&job());
    let text = String::from_utf8(fs::read(&path).unwrap()).unwrap();
    let (before, sending) = text.trim_end().rsplit_once("\n\n").unwrap();
    fs::write(&path, format!("{before}  {}\n", sending.replace("resumed", "resumes"))).unwrap();
    assert_eq!(record(&fleet).hosts[&host("web1")].state, HostState::Pending);
}

#[test]
fn a_damaged_log_beside_a_store_that_cannot_be_used_is_the_stores_trouble() {
    let (dir, fleet, warnings) = fleet();
    drop(create(&fleet));
    hear(&fleet, "web1", 1, ended(3));
    let known = record(&fleet);
    damage_line(&fleet, 0);
    let _ = record(&fleet);
    fs::write(dir.path().join("overlord.toml"), "store_wait = \"50ms\"").unwrap();
    let hasty = Fleet::open(dir.path()).unwrap();
    let asked = with_store(&fleet, move |_| Ok((super::record(&hasty, &job()), hasty.job(JOB).unwrap().delete()))).unwrap();
    assert!(matches!(asked, (Err(StoreError::Busy { .. }), Err(JobError::Store(StoreError::Busy { .. })))), "{asked:?}");
    assert_eq!(record(&fleet), known, "and the store knows it");
    drop(warnings);
}

#[test]
fn a_list_has_a_job_whose_header_the_store_has_forgotten() {
    let (_dir, fleet, warnings) = fleet();
    drop(create(&fleet));
    hear(&fleet, "web1", 1, ended(3));
    let listed = overview(&fleet, Listed::All).unwrap().jobs;
    assert_eq!(listed.len(), 1);
    with_store(&fleet, move |store| {
        store.db.open_tree("jobs").unwrap().clear().unwrap();
        store.has_changed.set(true);
        Ok(())
    })
    .unwrap();
    assert_eq!(overview(&fleet, Listed::All).unwrap().jobs, listed);
    assert!(warnings.try_recv().is_err());
}

#[test]
fn what_is_left_of_a_job_whose_log_is_gone_is_forgotten() {
    let (_dir, fleet, _) = fleet();
    drop(create(&fleet));
    hear(&fleet, "web1", 1, accepted("0000-0000-0001"));
    hear(&fleet, "web1", 1, ended(3));
    hear(&fleet, "web2", 1, ended(3));
    let second = Duration::from_secs(1);
    // It has ended, though nobody asked for it since.
    assert_eq!(super::standing(&fleet, second).unwrap().ended.len(), 1);
    fs::remove_file(fleet.home().job_log(&job())).unwrap();
    assert!(super::standing(&fleet, second).unwrap().ended.is_empty());
    let left =
        with_store(&fleet, |store| Ok(store.db.tree_names().iter().map(|name| store.db.open_tree(name).unwrap().len()).sum::<usize>()));
    assert_eq!(left.unwrap(), 0);
}

#[test]
fn many_at_once_wait_for_each_other_within_a_bound() {
    let (dir, fleet, _) = fleet();
    drop(create(&fleet));
    std::thread::scope(|scope| {
        for _ in 0..20 {
            scope.spawn(|| {
                hear(&fleet, "web1", 1, ended(3));
                assert_eq!(record(&fleet).hosts[&host("web1")].state, HostState::Ok);
            });
        }
    });
    fs::write(dir.path().join("overlord.toml"), "store_wait = \"50ms\"").unwrap();
    let hasty = Fleet::open(dir.path()).unwrap();
    let (refused, answered) =
        with_store(&fleet, move |_| Ok((with_store(&hasty, |store| store.record(&job())).err(), super::record(&hasty, &job()).unwrap())))
            .unwrap();
    assert!(matches!(refused, Some(StoreError::Busy { .. })), "{refused:?}");
    assert_eq!(answered, Some(record(&fleet)), "what the store cannot say, the log can");
}

#[test]
fn a_store_that_cannot_be_used_is_not_needed_and_not_set_aside() {
    let (dir, fleet, warnings) = fleet();
    drop(create(&fleet));
    hear(&fleet, "web1", 1, ended(3));
    // No folder can be made there.
    std::os::unix::fs::symlink("/dev/full", fleet.home().store_dir()).unwrap();
    for _ in 0..2 {
        assert_eq!(record(&fleet).hosts[&host("web1")].state, HostState::Ok);
        assert_eq!(overview(&fleet, Listed::All).unwrap().jobs[0].counts[&HostState::Ok], 1);
    }
    assert!(warnings.try_iter().any(|warning| warning.contains("log alone")));
    let names = fs::read_dir(dir.path()).unwrap().flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    assert!(!names.into_iter().any(|name| name.contains("damaged")));
}
