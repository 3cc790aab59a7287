//! Who may call, by files of which some are an attacker's: what they do to them lets nobody in, and keeps nobody out.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, reason = "a test may panic")]

#[path = "support/lab.rs"]
mod lab;

use std::cell::RefCell;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::thread;
use std::time::{Duration, Instant};

use certs::authority::write_folder;
use certs::callers::Callers;
use certs::crl::StaleCrl;
use certs::tls::Peer;
use certs::trust::LOOK_EVERY;
use jiff::{SignedDuration, Timestamp};
use lab::{Lab, certificate, certificate_in};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::stat::Mode;
use nix::unistd::{Uid, chown, getuid, mkfifo};
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, KeyPair, SanType};
use rustls::pki_types::{CertificateDer, pem::PemObject};

const ADMIN: &str = "fleet:overlord/admin";
const GOOD: SignedDuration = SignedDuration::from_mins(50);
/// The longest that a change may take to be seen.
const WITHIN: Duration = Duration::from_secs(5);
/// A user that is neither root nor who runs the tests.
const SOMEBODY: u32 = 65_533;

/// The files, who goes by them, and what was told.
struct Side {
    dir: tempfile::TempDir,
    owner: Option<u32>,
    stale: StaleCrl,
    callers: Callers,
    told: Rc<RefCell<Vec<String>>>,
}

impl Side {
    fn new(lab: &Lab) -> Self {
        Self::with(lab, StaleCrl::Serve, |_| ())
    }

    /// With files that are as `prepare` leaves them before they are read first.
    fn with(lab: &Lab, stale: StaleCrl, prepare: impl FnOnce(&Path)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("root")).unwrap();
        fs::write(dir.path().join("ca.pem"), lab.authority.ca_pem()).unwrap();
        prepare(dir.path());
        let owner = Some(getuid().as_raw());
        let (callers, told) = open(dir.path(), stale, owner);
        Self { dir, owner, stale, callers, told }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The same files read by a new process.
    fn restart(&mut self) {
        (self.callers, self.told) = open(self.dir.path(), self.stale, self.owner);
    }

    /// Puts a file in place as a whole.
    fn put(&self, name: &str, text: &str) {
        fs::write(self.file("put"), text).unwrap();
        fs::rename(self.file("put"), self.file(name)).unwrap();
    }

    fn put_list(&self, lab: &Lab, number: u64, serials: &[&str]) {
        self.put("crl.pem", &lab.list(number, serials, GOOD));
    }

    fn judge(&self, cert: &CertificateDer<'_>) -> Result<Peer, String> {
        self.callers.verify(cert, Timestamp::now())
    }

    /// Why `cert` may not call.
    fn refusal(&self, cert: &CertificateDer<'_>) -> String {
        self.judge(cert).expect_err("it may call")
    }

    fn told(&self) -> Vec<String> {
        std::mem::take(&mut *self.told.borrow_mut())
    }

    /// Refreshes until it is so.
    fn until(&mut self, what: &str, mut is_so: impl FnMut(&mut Self) -> bool) {
        let begun = Instant::now();
        while !is_so(self) {
            assert!(begun.elapsed() < WITHIN, "{what}: {:?}", self.told());
            thread::sleep(Duration::from_millis(20));
            self.callers.refresh();
        }
    }

    fn until_told(&mut self, words: &str) {
        self.until(words, |side| side.told.borrow().iter().any(|told| told.contains(words)));
    }
}

fn open(dir: &Path, stale: StaleCrl, owner: Option<u32>) -> (Callers, Rc<RefCell<Vec<String>>>) {
    let told = Rc::new(RefCell::new(Vec::new()));
    let telling = told.clone();
    let trouble = move |trouble: &str| telling.borrow_mut().push(trouble.to_owned());
    let file = |name: &str| dir.join(name);
    (Callers::open(file("ca.pem"), file("crl.pem"), file("root/crl.pem"), stale, owner, trouble), told)
}

fn overlord(lab: &Lab) -> CertificateDer<'static> {
    certificate_in(&lab.folder(ADMIN))
}

fn serial(cert: &CertificateDer<'_>) -> String {
    certs::tls::peer(std::slice::from_ref(cert)).unwrap().serial
}

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
        assert!(side.told().iter().any(|told| told.contains(said)), "{said}");
    }
    side.put_list(&lab, 4, &[]);
    side.until("the newer list", |side| side.callers.crl_number() == 4);
    side.judge(&admin).unwrap();
}

#[test]
fn what_is_told_is_told_once() {
    let lab = Lab::new();
    let mut side = Side::new(&lab);
    side.put_list(&lab, 3, &[]);
    side.until("the list", |side| side.callers.crl_number() == 3);
    fs::remove_file(side.file("crl.pem")).unwrap();
    side.until_told("is gone");
    // It is read again some times: a file that has changed a moment ago, and once more for each of these.
    for _ in 0..3 {
        fs::write(side.file("ca.pem"), lab.authority.ca_pem()).unwrap();
        thread::sleep(LOOK_EVERY);
        side.callers.refresh();
    }
    assert_eq!(side.told().len(), 1);
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

/// As root an own file is given to somebody else; as another user it is somebody else who is to own it.
fn disown(side: &mut Side, name: &str) {
    if getuid().is_root() {
        let path = side.file(name);
        nix::unistd::fchownat(nix::fcntl::AT_FDCWD, &path, Some(Uid::from_raw(SOMEBODY)), None, nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW)
            .unwrap();
    } else {
        side.owner = Some(SOMEBODY);
        side.restart();
    }
}

#[test]
fn an_authority_that_somebody_else_could_have_put_there_lets_nobody_in() {
    let lab = Lab::new();
    let admin = overlord(&lab);
    for what in ["ca.pem", ""] {
        let mut side = Side::new(&lab);
        side.judge(&admin).unwrap();
        disown(&mut side, what);
        side.until("everyone to be refused", |side| side.judge(&admin).is_err());
        let reason = side.refusal(&admin);
        assert!(reason.contains("who could make anybody a caller") && reason.contains("run `chown -h "), "{reason}");
        assert!(side.told().contains(&reason));
        side.restart();
        assert_eq!(side.refusal(&admin), reason, "from the beginning, too");
        if getuid().is_root() {
            chown(&side.file(what), Some(getuid()), None).unwrap();
            side.until("it to be mended", |side| side.judge(&admin).is_ok());
        }
        side.owner = None;
        side.restart();
        side.judge(&admin).expect("where no owner is named, none is asked for");
    }
}

#[test]
fn a_link_of_somebody_elses_is_not_followed_to_an_authority() {
    let lab = Lab::new();
    let admin = overlord(&lab);
    let mut side = Side::new(&lab);
    fs::rename(side.file("ca.pem"), side.file("other.pem")).unwrap();
    symlink(side.file("other.pem"), side.file("ca.pem")).unwrap();
    side.restart();
    side.judge(&admin).expect("a link of the owner's is followed");
    disown(&mut side, "ca.pem");
    side.until("everyone to be refused", |side| side.judge(&admin).is_err());
    assert!(side.refusal(&admin).contains("run `chown -h "), "{}", side.refusal(&admin));
}

#[test]
fn an_authority_that_others_may_write_lets_nobody_in() {
    let lab = Lab::new();
    let admin = overlord(&lab);
    let mut side = Side::new(&lab);
    let set = |path: &Path, mode: u32| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    let (ca, folder) = (side.file("ca.pem"), side.dir.path().to_owned());
    for (path, bad, good, mends) in [
        (&ca, 0o664, 0o644, format!("run `chmod go-w {}`", ca.display())),
        (&ca, 0o646, 0o600, format!("run `chmod go-w {}`", ca.display())),
        (&folder, 0o770, 0o1770, format!("run `chmod +t {}`", folder.display())),
        (&folder, 0o777, 0o755, format!("run `chmod +t {}`", folder.display())),
    ] {
        set(path, bad);
        side.until("everyone to be refused", |side| side.judge(&admin).is_err());
        assert!(side.refusal(&admin).contains(&mends), "{}", side.refusal(&admin));
        side.restart();
        assert!(side.refusal(&admin).contains(&mends), "from the beginning, too");
        set(path, good);
        side.until("it to be mended", |side| side.judge(&admin).is_ok());
    }
}

#[test]
fn an_authority_that_cannot_be_read_leaves_the_one_before_in_force() {
    let (lab, other) = (Lab::new(), Lab::new());
    let (admin, stranger) = (overlord(&lab), overlord(&other));
    let without = |dir: &Path| fs::remove_file(dir.join("ca.pem")).unwrap();
    let mut side = Side::with(&lab, StaleCrl::Serve, without);
    for text in ["", "no certificate", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
        assert!(side.refusal(&admin).contains("ca.pem"), "{}", side.refusal(&admin));
        side.put("ca.pem", text);
        side.restart();
    }
    assert!(side.refusal(&admin).contains("ca.pem"), "{}", side.refusal(&admin));
    side.put("ca.pem", lab.authority.ca_pem());
    side.until("the authority", |side| side.judge(&admin).is_ok());
    side.put_list(&lab, 7, &[]);
    side.until("its list", |side| side.callers.crl_number() == 7);
    side.told();
    side.put("ca.pem", "no certificate");
    side.until_told("ca.pem holds no certificate");
    side.judge(&admin).unwrap();
    fs::remove_file(side.file("ca.pem")).unwrap();
    side.until_told("reading");
    side.judge(&admin).unwrap();
    // Another authority has a row of lists of its own, whatever is kept.
    side.put("ca.pem", other.authority.ca_pem());
    side.until("the other authority", |side| side.judge(&stranger).is_ok());
    assert!(side.refusal(&admin).contains("another authority than ours"));
    assert_eq!(side.callers.crl_number(), 0);
    side.put_list(&other, 2, &[&serial(&stranger)]);
    side.until("its list", |side| side.judge(&stranger).is_err());
    fs::remove_file(side.file("crl.pem")).unwrap();
    side.restart();
    assert_eq!((side.callers.crl_number(), side.judge(&stranger).is_err()), (2, true));
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

#[test]
fn the_files_are_read_when_they_change_and_no_private_key_ever() {
    let lab = Lab::new();
    let mut side = Side::new(&lab);
    let issued = lab.authority.issue(&["fleet:minion/web1".parse().unwrap()], lab::HOUR / 2).unwrap();
    let folder = write_folder(side.dir.path(), lab.authority.ca_pem(), None, &issued[0]).unwrap();
    fs::copy(folder.join("key.pem"), side.file("key.pem")).unwrap();
    side.put_list(&lab, 3, &[]);
    side.until("the list", |side| side.callers.crl_number() == 3);
    // What has changed a moment ago is read once more.
    thread::sleep(Duration::from_millis(150) + LOOK_EVERY);
    side.callers.refresh();
    let inotify = Inotify::init(InitFlags::IN_NONBLOCK).unwrap();
    for folder in [side.dir.path().to_owned(), side.file("root")] {
        inotify.add_watch(&folder, AddWatchFlags::IN_OPEN).unwrap();
    }
    let opened = || -> Vec<String> {
        let events = inotify.read_events().unwrap_or_default();
        events.into_iter().filter_map(|event| event.name).map(|name| name.to_string_lossy().into_owned()).collect()
    };
    for _ in 0..3 {
        thread::sleep(LOOK_EVERY);
        side.callers.refresh();
        side.judge(&overlord(&lab)).unwrap();
    }
    assert_eq!(opened(), [""; 0]);
    // Looked at no more often than it says, whatever has changed.
    side.put("ca.pem", lab.authority.ca_pem());
    thread::sleep(LOOK_EVERY);
    side.callers.refresh();
    let read = opened();
    assert!(read.contains(&"ca.pem".to_owned()) && !read.contains(&"key.pem".to_owned()), "{read:?}");
    side.put("ca.pem", lab.authority.ca_pem());
    opened();
    let begun = Instant::now();
    side.callers.refresh();
    assert!(opened().is_empty() || begun.elapsed() >= LOOK_EVERY);
}
