//! Callers in a folder of their own, what was told of its files, and mischief with them.
#![allow(dead_code, unreachable_pub, reason = "it is a part of several test binaries, each of which uses its share")]

use std::cell::RefCell;
use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::thread;
use std::time::{Duration, Instant};

use certs::callers::Callers;
use certs::crl::StaleCrl;
use certs::tls::Peer;
use jiff::{SignedDuration, Timestamp};
use nix::unistd::getuid;
use rustls::pki_types::CertificateDer;

use crate::lab::{Lab, certificate_in};

pub const ADMIN: &str = "fleet:overlord/admin";
pub const GOOD: SignedDuration = SignedDuration::from_mins(50);
/// The longest that a change may take to be seen.
const WITHIN: Duration = Duration::from_secs(5);

/// The files, who goes by them, and what was told.
pub struct Side {
    pub dir: tempfile::TempDir,
    pub owner: Option<u32>,
    pub stale: StaleCrl,
    pub callers: Callers,
    pub told: Rc<RefCell<Vec<String>>>,
}

impl Side {
    pub fn new(lab: &Lab) -> Self {
        Self::with(lab, StaleCrl::Serve, |_| ())
    }

    /// With files that are as `prepare` leaves them before they are read first.
    pub fn with(lab: &Lab, stale: StaleCrl, prepare: impl FnOnce(&Path)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("root")).unwrap();
        fs::write(dir.path().join("ca.pem"), lab.authority.ca_pem()).unwrap();
        prepare(dir.path());
        let owner = Some(getuid().as_raw());
        let (callers, told) = open(dir.path(), stale, owner);
        Self { dir, owner, stale, callers, told }
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The same files read by a new process.
    pub fn restart(&mut self) {
        (self.callers, self.told) = open(self.dir.path(), self.stale, self.owner);
    }

    /// Puts a file in place as a whole.
    pub fn put(&self, name: &str, text: &str) {
        fs::write(self.file("put"), text).unwrap();
        fs::rename(self.file("put"), self.file(name)).unwrap();
    }

    pub fn put_list(&self, lab: &Lab, number: u64, serials: &[&str]) {
        self.put("crl.pem", &lab.list(number, serials, GOOD));
    }

    pub fn judge(&self, cert: &CertificateDer<'_>) -> Result<Peer, String> {
        self.callers.verify(cert, Timestamp::now())
    }

    /// Why `cert` may not call.
    pub fn refusal(&self, cert: &CertificateDer<'_>) -> String {
        self.judge(cert).expect_err("it may call")
    }

    pub fn told(&self) -> Vec<String> {
        std::mem::take(&mut *self.told.borrow_mut())
    }

    /// Refreshes until it is so.
    pub fn until(&mut self, what: &str, mut is_so: impl FnMut(&mut Self) -> bool) {
        let begun = Instant::now();
        while !is_so(self) {
            assert!(begun.elapsed() < WITHIN, "{what}: {:?}", self.told());
            thread::sleep(Duration::from_millis(20));
            self.callers.refresh();
        }
    }

    pub fn until_told(&mut self, words: &str) {
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

pub fn overlord(lab: &Lab) -> CertificateDer<'static> {
    certificate_in(&lab.folder(ADMIN))
}

pub fn serial(cert: &CertificateDer<'_>) -> String {
    certs::tls::peer(std::slice::from_ref(cert)).unwrap().serial
}
