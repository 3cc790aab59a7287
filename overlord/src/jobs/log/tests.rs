//! A job's log against those who are killed, mislead or wait.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may panic")]

use super::*;
use common::outcome::{Outcome, Verdict};
use common::protocol::Arguments;

fn header(id: &str) -> JobHeader {
    JobHeader {
        job_id: id.parse().unwrap(),
        caller: "admin".parse().unwrap(),
        target: "*".into(),
        method: "test.ping".into(),
        args: Arguments::default(),
        job_limit_ms: None,
        retry_of: None,
        map: None,
        hosts: vec!["web1".parse().unwrap()],
    }
}

fn heard(reason: &str) -> LogLine {
    let news = News::Unreachable { reason: reason.into() };
    LogLine { at: Timestamp::UNIX_EPOCH, event: Event::Heard { host: "web1".parse().unwrap(), attempt: 1, news } }
}

fn lines(home: &Home, id: &JobId, from: u64) -> (Vec<LogLine>, usize, u64) {
    let (mut good, mut bad) = (Vec::new(), 0);
    let offset = read(&home.job_log(id), from, |line| match line {
        Ok(line) => good.push(line),
        Err(_) => bad += 1,
    });
    (good, bad, offset.unwrap())
}

#[test]
fn a_log_is_locked_while_its_dispatcher_lives_and_no_longer() {
    let dir = tempfile::tempdir().unwrap();
    let home = Home::at(dir.path()).unwrap();
    let id: JobId = "54k2-9xqd-4fz1".parse().unwrap();
    let log = LockedLog::create(&home, header("54k2-9xqd-4fz1")).unwrap().unwrap();
    assert!(LockedLog::create(&home, header("54k2-9xqd-4fz1")).unwrap().is_none());
    assert!(is_dispatching(&home, &id).unwrap());
    assert!(JobLog::open(&home, &id).unwrap().lock().unwrap().is_none());
    drop(log);
    assert!(!is_dispatching(&home, &id).unwrap());
    assert!(JobLog::open(&home, &id).unwrap().lock().unwrap().is_some());
    assert_eq!(list(&home).unwrap().len(), 1);
}

#[test]
fn nobody_works_on_a_log_that_was_deleted_while_they_waited_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let home = Home::at(dir.path()).unwrap();
    let id: JobId = "54k2-9xqd-4fz1".parse().unwrap();
    let log = LockedLog::create(&home, header("54k2-9xqd-4fz1")).unwrap().unwrap();
    let waiting = JobLog::open(&home, &id).unwrap();
    log.delete().unwrap();
    assert!(waiting.lock().unwrap_err().is_missing());
}

#[test]
fn a_line_that_was_cut_off_swallows_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let home = Home::at(dir.path()).unwrap();
    let id: JobId = "54k2-9xqd-4fz1".parse().unwrap();
    drop(LockedLog::create(&home, header("54k2-9xqd-4fz1")).unwrap());
    let mut raw = OpenOptions::new().append(true).open(home.job_log(&id)).unwrap();
    raw.write_all(b"{\"at\":\"2026-").unwrap();
    let (good, bad, offset) = lines(&home, &id, 0);
    assert_eq!((good.len(), bad), (1, 1), "what was cut off is told");

    let mut log = JobLog::open(&home, &id).unwrap();
    log.append(&heard("cut")).unwrap();
    // Another writer is cut off while this one has the log open.
    raw.write_all(b"{\"at\":\"2026-").unwrap();
    log.append(&heard("still cut")).unwrap();
    let (good, bad, end) = lines(&home, &id, offset);
    assert_eq!((good, bad), (vec![heard("cut"), heard("still cut")], 2));
    assert_eq!(end, raw.metadata().unwrap().len());
}

#[test]
fn what_would_not_read_back_is_not_written() {
    let dir = tempfile::tempdir().unwrap();
    let home = Home::at(dir.path()).unwrap();
    let id: JobId = "54k2-9xqd-4fz1".parse().unwrap();
    let mut log = LockedLog::create(&home, header("54k2-9xqd-4fz1")).unwrap().unwrap();
    let deep = (0..127).fold(serde_json::json!(0), |value, _| serde_json::json!([value]));
    let sly = serde_json::json!({ "$serde_json::private::RawValue": "[[[" });
    for result in [deep, sly] {
        let ended = Outcome::not_run(Verdict::Ok { result }, Timestamp::UNIX_EPOCH);
        let event = Event::Heard { host: "web1".parse().unwrap(), attempt: 1, news: News::Ended(ended) };
        log.append(&LogLine { at: Timestamp::UNIX_EPOCH, event }).unwrap();
    }
    let (good, bad, _) = lines(&home, &id, 0);
    assert_eq!((good.len(), bad), (3, 0));
    assert!(matches!(&good[2].event, Event::Heard { news: News::Unreachable { reason }, .. } if reason.contains("cannot be kept")));
}

#[test]
fn a_log_that_could_not_be_begun_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let home = Home::at(dir.path()).unwrap();
    let deep = (0..200).fold(serde_json::json!(0), |value, _| serde_json::json!([value]));
    let header = JobHeader { args: Arguments::Json(deep), ..header("54k2-9xqd-4fz1") };
    let error = LockedLog::create(&home, header).unwrap_err();
    assert!(!error.is_missing() && list(&home).unwrap().is_empty(), "{error}");
}

#[test]
fn an_empty_log_is_swept_once_nobody_can_be_beginning_it() {
    let dir = tempfile::tempdir().unwrap();
    let home = Home::at(dir.path()).unwrap();
    let id: JobId = "54k2-9xqd-4fz1".parse().unwrap();
    make_folder(&home).unwrap();
    let file = File::create(home.job_log(&id)).unwrap();
    let is_there = || home.job_log(&id).exists();
    sweep_empty(&home).unwrap();
    assert!(is_there(), "it may have just been made");
    file.set_modified(SystemTime::now() - Duration::from_secs(61)).unwrap();
    let locked = JobLog::open(&home, &id).unwrap().lock().unwrap().unwrap();
    sweep_empty(&home).unwrap();
    assert!(is_there(), "somebody is at work");
    drop(locked);
    drop(LockedLog::create(&home, header("54k2-9xqd-4fz2")).unwrap());
    sweep_empty(&home).unwrap();
    assert!(!is_there() && list(&home).unwrap().len() == 1);
}

#[test]
fn what_is_no_log_is_not_listed() {
    let dir = tempfile::tempdir().unwrap();
    let home = Home::at(dir.path()).unwrap();
    drop(LockedLog::create(&home, header("54k2-9xqd-4fz1")).unwrap());
    fs::create_dir(home.jobs_dir().join("0000-0000-0000.log")).unwrap();
    fs::copy(home.jobs_dir().join("54k2-9xqd-4fz1.log"), home.jobs_dir().join("54k29xqd4fz1.log")).unwrap();
    assert_eq!(list(&home).unwrap().len(), 1);
}
