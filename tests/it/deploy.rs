//! `overlord deploy`, through an `ssh` that is the harness's: what it does on a host, what it does not, and what it says. The real ssh, dpkg and systemd
//! are the lab's.

use std::fs;
use std::path::Path;

use fleet::{Authority, BareHost, BareHosts, Fleet, PATIENCE, Run, wait_until};
use nix::sys::signal::Signal;
use serde_json::Value;

/// At least one host was undelivered or is lost; one has failed.
const UNKNOWN: i32 = 4;
const FAILED: i32 = 2;
const INTERRUPTED: i32 = 130;

fn fleet_of(names: &[&str]) -> Fleet {
    Fleet::builder().names(names.iter().copied()).unenrolled().start()
}

/// Of hosts of which some will not do: what is waited for in vain is a part of it.
const SHORT: &str = "24s";

/// `overlord deploy HOSTS --package FILE --overlord ADDRESS`, and more.
fn words(hosts: &[&str], package: &Path, authority: &Authority, more: &[&str]) -> Vec<String> {
    let mut words: Vec<String> = hosts.iter().chain(more).map(|word| (*word).to_owned()).collect();
    words.extend(["--package".to_owned(), package.display().to_string(), "--overlord".to_owned(), authority.address().to_string()]);
    words
}

fn deploy(hosts: &BareHosts<'_>, names: &[&str], package: &Path, authority: &Authority) -> Run {
    hosts.deploy(words(names, package, authority, &[]))
}

/// The error of the only host.
fn error(hosts: &BareHosts<'_>, name: &str, package: &Path, authority: &Authority, code: i32) -> (String, String) {
    let run = hosts.deploy(words(&[name], package, authority, &["--output", "json", "--timeout", SHORT])).expect(code);
    let error = run.json()["hosts"][name]["error"].clone();
    let text = |value: &Value| value.as_str().unwrap_or_else(|| panic!("{}", run.out())).to_owned();
    (text(&error["data"]["type"]), text(&error["message"]))
}

fn issued(fleet: &Fleet, name: &str) -> usize {
    let listed = fleet.overlord(["certs", "list", "--output", "json"]).ok().json()["certificates"].clone();
    listed.as_array().unwrap().iter().filter(|entry| entry["name"] == name).count()
}

fn tokens(fleet: &Fleet) -> usize {
    fs::read_dir(fleet.home().join("certs/tokens")).map_or(0, |folder| folder.count())
}

fn leftovers(host: &BareHost) -> Vec<String> {
    let names = fs::read_dir(host.path("var/tmp")).unwrap().map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
    names.collect()
}

#[test]
fn a_bare_host_becomes_a_member_and_the_same_again_changes_nothing() {
    let fleet = fleet_of(&["web1", "web2"]);
    let (hosts, authority) = (fleet.bare_hosts(), fleet.serve_certs());
    let [web1, _web2] = ["web1", "web2"].map(|name| hosts.host(name));
    let package = hosts.package("0.1.0-1", "amd64");
    let run = deploy(&hosts, &["web1", "root@web2:22"], &package, &authority).ok();
    let mut lines: Vec<String> = run.out().lines().map(str::to_owned).collect();
    lines.sort();
    let address = fleet.minion("web1").address();
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert_eq!(lines[0], format!("web1: ok: 0.1.0-1 installed, enrolled, answers at {address}"));
    let _ = fleet.overlord(["*", "test.ping"]).ok();
    assert_eq!((web1.standing().as_str(), leftovers(&web1)), ("installed 0.1.0-1", vec![]));
    assert!(web1.text("etc/minion/minion.toml").starts_with("name = \"web1\"\n"), "{}", web1.text("etc/minion/minion.toml"));
    // What other users of the host can read names no token.
    let said = web1.text("minion.log");
    assert!(said.lines().any(|line| line.contains("enroll") && line.ends_with("--token -")), "{said}");

    let (cert, made) = (web1.text("etc/minion/certs/cert.pem"), tokens(&fleet));
    let again = deploy(&hosts, &["web1", "web2"], &package, &authority).ok();
    assert!(again.out().contains(&format!("web1: ok: 0.1.0-1 kept, answers at {address}")), "{}", again.out());
    assert_eq!((web1.text("etc/minion/certs/cert.pem"), issued(&fleet, "web1"), tokens(&fleet)), (cert, 1, made));
    assert_eq!(web1.text("apt.log").lines().count(), 1, "it was not installed again");

    let next = hosts.package("0.2.0-1", "amd64");
    let upgraded = deploy(&hosts, &["web1"], &next, &authority).ok();
    assert_eq!(upgraded.out(), format!("web1: ok: 0.2.0-1 in the place of 0.1.0-1, answers at {address}\n"));
    let down = hosts.deploy(words(&["web1"], &package, &authority, &["--output", "jsonl"])).ok().json_lines();
    assert_eq!((&down[0]["result"]["former_version"], &down[1]["summary"]["ok"]), (&"0.2.0-1".into(), &1.into()), "{down:?}");
    assert_eq!((web1.standing().as_str(), issued(&fleet, "web1")), ("installed 0.1.0-1", 1));
}

#[test]
fn a_host_that_the_roster_has_not_is_added_where_ssh_finds_it() {
    let fleet = fleet_of(&["web1"]);
    let (hosts, authority) = (fleet.bare_hosts(), fleet.serve_certs());
    let ip = fleet.minion("web1").address().ip().to_string();
    // Where no other host of this test's process is.
    let ip = format!("{}.254", ip.rsplit_once('.').unwrap().0);
    let _new = hosts.host_at("new1", &format!("{ip}:51234"));
    let package = hosts.package("0.1.0-1", "amd64");
    let run = deploy(&hosts, &["new1"], &package, &authority).ok();
    assert!(run.err().contains("new1 was added to"), "{}", run.err());
    let roster = fs::read_to_string(fleet.home().join("hosts.toml")).unwrap();
    assert!(roster.contains("[host.\"web1\"]") && roster.ends_with(&format!("[host.\"new1\"]\naddress = \"{ip}:51234\"\n")), "{roster}");
    let _ = fleet.overlord(["new1", "test.ping"]).ok();
    let again = deploy(&hosts, &["new1"], &package, &authority).ok();
    assert!(!again.err().contains("was added"), "{}", again.err());
}

#[test]
fn each_trouble_of_ssh_has_a_line_of_its_own_and_the_others_are_done() {
    let fleet = fleet_of(&["web1"]);
    let (hosts, authority) = (fleet.bare_hosts(), fleet.serve_certs());
    let _web1 = hosts.host("web1");
    let troubles = [
        ("down1", 255, "ssh: connect to host down1 port 22: Connection refused\n", "unreachable", "sshd listens"),
        ("key1", 255, "root@key1: Permission denied (publickey).\n", "no_login", "ssh-copy-id key1"),
        ("new1", 255, "Host key verification failed.\n", "host_key", "`ssh new1`"),
        (
            "moved1",
            255,
            "@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\nHost key verification failed.\n",
            "host_key",
            "ssh-keygen -R moved1",
        ),
        ("gone1", 255, "ssh: Could not resolve hostname gone1: Name or service not known\n", "unreachable", "--ssh-config"),
        ("user1", 1, "sudo: a password is required\n", "sudo", "root@user1"),
        ("shell1", 1, "\x1b[2JThis account is not available.\nweb1: ok: hello\n", "ssh", "`ssh shell1 true`"),
    ];
    for (name, code, says, ..) in troubles {
        hosts.failing(name, code, says);
    }
    let names: Vec<&str> = troubles.iter().map(|(name, ..)| *name).chain(["web1"]).collect();
    let package = hosts.package("0.1.0-1", "amd64");
    let run = hosts.deploy(words(&names, &package, &authority, &["--output", "json"])).expect(UNKNOWN | FAILED);
    let document = run.json();
    for (name, _, _, kind, next) in troubles {
        let host = &document["hosts"][name];
        assert_eq!(host["error"]["data"]["type"], kind, "{host}");
        assert_eq!(host["state"], if kind == "sudo" { "failed" } else { "undelivered" }, "{host}");
        assert!(host["error"]["message"].as_str().unwrap().contains(next), "{host}");
    }
    assert_eq!(document["hosts"]["web1"]["result"]["package"], "installed");
    let text = deploy(&hosts, &["shell1", "key1"], &package, &authority).expect(UNKNOWN).out();
    assert_eq!(text.lines().count(), 2, "{text}");
    assert!(!text.contains('\x1b') && text.lines().all(|line| line.contains(": undelivered: ")), "{text}");
    assert!(!fs::read_to_string(fleet.home().join("hosts.toml")).unwrap().contains("key1"));
}

#[test]
fn what_would_fail_everywhere_is_told_before_any_host_is_touched() {
    let fleet = fleet_of(&["web1"]);
    let (hosts, authority) = (fleet.bare_hosts(), fleet.serve_certs());
    let _web1 = hosts.host("web1");
    let package = hosts.package("0.1.0-1", "amd64");
    let other = hosts.package("0.1.0-1", "amd64").with_file_name("none.deb");
    fs::write(&other, "#!/bin/sh\n").unwrap();
    let config = other.with_file_name("no-config").display().to_string();
    for (args, says) in [
        (words(&["web1"], &other, &authority, &[]), "neither a .deb nor an .rpm"),
        (words(&["web1"], &other.with_file_name("gone.deb"), &authority, &[]), "gone.deb"),
        (words(&["web1"], &package, &authority, &["--ssh-config", &config]), "no-config"),
    ] {
        let run = hosts.deploy(args).expect(64);
        assert!(run.err().contains(says), "{}", run.err());
    }
    for word in ["web*", "-oProxyCommand=x", "web1:0"] {
        let _ = hosts.deploy(words(&["--", word], &package, &authority, &[])).expect(64);
    }
    let twice = hosts.deploy(words(&["web1", "root@web1"], &package, &authority, &[])).expect(64);
    assert!(twice.err().contains("named twice"), "{}", twice.err());
    let args = words(&["web1"], &package, &authority, &[]);
    authority.kill9();
    let run = hosts.deploy(args).expect(1);
    assert!(run.err().contains("no host was touched") && run.err().contains("overlord certs serve"), "{}", run.err());
    assert_eq!(hosts.started(), Vec::<String>::new());
    assert_eq!(tokens(&fleet), 0);
}

#[test]
fn a_host_that_the_package_is_not_for_is_left_as_it_was() {
    let fleet = fleet_of(&["web1"]);
    let (hosts, authority) = (fleet.bare_hosts(), fleet.serve_certs());
    let web1 = hosts.host("web1");
    let package = hosts.package("0.1.0-1", "amd64");
    let arm = hosts.package("0.1.0-1", "arm64");
    let (kind, message) = error(&hosts, "web1", &arm, &authority, FAILED);
    assert!(kind == "other_arch" && message.contains("arm64") && message.contains("amd64"), "{message}");

    web1.set("df", "Filesystem 1024-blocks Used Available Capacity Mounted on\n/dev/sda1 100000 98000 1024 99% /\n");
    let (kind, message) = error(&hosts, "web1", &package, &authority, FAILED);
    assert!(kind == "disk_full" && message.contains("/var/tmp has 1 MiB free"), "{message}");
    web1.unset("df");

    web1.set("etc/minion/minion.toml", "# name = \"a\"\n name = 'db7'\n[limits]\nname = \"b\"\n");
    let (kind, message) = error(&hosts, "web1", &package, &authority, FAILED);
    assert!(kind == "other_name" && message.contains("db7"), "{message}");
    fs::remove_dir_all(web1.path("etc/minion")).unwrap();

    let other = fleet_of(&[]);
    let ca = fs::read_to_string(other.home().join("certs/ca.pem")).unwrap();
    web1.set("etc/minion/certs/ca.pem", &ca);
    let (kind, message) = error(&hosts, "web1", &package, &authority, FAILED);
    let pin = fleet::ca_fingerprint(&other.home().join("certs/ca.pem"));
    assert!(kind == "other_fleet" && message.contains(&pin), "{message}");
    assert_eq!(web1.text("etc/minion/certs/ca.pem"), ca);
    fs::remove_dir_all(web1.path("etc/minion")).unwrap();

    fs::remove_dir(web1.path("run/systemd/system")).unwrap();
    assert_eq!(error(&hosts, "web1", &package, &authority, FAILED).0, "no_systemd");
    web1.unset("var/lib/dpkg/status");
    let (kind, message) = error(&hosts, "web1", &package, &authority, FAILED);
    assert!(kind == "other_manager" && message.contains(".deb"), "{message}");
    assert_eq!((web1.text("apt.log").as_str(), leftovers(&web1), tokens(&fleet)), ("", vec![], 0));
}

#[test]
fn a_package_that_does_not_come_up_leaves_what_was_there_before() {
    let fleet = fleet_of(&["web1"]);
    let (hosts, authority) = (fleet.bare_hosts(), fleet.serve_certs());
    let web1 = hosts.host("web1");
    let (first, next) = (hosts.package("0.1.0-1", "amd64"), hosts.package("0.2.0-1", "amd64"));
    web1.set("apt-fails", "0.1.0-1\n");
    let (kind, message) = error(&hosts, "web1", &first, &authority, FAILED);
    assert_eq!(kind, "install", "{message}");
    assert!(message.contains("the script of the package") && message.contains("nothing of it is left"), "{message}");
    let text = deploy(&hosts, &["web1"], &first, &authority).expect(FAILED).out();
    assert!(text.lines().count() == 1 && !text.contains('\x1b'), "{text:?}");
    assert_eq!((web1.standing().as_str(), web1.path("etc/minion").exists(), leftovers(&web1)), ("", false, vec![]));

    web1.unset("apt-fails");
    let _ = deploy(&hosts, &["web1"], &first, &authority).ok();
    web1.set("apt-fails", "0.2.0-1\n");
    let (_, message) = error(&hosts, "web1", &next, &authority, FAILED);
    assert!(message.contains("what was installed before is back"), "{message}");
    web1.unset("apt-fails");
    web1.set("never-up", "0.2.0-1\n");
    let (kind, message) = error(&hosts, "web1", &next, &authority, FAILED);
    assert!(kind == "start" && message.contains("a reason of its own") && message.contains("is back"), "{message}");
    assert_eq!((web1.standing().as_str(), leftovers(&web1)), ("installed 0.1.0-1", vec![]));
    wait_until("the former version to answer", PATIENCE, || fleet.overlord(["web1", "test.ping"]).code() == 0);

    // Where a package is by half, and may serve, it is not taken away.
    web1.set("standing", "half-configured 0.1.0-1\n");
    web1.set("apt-fails", "0.2.0-1\n");
    web1.unset("dpkg.log");
    let (_, message) = error(&hosts, "web1", &next, &authority, FAILED);
    assert!(message.contains("could not be put back"), "{message}");
    assert!(!web1.text("dpkg.log").contains("--remove"), "{}", web1.text("dpkg.log"));
    let _ = fleet.overlord(["web1", "test.ping"]).ok();
}

#[test]
fn a_host_that_gets_no_certificate_is_told_how_it_would() {
    let fleet = fleet_of(&["web1"]);
    let (hosts, authority) = (fleet.bare_hosts(), fleet.serve_certs());
    let web1 = hosts.host("web1");
    // Somebody else has the name.
    let token = fleet.overlord(["certs", "token"]).ok().out().trim().to_owned();
    let _ = fleet.enroll("web1", authority.address(), ["--token", &token]).ok();
    let package = hosts.package("0.1.0-1", "amd64");
    let (kind, message) = error(&hosts, "web1", &package, &authority, FAILED);
    assert!(kind == "enrol" && message.contains("overlord certs clean web1"), "{message}");
    assert_eq!(web1.standing(), "installed 0.1.0-1");
    let cleaned = fleet.overlord(["certs", "clean", "web1"]);
    assert!([0, UNKNOWN].contains(&cleaned.code()), "{}", cleaned.err());
    let run = deploy(&hosts, &["web1"], &package, &authority).ok();
    assert!(run.out().contains("0.1.0-1 kept, enrolled"), "{}", run.out());
}

#[test]
fn an_interrupt_ends_every_ssh_and_the_same_again_finishes_it() {
    let fleet = fleet_of(&["web1", "web2"]);
    let (hosts, authority) = (fleet.bare_hosts(), fleet.serve_certs());
    let [_web1, web2] = ["web1", "web2"].map(|name| hosts.host(name));
    let waits = web2.block_apt();
    let package = hosts.package("0.1.0-1", "amd64");
    let mut running = hosts.deploy_spawn(words(&["web1", "web2"], &package, &authority, &[]));
    assert!(running.next_line().starts_with("web1: ok: "));
    wait_until("web2's package manager", PATIENCE, || !web2.text("apt.log").is_empty());
    running.signal(Signal::SIGINT);
    let run = running.wait().expect(INTERRUPTED);
    assert!(run.err().contains("Done: web1. Not done: web2."), "{}", run.err());
    assert!(run.out().contains("web2: lost: interrupted"), "{}", run.out());
    // What had begun on the host goes on, and who comes meanwhile waits for it.
    let mut second = hosts.deploy_spawn(words(&["web2"], &package, &authority, &[]));
    assert!(second.next_error_line().contains("web2: another deploy or upgrade is at work there"));
    fs::write(&waits, "go on\n").unwrap();
    let finished = second.wait().ok();
    assert!(finished.out().starts_with("web2: ok: 0.1.0-1 kept"), "{}", finished.out());
    assert_eq!((web2.text("apt.log").lines().count(), leftovers(&web2)), (1, vec![]));
    let _ = fleet.overlord(["*", "test.ping"]).ok();
}

#[test]
fn a_host_that_does_not_answer_or_does_not_let_us_is_told_what_to_look_at() {
    let fleet = fleet_of(&["web1", "web2"]);
    let (hosts, authority) = (fleet.bare_hosts(), fleet.serve_certs());
    let [_web1, web2] = ["web1", "web2"].map(|name| hosts.host(name));
    web2.set("admin.toml", "[[allow]]\ncaller = \"ops\"\nmethods = [\"*\"]\n");
    // Nobody listens there.
    let wrong = format!("{}:1", fleet.minion("web1").address().ip());
    fleet.set_address("web1", &wrong);
    let package = hosts.package("0.1.0-1", "amd64");
    let run = hosts.deploy(words(&["web1", "web2"], &package, &authority, &["--output", "json", "--timeout", SHORT])).expect(FAILED);
    let document = run.json();
    let error = |name: &str| document["hosts"][name]["error"].clone();
    assert_eq!((&error("web1")["data"]["type"], &error("web2")["data"]["type"]), (&"no_ping".into(), &"not_allowed".into()), "{document}");
    let says = |name: &str, words: &str| error(name)["message"].as_str().unwrap().contains(words);
    assert!(says("web1", &wrong) && says("web1", "firewall") && says("web2", "admin") && says("web2", "acl.d"), "{document}");
}

/// A host is believed nothing: one that says it is done is not, until it has proved who it is.
#[test]
fn a_host_that_only_says_so_is_no_member() {
    let fleet = fleet_of(&["web1"]);
    let (hosts, authority) = (fleet.bare_hosts(), fleet.serve_certs());
    hosts.claiming("web1", "overlord-deploy manager deb\noverlord-deploy arch amd64\noverlord-deploy systemd yes\noverlord-deploy ready\noverlord-deploy done installed 0.1.0-1\n");
    let package = hosts.package("0.1.0-1", "amd64");
    let (kind, _) = error(&hosts, "web1", &package, &authority, FAILED);
    assert_eq!(kind, "no_ping");
    // It says so much that nobody would keep it, and nothing else.
    hosts.claiming("web1", &"overlord-deploy log x\n".repeat(200_000));
    let run = hosts.deploy(words(&["web1"], &package, &authority, &["--timeout", "30s"]));
    assert_eq!(run.code(), UNKNOWN, "{}", run.out());
}
