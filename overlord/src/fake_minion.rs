//! For tests alone: an overlord's home with an authority, and minions that speak the protocol and run nothing.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test may panic")]

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use certs::authority::desk::{Desk, Terms};
use certs::authority::{Authority, write_folder};
use certs::files::{Credentials, write_public, write_secret};
use certs::renewal::replace_cert;
use certs::signature;
use common::identity::Role;
use common::outcome::{ErrorCode, Outcome, Verdict};
use common::protocol::{CallParams, Envelope};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::CertificateDer;

use crate::fleet::Fleet;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// What a fake minion does with a call.
pub(crate) enum Reply {
    Result(Value),
    Error(ErrorCode, &'static str),
    Raw(u16, Vec<u8>),
    Hang,
    Close,
}

/// The reply of a minion that ran the method, with this result.
pub(crate) fn ok(result: Value) -> Reply {
    Reply::Result(json!(Outcome::not_run(Verdict::Ok { result }, Timestamp::UNIX_EPOCH)))
}

/// An overlord's home with an authority, and the minions of its fleet.
pub(crate) struct Lab {
    pub(crate) dir: TempDir,
    authority: Authority,
}

impl Lab {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let certs = dir.path().join("certs");
        let authority = Authority::init(&certs, 10 * DAY).unwrap();
        let lab = Self { dir, authority };
        lab.certify_overlord(Role::Overlord("admin".parse().unwrap()), &lab.authority, DAY);
        lab
    }

    /// Gives the overlord a certificate, perhaps one that it should not have.
    pub(crate) fn certify_overlord(&self, role: Role, authority: &Authority, valid: Duration) {
        let certs = self.dir.path().join("certs");
        for issued in authority.issue(&[role], valid).unwrap() {
            for (name, text) in [("overlord.key", issued.key_pem()), ("overlord.pem", &issued.cert_pem)] {
                let path = certs.join(name);
                let _first = fs::remove_file(&path);
                let write = if name.ends_with("key") { write_secret } else { write_public };
                write(&path, text.as_bytes()).unwrap();
            }
        }
    }

    /// Renews the overlord's certificate: the key stays.
    pub(crate) fn renew_overlord(&self) {
        let certs = self.dir.path().join("certs");
        let [ca, cert, key] = ["ca.pem", "overlord.pem", "overlord.key"].map(|name| certs.join(name));
        let mut desk = Desk::open(&certs, Terms { valid: DAY, crl_valid: DAY, requests_max: 1 }).unwrap();
        let present = Credentials::load(&ca, &cert, &key).unwrap().cert().unwrap().clone();
        let renewed = desk.renew(&[present]).unwrap().pop().unwrap().unwrap();
        replace_cert(&ca, &cert, &key, &renewed.cert_pem).unwrap();
    }

    pub(crate) fn authority(&self) -> &Authority {
        &self.authority
    }

    pub(crate) fn fleet(&self) -> Fleet {
        Fleet::open(self.dir.path()).unwrap()
    }

    /// The fleet, and the warnings that it gives.
    pub(crate) fn fleet_with_warnings(&self) -> (Fleet, std::sync::mpsc::Receiver<String>) {
        let (sender, warnings) = std::sync::mpsc::channel();
        (self.fleet().with_warnings(move |text| drop(sender.send(text.to_owned()))), warnings)
    }

    /// Writes `host` into the roster.
    pub(crate) fn enlist(&self, host: &str, address: &str) {
        let path = self.dir.path().join("hosts.toml");
        let before = fs::read_to_string(&path).unwrap_or_default();
        fs::write(&path, format!("{before}[host.{host}]\naddress = \"{address}\"\n")).unwrap();
    }

    /// Starts a minion that bears the name `certified`, and writes it into the roster as `host`.
    pub(crate) fn minion_as(&self, host: &str, certified: &str, answer: impl Fn(&Envelope) -> Reply + Send + Sync + 'static) -> SocketAddr {
        let folder = self.host_folder(certified);
        let address = serve(&folder, answer);
        self.enlist(host, &address.to_string());
        address
    }

    pub(crate) fn minion(&self, host: &str, answer: impl Fn(&Envelope) -> Reply + Send + Sync + 'static) -> SocketAddr {
        self.minion_as(host, host, answer)
    }

    fn host_folder(&self, name: &str) -> PathBuf {
        let role = Role::Minion(name.parse().unwrap());
        let issued = self.authority.issue(&[role], DAY).unwrap().pop().unwrap();
        write_folder(&self.dir.path().join("issued-to"), self.authority.ca_pem(), None, &issued).unwrap()
    }
}

fn serve(folder: &std::path::Path, answer: impl Fn(&Envelope) -> Reply + Send + Sync + 'static) -> SocketAddr {
    let file = |name: &str| folder.join(name);
    let credentials = Credentials::load(&file("ca.pem"), &file("cert.pem"), &file("key.pem")).unwrap();
    let acceptor = TlsAcceptor::from(certs::tls::server_config(&credentials).unwrap());
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    let answer = Arc::new(answer);
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                let (acceptor, answer) = (acceptor.clone(), answer.clone());
                tokio::spawn(async move {
                    let Ok(tls) = acceptor.accept(tcp).await else { return };
                    let peer = certs::tls::peer(tls.get_ref().1.peer_certificates().unwrap()).unwrap();
                    let service = service_fn(|request| respond(request, peer.cert.clone(), answer.clone()));
                    let _closed = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(tls), service).await;
                });
            }
        });
    });
    address
}

async fn respond(
    request: Request<Incoming>,
    cert: CertificateDer<'static>,
    answer: Arc<impl Fn(&Envelope) -> Reply>,
) -> Result<Response<Full<Bytes>>, Box<dyn std::error::Error + Send + Sync>> {
    let body = request.into_body().collect().await?.to_bytes();
    let call: Value = serde_json::from_slice(&body)?;
    let params: CallParams = serde_json::from_value(call["params"].clone())?;
    signature::verify(&cert, &params.call, &params.signature).expect("each call is signed by who is at the other end");
    let envelope: Envelope = serde_json::from_str(&params.call)?;
    assert_eq!(call["method"], json!(envelope.method));
    let reply = |fields: Value| {
        let mut reply = json!({ "jsonrpc": "2.0", "id": call["id"] });
        reply.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        reply.to_string().into_bytes()
    };
    let (status, body) = match answer(&envelope) {
        Reply::Result(result) => (200, reply(json!({ "result": result }))),
        Reply::Error(code, message) => (200, reply(json!({ "error": { "code": code as i32, "message": message } }))),
        Reply::Raw(status, body) => (status, body),
        Reply::Hang => std::future::pending().await,
        Reply::Close => return Err("closed".into()),
    };
    Ok(Response::builder().status(status).body(Full::from(body))?)
}
