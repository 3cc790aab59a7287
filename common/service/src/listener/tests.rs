//! Through TCP, TLS and HTTP to a reception and back, with requests as nobody's client would write them.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test may panic")]

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::sync::Mutex;

use certs::authority::{Authority, write_folder};
use certs::files::Credentials;
use certs::tls::Peer;
use common::identity::Role;
use common::outcome::{ErrorCode, Failure};
use http::{HeaderMap, HeaderValue};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::ServerConfig;

use super::*;
use crate::{Knock, Visitor};

mod room;
mod strangers;

/// No test waits longer for anything.
const DEADLINE: Duration = Duration::from_secs(20);
const REPLY_MAX_BYTES: usize = 1000;

/// A gate that refuses the names that the test puts into it.
struct Strict {
    tls: Arc<ServerConfig>,
    refused: Mutex<HashSet<String>>,
}

impl Gate for Strict {
    fn tls(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.tls)
    }

    fn admits(&self, peer: &Peer) -> Result<(), String> {
        if self.refused.lock().unwrap().contains(peer.role.name()) { Err("it was revoked".to_owned()) } else { Ok(()) }
    }
}

/// Says what it hears: `echo` its parameters, `large` too much; `hang` never answers.
struct Parrot {
    heard: Mutex<Vec<String>>,
    hanging: watch::Sender<usize>,
}

/// A request that hangs, until it is given up.
struct Hanging<'p>(&'p Parrot);

impl Drop for Hanging<'_> {
    fn drop(&mut self) {
        self.0.hanging.send_modify(|hanging| *hanging -= 1);
    }
}

impl Reception for Parrot {
    type Caller = String;
    type Reply = String;

    fn admit(&self, visitor: Visitor) -> Result<String, String> {
        let Some(peer) = visitor.peer() else { return Ok("nobody".to_owned()) };
        assert!(peer.serial.len() > 8 && peer.fingerprint.len() == 64 && !peer.cert.is_empty());
        Ok(peer.role.to_string())
    }

    async fn enter(&self, caller: &String, knock: Knock<'_>) -> Result<String, Failure> {
        self.heard.lock().unwrap().push(format!("{caller} {knock:?}"));
        match knock {
            Knock::Call { method: "echo", params } => Ok(params.to_owned()),
            Knock::Call { method: "large", .. } => Ok("x".repeat(REPLY_MAX_BYTES)),
            Knock::Call { method: "hang", .. } => {
                self.hanging.send_modify(|hanging| *hanging += 1);
                let _until_it_is_given_up = Hanging(self);
                std::future::pending().await
            }
            _ => Err(Failure::new(ErrorCode::InvalidRequest, "not understood")),
        }
    }

    fn reply_max_bytes(&self) -> usize {
        REPLY_MAX_BYTES
    }

    fn reply_too_large(&self) -> Failure {
        Failure::new(ErrorCode::ResultTooLarge, "too large")
    }

    fn mark(&self, headers: &mut HeaderMap) {
        headers.insert("x-parrot", HeaderValue::from_static("yes"));
    }
}

struct Host {
    dir: tempfile::TempDir,
    address: SocketAddr,
    gate: Arc<Strict>,
    parrot: Arc<Parrot>,
    stop: watch::Sender<bool>,
    served: JoinHandle<()>,
}

fn credentials(dir: &Path, role: &str) -> Credentials {
    let role: Role = role.parse().unwrap();
    let authority =
        Authority::open(&dir.join("ca")).unwrap_or_else(|_| Authority::init(&dir.join("ca"), Duration::from_secs(7200)).unwrap());
    let folder = dir.join("certs").join(role.name());
    if !folder.exists() {
        fs::create_dir_all(dir.join("certs")).unwrap();
        let issued = authority.issue(std::slice::from_ref(&role), Duration::from_secs(3600)).unwrap();
        write_folder(&dir.join("certs"), authority.ca_pem(), None, &issued[0]).unwrap();
    }
    Credentials::load(&folder.join("ca.pem"), &folder.join("cert.pem"), &folder.join("key.pem")).unwrap()
}

fn limits() -> Limits {
    Limits {
        body_max_bytes: 1 << 20,
        connections_max: 100,
        handshakes_max: 100,
        handshake_timeout: DEADLINE,
        header_timeout: DEADLINE,
        idle_timeout: DEADLINE,
        shutdown_grace: DEADLINE,
        strangers: None,
    }
}

impl Host {
    async fn start(limits: Limits) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let tls = certs::tls::server_config(&credentials(dir.path(), "fleet:minion/web1")).unwrap();
        Self::start_with(dir, tls, limits).await
    }

    async fn start_with(dir: tempfile::TempDir, tls: Arc<ServerConfig>, limits: Limits) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let gate = Arc::new(Strict { tls, refused: Mutex::default() });
        let parrot = Arc::new(Parrot { heard: Mutex::default(), hanging: watch::Sender::new(0) });
        let (stop, stopped) = watch::channel(false);
        let served = tokio::spawn(serve(listener, gate.clone(), Arc::clone(&parrot), Arc::new(limits), stopped));
        Self { dir, address, gate, parrot, stop, served }
    }

    async fn connect(&self) -> TlsStream<TcpStream> {
        self.connect_as("admin").await.unwrap()
    }

    async fn connect_as(&self, name: &str) -> io::Result<TlsStream<TcpStream>> {
        let tls = certs::tls::client_config(&credentials(self.dir.path(), &format!("fleet:overlord/{name}"))).unwrap();
        let name = certs::tls::server_name(&"web1".parse().unwrap()).unwrap();
        let stream = TcpStream::connect(self.address).await.unwrap();
        TlsConnector::from(tls).connect(name, stream).await
    }

    async fn wait_for_hanging(&self, number: usize) {
        let mut hanging = self.parrot.hanging.subscribe();
        tokio::time::timeout(DEADLINE, hanging.wait_for(|hanging| *hanging == number)).await.unwrap().unwrap();
    }
}

#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    body: Value,
}

fn http(body: &str) -> Vec<u8> {
    let head = format!("POST / HTTP/1.1\r\nhost: web1\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n", body.len());
    (head + body).into_bytes()
}

fn call(method: &str) -> Vec<u8> {
    http(&json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": [1] }).to_string())
}

/// The next answer, or none at the connection's end.
async fn read(stream: &mut TlsStream<TcpStream>) -> Option<Answer> {
    let answer = async {
        let mut bytes = Vec::new();
        while !bytes.ends_with(b"\r\n\r\n") {
            bytes.push(stream.read_u8().await.ok()?);
        }
        let head = String::from_utf8(bytes).unwrap().to_lowercase();
        let length = head.split_once("content-length: ").unwrap().1.split_once('\r').unwrap().0.parse().unwrap();
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await.ok()?;
        Some(Answer { status: head[9..12].parse().unwrap(), head, body: serde_json::from_slice(&body).unwrap_or_default() })
    };
    tokio::time::timeout(DEADLINE, answer).await.unwrap()
}

/// Whether a call on the connection is answered.
async fn is_heard(stream: &mut TlsStream<TcpStream>) -> bool {
    let _may_be_closed = stream.write_all(&call("echo")).await;
    read(stream).await.is_some_and(|answer| answer.status == 200)
}

/// Whether the server ends a connection that has not come as far as TLS.
async fn is_closed(stream: &mut TcpStream) -> bool {
    tokio::time::timeout(DEADLINE, stream.read(&mut [0; 1])).await.unwrap().unwrap_or(0) == 0
}

#[tokio::test]
async fn every_request_enters_and_every_answer_is_marked() {
    let host = Host::start(limits()).await;
    let mut stream = host.connect().await;
    let mut ask = async |bytes: Vec<u8>| {
        stream.write_all(&bytes).await.unwrap();
        let answer = read(&mut stream).await.unwrap();
        assert!(answer.head.contains("x-parrot: yes"), "{answer:?}");
        answer
    };
    assert_eq!(ask(call("echo")).await.body["result"], "[1]");
    assert_eq!(ask(call("large")).await.body["error"]["message"], "too large");
    for refused in ["[]", "not json", "{\"jsonrpc\":\"2.0\",\"method\":\"echo\"}"] {
        assert!(ask(http(refused)).await.body.get("result").is_none());
    }
    let get = b"GET / HTTP/1.1\r\nhost: web1\r\n\r\n".to_vec();
    assert_eq!(ask(get).await.status, 405);
    let heard = host.parrot.heard.lock().unwrap().clone();
    assert_eq!(heard.len(), 6, "{heard:?}");
    assert!(heard.iter().all(|heard| heard.starts_with("fleet:overlord/admin ")), "{heard:?}");
}

#[tokio::test]
async fn who_is_admitted_no_longer_is_cut_in_the_middle_of_a_request_and_others_stay() {
    let host = Host::start(limits()).await;
    let (mut cut, mut idle, mut stays) = (host.connect().await, host.connect().await, host.connect_as("ops").await.unwrap());
    cut.write_all(&call("hang")).await.unwrap();
    stays.write_all(&call("hang")).await.unwrap();
    host.wait_for_hanging(2).await;
    host.gate.refused.lock().unwrap().insert("admin".to_owned());
    assert!(read(&mut cut).await.is_none() && read(&mut idle).await.is_none());
    host.wait_for_hanging(1).await;
    // It came through the handshake, for the TLS configuration knows of nothing yet; and is not heard.
    let heard = host.parrot.heard.lock().unwrap().len();
    let mut again = host.connect().await;
    let _may_fail = again.write_all(&call("echo")).await;
    assert!(read(&mut again).await.is_none());
    assert_eq!(host.parrot.heard.lock().unwrap().len(), heard);
    host.stop.send(true).unwrap();
    drop(stays);
    tokio::time::timeout(DEADLINE, host.served).await.unwrap().unwrap();
}

#[tokio::test]
async fn who_is_admitted_no_longer_is_cut_though_the_server_is_stopping() {
    let host = Host::start(Limits { shutdown_grace: 10 * DEADLINE, ..limits() }).await;
    let mut stream = host.connect().await;
    stream.write_all(&call("hang")).await.unwrap();
    host.wait_for_hanging(1).await;
    host.stop.send(true).unwrap();
    host.gate.refused.lock().unwrap().insert("admin".to_owned());
    assert!(read(&mut stream).await.is_none());
    tokio::time::timeout(DEADLINE, host.served).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_body_beyond_the_limit_is_refused_before_it_is_read() {
    let host = Host::start(Limits { body_max_bytes: 4096, ..limits() }).await;
    let mut stream = host.connect().await;
    let head = b"POST / HTTP/1.1\r\nhost: web1\r\ncontent-type: application/json\r\ncontent-length: 1000000000\r\n\r\n";
    stream.write_all(head).await.unwrap();
    assert_eq!(read(&mut stream).await.unwrap().status, 413);
    let mut stream = host.connect().await;
    let head = b"POST / HTTP/1.1\r\nhost: web1\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n1388\r\n";
    stream.write_all(head).await.unwrap();
    stream.write_all(&[b' '; 5000]).await.unwrap();
    stream.write_all(b"\r\n").await.unwrap();
    assert_eq!(read(&mut stream).await.unwrap().status, 413);
    let heard = host.parrot.heard.lock().unwrap().clone();
    assert!(heard.len() == 2 && heard.iter().all(|heard| heard.contains("larger than limits.body_max_bytes")), "{heard:?}");
    let get = b"GET / HTTP/1.1\r\nhost: web1\r\n\r\n";
    let mut stream = host.connect().await;
    stream.write_all(get).await.unwrap();
    assert_eq!(read(&mut stream).await.unwrap().status, 405);
}

/// Whoever wrote it to its end hears why nothing came of it, and not that the connection broke.
#[tokio::test]
async fn who_says_too_much_is_heard_out_and_told() {
    let host = Host::start(Limits { body_max_bytes: 4096, ..limits() }).await;
    let mut stream = host.connect().await;
    let head = b"POST / HTTP/1.1\r\nhost: web1\r\ncontent-type: application/json\r\ncontent-length: 20000000\r\n\r\n";
    stream.write_all(head).await.unwrap();
    for _ in 0..20 {
        stream.write_all(&[b' '; 1_000_000]).await.unwrap();
    }
    assert_eq!(read(&mut stream).await.unwrap().status, 413);
}

#[tokio::test]
async fn who_keeps_us_waiting_is_cut_off() {
    let host =
        Host::start(Limits { header_timeout: Duration::from_millis(200), idle_timeout: Duration::from_millis(400), ..limits() }).await;
    let mut idle = host.connect().await;
    assert!(read(&mut idle).await.is_none());
    let mut slow_head = host.connect().await;
    slow_head.write_all(b"POST / HTTP/1.1\r\nhost:").await.unwrap();
    assert!(read(&mut slow_head).await.is_none());
    let mut slow_body = host.connect().await;
    slow_body.write_all(b"POST / HTTP/1.1\r\nhost: web1\r\ncontent-type: application/json\r\ncontent-length: 10\r\n\r\n{").await.unwrap();
    assert_eq!(read(&mut slow_body).await.unwrap().status, 408);
}

#[tokio::test]
async fn an_idle_connection_may_stay_longer_than_a_head_may_take() {
    let host = Host::start(Limits { header_timeout: Duration::from_millis(100), ..limits() }).await;
    let mut stream = host.connect().await;
    for _ in 0..2 {
        tokio::time::sleep(Duration::from_millis(400)).await;
        stream.write_all(&call("echo")).await.unwrap();
        assert_eq!(read(&mut stream).await.unwrap().status, 200);
    }
}

#[tokio::test]
async fn a_handshake_that_does_not_come_is_cut_off() {
    let host = Host::start(Limits { handshake_timeout: Duration::from_millis(300), ..limits() }).await;
    let mut silent = TcpStream::connect(host.address).await.unwrap();
    assert!(is_closed(&mut silent).await);
}

#[tokio::test]
async fn told_to_stop_it_stops_though_callers_stay() {
    let host = Host::start(limits()).await;
    let mut stream = host.connect().await;
    stream.write_all(&call("echo")).await.unwrap();
    read(&mut stream).await.unwrap();
    host.stop.send(true).unwrap();
    tokio::time::timeout(DEADLINE, host.served).await.unwrap().unwrap();
    assert!(read(&mut stream).await.is_none());
    assert!(TcpStream::connect(host.address).await.is_err());
}
