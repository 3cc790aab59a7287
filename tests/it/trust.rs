//! Who may talk to whom: certificates, roles and rules.

use std::fs;
use std::io::Read as _;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use certs::authority::{Authority, Validity};
use fleet::raw::{envelope, request};
use fleet::{Fleet, PATIENCE, issue_into, wait_until};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use tokio_rustls::rustls::{ServerConfig, ServerConnection, StreamOwned, crypto::ring, version};

/// Gives the overlord the certificate in `folder` for its own.
fn become_bearer(fleet: &Fleet, folder: &Path) {
    let certs = fleet.home().join("certs");
    for (from, to) in [("cert.pem", "overlord.pem"), ("key.pem", "overlord.key")] {
        fs::copy(folder.join(from), certs.join(to)).unwrap();
    }
}

fn past() -> Validity {
    let now = Timestamp::now();
    Validity { not_before: now - SignedDuration::from_hours(2), not_after: now - SignedDuration::from_secs(5) }
}

/// Nothing ran, and the overlord says why: gives what it said of web1.
fn refused(fleet: &Fleet) -> String {
    let runs = fleet.root().join("runs");
    let run = fleet.overlord(["web1", "command.run", &format!("echo ran >> {}", runs.display()), "--output", "json"]);
    assert!(!runs.exists(), "it ran: {}", run.out());
    if run.stdout.is_empty() {
        assert_ne!(run.code(), 0);
        return run.err();
    }
    assert_eq!(run.code(), 4, "{} {}", run.out(), run.err());
    let host = run.json()["hosts"]["web1"].clone();
    assert_eq!(host["state"], "undelivered", "{host}");
    host["error"]["message"].as_str().unwrap().to_owned()
}

#[test]
fn a_hosts_certificate_cannot_call() {
    let fleet = Fleet::start(1);
    let job = envelope("web1", "web1", "test.ping", json!([]));
    let folder = fleet.minion("web1").certs_dir();
    let answer = fleet.raw("web1", Some(&folder)).call(&job);
    assert!(answer.is_err(), "{answer:?}");
    wait_until("the handshake to be refused", PATIENCE, || fleet.minion("web1").stderr().contains("has not the overlord role"));
    become_bearer(&fleet, &folder);
    let said = refused(&fleet);
    assert!(said.contains("overlord") && said.contains("role") || said.contains("minion"), "{said}");
}

#[test]
fn an_overlords_certificate_cannot_serve() {
    let fleet = Fleet::start(1);
    let folder = fleet.issue("fleet:overlord/web1");
    fleet.minion("web1").stop();
    fleet.minion("web1").set_certs(&folder);
    let check = fleet.check("web1").expect(1);
    assert!(check.out().contains("overlord"), "the minion says so itself: {}", check.out());
}

#[test]
fn another_host_at_the_address_is_refused_before_anything_is_sent() {
    let fleet = Fleet::start(2);
    fleet.set_address("web1", &fleet.minion("web2").address().to_string());
    let said = refused(&fleet);
    assert!(said.contains("web2"), "{said}");
    assert_eq!(fleet.minion("web2").audit().len(), 0, "nothing came to its door");
}

#[test]
fn no_certificate_another_authority_and_an_expired_one_are_told_apart() {
    let fleet = Fleet::start(1);
    let ping = envelope("admin", "web1", "test.ping", json!([]));
    let unsigned = request(json!(1), "test.ping", &serde_json::to_string(&ping).unwrap(), "");
    assert!(fleet.raw("web1", None).post_json(&unsigned).is_err(), "no certificate");
    wait_until("the handshake to be refused", PATIENCE, || fleet.minion("web1").stderr().contains("it shows no certificate"));

    become_bearer(&fleet, &fleet.issue_within("fleet:overlord/admin", past()));
    let said = refused(&fleet);
    assert!(said.contains("expired"), "{said}");

    let foreign = fleet.root().join("foreign");
    let authority = Authority::init(&foreign, std::time::Duration::from_secs(7200)).unwrap();
    let now = Timestamp::now();
    let validity = Validity { not_before: now - SignedDuration::from_mins(5), not_after: now + SignedDuration::from_hours(1) };
    let stranger = issue_into(&fleet.root().join("issued"), &authority, "fleet:overlord/admin", validity);
    assert!(fleet.raw("web1", Some(&stranger)).call(&ping).is_err(), "another authority");
    become_bearer(&fleet, &stranger);
    let ours = fleet.home().join("certs/ca.pem");
    fs::copy(&ours, fleet.root().join("our-ca.pem")).unwrap();
    let said = refused(&fleet);
    assert!(said.contains("authority"), "{said}");

    fs::remove_file(fleet.home().join("certs/overlord.pem")).unwrap();
    let said = refused(&fleet);
    assert!(said.contains("certs init"), "{said}");
}

#[test]
fn a_hosts_expired_certificate_is_named_by_the_overlord() {
    let fleet = Fleet::builder().hosts(1).stopped().start();
    let web1 = fleet.minion("web1");
    let now = Timestamp::now();
    let short = Validity { not_before: now - SignedDuration::from_hours(1), not_after: now + SignedDuration::from_secs(3) };
    web1.set_certs(&fleet.issue_within("fleet:minion/web1", short));
    web1.start();
    wait_until("its certificate to expire", PATIENCE, || Timestamp::now() > short.not_after + SignedDuration::from_secs(1));
    let said = refused(&fleet);
    assert!(said.contains("expired"), "{said}");
}

#[test]
fn what_no_rule_allows_is_denied_and_rules_are_read_again() {
    let fleet = Fleet::builder().hosts(1).acl("[[allow]]\ncaller = \"ops-*\"\nmethods = [\"*\"]\n").start();
    let runs = fleet.root().join("runs");
    let attempt = || fleet.overlord(["*", "command.run", &format!("echo ran >> {}", runs.display()), "--output", "json"]);
    let denied = attempt().expect(2).json();
    assert_eq!(denied["hosts"]["web1"]["state"], "denied", "{denied}");
    let id = fleet.start_job(["*", "command.run", "true"]);
    let job = fleet.overlord(["job-status", &id, "--wait", "--output", "json"]).expect(2).json();
    assert_eq!(job["hosts"]["web1"]["state"], "denied", "{job}");
    assert!(!runs.exists());

    fleet.minion("web1").set_acl("[[allow]]\ncaller = \"admin\"\nmethods = [\"command.*\"]\n");
    let _ = attempt().ok();
    fleet.minion("web1").set_acl("[[allow]]\ncaller = \"admin\"\nmethod = [\"command.*\"]\n");
    let _ = attempt().expect(2);
    wait_until("the malformed file to be named", PATIENCE, || fleet.minion("web1").stderr().contains("rules.toml:3"));
    fs::write(fleet.minion("web1").acl_dir().join("more.toml"), "[[allow]]\ncaller = \"admin\"\nmethods = [\"command.run\"]\n").unwrap();
    let _ = attempt().ok();
    let check = fleet.check("web1").expect(1);
    assert!(check.out().contains("rules.toml:3"), "{}", check.out());
}

#[test]
fn every_decision_is_in_the_audit_log_denials_too() {
    let fleet = Fleet::builder().hosts(1).acl("[[allow]]\ncaller = \"admin\"\nmethods = [\"test.*\"]\n").start();
    let _ = fleet.overlord(["*", "test.ping"]).ok();
    let _ = fleet.overlord(["*", "command.run", "secret words"]).expect(2);
    let lines = fleet.minion("web1").audit();
    let told: Vec<_> = lines.iter().map(|line| (line["method"].as_str().unwrap(), line["decision"].as_str().unwrap())).collect();
    assert_eq!(told, [("test.ping", "allow"), ("command.run", "deny")], "{lines:?}");
    for line in &lines {
        assert_eq!(line["caller"], "admin");
        assert_eq!(line["fingerprint"].as_str().unwrap().len(), 64, "{line}");
        assert_eq!(line["args_sha256"].as_str().unwrap().len(), 64, "{line}");
        assert!(line["at"].as_str().unwrap().parse::<Timestamp>().is_ok());
    }
    assert!(!lines[1].to_string().contains("secret"), "arguments stand there as a digest alone");
}

#[test]
fn a_caller_reads_and_cancels_its_own_jobs_and_no_one_elses() {
    let fleet = Fleet::builder().hosts(1).acl("[[allow]]\ncaller = \"*\"\nmethods = [\"test.*\"]\n").start();
    let ops = fleet.issue("fleet:overlord/ops");
    let as_ops = |method: &str, args: Value| fleet.raw("web1", Some(&ops)).call(&envelope("ops", "web1", method, args)).unwrap();
    let id = fleet.start_job(["*", "test.sleep", "600"]);
    let minion_job_id = fleet.wait_for_state(&id, "PARTIAL")["hosts"]["web1"]["minion_job_id"].clone();
    for method in ["jobs.status", "jobs.cancel"] {
        assert_eq!(as_ops(method, json!([minion_job_id]))["error"]["code"], -32006, "{method}");
    }
    assert_eq!(as_ops("jobs.list", json!([]))["result"]["result"], json!({ "jobs": [], "more": 0 }));
    fleet.minion("web1").set_acl("[[allow]]\ncaller = \"ops\"\nmethods = [\"jobs.*\"]\n");
    assert_eq!(as_ops("jobs.status", json!([minion_job_id]))["result"]["result"]["state"], "running");
    let cancelled = as_ops("jobs.cancel", json!([minion_job_id]));
    assert_eq!(cancelled["result"]["result"]["error"]["data"]["by"], "ops", "{cancelled}");
}

#[test]
fn nobody_calls_in_anothers_name_or_for_another_host() {
    let fleet = Fleet::start(1);
    let post = |envelope| fleet.raw_overlord("web1").call(&envelope).unwrap();
    let forged = post(envelope("ops", "web1", "test.ping", json!([])));
    assert_eq!(forged["error"]["code"], -32001, "{forged}");
    let astray = post(envelope("admin", "web2", "test.ping", json!([])));
    assert_eq!(astray["error"]["code"], -32002, "{astray}");
    let admin = fleet.raw_overlord("web1");
    let mut body = admin.signed(json!(1), &envelope("admin", "web1", "test.ping", json!([])));
    body["method"] = json!("command.run");
    let mixed = admin.post_json(&body).unwrap();
    assert!(mixed.get("error").is_some(), "{mixed}");
}

/// A server that shows the certificate in `folder` and lets anyone in; and how many bytes the first who comes tells it.
fn impostor(folder: &Path) -> (SocketAddr, JoinHandle<usize>) {
    let chain = CertificateDer::pem_file_iter(folder.join("cert.pem")).unwrap().collect::<Result<Vec<_>, _>>().unwrap();
    let key = PrivateKeyDer::from_pem_file(folder.join("key.pem")).unwrap();
    let tls = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let heard = std::thread::spawn(move || {
        let (socket, _) = listener.accept().unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut stream = StreamOwned::new(ServerConnection::new(Arc::new(tls)).unwrap(), socket);
        stream.read(&mut [0; 4096]).unwrap_or(0)
    });
    (address, heard)
}

#[test]
fn a_server_that_is_no_minion_or_not_ours_is_told_nothing() {
    let fleet = Fleet::builder().hosts(1).stopped().start();
    let now = Timestamp::now();
    let validity = Validity { not_before: now - SignedDuration::from_mins(5), not_after: now + SignedDuration::from_hours(1) };
    let foreign = Authority::init(&fleet.root().join("foreign"), std::time::Duration::from_secs(7200)).unwrap();
    let stranger = issue_into(&fleet.root().join("issued"), &foreign, "fleet:minion/web1", validity);
    for (folder, why) in [(fleet.issue("fleet:overlord/web1"), "minion role"), (stranger, "another authority than ours")] {
        let (address, heard) = impostor(&folder);
        fleet.set_address("web1", &address.to_string());
        let said = refused(&fleet);
        assert!(said.contains("web1") && said.contains(why), "{said}");
        assert_eq!(heard.join().unwrap(), 0, "the call was sent: {why}");
    }
}
