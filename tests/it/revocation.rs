//! Revoked is out at once: hosts and callers, everywhere, without a restart and without harm to anybody else.

use std::fs;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use fleet::raw::{Client, Connection, ReadOnly, envelope, read_response};
use fleet::{Fleet, PATIENCE, wait_until};
use serde_json::{Value, json};

/// How soon a revoked certificate is out.
const OUT_WITHIN: Duration = Duration::from_secs(1);

fn ping(fleet: &Fleet, home: &Path) -> Value {
    fleet.overlord_at(home, ["*", "test.ping", "--output", "json"]).wait().json()["hosts"].clone()
}

/// A client that shows the certificate of the overlord in `home`.
fn client(fleet: &Fleet, minion: &str, home: &Path) -> Client {
    let certs = home.join("certs");
    Client::showing(fleet.minion(minion).address(), minion, &certs.join("overlord.pem"), &certs.join("overlord.key"))
}

/// A kept connection, on which a first call has succeeded.
fn kept(fleet: &Fleet, minion: &str, home: &Path, caller: &str) -> Connection {
    let client = client(fleet, minion, home);
    let mut connection = client.connect().unwrap();
    send(&mut connection, &client.signed(json!(1), &envelope(caller, minion, "test.ping", json!([]))));
    assert_eq!(read_response(&mut connection).unwrap().status, 200);
    connection
}

fn send(connection: &mut Connection, body: &Value) {
    let body = body.to_string();
    let head = format!("POST / HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n", body.len());
    connection.write_all(format!("{head}{body}").as_bytes()).unwrap();
    connection.flush().unwrap();
}

/// How long it takes until nothing can be read any more.
fn cut_after(connection: &mut Connection, since: Instant) -> Duration {
    let mut bytes = [0; 4096];
    let mut reader = ReadOnly(connection);
    while reader.read(&mut bytes).is_ok_and(|count| count > 0) {}
    since.elapsed()
}

fn revoke(fleet: &Fleet, subject: &str) -> Instant {
    let run = fleet.overlord(["certs", "revoke", subject]);
    assert!([0, 4].contains(&run.code()), "{}{}", run.out(), run.err());
    Instant::now()
}

#[test]
fn a_revoked_caller_is_out_within_a_second_and_its_connections_are_cut() {
    let fleet = Fleet::start(2);
    let ops = fleet.another_overlord("ops");
    let pids: Vec<_> = fleet.minions().iter().map(fleet::Minion::pid).collect();
    assert_eq!(ping(&fleet, &ops)["web1"]["state"], "ok");
    let mut idle = kept(&fleet, "web1", &ops, "ops");
    let mut busy = kept(&fleet, "web2", &ops, "ops");
    let mut other = kept(&fleet, "web1", &fleet.home(), "admin");
    let sleep = envelope("ops", "web2", "command.run", json!(["sleep 600"]));
    send(&mut busy, &client(&fleet, "web2", &ops).signed(json!(2), &sleep));
    wait_until("its call to run", PATIENCE, || !fleet.running("sleep 600").is_empty());
    let since = revoke(&fleet, "ops");
    for connection in [&mut idle, &mut busy] {
        let took = cut_after(connection, since);
        assert!(took < OUT_WITHIN, "cut after {took:?}");
    }
    wait_until("what it ran to be stopped", PATIENCE, || fleet.running("sleep 600").is_empty());
    let refused = ping(&fleet, &ops);
    for host in ["web1", "web2"] {
        let said = &refused[host];
        assert_eq!(said["state"], "undelivered", "{said}");
        assert!(said["error"]["message"].as_str().unwrap().contains("revoked"), "{said}");
    }
    let ping = envelope("admin", "web1", "test.ping", json!([]));
    send(&mut other, &fleet.raw_overlord("web1").signed(json!(2), &ping));
    assert_eq!(read_response(&mut other).unwrap().status, 200, "who is not revoked stays connected");
    assert_eq!(fleet.minions().iter().map(fleet::Minion::pid).collect::<Vec<_>>(), pids, "none was restarted");
    fleet.assert_no_leaks();
}

#[test]
fn a_revoked_host_is_out_and_the_others_results_of_the_same_job_are_unharmed() {
    let fleet = Fleet::start(3);
    let gate = fleet.root().join("gate");
    let id = fleet.start_job(["*", "command.run", &format!("while [ ! -e {} ]; do sleep 0.02; done; echo $MINION_NAME", gate.display())]);
    let _ = fleet.wait_for_state(&id, "PARTIAL");
    let mut waiting = fleet.overlord_spawn(["job-status", &id, "--wait", "--timeout", "30s", "--output", "json"]);
    let since = revoke(&fleet, "web2");
    let told = ping(&fleet, &fleet.home());
    assert!(since.elapsed() < OUT_WITHIN, "asked after {:?}", since.elapsed());
    assert_eq!(told["web2"]["state"], "undelivered", "{told}");
    assert!(told["web2"]["error"]["message"].as_str().unwrap().contains("revoked"), "{told}");
    assert!(waiting.is_running());
    fs::write(&gate, "").unwrap();
    let done = |status: &Value, host: &str| status["hosts"][host]["result"]["stdout"] == json!(format!("{host}\n"));
    wait_until("the others' results", PATIENCE, || {
        let status = fleet.job_status(&id);
        done(&status, "web1") && done(&status, "web3")
    });
    let status = fleet.job_status(&id);
    assert_eq!((&status["state"], &status["hosts"]["web2"]["state"]), (&json!("PARTIAL"), &json!("running")), "{status}");
    assert!(status["hosts"]["web2"]["unreachable"].to_string().contains("revoked"), "{status}");
    drop(waiting);
    fleet.assert_no_leaks();
}

#[test]
fn a_host_that_was_away_learns_of_it_from_the_next_overlord_that_calls() {
    let fleet = Fleet::start(2);
    let (ops, peer) = (fleet.another_overlord("ops"), fleet.another_overlord("peer"));
    fleet.minion("web1").stop();
    let run = fleet.overlord(["certs", "revoke", "ops"]).expect(4);
    assert!(run.err().contains("web1"), "it says who could not be told: {}", run.err());
    fleet.minion("web1").start();
    assert_eq!(ping(&fleet, &ops)["web1"]["state"], "ok", "nobody has told web1 yet");
    // The peer has no list of its own: it takes it from web2, which has it, and gives it to web1.
    let list = peer.join("certs/crl.pem");
    let _ = fs::remove_file(&list);
    wait_until("the peer to have the list", PATIENCE, || {
        assert_eq!(ping(&fleet, &peer)["web1"]["state"], "ok");
        list.exists()
    });
    assert_eq!(ping(&fleet, &peer)["web1"]["state"], "ok");
    wait_until("web1 to refuse", PATIENCE, || ping(&fleet, &ops)["web1"]["state"] == "undelivered");
    fleet.assert_no_leaks();
}

#[test]
fn a_host_that_no_overlord_calls_learns_of_it_from_the_authority() {
    let fleet = Fleet::builder().hosts(1).stopped().minion_toml("[trust]\ncrl_every = \"1s\"\n").start();
    let authority = fleet.serve_certs();
    fs::write(fleet.minion("web1").certs_dir().join("authority"), format!("{}\n", authority.address())).unwrap();
    fleet.minion("web1").start();
    let ops = fleet.another_overlord("ops");
    fs::write(fleet.home().join("hosts.toml"), "").unwrap();
    let mut connection = kept(&fleet, "web1", &ops, "ops");
    let since = revoke(&fleet, "ops");
    let took = cut_after(&mut connection, since);
    assert!(took < 10 * OUT_WITHIN, "cut after {took:?}");
    authority.stop();
    fleet.assert_no_leaks();
}

/// Who refuses everyone while the list is stale does not refuse the authority, from which alone a newer one comes.
#[test]
fn a_host_that_refuses_on_a_stale_list_serves_again_once_it_has_a_newer_one() {
    let (overlord, minion) = ("[certs]\ncrl_valid = \"10s\"\n", "[trust]\nstale_crl = \"refuse\"\ncrl_every = \"1s\"\n");
    let fleet = Fleet::builder().hosts(1).stopped().overlord_toml(overlord).minion_toml(minion).start();
    let authority = fleet.serve_certs();
    let web1 = fleet.minion("web1");
    fs::write(web1.certs_dir().join("authority"), format!("{}\n", authority.address())).unwrap();
    web1.start();
    wait_until("the host to have a list", PATIENCE, || web1.certs_dir().join("crl.pem").exists());
    assert_eq!(ping(&fleet, &fleet.home())["web1"]["state"], "ok");
    authority.kill9();
    // The overlord, where the authority is, would sign and bring a newer one.
    let ops = fleet.another_overlord("ops");
    wait_until("the list to be stale", PATIENCE, || ping(&fleet, &ops)["web1"]["state"] == "undelivered");
    let authority = fleet.serve_certs();
    wait_until("the host to serve again", PATIENCE, || ping(&fleet, &ops)["web1"]["state"] == "ok");
    authority.stop();
    fleet.assert_no_leaks();
}

#[test]
fn a_revoked_host_gets_nothing_from_the_authority() {
    let fleet = Fleet::builder().hosts(1).unenrolled().overlord_toml("[certs]\nvalid = \"10s\"\n").start();
    let authority = fleet.serve_certs();
    let token = || fleet.overlord(["certs", "token"]).ok().out().trim().to_owned();
    let _ = fleet.enroll("web1", authority.address(), ["--token", &token()]).ok();
    let web1 = fleet.minion("web1");
    web1.start();
    let cert = fs::read(web1.certs_dir().join("cert.pem")).unwrap();
    let _ = revoke(&fleet, "web1");
    wait_until("its renewal to be refused", PATIENCE, || web1.stderr().contains("revoked"));
    let again = fleet.enroll("web1", authority.address(), ["--token", &token()]).expect(1);
    assert!(again.err().contains("revoked") && again.err().contains("overlord certs clean web1"), "{}", again.err());
    assert_eq!(fs::read(web1.certs_dir().join("cert.pem")).unwrap(), cert);
}

/// 200 calls at once of callers who may do different things: each gets its own answer, and is nobody else.
#[test]
fn concurrent_calls_of_many_callers_never_cross_identities() {
    const CALLERS: usize = 5;
    const CALLS: usize = 200;
    // The last has no rule.
    let rules: String = (0..CALLERS - 1).map(|caller| format!("[[allow]]\ncaller = \"c{caller}\"\nmethods = [\"test.add\"]\n")).collect();
    let fleet = Fleet::builder().hosts(2).acl(&rules).start();
    let homes: Vec<PathBuf> = (0..CALLERS).map(|caller| fleet.another_overlord(&format!("c{caller}"))).collect();
    let runs: Vec<_> = (0..CALLS)
        .map(|call| {
            let words = ["*", "test.add", &call.to_string(), &(call % CALLERS).to_string(), "--output", "json"].map(str::to_owned);
            fleet.overlord_at(&homes[call % CALLERS], words)
        })
        .collect();
    for (call, run) in runs.into_iter().enumerate() {
        let (told, caller) = (run.wait().json()["hosts"].clone(), call % CALLERS);
        for host in ["web1", "web2"] {
            match caller == CALLERS - 1 {
                true => assert_eq!(told[host]["state"], "denied", "{told}"),
                false => assert_eq!(told[host]["result"], call + caller, "{told}"),
            }
        }
    }
    for minion in fleet.minions() {
        let lines: Vec<_> = minion.audit().into_iter().filter(|line| line["method"] == "test.add").collect();
        assert_eq!(lines.len(), CALLS);
        for caller in 0..CALLERS {
            let name = format!("c{caller}");
            let own: Vec<_> = lines.iter().filter(|line| line["caller"] == name.as_str()).collect();
            let fingerprints: std::collections::BTreeSet<_> = own.iter().map(|line| line["fingerprint"].to_string()).collect();
            let decision = if caller == CALLERS - 1 { "deny" } else { "allow" };
            assert!(own.len() == CALLS / CALLERS && fingerprints.len() == 1, "{name}");
            assert!(own.iter().all(|line| line["decision"] == decision), "{name}");
        }
    }
    fleet.assert_no_leaks();
}

#[test]
fn an_overlord_elsewhere_asks_the_authority_for_the_list_before_it_calls() {
    let fleet = Fleet::start(1);
    let authority = fleet.serve_certs();
    let ops = fleet.another_overlord("ops");
    fs::write(ops.join("overlord.toml"), format!("authority = \"{}\"\n", authority.address())).unwrap();
    assert_eq!(ping(&fleet, &ops)["web1"]["state"], "ok");
    // So that no host brings the list.
    fs::write(fleet.home().join("hosts.toml"), "").unwrap();
    let _ = revoke(&fleet, "web1");
    assert_eq!(ping(&fleet, &ops)["web1"]["state"], "ok", "it has asked a moment ago");
    // The server looks at its files a few times in a second.
    wait_until("the list to be asked for", PATIENCE, || {
        fs::remove_file(ops.join("certs-list")).unwrap();
        ping(&fleet, &ops)["web1"]["error"]["message"].as_str().is_some_and(|said| said.contains("revoked"))
    });
    authority.stop();
    // That nobody answers stops nothing, and is told once.
    for is_told in [true, false] {
        fs::remove_file(ops.join("certs-list")).unwrap();
        let run = fleet.overlord_at(&ops, ["*", "test.ping"]).wait();
        assert_eq!(run.err().contains("no newer revocation list is to be had"), is_told, "{}", run.err());
    }
    fleet.assert_no_leaks();
}

#[test]
fn a_stale_list_of_an_overlord_is_told_and_stops_it_only_if_it_is_to() {
    let fleet = Fleet::builder().hosts(1).overlord_toml("[certs]\ncrl_valid = \"10s\"\n").start();
    let ops = fleet.another_overlord("ops");
    let call = || fleet.overlord_at(&ops, ["*", "test.ping", "--output", "json"]).wait();
    wait_until("the list to be stale", PATIENCE, || call().err().contains("the revocation list is stale since"));
    assert_eq!(call().json()["hosts"]["web1"]["state"], "ok");
    fs::write(ops.join("overlord.toml"), "[trust]\nstale_crl = \"refuse\"\n").unwrap();
    // A handshake goes by whole seconds.
    wait_until("it to be refused", PATIENCE, || {
        let refused = call().json()["hosts"]["web1"].clone();
        refused["state"] == "undelivered" && refused["error"]["message"].as_str().unwrap().contains("stale")
    });
    fleet.assert_no_leaks();
}
