//! `overlord certs` where something goes wrong half way: no host stays untold, and no key is lost.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};

use fleet::{Fleet, Run};
use serde_json::json;

/// The audit log can be opened, and no line be written.
fn fill_audit_log(fleet: &Fleet) {
    let log = fleet.home().join("certs-audit.log");
    let _ = fs::remove_file(&log);
    symlink("/dev/full", &log).unwrap();
}

fn ping_as(fleet: &Fleet, home: &std::path::Path) -> serde_json::Value {
    fleet.overlord_at(home, ["*", "test.ping", "--output", "json"]).wait().json()["hosts"]["web1"].clone()
}

#[test]
fn hosts_are_told_though_the_audit_log_is_full_and_told_again_if_it_is_repeated() {
    for verb in ["revoke", "clean"] {
        let fleet = Fleet::start(1);
        let ops = fleet.another_overlord("ops");
        fill_audit_log(&fleet);
        let revoke = || -> Run { fleet.overlord(["certs", verb, "overlord/ops"]) };
        let revoked = revoke().expect(1);
        assert!(revoked.err().contains("1 of 1 hosts") && revoked.err().contains("not in the audit log"), "{}", revoked.err());
        assert_eq!(ping_as(&fleet, &ops)["state"], "undelivered");
        fs::remove_file(fleet.home().join("certs-audit.log")).unwrap();
        // As if the first had been killed before it came to the host.
        let web1 = fleet.minion("web1");
        web1.stop();
        fs::remove_file(web1.certs_dir().join("crl.pem")).unwrap();
        web1.start();
        assert_eq!(ping_as(&fleet, &ops)["state"], "ok");
        let again = revoke().ok();
        assert!(again.err().contains("1 of 1 hosts"), "{}", again.err());
        assert_eq!(ping_as(&fleet, &ops)["state"], "undelivered");
        fleet.assert_no_leaks();
    }
}

#[test]
fn a_host_that_has_no_good_certificate_any_more_is_not_called() {
    let fleet = Fleet::builder().hosts(2).start();
    fleet.minion("web2").stop();
    let _ = fleet.overlord(["certs", "clean", "web2"]).ok();
    let _ops = fleet.another_overlord("ops");
    let later = fleet.overlord(["certs", "revoke", "ops", "--output", "json"]).ok();
    assert_eq!((&later.json()["hosts"]["told"], &later.json()["hosts"]["out"]), (&json!(1), &json!(["web2"])), "{}", later.out());
    assert!(later.err().contains("web2 has no certificate that is still good"), "{}", later.err());
    fleet.assert_no_leaks();
}

#[test]
fn init_in_another_overlords_home_touches_nothing_and_no_key_is_ever_deleted() {
    let fleet = Fleet::builder().start();
    let ops = fleet.another_overlord("ops");
    let [cert, key] = ["certs/overlord.pem", "certs/overlord.key"].map(|file| ops.join(file));
    let before = fs::read(&key).unwrap();
    fs::remove_file(cert).unwrap();
    let refused = fleet.overlord_at(&ops, ["certs", "init"]).wait().expect(1);
    assert!(refused.err().contains("the authority's key is not in"), "{}", refused.err());
    assert_eq!(fs::read(&key).unwrap(), before);

    let certs = fleet.home().join("certs");
    for old in ["overlord.key.old", "overlord.key.old.2"] {
        let before = fs::read(certs.join("overlord.key")).unwrap();
        fs::remove_file(certs.join("overlord.pem")).unwrap();
        let made = fleet.overlord(["certs", "init"]).ok();
        assert!(made.err().contains(old), "{}", made.err());
        assert_eq!(fs::read(certs.join(old)).unwrap(), before);
        assert_eq!(fs::metadata(certs.join(old)).unwrap().permissions().mode() & 0o777, 0o600);
    }
}

#[test]
fn what_is_issued_and_cannot_be_handed_out_is_taken_back() {
    let fleet = Fleet::start(1);
    let out = fleet.root().join("out");
    let issue = |names: &[&str]| fleet.overlord([&["certs", "issue", "--out", out.to_str().unwrap()], names].concat());
    let good = |name: &str| {
        let listed = fleet.overlord(["certs", "list", "--output", "json"]).ok().json()["certificates"].as_array().unwrap().clone();
        listed.iter().filter(|one| one["name"] == name && one["state"] == "good").count()
    };
    fill_audit_log(&fleet);
    let refused = issue(&["web1", "db1"]).expect(1);
    assert!(refused.err().contains("was taken back"), "{}", refused.err());
    fs::remove_file(fleet.home().join("certs-audit.log")).unwrap();
    assert_eq!((good("web1"), good("db1")), (1, 0), "web1 keeps the one that it has");
    // The folder is one that cannot be made.
    fs::write(&out, "in the way").unwrap();
    let refused = issue(&["db1"]).expect(1);
    assert!(refused.err().contains("was taken back") && good("db1") == 0, "{}", refused.err());
    fs::remove_file(&out).unwrap();

    let replaced = issue(&["web1", "db1"]).ok();
    assert!(replaced.err().contains("web1 has a good certificate for another key already"), "{}", replaced.err());
    assert!(!replaced.err().contains("db1 has"), "{}", replaced.err());
    let own = issue(&["--role", "overlord", "admin"]).expect(64);
    assert!(own.err().contains("admin is this overlord itself"), "{}", own.err());
}

#[test]
fn who_only_looks_writes_nothing() {
    let fleet = Fleet::builder().names(["web1"]).stopped().start();
    let log = fleet.home().join("certs-audit.log");
    fs::remove_file(&log).unwrap();
    fs::create_dir(&log).unwrap();
    for verb in ["status", "list", "requests"] {
        let _ = fleet.overlord(["certs", verb]).ok();
    }
    let record = fs::read_dir(fleet.home().join("certs/issued")).unwrap().next().unwrap().unwrap().path();
    fs::write(&record, "damage").unwrap();
    let damaged = fleet.overlord(["certs", "status"]).expect(4);
    assert!(damaged.err().contains("never delete it: another host could then have the name"), "{}", damaged.err());
}
