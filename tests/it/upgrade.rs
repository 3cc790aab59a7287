//! `minion.upgrade` as far as it goes where no package of the minion is installed: the package is brought whole or not at all, and nothing is
//! installed. How it goes on is tested on hosts of the lab.

use std::fs;
use std::path::PathBuf;

use fleet::Fleet;
use serde_json::Value;

/// As large as three pieces and a bit.
const BYTES: usize = 3 * (512 << 10) + 77;

/// A file that begins like a package of Debian's.
fn package(fleet: &Fleet) -> PathBuf {
    let path = fleet.root().join("overlord-minion.deb");
    let bytes: Vec<u8> = b"!<arch>\n".iter().copied().chain((0..BYTES - 8).map(|at| u8::try_from(at % 251).unwrap())).collect();
    fs::write(&path, bytes).unwrap();
    path
}

fn ended(fleet: &Fleet, id: &str) -> Value {
    fleet.overlord(["job-status", id, "--wait", "--output", "json"]).json()["hosts"]["web1"].clone()
}

/// The packages that the host has whole.
fn brought(fleet: &Fleet) -> Vec<Vec<u8>> {
    let folder = fleet.minion("web1").own_state_dir().join("spool/packages");
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let is_whole = |path: &PathBuf| path.extension().is_some_and(|kind| kind == "package");
    entries.flatten().map(|entry| entry.path()).filter(is_whole).map(|path| fs::read(path).unwrap()).collect()
}

#[test]
fn a_package_is_brought_whole_before_the_job_begins() {
    let fleet = Fleet::start(1);
    let package = package(&fleet);
    let id = fleet.start_job(["web1", "minion.upgrade", package.to_str().unwrap()]);
    let host = ended(&fleet, &id);
    assert_eq!((host["state"].as_str(), host["error"]["data"]["type"].as_str()), (Some("failed"), Some("not_upgraded")), "{host}");
    assert!(host["error"]["message"].as_str().unwrap().starts_with("nothing was installed: "), "{host}");
    assert_eq!(brought(&fleet), [fs::read(&package).unwrap()]);
    // It is there now: nothing is sent twice.
    let ended_again = ended(&fleet, &fleet.start_job(["web1", "minion.upgrade", package.to_str().unwrap()]));
    assert_eq!(ended_again["state"], "failed");
    let staged = fleet.minion("web1").audit().iter().filter(|line| line["method"] == "minion.stage").count();
    assert_eq!(staged, 1 + 4 + 1, "the first time it is asked for, and brought in four pieces; the second time asked for");
}

/// The host has its part, and the job never started; sent again it goes on from there.
#[test]
fn a_package_that_cannot_be_brought_is_a_job_that_never_started() {
    let fleet = Fleet::builder().hosts(1).acl("[[allow]]\ncaller = \"*\"\nmethods = [\"minion.upgrade\", \"test.*\"]\n").start();
    let package = package(&fleet);
    let host = ended(&fleet, &fleet.start_job(["web1", "minion.upgrade", package.to_str().unwrap()]));
    assert_eq!(host["state"], "denied", "{host}");
    assert!(host["error"]["message"].as_str().unwrap().contains("minion.stage"), "{host}");
    fleet.minion("web1").stop();
    let host = ended(&fleet, &fleet.start_job(["web1", "minion.upgrade", package.to_str().unwrap()]));
    assert_eq!(host["state"], "undelivered", "{host}");
    assert!(host["error"]["message"].as_str().unwrap().contains("the package could not be brought there: "), "{host}");
    assert!(brought(&fleet).is_empty());
}

#[test]
fn what_is_no_package_is_sent_to_nobody() {
    let fleet = Fleet::start(1);
    let (nothing, text) = (fleet.root().join("nothing.deb"), fleet.root().join("text.deb"));
    fs::write(&text, "text").unwrap();
    for (file, why) in [(&nothing, "reading the package"), (&text, "is neither a .deb nor a .rpm")] {
        let refused = fleet.overlord(["web1", "minion.upgrade", file.to_str().unwrap(), "--async"]).expect(64);
        assert!(refused.err().contains(why) && refused.err().contains(file.to_str().unwrap()), "{}", refused.err());
    }
    let package = package(&fleet);
    let refused = fleet.overlord(["web1", "minion.upgrade", package.to_str().unwrap()]).expect(64);
    assert!(refused.err().contains("--async"), "{}", refused.err());
    assert!(fleet.minion("web1").audit().is_empty());
}

/// Whoever calls a host in other ways is told the same.
#[test]
fn an_upgrade_that_is_no_job_or_of_no_package_is_refused_by_the_host() {
    let fleet = Fleet::start(1);
    let id = format!("sha256:{}", "a".repeat(64));
    let library = overlord::Fleet::open(fleet.home()).unwrap();
    let outcomes = library.target("web1").unwrap().call("minion.upgrade", [id.as_str()]).unwrap();
    let said = outcomes.values().next().unwrap().verdict.error().unwrap().message.clone();
    assert!(said.contains("start it with --async"), "{said}");
    let host = ended(&fleet, &fleet.start_job(["web1", "minion.upgrade", &id]));
    assert!(host["error"]["message"].as_str().unwrap().contains("was not brought to this host whole"), "{host}");
    let outcomes = library.target("web1").unwrap().call("minion.upgrade", ["sha256:../../etc/passwd"]).unwrap();
    let said = outcomes.values().next().unwrap().verdict.error().unwrap().message.clone();
    assert!(said.contains("64 small hexadecimal digits are wanted"), "{said}");
}
