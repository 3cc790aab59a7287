//! `overlord certs`: the authority, the folders for hosts, and what is remembered of them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use fleet::Fleet;

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
        assert_eq!(files, ["ca.pem", "cert.pem", "key.pem"]);
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
