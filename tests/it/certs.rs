//! `overlord certs`: the authority, the folders for hosts, and what is remembered of them.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use certs::authority::desk::{Asked, Desk, Terms};
use certs::csr::{make_key, write_csr};
use fleet::{Fleet, PATIENCE, wait_until};
use serde_json::Value;

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn a_host_is_given_a_folder_whose_key_is_private() {
    let fleet = Fleet::builder().start();
    let out = fleet.root().join("out");
    let _ = fleet.overlord(["certs", "issue", "web1", "db1", "--out", out.to_str().unwrap()]).ok();
    for host in ["web1", "db1"] {
        let folder = out.join(host);
        let mut files: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        files.sort();
        assert_eq!(files, ["ca.pem", "cert.pem", "crl.pem", "key.pem"]);
        assert_eq!(mode(&folder.join("key.pem")), 0o600);
    }
    let home = fleet.home().join("certs");
    assert_eq!((mode(&home.join("ca.key")), mode(&home.join("overlord.key"))), (0o600, 0o600));
}

#[test]
fn a_second_init_changes_nothing() {
    let fleet = Fleet::builder().start();
    let files = ["ca.pem", "ca.key", "overlord.pem", "overlord.key"].map(|file| fleet.home().join("certs").join(file));
    let before = files.each_ref().map(|file| fs::read(file).unwrap());
    let again = fleet.overlord(["certs", "init"]);
    assert_ne!(again.code(), 0);
    assert!(again.err().contains("already"), "{}", again.err());
    assert_eq!(files.map(|file| fs::read(file).unwrap()), before);
}

#[test]
fn a_folder_that_is_there_is_not_overwritten() {
    let fleet = Fleet::builder().start();
    let out = fleet.root().join("out");
    let issue = || fleet.overlord(["certs", "issue", "web1", "--out", out.to_str().unwrap()]);
    let _ = issue().ok();
    let key = fs::read(out.join("web1/key.pem")).unwrap();
    let again = issue();
    assert_ne!(again.code(), 0);
    assert!(again.err().contains(out.join("web1").to_str().unwrap()), "{}", again.err());
    assert_eq!(fs::read(out.join("web1/key.pem")).unwrap(), key);
}

#[test]
fn what_was_issued_is_listed_by_name() {
    let fleet = Fleet::builder().names(["web2", "web1"]).stopped().start();
    let listed = fleet.overlord(["certs", "list"]).ok().out();
    let places = ["admin", "web1", "web2"].map(|name| listed.find(name).unwrap_or_else(|| panic!("no {name} in {listed}")));
    assert!(places.is_sorted(), "{listed}");
}

#[test]
fn a_key_that_others_can_read_is_refused_with_what_mends_it() {
    let fleet = Fleet::start(1);
    let key = fleet.home().join("certs/overlord.key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    let refused = fleet.overlord(["*", "test.ping"]);
    assert_ne!(refused.code(), 0);
    assert!(refused.err().contains(&format!("chmod 600 {}", key.display())), "{}", refused.err());
}

/// An authority with these requests, and no host that runs.
fn asked(names: &[&str]) -> Fleet {
    let fleet = Fleet::builder().start();
    let day = Duration::from_secs(24 * 60 * 60);
    let terms = Terms { valid: day, crl_valid: day, requests_max: 100 };
    let mut desk = Desk::open(&fleet.home().join("certs"), terms).unwrap();
    let asked: Vec<Asked> = names.iter().map(|name| request(fleet.root(), name)).collect();
    assert!(desk.enroll(&asked).unwrap().iter().all(Result::is_ok));
    fleet
}

fn request(folder: &Path, name: &str) -> Asked {
    let (key, name) = (folder.join(format!("{name}.key")), name.parse().unwrap());
    assert!(make_key(&key).unwrap());
    Asked { csr: write_csr(&key, &name).unwrap(), name, token: None, from: "10.0.0.9".into() }
}

/// What a command of `certs` says as JSON.
fn json(fleet: &Fleet, words: &[&str]) -> Value {
    fleet.overlord(["certs"].iter().chain(words).chain(&["--output", "json"])).json()
}

/// The state of each certificate, by name and serial number.
fn states(fleet: &Fleet) -> Vec<(String, String)> {
    let listed = json(fleet, &["list"])["certificates"].as_array().unwrap().clone();
    listed.iter().map(|one| (one["name"].as_str().unwrap().to_owned(), one["state"].as_str().unwrap().to_owned())).collect()
}

fn waiting(fleet: &Fleet) -> BTreeMap<String, String> {
    let requests = json(fleet, &["requests"])["requests"].as_array().unwrap().clone();
    requests.iter().map(|one| (one["name"].as_str().unwrap().to_owned(), one["state"].as_str().unwrap().to_owned())).collect()
}

fn audit(fleet: &Fleet) -> Vec<Value> {
    let text = fs::read_to_string(fleet.home().join("certs-audit.log")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(one, two)| ((*one).to_owned(), (*two).to_owned())).collect()
}

#[test]
fn requests_are_signed_and_rejected_all_that_are_named_or_none() {
    let fleet = asked(&["web1", "web2", "web3", "web4"]);
    for verb in ["sign", "reject"] {
        let refused = fleet.overlord(["certs", verb, "web1", "web9"]).expect(1);
        assert!(refused.err().contains("nothing was") && refused.err().contains("web9"), "{}", refused.err());
    }
    assert_eq!(waiting(&fleet).values().filter(|state| *state == "waiting").count(), 4);
    let _ = fleet.overlord(["certs", "reject", "web4", "web4"]).ok();
    let signed = fleet.overlord(["certs", "sign", "web1", "--output", "json"]).ok().json();
    assert_eq!(signed["signed"][0]["name"], "web1", "{signed}");
    let left: Vec<_> = waiting(&fleet).into_iter().collect();
    assert_eq!(left, pairs(&[("web2", "waiting"), ("web3", "waiting"), ("web4", "rejected")]));
    let again = fleet.overlord(["certs", "sign", "web4"]).expect(1);
    assert!(again.err().contains("rejected"), "{}", again.err());
    let all = fleet.overlord(["certs", "sign", "--all"]).ok();
    assert!(all.out().contains("web2") && all.out().contains("web3") && !all.out().contains("web4"), "{}", all.out());
    assert_eq!(states(&fleet), pairs(&[("admin", "good"), ("web1", "good"), ("web2", "good"), ("web3", "good")]));
    let logged: Vec<_> = audit(&fleet).into_iter().map(|line| (line["action"].clone(), line["names"].clone())).collect();
    let expected = [("init", vec!["admin"]), ("reject", vec!["web4"]), ("sign", vec!["web1"]), ("sign", vec!["web2", "web3"])];
    assert_eq!(logged, expected.map(|(action, names)| (action.into(), names.into())));
}

#[test]
fn names_are_revoked_and_cleaned_all_that_are_named_or_none() {
    let fleet = Fleet::builder().names(["web1", "web2"]).stopped().start();
    for verb in ["revoke", "clean"] {
        let refused = fleet.overlord(["certs", verb, "web1", "web9"]).expect(1);
        assert!(refused.err().contains("nothing was") && refused.err().contains("web9"), "{}", refused.err());
        let own = fleet.overlord(["certs", verb, "web1", "admin"]).expect(1);
        assert!(own.err().contains("this overlord's own"), "{}", own.err());
    }
    assert!(states(&fleet).iter().all(|(_, state)| state == "good"));
    let number = || json(&fleet, &["status"])["revocations"]["number"].as_u64().unwrap();
    let before = number();
    // No host runs, so none can be told.
    let revoked = fleet.overlord(["certs", "revoke", "web1"]).expect(4);
    assert!(revoked.out().contains("web1") && !revoked.out().contains("web2"), "{}", revoked.out());
    assert!(revoked.err().contains("0 of 1 hosts") && revoked.err().contains("web2"), "{}", revoked.err());
    assert!(number() > before);
    assert_eq!(states(&fleet), pairs(&[("admin", "good"), ("web1", "revoked"), ("web2", "good")]));
    let again = fleet.overlord(["certs", "revoke", "web1"]).expect(4);
    assert!(again.err().contains("web1 was revoked before") && again.err().contains("0 of 1 hosts"), "{}", again.err());
    assert_eq!(again.out(), "");
    let cleaned = fleet.overlord(["certs", "clean", "web1", "web2", "--output", "json"]).ok().json();
    assert_eq!((&cleaned["revoked"][0]["name"], cleaned["revoked"].as_array().unwrap().len()), (&"web2".into(), 1), "{cleaned}");
    let status = json(&fleet, &["status"]);
    assert_eq!((&status["counts"]["good"], &status["counts"]["revoked"]), (&1.into(), &0.into()), "a cleaned name is nobody's: {status}");
    assert_eq!(status["revocations"]["revoked"], 2, "{status}");
}

#[test]
fn a_token_is_all_of_stdout_and_in_no_file() {
    let fleet = Fleet::builder().start();
    let made = fleet.overlord(["certs", "token", "--for", "web*"]).ok();
    let token = made.out().trim().to_owned();
    assert!(token.len() >= 32 && token.bytes().all(|byte| byte.is_ascii_hexdigit()), "{token}");
    assert!(made.err().contains("minion enroll --overlord") && made.err().contains("--token -"), "{}", made.err());
    assert!(made.err().contains(&fleet.ca_fingerprint()) && !made.err().contains(&token), "{}", made.err());
    let log = fs::read_to_string(fleet.home().join("certs-audit.log")).unwrap();
    assert!(log.contains("web*") && !log.contains(&token), "{log}");
    for entry in fs::read_dir(fleet.home().join("certs/tokens")).unwrap() {
        let path = entry.unwrap().path();
        assert!(!format!("{}{}", path.display(), fs::read_to_string(&path).unwrap()).contains(&token), "{}", path.display());
    }
    let refused = fleet.overlord(["certs", "token", "--for", "web[1"]).expect(64);
    assert!(refused.err().contains("web[1"), "{}", refused.err());
}

/// Monitoring goes by the exit status: 0, then 2 for what is overdue or has expired, and 4 for a list that is stale or what is damaged.
#[test]
fn status_says_what_needs_attention() {
    let fleet = Fleet::builder().start();
    let status = || fleet.overlord(["certs", "status", "--output", "json"]);
    assert_eq!(status().code(), 0, "{}", status().out());
    let out = fleet.root().join("out");
    let _ = fleet.overlord(["certs", "issue", "web1", "--valid", "10s", "--out", out.to_str().unwrap()]).ok();
    assert_eq!(status().code(), 0, "{}", status().out());
    wait_until("it to be overdue", PATIENCE, || status().json()["counts"]["overdue"] == 1);
    assert_eq!(status().code(), 2);
    wait_until("it to expire", PATIENCE, || status().json()["counts"]["expired"] == 1);
    let run = fleet.overlord(["certs", "status"]).expect(2);
    assert!(run.out().contains("web1") && run.out().contains("expired"), "{}", run.out());
    assert!(run.err().contains("overlord certs clean"), "{}", run.err());
    assert_eq!(status().json()["certificates"][0]["name"], "web1", "what needs attention comes first");
    let _ = fleet.overlord(["certs", "clean", "web1"]).ok();
    assert_eq!(status().code(), 0, "who is gone for good needs no attention: {}", status().out());
    fs::write(fleet.home().join("certs/revoked/00ff.json"), "damage").unwrap();
    let damaged = fleet.overlord(["certs", "status"]).expect(4);
    assert!(damaged.out().contains("00ff.json"), "{}", damaged.out());
}

#[test]
fn a_stale_list_is_an_alarm_until_the_authority_is_changed_or_served() {
    let fleet = Fleet::builder().overlord_toml("[certs]\ncrl_valid = \"10s\"\n").start();
    let status = || fleet.overlord(["certs", "status", "--output", "json"]);
    assert_eq!((status().code(), status().json()["revocations"]["stale"].clone()), (0, false.into()));
    wait_until("the list to be stale", PATIENCE, || status().code() == 4);
    assert_eq!(status().json()["revocations"]["stale"], true);
    let _ = fleet.overlord(["certs", "token"]).ok();
    assert_eq!((status().code(), status().json()["revocations"]["stale"].clone()), (0, false.into()));
}

#[test]
fn another_overlord_is_given_the_folder_of_its_home() {
    let fleet = Fleet::start(1);
    let ops = fleet.another_overlord("ops");
    let mut files: Vec<_> = fs::read_dir(ops.join("certs")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    files.sort();
    assert_eq!(files, ["ca.pem", "crl.pem", "overlord.key", "overlord.pem"]);
    assert_eq!(mode(&ops.join("certs/overlord.key")), 0o600);
    let ping = fleet.overlord_at(&ops, ["*", "test.ping"]).wait();
    assert_eq!(ping.code(), 0, "{}", ping.err());
    // It is no authority, and says so.
    for words in [vec!["certs", "status"], vec!["certs", "sign", "--all"], vec!["certs", "token"], vec!["certs", "serve"]] {
        let refused = fleet.overlord_at(&ops, &words).wait().expect(1);
        assert!(refused.err().contains("the authority's key is not in") && refused.err().contains("machine"), "{}", refused.err());
    }
    let renew = fleet.overlord_at(&ops, ["certs", "renew"]).wait().expect(1);
    assert!(renew.err().contains("authority = \"HOST:PORT\""), "{}", renew.err());
}

#[test]
fn an_overlord_renews_its_certificate_at_the_desk_or_over_the_network() {
    let fleet = Fleet::start(1);
    let authority = fleet.serve_certs();
    let ops = fleet.another_overlord("ops");
    fs::write(ops.join("overlord.toml"), format!("authority = \"{}\"\n", authority.address())).unwrap();
    for home in [fleet.home(), ops] {
        let [cert, key] = ["overlord.pem", "overlord.key"].map(|file| home.join("certs").join(file));
        let before = [&cert, &key].map(|file| fs::read(file).unwrap());
        let renewed = fleet.overlord_at(&home, ["certs", "renew", "--output", "json"]).wait().ok().json();
        assert_ne!(fs::read(&cert).unwrap(), before[0]);
        assert_eq!(fs::read(&key).unwrap(), before[1], "the key stays");
        let known = json(&fleet, &["list"])["certificates"].as_array().unwrap().clone();
        assert!(known.iter().any(|one| one["serial"] == renewed["serial"] && one["name"] == renewed["name"]), "{renewed}");
        let ping = fleet.overlord_at(&home, ["*", "test.ping"]).wait();
        assert_eq!(ping.code(), 0, "{}", ping.err());
    }
    authority.stop();
    fleet.assert_no_leaks();
}

#[test]
fn a_port_that_is_taken_is_named() {
    let fleet = Fleet::builder().start();
    let authority = fleet.serve_certs();
    let address = authority.address().to_string();
    let second = fleet.overlord(["certs", "serve", "--listen", &address]).expect(1);
    assert!(second.err().contains(&address) && second.err().contains("--listen"), "{}", second.err());
    authority.stop();
}
