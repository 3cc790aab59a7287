#![allow(clippy::unwrap_used, reason = "a test may panic")]

use super::*;
use common::outcome::{Outcome, Verdict};
use common::protocol::JobProgress;
use serde_json::{Value, json};

fn report(id: &str, second: i64, result: Value) -> JobReport {
    let outcome = Outcome::not_run(Verdict::Ok { result }, Timestamp::from_second(second).unwrap());
    let text = json!({
        "minion_job_id": id, "call_id": "54k2-9xqd-4fz1", "caller": "admin", "method": "test.ping",
        "accepted_at": "2026-01-01T00:00:00Z", "state": "running",
    });
    JobReport { progress: JobProgress::Ended(outcome), ..serde_json::from_value(text).unwrap() }
}

fn kept() -> Kept {
    let since = Moment::now();
    let (caller, call_id) = ("admin".parse().unwrap(), "54k2-9xqd-4fz1".parse().unwrap());
    Kept { caller, call_id, start_before: Timestamp::UNIX_EPOCH, bytes: 7, since }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(future)
}

fn opened(dir: &Path) -> Store {
    let store = Store::at(&dir.join("status.sled"));
    assert_eq!(store.open().unwrap(), Opening::Opened);
    store
}

#[test]
fn what_was_written_is_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let job = report("0000-0000-0001", 1, json!(1));
    let store = opened(dir.path());
    assert!(block_on(store.put(job.clone(), kept())).unwrap());
    assert!(!block_on(store.put(job.clone(), kept())).unwrap(), "it is in already");
    drop(store);
    // The writer's thread lets go of it a moment later.
    let lock = std::fs::File::open(dir.path().join("status.sled/db")).unwrap();
    lock.lock().unwrap();
    drop(lock);
    let store = opened(dir.path());
    assert_eq!(store.find(&job.minion_job_id), Some(Known::Whole(job)));
}

#[test]
fn ends_are_in_order_and_can_be_taken_out() {
    let dir = tempfile::tempdir().unwrap();
    let store = opened(dir.path());
    for (id, second) in [("0000-0000-0001", 300), ("0000-0000-0002", 100), ("0000-0000-0003", 200)] {
        block_on(store.put(report(id, second, json!(null)), kept())).unwrap();
    }
    let ids = |ends: &[End]| ends.iter().map(|end| end.id.to_string()).collect::<Vec<_>>();
    let ends: Vec<End> = store.ends().collect();
    assert_eq!(ids(&ends), ["0000-0000-0002", "0000-0000-0003", "0000-0000-0001"]);
    let oldest = ends.first().cloned().unwrap();
    block_on(store.remove(vec![oldest.clone()])).unwrap();
    assert_eq!(ids(&store.ends().rev().collect::<Vec<_>>()), ["0000-0000-0001", "0000-0000-0003"]);
    assert_eq!((store.find(&oldest.id), store.contains(&oldest.id)), (None, false));
    assert_eq!(store.end(&report("0000-0000-0003", 200, json!(null))).map(|end| end.kept.bytes), Some(7));
}

#[test]
fn a_large_result_is_left_to_the_spool() {
    let dir = tempfile::tempdir().unwrap();
    let store = opened(dir.path());
    let large = report("0000-0000-0001", 1, json!("x".repeat(WHOLE_MAX_BYTES)));
    block_on(store.put(large.clone(), kept())).unwrap();
    assert_eq!(store.find(&large.minion_job_id), Some(Known::Listed(large.into())));
}

#[test]
fn a_damaged_store_is_set_aside() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("status.sled");
    std::fs::create_dir(&path).unwrap();
    std::fs::write(path.join("conf"), b"not what sled writes").unwrap();
    let store = Store::at(&path);
    assert!(matches!(store.open().unwrap(), Opening::Renewed(aside) if aside.join("conf").exists()));
    assert_eq!(store.ends().count(), 0);
}

#[test]
fn a_store_that_has_failed_is_replaced_while_its_old_self_still_holds_its_lock() {
    let dir = tempfile::tempdir().unwrap();
    let store = opened(dir.path());
    let job = report("0000-0000-0001", 1, json!(1));
    block_on(store.put(job.clone(), kept())).unwrap();
    let held = store.lock().take().unwrap();
    assert!(matches!(block_on(store.put(job.clone(), kept())), Err(StoreError::Closed(_))));
    assert_eq!(store.find(&job.minion_job_id), None);
    assert!(matches!(store.open().unwrap(), Opening::Renewed(_)));
    assert_eq!(store.open().unwrap(), Opening::WasOpen);
    block_on(store.put(job.clone(), kept())).unwrap();
    drop(held);
    assert_eq!(store.find(&job.minion_job_id), Some(Known::Whole(job)));
}
