//! How long `overlord job-status` takes to answer for a job that has ended on 10,000 hosts, beside the bare reading of its log; and,
//! with 10,000 such jobs kept (each on one host), `overlord job-list` and `overlord '*' test.ping --async`.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use common::job::{CallId, Event, HostState, JobHeader, JobId, LogLine, MinionJobId, News};
use common::outcome::{Outcome, Verdict};
use common::protocol::Arguments;
use jiff::{SignedDuration, Timestamp};
use serde_json::json;

const HOSTS: usize = 10_000;
const JOBS: u32 = 10_000;
const ROUNDS: usize = 9;

pub(crate) fn run() {
    status_of_many_hosts();
    start_beside_many_jobs();
}

fn status_of_many_hosts() {
    let root = tempfile::tempdir().unwrap();
    let home = root.path();
    let id = JobId::new(Timestamp::now(), 0);
    write_log(home, &id, HOSTS);
    // The first folds the log.
    let first = time(home, &["job-status", id.as_str()]);
    let (mut texts, mut documents, mut reads) = (Vec::new(), Vec::new(), Vec::new());
    for _round in 0..ROUNDS {
        texts.push(time(home, &["job-status", id.as_str()]));
        documents.push(time(home, &["job-status", id.as_str(), "--output", "json"]));
        let started = Instant::now();
        let bytes = fs::read(log_path(home, &id)).unwrap();
        let lines = bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        assert_eq!(lines.filter(|line| common::seal::open::<LogLine>(line).is_ok()).count(), 1 + 2 * HOSTS);
        reads.push(started.elapsed());
    }
    println!("job-status of {HOSTS} hosts, as text:  {} (goal: at most 150 ms)", crate::spread(&texts));
    println!("job-status of {HOSTS} hosts, as JSON:  {}", crate::spread(&documents));
    println!("the first, which folds the log:     {}", crate::spread(&[first]));
    println!("bare reading of its log:            {}", crate::spread(&reads));
}

fn start_beside_many_jobs() {
    let root = tempfile::tempdir().unwrap();
    let home = root.path();
    overlord(home, &["certs", "init"]);
    fs::write(home.join("hosts.toml"), "[host.n00001]\naddress = \"127.0.0.1:1\"\n").unwrap();
    fs::write(home.join("overlord.toml"), format!("[retention]\ncount = {}\n", 2 * JOBS)).unwrap();
    for number in 0..JOBS {
        write_log(home, &JobId::new(Timestamp::now() - SignedDuration::from_millis(i64::from(JOBS - number)), number), 1);
    }
    let first = time(home, &["job-list"]);
    let (mut lists, mut starts) = (Vec::new(), Vec::new());
    for _round in 0..ROUNDS {
        lists.push(time(home, &["job-list"]));
        starts.push(time(home, &["*", "test.ping", "--async"]));
    }
    println!("job-list of {JOBS} jobs:              {}", crate::spread(&lists));
    println!("the first, which folds the logs:    {}", crate::spread(&[first]));
    println!("--async beside {JOBS} jobs:           {} (goal: below 50 ms)", crate::spread(&starts));
}

fn log_path(home: &Path, id: &JobId) -> std::path::PathBuf {
    home.join("jobs").join(format!("{id}.log"))
}

/// The log of a job that has ended on `hosts` hosts, as its dispatcher and a `job-status` write it.
fn write_log(home: &Path, id: &JobId, hosts: usize) {
    fs::create_dir_all(home.join("jobs")).unwrap();
    let names: Vec<common::identity::MinionName> = (1..=hosts).map(|number| format!("n{number:05}").parse().unwrap()).collect();
    let caller: common::identity::CallerName = "admin".parse().unwrap();
    let header = JobHeader {
        job_id: id.clone(),
        caller: caller.clone(),
        target: "*".into(),
        method: "command.run".into(),
        args: Arguments::Words(vec!["uname -r".into()]),
        job_limit_ms: None,
        retry_of: None,
        map: None,
        hosts: names.clone(),
    };
    let now = Timestamp::now();
    let heard = |host: &common::identity::MinionName, news| Event::Heard { host: host.clone(), attempt: 1, news };
    let accepted = names.iter().map(|host| {
        let minion_job_id = MinionJobId::derive(host, &caller, &CallId::new(id.clone(), 1));
        heard(host, News::Accepted { minion_job_id, state: HostState::Queued })
    });
    let ended = names.iter().map(|host| {
        let result = json!({ "rc": 0, "stdout": "6.1.0-31-amd64\n", "stderr": "" });
        heard(host, News::Ended(Outcome::ran(Verdict::Ok { result }, now, now)))
    });
    let mut bytes = Vec::new();
    for event in std::iter::once(Event::Created(header)).chain(accepted).chain(ended) {
        bytes.extend(common::seal::seal(&LogLine { at: now, event }).unwrap());
        bytes.push(b'\n');
    }
    fs::write(log_path(home, id), bytes).unwrap();
}

fn time(home: &Path, args: &[&str]) -> Duration {
    let started = Instant::now();
    overlord(home, args);
    started.elapsed()
}

fn overlord(home: &Path, args: &[&str]) -> Output {
    let output = Command::new(&fleet::binaries().overlord).args(args).env("OVERLORD_HOME", home).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    output
}
