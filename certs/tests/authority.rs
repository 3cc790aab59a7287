//! The authority and its files: made once, crash-proof, private, and never issuing the same thing twice.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test may panic")]

use std::collections::BTreeSet;
use std::error::Error;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use certs::authority::desk::{Desk, Terms};
use certs::authority::{Authority, AuthorityError, IssuedEntry, write_folder};
use certs::files::{Credentials, FileError, write_public, write_secret};
use common::identity::Role;

const HOUR: Duration = Duration::from_secs(3600);

fn role(role: &str) -> Role {
    role.parse().unwrap()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

fn load(folder: &Path) -> Result<Credentials, FileError> {
    Credentials::load(&folder.join("ca.pem"), &folder.join("cert.pem"), &folder.join("key.pem"))
}

fn issue_folder(authority: &Authority, out: &Path, name: &str) -> std::path::PathBuf {
    let issued = authority.issue(&[role(name)], HOUR / 2).unwrap();
    write_folder(out, authority.ca_pem(), None, &issued[0]).unwrap()
}

/// What it remembers, by name.
fn listed(dir: &Path) -> Vec<IssuedEntry> {
    let terms = Terms { valid: HOUR, crl_valid: HOUR, requests_max: 1 };
    Desk::open(dir, terms).unwrap().listed().unwrap().into_iter().map(|listed| listed.entry).collect()
}

#[test]
fn secrets_are_private_and_the_rest_is_not() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("a/certs");
    let authority = Authority::init(&dir, HOUR).unwrap();
    let folder = issue_folder(&authority, &home.path().join("out"), "fleet:minion/web1");
    assert_eq!((mode(&dir), mode(&dir.join("ca.key")), mode(&dir.join("ca.pem"))), (0o700, 0o600, 0o644));
    assert_eq!((mode(&folder), mode(&folder.join("key.pem")), mode(&folder.join("cert.pem"))), (0o700, 0o600, 0o644));
    let credentials = load(&folder).unwrap();
    assert_eq!(credentials.role(), &role("fleet:minion/web1"));
    assert!(credentials.not_before() < credentials.not_after());
    assert!(!format!("{credentials:?}").contains("PRIVATE"));
}

#[test]
fn a_key_that_others_can_read_is_refused_with_what_mends_it() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("certs");
    let authority = Authority::init(&dir, HOUR).unwrap();
    let folder = issue_folder(&authority, home.path(), "fleet:minion/web1");
    for bad in [0o640, 0o604, 0o620, 0o666] {
        let key = folder.join("key.pem");
        fs::set_permissions(&key, Permissions::from_mode(bad)).unwrap();
        let message = load(&folder).unwrap_err().to_string();
        assert!(message.contains(&format!("`chmod 600 {}`", key.display())) && message.contains(&format!("{bad:04o}")), "{message}");
        fs::set_permissions(&key, Permissions::from_mode(0o600)).unwrap();
    }
    load(&folder).unwrap();
    fs::set_permissions(dir.join("ca.key"), Permissions::from_mode(0o644)).unwrap();
    assert!(matches!(Authority::open(&dir), Err(AuthorityError::File(FileError::KeyExposed { .. }))));
}

#[test]
fn an_authority_is_made_once_and_nothing_is_overwritten() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("certs");
    let first = Authority::init(&dir, HOUR).unwrap().ca_pem().to_owned();
    assert!(matches!(Authority::init(&dir, HOUR), Err(AuthorityError::Exists { .. })));
    assert_eq!(Authority::open(&dir).unwrap().ca_pem(), first);

    let authority = Authority::open(&dir).unwrap();
    issue_folder(&authority, home.path(), "fleet:minion/web1");
    let again = authority.issue(&[role("fleet:minion/web1")], HOUR / 2).unwrap();
    assert!(matches!(write_folder(home.path(), authority.ca_pem(), None, &again[0]), Err(AuthorityError::FolderExists { .. })));

    let file = home.path().join("file");
    write_secret(&file, b"one").unwrap();
    assert!(matches!(write_secret(&file, b"two"), Err(FileError::Exists { .. })));
    assert!(matches!(write_public(&file, b"two"), Err(FileError::Exists { .. })));
    assert_eq!(fs::read(&file).unwrap(), b"one");
}

#[test]
fn of_many_inits_at_once_one_wins_and_the_authority_is_whole() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("certs");
    let made = std::thread::scope(|scope| {
        let runs: Vec<_> = (0..8).map(|_| scope.spawn(|| Authority::init(&dir, HOUR))).collect();
        runs.into_iter().map(|run| run.join().unwrap()).collect::<Vec<_>>()
    });
    assert_eq!(made.iter().filter(|made| made.is_ok()).count(), 1);
    assert!(made.iter().all(|made| matches!(made, Ok(_) | Err(AuthorityError::Exists { .. }))), "{made:?}");
    Authority::open(&dir).unwrap().issue(&[role("fleet:minion/web1")], HOUR / 2).unwrap();
    assert_eq!(fs::read_dir(home.path()).unwrap().count(), 1, "litter");
}

#[test]
fn an_init_that_crashed_can_be_repeated() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("certs");
    let crashed = home.path().join(".unfinished-authority-crashed");
    fs::create_dir(&crashed).unwrap();
    fs::write(crashed.join("ca.key"), "half a k").unwrap();
    fs::create_dir(&dir).unwrap();
    Authority::init(&dir, HOUR).unwrap();
    assert!(!crashed.exists());
    fs::write(dir.join("issued/.unfinished-x"), "half a c").unwrap();
    assert!(listed(&dir).is_empty());
}

#[test]
fn other_things_in_the_folder_are_left_alone() {
    let home = tempfile::tempdir().unwrap();
    fs::write(home.path().join("precious"), "").unwrap();
    assert!(matches!(Authority::init(home.path(), HOUR), Err(AuthorityError::Occupied { .. })));
    let missing = Authority::open(home.path()).unwrap_err();
    assert!(missing.to_string().contains("`overlord certs init`"), "{missing}");
}

#[test]
fn certificates_issued_in_bulk_keep_their_order_and_are_all_different_and_recorded() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("certs");
    let authority = Authority::init(&dir, HOUR).unwrap();
    let roles: Vec<_> = (0..1000).map(|number| role(&format!("fleet:minion/web{number:04}"))).collect();
    let issued = authority.issue(&roles, HOUR / 2).unwrap();
    assert!(issued.iter().map(|issued| &issued.role).eq(&roles));
    let serials: BTreeSet<_> = issued.iter().map(|issued| issued.serial.clone()).collect();
    let keys: BTreeSet<_> = issued.iter().map(|issued| issued.key_pem()).collect();
    assert_eq!((serials.len(), keys.len()), (1000, 1000));
    let listed = listed(&dir);
    assert!(listed.iter().map(|entry| &entry.role).eq(&roles), "by name");
    assert_eq!(listed.into_iter().map(|entry| entry.serial).collect::<BTreeSet<_>>(), serials);
}

#[test]
fn nothing_outlasts_the_authority_or_the_calendar() {
    let home = tempfile::tempdir().unwrap();
    let authority = Authority::init(&home.path().join("certs"), HOUR).unwrap();
    let web1 = [role("fleet:minion/web1")];
    assert!(matches!(authority.issue(&web1, HOUR * 2), Err(AuthorityError::Outlasts { .. })));
    for endless in [Duration::from_secs(u64::MAX), Duration::from_secs(9000 * 366 * 86400)] {
        assert!(matches!(authority.issue(&web1, endless), Err(AuthorityError::Request { .. })));
        assert!(matches!(Authority::init(&home.path().join("other"), endless), Err(AuthorityError::Request { .. })));
    }
    let digits = authority.issue(&[role("fleet:minion/rack.7")], HOUR / 2).unwrap_err();
    assert!(digits.source().unwrap().to_string().contains("\"rack.7\""), "{digits:?}");
}

#[test]
fn credentials_that_do_not_belong_together_are_refused() {
    let home = tempfile::tempdir().unwrap();
    let authority = Authority::init(&home.path().join("certs"), HOUR).unwrap();
    let other = Authority::init(&home.path().join("other"), HOUR).unwrap();
    let web1 = issue_folder(&authority, home.path(), "fleet:minion/web1");
    let web2 = issue_folder(&authority, home.path(), "fleet:minion/web2");
    let foreign = issue_folder(&other, &home.path().join("foreign"), "fleet:minion/web1");
    let load = |ca: &Path, cert: &Path, key: &Path| Credentials::load(&ca.join("ca.pem"), &cert.join("cert.pem"), &key.join("key.pem"));
    assert!(load(&web2, &web1, &web1).is_ok());
    assert!(matches!(load(&web1, &web1, &web2), Err(FileError::KeyMismatch { .. })));
    assert!(matches!(load(&foreign, &web1, &web1), Err(FileError::ForeignAuthority { .. })));
    assert!(matches!(load(&web1, &forged(&authority, home.path()), &web1), Err(FileError::ForeignAuthority { .. })));
    let not_a_leaf = Credentials::load(&web1.join("ca.pem"), &web1.join("ca.pem"), &web1.join("key.pem"));
    assert!(matches!(not_a_leaf, Err(FileError::Certificate { .. })));
    fs::write(web1.join("cert.pem"), "no certificate").unwrap();
    assert!(matches!(load(&web1, &web1, &web1), Err(FileError::NotPem { what: "certificate", .. })));
    fs::remove_file(web2.join("key.pem")).unwrap();
    assert!(matches!(load(&web2, &web2, &web2), Err(FileError::Read { .. })));
}

/// A folder with a certificate that says our authority issued it, and that another key has signed.
fn forged(authority: &Authority, out: &Path) -> std::path::PathBuf {
    let issuer = rcgen::Issuer::from_ca_cert_pem(authority.ca_pem(), rcgen::KeyPair::generate().unwrap()).unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.subject_alt_names = vec![rcgen::SanType::URI("fleet:minion/web1".try_into().unwrap())];
    let cert = params.signed_by(&rcgen::KeyPair::generate().unwrap(), &issuer).unwrap();
    fs::create_dir(out.join("forged")).unwrap();
    write_public(&out.join("forged/cert.pem"), cert.pem().as_bytes()).unwrap();
    out.join("forged")
}

#[test]
fn a_damaged_authority_says_so() {
    let home = tempfile::tempdir().unwrap();
    let (dir, other) = (home.path().join("certs"), home.path().join("other"));
    Authority::init(&dir, HOUR).unwrap();
    Authority::init(&other, HOUR).unwrap();
    fs::copy(other.join("ca.key"), dir.join("ca.key")).unwrap();
    assert!(matches!(Authority::open(&dir), Err(AuthorityError::Damaged { .. })));
}
