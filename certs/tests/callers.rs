//! Who may call, and that a revocation list which is an attacker's file frees nobody.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, reason = "a test may panic")]

#[path = "support/lab.rs"]
mod lab;
#[path = "support/side.rs"]
mod side;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use certs::crl::StaleCrl;
use jiff::{SignedDuration, Timestamp};
use lab::{Lab, certificate, certificate_in};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, KeyPair, SanType};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use side::{ADMIN, GOOD, Side, overlord, serial};

/// A certificate of the lab's authority as `bend` wants it.
fn bent(lab: &Lab, bend: impl FnOnce(&mut CertificateParams)) -> CertificateDer<'static> {
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(ADMIN.try_into().unwrap())];
    bend(&mut params);
    params.signed_by(&KeyPair::generate().unwrap(), &lab.issuer()).unwrap().der().clone()
}

fn valid(lab: &Lab, from: SignedDuration, until: SignedDuration) -> CertificateDer<'static> {
    let key = KeyPair::generate().unwrap();
    let pem = certificate(&lab.issuer(), &key, ADMIN, Timestamp::now() + from, Timestamp::now() + until);
    CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
}

#[test]
fn an_overlord_of_our_authority_may_call_and_nobody_else() {
    let (lab, other) = (Lab::new(), Lab::new());
    let side = Side::new(&lab);
    let admin = overlord(&lab);
    let peer = side.judge(&admin).unwrap();
    assert_eq!((peer.role, peer.serial, peer.cert), (ADMIN.parse().unwrap(), serial(&admin), admin.clone()));
    let minutes = SignedDuration::from_mins;
    let role = "has not the overlord role";
    let uri = |uri: &str| SanType::URI(uri.try_into().unwrap());
    for (cert, reason) in [
        (valid(&lab, minutes(-20), minutes(-10)), "has expired"),
        (valid(&lab, minutes(10), minutes(20)), "is not valid before"),
        (overlord(&other), "issued by another authority than ours"),
        (certificate_in(&lab.folder("fleet:minion/web1")), role),
        (lab.serving().cert().unwrap().clone(), "is not one of a client"),
        (bent(&lab, |params| params.subject_alt_names = vec![uri("fleet:authority")]), role),
        (bent(&lab, |params| params.subject_alt_names.clear()), role),
        (bent(&lab, |params| params.subject_alt_names.push(uri("fleet:overlord/ops"))), role),
        (bent(&lab, |params| params.subject_alt_names.push(uri("fleet:minion/web1"))), role),
        (bent(&lab, |params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]), "is not one of a client"),
        (lab.ca()[0].clone(), ""),
        (CertificateDer::from(vec![]), ""),
        (CertificateDer::from([admin.as_ref(), &[0]].concat()), ""),
        (CertificateDer::from(vec![0x30; 1 << 20]), "larger than 65536 bytes"),
    ] {
        assert!(side.refusal(&cert).contains(reason), "{reason}: {}", side.refusal(&cert));
    }
    // The time is the caller's of this function.
    let later = Timestamp::now() + SignedDuration::from_hours(2);
    assert!(side.callers.verify(&admin, later).unwrap_err().contains("has expired"));
    assert!(side.callers.verify(&admin, Timestamp::UNIX_EPOCH - minutes(1)).unwrap_err().contains("is not valid before"));
    assert_eq!(side.told(), [""; 0]);
}

#[test]
fn who_is_revoked_is_refused_from_the_next_look_on() {
    let lab = Lab::new();
    let mut side = Side::new(&lab);
    let (admin, ops) = (overlord(&lab), overlord(&lab));
    side.judge(&admin).unwrap();
    side.put_list(&lab, 3, &[&serial(&admin)]);
    side.until("it to be revoked", |side| side.judge(&admin).is_err());
    assert!(side.refusal(&admin).contains("has been revoked"));
    side.judge(&ops).unwrap();
    assert_eq!(side.callers.crl_number(), 3);
    assert_eq!(side.told(), [""; 0]);
}

#[test]
fn a_list_that_is_put_back_deleted_or_damaged_frees_nobody_nor_does_a_restart() {
    let (lab, other) = (Lab::new(), Lab::new());
    let mut side = Side::new(&lab);
    let admin = overlord(&lab);
    let older = lab.list(2, &[], GOOD);
    side.put_list(&lab, 3, &[&serial(&admin)]);
    side.until("it to be revoked", |side| side.judge(&admin).is_err());
    let crl = side.file("crl.pem");
    let forged = other.list(9, &[], GOOD);
    type Mischief<'m> = (&'m str, &'m dyn Fn());
    let mischief: [Mischief<'_>; 7] = [
        ("is an older revocation list (number 2) than the one we go by (3)", &|| fs::write(&crl, &older).unwrap()),
        ("is gone; the revocation list number 3 stays in force", &|| fs::remove_file(&crl).unwrap()),
        ("not a revocation list in PEM form", &|| fs::write(&crl, &older[..100]).unwrap()),
        ("not signed by our authority", &|| fs::write(&crl, &forged).unwrap()),
        ("larger than", &|| fs::write(&crl, vec![b'x'; 9 << 20]).unwrap()),
        ("not a plain file", &|| {
            fs::remove_file(&crl).unwrap();
            mkfifo(&crl, Mode::S_IRWXU).unwrap();
        }),
        ("is a symbolic link", &|| {
            fs::remove_file(&crl).unwrap();
            symlink("/dev/zero", &crl).unwrap();
        }),
    ];
    for (said, play) in mischief {
        play();
        // Told, and told again by the next process; in force, both times.
        side.until_told(said);
        assert!(side.refusal(&admin).contains("has been revoked"), "{said}");
        side.restart();
        assert_eq!(side.callers.crl_number(), 3, "{said}");
        assert!(side.refusal(&admin).contains("has been revoked"), "{said}");
        let kept = side.file("root/crl.pem").display().to_string();
        assert!(side.told().iter().any(|told| told.contains(said) && told.contains(&kept)), "{said}: and where what stays lies");
    }
    side.put_list(&lab, 4, &[]);
    side.until("the newer list", |side| side.callers.crl_number() == 4);
    side.judge(&admin).unwrap();
}

#[test]
fn a_stale_list_and_one_that_cannot_be_read_refuse_everyone_where_they_are_to() {
    let lab = Lab::new();
    let admin = overlord(&lab);
    let stale = lab.list(3, &[], SignedDuration::from_mins(-1));
    for (text, reason) in [(stale.as_str(), "is stale since"), ("no list", "not a revocation list in PEM form")] {
        let put = |dir: &Path| fs::write(dir.join("crl.pem"), text).unwrap();
        Side::with(&lab, StaleCrl::Serve, put).judge(&admin).unwrap();
        let mut side = Side::with(&lab, StaleCrl::Refuse, put);
        assert!(side.refusal(&admin).contains(reason), "{}", side.refusal(&admin));
        side.put_list(&lab, 4, &[]);
        side.until("a list that is good", |side| side.judge(&admin).is_ok());
    }
    // One that never was is none that was taken away.
    Side::with(&lab, StaleCrl::Refuse, |_| ()).judge(&admin).unwrap();
    // What we kept ourselves cannot be read, and there is no other.
    let damaged = |dir: &Path| fs::write(dir.join("root/crl.pem"), "no list").unwrap();
    let mut side = Side::with(&lab, StaleCrl::Refuse, damaged);
    assert!(side.refusal(&admin).contains("root/crl.pem cannot be used"), "{}", side.refusal(&admin));
    side.put_list(&lab, 4, &[]);
    side.until("it to be kept anew", |side| side.judge(&admin).is_ok());
    fs::remove_file(side.file("crl.pem")).unwrap();
    side.restart();
    assert_eq!(side.callers.crl_number(), 4);
}

#[test]
fn a_list_that_cannot_be_kept_is_in_force_and_told_and_kept_once_it_can() {
    let lab = Lab::new();
    let admin = overlord(&lab);
    let mut side = Side::with(&lab, StaleCrl::Serve, |dir| fs::remove_dir(dir.join("root")).unwrap());
    side.put_list(&lab, 3, &[&serial(&admin)]);
    side.until("it to be revoked", |side| side.judge(&admin).is_err());
    assert!(side.told()[0].contains("the revocation list number 3 is in force and cannot be kept"));
    fs::create_dir(side.file("root")).unwrap();
    side.put_list(&lab, 4, &[&serial(&admin)]);
    side.until("it to be kept", |side| side.file("root/crl.pem").exists());
    assert_eq!(fs::metadata(side.file("root/crl.pem")).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(side.told(), [""; 0]);
}

#[test]
fn of_several_authorities_each_may_have_issued_it() {
    let (lab, other, foreign) = (Lab::new(), Lab::new(), Lab::new());
    let both = format!("{}{}", lab.authority.ca_pem(), other.authority.ca_pem());
    let mut side = Side::with(&lab, StaleCrl::Serve, |dir| fs::write(dir.join("ca.pem"), both).unwrap());
    let revoked = overlord(&other);
    for lab in [&lab, &other] {
        side.judge(&overlord(lab)).unwrap();
    }
    assert!(side.judge(&overlord(&foreign)).is_err());
    side.put_list(&other, 3, &[&serial(&revoked)]);
    side.until("it to be revoked", |side| side.judge(&revoked).is_err());
}

/// A certificate that is renewed is another, with another serial number.
#[test]
fn a_renewed_certificate_is_judged_anew() {
    let lab = Lab::new();
    let mut side = Side::new(&lab);
    let folder = lab.folder(ADMIN);
    let before = certificate_in(&folder);
    let renewed = lab.again(&folder, ADMIN, Timestamp::now() - GOOD, Timestamp::now() + GOOD);
    let renewed = CertificateDer::from_pem_slice(renewed.as_bytes()).unwrap();
    side.put_list(&lab, 3, &[&serial(&before)]);
    side.until("it to be revoked", |side| side.judge(&before).is_err());
    side.judge(&renewed).unwrap();
}
