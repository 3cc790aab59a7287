//! What is printed: lossless for programs, harmless and folded for people.

use std::fs;
use std::process::Command;

use fleet::{Fleet, Running};
use serde_json::json;

const HOSTILE: &str = "printf 'a\\033[31mred\\007\\000b\\302\\233c\\342\\200\\256d\\n'; printf 'bad \\377\\376' >&2";

#[test]
fn hostile_output_is_lossless_in_json() {
    let fleet = Fleet::start(1);
    let id = fleet.start_job(["*", "command.run", HOSTILE]);
    let job = fleet.overlord(["job-status", &id, "--wait", "--output", "json"]).ok();
    let call = fleet.overlord(["*", "command.run", HOSTILE, "--output", "json"]).ok();
    let lines = fleet.overlord(["*", "command.run", HOSTILE, "--output", "jsonl"]).ok();
    assert_eq!(lines.json_lines()[0]["host"], "web1");
    for result in [&job.json()["hosts"]["web1"]["result"], &call.json()["hosts"]["web1"]["result"], &lines.json_lines()[0]["result"]] {
        assert_eq!(result["stdout"], "a\u{1b}[31mred\u{7}\u{0}b\u{9b}c\u{202e}d\n");
        assert_eq!(result["stderr"], json!({ "base64": "YmFkIP/+" }));
    }
}

#[test]
fn hostile_output_is_harmless_on_a_terminal() {
    let fleet = Fleet::start(1);
    let id = fleet.start_job(["*", "command.run", HOSTILE]);
    let _ = fleet.overlord(["job-status", &id, "--wait"]).ok();
    for args in [
        vec!["web1", "command.run", HOSTILE],
        vec!["web1", "command.run", HOSTILE, "--output", "json"],
        vec!["web1", "command.run", HOSTILE, "--output", "jsonl"],
        vec!["job-status", &id],
        vec!["job-status", &id, "--output", "json"],
        vec!["web1", "test.explode", "\u{1b}]0;owned\u{7}"],
    ] {
        let (plain, terminal) = (fleet.overlord(&args), on_a_terminal(&fleet, &args));
        for text in [&plain.stdout, &plain.stderr] {
            assert_harmless(&String::from_utf8(text.clone()).unwrap(), &[]);
        }
        // Our own colours and cursor movements are the only escapes there may be.
        assert!(!terminal.contains("\u{1b}[31mred") && !terminal.contains("\u{1b}]"), "{terminal:?}");
        assert_harmless(&terminal, &['\r', '\u{1b}']);
        assert!(plain.out().contains("red") || plain.err().contains("owned") || plain.out().contains("owned"), "{plain:?}");
    }
}

fn assert_harmless(text: &str, allowed: &[char]) {
    let bad = text
        .chars()
        .find(|letter| (letter.is_control() && !matches!(letter, '\n' | '\t') || *letter == '\u{202e}') && !allowed.contains(letter));
    assert_eq!(bad, None, "{text:?}");
}

/// What a person at a terminal sees, by util-linux's script(1).
fn on_a_terminal(fleet: &Fleet, args: &[&str]) -> String {
    let quoted: Vec<_> = args.iter().map(|arg| format!("'{}'", arg.replace('\'', "'\\''"))).collect();
    let mut command = Command::new("script");
    command.args(["-qec", &format!("{} {}", fleet::binaries().overlord.display(), quoted.join(" ")), "/dev/null"]);
    command.env("OVERLORD_HOME", fleet.home()).env("TERM", "xterm");
    Running::start(command).wait().out()
}

#[test]
fn hosts_with_the_same_answer_are_folded() {
    let fleet = Fleet::start(4);
    let text = fleet.overlord(["*", "command.run", "if [ $MINION_NAME = web3 ]; then echo odd; else echo even; fi"]).ok().out();
    assert_eq!(text.matches("even").count(), 1, "{text}");
    assert_eq!(text.matches("odd").count(), 1, "{text}");
    for host in ["web1", "web2", "web3", "web4"] {
        assert_eq!(text.matches(host).count(), 1, "{text}");
    }
}

#[test]
fn json_lines_come_as_hosts_answer() {
    let fleet = Fleet::start(3);
    let gate = fleet.root().join("gate");
    let line = format!("[ $MINION_NAME != web2 ] || while [ ! -e {} ]; do sleep 0.02; done", gate.display());
    let mut call = fleet.overlord_spawn(["*", "command.run", &line, "--output", "jsonl"]);
    let early: Vec<_> =
        [call.next_line(), call.next_line()].map(|line| serde_json::from_str::<serde_json::Value>(&line).unwrap()["host"].clone()).into();
    assert!(call.is_running());
    fs::write(gate, "").unwrap();
    let run = call.wait().ok();
    let all = run.json_lines();
    assert!(!early.contains(&json!("web2")), "{early:?}");
    assert_eq!((&all[2]["host"], &all[3]["summary"]), (&json!("web2"), &json!({ "ok": 3 })), "{}", run.out());
}

#[test]
fn stdout_of_async_is_the_id_alone() {
    let fleet = Fleet::start(1);
    let run = fleet.overlord(["*", "test.ping", "--async"]).ok();
    assert!(run.out().strip_suffix('\n').unwrap().parse::<common::job::JobId>().is_ok(), "{:?}", run.out());
    assert_eq!(run.err(), "");
}

#[test]
fn usage_errors_are_64_and_a_closed_pipe_is_no_error() {
    let fleet = Fleet::start(1);
    for args in [
        &["*"][..],
        &["*", "ping"],
        &["job-status"],
        &["*", "test.ping", "--forks", "0"],
        &["*", "test.ping", "--timeout", "soon"],
        &["nonsense"],
    ] {
        let run = fleet.overlord(args).expect(64);
        assert_eq!(run.out(), "", "{args:?}");
    }
    let line = format!("{} '*' test.ping | true", fleet::binaries().overlord.display());
    let mut command = Command::new("sh");
    command.args(["-c", &line]).env("OVERLORD_HOME", fleet.home());
    assert_eq!(Running::start(command).wait().err(), "");
}

#[test]
fn output_past_the_cap_is_cut_and_marked() {
    let fleet = Fleet::builder().hosts(1).minion_toml("[limits]\nresult_max_bytes = 32768\noutput_max_bytes = 100000\n").start();
    let line = "head -c 50000000 /dev/zero | tr '\\0' x";
    let call = fleet.overlord(["*", "command.run", line, "--output", "json"]).ok().json();
    let id = fleet.start_job(["*", "command.run", line]);
    let job = fleet.overlord(["job-status", &id, "--wait", "--output", "json"]).ok().json();
    for result in [&call["hosts"]["web1"]["result"], &job["hosts"]["web1"]["result"]] {
        assert_eq!(result["cut"]["stdout"], 50_000_000);
        assert!(result["stdout"].as_str().unwrap().len() <= 32768);
    }
    let kept = fs::read(fleet.minion("web1").spool(job["hosts"]["web1"]["minion_job_id"].as_str().unwrap()).join("stdout")).unwrap();
    assert!(kept.len() < 100_200 && kept.ends_with(b"bytes are above]\n"), "{}", kept.len());
    let big = fleet.overlord(["*", "test.echo", &"x".repeat(131_000), "--output", "json"]).expect(2).json();
    assert_eq!(big["hosts"]["web1"]["error"]["code"], 8, "{big}");
}
