//! Trust follows its files: each change holds at the next use, and what cannot be used changes nothing and is told once.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, reason = "a test may panic")]

#[path = "support/lab.rs"]
mod lab;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use certs::crl::{CrlError, StaleCrl};
use certs::files::Credentials;
use certs::renewal::{RenewalError, replace_cert};
use certs::tls;
use certs::trust::{AuthorityTrust, MinionTrust, OverlordTrust, TrustError, TrustFiles};
use jiff::{SignedDuration, Timestamp};
use lab::{Lab, load, shake};
use rcgen::KeyPair;

const WEB1: &str = "fleet:minion/web1";
const GOOD: SignedDuration = SignedDuration::from_mins(50);

/// A minion's folder, what it goes by, and what it was told.
struct Host {
    folder: PathBuf,
    trust: MinionTrust,
    told: Arc<Mutex<Vec<String>>>,
}

impl Host {
    fn new(lab: &Lab) -> Self {
        let folder = lab.folder(WEB1);
        let told = Arc::new(Mutex::new(Vec::new()));
        let telling = told.clone();
        let trouble = move |trouble: &str| telling.lock().unwrap().push(trouble.to_owned());
        let trust = MinionTrust::open(TrustFiles::of_minion(&folder), StaleCrl::Serve, trouble).unwrap();
        Self { folder, trust, told }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn serial(&self) -> String {
        self.trust.refreshed().credentials().serial().to_owned()
    }

    fn told(&self) -> Vec<String> {
        std::mem::take(&mut *self.told.lock().unwrap())
    }

    fn replace(&self, pem: &str) -> Result<(), RenewalError> {
        replace_cert(&self.file("ca.pem"), &self.file("cert.pem"), &self.file("key.pem"), pem)
    }
}

fn in_an_hour() -> Timestamp {
    Timestamp::now() + GOOD
}

fn serial_of(cert_pem: &str, host: &Host) -> String {
    let other = tempfile::tempdir().unwrap();
    let cert = other.path().join("cert.pem");
    fs::write(&cert, cert_pem).unwrap();
    Credentials::load(&host.file("ca.pem"), &cert, &host.file("key.pem")).unwrap().serial().to_owned()
}

#[test]
fn a_renewed_certificate_is_shown_in_the_next_handshake() {
    let lab = Lab::new();
    let host = Host::new(&lab);
    let before = host.serial();
    let renewed = lab.again(&host.folder, WEB1, Timestamp::now(), in_an_hour());
    host.trust.take_cert(&renewed).unwrap();
    let admin = tls::client_config(&lab.credentials("fleet:overlord/admin")).unwrap();
    let shown = shake(host.trust.server(), admin, "web1").asked.unwrap();
    let shown = tls::peer(&shown).unwrap().serial;
    assert_eq!(shown, serial_of(&renewed, &host));
    assert_ne!(shown, before);
    assert_eq!(host.told(), [""; 0]);
}

#[test]
fn whoever_writes_the_files_is_followed_within_a_second() {
    let lab = Lab::new();
    let host = Host::new(&lab);
    let renewed = lab.again(&host.folder, WEB1, Timestamp::now(), in_an_hour());
    fs::write(host.file("cert.pem"), &renewed).unwrap();
    let crl = lab.list(3, &["4101"], GOOD);
    fs::write(host.file("crl.pem"), &crl).unwrap();
    let begun = Instant::now();
    let expected = (serial_of(&renewed, &host), 3);
    while (host.trust.now().credentials().serial().to_owned(), host.trust.now().crl_number()) != expected {
        assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", host.told());
        thread::sleep(Duration::from_millis(20));
    }
    assert!(host.trust.now().crl().unwrap().revokes("4101"));
}

#[test]
fn the_files_are_looked_at_five_times_a_second_and_read_when_they_change() {
    let lab = Lab::new();
    let host = Host::new(&lab);
    thread::sleep(Duration::from_millis(450));
    let before = host.trust.now();
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(450) {
        assert!(Arc::ptr_eq(&before, &host.trust.now()));
    }
    assert!(Arc::ptr_eq(&before, &host.trust.refreshed()));
}

#[test]
fn what_cannot_be_used_changes_nothing_and_is_told_once() {
    let (lab, other) = (Lab::new(), Lab::new());
    let host = Host::new(&lab);
    host.trust.take_crl(&lab.list(5, &["4101"], GOOD)).unwrap();
    let before = host.serial();
    let sound: Vec<_> =
        ["ca.pem", "cert.pem", "key.pem", "crl.pem"].map(|name| (host.file(name), fs::read(host.file(name)).unwrap())).into();
    let (foreign, web2) = (other.folder(WEB1), lab.folder("fleet:minion/web2"));
    let half = |path: &Path| fs::read_to_string(path).unwrap().split_at(300).0.to_owned();
    let damage: Vec<(&str, String, &str)> = vec![
        ("cert.pem", half(&host.file("cert.pem")), "holds no certificate"),
        ("cert.pem", String::new(), "holds no certificate"),
        ("cert.pem", fs::read_to_string(foreign.join("cert.pem")).unwrap(), "was not issued by the authority"),
        ("cert.pem", fs::read_to_string(web2.join("cert.pem")).unwrap(), "does not belong to the certificate"),
        ("key.pem", fs::read_to_string(web2.join("key.pem")).unwrap(), "does not belong to the certificate"),
        ("ca.pem", half(&host.file("ca.pem")), "holds no certificate"),
        ("ca.pem", other.authority.ca_pem().to_owned(), "was not issued by the authority"),
        ("crl.pem", half(&host.file("crl.pem")), "not a revocation list"),
        ("crl.pem", other.list(9, &[], GOOD), "not signed by our authority"),
        ("crl.pem", lab.list(4, &[], GOOD), "older revocation list (number 4) than the one we go by (5)"),
    ];
    for (name, text, words) in damage {
        fs::write(host.file(name), &text).unwrap();
        for _ in 0..3 {
            let trusted = host.trust.refreshed();
            assert_eq!((trusted.credentials().serial(), trusted.crl_number()), (before.as_str(), 5), "{words}");
            assert!(trusted.crl().unwrap().revokes("4101"));
        }
        let told = host.told();
        assert!(told.len() == 1 && told[0].contains(words), "{words}: {told:?}");
        for (path, bytes) in &sound {
            fs::write(path, bytes).unwrap();
        }
        let _ = host.trust.refreshed();
        assert_eq!(host.told(), [""; 0]);
    }
    fs::remove_file(host.file("crl.pem")).unwrap();
    assert_eq!(host.trust.refreshed().crl_number(), 5);
    assert!(host.told()[0].contains("is gone; the revocation list number 5 stays in force"));
}

#[test]
fn another_bearers_certificate_is_not_taken_up_by_a_program_that_runs() {
    let lab = Lab::new();
    let host = Host::new(&lab);
    let before = host.serial();
    let web2 = lab.again(&host.folder, "fleet:minion/web2", Timestamp::now(), in_an_hour());
    fs::write(host.file("cert.pem"), web2).unwrap();
    assert_eq!(host.serial(), before);
    let told = host.told();
    assert!(told[0].contains("fleet:minion/web2") && told[0].contains("restart"), "{told:?}");
}

#[test]
fn a_list_and_a_certificate_do_not_wait_for_each_other() {
    let lab = Lab::new();
    let host = Host::new(&lab);
    let before = host.serial();
    fs::write(host.file("cert.pem"), "junk").unwrap();
    fs::write(host.file("crl.pem"), lab.list(2, &[], GOOD)).unwrap();
    assert_eq!((host.serial(), host.trust.now().crl_number()), (before, 2));
    let renewed = lab.again(&host.folder, WEB1, Timestamp::now(), in_an_hour());
    fs::write(host.file("cert.pem"), &renewed).unwrap();
    fs::write(host.file("crl.pem"), "junk").unwrap();
    assert_eq!((host.serial(), host.trust.now().crl_number()), (serial_of(&renewed, &host), 2));
}

#[test]
fn a_new_authority_has_a_row_of_lists_of_its_own() {
    let (old, new) = (Lab::new(), Lab::new());
    let host = Host::new(&old);
    host.trust.take_crl(&old.list(900, &[], GOOD)).unwrap();
    // Both at first, as it is done.
    fs::write(host.file("ca.pem"), format!("{}{}", new.authority.ca_pem(), old.authority.ca_pem())).unwrap();
    assert_eq!(host.trust.refreshed().crl_number(), 900);
    let moved = new.folder(WEB1);
    for name in ["key.pem", "cert.pem", "ca.pem"] {
        fs::write(host.file(name), fs::read(moved.join(name)).unwrap()).unwrap();
    }
    assert_eq!(host.serial(), load(&moved).serial());
    assert!(host.trust.take_crl(&new.list(1, &["4101"], GOOD)).unwrap());
    assert_eq!(host.trust.now().crl_number(), 1);
}

#[test]
fn a_list_that_is_offered_is_taken_only_if_it_is_newer_and_ours() {
    let (lab, other) = (Lab::new(), Lab::new());
    let host = Host::new(&lab);
    assert!(host.trust.take_crl(&lab.list(5, &[], GOOD)).unwrap());
    assert!(!host.trust.take_crl(&lab.list(5, &["4101"], GOOD)).unwrap());
    assert!(!host.trust.take_crl(&lab.list(4, &["4101"], GOOD)).unwrap());
    assert!(matches!(host.trust.take_crl(&other.list(6, &[], GOOD)), Err(CrlError::Foreign)));
    assert!(matches!(host.trust.take_crl("junk"), Err(CrlError::NotPem)));
    assert_eq!(host.trust.now().crl_number(), 5);
    assert_eq!(host.trust.now().stale_since(), None);
    assert!(host.trust.take_crl(&lab.list(6, &[], -GOOD)).unwrap());
    assert!(host.trust.now().stale_since().unwrap() < Timestamp::now());
}

#[test]
fn at_the_start_everything_must_be_sound() {
    let lab = Lab::new();
    let folder = lab.folder(WEB1);
    let open = || MinionTrust::open(TrustFiles::of_minion(&folder), StaleCrl::Refuse, |_| ());
    open().unwrap();
    fs::write(folder.join("crl.pem"), "junk").unwrap();
    let error = open().unwrap_err();
    assert!(matches!(error, TrustError::Crl(_)) && error.to_string().contains("crl.pem"), "{error}");
    let told = Arc::new(AtomicUsize::new(0));
    let counting = told.clone();
    let tell = move |_: &str| drop(counting.fetch_add(1, Ordering::SeqCst));
    let serving = MinionTrust::open(TrustFiles::of_minion(&folder), StaleCrl::Serve, tell).unwrap();
    assert_eq!((serving.refreshed().crl_number(), told.load(Ordering::SeqCst)), (0, 1), "a host is not left dark, and it is told once");
    assert!(serving.take_crl(&lab.list(1, &[], GOOD)).unwrap());
    assert_eq!(serving.now().crl_number(), 1);
    fs::remove_file(folder.join("crl.pem")).unwrap();
    fs::write(folder.join("cert.pem"), "junk").unwrap();
    assert!(matches!(open(), Err(TrustError::File(_))));
    let files = TrustFiles { key: folder.join("key.pem"), ..TrustFiles::of_overlord(&folder) };
    assert!(OverlordTrust::open(files, StaleCrl::Serve, |_| ()).is_err());
}

#[test]
fn an_overlord_follows_its_files_too() {
    let lab = Lab::new();
    let folder = lab.folder("fleet:overlord/admin");
    fs::rename(folder.join("cert.pem"), folder.join("overlord.pem")).unwrap();
    fs::rename(folder.join("key.pem"), folder.join("overlord.key")).unwrap();
    let trust = OverlordTrust::open(TrustFiles::of_overlord(&folder), StaleCrl::Serve, |trouble| panic!("{trouble}")).unwrap();
    let web1 = lab.credentials(WEB1);
    let server = tls::server_config(&web1).unwrap();
    shake(server.clone(), trust.now().tls().client.clone(), "web1").asked.unwrap();
    trust.take_crl(&lab.list(1, &[web1.serial()], GOOD)).unwrap();
    shake(server, trust.now().tls().client.clone(), "web1").asked.unwrap_err();
    let authority = tls::authority_server_config(&lab.serving()).unwrap();
    shake(authority, trust.now().tls().authority.clone(), tls::AUTHORITY_NAME).asked.unwrap();
}

#[test]
fn credentials_made_in_memory_are_made_anew_when_half_their_life_is_over() {
    let lab = Lab::new();
    let made = Arc::new(AtomicUsize::new(0));
    let (dir, counting) = (lab.dir(), made.clone());
    let ca = dir.join("ca.pem");
    let make = move || {
        counting.fetch_add(1, Ordering::SeqCst);
        let authority = certs::authority::Authority::open(&dir).map_err(|error| error.to_string())?;
        let identity = authority.server_identity(Duration::from_secs(4)).map_err(|error| error.to_string())?;
        Credentials::made(&dir.join("ca.pem"), identity).map_err(|error| error.to_string())
    };
    let crl = lab.dir().join("crl.pem");
    let trust = AuthorityTrust::of_made(ca, crl, StaleCrl::Serve, make, |trouble| panic!("{trouble}")).unwrap();
    // What has just changed is read again once it has settled; from then on time alone is a reason.
    thread::sleep(Duration::from_millis(700));
    let first = trust.now().credentials().serial().to_owned();
    assert_eq!(trust.refreshed().credentials().serial(), first);
    let begun = Instant::now();
    while trust.now().credentials().serial() == first {
        assert!(begun.elapsed() < Duration::from_secs(10));
        thread::sleep(Duration::from_millis(50));
    }
    assert!(trust.now().credentials().not_after() > Timestamp::now());
    assert!(made.load(Ordering::SeqCst) < 10);
}

#[test]
fn a_life_is_counted_from_the_issue() {
    let lab = Lab::new();
    let folder = lab.folder(WEB1);
    let issued: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
    let (from, until) = (issued - SignedDuration::from_mins(5), issued + SignedDuration::from_hours(90 * 24));
    fs::write(folder.join("cert.pem"), lab.again(&folder, WEB1, from, until)).unwrap();
    let web1 = load(&folder);
    assert_eq!((web1.issued_at(), web1.not_after()), (issued, until));
    assert_eq!(web1.renewal_due_at(), issued + SignedDuration::from_hours(45 * 24));
    assert_eq!(web1.overdue_at(), issued + SignedDuration::from_hours(60 * 24));
}

#[test]
fn only_a_certificate_that_fits_takes_the_place_of_the_one_before() {
    let (lab, other) = (Lab::new(), Lab::new());
    let host = Host::new(&lab);
    let before = (fs::read(host.file("cert.pem")).unwrap(), fs::read(host.file("key.pem")).unwrap());
    let now = Timestamp::now();
    let ours = lab.again(&host.folder, WEB1, now, in_an_hour());
    let another_key = lab::certificate(&lab.issuer(), &KeyPair::generate().unwrap(), WEB1, now, in_an_hour());
    let refused = |pem: &str| host.replace(pem).unwrap_err();
    assert!(matches!(refused("junk"), RenewalError::NotPem { .. }));
    assert!(matches!(refused(&format!("{ours}{ours}")), RenewalError::NotPem { .. }));
    assert!(matches!(refused(&format!("{}{ours}", " ".repeat(70_000))), RenewalError::NotPem { .. }));
    assert!(matches!(refused(&other.again(&host.folder, WEB1, now, in_an_hour())), RenewalError::Foreign { .. }));
    assert!(matches!(refused(&lab.again(&host.folder, "fleet:minion/web2", now, in_an_hour())), RenewalError::OtherRole { .. }));
    assert!(matches!(refused(&lab.again(&host.folder, "fleet:overlord/web1", now, in_an_hour())), RenewalError::OtherRole { .. }));
    assert!(matches!(refused(&another_key), RenewalError::OtherKey { .. }));
    let an_hour_ago = now - SignedDuration::from_hours(1);
    assert!(matches!(refused(&lab.again(&host.folder, WEB1, an_hour_ago, in_an_hour())), RenewalError::Older { .. }));
    assert!(matches!(refused(&lab.again(&host.folder, WEB1, now, now)), RenewalError::Older { .. }));
    let after = (fs::read(host.file("cert.pem")).unwrap(), fs::read(host.file("key.pem")).unwrap());
    assert_eq!(after, before);

    host.replace(&ours).unwrap();
    assert_eq!(fs::read_to_string(host.file("cert.pem")).unwrap(), ours);
    assert_eq!(fs::metadata(host.file("cert.pem")).unwrap().permissions().mode() & 0o7777, 0o644);
    assert_eq!(fs::read(host.file("key.pem")).unwrap(), before.1);
    // A shorter life than before is the administrator's wish.
    host.replace(&lab.again(&host.folder, WEB1, now, now + SignedDuration::from_mins(1))).unwrap();
    assert_eq!(fs::read_dir(&host.folder).unwrap().count(), 3, "litter");
}
