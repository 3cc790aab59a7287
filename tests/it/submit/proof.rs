//! By what a submission is believed: the token of a job that runs, of a caller who is not revoked, and nothing else.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use common::protocol::Envelope;
use fleet::captured::CapturedServer;
use fleet::raw::envelope;
use fleet::{Fleet, PATIENCE, binaries, wait_until};
use jiff::{SignedDuration, Timestamp};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use super::{Parent, TOKEN, assert_state, say_json, started, wait_for_end};

#[test]
fn a_job_that_has_ended_or_was_killed_submits_nothing() {
    let fleet = Fleet::start(1);
    let web1 = fleet.minion("web1");
    let (ended, killed) = (Parent::start(&fleet), Parent::start(&fleet));
    assert_state(&ended.submit(&["test.echo", "x"]), "ok", 0, "");
    ended.end();
    assert_state(&ended.submit(&["test.echo", "x"]), "denied", 2, "does not run any more");
    assert_state(&ended.submit(&["--async", "test.echo", "x"]), "denied", 2, "does not run any more");
    let daemon = web1.job_daemon(&killed.id).unwrap();
    kill(Pid::from_raw(daemon.pid), Signal::SIGKILL).unwrap();
    wait_until("the daemon to be gone", PATIENCE, || web1.job_daemon(&killed.id).is_none());
    assert_state(&killed.submit(&["test.echo", "x"]), "denied", 2, "does not run any more");
    // It is written down in both logs, of nobody.
    for log in [web1.audit(), CapturedServer::of(web1).audit()] {
        let refused = log.iter().filter(|line| line["decision"] == "refuse" && line["caller"] == "");
        assert_eq!(refused.filter(|line| line["rule"].as_str().unwrap().contains("does not run any more")).count(), 3);
    }
}

#[test]
fn a_token_is_good_for_one_job_of_one_host_and_its_caller() {
    let fleet = Fleet::start(2);
    let bob = fleet.issue("fleet:overlord/bob");
    let (parent, elsewhere) = (Parent::start(&fleet), Parent::of(&fleet, "web2", &fleet.home().join("certs"), "admin"));
    let bobs = Parent::of(&fleet, "web1", &bob, "bob");
    let (token, own) = (parent.token(), bobs.token());
    let secret = |token: &str| token.split_once('.').unwrap().1.to_owned();
    let flipped = if token.ends_with('0') { "1" } else { "0" };
    for forged in [
        format!("{}.{}", parent.id, "0".repeat(64)),
        format!("{}{flipped}", &token[..token.len() - 1]),
        format!("{}.{}", parent.id, secret(own)),
        format!("{}.{}", bobs.id, secret(token)),
        format!("{}.{}", parent.id, secret(elsewhere.token())),
        elsewhere.token().to_owned(),
    ] {
        let run = parent.submit_with(&[(TOKEN, &forged)], &["test.echo", "x"]);
        assert_state(&run, "denied", 2, "not submitted with the token of the job");
    }
    for none in [&token[..token.len() - 1], &parent.id, "x", "54k2-9xqd-4fz1.", &format!("{token}0")] {
        let run = parent.submit_with(&[(TOKEN, none)], &["test.echo", "x"]).expect(64);
        assert!(run.err().contains("MINION_JOB_TOKEN") && !run.err().contains(&secret(token)[..16]), "{}", run.err());
    }
    assert_state(&bobs.submit_with(&[("MINION_CALLER", "admin")], &["test.echo", "x"]), "denied", 2, "the envelope is admin's");
    assert_state(&parent.submit_with(&[("MINION_CALLER", "bob")], &["test.echo", "x"]), "denied", 2, "the envelope is bob's");
    // At the other host's own door.
    let socket = &elsewhere.variables["MINION_SUBMIT_SOCKET"];
    let run = parent.submit_with(&[("MINION_SUBMIT_SOCKET", socket), ("MINION_NAME", "web2")], &["test.echo", "x"]);
    assert_state(&run, "denied", 2, "not submitted with the token of the job");
    let run = elsewhere.submit_with(&[("MINION_NAME", "web1")], &["test.echo", "x"]);
    assert_state(&run, "undelivered", 4, "this is web2");
    assert_state(&parent.submit(&["test.echo", "x"]), "ok", 0, "");
}

#[test]
fn nobody_who_hands_a_submission_on_can_change_it_or_make_another() {
    let fleet = Fleet::start(1);
    let web1 = fleet.minion("web1");
    let parent = Parent::start(&fleet);
    let witness = fleet.root().join("witness");
    let good = envelope("admin", "web1", "command.run", json!({ "line": format!("echo ran >> {}", witness.display()) }));
    let line = parent.line(&good);
    for (from, to) in [("echo ran", "echo no!"), ("command.run", "async.command.run"), ("\"call_id\":\"", "\"call_id\":\"1")] {
        let mut forged = line.clone();
        forged["call"] = json!(line["call"].as_str().unwrap().replacen(from, to, 1));
        assert_ne!(forged, line);
        let answer = say_json(web1, &forged);
        assert_eq!(answer["error"]["code"], -32001, "{answer}");
        let ask = json!({ "minion": "web1", "call": forged["call"], "proof": { "token": { "job": line["job"], "code": line["code"] } } });
        let reply = CapturedServer::of(web1).order(&json!({ "run": ask })).unwrap();
        assert!(reply["refused"]["message"].as_str().unwrap().contains("not submitted with the token"), "{reply}");
    }
    assert!(!witness.exists());
    // And none of it runs twice.
    assert_eq!(say_json(web1, &line)["result"]["state"], "ok");
    let again = say_json(web1, &line);
    assert!(again["error"]["message"].as_str().unwrap().contains("was run here before"), "{again}");
    let job = Envelope { method: "async.command.run".into(), call_id: "54k2-9xqd-4fz1".parse().unwrap(), ..good };
    let line = parent.line(&job);
    let first = say_json(web1, &line);
    assert_eq!(first["result"]["repeated"], false, "{first}");
    let second = say_json(web1, &line);
    assert_eq!((&second["result"]["minion_job_id"], &second["result"]["repeated"]), (&first["result"]["minion_job_id"], &json!(true)));
    let _ended = wait_for_end(&parent, first["result"]["minion_job_id"].as_str().unwrap());
    let runs = || fs::read_to_string(&witness).unwrap_or_default().lines().count();
    assert_eq!(runs(), 2);
    // A captured server has kept it until the job has ended.
    let other = Envelope { call_id: "54k2-9xqd-4fz2".parse().unwrap(), ..job };
    let kept = json!({ "start": { "ask": parent.ask(&other), "accepted_at": Timestamp::now() } });
    parent.end();
    let reply = CapturedServer::of(web1).order(&kept).unwrap();
    assert!(reply["refused"]["message"].as_str().unwrap().contains("does not run any more"), "{reply}");
    assert_eq!(runs(), 2);
}

#[test]
fn the_jobs_of_who_was_revoked_submit_nothing() {
    let fleet = Fleet::start(1);
    let web1 = fleet.minion("web1");
    let eve = fleet.issue("fleet:overlord/eve");
    let parent = Parent::of(&fleet, "web1", &eve, "eve");
    assert_state(&parent.submit(&["test.echo", "x"]), "ok", 0, "");
    let _told = fleet.overlord(["certs", "revoke", "eve"]).ok();
    wait_until("the revocation to be known", PATIENCE, || parent.submit(&["test.echo", "x"]).err().contains("revoked"));
    assert_state(&parent.submit(&["--async", "test.echo", "x"]), "denied", 2, "revoked");
    assert!(web1.job_daemon(&parent.id).is_some(), "the job itself goes on");
}

/// A job may run for longer than its caller's certificate is good, and goes on submitting; what it submits then starts nothing more.
#[test]
fn a_certificate_that_has_ended_stops_the_children_of_children() {
    let fleet = Fleet::start(1);
    let web1 = fleet.minion("web1");
    let (now, life) = (Timestamp::now(), SignedDuration::from_secs(12));
    let validity = certs::authority::Validity { not_before: now - SignedDuration::from_mins(5), not_after: now + life };
    let tom = fleet.issue_within("fleet:overlord/tom", validity);
    let parent = Parent::of(&fleet, "web1", &tom, "tom");
    let nested = |text: &str| format!("{} submit {text}; true", binaries().minion.display());
    let child = started(&parent.submit(&["--async", "command.run", &nested("test.echo early")]));
    let early = wait_for_end(&parent, &child);
    assert!(early["result"]["stdout"].as_str().unwrap().contains("\"early\""), "{early}");
    wait_until("the certificate to end", PATIENCE, || Timestamp::now() > now + life + SignedDuration::from_secs(1));
    let raw = fleet.raw("web1", Some(&tom));
    assert!(raw.call(&envelope("tom", "web1", "test.ping", json!([]))).is_err(), "from the network it is good no more");
    let child = started(&parent.submit(&["--async", "command.run", &nested("test.echo late")]));
    let late = wait_for_end(&parent, &child);
    let (out, err) = (late["result"]["stdout"].as_str().unwrap(), late["result"]["stderr"].as_str().unwrap());
    assert!(out.contains("\"denied\"") && err.contains("when the certificate of tom had ended"), "{late}");
    assert!(web1.job_daemon(&parent.id).is_some());
}

#[test]
fn a_token_stands_in_the_jobs_environment_and_nowhere_else() {
    let fleet = Fleet::start(1);
    let web1 = fleet.minion("web1");
    let parent = Parent::start(&fleet);
    let child = started(&parent.submit(&["--async", "command.run", "sleep 60"]));
    assert_state(&parent.submit(&["test.echo", "x"]), "ok", 0, "");
    let refused = parent.submit_with(&[("MINION_CALLER", "bob")], &["test.echo", "x"]).expect(2);
    let (_, secret) = parent.token().split_once('.').unwrap();
    let cut = &secret[..16];
    let holds = |bytes: &[u8]| bytes.windows(cut.len()).any(|part| part == cut.as_bytes());
    assert!(!holds(&refused.stdout) && !holds(&refused.stderr));
    assert!(!holds(web1.stderr().as_bytes()));
    let mut files = vec![web1.state_dir()];
    let mut seen = 0;
    while let Some(path) = files.pop() {
        if path.is_dir() {
            files.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else if path.is_file() {
            seen += 1;
            assert!(!holds(&fs::read(&path).unwrap()), "{} holds the token", path.display());
        }
    }
    assert!(seen > 10, "{seen}");
    for process in fleet.processes() {
        assert!(!holds(process.command.as_bytes()), "{}", process.command);
    }
    let key = web1.spools_dir().join("token.key");
    assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o7777, 0o600);
    assert_eq!(fs::metadata(web1.spools_dir()).unwrap().permissions().mode() & 0o077, 0);
    // A call has none, whoever has started the minion; nor has a job its parent's.
    let env = parent.submit(&["command.run", "env"]).ok().json()["result"]["stdout"].as_str().unwrap().to_owned();
    assert!(env.contains("MINION_NAME=web1") && !env.contains("MINION_JOB") && !env.contains("MINION_CALLER"), "{env}");
    assert!(web1.job_daemon(&child).is_some());
}

#[test]
fn a_damaged_key_is_told_and_jobs_that_start_later_have_tokens_again() {
    let fleet = Fleet::start(1);
    let web1 = fleet.minion("web1");
    let before = Parent::start(&fleet);
    web1.stop();
    fs::write(web1.spools_dir().join("token.key"), "damaged").unwrap();
    web1.start();
    assert!(web1.stderr().contains("jobs that run now go on, and can submit no more"), "{}", web1.stderr());
    assert_state(&before.submit(&["test.echo", "x"]), "denied", 2, "not submitted with the token");
    assert_state(&Parent::start(&fleet).submit(&["test.echo", "x"]), "ok", 0, "");
    before.end();
}
