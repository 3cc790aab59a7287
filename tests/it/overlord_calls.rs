//! The overlord between a host and a reader: limits of its own machine, and readers who read no more.

use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use fleet::{Fleet, PATIENCE, Running, binaries, wait_for};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// An overlord whose standard output the test reads itself, or does not.
pub(crate) struct Unread(pub(crate) Child);

impl Unread {
    pub(crate) fn spawn(fleet: &Fleet, args: &[&str]) -> (Self, BufReader<ChildStdout>) {
        let mut command = Command::new(&binaries().overlord);
        command.args(args).env("OVERLORD_HOME", fleet.home());
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let stdout = BufReader::with_capacity(16, child.stdout.take().unwrap());
        (Self(child), stdout)
    }

    fn interrupt(&self) {
        kill(Pid::from_raw(self.0.id().try_into().unwrap()), Signal::SIGINT).unwrap();
    }
}

impl Drop for Unread {
    fn drop(&mut self) {
        let _ended = self.0.kill();
        let _reaped = self.0.wait();
    }
}

#[test]
fn a_second_interrupt_ends_a_call_that_cannot_print() {
    let fleet = Fleet::start(1);
    // More than a pipe takes.
    let (mut call, mut stdout) = Unread::spawn(&fleet, &["*", "command.run", "head -c 400000 /dev/zero | tr '\\0' x"]);
    let mut first = String::new();
    stdout.read_line(&mut first).unwrap();
    assert_eq!(first, "web1  ok\n");
    let status = wait_for("the call to end", PATIENCE, || {
        call.interrupt();
        call.0.try_wait().unwrap()
    });
    assert_eq!(status.code(), Some(130));
}

#[test]
fn nobody_waits_for_a_job_when_nobody_reads_on() {
    let fleet = Fleet::start(1);
    let id = fleet.start_job(["*", "test.sleep", "600"]);
    for format in ["jsonl", "text"] {
        let (mut wait, mut stdout) = Unread::spawn(&fleet, &["job-status", &id, "--wait", "--output", format]);
        if format == "jsonl" {
            stdout.read_line(&mut String::new()).unwrap();
        }
        drop(stdout);
        let status = wait_for("job-status to end", PATIENCE, || wait.0.try_wait().unwrap());
        assert_eq!(status.code(), Some(141), "{format}");
    }
}

#[test]
fn more_forks_than_open_files_make_no_host_unreachable() {
    let fleet = Fleet::builder().overlord_toml("connect_timeout = \"200ms\"\n").start();
    // They take a connection, and say nothing.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap();
    let roster = (0..150).fold(String::new(), |mut roster, host| {
        writeln!(roster, "[host.n{host}]\naddress = \"{address}\"").unwrap();
        roster
    });
    std::fs::write(fleet.home().join("hosts.toml"), roster).unwrap();
    let mut command = Command::new("sh");
    let line = "ulimit -n 100; exec \"$0\" '*' test.ping --forks 3000 --output jsonl";
    command.args(["-c", line]).arg(&binaries().overlord).env("OVERLORD_HOME", fleet.home());
    let run = Running::start(command).wait_at_most(Duration::from_secs(60)).expect(4);
    assert!(run.err().contains("3000 forks are more than this process may have open files for"), "{}", run.err());
    let answers = run.json_lines();
    assert_eq!(answers.len(), 151);
    for answer in answers.iter().filter(|answer| answer.get("summary").is_none()) {
        let reason = answer["error"]["message"].as_str().unwrap();
        assert!(reason.contains("no connection within 200ms"), "{reason}");
    }
}
