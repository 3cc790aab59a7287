//! The overlord's files with flipped bits and cut ends: the answer is what really was, or that it cannot be known, and nothing else.

use std::fs;
use std::path::{Path, PathBuf};

use fleet::{Fleet, PATIENCE, Run, wait_until};
use serde_json::{Value, json};

/// How many bits of a file are flipped, one at a time, and how many ends are cut off.
const FLIPS: usize = 40;
const CUTS: usize = 12;

/// A job that has ended on every host, in the home of a fleet; and what is true of it.
struct Ended {
    fleet: Fleet,
    id: String,
    truth: Value,
    saved: PathBuf,
}

impl Ended {
    fn new() -> Self {
        let fleet = Fleet::start(2);
        let id = fleet.start_job(["*", "command.run", "echo $MINION_NAME; [ $MINION_NAME = web1 ]"]);
        let truth = fleet.overlord(["job-status", &id, "--wait", "--output", "json"]).expect(2).json();
        wait_until("the dispatcher to be gone", PATIENCE, || fleet.dispatcher(&id).is_none());
        let saved = fleet.root().join("saved");
        copy(&fleet.home().join("jobs.sled"), &saved.join("jobs.sled"));
        copy(&fleet.home().join("jobs"), &saved.join("jobs"));
        Self { fleet, id, truth, saved }
    }

    fn log(&self) -> PathBuf {
        self.fleet.home().join("jobs").join(format!("{}.log", self.id))
    }

    /// The log and the store as they were, and no other.
    fn restore(&self) {
        for entry in fs::read_dir(self.fleet.home()).unwrap().flatten() {
            if entry.file_name().to_string_lossy().starts_with("jobs.sled") {
                fs::remove_dir_all(entry.path()).unwrap();
            }
        }
        for name in ["jobs", "jobs.sled"] {
            let _gone = fs::remove_dir_all(self.fleet.home().join(name));
            copy(&self.saved.join(name), &self.fleet.home().join(name));
        }
    }

    fn forget_the_store(&self) {
        fs::remove_dir_all(self.fleet.home().join("jobs.sled")).unwrap();
    }

    fn status(&self) -> Run {
        self.fleet.overlord(["job-status", &self.id, "--output", "json"])
    }

    /// Each host is as it was, or not known to have ended.
    fn assert_nothing_made_up(&self, run: &Run, what: &str) {
        let said = run.json();
        if said["hosts"] == json!({}) {
            assert_eq!((&said["state"], run.code()), (&json!("LOST"), 4), "{what}: {said}");
            assert!(said["reason"].as_str().unwrap().contains("its log is damaged"), "{what}: {said}");
            return;
        }
        for (name, truth) in self.truth["hosts"].as_object().unwrap() {
            let host = &said["hosts"][name];
            let is_unknown = ["pending", "queued", "running"].contains(&host["state"].as_str().unwrap());
            assert!(is_unknown || host == truth, "{what}: {name} is {host}, and was {truth}");
            assert!(!is_unknown || host["unreachable"].is_object(), "{what}: nothing says why: {host}");
        }
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().flatten() {
        let to = to.join(entry.file_name());
        if entry.path().is_dir() { copy(&entry.path(), &to) } else { assert!(fs::copy(entry.path(), to).is_ok()) }
    }
}

pub(crate) fn flip(path: &Path, bit: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[bit / 8] ^= 1 << (bit % 8);
    fs::write(path, bytes).unwrap();
}

pub(crate) fn cut(path: &Path, length: usize) {
    fs::OpenOptions::new().write(true).open(path).unwrap().set_len(u64::try_from(length).unwrap()).unwrap();
}

/// So many numbers below `end`, spread over all, the first and the last among them.
pub(crate) fn spread(end: usize, count: usize) -> impl Iterator<Item = usize> {
    (0..count).map(move |number| number * (end - 1) / (count - 1))
}

#[test]
fn flipped_bits_in_a_log_are_mended_by_the_hosts() {
    let job = Ended::new();
    let bits = fs::read(job.log()).unwrap().len() * 8;
    let mut headers = 0;
    for bit in spread(bits, FLIPS) {
        job.restore();
        job.forget_the_store();
        flip(&job.log(), bit);
        let run = job.status();
        assert!(run.err().contains("is damaged") || run.err().contains("damaged: "), "bit {bit}: {}", run.err());
        headers += usize::from(run.json()["hosts"] == json!({}));
        job.assert_nothing_made_up(&run, &format!("bit {bit}"));
        if run.json()["hosts"] != json!({}) {
            assert_eq!(run.json()["hosts"], job.truth["hosts"], "bit {bit}: the hosts can be asked");
        }
    }
    assert!(headers > 0 && headers < FLIPS / 2, "{headers}");
}

#[test]
fn flipped_bits_and_cut_ends_of_a_log_make_nothing_up_when_no_host_can_be_asked() {
    let job = Ended::new();
    job.fleet.minions().iter().for_each(fleet::Minion::stop);
    let length = fs::read(job.log()).unwrap().len();
    for bit in spread(length * 8, FLIPS / 2) {
        job.restore();
        job.forget_the_store();
        flip(&job.log(), bit);
        job.assert_nothing_made_up(&job.status(), &format!("bit {bit}"));
    }
    for rest in spread(length, CUTS).skip(1) {
        job.restore();
        job.forget_the_store();
        cut(&job.log(), rest);
        job.assert_nothing_made_up(&job.status(), &format!("{rest} bytes left"));
    }
}

#[test]
fn a_cut_log_is_told_and_mended_by_the_hosts_or_the_store() {
    let job = Ended::new();
    let length = fs::read(job.log()).unwrap().len();
    for rest in spread(length, CUTS).skip(1) {
        job.restore();
        cut(&job.log(), rest);
        let run = job.status();
        assert_eq!(run.json(), job.truth, "{rest} bytes left: the store still knows it");
        assert!(run.err().contains("lost its last"), "{rest} bytes left: {}", run.err());

        job.restore();
        job.forget_the_store();
        cut(&job.log(), rest);
        let run = job.status();
        job.assert_nothing_made_up(&run, &format!("{rest} bytes left"));
        if run.json()["hosts"] != json!({}) {
            assert_eq!(run.json()["hosts"], job.truth["hosts"], "{rest} bytes left: the hosts can be asked");
        }
    }
    // Cut within its last line, which is told, and stays so until something is written behind it.
    job.restore();
    job.forget_the_store();
    cut(&job.log(), length - 5);
    assert!(job.status().err().contains("it is torn"));
}

#[test]
fn flipped_bits_and_cut_ends_of_the_job_store_change_nothing() {
    let job = Ended::new();
    for file in fs::read_dir(job.saved.join("jobs.sled")).unwrap().flatten().filter(|file| file.path().is_file()) {
        let path = job.fleet.home().join("jobs.sled").join(file.file_name());
        let bytes = fs::read(file.path()).unwrap();
        // What sled has written stands at the beginning; the rest of a segment is zeros.
        let used = bytes.iter().rposition(|byte| *byte != 0).map_or(bytes.len(), |last| last + 1);
        for bit in spread(used * 8, FLIPS) {
            job.restore();
            flip(&path, bit);
            let run = job.status();
            assert_eq!(run.json(), job.truth, "bit {bit} of {}: {}", path.display(), run.err());
        }
        for rest in spread(used, CUTS) {
            job.restore();
            cut(&path, rest);
            let run = job.status();
            assert_eq!(run.json(), job.truth, "{rest} bytes of {} left: {}", path.display(), run.err());
        }
    }
}

#[test]
fn a_job_that_cannot_be_known_is_told_in_the_list_and_can_be_deleted() {
    let job = Ended::new();
    let other = job.fleet.start_job(["*", "test.ping"]);
    let _ = job.fleet.overlord(["job-status", &other, "--wait"]).ok();
    wait_until("the dispatcher to be gone", PATIENCE, || job.fleet.dispatcher(&other).is_none());
    job.forget_the_store();
    flip(&job.log(), 400);
    let text = job.fleet.overlord(["job-status", &job.id]).expect(4);
    assert!(text.out().contains("LOST") && text.err().contains("its log is damaged"), "{}{}", text.out(), text.err());
    let listed = job.fleet.overlord(["job-list", "--output", "json"]).ok();
    assert_eq!(listed.json()["jobs"].as_array().unwrap().len(), 1, "{}", listed.out());
    assert!(listed.err().contains(&job.id) && listed.err().contains("damaged"), "{}", listed.err());
    let _ = job.fleet.overlord(["job-delete", &job.id]).ok();
    let run = job.fleet.overlord(["job-list", "--output", "json"]).ok();
    assert_eq!((run.json()["jobs"].as_array().unwrap().len(), run.err().as_str()), (1, ""));
}
