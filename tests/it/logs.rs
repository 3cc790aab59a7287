//! `job-logs`: what jobs write, while they run and afterwards, whole and in order, whatever becomes of hosts, readers and minions.

use std::fs;
use std::io::BufRead as _;
use std::net::TcpListener;
use std::path::PathBuf;
use std::time::Duration;

use fleet::raw::envelope;
use fleet::{Fleet, PATIENCE, Running, wait_for, wait_until};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::overlord_calls::Unread;

/// A gate that commands wait at, until the test opens it.
struct Gate(PathBuf);

impl Gate {
    fn new(fleet: &Fleet, name: &str) -> Self {
        Self(fleet.root().join(name))
    }

    /// The command that waits.
    fn pass(&self) -> String {
        format!("while [ ! -e {} ]; do sleep 0.02; done", self.0.display())
    }

    fn open(&self) {
        fs::write(&self.0, "").unwrap();
    }
}

/// A job that has ended.
fn ended_job(fleet: &Fleet, line: &str) -> String {
    let id = fleet.start_job(["*", "command.run", line]);
    let _ = fleet.overlord(["job-status", &id, "--wait"]);
    id
}

fn follow(fleet: &Fleet, id: &str) -> Running {
    fleet.overlord_spawn(["job-logs", id, "--follow"])
}

fn bytes_of(data: &Value) -> Vec<u8> {
    common::outcome::value_bytes(data.clone()).unwrap()
}

/// What the JSON lines carry of a stream of a host, put together; each says where it ends.
fn joined(lines: &[Value], host: &str, stream: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for line in lines.iter().filter(|line| line["host"] == host && line["stream"] == stream) {
        bytes.extend(bytes_of(&line["data"]));
        assert_eq!(line["next"], bytes.len(), "{line}");
    }
    bytes
}

#[test]
fn a_running_job_is_followed_as_it_writes() {
    let fleet = Fleet::start(1);
    let [first, second] = ["first", "second"].map(|name| Gate::new(&fleet, name));
    let line = format!("echo one; {}; echo two; echo aside >&2; {}; printf three", first.pass(), second.pass());
    let id = fleet.start_job(["*", "command.run", &line]);
    let mut logs = follow(&fleet, &id);
    assert_eq!(logs.next_line(), "one");
    let so_far = fleet.overlord(["job-logs", &id]).ok();
    assert_eq!((so_far.out(), so_far.err()), ("one\n".to_owned(), String::new()), "what is there now, of a job that runs");
    first.open();
    assert_eq!((logs.next_line(), logs.next_error_line()), ("two".to_owned(), "aside".to_owned()));
    assert!(logs.is_running());
    second.open();
    let run = logs.wait().ok();
    assert_eq!((run.out(), run.err()), ("one\ntwo\nthree".to_owned(), "aside\n".to_owned()));
}

#[test]
fn following_survives_a_kill_of_the_minion_and_nothing_is_lost_or_doubled() {
    let fleet = Fleet::start(1);
    let [first, second] = ["first", "second"].map(|name| Gate::new(&fleet, name));
    let more = "i=0; while [ $i -lt 2000 ]; do echo line $i; i=$((i+1)); done";
    let id = fleet.start_job(["*", "command.run", &format!("echo begun; {}; {more}; {}; echo done", first.pass(), second.pass())]);
    let mut logs = follow(&fleet, &id);
    assert_eq!(logs.next_line(), "begun");
    fleet.minion("web1").kill9();
    let told = logs.next_error_line();
    assert!(told.contains("web1 does not answer, and is asked again"), "{told}");
    first.open();
    let spool = fleet.minion("web1").spool(&fleet.minion("web1").spools()[0]);
    wait_until("it to write while no server runs", PATIENCE, || fs::read_to_string(spool.join("stdout")).unwrap().ends_with("line 1999\n"));
    fleet.minion("web1").start();
    while logs.next_line() != "line 1999" {}
    fleet.minion("web1").kill9();
    second.open();
    fleet.minion("web1").start();
    let run = logs.wait().ok();
    let lines: String = (0..2000).map(|number| format!("line {number}\n")).collect();
    assert_eq!(run.out(), format!("begun\n{lines}done\n"));
    assert!(run.err().lines().count() <= 2, "each outage is told once: {}", run.err());
}

#[test]
fn a_minion_that_is_told_to_stop_does_not_wait_for_those_who_wait() {
    let fleet = Fleet::builder().hosts(1).minion_toml("[limits]\nshutdown_grace = \"15m\"\n").start();
    let id = fleet.start_job(["*", "command.run", "sleep 600"]);
    let minion_job_id = fleet.wait_for_state(&id, "PARTIAL")["hosts"]["web1"]["minion_job_id"].clone();
    let (web1, client) = (fleet.minion("web1"), fleet.raw_overlord("web1"));
    let asked = envelope("admin", "web1", "jobs.logs", json!({ "id": minion_job_id, "wait_ms": 20_000 }));
    let logs = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| client.call(&asked).unwrap());
        wait_until("it to wait", PATIENCE, || web1.audit().iter().any(|line| line["call_id"] == asked.call_id.to_string()));
        let begun = std::time::Instant::now();
        web1.stop();
        assert!(begun.elapsed() < Duration::from_secs(10), "the minion waited for {:?}", begun.elapsed());
        waiting.join().unwrap()
    });
    let logs = &logs["result"]["result"];
    assert_eq!((&logs["stdout"]["data"], &logs["state"], &logs["complete"]), (&json!(""), &json!("running"), &json!(false)), "{logs}");
}

#[test]
fn lines_of_several_hosts_bear_their_names_and_stderr_stays_apart() {
    let fleet = Fleet::start(2);
    let gate = Gate::new(&fleet, "gate");
    let line = format!("echo one on $MINION_NAME; printf half; {}; echo ' and half'; echo aside >&2; printf last", gate.pass());
    let id = fleet.start_job(["*", "command.run", &line]);
    let mut logs = follow(&fleet, &id);
    let mut first = [logs.next_line(), logs.next_line()];
    first.sort();
    assert_eq!(first, ["web1: one on web1", "web2: one on web2"]);
    gate.open();
    let run = logs.wait().ok();
    let asked = fleet.overlord(["job-logs", &id]).ok();
    for run in [&run, &asked] {
        let (out, err) = (run.out(), run.err());
        for host in ["web1", "web2"] {
            let own: Vec<_> = out.lines().filter(|line| line.starts_with(host)).collect();
            assert_eq!(own, [format!("{host}: one on {host}"), format!("{host}: half and half"), format!("{host}: last")], "{out}");
            assert!(err.lines().any(|line| line == format!("{host}: aside")), "{err}");
        }
        assert_eq!((out.lines().count(), err.lines().count()), (6, 2), "{out}{err}");
    }
    let one = fleet.overlord(["job-logs", &id, "web2"]).ok();
    assert_eq!((one.out(), one.err()), ("one on web2\nhalf and half\nlast".to_owned(), "aside\n".to_owned()));
}

/// More of it than goes into one answer, with letters of several bytes at every boundary there may be.
#[test]
fn any_amount_is_read_whole_and_exactly() {
    let fleet = Fleet::start(1);
    let (text, binary) = (fleet.root().join("text"), fleet.root().join("binary"));
    fs::write(&text, "aü€😀\n".repeat(40_000)).unwrap();
    let noise: Vec<u8> = (0..300_000_u32).map(|number| (number.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    fs::write(&binary, &noise).unwrap();
    let gate = Gate::new(&fleet, "gate");
    let id = fleet.start_job(["*", "command.run", &format!("cat {}; cat {} >&2; {}", text.display(), binary.display(), gate.pass())]);
    let mut followed = fleet.overlord_spawn(["job-logs", &id, "--follow", "--output", "jsonl"]);
    let _ = followed.next_line();
    gate.open();
    let followed = followed.wait().ok();
    let asked = fleet.overlord(["job-logs", &id, "--output", "jsonl"]).ok();
    for run in [&followed, &asked] {
        let lines = run.json_lines();
        assert!(lines.iter().filter(|line| line["stream"] == "stdout").all(|line| line["data"].is_string()), "no letter is cut");
        assert!(joined(&lines, "web1", "stdout") == fs::read(&text).unwrap());
        assert!(joined(&lines, "web1", "stderr") == noise);
    }
    let shown = fleet.overlord(["job-logs", &id]).ok();
    assert!(shown.stdout == fs::read(&text).unwrap());
    let document = fleet.overlord(["job-logs", &id, "--output", "json"]).ok().json();
    assert!(bytes_of(&document["hosts"]["web1"]["stderr"]) == noise);
    assert_eq!((&document["job_id"], &document["hosts"]["web1"]["state"]), (&json!(id), &json!("ok")));
}

#[test]
fn bytes_that_are_no_text_are_exact_in_json_and_harmless_in_text() {
    let fleet = Fleet::start(1);
    let id = ended_job(&fleet, "printf 'a\\033[31mred\\tb\\377\\r\\n\\302\\233c\\342\\200\\256'; printf '\\033]0;x\\007\\376' >&2");
    let lines = fleet.overlord(["job-logs", &id, "--output", "jsonl"]).ok().json_lines();
    assert_eq!(joined(&lines, "web1", "stdout"), b"a\x1b[31mred\tb\xff\r\n\xc2\x9bc\xe2\x80\xae");
    assert_eq!(joined(&lines, "web1", "stderr"), b"\x1b]0;x\x07\xfe");
    let text = fleet.overlord(["job-logs", &id]).ok();
    assert_eq!(text.out(), "a\\x1b[31mred\tb\\xff\\x0d\n\\u{9b}c\\u{202e}");
    assert_eq!(text.err(), "\\x1b]0;x\\x07\\xfe");
}

#[test]
fn output_beyond_the_cap_is_cut_and_marked() {
    let fleet = Fleet::builder().hosts(1).minion_toml("[limits]\noutput_max_bytes = 100000\n").start();
    let id = ended_job(&fleet, "head -c 5000000 /dev/zero | tr '\\0' x");
    for args in [vec!["job-logs", &id], vec!["job-logs", &id, "--follow"]] {
        let out = fleet.overlord(args).ok().out();
        assert!(out.starts_with(&"x".repeat(100_000)) && out.len() < 100_100, "{}", out.len());
        assert!(out.ends_with("\n[cut: the first 100000 of 5000000 bytes are above]\n"), "{}", &out[100_000..]);
    }
}

#[test]
fn a_caller_reads_the_output_of_its_own_jobs_and_of_no_one_elses_without_a_rule() {
    let fleet = Fleet::builder().hosts(1).acl("[[allow]]\ncaller = \"*\"\nmethods = [\"command.*\"]\n").start();
    let ops = fleet.issue("fleet:overlord/ops");
    let id = ended_job(&fleet, "echo secret");
    let minion_job_id = fleet.job_status(&id)["hosts"]["web1"]["minion_job_id"].clone();
    let as_ops = |id: &Value| {
        let asked = envelope("ops", "web1", "jobs.logs", json!({ "id": id, "wait_ms": 20_000 }));
        fleet.raw("web1", Some(&ops)).call(&asked).unwrap()
    };
    let (denied, unknown) = (as_ops(&minion_job_id), as_ops(&json!("0000-0000-0000")));
    assert_eq!((&denied["error"]["code"], &unknown["error"]["code"]), (&json!(-32006), &json!(-32006)), "{denied}");
    assert!(!denied.to_string().contains("secret"), "{denied}");
    assert_eq!(fleet.overlord(["job-logs", &id]).ok().out(), "secret\n", "its own, without a rule for jobs.*");
    fleet.minion("web1").set_acl("[[allow]]\ncaller = \"ops\"\nmethods = [\"jobs.logs\"]\n");
    let logs = as_ops(&minion_job_id)["result"]["result"].clone();
    assert_eq!(
        (&logs["stdout"]["data"], &logs["stdout"]["next"], &logs["complete"]),
        (&json!("secret\n"), &json!(7), &json!(true)),
        "{logs}"
    );
    assert_eq!(fleet.minion("web1").audit().last().unwrap()["method"], "jobs.logs");
}

#[test]
fn a_minion_answers_within_its_bounds_whatever_it_is_asked() {
    let fleet = Fleet::builder().hosts(1).minion_toml("[limits]\nresult_max_bytes = 1\n").start();
    let id = ended_job(&fleet, "head -c 100000 /dev/zero; head -c 100000 /dev/zero >&2");
    let minion_job_id = fleet.job_status(&id)["hosts"]["web1"]["minion_job_id"].clone();
    let ask = |args: Value| fleet.raw_overlord("web1").call(&envelope("admin", "web1", "jobs.logs", args)).unwrap();
    let most = ask(json!({ "id": minion_job_id, "max_bytes": u32::MAX, "wait_ms": u32::MAX }))["result"]["result"].clone();
    let next = most["stdout"]["next"].as_u64().unwrap();
    assert!(next > 4096 && most["stderr"]["data"].as_str().unwrap().len() as u64 == next, "what is zeros becomes six times as much");
    let beyond = ask(json!({ "id": minion_job_id, "stdout": u64::MAX, "stderr": 99_999, "max_bytes": 0 }))["result"]["result"].clone();
    assert_eq!((&beyond["stdout"]["next"], &beyond["stderr"]["data"]), (&json!(u64::MAX), &json!("\0")), "{beyond}");
    for bad in
        [json!({ "id": "../x" }), json!({ "id": minion_job_id, "stdout": -1 }), json!({ "id": minion_job_id, "offset": 1 }), json!({})]
    {
        assert_eq!(ask(bad.clone())["error"]["code"], -32602, "{bad}");
    }
    let run = fleet.overlord(["job-logs", &id]).ok();
    assert_eq!((run.out(), run.err()), ("\\x00".repeat(100_000), "\\x00".repeat(100_000)));
}

#[test]
fn what_an_ended_job_wrote_is_there_as_long_as_its_spool() {
    let fleet = Fleet::start(1);
    let id = ended_job(&fleet, "echo out; echo err >&2; exit 3");
    fleet.minion("web1").kill9();
    fleet.minion("web1").start();
    for args in [vec!["job-logs", &id], vec!["job-logs", &id, "--follow"]] {
        let run = fleet.overlord(args).ok();
        assert_eq!((run.out(), run.err()), ("out\n".to_owned(), "err\n".to_owned()));
    }
    let document = fleet.overlord(["job-logs", &id, "--output", "json"]).ok().json();
    assert_eq!(document["hosts"], json!({ "web1": { "stdout": "out\n", "stderr": "err\n", "state": "failed", "error": null } }));
    let web1 = fleet.minion("web1");
    fs::remove_file(web1.spool(&web1.spools()[0]).join("stdout")).unwrap();
    let lost = fleet.overlord(["job-logs", &id]).expect(4);
    assert!(lost.out().is_empty() && lost.err().contains("what it wrote to its stdout is gone"), "{}", lost.err());
    fs::remove_dir_all(web1.spool(&web1.spools()[0])).unwrap();
    let gone = fleet.overlord(["job-logs", &id]).expect(4);
    assert!(gone.out().is_empty() && gone.err().contains("is gone, and its output with it"), "{}", gone.err());
}

#[test]
fn a_job_daemon_that_was_killed_ends_the_following() {
    let fleet = Fleet::start(1);
    let id = fleet.start_job(["*", "command.run", "echo one; sleep 600"]);
    let mut logs = follow(&fleet, &id);
    assert_eq!(logs.next_line(), "one");
    let web1 = fleet.minion("web1");
    let daemon = web1.job_daemon(&web1.spools()[0]).unwrap().pid;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(daemon), Signal::SIGKILL).unwrap();
    assert_eq!(logs.wait().ok().out(), "one\n");
}

#[test]
fn a_host_that_cannot_be_read_hides_no_other() {
    let fleet = Fleet::builder().hosts(2).overlord_toml("lost_after = \"1s\"\n").start();
    let id = ended_job(&fleet, "echo on $MINION_NAME");
    fleet.minion("web2").stop();
    for args in [vec!["job-logs", &id], vec!["job-logs", &id, "--follow"]] {
        let run = fleet.overlord(args).expect(4);
        assert_eq!(run.out(), "web1: on web1\n");
        assert!(run.err().contains("web2: its output cannot be read to its end: cannot reach web2"), "{}", run.err());
        let away = run.err().matches("is asked again").count();
        assert_eq!(away, usize::from(run.what.contains("--follow")), "{}", run.err());
    }
    let document = fleet.overlord(["job-logs", &id, "--output", "json"]).expect(4).json();
    assert_eq!((&document["hosts"]["web1"]["stdout"], &document["hosts"]["web2"]["state"]), (&json!("on web1\n"), &json!(null)));
    assert!(document["hosts"]["web2"]["error"].as_str().unwrap().contains("cannot reach"), "{document}");
    let _ = fleet.overlord(["job-logs", &id, "web2"]).expect(4);
    let _ = fleet.overlord(["job-logs", &id, "web1"]).ok();
}

#[test]
fn a_host_where_it_never_started_is_named_with_the_reason() {
    let fleet = Fleet::start(3);
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    fleet.set_address("web2", &silent.local_addr().unwrap().to_string());
    fleet.minion("web3").set_acl("");
    let id = fleet.start_job(["*", "command.run", "echo ran", "--timeout", "1s"]);
    let _ = fleet.wait_for_state(&id, "FINISHED");
    for args in [vec!["job-logs", &id], vec!["job-logs", &id, "--follow"]] {
        let run = fleet.overlord(args).expect(4);
        assert_eq!(run.out(), "web1: ran\n");
        let told = |words: [&str; 2]| run.err().lines().any(|line| words.iter().all(|word| line.contains(word)));
        assert!(told(["web2: ", "never started there: cannot reach web2"]) && told(["web3: ", "no rule lets admin"]), "{}", run.err());
    }
}

/// While the dispatcher has not reached a host yet, the others are followed, and it is too as soon as it has the job.
#[test]
fn a_job_that_is_still_being_sent_is_followed_on_every_host() {
    let fleet = Fleet::builder().hosts(2).overlord_toml("connect_timeout = \"60s\"\n").start();
    fleet.minion("web2").pause();
    let gate = Gate::new(&fleet, "gate");
    let id = fleet.start_job(["*", "command.run", &format!("echo on $MINION_NAME; {}", gate.pass()), "--timeout", "60s"]);
    let mut logs = follow(&fleet, &id);
    assert_eq!(logs.next_line(), "web1: on web1");
    gate.open();
    assert_eq!(fleet.overlord(["job-logs", &id, "web1"]).ok().out(), "on web1\n");
    fleet.minion("web2").resume();
    assert_eq!(logs.next_line(), "web2: on web2");
    let _ = logs.wait().ok();
}

#[test]
fn wrong_usage_is_told_and_an_unknown_job_is_lost() {
    let fleet = Fleet::start(1);
    let id = ended_job(&fleet, "echo one");
    let follow = fleet.overlord(["job-logs", &id, "--follow", "--output", "json"]).expect(64);
    assert!(follow.err().contains("use --output jsonl"), "{}", follow.err());
    let member = fleet.overlord(["job-logs", &id, "web2"]).expect(64);
    assert!(member.err().contains("was not sent to web2"), "{}", member.err());
    let _ = fleet.overlord(["job-logs", "not/an/id"]).expect(64);
    let unknown = fleet.overlord(["job-logs", "0000-0000-0000"]).expect(4);
    assert!(unknown.out().is_empty() && unknown.err().contains("job-list"), "{}", unknown.err());
}

#[test]
fn nobody_reads_on_when_nobody_reads() {
    let fleet = Fleet::start(1);
    let id = fleet.start_job(["*", "command.run", "echo one; head -c 4000000 /dev/zero | tr '\\0' x; sleep 600"]);
    for args in [vec!["job-logs", &id, "--follow"], vec!["job-logs", &id, "--follow", "--output", "jsonl"], vec!["job-logs", &id]] {
        let (mut logs, mut stdout) = Unread::spawn(&fleet, &args);
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        assert!(line.contains("one"), "{line}");
        drop(stdout);
        let status = wait_for("job-logs to end", PATIENCE, || logs.0.try_wait().unwrap());
        assert_eq!(status.code(), Some(141), "{args:?}");
    }
}

/// The reader has all there is, and nothing more comes that could fail to be written.
#[test]
fn who_follows_in_silence_ends_when_nobody_reads_on() {
    let fleet = Fleet::start(1);
    let id = fleet.start_job(["*", "command.run", "echo one; sleep 600"]);
    let (mut logs, mut stdout) = Unread::spawn(&fleet, &["job-logs", &id, "--follow"]);
    stdout.read_line(&mut String::new()).unwrap();
    drop(stdout);
    let status = wait_for("job-logs to end", PATIENCE, || logs.0.try_wait().unwrap());
    assert_eq!(status.code(), Some(141));
}

#[test]
fn an_interrupt_ends_the_following_and_not_the_job() {
    let fleet = Fleet::start(2);
    let gate = Gate::new(&fleet, "gate");
    let id = fleet.start_job(["*", "command.run", &format!("echo one; printf half; {}", gate.pass())]);
    let mut logs = follow(&fleet, &id);
    let _ = [logs.next_line(), logs.next_line()];
    logs.signal(Signal::SIGINT);
    let run = logs.wait().expect(130);
    assert!(run.out().lines().all(|line| line.ends_with(": one") || line.ends_with(": half")), "{}", run.out());
    assert_eq!(fleet.job_status(&id)["hosts"]["web1"]["state"], "running");
    gate.open();
    let _ = fleet.overlord(["job-status", &id, "--wait"]).ok();
}

#[test]
fn a_program_reads_logs_as_the_command_line_does() {
    let fleet = Fleet::start(2);
    let id = ended_job(&fleet, "echo on $MINION_NAME; echo err >&2");
    let library = overlord::Fleet::open(fleet.home()).unwrap();
    let logs = library.job(&id).unwrap().logs(None).unwrap();
    for (host, logs) in &logs {
        assert_eq!((logs.stdout.clone(), logs.stderr.clone()), (format!("on {host}\n").into_bytes(), b"err\n".to_vec()));
        assert_eq!(logs.end, Some(overlord::LogEnd::Read(common::job::HostState::Ok)));
    }
    assert_eq!(logs.len(), 2);
    let mut ends = 0;
    let only = "web2".parse().unwrap();
    let each = |event| {
        let (overlord::LogEvent::Piece { host, .. } | overlord::LogEvent::Away { host, .. } | overlord::LogEvent::End { host, .. }) =
            &event;
        assert_eq!(*host, only);
        ends += usize::from(matches!(event, overlord::LogEvent::End { .. }));
    };
    library.job(&id).unwrap().logs_each(Some(&only), overlord::Follow::ToTheEnd, &overlord::Stop::new(), each).unwrap();
    assert_eq!(ends, 1);
}
