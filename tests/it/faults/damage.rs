//! A host's files with flipped bits and cut ends, many at once: what is told of a job is what really was, or that it is lost or damaged, and
//! which file is. Nothing runs a second time, and no other job is harmed.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use common::job::{CallId, MinionJobId};
use fleet::raw::envelope;
use fleet::{Fleet, Minion, PATIENCE, wait_for, wait_until};
use nix::sys::stat::Mode;
use serde_json::{Value, json};

use super::{Runs, kill9, wait_until_dead};
use crate::damage_overlord::{cut, flip, spread};

/// How many bits of a file are flipped, each in the file of another job, and how many ends are cut off.
pub(super) const FLIPS: usize = 20;
pub(super) const CUTS: usize = 8;
/// Jobs that are not damaged, among those that are.
const WHOLE: usize = 4;
/// More than the status store keeps of a result.
const LARGE_BYTES: usize = 20_000;

/// What is done to a file.
#[derive(Debug, Clone, Copy)]
pub(super) enum Damage {
    /// This one of so many bits, spread over the file.
    Flip(usize),
    /// This one of so many ends.
    Cut(usize),
}

impl Damage {
    pub(super) fn all() -> impl Iterator<Item = Self> {
        (0..FLIPS).map(Self::Flip).chain((0..CUTS).map(Self::Cut))
    }

    fn apply(self, path: &Path) {
        let length = fs::metadata(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).len();
        let length = usize::try_from(length).unwrap();
        assert!(length > 0, "{} is empty, and cannot be damaged", path.display());
        match self {
            Self::Flip(number) => flip(path, spread(length * 8, FLIPS).nth(number).unwrap()),
            Self::Cut(number) => cut(path, spread(length, CUTS).nth(number).unwrap()),
        }
    }
}

/// A job of the host, and what is damaged of it, if anything is.
struct Job {
    number: usize,
    request: Value,
    job: String,
    id: String,
    damage: Option<(&'static str, Damage)>,
}

/// One host with many jobs, all of which wait for the gate in their middle.
struct Host {
    fleet: Fleet,
    runs: Runs,
    gate: PathBuf,
    jobs: Vec<Job>,
}

impl Host {
    /// Its jobs: for each of `files` one for each damage, and some that stay whole.
    fn new(jobs_max: usize, files: &[&'static str]) -> Self {
        let limits = format!("[limits]\njobs_max = {jobs_max}\nqueue_max = 1000\nreconcile_every = \"1s\"\n");
        let fleet = Fleet::builder().hosts(1).minion_toml(&limits).start();
        let gate = fleet.root().join("gate");
        nix::unistd::mkfifo(&gate, Mode::S_IRWXU).unwrap();
        let mut host = Self { runs: Runs::of(&fleet), fleet, gate, jobs: Vec::new() };
        let damages = files.iter().flat_map(|file| Damage::all().map(move |damage| Some((*file, damage))));
        // The whole ones come first and last.
        let all: Vec<_> = [None; WHOLE / 2].into_iter().chain(damages).chain([None; WHOLE / 2]).collect();
        host.jobs = all.into_iter().enumerate().map(|(number, damage)| host.start(number, damage)).collect();
        host
    }

    fn web1(&self) -> &Minion {
        self.fleet.minion("web1")
    }

    fn post(&self, request: &Value) -> Value {
        self.fleet.raw_overlord("web1").post_json(request).unwrap()
    }

    fn ask(&self, method: &str, args: Value) -> Value {
        self.fleet.raw_overlord("web1").call(&envelope("admin", "web1", method, args)).unwrap()
    }

    /// Every other job prints more than the store keeps.
    fn printed_bytes(number: usize) -> usize {
        if number.is_multiple_of(2) { LARGE_BYTES } else { 1 }
    }

    fn start(&self, number: usize, damage: Option<(&'static str, Damage)>) -> Job {
        let large = Self::printed_bytes(number);
        let line = format!(
            "{}; echo out{number}; echo err{number} >&2; read go < {}; head -c {large} /dev/zero | tr '\\0' x",
            self.runs.note(),
            self.gate.display()
        );
        let envelope = envelope("admin", "web1", "async.command.run", json!([line]));
        let request = self.fleet.raw_overlord("web1").signed(json!(1), &envelope);
        let accepted = self.post(&request);
        let id = accepted["result"]["minion_job_id"].as_str().unwrap_or_else(|| panic!("{accepted}")).to_owned();
        Job { number, request, job: envelope.call_id.job().to_string(), id, damage }
    }

    /// Lets all jobs go on that run, or will.
    fn open_gate(&self) -> fs::File {
        let mut gate = fs::OpenOptions::new().read(true).write(true).open(&self.gate).unwrap();
        gate.write_all(&vec![b'\n'; self.jobs.len() + 1]).unwrap();
        gate
    }

    fn spool(&self, job: &Job) -> PathBuf {
        self.web1().spool(&job.id)
    }

    fn wait_until_started(&self) {
        // The last file before the mark, and what the job has printed.
        let has_printed = |job: &Job| {
            ["stdout", "stderr", "lock"].iter().all(|file| fs::metadata(self.spool(job).join(file)).is_ok_and(|file| file.len() > 0))
        };
        wait_until("all jobs to have printed", PATIENCE, || self.jobs.iter().all(has_printed));
    }

    fn wait_until_ended(&self) {
        wait_until("all jobs to have ended", PATIENCE, || self.jobs.iter().all(|job| self.spool(job).join("outcome.json").exists()));
    }

    fn damage_all(&self) {
        assert!(!self.web1().is_running());
        for job in &self.jobs {
            if let Some((file, damage)) = job.damage {
                damage.apply(&self.spool(job).join(file));
            }
        }
    }

    fn forget_the_store(&self) {
        fs::remove_dir_all(self.web1().state_dir().join("status.sled")).unwrap();
    }

    fn status(&self, job: &Job) -> Value {
        self.ask("jobs.status", json!([job.id]))
    }

    /// What is told of a job once it has ended. Right after a start it may still be called running, while somebody settles it.
    fn end_of(&self, job: &Job) -> Value {
        wait_for("its end to be told", PATIENCE, || {
            let told = self.status(job);
            assert!(self.runs.count(&job.job, "web1") <= 1, "{} {:?} runs again: {}", job.id, job.damage, shortened(&told));
            (!["running", "queued"].map(Value::from).contains(&told["result"]["result"]["state"])).then_some(told)
        })
    }

    /// What is told of a job is true: how it ended, or that this cannot be known, for a reason that names the damaged file.
    fn assert_true(&self, job: &Job, told: &Value, ran: usize) {
        let what = format!("{} {:?}: {}", job.id, job.damage, shortened(told));
        assert_eq!(self.runs.count(&job.job, "web1"), ran, "{what}");
        let report = &told["result"]["result"];
        if report["state"] == "ok" {
            let large = Self::printed_bytes(job.number);
            assert_eq!(report["result"]["stdout"], format!("out{}\n{}", job.number, "x".repeat(large)), "{what}");
            assert_eq!((&report["result"]["stderr"], ran), (&json!(format!("err{}\n", job.number)), 1), "{what}");
            return;
        }
        self.assert_lost(job, told, ran);
    }

    /// A job is lost, and nothing untrue is said of it.
    fn assert_lost(&self, job: &Job, told: &Value, ran: usize) {
        let what = format!("{} {:?}: {}", job.id, job.damage, shortened(told));
        let (file, _) = job.damage.unwrap_or_else(|| panic!("it is whole: {what}"));
        let (state, error) = (&told["result"]["result"]["state"], &told["result"]["result"]["error"]);
        let error = if error.is_null() { &told["error"] } else { error };
        assert!(state == "lost" || told["error"].is_object(), "{what}");
        let why = error["message"].as_str().unwrap_or_else(|| panic!("{what}"));
        assert!(why.contains(file) && why.contains("damaged"), "{what}");
        assert!(ran == 0 || !why.contains("never started"), "{what}");
    }

    /// Sent again, no job runs again; and neither does one that waits.
    fn assert_nothing_runs_again(&self, ran: usize) {
        for job in &self.jobs {
            let again = self.post(&job.request);
            assert!(again["result"]["repeated"] == true || again["error"].is_object(), "{} {:?}: {again}", job.id, job.damage);
        }
        // What waits starts before this one.
        let last = self.ask("async.test.ping", json!([]));
        let id = last["result"]["minion_job_id"].as_str().unwrap_or_else(|| panic!("{last}")).to_owned();
        wait_until("a new job to end", PATIENCE, || self.ask("jobs.status", json!([id]))["result"]["result"]["state"] == "ok");
        for job in &self.jobs {
            assert_eq!(self.runs.count(&job.job, "web1"), ran, "{} {:?}", job.id, job.damage);
        }
    }
}

/// What a person can read.
pub(super) fn shortened(told: &Value) -> String {
    told.to_string().chars().take(700).collect()
}

#[test]
fn damaged_files_of_jobs_that_have_ended_make_nothing_up() {
    let mut host = Host::new(1000, &["request.json", "lock", "stdout", "stderr", "outcome.json"]);
    let _gate = host.open_gate();
    host.wait_until_ended();
    wait_until("the store to have them", PATIENCE, || {
        host.ask("jobs.list", json!([]))["result"]["result"]["jobs"]
            .as_array()
            .is_some_and(|jobs| jobs.iter().all(|job| job["state"] == "ok") && jobs.len() == host.jobs.len())
    });
    host.web1().kill9();
    host.damage_all();
    for has_store in [true, false] {
        if !has_store {
            host.web1().kill9();
            host.forget_the_store();
        }
        host.web1().start();
        let mut lost = 0;
        for job in &host.jobs {
            let told = host.status(job);
            host.assert_true(job, &told, 1);
            let is_ok = told["result"]["result"]["state"] == "ok";
            lost += usize::from(!is_ok);
            let needs = |file| matches!(job.damage, Some((damaged, _)) if damaged == file);
            assert!(is_ok || needs("request.json") || needs("outcome.json"), "{} {:?}: {}", job.id, job.damage, shortened(&told));
            assert_eq!(host.status(job)["result"]["result"]["state"], told["result"]["result"]["state"], "it stays so");
        }
        assert!(lost > 0 || has_store, "nothing was damaged");
        host.assert_nothing_runs_again(1);
    }
    host.jobs.clear();
    host.fleet.assert_no_leaks();
}

/// Jobs whose files are damaged as they run, while no server does; and what was told of each before.
fn damaged_while_they_run() -> (Host, Vec<Value>) {
    let host = Host::new(1000, &["request.json", "lock", "stdout", "stderr"]);
    host.wait_until_started();
    let before = host.jobs.iter().map(|job| host.status(job)["result"]["result"].clone()).collect();
    host.web1().kill9();
    host.damage_all();
    host.web1().start();
    (host, before)
}

#[test]
fn what_is_told_of_jobs_that_run_with_damaged_files_is_true() {
    let (host, before) = damaged_while_they_run();
    let mut untrue = Vec::new();
    for (job, before) in host.jobs.iter().zip(&before) {
        let told = host.status(job);
        let report = &told["result"]["result"];
        if told["error"].is_object() {
            host.assert_lost(job, &told, 1);
        } else if report["state"] != "running" || !(report["started_at"].is_null() || report["started_at"] == before["started_at"]) {
            let (now, then) = (&report["started_at"], &before["started_at"]);
            untrue.push(format!(
                "{:?}: it is {}, started at {now}; it was {}, started at {then}",
                job.damage, report["state"], before["state"]
            ));
        }
    }
    let _gate = host.open_gate();
    host.wait_until_ended();
    assert!(untrue.is_empty(), "{untrue:#?}");
    host.fleet.assert_no_leaks();
}

/// While the daemon lives, the job goes on whatever lies in its folder.
#[test]
fn jobs_whose_files_are_damaged_while_they_run_end_as_they_end() {
    let (host, _) = damaged_while_they_run();
    let _gate = host.open_gate();
    host.wait_until_ended();
    for job in &host.jobs {
        host.assert_true(job, &host.end_of(job), 1);
    }
    host.assert_nothing_runs_again(1);
    host.fleet.assert_no_leaks();
}

/// The daemons are killed, too: what is damaged must not make a job look as if it had not started.
#[test]
fn damaged_files_of_jobs_whose_daemons_are_dead_start_nothing_again() {
    let host = Host::new(1000, &["request.json", "lock", "stdout", "stderr"]);
    host.wait_until_started();
    let before: Vec<Value> = host.jobs.iter().map(|job| host.status(job)["result"]["result"].clone()).collect();
    host.web1().kill9();
    for job in &host.jobs {
        kill9(host.web1().job_daemon(&job.id).unwrap().pid);
        wait_until_dead(&host.spool(job));
    }
    host.damage_all();
    host.web1().start();
    let mut untrue = Vec::new();
    for (job, before) in host.jobs.iter().zip(&before) {
        let told = host.end_of(job);
        let report = &told["result"]["result"];
        let why = report["error"]["message"].as_str().unwrap_or_default();
        if told["error"].is_object() {
            host.assert_lost(job, &told, 1);
        } else if report["state"] != "lost" || !(why.contains("its job daemon was killed") || why.contains("no start is noted")) {
            untrue.push(format!("{:?}: it was killed while it ran, and is {}: {why}", job.damage, report["state"]));
        } else if !(report["started_at"].is_null() || report["started_at"] == before["started_at"]) {
            untrue.push(format!("{:?}: it started at {}, it says, and not at {}", job.damage, report["started_at"], before["started_at"]));
        }
    }
    host.assert_nothing_runs_again(1);
    assert!(untrue.is_empty(), "{untrue:#?}");
    host.fleet.assert_no_leaks();
}

#[test]
fn damaged_files_of_jobs_that_wait_keep_the_others_waiting() {
    let host = Host::new(1, &["request.json"]);
    let (first, waiting) = host.jobs.split_first().unwrap();
    wait_until("the first to start", PATIENCE, || host.runs.count(&first.job, "web1") == 1);
    host.web1().kill9();
    host.damage_all();
    host.web1().start();
    for job in waiting {
        let told = host.status(job);
        match job.damage {
            None => assert_eq!(told["result"]["result"]["state"], "queued", "{told}"),
            Some(_) => host.assert_true(job, &told, 0),
        }
    }
    let _gate = host.open_gate();
    for job in &host.jobs {
        let whole = job.damage.is_none();
        if whole {
            wait_until("it to have its turn", PATIENCE, || host.status(job)["result"]["result"]["state"] == "ok");
        }
        host.assert_true(job, &host.status(job), usize::from(whole));
    }
    for job in host.jobs.iter().filter(|job| job.damage.is_some()) {
        let again = host.post(&job.request);
        assert!(again["error"].is_object() && host.runs.count(&job.job, "web1") == 0, "{again}");
    }
    host.fleet.assert_no_leaks();
}

#[test]
fn the_overlord_tells_which_file_of_a_host_is_damaged() {
    let fleet = Fleet::start(1);
    let (web1, runs) = (fleet.minion("web1"), Runs::of(&fleet));
    let damages = [Damage::Flip(FLIPS / 2), Damage::Cut(0), Damage::Cut(CUTS / 2), Damage::Cut(CUTS - 1)];
    let files = ["request.json", "outcome.json", "lock", "stdout"];
    let all: Vec<_> = files.iter().flat_map(|file| damages.map(|damage| (*file, damage))).collect();
    let start = |number: usize| fleet.start_job(["*", "command.run", &format!("{}; echo {number}", runs.note())]);
    let jobs: Vec<(String, _)> = all.into_iter().enumerate().map(|(number, damage)| (start(number), damage)).collect();
    let spool = |job: &str| {
        let call = CallId::new(job.parse().unwrap(), 1);
        web1.spool(MinionJobId::derive(&"web1".parse().unwrap(), &"admin".parse().unwrap(), &call).as_str())
    };
    for (job, _) in &jobs {
        wait_until("it to end", PATIENCE, || spool(job).join("outcome.json").exists() && fleet.dispatcher(job).is_none());
    }
    web1.kill9();
    jobs.iter().for_each(|(job, (file, damage))| damage.apply(&spool(job).join(file)));
    fs::remove_dir_all(web1.state_dir().join("status.sled")).unwrap();
    web1.start();
    for (number, (job, (file, damage))) in jobs.iter().enumerate() {
        let run = fleet.overlord(["job-status", job, "--wait", "--output", "json"]);
        let told = run.json()["hosts"]["web1"].clone();
        runs.assert_true(job, "web1", &told);
        if *file == "lock" || *file == "stdout" {
            assert_eq!((&told["result"]["stdout"], run.code()), (&json!(format!("{number}\n")), 0), "{file} {damage:?}: {told}");
        } else {
            let why = told["error"]["message"].as_str().unwrap_or_else(|| panic!("{file} {damage:?}: {told}"));
            assert_eq!((&told["state"], run.code()), (&json!("lost"), 4), "{file} {damage:?}: {told}");
            assert!(why.contains(file) && why.contains("damaged"), "{file} {damage:?}: {told}");
        }
    }
    fleet.assert_no_leaks();
}
