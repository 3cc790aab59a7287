//! The library does what the command line does: its two examples, and a program's own jobs.

use std::process::Command;
use std::time::Duration;

use common::job::{HostState, JobState};
use fleet::{Fleet, Running};
use serde_json::json;

fn example(fleet: &Fleet, name: &str, args: &[&str]) -> fleet::Run {
    let path = fleet::binaries().overlord.with_file_name("examples").join(name);
    assert!(path.exists(), "{} is not built: cargo build -p overlord --examples", path.display());
    let mut command = Command::new(path);
    command.args(args).env("OVERLORD_HOME", fleet.home());
    Running::start(command).wait().ok()
}

#[test]
fn the_examples_run() {
    let fleet = Fleet::start(2);
    let call = example(&fleet, "call", &["*"]);
    assert!(call.out().contains("web1") && call.out().contains("web2"), "{}", call.out());
    let job = example(&fleet, "job", &["*"]);
    assert!(job.out().contains("FINISHED"), "{}", job.out());
}

#[test]
fn a_program_calls_and_starts_jobs_as_the_command_line_does() {
    let fleet = Fleet::start(2);
    let library = overlord::Fleet::open(fleet.home()).unwrap();
    let target = library.target("*").unwrap();
    let outcomes = target.call("test.add", json!([23, 45])).unwrap();
    assert_eq!(outcomes.len(), 2);
    assert!(outcomes.values().all(|outcome| outcome.verdict == common::outcome::Verdict::Ok { result: json!(68) }));

    let job = target.start("command.run", ["echo $MINION_NAME"]).unwrap();
    let status = job.wait(Duration::from_secs(60)).unwrap();
    assert_eq!(status.state(), JobState::Finished);
    assert!(status.record.hosts.values().all(|host| host.state == HostState::Ok));
    let told = fleet.job_status(job.id().as_str());
    assert_eq!(told["hosts"]["web2"]["result"]["stdout"], "web2\n", "the command line sees the same job");
    assert!(library.target("db*").is_err());
}
