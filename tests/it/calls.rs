//! Synchronous calls: who is asked, what comes back, and with which exit status.

use std::net::TcpListener;
use std::time::Duration;

use fleet::Fleet;
use serde_json::json;

#[test]
fn one_dead_host_of_ten_costs_its_own_answer_alone() {
    let fleet = Fleet::start(10);
    fleet.minion("web7").stop();
    let run = fleet.overlord(["*", "test.ping", "--timeout", "10s", "--output", "json"]).expect(4);
    let hosts = run.json()["hosts"].as_object().unwrap().clone();
    assert_eq!(hosts.len(), 10);
    assert_eq!(hosts.values().filter(|host| host["state"] == "ok" && host["result"] == "pong").count(), 9);
    assert_eq!(hosts["web7"]["state"], "undelivered");
    let reason = hosts["web7"]["error"]["message"].as_str().unwrap();
    assert!(reason.contains("web7") && reason.contains("refused"), "{reason}");
    assert!(run.took < Duration::from_secs(10), "{:?}", run.took);
}

/// Three hosts swallow their connections; with a fork for each, nobody waits for them.
#[test]
fn fewer_dead_hosts_than_forks_delay_nobody() {
    let fleet = Fleet::start(8);
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let nowhere = silent.local_addr().unwrap().to_string();
    fleet.set_addresses(&["web1", "web2", "web3"].map(|host| (host, nowhere.as_str())));
    let run = fleet.overlord(["*", "test.ping", "--forks", "4", "--output", "jsonl"]).expect(4);
    let order: Vec<_> = run.json_lines().iter().filter_map(|line| Some(line.get("host")?.as_str()?.to_owned())).collect();
    assert_eq!(order.len(), 8, "{}", run.out());
    let mut last: Vec<_> = order[5..].to_vec();
    last.sort();
    assert_eq!(last, ["web1", "web2", "web3"], "the living answered first, each through the one fork that was left: {order:?}");
}

#[test]
fn a_target_that_matches_nothing_sends_nothing() {
    let fleet = Fleet::start(2);
    for target in ["db*", "db1", "web1;db1", "web[1-3]", "@nobody", "*;!*"] {
        let run = fleet.overlord([target, "test.ping"]).expect(66);
        assert_eq!(run.out(), "", "{target}");
        assert!(!run.err().is_empty());
        let _ = fleet.overlord([target, "test.ping", "--async"]).expect(66);
    }
    assert!(fleet.minions().iter().all(|minion| minion.audit().is_empty()));
    assert_eq!(fleet.overlord(["job-list", "--output", "json"]).ok().json()["jobs"], json!([]), "no job was made");
}

#[test]
fn a_target_names_hosts_as_it_says() {
    let fleet = Fleet::builder().names(["web1", "web2", "web3", "db1"]).group("front", |name| name != "db1").start();
    let asked = |target: &str| {
        let run = fleet.overlord([target, "test.ping", "--output", "json"]).ok();
        run.json()["hosts"].as_object().unwrap().keys().cloned().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(asked("*"), "db1 web1 web2 web3");
    assert_eq!(asked("WEB*"), "web1 web2 web3");
    assert_eq!(asked("web1;db*,WEB3"), "db1 web1 web3");
    assert_eq!(asked("@front;!web2"), "web1 web3");
    assert_eq!(asked("web[1,3],db1"), "db1 web1 web3");
    assert_eq!(asked("!@front"), "db1");
    assert_eq!(asked("web?"), "web1 web2 web3");
}

#[test]
fn what_the_grammar_adds_later_is_refused_by_name() {
    let fleet = Fleet::start(1);
    for (target, named) in [("/web.*/", "regular expression"), ("os:debian", "fact"), ("web1 and db1", "and")] {
        let run = fleet.overlord([target, "test.ping"]).expect(64);
        assert!(run.err().to_lowercase().contains(named), "{target}: {}", run.err());
    }
}

#[test]
fn a_method_that_does_not_exist_runs_nothing_and_says_what_there_is() {
    let fleet = Fleet::start(1);
    let run = fleet.overlord(["*", "test.pong", "--output", "json"]).expect(2);
    let error = &run.json()["hosts"]["web1"]["error"];
    assert_eq!(error["code"], -32601);
    assert!(error["message"].as_str().unwrap().contains("ping"), "{error}");
    let id = fleet.start_job(["*", "tset.ping"]);
    let job = fleet.overlord(["job-status", &id, "--wait", "--output", "json"]).expect(2).json();
    assert_eq!(job["hosts"]["web1"]["error"]["code"], -32601, "{job}");
    assert_eq!(fleet.minion("web1").spools(), Vec::<String>::new());
}

#[test]
fn arguments_of_a_wrong_type_are_refused_before_anything_is_sent() {
    let fleet = Fleet::start(1);
    for args in [&["1", "x"][..], &["1"], &["1", "2", "3"], &["--json", "{\"a\": 1, \"b\": \"2\"}"], &["--json", "[1"]] {
        let run = fleet.overlord(["*", "test.add"].into_iter().chain(args.iter().copied())).expect(64);
        let is_json = args.last() == Some(&"[1");
        assert!(is_json || run.err().contains("usage: test.add A:number B:number"), "{args:?}: {}", run.err());
        assert_eq!(run.out(), "");
    }
    assert_eq!(fleet.minion("web1").audit().len(), 0, "nothing was sent");
}

/// Within the frames that they travel in, arguments nested deeper could be read no more, and the job's log neither.
#[test]
fn arguments_nested_too_deep_are_refused_before_anything_is_written() {
    let fleet = Fleet::start(1);
    let nested = |levels: usize| format!("[{}{}]", "[".repeat(levels), "]".repeat(levels));
    for method in ["test.echo", "unknown.method"] {
        for levels in [66, 110] {
            let run = fleet.overlord(["*", method, "--json", &nested(levels), "--async"]).expect(64);
            assert!(run.err().contains("nested"), "{}", run.err());
        }
    }
    let id = fleet.start_job(["*", "test.echo", "--json", &nested(64)]);
    let status = fleet.overlord(["job-status", &id, "--wait", "--output", "json"]).ok();
    assert!(status.out().contains(&"[".repeat(64)), "{}", status.out());
    assert_eq!(status.err(), "", "the store is sound");
}

/// The host's word counts: an overlord of another version may know the method otherwise.
#[test]
fn arguments_of_a_wrong_type_are_refused_by_the_host_too() {
    let fleet = Fleet::start(1);
    for method in ["test.add", "async.test.add"] {
        let call = fleet::raw::envelope("admin", "web1", method, json!([1, "x"]));
        let admin = fleet.raw_overlord("web1");
        let answer = admin.post_json(&admin.signed(json!(1), &call)).unwrap();
        assert_eq!(answer["error"]["code"], -32602, "{answer}");
        assert!(answer["error"]["message"].as_str().unwrap().contains("usage: test.add A:number B:number"), "{answer}");
    }
    assert_eq!(fleet.minion("web1").spools(), Vec::<String>::new());
}

#[test]
fn words_and_json_arrive_as_they_were_meant() {
    let fleet = Fleet::start(1);
    let result = |args: &[&str]| {
        fleet.overlord(["*"].iter().chain(args).chain(&["--output", "json"])).ok().json()["hosts"]["web1"]["result"].clone()
    };
    assert_eq!(result(&["test.add", "23", "45"]), 68);
    assert_eq!(result(&["test.add", "b=1", "a=2.5"]), 3.5);
    assert_eq!(result(&["test.echo", "007"]), "007");
    assert_eq!(result(&["test.echo", "1.10"]), "1.10");
    assert_eq!(result(&["test.echo", "--json", "[{\"a\": [1, null]}]"]), json!({ "a": [1, null] }));
    let fine = "1.8230687000260783e-15";
    assert_eq!(result(&["test.echo", "--json", &format!("[{fine}]")]).to_string(), fine);
    for falsy in ["0", "\"\"", "false", "[]", "null"] {
        assert_eq!(result(&["test.echo", "--json", &format!("[{falsy}]")]).to_string(), falsy);
    }
    assert_eq!(result(&["command.run", "--json", "{\"argv\": [\"printf\", \"%s.\", \"a b\", \"$HOME\"]}"])["stdout"], "a b.$HOME.");
    assert_eq!(result(&["command.run", "cat; pwd; echo $X", "stdin=in ", "cwd=/usr", "env={\"X\":\"y\"}"])["stdout"], "in /usr\ny\n");
    assert_eq!(
        result(&["command.exists", "sh"]),
        fleet.overlord(["web1", "command.run", "command -v sh", "--output", "json"]).ok().json()["hosts"]["web1"]["result"]["stdout"]
            .as_str()
            .unwrap()
            .trim()
    );
    assert_eq!(result(&["command.exists", "no-such-command"]), json!(null));
    assert_eq!(result(&["system.list_modules"]), json!(["certs", "command", "jobs", "minion", "system", "test", "worker"]));
    assert_eq!(result(&["system.describe", "test.add"])["method"], "test.add");
    assert!(result(&["system.inventory"])["memory_bytes"].is_number() || result(&["system.inventory"]).is_object());
}

#[test]
fn another_status_than_0_is_a_failure_that_keeps_its_output() {
    let fleet = Fleet::start(1);
    let run = fleet.overlord(["*", "command.run", "echo out; echo err >&2; exit 7", "--output", "json"]).expect(2);
    let error = &run.json()["hosts"]["web1"]["error"];
    assert_eq!(error["data"], json!({ "rc": 7, "stdout": "out\n", "stderr": "err\n" }), "{error}");
}

#[test]
fn twenty_commands_at_once_on_one_home_all_succeed() {
    let fleet = Fleet::start(2);
    let id = fleet.start_job(["*", "test.add", "1", "2"]);
    let running: Vec<_> = (0..20)
        .map(|number| match number % 4 {
            0 => fleet.overlord_spawn(["*", "test.echo", "x", "--async"]),
            1 => fleet.overlord_spawn(["job-status", &id, "--wait"]),
            2 => fleet.overlord_spawn(["job-list"]),
            _ => fleet.overlord_spawn(["*", "test.ping"]),
        })
        .collect();
    let mut ids: Vec<_> =
        running.into_iter().map(|run| run.wait().ok().out()).filter(|out| out.trim().parse::<common::job::JobId>().is_ok()).collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 5, "{ids:?}");
    for id in ids {
        let job = fleet.overlord(["job-status", id.trim(), "--wait", "--output", "json"]).ok().json();
        assert_eq!(job["hosts"]["web2"]["result"], "x", "{job}");
    }
}

/// The store's lock is not held while hosts are asked: a poll that waits for a silent host keeps nobody from the store.
#[test]
fn a_poll_that_waits_keeps_nobody_from_the_store() {
    let fleet = Fleet::start(1);
    let id = fleet.start_job(["*", "test.sleep", "600"]);
    let _ = fleet.wait_for_state(&id, "PARTIAL");
    fleet.minion("web1").pause();
    let mut poll = fleet.overlord_spawn(["job-status", &id]);
    let listed = fleet.overlord(["job-list"]).ok();
    assert!(listed.out().contains(&id));
    assert!(poll.is_running(), "the poll was over first, which shows nothing: took {:?}", listed.took);
    let _ = poll.wait().expect(75);
    fleet.minion("web1").resume();
}

/// A host that takes the connection and says nothing is given up at `connect_timeout`.
#[test]
fn a_silent_host_costs_the_connect_timeout_and_its_own_answer_alone() {
    let fleet = Fleet::builder().hosts(10).overlord_toml("connect_timeout = \"1s\"\n").start();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    fleet.set_address("web7", &silent.local_addr().unwrap().to_string());
    let run = fleet.overlord(["*", "test.ping", "--timeout", "10s", "--output", "json"]).expect(4);
    let hosts = run.json()["hosts"].as_object().unwrap().clone();
    assert_eq!(hosts.values().filter(|host| host["result"] == "pong").count(), 9, "{}", run.out());
    assert_eq!(hosts["web7"]["state"], "undelivered", "{}", run.out());
    let reason = hosts["web7"]["error"]["message"].as_str().unwrap();
    assert!(reason.contains("no connection within 1s"), "{reason}");
    assert!(run.took < Duration::from_secs(8), "{:?}", run.took);
}
