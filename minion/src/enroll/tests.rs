//! Of an authority that is as it should be, and of those that are not.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test may panic")]

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use certs::authority::Authority;
use common::identity::Role;
use common::outcome::{ErrorCode, Failure};
use common::protocol::certs::{EnrollReply, Issued};

use super::*;
use crate::fake_authority::FakeAuthority;

const HOUR: Duration = Duration::from_secs(3600);

fn host(dir: &Path) -> PathBuf {
    named(dir, "web1")
}

fn named(dir: &Path, name: &str) -> PathBuf {
    let file = dir.join("minion.toml");
    fs::write(&file, format!("name = \"{name}\"\ncerts_dir = \"etc/certs\"\n")).unwrap();
    file
}

fn enrol(host: &Path, authority: &FakeAuthority, pin: CaPin) -> Result<String, String> {
    enrol_within(host, &authority.address.to_string(), pin, None)
}

fn enrol_within(host: &Path, address: &str, pin: CaPin, wait: Option<Duration>) -> Result<String, String> {
    let request = Request { overlord: address.to_owned(), ca_fingerprint: pin, token: Some(String::new()), wait };
    enroll(host, request).map(|code| format!("{code:?}")).map_err(|error| chain(&error))
}

/// Name, mode, inode of each file.
fn files(folder: &Path) -> Vec<(String, u32, u64)> {
    let entry = |entry: fs::DirEntry| {
        let file = entry.metadata().unwrap();
        (entry.file_name().to_string_lossy().into_owned(), file.mode() & 0o7777, file.ino())
    };
    let mut files: Vec<_> = fs::read_dir(folder).into_iter().flatten().flatten().map(entry).collect();
    files.sort();
    files
}

fn names(folder: &Path) -> Vec<String> {
    files(folder).into_iter().map(|(name, ..)| name).collect()
}

#[test]
fn a_request_waits_and_once_signed_everything_lies_where_it_belongs() {
    let dir = tempfile::tempdir().unwrap();
    let authority = FakeAuthority::start(&dir.path().join("ca"), HOUR, Box::new(Ok));
    let (host, certs) = (host(dir.path()), dir.path().join("etc/certs"));
    let enrol = || enrol(&host, &authority, authority.pin.clone()).unwrap();
    let waits = format!("{:?}", ExitCode::from(EXIT_WAITS));
    assert_eq!((enrol(), enrol()), (waits.clone(), waits));
    let key = files(&certs);
    assert_eq!((names(&certs), key[0].1), (vec!["key.pem".to_owned()], 0o600));
    assert_eq!(fs::metadata(&certs).unwrap().permissions().mode() & 0o7777, 0o700);

    authority.sign("web1");
    assert_eq!(enrol(), format!("{:?}", ExitCode::SUCCESS));
    let enrolled = files(&certs);
    assert_eq!(names(&certs), ["authority", "ca.pem", "cert.pem", "crl.pem", "key.pem"]);
    assert_eq!((&enrolled[4], &fs::read_to_string(certs.join("authority")).unwrap()), (&key[0], &format!("{}\n", authority.address)));
    assert_eq!(enrolled.iter().map(|(_, mode, _)| *mode).collect::<Vec<_>>(), [0o644, 0o644, 0o644, 0o644, 0o600]);
    let trust = crate::check::open_trust(&Config::load(&host).unwrap()).unwrap();
    assert_eq!(trust.now().credentials().role().to_string(), "fleet:minion/web1");

    assert_eq!(enrol(), format!("{:?}", ExitCode::SUCCESS));
    assert_eq!(files(&certs), enrolled, "asked again, nothing is written");
    for lost in ["cert.pem", "ca.pem", "crl.pem", "authority"] {
        fs::remove_file(certs.join(lost)).unwrap();
        enrol();
        assert_eq!(names(&certs).len(), 5, "as after a kill before {lost} was written");
    }
}

#[test]
fn another_fleets_folder_and_a_wrong_fingerprint_are_refused_before_anything_is_sent() {
    let dir = tempfile::tempdir().unwrap();
    let authority = FakeAuthority::start(&dir.path().join("ca"), HOUR, Box::new(Ok));
    let (host, certs) = (host(dir.path()), dir.path().join("etc/certs"));
    let wrong: CaPin = "ab".repeat(32).parse().unwrap();
    let said = enrol(&host, &authority, wrong.clone()).unwrap_err();
    assert!(said.contains(&wrong.to_string()) && said.contains(&authority.pin.to_string()), "{said}");
    assert_eq!(names(&certs), ["key.pem"]);

    Authority::init(&dir.path().join("other"), HOUR).unwrap();
    fs::copy(dir.path().join("other/ca.pem"), certs.join("ca.pem")).unwrap();
    let said = enrol(&host, &authority, authority.pin.clone()).unwrap_err();
    assert!(said.contains("another authority") && said.contains("move the files of"), "{said}");
    assert_eq!(authority.asked(), 0);
}

#[test]
fn a_certificate_that_is_not_ours_is_not_kept() {
    let dir = tempfile::tempdir().unwrap();
    // What an authority gives that is ours and has gone mad: a certificate for somebody else, for another key, of another authority.
    for (role, valid, why) in [
        ("fleet:minion/web2", HOUR, "is one of fleet:minion/web2"),
        ("fleet:overlord/web1", HOUR, "is one of fleet:overlord/web1"),
        ("fleet:minion/web1", HOUR, "is for another key"),
    ] {
        let dir = dir.path().join(role.replace(['/', ':'], "-"));
        fs::create_dir(&dir).unwrap();
        let ca = dir.join("ca");
        let bend = {
            let (ca, role) = (ca.clone(), role.parse::<Role>().unwrap());
            move |_| {
                let issued = Authority::open(&ca).unwrap().issue(std::slice::from_ref(&role), valid).unwrap().remove(0);
                Ok(EnrollReply::Issued(Issued {
                    cert: issued.cert_pem,
                    revocations: common::protocol::certs::Revocations { number: 0, crl: None },
                }))
            }
        };
        let authority = FakeAuthority::start(&ca, HOUR, Box::new(bend));
        let said = enrol(&host(&dir), &authority, authority.pin.clone()).unwrap_err();
        assert!(said.contains(why) && said.contains("nothing of it was kept"), "{said}");
        assert_eq!(names(&dir.join("etc/certs")), ["key.pem"], "{}", authority.dir.display());
    }
}

/// No test waits longer for anything.
const DEADLINE: Duration = Duration::from_secs(60);

#[test]
fn who_waits_asks_again_from_the_first_question_on_until_a_real_refusal() {
    let dir = tempfile::tempdir().unwrap();
    let asked = AtomicUsize::new(0);
    let bend = move |reply| match asked.fetch_add(1, Ordering::Relaxed) {
        0 => Err(Failure::new(ErrorCode::LimitReached, "too many requests wait")),
        1 => Err(Failure::new(ErrorCode::Internal, "the disk is full")),
        2 => Ok(reply),
        _ => Err(Failure::new(ErrorCode::Denied, "somebody else has that name")),
    };
    let authority = FakeAuthority::start(&dir.path().join("ca"), HOUR, Box::new(bend));
    let (host, address) = (host(dir.path()), authority.address.to_string());
    let said = enrol_within(&host, &address, authority.pin.clone(), Some(DEADLINE)).unwrap_err();
    assert!(said.contains("somebody else has that name"), "{said}");
    assert_eq!(authority.asked(), 4);
}

#[test]
fn who_waits_is_let_in_by_an_authority_that_was_not_there_at_first() {
    let dir = tempfile::tempdir().unwrap();
    let ca = dir.path().join("ca");
    let gone = FakeAuthority::start(&ca, HOUR, Box::new(Ok));
    let (pin, address) = (gone.pin.clone(), gone.address);
    drop(gone);
    // Somebody hangs up at the first question; after that, nobody listens for a while.
    let listener = TcpListener::bind(address).unwrap();
    let host = host(dir.path());
    let waiting = thread::spawn({
        let pin = pin.clone();
        move || enrol_within(&host, &address.to_string(), pin, Some(DEADLINE))
    });
    drop(listener.accept().unwrap());
    drop(listener);
    let authority = FakeAuthority::start_at(address, 100, &ca, HOUR, Box::new(Ok));
    until("the request", || authority.waiting() == 1);
    authority.sign("web1");
    assert_eq!(waiting.join().unwrap(), Ok(format!("{:?}", ExitCode::SUCCESS)));
}

#[test]
fn a_wait_for_nobody_ends_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    // The port is taken, and nobody listens there.
    let taken = tokio::net::TcpSocket::new_v4().unwrap();
    taken.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let (address, pin) = (taken.local_addr().unwrap().to_string(), "ab".repeat(32).parse().unwrap());
    let said = enrol_within(&host(dir.path()), &address, pin, Some(Duration::from_secs(1))).unwrap_err();
    assert!(said.contains("cannot reach the authority") && said.contains("1s"), "{said}");
}

#[test]
fn hosts_that_wait_leave_the_authoritys_connections_to_others() {
    let dir = tempfile::tempdir().unwrap();
    let authority = FakeAuthority::start_at("127.0.0.1:0".parse().unwrap(), 1, &dir.path().join("ca"), HOUR, Box::new(Ok));
    let waiting = ["web1", "web2", "web3"].map(|name| {
        fs::create_dir(dir.path().join(name)).unwrap();
        let (host, address, pin) = (named(&dir.path().join(name), name), authority.address.to_string(), authority.pin.clone());
        thread::spawn(move || enrol_within(&host, &address, pin, Some(DEADLINE)))
    });
    until("all requests", || authority.waiting() == 3);
    for name in ["web1", "web2", "web3"] {
        authority.sign(name);
    }
    for waiting in waiting {
        assert_eq!(waiting.join().unwrap(), Ok(format!("{:?}", ExitCode::SUCCESS)));
    }
}

fn until(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}");
        thread::sleep(Duration::from_millis(20));
    }
}
