//! Hosts that enrol themselves: `overlord certs serve` and what stands beside it, `minion enroll`, and everyone who should get nothing.

mod kills;

use std::collections::BTreeSet;
use std::fs;
use std::io::Read as _;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use certs::authority::Authority;
use certs::csr::{make_key, write_csr};
use common::protocol::certs::{EnrollParams, EnrollReply};
use fleet::{COMMAND_TIMEOUT, Fleet, PATIENCE, Run, Secrets, ca_fingerprint, wait_until};
use serde_json::Value;
use service::authority::{AuthorityClient, Deadlines};
use tokio_rustls::rustls::{ServerConfig, ServerConnection, StreamOwned, crypto::ring, sign::SingleCertAndKey, version};

/// The end of a run that waits for somebody else.
const WAITS: i32 = 75;

fn unenrolled(names: &[&str]) -> Fleet {
    Fleet::builder().names(names.iter().copied()).unenrolled().start()
}

fn token(fleet: &Fleet, args: &[&str]) -> String {
    fleet.overlord([&["certs", "token"], args].concat()).ok().out().trim().to_owned()
}

fn requests(fleet: &Fleet) -> Vec<Value> {
    fleet.overlord(["certs", "requests", "--output", "json"]).ok().json()["requests"].as_array().unwrap().clone()
}

fn names(entries: &[Value]) -> Vec<&str> {
    entries.iter().map(|entry| entry["name"].as_str().unwrap()).collect()
}

/// What the authority remembers of a name's certificates.
fn issued(fleet: &Fleet, name: &str) -> Vec<Value> {
    let listed = fleet.overlord(["certs", "list", "--output", "json"]).ok().json()["certificates"].clone();
    listed.as_array().unwrap().iter().filter(|entry| entry["name"] == name).cloned().collect()
}

fn audit(fleet: &Fleet) -> String {
    fs::read_to_string(fleet.home().join("certs-audit.log")).unwrap_or_default()
}

fn cert(fleet: &Fleet, minion: &str) -> Option<Vec<u8>> {
    fs::read(fleet.minion(minion).certs_dir().join("cert.pem")).ok()
}

/// It was refused, has nothing, and gets to know why.
fn refused(fleet: &Fleet, minion: &str, run: &Run) -> String {
    assert_eq!(run.code(), 1, "{} {}", run.out(), run.err());
    assert!(cert(fleet, minion).is_none());
    run.err()
}

fn pings(fleet: &Fleet, minion: &str) {
    let run = fleet.overlord([minion, "test.ping"]);
    assert_eq!(run.code(), 0, "{} {}", run.out(), run.err());
}

/// Frees a name. Hosts that do not run cannot be told, which the status says.
fn clean(fleet: &Fleet, name: &str) {
    let run = fleet.overlord(["certs", "clean", name]);
    assert!([0, 4].contains(&run.code()), "{}{}", run.out(), run.err());
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

/// Every file below a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

#[test]
fn a_host_asks_waits_and_is_let_in_by_hand() {
    let fleet = unenrolled(&["web1"]);
    let authority = fleet.serve_certs();
    let first = fleet.enroll("web1", authority.address(), [""; 0]).expect(WAITS);
    assert!(first.err().contains("overlord certs sign web1"), "{}", first.err());
    let waiting = requests(&fleet);
    assert_eq!(names(&waiting), ["web1"]);
    assert!(first.err().contains(waiting[0]["key"].as_str().unwrap()), "the key can be compared: {}", first.err());
    let key = fs::read(fleet.minion("web1").certs_dir().join("key.pem")).unwrap();
    let _ = fleet.overlord(["certs", "sign", "web1"]).ok();
    let _ = fleet.enroll("web1", authority.address(), [""; 0]).ok();
    let had = cert(&fleet, "web1").unwrap();
    let _ = fleet.enroll("web1", authority.address(), [""; 0]).ok();
    assert_eq!(cert(&fleet, "web1").unwrap(), had, "enrolled again, it has what it had");
    assert_eq!(fs::read(fleet.minion("web1").certs_dir().join("key.pem")).unwrap(), key);
    let minion = fleet.minion("web1");
    assert_eq!((mode(&minion.certs_dir().join("key.pem")), mode(&minion.certs_dir())), (0o600, 0o700));
    let secret = String::from_utf8(key).unwrap();
    let secret = secret.lines().nth(1).unwrap();
    for file in files(&fleet.home()) {
        assert!(!String::from_utf8_lossy(&fs::read(&file).unwrap()).contains(secret), "the key has left its host: {}", file.display());
    }
    minion.start();
    pings(&fleet, "web1");
    assert_eq!((issued(&fleet, "web1").len(), requests(&fleet).len()), (1, 0));
    authority.stop();
    fleet.assert_no_leaks();
}

#[test]
fn a_host_that_waits_is_let_in_over_a_restart_of_the_authority() {
    let fleet = unenrolled(&["web1", "web2"]);
    let authority = fleet.serve_certs();
    let address = authority.address();
    let waiting = ["web1", "web2"].map(|name| fleet.enroll_spawn(name, address, ["--wait", "60s"]));
    wait_until("both to have asked", PATIENCE, || requests(&fleet).len() == 2);
    authority.kill9();
    let authority = fleet.serve_certs();
    let _ = fleet.overlord(["certs", "sign", "web1"]).ok();
    let _ = fleet.overlord(["certs", "reject", "web2"]).ok();
    let [web1, web2] = waiting;
    let _ = web1.wait().ok();
    let rejected = refused(&fleet, "web2", &web2.wait());
    assert!(rejected.contains("rejected"), "{rejected}");
    let short = fleet.enroll("web2", authority.address(), ["--wait", "1s"]);
    assert_eq!(short.code(), 1, "it stays rejected: {}", short.err());
    authority.stop();
    fleet.assert_no_leaks();
}

#[test]
fn a_wait_that_ends_leaves_the_request_waiting() {
    let fleet = unenrolled(&["web1"]);
    let authority = fleet.serve_certs();
    let run = fleet.enroll("web1", authority.address(), ["--wait", "1s"]).expect(WAITS);
    assert!(run.err().contains("overlord certs sign web1"), "{}", run.err());
    assert_eq!(requests(&fleet).len(), 1);
}

/// As an impatient administrator does it, or two who do not know of each other: one key, one request, and everyone is told how it stands.
#[test]
fn a_host_that_asks_several_times_at_once_asks_once() {
    const AT_ONCE: usize = 4;
    let fleet = unenrolled(&["web1"]);
    let authority = fleet.serve_certs();
    let all = |code: i32| {
        let asking: Vec<_> = (0..AT_ONCE).map(|_| fleet.enroll_spawn("web1", authority.address(), [""; 0])).collect();
        asking.into_iter().for_each(|asking| drop(asking.wait().expect(code)));
    };
    for _ in 0..5 {
        all(WAITS);
        assert_eq!(requests(&fleet).len(), 1);
        let _ = fleet.overlord(["certs", "sign", "web1"]).ok();
        all(0);
        clean(&fleet, "web1");
        fs::remove_dir_all(fleet.minion("web1").certs_dir()).unwrap();
    }
    authority.stop();
    fleet.assert_no_leaks();
}

#[test]
fn signing_with_one_bad_name_signs_none() {
    let fleet = unenrolled(&["web1", "web2"]);
    let authority = fleet.serve_certs();
    for name in ["web1", "web2"] {
        let _ = fleet.enroll(name, authority.address(), [""; 0]).expect(WAITS);
    }
    let refused = fleet.overlord(["certs", "sign", "web1", "web9", "web2"]);
    assert_ne!(refused.code(), 0);
    assert!(refused.err().contains("web9"), "{}", refused.err());
    assert_eq!((requests(&fleet).len(), issued(&fleet, "web1").len()), (2, 0));
    let _ = fleet.overlord(["certs", "sign", "--all"]).ok();
    for name in ["web1", "web2"] {
        let _ = fleet.enroll(name, authority.address(), [""; 0]).ok();
    }
}

#[test]
fn a_token_lets_one_host_in_once() {
    let fleet = unenrolled(&["web1", "web2", "db1"]);
    let authority = fleet.serve_certs();
    let enroll = |name: &str, token: &str| fleet.enroll(name, authority.address(), ["--token", token]);
    let any = token(&fleet, &[]);
    let _ = enroll("web1", &any).ok();
    let twice = refused(&fleet, "web2", &enroll("web2", &any));
    assert!(twice.contains("used") && twice.contains("web1") && twice.contains("overlord certs token"), "{twice}");
    let for_web = token(&fleet, &["--for", "web*"]);
    let other = refused(&fleet, "db1", &enroll("db1", &for_web));
    assert!(other.contains("web*"), "{other}");
    let guessed = refused(&fleet, "db1", &enroll("db1", "0123456789abcdef"));
    assert!(guessed.contains("token"), "{guessed}");
    let short = token(&fleet, &["--ttl", "1s"]);
    wait_until("the token to expire", PATIENCE, || token_has_expired(&fleet));
    let expired = refused(&fleet, "db1", &enroll("db1", &short));
    assert!(expired.contains("expired"), "{expired}");
    assert!(requests(&fleet).is_empty(), "a request with a bad token does not wait");
    let _ = enroll("web2", &for_web).ok();
    let lines = audit(&fleet);
    assert!(!lines.contains(&any) && !lines.contains(&for_web), "no token is in the log");
    assert!(lines.lines().filter(|line| line.contains("db1") && line.contains("deny")).count() >= 3, "{lines}");
}

/// Whether the time of a token is over.
fn token_has_expired(fleet: &Fleet) -> bool {
    let expiries = files(&fleet.home().join("certs/tokens")).into_iter().map(|file| {
        let kept: Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
        kept["body"]["expires_at"].as_str().unwrap().parse::<jiff::Timestamp>().unwrap()
    });
    expiries.min().is_some_and(|first| first < jiff::Timestamp::now())
}

#[test]
fn nobody_gets_anothers_name_and_a_host_installed_anew_is_told_what_to_do() {
    let fleet = unenrolled(&["web1", "admin", "fleet-authority"]);
    let authority = fleet.serve_certs();
    let enroll = |name: &str| fleet.enroll(name, authority.address(), ["--token", &token(&fleet, &[])]);
    for (name, owner) in [("admin", "overlord"), ("fleet-authority", "authority")] {
        let said = refused(&fleet, name, &enroll(name));
        assert!(said.contains(owner), "{said}");
    }
    let _ = enroll("web1").ok();
    let old = cert(&fleet, "web1").unwrap();
    // Installed anew.
    fs::remove_dir_all(fleet.minion("web1").certs_dir()).unwrap();
    let said = refused(&fleet, "web1", &enroll("web1"));
    assert!(said.contains("another key") && said.contains("overlord certs clean web1"), "{said}");
    let kept = issued(&fleet, "web1");
    assert!(kept.len() == 1 && kept[0]["state"] == "good", "the old certificate is untouched: {kept:?}");
    clean(&fleet, "web1");
    let _ = enroll("web1").ok();
    assert_ne!(cert(&fleet, "web1").unwrap(), old);
    fleet.minion("web1").start();
    pings(&fleet, "web1");
    let lines = audit(&fleet);
    for name in ["admin", "fleet-authority", "web1"] {
        assert!(lines.lines().any(|line| line.contains(&format!("\"{name}\"")) && line.contains("deny")), "{name}: {lines}");
    }
}

/// A server that shows a certificate of another authority, and how many bytes the first who comes tells it after the handshake.
fn impostor(folder: &Path) -> (SocketAddr, JoinHandle<usize>) {
    let authority = Authority::init(folder, Duration::from_secs(7200)).unwrap();
    let identity = authority.server_identity(Duration::from_secs(3600)).unwrap();
    let tls = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(identity)));
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
fn a_server_of_another_authority_is_told_nothing() {
    let fleet = unenrolled(&["web1"]);
    let foreign = fleet.root().join("foreign");
    let (address, heard) = impostor(&foreign);
    let run = fleet.enroll("web1", address, ["--token", "secret-token"]);
    let said = refused(&fleet, "web1", &run);
    assert_eq!(heard.join().unwrap(), 0, "the request was sent");
    let (ours, theirs) = (fleet.ca_fingerprint(), ca_fingerprint(&foreign.join("ca.pem")));
    assert!(said.contains(&ours) && said.contains(&theirs), "both are named: {said}");
    // With the impostor's own pin its certificate is believed, which shows that the pin is what refuses.
    let (address, heard) = impostor(&fleet.root().join("foreign2"));
    let pin = ca_fingerprint(&fleet.root().join("foreign2/ca.pem"));
    let _ = fleet.enroll_pinned("web1", address, &pin, [""; 0]).wait().expect(1);
    assert!(heard.join().unwrap() > 0);
}

#[test]
fn no_key_is_ever_wider_than_0600() {
    let fleet = unenrolled(&["web1"]);
    let secrets = Secrets::watch(fleet.root());
    let authority = fleet.serve_certs();
    let _ = fleet.enroll("web1", authority.address(), ["--token", &token(&fleet, &[])]).ok();
    let _ = fleet.another_overlord("ops");
    let out = fleet.root().join("out");
    let _ = fleet.overlord(["certs", "issue", "web2", "--out", out.to_str().unwrap()]).ok();
    let home = fleet.root().join("second-home");
    let _ = fleet.overlord(["--home", home.to_str().unwrap(), "certs", "init"]).ok();
    let _ = fleet.overlord(["certs", "renew"]).ok();
    let seen = secrets.seen();
    for end in ["web1/certs/key.pem", "web2/key.pem", "second-home/certs/ca.key", "second-home/certs/overlord.key"] {
        assert!(seen.iter().any(|(path, _)| path.ends_with(end)), "{end} was not seen being made: {seen:?}");
    }
    let wide: Vec<_> = seen.iter().filter(|(_, mode)| mode & 0o077 != 0).collect();
    assert!(wide.is_empty(), "{wide:?}");
}

/// Every host of a rack at once: each gets its answer, and each certificate its own number.
#[test]
fn a_thousand_requests_at_once_are_served() {
    const HOSTS: usize = 1000;
    let fleet = Fleet::builder().unenrolled().start();
    let authority = fleet.serve_certs();
    let asked: Vec<EnrollParams> = (0..HOSTS).map(|host| request(&fleet, &format!("host{host}"))).collect();
    let (address, pin) = (authority.address().to_string(), fleet.ca_fingerprint());
    let ask_all = || {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let asks = asked.iter().map(|params| ask(address.clone(), pin.clone(), params.clone()));
        runtime.block_on(async {
            let tasks: Vec<_> = asks.map(tokio::spawn).collect();
            let mut told = Vec::new();
            for task in tasks {
                told.push(task.await.unwrap());
            }
            told
        })
    };
    for told in ask_all() {
        assert!(matches!(told, EnrollReply::Waiting { .. }), "{told:?}");
    }
    assert_eq!(requests(&fleet).len(), HOSTS);
    let _ = fleet.overlord(["certs", "sign", "--all"]).ok();
    let mut certs = BTreeSet::new();
    for told in ask_all() {
        let EnrollReply::Issued(issued) = told else { panic!("{told:?}") };
        certs.insert(issued.cert);
    }
    assert_eq!((certs.len(), requests(&fleet).len()), (HOSTS, 0));
    authority.stop();
    fleet.assert_no_leaks();
}

fn request(fleet: &Fleet, name: &str) -> EnrollParams {
    let key = fleet.root().join(format!("{name}.key"));
    make_key(&key).unwrap();
    let name = name.parse().unwrap();
    EnrollParams { csr: write_csr(&key, &name).unwrap(), name, token: None }
}

async fn ask(address: String, pin: String, params: EnrollParams) -> EnrollReply {
    let deadlines = Deadlines { connect: PATIENCE, answer: COMMAND_TIMEOUT };
    let mut client = AuthorityClient::pinned(&address, pin.parse().unwrap(), deadlines).unwrap();
    client.enroll(&params).await.unwrap()
}
