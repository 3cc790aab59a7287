//! An authority that answers as a unit test wants; compiled for tests alone.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may panic")]

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use certs::authority::Authority;
use certs::authority::desk::{Asked, Certified, Desk, Enrolled, Terms};
use certs::crl::StaleCrl;
use certs::files::Credentials;
use certs::tls::{CaPin, Peer};
use certs::trust::AuthorityTrust;
use common::identity::MinionName;
use common::outcome::{ErrorCode, Failure};
use common::protocol::certs::{ENROLL, EnrollParams, EnrollReply, Issued, RENEW, REVOCATIONS, Revocations};
use serde_json::Value;
use service::{Knock, Limits, Reception, Visitor, serve};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::watch;

const HOUR: Duration = Duration::from_secs(3600);

/// What it does to a reply before it gives it away.
type Bend = Box<dyn Fn(EnrollReply) -> Result<EnrollReply, Failure> + Send + Sync>;

pub(crate) struct FakeAuthority {
    pub(crate) dir: PathBuf,
    pub(crate) address: SocketAddr,
    pub(crate) pin: CaPin,
    office: Arc<Office>,
    /// Dropped, it serves no more.
    _serving: (Runtime, watch::Sender<bool>),
}

struct Office {
    dir: PathBuf,
    desk: Mutex<Desk>,
    bend: Bend,
    asked: AtomicUsize,
}

impl FakeAuthority {
    /// One whose certificates are valid for `valid`, in `dir`.
    pub(crate) fn start(dir: &Path, valid: Duration, bend: Bend) -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap(), 100, dir, valid, bend)
    }

    /// One that listens at `at`, for so many at once.
    pub(crate) fn start_at(at: SocketAddr, connections_max: usize, dir: &Path, valid: Duration, bend: Bend) -> Self {
        let authority = if dir.exists() { Authority::open(dir).unwrap() } else { Authority::init(dir, 24 * HOUR).unwrap() };
        let ca = dir.join("ca.pem");
        let pin = certs::enrolled::known_authorities(&certs::trust::TrustFiles::of_minion(dir)).unwrap().remove(0);
        let make = {
            let ca = ca.clone();
            move || Credentials::made(&ca, authority.server_identity(HOUR).unwrap()).map_err(|error| error.to_string())
        };
        let trust = AuthorityTrust::of_made(ca, dir.join("crl.pem"), StaleCrl::Serve, make, |_| ()).unwrap();
        let desk = Mutex::new(Desk::open(dir, Terms { valid, crl_valid: HOUR, requests_max: 10 }).unwrap());
        let office = Arc::new(Office { dir: dir.to_owned(), desk, bend, asked: AtomicUsize::new(0) });
        let limits = Limits {
            body_max_bytes: 1 << 20,
            connections_max,
            handshakes_max: connections_max,
            handshake_timeout: HOUR,
            header_timeout: HOUR,
            idle_timeout: HOUR,
            shutdown_grace: Duration::from_secs(1),
            strangers: None,
        };
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(TcpListener::bind(at)).unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = watch::channel(false);
        runtime.spawn(serve(listener, Arc::new(trust), Arc::clone(&office), Arc::new(limits), stopped));
        Self { dir: dir.to_owned(), address, pin, office, _serving: (runtime, stop) }
    }

    pub(crate) fn sign(&self, name: &str) {
        self.office.desk.lock().unwrap().sign(Some(&[name.parse::<MinionName>().unwrap()])).unwrap();
    }

    pub(crate) fn revoke(&self, serial: &str) {
        self.office.desk.lock().unwrap().revoke(&[serial.to_owned()], None).unwrap();
    }

    /// How many requests wait.
    pub(crate) fn waiting(&self) -> usize {
        fs::read_dir(self.dir.join("requests")).map_or(0, Iterator::count)
    }

    /// How many questions it was asked.
    pub(crate) fn asked(&self) -> usize {
        self.office.asked.load(Ordering::Relaxed)
    }
}

impl Office {
    fn enroll(&self, params: EnrollParams) -> Result<EnrollReply, Failure> {
        let EnrollParams { name, csr, token } = params;
        let mut desk = self.desk.lock().unwrap();
        let enrolled = desk.enroll(&[Asked { name, csr, token, from: "a test".to_owned() }]).unwrap().remove(0);
        let reply = match enrolled.map_err(|refused| Failure::new(ErrorCode::Denied, refused.to_string()))? {
            Enrolled::Issued(certified) => EnrollReply::Issued(self.issued(&desk, certified)),
            Enrolled::Waiting { key, since } => EnrollReply::Waiting { key, since },
            Enrolled::Rejected { at } => EnrollReply::Rejected { at },
        };
        (self.bend)(reply)
    }

    fn renew(&self, peer: Option<&Peer>) -> Result<Issued, Failure> {
        let mut desk = self.desk.lock().unwrap();
        let renewed = desk.renew(&[peer.expect("a peer").cert.clone()]).unwrap().remove(0);
        let certified = renewed.map_err(|refused| Failure::new(ErrorCode::Denied, refused.to_string()))?;
        Ok(self.issued(&desk, certified))
    }

    fn issued(&self, desk: &Desk, certified: Certified) -> Issued {
        Issued { cert: certified.cert_pem, revocations: self.revocations(desk) }
    }

    fn revocations(&self, desk: &Desk) -> Revocations {
        let number = desk.signed_list().unwrap().map_or(0, |list| list.number());
        Revocations { number, crl: fs::read_to_string(self.dir.join("crl.pem")).ok() }
    }
}

impl Reception for Office {
    type Caller = Option<Peer>;
    type Reply = Value;

    fn admit(&self, visitor: Visitor) -> Result<Self::Caller, String> {
        Ok(visitor.peer().cloned())
    }

    async fn enter(&self, caller: &Self::Caller, knock: Knock<'_>) -> Result<Value, Failure> {
        let Knock::Call { method, params } = knock else { panic!("{knock:?}") };
        self.asked.fetch_add(1, Ordering::Relaxed);
        let reply = match method {
            ENROLL => serde_json::to_value(self.enroll(serde_json::from_str(params).unwrap())?),
            RENEW => serde_json::to_value(self.renew(caller.as_ref())?),
            REVOCATIONS => serde_json::to_value(self.revocations(&self.desk.lock().unwrap())),
            _ => panic!("{method}"),
        };
        Ok(reply.unwrap())
    }

    fn reply_max_bytes(&self) -> usize {
        1 << 20
    }

    fn reply_too_large(&self) -> Failure {
        Failure::new(ErrorCode::ResultTooLarge, "too large")
    }
}
