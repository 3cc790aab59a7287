//! What jobs submit: for their callers, and never more than those may do.

mod proof;
mod socket;
mod wait;

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::protocol::Envelope;
use fleet::captured::CapturedServer;
use fleet::raw::envelope;
use fleet::{Fleet, Minion, PATIENCE, Run, Running, binaries, wait_for, wait_until};
use jiff::Timestamp;
use minion::call::{Proof, Token};
use nix::sys::signal::Signal;
use nix::unistd::geteuid;
use serde_json::{Value, json};

const TOKEN: &str = "MINION_JOB_TOKEN";

/// A job that runs until its gate is opened, and what stands in its environment.
struct Parent<'f> {
    fleet: &'f Fleet,
    id: String,
    variables: BTreeMap<String, String>,
    gate: PathBuf,
}

impl<'f> Parent<'f> {
    /// A job of the fleet's overlord on web1.
    fn start(fleet: &'f Fleet) -> Self {
        Self::of(fleet, "web1", &fleet.home().join("certs"), "admin")
    }

    /// A job of the caller whose certificate lies in `folder`.
    fn of(fleet: &'f Fleet, host: &str, folder: &Path, caller: &str) -> Self {
        let (cert, key) = match caller {
            "admin" => ("overlord.pem", "overlord.key"),
            _ => ("cert.pem", "key.pem"),
        };
        let client = fleet::raw::Client::showing(fleet.minion(host).address(), host, &folder.join(cert), &folder.join(key));
        let said = fleet.root().join(format!("env-{host}-{caller}-{}", Timestamp::now().as_nanosecond()));
        let gate = said.with_extension("gate");
        let (shown, opened) = (said.display(), gate.display());
        let line = format!("env > {shown}.new; mv {shown}.new {shown}; while [ ! -e {opened} ]; do sleep 0.05; done");
        let call = envelope(caller, host, "async.command.run", json!({ "line": line }));
        let accepted = client.call(&Envelope { limit_ms: None, ..call }).unwrap();
        let id = accepted["result"]["minion_job_id"].as_str().unwrap_or_else(|| panic!("{accepted}")).to_owned();
        let text = wait_for("the job to say what it sees", PATIENCE, || fs::read_to_string(&said).ok());
        fs::remove_file(&said).unwrap();
        let variables = text.lines().filter_map(|line| line.split_once('='));
        let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        Self { fleet, id, variables, gate }
    }

    fn token(&self) -> &str {
        &self.variables[TOKEN]
    }

    /// What `minion submit` does, as if the job had typed it.
    fn submit(&self, args: &[&str]) -> Run {
        self.submit_with(&[], args)
    }

    /// The same with other variables.
    fn submit_with(&self, changed: &[(&str, &str)], args: &[&str]) -> Run {
        self.spawn_with(changed, args).wait()
    }

    fn spawn_with(&self, changed: &[(&str, &str)], args: &[&str]) -> Running {
        self.spawn("submit", changed, args)
    }

    /// The same for another command of the minion's.
    fn spawn(&self, command: &str, changed: &[(&str, &str)], args: &[&str]) -> Running {
        let words = [&[command], args].concat();
        let mut command = Command::new(&binaries().minion);
        command.args(words).env_clear().envs(&self.variables).envs(changed.iter().copied());
        Running::start(command)
    }

    /// The line that submits the call of `envelope`.
    fn line(&self, envelope: &Envelope) -> Value {
        let call = serde_json::to_string(envelope).unwrap();
        let Proof::Token { job, code } = self.token().parse::<Token>().unwrap().proof(&call) else { panic!("another proof") };
        json!({ "call": call, "job": job, "code": code })
    }

    /// The same as a captured server hands it on.
    fn ask(&self, envelope: &Envelope) -> Value {
        let line = self.line(envelope);
        json!({ "minion": "web1", "call": line["call"], "proof": { "token": { "job": line["job"], "code": line["code"] } } })
    }

    fn end(&self) {
        fs::write(&self.gate, "").unwrap();
        let outcome = self.fleet.minion(&self.variables["MINION_NAME"]).spool(&self.id).join("outcome.json");
        wait_until("the job to end", PATIENCE, || outcome.exists());
    }
}

/// What is answered to a line on the socket.
fn say(minion: &Minion, line: &[u8]) -> Value {
    let mut stream = UnixStream::connect(minion.state_dir().join("submit.sock")).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    // Without a place one is told so unheard.
    let _hung_up = stream.write_all(line);
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).unwrap();
    serde_json::from_str(&answer).unwrap_or_else(|error| panic!("{error}: {answer:?}"))
}

fn say_json(minion: &Minion, line: &Value) -> Value {
    say(minion, format!("{line}\n").as_bytes())
}

/// The state that a submission came to, with its exit status and what it says of the reason.
fn assert_state(run: &Run, state: &str, code: i32, why: &str) {
    let answer = run.clone().expect(code).json();
    assert_eq!(answer["state"], state, "{answer}");
    assert!(why.is_empty() || answer["error"]["message"].as_str().unwrap().contains(why), "{answer} does not say {why:?}");
    assert_eq!(run.out().lines().count(), 1, "{}", run.out());
}

/// What stands in the server's log and in the spawner's of what this job has submitted.
fn audited(minion: &Minion, parent: &str) -> [Vec<Value>; 2] {
    [minion.audit(), CapturedServer::of(minion).audit()].map(|mut lines| {
        lines.retain(|line| line["submitted_by"] == parent);
        lines
    })
}

fn started(run: &Run) -> String {
    run.clone().ok().json()["minion_job_id"].as_str().unwrap().to_owned()
}

fn wait_for_end(parent: &Parent<'_>, id: &str) -> Value {
    wait_for("the child to end", PATIENCE, || {
        let report = parent.submit(&["jobs.status", id]).ok().json()["result"].clone();
        report["finished_at"].is_string().then_some(report)
    })
}

#[test]
fn a_job_starts_another_and_waits_for_its_result() {
    let fleet = Fleet::start(1);
    let minion = binaries().minion.display();
    let script = format!(
        "id=$({minion} submit --async test.add 23 45 | sed 's/.*\"minion_job_id\":\"\\([^\"]*\\)\".*/\\1/') || exit 9; \
         for try in $(seq 200); do {minion} submit jobs.status $id | grep -q '\"result\":68' && break; sleep 0.1; done; \
         {minion} submit test.echo seen; echo $id"
    );
    let job = fleet.start_job(["web1", "command.run", &script]);
    let status = fleet.overlord(["job-status", &job, "--wait", "--output", "json"]).ok().json();
    let host = &status["hosts"]["web1"];
    let out = host["result"]["stdout"].as_str().unwrap_or_else(|| panic!("{status}"));
    let (echoed, child) = out.trim().split_once('\n').unwrap();
    assert_eq!(serde_json::from_str::<Value>(echoed).unwrap()["result"], "seen", "{echoed}");
    // Both doors have written down whose call it was, and which job's.
    let parent = host["minion_job_id"].as_str().unwrap();
    for log in audited(fleet.minion("web1"), parent) {
        let child_line = log.iter().find(|line| line["minion_job_id"] == child).unwrap_or_else(|| panic!("{log:?}"));
        assert_eq!(
            (child_line["caller"].as_str(), child_line["method"].as_str(), child_line["decision"].as_str()),
            (Some("admin"), Some("async.test.add"), Some("allow"))
        );
        assert!(child_line["fingerprint"].as_str().unwrap().len() == 64, "{child_line}");
    }
    let listed = fleet.overlord(["web1", "jobs.status", child, "--output", "json"]).ok().json();
    assert_eq!(listed["hosts"]["web1"]["result"]["result"], 68, "the caller sees what his jobs have started");
}

#[test]
fn a_job_may_do_what_its_caller_may_do_now_and_no_more() {
    let fleet = Fleet::start(1);
    let web1 = fleet.minion("web1");
    web1.set_acl("[[allow]]\ncaller = \"admin\"\nmethods = [\"command.run\"]\n");
    let parent = Parent::start(&fleet);
    assert_state(&parent.submit(&["command.run", "true"]), "ok", 0, "");
    for args in [&["test.echo", "x"][..], &["--async", "test.echo", "x"]] {
        assert_state(&parent.submit(args), "denied", 2, "no rule lets admin call test.echo");
    }
    let [server, _] = audited(web1, &parent.id);
    assert_eq!(server.iter().filter(|line| line["decision"] == "deny").count(), 2, "{server:?}");
    // A server that was captured cannot have it done either.
    for method in ["test.sleep", "async.test.echo"] {
        let call = envelope("admin", "web1", method, json!({}));
        let ask = parent.ask(&call);
        let order = if method.starts_with("async") {
            json!({ "start": { "ask": ask, "accepted_at": Timestamp::now() } })
        } else {
            json!({ "run": ask })
        };
        let reply = CapturedServer::of(web1).order(&order).unwrap();
        assert!(reply["refused"]["message"].as_str().unwrap().contains("no rule lets admin"), "{reply}");
    }
    let [_, spawner] = audited(web1, &parent.id);
    assert_eq!(spawner.iter().filter(|line| line["decision"] == "deny").count(), 2, "{spawner:?}");
    // What is taken from the caller is taken from jobs of his that run.
    web1.set_acl("[[allow]]\ncaller = \"bob\"\nmethods = [\"command.run\"]\n");
    assert_state(&parent.submit(&["command.run", "true"]), "denied", 2, "no rule lets admin call command.run");
    assert_state(&parent.submit(&["certs.revocations", "0"]), "failed", 2, "no job's business");
}

#[test]
fn a_job_sees_to_the_jobs_of_its_caller_and_to_no_others() {
    let fleet = Fleet::start(1);
    fleet.minion("web1").set_acl("[[allow]]\ncaller = [\"admin\", \"bob\"]\nmethods = [\"command.run\"]\n");
    let (parent, bob) = (Parent::start(&fleet), fleet.issue("fleet:overlord/bob"));
    let bobs = Parent::of(&fleet, "web1", &bob, "bob");
    let child = started(&parent.submit(&["--async", "command.run", "echo heard; sleep 60"]));
    let logs = |from: &Parent<'_>| from.submit(&["jobs.logs", "--json", &json!({ "id": child }).to_string()]);
    wait_until("the child's output", PATIENCE, || logs(&parent).ok().json()["result"]["stdout"]["data"] == "heard\n");
    for args in [&["jobs.status", &child][..], &["jobs.cancel", &child], &["jobs.logs", &child]] {
        assert_state(&bobs.submit(args), "failed", 2, "knows no job");
    }
    let listed = bobs.submit(&["jobs.list"]).ok().json()["result"]["jobs"].clone();
    assert_eq!(listed.as_array().unwrap().len(), 1, "{listed}");
    assert_state(&parent.submit(&["jobs.cancel", &child]), "ok", 0, "");
    assert_eq!(wait_for_end(&parent, &child)["state"], "cancelled");
    let fenced = parent.submit(&["jobs.fence", "54k2-9xqd-4fz1"]).ok().json();
    assert_eq!(fenced["result"]["state"], "undelivered", "{fenced}");
}

#[test]
fn a_child_that_waits_keeps_its_acceptance_when_all_else_is_gone() {
    let fleet = Fleet::builder().hosts(1).minion_toml("[limits]\njobs_max = 1\n").start();
    let web1 = fleet.minion("web1");
    let parent = Parent::start(&fleet);
    let witness = fleet.root().join("witness");
    let accepted = parent.submit(&["--async", "command.run", &format!("echo $MINION_CALLER > {}", witness.display())]);
    assert_eq!(accepted.json()["state"], "queued", "{}", accepted.out());
    web1.set_acl("[[allow]]\ncaller = \"admin\"\nmethods = [\"test.*\"]\n");
    let spawner = web1.spawner().unwrap();
    web1.kill9();
    wait_until("the spawner to be gone", PATIENCE, || web1.spawner().is_none_or(|now| now.pid != spawner.pid));
    web1.start();
    assert!(!witness.exists());
    assert_state(&parent.submit(&["command.run", "true"]), "denied", 2, "no rule");
    parent.end();
    wait_until("the child to have run", PATIENCE, || fs::read_to_string(&witness).is_ok_and(|said| said == "admin\n"));
}

#[test]
fn a_job_submits_while_its_minion_is_started_again() {
    let fleet = Fleet::start(1);
    let web1 = fleet.minion("web1");
    let parent = Parent::start(&fleet);
    web1.kill9();
    let mut waiting = parent.spawn_with(&[], &["--async", "test.add", "23", "45"]);
    web1.start_without_waiting();
    assert!(waiting.is_running());
    let child = started(&waiting.wait());
    assert_eq!(wait_for_end(&parent, &child)["result"], 68);
}

#[test]
fn a_job_that_runs_as_a_user_submits_nothing_that_runs_as_another() {
    const DEPLOY: u32 = 4242;
    if !geteuid().is_root() {
        println!("not root: nothing here can become another user");
        return;
    }
    let rules = "[[allow]]\ncaller = \"admin\"\nmethods = [\"command.run\"]\nrun_as = \"deploy\"\n\n\
                 [[allow]]\ncaller = \"admin\"\nmethods = [\"command.exists\"]\n";
    let fleet = Fleet::builder().hosts(1).own_users().acl(rules).stopped().start();
    fleet.minion("web1").add_user("deploy", DEPLOY);
    fs::set_permissions(fleet.root(), Permissions::from_mode(0o755)).unwrap();
    fleet.minion("web1").start();
    // The programs may lie where nobody else can enter; and one that we hold open for writing cannot be executed.
    let minion = fleet.root().join("minion");
    assert!(Command::new("cp").arg(&binaries().minion).arg(&minion).status().unwrap().success());
    let closed = fleet.root().join("closed");
    fs::create_dir(&closed).unwrap();
    fs::set_permissions(&closed, Permissions::from_mode(0o700)).unwrap();
    let program = closed.join("program");
    fs::write(&program, "").unwrap();
    fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
    let (minion, program) = (minion.display(), program.display());
    let script =
        format!("id -u; {minion} submit command.run 'id -u'; {minion} submit command.exists {program}; echo $?; ls {program} || true");
    let id = fleet.start_job(["web1", "command.run", &script]);
    let status = fleet.overlord(["job-status", &id, "--wait", "--output", "json"]).ok().json();
    let out = status["hosts"]["web1"]["result"]["stdout"].as_str().unwrap_or_else(|| panic!("{status}")).to_owned();
    let lines: Vec<&str> = out.lines().collect();
    let [parent, child, root, code] = lines[..] else { panic!("{status}") };
    assert_eq!(parent, DEPLOY.to_string());
    assert_eq!(serde_json::from_str::<Value>(child).unwrap()["result"]["stdout"], format!("{DEPLOY}\n"));
    let refused = serde_json::from_str::<Value>(root).unwrap();
    assert_eq!((&refused["state"], code), (&json!("denied"), "2"), "{refused}");
    assert!(refused["error"]["message"].as_str().unwrap().contains("a job that runs as deploy submits nothing that runs as"), "{refused}");
}

#[test]
fn outside_a_job_nothing_is_submitted_and_an_interrupt_stops_a_call() {
    let fleet = Fleet::start(1);
    let parent = Parent::start(&fleet);
    let mut alone = Command::new(&binaries().minion);
    alone.args(["submit", "test.ping"]).env_clear();
    let run = Running::start(alone).wait().expect(64);
    assert!(run.stdout.is_empty() && run.err().contains("MINION_JOB_TOKEN is not in the environment"), "{}", run.err());
    // A server that is not there is waited for.
    let gone = parent.spawn_with(&[("MINION_SUBMIT_SOCKET", "/nonexistent/submit.sock")], &["test.ping"]);
    let running = parent.spawn_with(&[], &["command.run", "sleep 61"]);
    wait_until("the call to run", PATIENCE, || !fleet.running("sleep 61").is_empty());
    running.signal(Signal::SIGINT);
    let run = running.wait().expect(130);
    assert!(run.stdout.is_empty(), "{}", run.out());
    wait_until("the call to be stopped", PATIENCE, || fleet.running("sleep 61").is_empty());
    assert_state(&parent.submit(&["command.run", "exit 3"]), "failed", 2, "");
    assert_state(&parent.submit(&["--timeout", "300ms", "command.run", "sleep 62"]), "timed_out", 2, "");
    let file = fleet.minion("web1").config_file();
    assert_state(&parent.submit(&["--config", file.to_str().unwrap(), "test.ping"]), "ok", 0, "");
    assert_state(&gone.wait(), "undelivered", 4, "is `minion serve` running?");
}
