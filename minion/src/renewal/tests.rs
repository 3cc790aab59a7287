//! Through an authority that answers.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::time::Instant;

use certs::authority::{Authority, CLOCK_SKEW, Validity, write_folder};
use jiff::SignedDuration;

use super::*;
use crate::fake_authority::FakeAuthority;

/// No test waits longer for anything.
const DEADLINE: Duration = Duration::from_secs(30);

#[test]
fn a_certificate_is_renewed_in_its_second_half_and_the_list_comes_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let authority = FakeAuthority::start(&dir.path().join("ca"), Duration::from_secs(3600), Box::new(|reply| reply));
    let issued_at = Timestamp::now();
    let validity = Validity { not_before: issued_at - CLOCK_SKEW, not_after: issued_at + SignedDuration::from_secs(12) };
    let ca = Authority::open(&authority.dir).unwrap();
    let issued = ca.issue_within(&["fleet:minion/web1".parse().unwrap()], validity).unwrap().remove(0);
    let certs = write_folder(dir.path(), ca.ca_pem(), None, &issued).unwrap();
    fs::write(certs.join("authority"), format!("{}\n", authority.address)).unwrap();
    let toml = format!("name = \"web1\"\ncerts_dir = {certs:?}\n");
    fs::write(dir.path().join("minion.toml"), toml).unwrap();
    let config = Config::load(&dir.path().join("minion.toml")).unwrap();
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
