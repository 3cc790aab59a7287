//! The authority, and who signs by hand, killed at each of their steps: one certificate in the end, none half written, no request forgotten.

use std::collections::BTreeSet;
use std::fs;

use fleet::{Fleet, Follow, Step};

use super::{WAITS, clean, files, issued, requests, token, unenrolled};

/// What the authority does to files and sockets when it signs, a kind at a time.
const KINDS: [&[&str]; 3] = [
    &["write", "writev", "sendto", "sendmsg"],
    &["fsync", "fdatasync"],
    &["rename", "renameat", "renameat2", "unlink", "unlinkat", "link", "linkat"],
];
/// More steps of one kind than a signing has.
const STEPS_MAX: usize = 80;

/// Each certificate of the authority is whole, and has a number of its own.
fn assert_sound(fleet: &Fleet, at: Step<'_>) {
    let listed = fleet.overlord(["certs", "list", "--output", "json"]).ok().json()["certificates"].clone();
    let serials: Vec<_> = listed.as_array().unwrap().iter().map(|entry| entry["serial"].as_str().unwrap().to_owned()).collect();
    assert_eq!(serials.iter().collect::<BTreeSet<_>>().len(), serials.len(), "{at:?}");
    let whole = files(&fleet.home().join("certs/issued")).into_iter().filter(|path| path.extension().is_some_and(|end| end == "pem"));
    assert_eq!(whole.count(), serials.len(), "{at:?}: a record is damaged");
}

fn serve_killed_at_every_step(kinds: &[&[&str]]) {
    let hosts = 1;
    let fleet = unenrolled(&["web1"]);
    let mut rounds = 0;
    for calls in kinds {
        for number in 1.. {
            assert!(number < STEPS_MAX, "{calls:?}: after {STEPS_MAX} steps it still is killed");
            let at = Step { calls, number };
            let token = token(&fleet, &[]);
            let authority = fleet.serve_certs();
            let point = at.wait_in(authority.pid(), Follow::Children);
            let run = fleet.enroll("web1", authority.address(), ["--token", &token]);
            let struck = point.let_go();
            assert!(struck || run.code() == 0, "{at:?}: {}", run.err());
            drop(authority);
            assert_sound(&fleet, at);
            let authority = fleet.serve_certs();
            let _ = fleet.enroll("web1", authority.address(), ["--token", &token]).ok();
            assert_sound(&fleet, at);
            let good = issued(&fleet, "web1").into_iter().filter(|entry| entry["state"] == "good").count();
            assert_eq!((good, requests(&fleet).len()), (hosts, 0), "{at:?}");
            let used = fleet.enroll("web1", authority.address(), ["--token", &token]);
            assert_eq!(used.code(), 0, "{at:?}: {}", used.err());
            authority.kill9();
            clean(&fleet, "web1");
            fs::remove_dir_all(fleet.minion("web1").certs_dir()).unwrap();
            rounds += usize::from(struck);
            if !struck {
                break;
            }
        }
    }
    assert!(rounds >= kinds.len(), "the fail points did not strike: {rounds}");
    fleet.assert_no_leaks();
}

#[test]
fn an_authority_killed_as_it_writes_signs_once_and_forgets_no_request() {
    serve_killed_at_every_step(&KINDS[..2]);
}

#[test]
fn an_authority_killed_as_it_names_signs_once_and_forgets_no_request() {
    serve_killed_at_every_step(&KINDS[2..3]);
}

#[test]
fn a_signing_by_hand_killed_at_every_step_signs_once_and_forgets_no_request() {
    let fleet = unenrolled(&["web1"]);
    let authority = fleet.serve_certs();
    for calls in &KINDS {
        for number in 1.. {
            assert!(number < STEPS_MAX, "{calls:?}: it still is killed");
            let at = Step { calls, number };
            let _ = fleet.enroll("web1", authority.address(), [""; 0]).expect(WAITS);
            let (run, struck) = fleet.overlord_killed_at(at, ["certs", "sign", "web1"]);
            assert!(struck || run.code() == 0, "{at:?}: {}", run.err());
            assert_sound(&fleet, at);
            let asked_again = fleet.enroll("web1", authority.address(), [""; 0]);
            if asked_again.code() == WAITS {
                let _ = fleet.overlord(["certs", "sign", "web1"]).ok();
                let _ = fleet.enroll("web1", authority.address(), [""; 0]).ok();
            } else {
                assert_eq!(asked_again.code(), 0, "{at:?}: the request is lost: {}", asked_again.err());
            }
            let good = issued(&fleet, "web1").into_iter().filter(|entry| entry["state"] == "good").count();
            assert_eq!((good, requests(&fleet).len()), (1, 0), "{at:?}");
            clean(&fleet, "web1");
            fs::remove_dir_all(fleet.minion("web1").certs_dir()).unwrap();
            if !struck {
                break;
            }
        }
    }
    authority.stop();
    fleet.assert_no_leaks();
}
