//! `minion.upgrade` as far as it goes where no package of the minion is installed: the package is brought whole or not at all, and nothing is
//! installed. How it goes on is tested on hosts of the lab.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use common::protocol::package::PIECE_MAX_BYTES;
use fleet::{Fleet, Proxy, Running, binaries, package_of};
use serde_json::Value;

/// A file that is the minion's package as far as an overlord can tell; it is brought in four pieces.
fn package(fleet: &Fleet) -> PathBuf {
    let path = fleet.root().join("overlord-minion.deb");
    fs::write(&path, package_of("overlord-minion", "0.2.0-1", "amd64", 3 * PIECE_MAX_BYTES)).unwrap();
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

/// The cable breaks once the host has a piece.
#[test]
fn a_package_that_was_brought_in_part_goes_on_where_it_was() {
    let fleet = Fleet::start(1);
    let (package, web1) = (package(&fleet), fleet.minion("web1"));
    let folder = web1.own_state_dir().join("spool/packages");
    let has_a_piece = move || {
        let is_piece =
            |path: PathBuf| path.extension().is_some_and(|kind| kind == "part") && path.metadata().is_ok_and(|file| file.len() > 0);
        fs::read_dir(&folder).is_ok_and(|entries| entries.flatten().any(|entry| is_piece(entry.path())))
    };
    let proxy = Proxy::losing_answers(web1.address(), 1, has_a_piece);
    fleet.set_address("web1", &proxy.address().to_string());
    let staged = || web1.audit().iter().filter(|line| line["method"] == "minion.stage").count();
    let host = ended(&fleet, &fleet.start_job(["web1", "minion.upgrade", package.to_str().unwrap()]));
    assert_eq!((host["state"].as_str(), proxy.lost()), (Some("undelivered"), 1), "{host}");
    let before = staged();
    assert_eq!(ended(&fleet, &fleet.start_job(["web1", "minion.upgrade", package.to_str().unwrap()]))["state"], "failed");
    assert_eq!((before, staged() - before), (2, 1 + 3), "asked for and one piece; asked for and the other three");
    assert_eq!(brought(&fleet), [fs::read(&package).unwrap()]);
}

/// As a person types it, in the folder where it lies.
#[test]
fn a_package_is_found_by_a_relative_path() {
    let fleet = Fleet::start(1);
    let package = package(&fleet);
    let mut command = Command::new(&binaries().overlord);
    command.args(["web1", "minion.upgrade", "overlord-minion.deb", "--async"]).env("OVERLORD_HOME", fleet.home()).current_dir(fleet.root());
    let id = Running::start(command).wait().ok().out();
    assert_eq!(ended(&fleet, id.trim())["error"]["data"]["type"], "not_upgraded");
    assert_eq!(brought(&fleet), [fs::read(&package).unwrap()]);
}

/// The package is not kept, and a host would be told to install what it never got.
#[test]
fn an_upgrade_is_sent_again_by_its_file_alone() {
    let fleet = Fleet::start(1);
    let package = package(&fleet);
    fleet.minion("web1").stop();
    let id = fleet.start_job(["web1", "minion.upgrade", package.to_str().unwrap()]);
    assert_eq!(ended(&fleet, &id)["state"], "undelivered");
    for words in [vec!["job-resume", &id], vec!["job-retry", &id, "--undelivered"]] {
        let refused = fleet.overlord(words).expect(64);
        assert!(refused.err().contains(&format!("overlord '@job:{id}:undelivered' minion.upgrade FILE --async")), "{}", refused.err());
    }
    fleet.minion("web1").start();
    let target = format!("@job:{id}:undelivered");
    assert_eq!(ended(&fleet, &fleet.start_job([target.as_str(), "minion.upgrade", package.to_str().unwrap()]))["state"], "failed");
    assert_eq!(brought(&fleet).len(), 1);
}

#[test]
fn what_is_no_package_is_sent_to_nobody() {
    let fleet = Fleet::start(1);
    let [nothing, text, other] = ["nothing.deb", "text.deb", "other.deb"].map(|name| fleet.root().join(name));
    fs::write(&text, "text").unwrap();
    fs::write(&other, package_of("overlord", "0.2.0-1", "amd64", 0)).unwrap();
    let whys = ["cannot read the package", "it is neither a .deb nor an .rpm", "it is the package overlord;"];
    for (file, why) in [&nothing, &text, &other].into_iter().zip(whys) {
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
