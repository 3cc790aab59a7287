//! Revocation lists: which are read, which are refused, and that a newer one is never followed by an older.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, reason = "a test may panic")]

#[path = "support/lab.rs"]
mod lab;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use certs::authority::desk::{Desk, Terms};
use certs::crl::{Crl, CrlError};
use common::protocol::certs::REVOCATIONS_MAX_BYTES;
use jiff::{SignedDuration, Timestamp};
use lab::Lab;
use rcgen::SerialNumber;

const GOOD: SignedDuration = SignedDuration::from_hours(1);

fn number_in(path: &Path, lab: &Lab) -> u64 {
    Crl::load(path, &lab.ca()).unwrap().unwrap().number()
}

#[test]
fn a_list_of_the_desk_is_read() {
    let lab = Lab::new();
    let serial = lab.authority.issue(&["fleet:minion/web1".parse().unwrap()], lab::HOUR / 2).unwrap().remove(0).serial;
    let terms = Terms { valid: lab::HOUR / 2, crl_valid: Duration::from_secs(60), requests_max: 10 };
    let mut desk = Desk::open(&lab.dir(), terms).unwrap();
    desk.revoke(&["web1".to_owned()], None).unwrap();
    let crl = Crl::load(&lab.dir().join("crl.pem"), &lab.ca()).unwrap().unwrap();
    let signed = desk.signed_list().unwrap().unwrap();
    assert_eq!((crl.pem(), crl.count()), (signed.pem(), 1));
    assert!(crl.revokes(&serial) && !crl.revokes("4102") && !crl.is_stale(Timestamp::now()));
}

#[test]
fn what_our_authority_has_not_signed_is_no_list() {
    let (lab, other) = (Lab::new(), Lab::new());
    let list = lab.list(7, &["4101", "4102"], GOOD);
    let crl = Crl::parse(&list, &[other.ca(), lab.ca()].concat()).unwrap();
    assert_eq!((crl.number(), crl.count(), crl.revokes("4101"), crl.revokes("4103")), (7, 2, true, false));
    assert!(matches!(Crl::parse(&list, &other.ca()), Err(CrlError::Foreign)));
    assert!(matches!(Crl::parse(&list, &[]), Err(CrlError::Foreign)));
    // A leaf of our authority is none, whatever it signs.
    let web1 = vec![lab::certificate_in(&lab.folder("fleet:minion/web1"))];
    assert!(matches!(Crl::parse(&list, &web1), Err(CrlError::Foreign)));
    // Any flipped bit is noticed.
    let middle: Vec<_> = list.lines().collect();
    for line in 1..middle.len() - 1 {
        let mut lines: Vec<String> = middle.iter().map(ToString::to_string).collect();
        lines[line] = lines[line].chars().enumerate().map(|(at, c)| if at == 9 { if c == 'A' { 'B' } else { 'A' } } else { c }).collect();
        assert!(lines[line] == middle[line] || Crl::parse(&lines.join("\n"), &lab.ca()).is_err(), "line {line}");
    }
}

#[test]
fn nothing_travels_along_with_a_list() {
    let lab = Lab::new();
    let list = lab.list(7, &[], GOOD);
    for bad in [
        String::new(),
        "no list".to_owned(),
        lab.authority.ca_pem().to_owned(),
        format!("{list}{list}"),
        format!("{list}something"),
        format!("something\n{list}"),
        list.replace("-----END X509 CRL-----", ""),
    ] {
        assert!(matches!(Crl::parse(&bad, &lab.ca()), Err(CrlError::NotPem)), "{bad}");
    }
    assert!(matches!(Crl::parse(&"x".repeat(REVOCATIONS_MAX_BYTES + 1), &lab.ca()), Err(CrlError::TooLarge)));
    assert_eq!(Crl::parse(&format!("\n{list}\n\n"), &lab.ca()).unwrap().pem(), list.trim());
}

#[test]
fn a_number_has_64_bits() {
    let lab = Lab::new();
    let largest = lab::list(&lab.issuer(), &SerialNumber::from(u64::MAX), &[], GOOD);
    assert_eq!(Crl::parse(&largest, &lab.ca()).unwrap().number(), u64::MAX);
    let too_large = lab::list(&lab.issuer(), &SerialNumber::from_slice(&[1, 0, 0, 0, 0, 0, 0, 0, 0]), &[], GOOD);
    assert!(matches!(Crl::parse(&too_large, &lab.ca()), Err(CrlError::Form(_))));
}

#[test]
fn an_older_list_never_takes_the_place_of_a_newer() {
    let (lab, other) = (Lab::new(), Lab::new());
    let path = lab.home.path().join("crl.pem");
    assert!(Crl::load(&path, &lab.ca()).unwrap().is_none());
    assert!(lab.crl(5, &[]).install(&path, &lab.ca()).unwrap());
    for older in [5, 4] {
        assert!(!lab.crl(older, &[]).install(&path, &lab.ca()).unwrap());
    }
    assert_eq!(number_in(&path, &lab), 5);
    assert!(lab.crl(6, &[]).install(&path, &lab.ca()).unwrap());
    assert_eq!((number_in(&path, &lab), fs::metadata(&path).unwrap().permissions().mode() & 0o7777), (6, 0o644));
    // What is none of our authority's lists is in nobody's way.
    for junk in ["junk".to_owned(), other.list(u64::MAX, &[], GOOD)] {
        fs::write(&path, &junk).unwrap();
        let unusable = Crl::load(&path, &lab.ca()).unwrap_err().to_string();
        assert!(unusable.contains(&path.display().to_string()) && unusable.contains("delete it"), "{unusable}");
        assert!(lab.crl(1, &[]).install(&path, &lab.ca()).unwrap());
    }
}

#[test]
fn of_many_writers_the_newest_list_stays() {
    let lab = Lab::new();
    let path = lab.home.path().join("crl.pem");
    let lists: Vec<_> = (1..=24).map(|number| lab.crl(number * 7 % 25, &[])).collect();
    std::thread::scope(|scope| {
        for list in &lists {
            scope.spawn(|| list.install(&path, &lab.ca()).unwrap());
        }
        for _ in 0..50 {
            // Whole at any moment.
            let _ = Crl::load(&path, &lab.ca()).unwrap();
        }
    });
    assert_eq!(number_in(&path, &lab), 24);
    let litter = fs::read_dir(lab.home.path()).unwrap().filter(|entry| entry.as_ref().unwrap().file_name() != "certs").count();
    assert_eq!(litter, 1);
}
