//! What a running minion goes by: certificates and revocation lists that change under it.

use std::fs;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use certs::authority::Authority;
use certs::authority::desk::{Desk, Terms};
use fleet::raw::{Client, Connection, ReadOnly, envelope, read_response};
use fleet::{Fleet, PATIENCE, wait_until};
use serde_json::{Value, json};

/// How long it may take until a connection is cut: a quarter of a second for a look at all connections, a fifth for one at the files, and
/// the rest for a machine that has other things to do.
const CUT_WITHIN: Duration = Duration::from_secs(5);
const HOUR: Duration = Duration::from_secs(3600);

fn desk(certs: &Path, crl_valid: Duration) -> Desk {
    Desk::open(certs, Terms { valid: HOUR, crl_valid, requests_max: 10 }).unwrap()
}

/// Revokes what `subject` names, and gives the list of it.
fn revoke(fleet: &Fleet, subject: &str, crl_valid: Duration) -> PathBuf {
    let certs = fleet.home().join("certs");
    assert_eq!(desk(&certs, crl_valid).revoke(&[subject.to_owned()], None).unwrap().len(), 1);
    certs.join("crl.pem")
}

/// Puts a file into the minion's folder as a whole.
fn put(fleet: &Fleet, from: &Path, name: &str) {
    let certs = fleet.minion("web1").certs_dir();
    fs::copy(from, certs.join("put")).unwrap();
    fs::rename(certs.join("put"), certs.join(name)).unwrap();
}

fn send(client: &Client, connection: &mut Connection, caller: &str, method: &str, args: Value) {
    let body = client.signed(json!(1), &envelope(caller, "web1", method, args)).to_string();
    let head = format!("POST / HTTP/1.1\r\nhost: web1\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n", body.len());
    connection.write_all((head + &body).as_bytes()).unwrap();
    connection.flush().unwrap();
}

fn ping(client: &Client, connection: &mut Connection, caller: &str) -> Value {
    send(client, connection, caller, "test.ping", json!([]));
    serde_json::from_slice(&read_response(connection).unwrap().body).unwrap()
}

fn revocations(fleet: &Fleet, caller: &str, folder: &Path, args: Value) -> Value {
    let call = envelope(caller, "web1", "certs.revocations", args);
    fleet.raw("web1", Some(folder)).call(&call).unwrap()
}

#[test]
fn a_revoked_caller_is_out_at_once_with_no_restart_and_others_stay() {
    let fleet = Fleet::start(1);
    let (web1, ops) = (fleet.minion("web1"), fleet.issue("fleet:overlord/ops"));
    let (as_ops, as_admin) = (fleet.raw("web1", Some(&ops)), fleet.raw_overlord("web1"));
    let (mut of_ops, mut idle_of_ops) = [(); 2].map(|()| as_ops.connect().unwrap()).into();
    let mut of_admin = as_admin.connect().unwrap();
    assert_eq!(ping(&as_ops, &mut idle_of_ops, "ops")["result"]["state"], "ok");
    assert_eq!(ping(&as_admin, &mut of_admin, "admin")["result"]["state"], "ok");
    send(&as_ops, &mut of_ops, "ops", "test.sleep", json!([600]));
    wait_until("its call to run", PATIENCE, || web1.audit().iter().any(|line| line["method"] == "test.sleep"));
    let pid = web1.pid();

    put(&fleet, &revoke(&fleet, "overlord/ops", HOUR), "crl.pem");
    let put_at = Instant::now();
    for connection in [&mut of_ops, &mut idle_of_ops] {
        let read = ReadOnly(connection).read(&mut [0; 1]);
        assert!(read.as_ref().is_err() || read.as_ref().is_ok_and(|length| *length == 0), "it was answered: {read:?}");
    }
    assert!(put_at.elapsed() < CUT_WITHIN, "{:?}", put_at.elapsed());
    assert!(web1.stderr().contains("connection cut"), "{}", web1.stderr());
    let again = as_ops.call(&envelope("ops", "web1", "test.ping", json!([])));
    assert!(again.is_err(), "the old key still lets it in: {again:?}");
    assert_eq!(ping(&as_admin, &mut of_admin, "admin")["result"]["state"], "ok", "another caller's connection is not touched");
    assert_eq!((web1.pid(), web1.audit().iter().filter(|line| line["caller"] == "ops").count()), (pid, 2));
}

/// Lets the calling end, also when the test fails.
struct Over<'o>(&'o AtomicBool);
impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_certificate_put_there_by_hand_is_shown_from_the_next_handshake_on_and_no_call_fails() {
    let fleet = Fleet::start(1);
    let web1 = fleet.minion("web1");
    let client = fleet.raw_overlord("web1");
    let shown = || client.connect().unwrap().conn.peer_certificates().unwrap()[0].clone();
    let (before, is_over) = (shown(), AtomicBool::new(false));
    let calls = std::thread::scope(|scope| {
        let over = Over(&is_over);
        let calling = scope.spawn(|| {
            let ping = || client.call(&envelope("admin", "web1", "test.ping", json!([]))).unwrap();
            let mut calls = 0;
            while !is_over.load(Ordering::Relaxed) || calls == 0 {
                assert_eq!(ping()["result"]["state"], "ok");
                calls += 1;
            }
            calls
        });
        fs::write(web1.certs_dir().join("cert.pem"), "half a certif").unwrap();
        wait_until("what cannot be used to be told", PATIENCE, || web1.stderr().contains("cert.pem holds no certificate"));
        assert_eq!(shown(), before);
        let fresh = fleet.issue("fleet:minion/web1");
        put(&fleet, &fresh.join("cert.pem"), "cert.pem");
        wait_until("the key to be missed", PATIENCE, || web1.stderr().contains("does not belong to the certificate"));
        assert_eq!(shown(), before);
        put(&fleet, &fresh.join("key.pem"), "key.pem");
        wait_until("the new one to be shown", PATIENCE, || shown() != before);
        drop(over);
        calling.join().unwrap()
    });
    assert!(calls > 0 && fleet.overlord(["web1", "test.ping"]).code() == 0);
}

#[test]
fn a_list_is_taken_from_any_overlord_if_the_authority_signed_it_and_it_is_newer() {
    let fleet = Fleet::builder().hosts(1).acl("").start();
    let ops = fleet.issue("fleet:overlord/ops");
    let ask = |args| revocations(&fleet, "ops", &ops, args);
    let from_the_folder = ask(json!({}))["result"]["result"].clone();
    assert!(from_the_folder["number"].as_u64() > Some(0) && from_the_folder["crl"].is_string(), "{from_the_folder}");
    let _ = fleet.issue("fleet:minion/old1");
    let signed = |subject| {
        let text = fs::read_to_string(revoke(&fleet, subject, HOUR)).unwrap();
        (desk(&fleet.home().join("certs"), HOUR).signed_list().unwrap().unwrap().number(), text)
    };
    let (one, first) = signed("minion/old1");
    assert_eq!(ask(json!({ "have": one, "crl": first }))["result"]["result"], json!({ "number": one }));
    let (two, second) = signed("minion/web1");
    assert_eq!(ask(json!({ "have": two, "crl": second }))["result"]["result"], json!({ "number": two }));
    let older = ask(json!({ "have": one, "crl": first }));
    assert_eq!(
        older["result"]["result"],
        json!({ "number": two, "crl": second.trim() }),
        "the older list is not taken, and the newer told"
    );

    let foreign = fleet.root().join("foreign");
    Authority::init(&foreign, 24 * HOUR).unwrap().issue(&["fleet:overlord/ops".parse().unwrap()], HOUR).unwrap();
    desk(&foreign, HOUR).revoke(&["overlord/ops".to_owned()], None).unwrap();
    let forged = ask(json!({ "have": two, "crl": fs::read_to_string(foreign.join("crl.pem")).unwrap() }));
    assert_eq!(forged["error"]["code"], -32602, "{forged}");
    let said = forged["error"]["message"].as_str().unwrap();
    assert!(said.contains("not signed by our authority") && said.contains(&format!("number {two}")), "{said}");
    assert_eq!(fs::read_to_string(fleet.minion("web1").certs_dir().join("crl.pem")).unwrap().trim(), second.trim());

    let as_ops = fleet.raw("web1", Some(&ops));
    let call = as_ops.signed(json!(1), &envelope("ops", "web1", "test.ping", json!([])));
    let denied = as_ops.post(call.to_string().as_bytes()).unwrap();
    assert!(denied.head.contains(&format!("fleet-revocations: {two}")), "every answer names the list, a refusal too: {}", denied.head);
    let job = as_ops.call(&envelope("ops", "web1", "async.certs.revocations", json!([])));
    assert!(job.unwrap()["error"]["message"].as_str().unwrap().contains("cannot be a job"));
    let lines = fleet.minion("web1").audit();
    let told = lines.iter().filter(|line| line["method"] == "certs.revocations" && line["rule"] == "signed by the authority");
    assert_eq!(told.count(), 5, "{lines:#?}");
}

#[test]
fn a_stale_list_is_an_alarm_and_service_goes_on_unless_it_is_to_be_refused() {
    for (stale_crl, is_served) in [("serve", true), ("refuse", false)] {
        let toml = format!("[trust]\nstale_crl = \"{stale_crl}\"\n");
        let fleet = Fleet::builder().hosts(1).minion_toml(&toml).stopped().start();
        let web1 = fleet.minion("web1");
        let _ = fleet.issue("fleet:minion/old1");
        put(&fleet, &revoke(&fleet, "minion/old1", Duration::from_secs(3)), "crl.pem");
        web1.start();
        let admin = fleet.raw_overlord("web1");
        let mut open = admin.connect().unwrap();
        wait_until("the list to be stale, and told", PATIENCE, || web1.stderr().contains("is stale since"));
        // Of the wire itself: a real overlord would bring a newer list.
        let call = admin.call(&envelope("admin", "web1", "test.ping", json!([])));
        let check = fleet.check("web1");
        assert!(format!("{}{}", check.out(), check.err()).contains("crl.pem is stale since"), "{}", check.out());
        assert_eq!((call.is_ok(), check.code() == 0), (is_served, is_served), "{call:?}{}", check.out());
        if is_served {
            assert_eq!(ping(&admin, &mut open, "admin")["result"]["state"], "ok");
        } else {
            let read = ReadOnly(&mut open).read(&mut [0; 1]);
            assert!(read.as_ref().is_err() || read.as_ref().is_ok_and(|length| *length == 0), "it is open: {read:?}");
        }
    }
}
