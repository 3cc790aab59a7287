//! The client against minions that misbehave: what matters is on which side of "sent" each failure lies.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may panic")]

use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use certs::authority::Authority;
use certs::authority::desk::{Desk, Terms};
use certs::trust::LOOK_EVERY;
use common::identity::Role;
use common::job::HostState;
use common::outcome::ErrorCode;
use serde_json::json;

use crate::fake_minion::{Lab, Reply, ok};

/// The state of the only host, and the reason for it.
fn ping(lab: &Lab) -> (HostState, String) {
    let target = lab.fleet().target("*").unwrap();
    let mut outcomes = target.call("test.ping", ()).unwrap();
    let (_, outcome) = outcomes.pop_first().unwrap();
    let reason = outcome.verdict.error().map(|error| error.message.clone()).unwrap_or_default();
    (outcome.verdict.state(), reason)
}

fn lab_with(reply: impl Fn() -> Reply + Send + Sync + 'static) -> Lab {
    let lab = Lab::new();
    lab.minion("web1", move |_| reply());
    lab
}

#[test]
fn an_answer_is_the_hosts_own() {
    let lab = Lab::new();
    lab.minion("web1", |envelope| ok(json!([envelope.method, envelope.caller, envelope.audience, envelope.limit_ms])));
    let outcomes = lab.fleet().target("web1").unwrap().call("test.ping", ()).unwrap();
    let outcome = serde_json::to_value(&outcomes[&"web1".parse().unwrap()]).unwrap();
    assert_eq!(outcome["result"], json!(["test.ping", "admin", ["web1"], 60_000]));
}

#[test]
fn what_was_not_sent_is_undelivered() {
    let lab = Lab::new();
    lab.enlist("web1", "127.0.0.1:1");
    let (state, reason) = ping(&lab);
    assert_eq!(state, HostState::Undelivered);
    assert!(reason.contains("cannot reach web1 at 127.0.0.1:1: Connection refused"), "{reason}");
}

#[test]
fn a_port_that_never_answers_costs_no_more_than_the_time_to_connect() {
    let lab = Lab::new();
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    lab.enlist("web1", &silent.local_addr().unwrap().to_string());
    std::fs::write(lab.dir.path().join("overlord.toml"), "connect_timeout = \"200ms\"").unwrap();
    let begun = Instant::now();
    let (state, reason) = ping(&lab);
    assert_eq!(state, HostState::Undelivered, "{reason}");
    assert!(reason.contains("no connection within 200ms") && begun.elapsed() < Duration::from_secs(2), "{reason}");
}

#[test]
fn another_host_at_the_address_is_not_asked() {
    let lab = Lab::new();
    lab.minion_as("web1", "web2", |_| ok(json!("ran")));
    let (state, reason) = ping(&lab);
    assert_eq!(state, HostState::Undelivered);
    assert!(reason.contains("web2"), "{reason}");
}

#[test]
fn a_host_that_refuses_our_certificate_has_not_read_the_call() {
    let elsewhere = tempfile::tempdir().unwrap();
    let other = Authority::init(&elsewhere.path().join("certs"), Duration::from_secs(3600)).unwrap();
    let admin = || Role::Overlord("admin".parse().unwrap());
    // Many times: whether the refusal is read before or after the call was written is a race.
    for _ in 0..20 {
        let lab = lab_with(|| ok(json!("ran")));
        lab.certify_overlord(admin(), &other, Duration::from_secs(60));
        // The authority's file is the other's too, or we would not even load the certificate.
        std::fs::write(
            lab.dir.path().join("certs/ca.pem"),
            format!("{}{}", std::fs::read_to_string(lab.dir.path().join("certs/ca.pem")).unwrap(), other.ca_pem()),
        )
        .unwrap();
        let (state, reason) = ping(&lab);
        assert_eq!(state, HostState::Undelivered, "{reason}");
        assert!(reason.contains("web1 refuses our certificate"), "{reason}");
    }
}

/// The fake minion checks each signature against the certificate that it was shown.
#[test]
fn hosts_that_share_an_envelope_are_shown_the_key_that_it_is_signed_with_then() {
    let lab = Arc::new(Lab::new());
    let seen = Arc::new(Mutex::new(Vec::new()));
    for host in ["web1", "web2", "web3"] {
        let (home, seen) = (Arc::downgrade(&lab), seen.clone());
        lab.minion(host, move |envelope| {
            seen.lock().unwrap().push(envelope.start_before);
            let lab = home.upgrade().unwrap();
            match host {
                "web1" => lab.renew_overlord(),
                _ => lab.certify_overlord(Role::Overlord("admin".parse().unwrap()), lab.authority(), Duration::from_secs(3600)),
            }
            // From then on the overlord goes by it.
            std::thread::sleep(LOOK_EVERY);
            ok(json!("pong"))
        });
    }
    let outcomes = lab.fleet().target("*").unwrap().with_forks(1).call("test.ping", ()).unwrap();
    assert!(outcomes.values().all(|outcome| outcome.verdict.state() == HostState::Ok), "{outcomes:?}");
    let seen = seen.lock().unwrap();
    assert!(seen.len() == 3 && seen.iter().all(|start_before| *start_before == seen[0]), "one text: {seen:?}");
}

#[test]
fn an_expired_certificate_is_named_as_such() {
    let lab = lab_with(|| ok(json!("ran")));
    let authority = Authority::open(&lab.dir.path().join("certs")).unwrap();
    lab.certify_overlord(Role::Overlord("ops".parse().unwrap()), &authority, Duration::from_secs(1));
    std::thread::sleep(Duration::from_millis(2100));
    // Where the authority is, another one is had at once.
    let key = lab.dir.path().join("certs/ca.key");
    let away = lab.dir.path().join("ca.key");
    std::fs::rename(&key, &away).unwrap();
    let target = lab.fleet().target("*").unwrap();
    let error = crate::chain(&target.call("test.ping", ()).unwrap_err());
    assert!(error.contains("has expired") && error.contains("authority ="), "{error}");
    std::fs::rename(&away, &key).unwrap();
    let (state, reason) = ping(&lab);
    assert_eq!(state, HostState::Ok, "{reason}");
}

#[test]
fn what_was_sent_and_not_answered_is_lost() {
    type Misbehaviour = fn() -> Reply;
    let cases: [(Misbehaviour, &str); 8] = [
        (|| Reply::Close, "the connection was closed before an answer came"),
        (|| Reply::Raw(200, b"no json".to_vec()), "not an outcome"),
        (|| Reply::Raw(200, b"{\"jsonrpc\":\"2.0\",\"id\":0}".to_vec()), "not an outcome"),
        (|| Reply::Raw(200, vec![b'{', 0xff, 0xfe]), "not an outcome"),
        (|| Reply::Raw(500, b"{}".to_vec()), "500"),
        (|| Reply::Result(json!({ "state": "running" })), "not an outcome"),
        (|| Reply::Result(json!("pong")), "not an outcome"),
        (|| Reply::Raw(200, format!("{{\"x\":{}1{}", "[".repeat(100_000), "]".repeat(100_000)).into_bytes()), "not an outcome"),
    ];
    for (reply, words) in cases {
        let (state, reason) = ping(&lab_with(reply));
        assert_eq!(state, HostState::Lost, "{reason}");
        assert!(reason.contains(words), "{reason}");
    }
}

/// An outcome or an error may carry anything, but nothing that could not be read back from the job log.
#[test]
fn what_could_not_be_read_back_is_not_taken() {
    let nested = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
    let result = |result: String| format!("{{\"jsonrpc\":\"2.0\",\"id\":0,\"result\":{{\"state\":\"ok\",\"result\":{result}}}}}");
    for (body, words) in [
        (result(nested(120)), "it answered something nested too deep: more than 64 levels"),
        (result(nested(5000)), "it answered something nested too deep: more than 64 levels"),
        (result("{\"$serde_json::private::RawValue\":\"[[[\"}".to_owned()), "it answered something with a name that begins with"),
    ] {
        let (state, reason) = ping(&lab_with(move || Reply::Raw(200, body.clone().into_bytes())));
        assert_eq!(state, HostState::Lost, "{reason}");
        assert!(reason.contains(words), "{reason}");
    }
    let fits = result(nested(64));
    assert_eq!(ping(&lab_with(move || Reply::Raw(200, fits.clone().into_bytes()))).0, HostState::Ok);
    let denied = format!("{{\"jsonrpc\":\"2.0\",\"id\":0,\"error\":{{\"code\":-32001,\"message\":\"no\",\"data\":{}}}}}", nested(125));
    let (state, reason) = ping(&lab_with(move || Reply::Raw(200, denied.clone().into_bytes())));
    assert_eq!(state, HostState::Denied, "{reason}");
    assert_eq!(reason, "no (and data that are left out, nested too deep: more than 64 levels)");
}

#[test]
fn an_answer_has_a_largest_size() {
    let lab = lab_with(|| ok(json!("x".repeat(100_000))));
    std::fs::write(lab.dir.path().join("overlord.toml"), "result_max_bytes = 50000").unwrap();
    let (state, reason) = ping(&lab);
    assert_eq!(state, HostState::Lost);
    assert!(reason.contains("50000 bytes") && reason.contains("result_max_bytes"), "{reason}");
}

#[test]
fn a_call_has_a_largest_size() {
    let lab = lab_with(|| ok(json!("ran")));
    std::fs::write(lab.dir.path().join("overlord.toml"), "call_max_bytes = 1000").unwrap();
    let outcomes = lab.fleet().target("*").unwrap().call("some.method", "x".repeat(2000).as_str()).unwrap();
    let verdict = &outcomes[&"web1".parse().unwrap()].verdict;
    assert_eq!(verdict.state(), HostState::Undelivered);
    assert!(verdict.error().unwrap().message.contains("call_max_bytes"));
}

#[test]
fn a_refusal_keeps_its_code() {
    for (code, state) in [
        (ErrorCode::Denied, HostState::Denied),
        (ErrorCode::UnknownMethod, HostState::Failed),
        (ErrorCode::LimitReached, HostState::Undelivered),
    ] {
        let lab = lab_with(move || Reply::Error(code, "no"));
        assert_eq!(ping(&lab), (state, "no".to_owned()));
    }
    let (state, reason) = ping(&lab_with(|| Reply::Raw(429, vec![])));
    assert_eq!(state, HostState::Undelivered);
    assert!(reason.contains("429"), "{reason}");
}

#[test]
fn a_call_that_is_stopped_says_what_was_sent() {
    let lab = Lab::new();
    lab.minion("web1", |_| Reply::Hang);
    lab.minion("web2", |_| ok(json!(2)));
    lab.minion("web3", |_| Reply::Hang);
    let stop = crate::fleet::Stop::new();
    let mut states = std::collections::BTreeMap::new();
    let target = lab.fleet().target("*").unwrap().with_forks(2);
    target
        .call_each("test.ping", (), &stop, |host, outcome| {
            if outcome.verdict.state() == HostState::Ok {
                std::thread::sleep(Duration::from_millis(300));
                stop.stop();
            }
            states.insert(host.to_string(), outcome.verdict.state());
        })
        .unwrap();
    let lost = states.values().filter(|state| **state == HostState::Lost).count();
    assert_eq!((states["web2"], lost), (HostState::Ok, 2), "{states:?}");
}

#[test]
fn a_silent_host_is_waited_for_as_long_as_was_said_and_five_seconds() {
    let lab = lab_with(|| Reply::Hang);
    let begun = Instant::now();
    let outcomes = lab.fleet().target("*").unwrap().with_timeout(Duration::from_millis(100)).call("test.ping", ()).unwrap();
    let verdict = &outcomes[&"web1".parse().unwrap()].verdict;
    assert_eq!(verdict.state(), HostState::Lost);
    assert!(verdict.error().unwrap().message.contains("no answer came within 5.1s"), "{verdict:?}");
    assert!((5..8).contains(&begun.elapsed().as_secs()));
}

/// What is shown and what is signed is settled before the host is dialled; that it may be asked is not.
#[test]
fn a_host_that_is_revoked_while_it_is_dialled_is_not_asked() {
    let lab = Lab::new();
    let certs = lab.dir.path().join("certs");
    let hour = Duration::from_secs(3600);
    let asked = Arc::new(AtomicBool::new(false));
    let noted = asked.clone();
    let host = lab.minion_as("behind", "web1", move |_| {
        noted.store(true, Ordering::Relaxed);
        ok(json!("ran"))
    });
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    std::fs::write(lab.dir.path().join("hosts.toml"), format!("[host.web1]\naddress = \"{}\"\n", listener.local_addr().unwrap())).unwrap();
    let between = std::thread::spawn(move || {
        let (mut near, _) = listener.accept().unwrap();
        let mut desk = Desk::open(&certs, Terms { valid: hour, crl_valid: hour, requests_max: 1 }).unwrap();
        desk.revoke(&["minion/web1".to_owned()], None).unwrap();
        // From then on the overlord goes by it.
        std::thread::sleep(LOOK_EVERY);
        let mut far = TcpStream::connect(host).unwrap();
        let (mut near_in, mut far_out) = (near.try_clone().unwrap(), far.try_clone().unwrap());
        let back = std::thread::spawn(move || std::io::copy(&mut far, &mut near));
        let _cut = std::io::copy(&mut near_in, &mut far_out);
        let _closed = far_out.shutdown(Shutdown::Both);
        let _cut = back.join().unwrap();
    });
    let (state, reason) = ping(&lab);
    assert_eq!(state, HostState::Undelivered, "{reason}");
    assert!(reason.contains("revoked"), "{reason}");
    between.join().unwrap();
    assert!(!asked.load(Ordering::Relaxed), "it was asked");
}

#[test]
fn a_host_that_is_revoked_while_it_is_asked_is_waited_for_no_longer() {
    let lab = Lab::new();
    let certs = lab.dir.path().join("certs");
    let hour = Duration::from_secs(3600);
    lab.minion("web1", move |_| {
        let mut desk = Desk::open(&certs, Terms { valid: hour, crl_valid: hour, requests_max: 1 }).unwrap();
        desk.revoke(&["minion/web1".to_owned()], None).unwrap();
        Reply::Hang
    });
    let begun = Instant::now();
    let (state, reason) = ping(&lab);
    assert_eq!(state, HostState::Lost, "{reason}");
    assert!(reason.contains("its certificate has been revoked while it was asked"), "{reason}");
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
}
