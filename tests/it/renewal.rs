//! Certificates that live seconds are renewed before anybody notices: the hosts', the callers', and over everything that goes wrong meanwhile.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use fleet::{Authority, Fleet, PATIENCE, wait_until};
use serde_json::Value;

/// Hosts whose certificates, like everyone's, live so long, enrolled and running, beside the authority.
fn short_lived(hosts: usize, life: &str, minion_toml: &str) -> (Fleet, Authority) {
    let overlord_toml = format!("[certs]\nvalid = \"{life}\"\n");
    let fleet = Fleet::builder().hosts(hosts).unenrolled().overlord_toml(&overlord_toml).minion_toml(minion_toml).start();
    let authority = fleet.serve_certs();
    for minion in fleet.minions() {
        let token = fleet.overlord(["certs", "token"]).ok().out().trim().to_owned();
        let _ = fleet.enroll(minion.name(), authority.address(), ["--token", &token]).ok();
        minion.start();
    }
    (fleet, authority)
}

fn cert(fleet: &Fleet, minion: &str) -> Vec<u8> {
    fs::read(fleet.minion(minion).certs_dir().join("cert.pem")).unwrap()
}

/// Everyone's newest certificate, as `certs status` has it, and its exit status.
fn status(fleet: &Fleet) -> (i32, Value) {
    let run = fleet.overlord(["certs", "status", "--output", "json"]);
    (run.code(), run.json())
}

/// A certificate that lives 60 s, a call every 100 ms, for three lifetimes.
#[test]
fn no_call_fails_while_certificates_are_renewed() {
    const LIFE: Duration = Duration::from_secs(60);
    const EVERY: Duration = Duration::from_millis(100);
    let (fleet, authority) = short_lived(2, "60s", "");
    let ops = fleet.another_overlord("ops");
    fs::write(ops.join("overlord.toml"), format!("authority = \"{}\"\n[certs]\nvalid = \"60s\"\n", authority.address())).unwrap();
    let own = |home: &Path| fs::read(home.join("certs/overlord.pem")).unwrap();
    let homes = [fleet.home(), ops];
    let (first, pids) = (homes.each_ref().map(|home| own(home)), fleet.minions().iter().map(fleet::Minion::pid).collect::<Vec<_>>());
    let mut seen = [vec![cert(&fleet, "web1")], vec![cert(&fleet, "web2")]];
    let (began, mut calls) = (Instant::now(), 0_usize);
    while began.elapsed() < 3 * LIFE {
        let due = Instant::now() + EVERY;
        let run = fleet.overlord_at(&homes[calls % 2], ["*", "test.ping", "--output", "json"]).wait();
        assert_eq!(run.code(), 0, "after {:?} and {calls} calls: {}{}", began.elapsed(), run.out(), run.err());
        calls += 1;
        for (name, seen) in ["web1", "web2"].into_iter().zip(&mut seen) {
            let now = cert(&fleet, name);
            if seen.last() != Some(&now) {
                seen.push(now);
            }
        }
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    assert!(calls > 900, "{calls} calls");
    assert!(seen.iter().all(|certs| certs.len() > 4), "renewed before two thirds of their life: {:?}", seen.map(|certs| certs.len()));
    for (home, first) in homes.iter().zip(first) {
        assert_ne!(own(home), first, "{}", home.display());
    }
    assert_eq!(fleet.minions().iter().map(fleet::Minion::pid).collect::<Vec<_>>(), pids, "none was restarted");
    assert_eq!(status(&fleet).0, 0);
    authority.stop();
    fleet.assert_no_leaks();
}

#[test]
fn an_authority_that_is_away_is_asked_again_until_it_is_back() {
    let (fleet, authority) = short_lived(1, "12s", "");
    let first = cert(&fleet, "web1");
    authority.kill9();
    wait_until("the renewal to be overdue", PATIENCE, || status(&fleet).0 & 2 != 0);
    let (_, told) = status(&fleet);
    assert!(told.to_string().contains("overdue"), "{told}");
    assert_eq!(cert(&fleet, "web1"), first);
    let authority = fleet.serve_certs();
    wait_until("the certificate to be renewed", PATIENCE, || cert(&fleet, "web1") != first);
    let run = fleet.overlord(["*", "test.ping"]);
    assert_eq!(run.code(), 0, "{}{}", run.out(), run.err());
    authority.stop();
    fleet.assert_no_leaks();
}

#[test]
fn an_expired_host_says_so_and_enrols_again_with_its_key() {
    let (fleet, authority) = short_lived(1, "10s", "");
    let web1 = fleet.minion("web1");
    authority.kill9();
    let key = fs::read(web1.certs_dir().join("key.pem")).unwrap();
    wait_until("the certificate to expire", PATIENCE, || web1.stderr().contains("the certificate has expired"));
    assert!(web1.stderr().contains("minion enroll"), "it says what to type");
    let call = || fleet.overlord(["web1", "test.ping", "--output", "json"]);
    wait_until("overlords to refuse it", PATIENCE, || call().json()["hosts"]["web1"]["error"].to_string().contains("has expired"));
    let authority = fleet.serve_certs();
    let token = fleet.overlord(["certs", "token"]).ok().out().trim().to_owned();
    let _ = fleet.enroll("web1", authority.address(), ["--token", &token]).ok();
    assert_eq!(fs::read(web1.certs_dir().join("key.pem")).unwrap(), key);
    wait_until("the host to answer, with no restart", PATIENCE, || fleet.overlord(["web1", "test.ping"]).code() == 0);
    authority.stop();
}
