#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may panic")]

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;

use serde_json::Value;
use tempfile::TempDir;

use super::*;

#[derive(Serialize)]
struct Line {
    method: String,
}

impl Entry for Line {
    fn summary(&self) -> String {
        self.method.clone()
    }
}

fn line(method: impl Into<String>) -> Line {
    Line { method: method.into() }
}

struct Log {
    dir: TempDir,
}

impl Log {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("audit.log")
    }

    fn open(&self, max_bytes: u64, files: u32) -> Audit {
        Audit::open(&self.path(), Rotation { max_bytes, files }).unwrap()
    }

    /// What the file with that number holds; 0 is the log itself.
    fn methods(&self, number: usize) -> Vec<String> {
        let path = if number == 0 { self.path() } else { self.dir.path().join(format!("audit.log.{number}")) };
        let text = fs::read_to_string(path).unwrap();
        text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["method"].as_str().unwrap().to_owned()).collect()
    }

    fn files(&self) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(self.dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names.into_iter().map(|name| name.into_string().unwrap()).collect()
    }
}

#[test]
fn each_entry_is_one_line_for_this_user_alone() {
    let log = Log::new();
    let audit = log.open(1 << 20, 1);
    audit.record(&line("a\nb\u{1b}")).unwrap();
    audit.record(&line("c")).unwrap();
    assert_eq!(log.methods(0), ["a\nb\u{1b}", "c"]);
    assert_eq!(fs::metadata(log.path()).unwrap().mode() & 0o777, 0o600);
}

#[test]
fn a_log_that_was_rotated_away_is_made_anew() {
    let log = Log::new();
    let audit = log.open(1 << 20, 1);
    audit.record(&line("a")).unwrap();
    fs::rename(log.path(), log.dir.path().join("audit.log.1")).unwrap();
    audit.record(&line("b")).unwrap();
    assert_eq!((log.methods(0), log.methods(1)), (vec!["b".to_owned()], vec!["a".to_owned()]));
}

#[test]
fn a_full_disk_is_told() {
    let log = Log::new();
    std::os::unix::fs::symlink("/dev/full", log.path()).unwrap();
    let error = log.open(1 << 20, 1).record(&line("a")).unwrap_err().to_string();
    assert!(error.contains("audit.log: No space left"), "{error}");
}

#[test]
fn full_files_move_up_and_the_oldest_goes() {
    let log = Log::new();
    let length = serde_json::to_string(&line("0")).unwrap().len() as u64 + 1;
    let audit = log.open(2 * length, 2);
    for number in 0..7 {
        audit.record(&line(number.to_string())).unwrap();
    }
    assert_eq!(log.files(), ["audit.log", "audit.log.1", "audit.log.2"]);
    assert_eq!([log.methods(2).concat(), log.methods(1).concat(), log.methods(0).concat()], ["23", "45", "6"]);
    let fewer = log.open(2 * length, 1);
    fewer.record(&line("7")).unwrap();
    fewer.record(&line("8")).unwrap();
    assert_eq!(log.files(), ["audit.log", "audit.log.1"]);
    assert_eq!([log.methods(1).concat(), log.methods(0).concat()], ["67", "8"]);
}

#[test]
fn a_gap_that_a_kill_left_is_closed_and_costs_no_file() {
    let log = Log::new();
    let audit = log.open(1, 3);
    for number in 0..4 {
        audit.record(&line(number.to_string())).unwrap();
    }
    // Killed after the first of its renames, that of `.2` over `.3`.
    fs::rename(log.dir.path().join("audit.log.2"), log.dir.path().join("audit.log.3")).unwrap();
    audit.record(&line("4")).unwrap();
    assert_eq!([3, 2, 1, 0].map(|number| log.methods(number).concat()), ["1", "2", "3", "4"]);
}

#[test]
fn a_line_that_is_longer_than_a_file_may_be_is_whole_in_one_of_its_own() {
    let log = Log::new();
    let audit = log.open(64, 3);
    let long = "x".repeat(1000);
    for method in ["a", &long, "b"] {
        audit.record(&line(method)).unwrap();
    }
    assert_eq!([log.methods(2), log.methods(1), log.methods(0)].concat(), ["a", &long, "b"]);
}

#[test]
fn a_torn_line_harms_no_other() {
    let log = Log::new();
    fs::write(log.path(), "{\"method\":\"to").unwrap();
    log.open(1 << 20, 1).record(&line("a")).unwrap();
    assert_eq!(fs::read_to_string(log.path()).unwrap(), "{\"method\":\"to\n{\"method\":\"a\"}\n");
}

#[test]
fn a_log_that_cannot_be_rotated_grows() {
    let log = Log::new();
    let audit = log.open(1, 1);
    audit.record(&line("a")).unwrap();
    fs::create_dir(log.dir.path().join("audit.log.1")).unwrap();
    audit.record(&line("b")).unwrap();
    assert_eq!(log.methods(0), ["a", "b"]);
}

#[test]
fn who_holds_the_lock_holds_nothing_up() {
    let log = Log::new();
    let audit = log.open(1, 1);
    audit.record(&line("a")).unwrap();
    let holder = File::open(log.path()).unwrap();
    holder.lock().unwrap();
    audit.record(&line("b")).unwrap();
    assert_eq!(log.methods(0), ["a", "b"]);
    holder.unlock().unwrap();
    audit.record(&line("c")).unwrap();
    assert_eq!((log.methods(1), log.methods(0)), (vec!["a".to_owned(), "b".to_owned()], vec!["c".to_owned()]));
}

#[test]
fn several_may_append_to_one_log_and_each_line_is_there_once() {
    const WRITERS: usize = 4;
    const LINES: usize = 200;
    const MAX_BYTES: u64 = 512;
    let log = Log::new();
    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            // Each has its own, as another process would.
            let audit = log.open(MAX_BYTES, 1000);
            scope.spawn(move || (0..LINES).for_each(|number| audit.record(&line(format!("{writer}-{number}"))).unwrap()));
        }
    });
    let mut seen: HashMap<String, usize> = HashMap::new();
    for number in 0..log.files().len() {
        log.methods(number).into_iter().for_each(|method| *seen.entry(method).or_default() += 1);
    }
    assert!(seen.len() == WRITERS * LINES && seen.values().all(|times| *times == 1), "{} lines", seen.len());
    let sizes = log.files().into_iter().map(|name| fs::metadata(log.dir.path().join(name)).unwrap().len());
    assert!(sizes.max().unwrap() <= MAX_BYTES);
}
