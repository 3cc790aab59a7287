//! A server that was captured: its spawner does nothing that no caller has signed for this host and this time, and writes down what it refuses.

use std::fs;
use std::path::{Path, PathBuf};

use common::protocol::{Arguments, Envelope};
use fleet::captured::CapturedServer;
use fleet::raw::{envelope, signature_of};
use fleet::{Fleet, PATIENCE, wait_until};
use jiff::{SignedDuration, Timestamp};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

/// A fleet whose first host's server was captured, and the folder of a caller who may do all that he signs.
struct Scene {
    fleet: Fleet,
    admin: PathBuf,
    server: CapturedServer,
}

impl Scene {
    fn set() -> Self {
        let fleet = Fleet::start(2);
        let admin = fleet.issue("fleet:overlord/admin");
        let server = CapturedServer::of(fleet.minion("web1"));
        Self { fleet, admin, server }
    }

    /// A call that writes to the file `witness`, as often as it runs.
    fn call(&self, witness: &str) -> Envelope {
        let line = format!("echo ran >> {}", self.path(witness).display());
        envelope("admin", "web1", "command.run", json!({ "line": line }))
    }

    fn path(&self, witness: &str) -> PathBuf {
        self.fleet.root().join(witness)
    }

    fn runs(&self, witness: &str) -> usize {
        fs::read_to_string(self.path(witness)).unwrap_or_default().lines().count()
    }

    fn run(&self, ask: &Value) -> Value {
        self.server.order(&json!({ "run": ask })).expect("the spawner answers")
    }

    /// That the order is refused, for a reason that says `why`, and that this stands in the spawner's log; and that nothing of it has run.
    fn assert_refused(&self, order: &Value, why: &str) {
        let before = self.server.audit().len();
        let reply = self.server.order(order).expect("the spawner answers");
        let message = reply["refused"]["message"].as_str().unwrap_or_else(|| panic!("{order} came to {reply}"));
        assert!(message.contains(why), "{message:?} does not say {why:?}");
        let audit = self.server.audit();
        let last = audit.last().filter(|_| audit.len() > before).unwrap_or_else(|| panic!("{order} stands nowhere"));
        assert!(["refuse", "deny"].contains(&last["decision"].as_str().unwrap()), "{last}");
    }
}

fn job(envelope: Envelope) -> Envelope {
    Envelope { method: format!("async.{}", envelope.method), ..envelope }
}

fn changed(text: &str, from: &str, to: &str) -> String {
    let changed = text.replace(from, to);
    assert_ne!(text, changed);
    changed
}

#[test]
fn a_signed_call_runs_and_nothing_can_be_changed_in_it() {
    let scene = Scene::set();
    let good = scene.call("witness");
    let text = serde_json::to_string(&good).unwrap();
    let signature = signature_of(&scene.admin, &text);
    let other_line = scene.path("other").display().to_string();
    for (what, forged) in [
        ("another method", changed(&text, "command.run", "test.echo")),
        ("a job", changed(&text, "command.run", "async.command.run")),
        ("another argument", changed(&text, &scene.path("witness").display().to_string(), &other_line)),
        ("one more argument", changed(&text, "\"line\":", "\"env\":{\"A\":\"B\"},\"line\":")),
        ("another host besides", changed(&text, "\"web1\"", "\"web1\",\"web2\"")),
        ("a space", text.clone() + " "),
        ("a limit", changed(&text, "{\"call_id\"", "{\"limit_ms\":1,\"call_id\"")),
    ] {
        let ask = scene.server.ask_with(&scene.admin, &forged, &signature);
        let why = "not signed";
        for order in [json!({ "run": ask }), json!({ "start": { "ask": ask, "accepted_at": Timestamp::now() } })] {
            scene.assert_refused(&order, why);
        }
        assert_eq!((scene.runs("witness"), scene.runs("other")), (0, 0), "{what}");
    }
    let reply = scene.run(&scene.server.ask_with(&scene.admin, &text, &signature));
    assert_eq!(reply["ended"]["state"], "ok", "{reply}");
    assert_eq!(scene.runs("witness"), 1);
    let last = scene.server.audit().pop().unwrap();
    assert_eq!((last["decision"].as_str(), last["method"].as_str()), (Some("allow"), Some("command.run")), "{last}");
}

#[test]
fn a_call_for_another_host_is_not_run_here() {
    let scene = Scene::set();
    let theirs = Envelope { audience: vec!["web2".parse().unwrap()], ..scene.call("witness") };
    let mut ask = scene.server.ask(&scene.admin, &theirs);
    scene.assert_refused(&json!({ "run": ask }), "not for it");
    ask["minion"] = json!("web2");
    scene.assert_refused(&json!({ "run": ask }), "not the name of this host");
    assert_eq!(scene.runs("witness"), 0);
}

#[test]
fn a_call_whose_time_is_over_or_far_off_is_not_run() {
    let scene = Scene::set();
    for (seconds, why) in [(-1, "too late"), (25 * 3600, "more than a day later")] {
        let start_before = Timestamp::now() + SignedDuration::from_secs(seconds);
        let call = Envelope { start_before, ..scene.call("witness") };
        scene.assert_refused(&json!({ "run": scene.server.ask(&scene.admin, &call) }), why);
        let place = json!({ "ask": scene.server.ask(&scene.admin, &job(call)), "accepted_at": Timestamp::now() });
        scene.assert_refused(&json!({ "start": place }), why);
        scene.assert_refused(&json!({ "enqueue": place }), why);
    }
    assert_eq!(scene.runs("witness"), 0);
}

#[test]
fn a_call_that_is_repeated_runs_once() {
    let scene = Scene::set();
    let ask = scene.server.ask(&scene.admin, &scene.call("witness"));
    assert_eq!(scene.run(&ask)["ended"]["state"], "ok");
    scene.assert_refused(&json!({ "run": ask }), "was run here before");
    // Written anew by its caller, it is still the same call.
    let later = Timestamp::now() + SignedDuration::from_secs(100);
    let again = Envelope { start_before: later, ..serde_json::from_str(ask["call"].as_str().unwrap()).unwrap() };
    scene.assert_refused(&json!({ "run": scene.server.ask(&scene.admin, &again) }), "was run here before");
    // The spawner was killed meanwhile, and started afresh.
    let web1 = scene.fleet.minion("web1");
    let killed = web1.spawner().unwrap();
    kill(Pid::from_raw(killed.pid), Signal::SIGKILL).unwrap();
    let _ = scene.fleet.overlord(["web1", "command.run", "true"]).ok();
    assert_ne!(web1.spawner().unwrap().pid, killed.pid);
    scene.assert_refused(&json!({ "run": ask }), "was run here before");
    assert_eq!(scene.runs("witness"), 1);
}

#[test]
fn many_who_hand_on_one_call_at_once_run_it_once() {
    let scene = Scene::set();
    let ask = scene.server.ask(&scene.admin, &scene.call("witness"));
    let replies: Vec<Value> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..32).map(|_| scope.spawn(|| scene.run(&ask))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(replies.iter().filter(|reply| reply["ended"]["state"] == "ok").count(), 1, "{replies:?}");
    assert_eq!(scene.runs("witness"), 1);
}

#[test]
fn a_job_that_is_repeated_starts_once() {
    let scene = Scene::set();
    let place = json!({ "ask": scene.server.ask(&scene.admin, &job(scene.call("witness"))), "accepted_at": Timestamp::now() });
    let reply = scene.server.order(&json!({ "start": place })).unwrap();
    assert!(reply["started"].is_string(), "{reply}");
    for order in ["start", "enqueue", "start"] {
        assert_eq!(scene.server.order(&json!({ order: place })), Some(json!("exists")));
    }
    wait_until("the job runs", PATIENCE, || scene.runs("witness") == 1);
    let spool = scene.fleet.minion("web1").spools().pop().unwrap();
    wait_until("the job ends", PATIENCE, || scene.fleet.minion("web1").spool(&spool).join("outcome.json").exists());
    // Removed before its time it could be started again.
    assert_eq!(scene.server.order(&json!({ "remove": [spool] })), Some(json!({ "removed": [] })));
    assert_eq!(scene.server.order(&json!({ "start": place })), Some(json!("exists")));
    assert_eq!(scene.runs("witness"), 1);
}

#[test]
fn nobody_is_believed_but_a_caller_of_ours_who_has_a_rule() {
    let scene = Scene::set();
    let fleet = &scene.fleet;
    fleet.minion("web1").set_acl("[[allow]]\ncaller = \"admin\"\nmethods = [\"*\"]\n");
    let bob = fleet.issue("fleet:overlord/bob");
    let as_bob = Envelope { caller: "bob".parse().unwrap(), ..scene.call("witness") };
    scene.assert_refused(&json!({ "run": scene.server.ask(&bob, &as_bob) }), "no rule lets bob call command.run");
    // Bob signs what he says is admin's; and brings admin's certificate for it.
    scene.assert_refused(&json!({ "run": scene.server.ask(&bob, &scene.call("witness")) }), "the envelope is admin's");
    let text = serde_json::to_string(&scene.call("witness")).unwrap();
    let ask = scene.server.ask_with(&scene.admin, &text, &signature_of(&bob, &text));
    scene.assert_refused(&json!({ "run": ask }), "not signed");
    // The server's own certificate is no caller's.
    let own = fleet.minion("web1").certs_dir();
    scene.assert_refused(&json!({ "run": scene.server.ask(&own, &scene.call("witness")) }), "not believed");
    // Another authority's caller of the same name.
    let other = tempfile::tempdir().unwrap();
    let authority = certs::authority::Authority::init(&other.path().join("ca"), std::time::Duration::from_secs(3600)).unwrap();
    let validity = std::time::Duration::from_secs(600);
    let issued = authority.issue(&["fleet:overlord/admin".parse().unwrap()], validity).unwrap();
    certs::authority::write_folder(other.path(), authority.ca_pem(), None, &issued[0]).unwrap();
    scene.assert_refused(&json!({ "run": scene.server.ask(&other.path().join("admin"), &scene.call("witness")) }), "not believed");
    assert_eq!(scene.runs("witness"), 0);
}

#[test]
fn who_was_revoked_is_believed_no_more_whatever_the_server_does_with_the_list() {
    let scene = Scene::set();
    let web1 = scene.fleet.minion("web1");
    let list = web1.certs_dir().join("crl.pem");
    let older = fs::read(&list).ok();
    let eve = scene.fleet.issue("fleet:overlord/eve");
    let call = |witness: &str| Envelope { caller: "eve".parse().unwrap(), ..scene.call(witness) };
    assert_eq!(scene.run(&scene.server.ask(&eve, &call("before")))["ended"]["state"], "ok");
    let _ = scene.fleet.overlord(["certs", "revoke", "eve"]).ok();
    let refused_as = |witness: &str| scene.run(&scene.server.ask(&eve, &call(witness)))["refused"]["message"].as_str().map(str::to_owned);
    wait_until("the revocation is known", PATIENCE, || refused_as("meanwhile").is_some_and(|why| why.contains("revoked")));
    let refused = || refused_as("after");
    // The list is the server's file: it puts the old one back, or none, and has the spawner start afresh.
    let put_back = |list: &Path| match &older {
        Some(older) => fs::write(list, older).unwrap(),
        None => fs::remove_file(list).unwrap(),
    };
    put_back(&list);
    assert!(refused().unwrap().contains("revoked"));
    let killed = web1.spawner().unwrap();
    kill(Pid::from_raw(killed.pid), Signal::SIGKILL).unwrap();
    let _ = scene.fleet.overlord(["web1", "command.run", "true"]).ok();
    assert_ne!(web1.spawner().unwrap().pid, killed.pid);
    assert!(refused().unwrap().contains("revoked"));
    assert_eq!(scene.runs("after"), 0);
}

#[test]
fn what_a_job_has_written_and_whether_it_goes_on_is_its_callers_business() {
    let scene = Scene::set();
    let fleet = &scene.fleet;
    fleet.minion("web1").set_acl("[[allow]]\ncaller = [\"admin\", \"bob\"]\nmethods = [\"command.run\"]\n");
    let bob = fleet.issue("fleet:overlord/bob");
    let line = json!({ "line": "echo secret; sleep 60" });
    let started = job(envelope("admin", "web1", "command.run", line));
    let place = json!({ "ask": scene.server.ask(&scene.admin, &started), "accepted_at": Timestamp::now() });
    assert!(scene.server.order(&json!({ "start": place })).unwrap()["started"].is_string());
    let id = fleet.minion("web1").spools().pop().unwrap();
    let of_job = |caller: &str, method: &str| envelope(caller, "web1", method, json!({ "id": id }));
    let logs = |folder: &Path, caller: &str| {
        let ask = scene.server.ask(folder, &of_job(caller, "jobs.logs"));
        json!({ "look": { "logs": { "ask": ask, "max_bytes": 4096, "is_final": false, "has_run": false } } })
    };
    let shown = || scene.server.order(&logs(&scene.admin, "admin")).unwrap()["logs"][1][0]["data"].clone();
    wait_until("the output is there", PATIENCE, || shown() == "secret\n");
    let reply = scene.server.order(&logs(&bob, "bob")).unwrap();
    assert!(reply["refused"]["message"].as_str().unwrap().contains("knows no job"), "{reply}");
    for (method, folder, caller) in [("jobs.cancel", &bob, "bob"), ("jobs.delete", &bob, "bob")] {
        let reply = scene.server.order(&json!({ "tell": scene.server.ask(folder, &of_job(caller, method)) })).unwrap();
        assert!(reply["refused"]["message"].as_str().unwrap().contains("knows no job"), "{method}: {reply}");
    }
    // A call of one thing is no order for another.
    scene.assert_refused(&json!({ "tell": scene.server.ask(&scene.admin, &scene.call("witness")) }), "handed on as something else");
    scene.assert_refused(&json!({ "run": scene.server.ask(&scene.admin, &of_job("admin", "jobs.cancel")) }), "handed on as something else");
    assert_eq!(scene.runs("witness"), 0);
    assert!(fleet.minion("web1").job_daemon(&id).is_some());
    assert_eq!(
        scene.server.order(&json!({ "tell": scene.server.ask(&scene.admin, &of_job("admin", "jobs.cancel")) })),
        Some(json!("done"))
    );
    wait_until("the job is cancelled", PATIENCE, || fleet.minion("web1").job_daemon(&id).is_none());
}

#[test]
fn nothing_that_it_says_stops_the_spawner() {
    let scene = Scene::set();
    let pid = scene.fleet.minion("web1").spawner().unwrap().pid;
    let deep = format!("{{\"run\":{}", "[".repeat(1 << 20));
    let long = vec![b'x'; 80 << 20];
    for bytes in
        [&b"\n"[..], b"{}\n", b"null\n", b"{\"run\":null}\n", b"\xff\xfe\n", b"{\"remove\":[\"../../etc\"]}\n", deep.as_bytes(), &long]
    {
        assert_eq!(scene.server.say(bytes), None);
    }
    for order in [json!(null), json!({ "run": null }), json!({ "remove": ["../../etc"] })] {
        let told = scene.server.order(&order).unwrap();
        assert!(told["refused"]["message"].as_str().is_some_and(|message| message.contains("nothing was done")), "{told}");
    }
    let huge = Envelope { args: Arguments::Words(vec!["x".repeat(1 << 20)]), ..scene.call("witness") };
    let mut ask = scene.server.ask(&scene.admin, &huge);
    ask["proof"]["signed"]["certificate"] = json!("A".repeat(1 << 20));
    scene.assert_refused(&json!({ "run": ask }), "what should be the caller's certificate is none");
    assert_eq!(scene.fleet.minion("web1").spawner().unwrap().pid, pid);
    let _ = scene.fleet.overlord(["web1", "command.run", "true"]).ok();
}
