//! Through an authority that answers.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::path::Path;
use std::time::Instant;

use certs::authority::{Authority, CLOCK_SKEW, Issued, Validity, write_folder};
use jiff::SignedDuration;

use super::*;
use crate::fake_authority::FakeAuthority;

/// No test waits longer for anything.
const DEADLINE: Duration = Duration::from_secs(30);

/// A host of `authority`, whose address stands in its minion.toml.
fn host(dir: &Path, authority: &FakeAuthority, validity: Validity) -> (Issued, Config) {
    let ca = Authority::open(&authority.dir).unwrap();
    let issued = ca.issue_within(&["fleet:minion/web1".parse().unwrap()], validity).unwrap().remove(0);
    let certs = write_folder(dir, ca.ca_pem(), None, &issued).unwrap();
    let toml = format!("name = \"web1\"\ncerts_dir = {certs:?}\nauthority = \"{}\"\n", authority.address);
    fs::write(dir.join("minion.toml"), toml).unwrap();
    (issued, Config::load(&dir.join("minion.toml")).unwrap())
}

#[test]
fn a_certificate_is_renewed_in_its_second_half_and_the_list_comes_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let authority = FakeAuthority::start(&dir.path().join("ca"), Duration::from_secs(3600), Box::new(Ok));
    let issued_at = Timestamp::now();
    let validity = Validity { not_before: issued_at - CLOCK_SKEW, not_after: issued_at + SignedDuration::from_secs(12) };
    let (issued, config) = host(dir.path(), &authority, validity);
    let certs = config.certs_dir.clone();
    let trust = Arc::new(crate::check::open_trust(&config).unwrap());
    let key = fs::read(certs.join("key.pem")).unwrap();

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let tending = tokio::spawn(tend(Arc::clone(&trust), config));
        let until = Instant::now() + DEADLINE;
        while trust.now().credentials().serial() == issued.serial || trust.now().crl_number() == 0 {
            assert!(Instant::now() < until && !tending.is_finished());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let renewed_after = Timestamp::now().duration_since(issued_at);
    assert!(renewed_after >= SignedDuration::from_secs(5) && renewed_after < SignedDuration::from_secs(12), "{renewed_after}");
    let trusted = trust.now();
    assert!(trusted.credentials().not_after() > validity.not_after && trusted.crl_number() > 0);
    assert_eq!(fs::read(certs.join("key.pem")).unwrap(), key);
}

#[test]
fn a_host_whose_certificate_is_refused_still_gets_the_list() {
    let now = Timestamp::now();
    let expired = Validity { not_before: now - SignedDuration::from_hours(2), not_after: now - SignedDuration::from_hours(1) };
    let good = Validity { not_before: now - CLOCK_SKEW, not_after: now + SignedDuration::from_hours(1) };
    for (validity, is_revoked) in [(expired, false), (good, true)] {
        let dir = tempfile::tempdir().unwrap();
        let authority = FakeAuthority::start(&dir.path().join("ca"), Duration::from_secs(3600), Box::new(Ok));
        let (issued, config) = host(dir.path(), &authority, validity);
        let ca = Authority::open(&authority.dir).unwrap();
        let other = ca.issue_within(&["fleet:minion/web2".parse().unwrap()], good).unwrap().remove(0);
        authority.revoke(if is_revoked { &issued.serial } else { &other.serial });
        let trust = Arc::new(crate::check::open_trust(&config).unwrap());
        let mut renewal = Renewal::new(Arc::clone(&trust), config);
        renewal.list_at = now;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(renewal.tend_once());
        assert!(trust.now().crl_number() > 0, "it is revoked: {is_revoked}");
    }
}

#[test]
fn a_renewed_certificate_that_cannot_be_written_is_a_warning_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let authority = FakeAuthority::start(&dir.path().join("ca"), Duration::from_secs(3600), Box::new(Ok));
    let now = Timestamp::now();
    // More than half its life is over, and less than two thirds.
    let validity =
        Validity { not_before: now - CLOCK_SKEW - SignedDuration::from_mins(36), not_after: now + SignedDuration::from_mins(24) };
    let (_, config) = host(dir.path(), &authority, validity);
    let certs = config.certs_dir.clone();
    let trust = Arc::new(crate::check::open_trust(&config).unwrap());
    let mut renewal = Renewal::new(trust, config);
    // Root can write everywhere, but not where there is nothing.
    fs::rename(&certs, dir.path().join("away")).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(renewal.tend_once());
    let (grade, text) = renewal.certificate.told().unwrap();
    assert_eq!(grade, Grade::Warning, "{text}");
    assert!(text.contains(certs.to_str().unwrap()) && text.contains("ReadWritePaths"), "{text}");
}
