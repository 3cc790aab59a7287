//! Through TLS and HTTP to the door and back, with requests as nobody's client would write them. No spawner: nothing is run here.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test may panic")]

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use certs::authority::{Authority, write_folder};
use certs::files::Credentials;
use common::identity::Role;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use certs::crl::StaleCrl;
use certs::trust::{MinionTrust, TrustFiles};
use service::audit::Audit;
use service::serve;

use super::{Door, Parts};
use crate::acl::Acl;
use crate::config::Config;
use crate::jobs::Jobs;
use crate::modules::Registry;
use crate::spawner::Origin;

/// No test waits longer for anything.
const DEADLINE: Duration = Duration::from_secs(20);
const CALL_ID: &str = "54k2-9xqd-4fz1";

struct Host {
    dir: tempfile::TempDir,
    address: std::net::SocketAddr,
    /// Dropped, it ends the server.
    _stop: watch::Sender<bool>,
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

impl Host {
    async fn start(limits: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("acl")).unwrap();
        fs::write(dir.path().join("acl/a.toml"), "[[allow]]\ncaller = \"admin\"\nmethods = [\"test.*\", \"system.*\"]\n").unwrap();
        let text = format!("name = \"web1\"\nstate_dir = \"state\"\nacl_dir = \"acl\"\n[limits]\n{limits}\n");
        fs::write(dir.path().join("minion.toml"), text).unwrap();
        let config = Config::load(&dir.path().join("minion.toml")).unwrap();
        // As its spawner, which these tests do without, would have made it.
        fs::create_dir_all(config.spool_dir()).unwrap();
        let jobs = Arc::new(Jobs::open(&config, Origin::Unit).unwrap());
        let acl = Arc::new(Acl::open(&config.acl_dir));
        let audit = Arc::new(Audit::open(&config.audit_log(), config.audit).unwrap());
        credentials(dir.path(), "fleet:minion/web1");
        let files = TrustFiles::of_minion(&dir.path().join("certs/web1"));
        let trust = Arc::new(MinionTrust::open(files, StaleCrl::Serve, |_| ()).unwrap());
        let parts = Parts { acl, audit, registry: Arc::new(Registry::builtin()), jobs, trust: Arc::clone(&trust) };
        let door = Door::new(config.name.clone(), parts, &config.limits);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (_stop, stopped) = watch::channel(false);
        tokio::spawn(serve(listener, trust, Arc::new(door), Arc::new(config.limits.listener()), stopped));
        Self { dir, address, _stop }
    }

    async fn connect(&self) -> TlsStream<TcpStream> {
        let tls = certs::tls::client_config(&credentials(self.dir.path(), "fleet:overlord/admin")).unwrap();
        let name = certs::tls::server_name(&"web1".parse().unwrap()).unwrap();
        let stream = TcpStream::connect(self.address).await.unwrap();
        TlsConnector::from(tls).connect(name, stream).await.unwrap()
    }

    fn audited(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.dir.path().join("state/audit.log")).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// The request, signed by the caller if it is a call.
    fn signed(&self, body: &str) -> String {
        let mut request: Value = serde_json::from_str(body).unwrap_or_default();
        let Some(call) = request["params"]["call"].as_str().map(str::to_owned) else { return body.to_owned() };
        let admin = credentials(self.dir.path(), "fleet:overlord/admin");
        request["params"]["signature"] = json!(certs::signature::sign(&admin, &call).unwrap());
        request.to_string()
    }

    /// The answer to one body on a connection of its own.
    async fn post(&self, body: &str) -> Answer {
        let mut stream = self.connect().await;
        stream.write_all(&http(&self.signed(body))).await.unwrap();
        read(&mut stream).await.unwrap()
    }

    async fn error_of(&self, body: &str) -> i64 {
        let answer = self.post(body).await;
        answer.body["error"]["code"].as_i64().unwrap_or_else(|| panic!("{answer:?}"))
    }
}

#[derive(Debug)]
struct Answer {
    status: u16,
    body: Value,
}

fn http(body: &str) -> Vec<u8> {
    let head = format!("POST / HTTP/1.1\r\nhost: web1\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n", body.len());
    (head + body).into_bytes()
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
        Some(Answer { status: head[9..12].parse().unwrap(), body: serde_json::from_slice(&body).unwrap_or_default() })
    };
    tokio::time::timeout(DEADLINE, answer).await.unwrap()
}

fn envelope(method: &str, args: &Value) -> Value {
    let start_before = Timestamp::now() + Duration::from_secs(60);
    json!({
        "call_id": CALL_ID, "caller": "admin", "audience": ["web1"], "method": method, "args": { "json": args }, "start_before": start_before,
    })
}

fn request(envelope: &Value) -> Value {
    json!({ "jsonrpc": "2.0", "id": 1, "method": envelope["method"], "params": { "call": envelope.to_string(), "signature": "" } })
}

fn call(method: &str, args: &Value) -> String {
    request(&envelope(method, args)).to_string()
}

/// A call with a field of the envelope changed.
fn changed(field: &str, value: Value) -> String {
    let mut envelope = envelope("test.ping", &json!(null));
    envelope[field] = value;
    request(&envelope).to_string()
}

#[tokio::test]
async fn calls_are_answered_one_after_the_other_on_one_connection() {
    let host = Host::start("").await;
    let mut stream = host.connect().await;
    for _ in 0..3 {
        stream.write_all(&http(&host.signed(&call("test.ping", &json!([]))))).await.unwrap();
        let answer = read(&mut stream).await.unwrap();
        assert_eq!((answer.status, &answer.body["result"]["state"], &answer.body["result"]["result"]), (200, &json!("ok"), &json!("pong")));
    }
    let lines = host.audited();
    assert_eq!((lines.len(), &lines[0]["decision"], &lines[0]["rule"]), (3, &json!("allow"), &json!("a.toml:1")));
    assert_eq!((&lines[0]["caller"], lines[0]["fingerprint"].as_str().unwrap().len()), (&json!("admin"), 64));
}

#[tokio::test]
async fn what_is_not_one_call_with_an_id_is_refused_audited_and_not_run() {
    let host = Host::start("").await;
    let whole = request(&envelope("test.ping", &json!([])));
    let with_id = |id: Value| {
        let mut request = whole.clone();
        request["id"] = id;
        request.to_string()
    };
    let mut notification = whole.clone();
    notification.as_object_mut().unwrap().remove("id");
    let deep = whole.to_string().replace("\"params\":", &format!("\"x\":{}{},\"params\":", "[".repeat(10_000), "]".repeat(10_000)));
    let deep_args =
        envelope("test.ping", &json!("DEEP")).to_string().replace("\"DEEP\"", &format!("{}{}", "[".repeat(10_000), "]".repeat(10_000)));
    let deep_args =
        json!({ "jsonrpc": "2.0", "id": 1, "method": "test.ping", "params": { "call": deep_args, "signature": "" } }).to_string();
    let bodies = [
        json!([whole]).to_string(),
        json!([whole, whole, 3]).to_string(),
        "  []".to_owned(),
        notification.to_string(),
        with_id(json!(null)),
        with_id(json!({})),
        with_id(json!([1])),
        with_id(json!(1.5)),
        with_id(json!(true)),
        "not json".to_owned(),
        "{}".to_owned(),
        String::new(),
        "[".repeat(10_000),
        deep_args,
        json!({ "jsonrpc": "2.0", "id": 1, "method": "test.ping" }).to_string(),
        json!({ "jsonrpc": "2.0", "id": 1, "method": "test.ping", "params": [] }).to_string(),
        json!({ "jsonrpc": "2.0", "id": 1, "method": "test.ping", "params": { "call": {}, "signature": "" } }).to_string(),
        changed("audience", json!("web1")),
    ];
    for body in &bodies {
        let answer = host.post(body).await;
        assert!(answer.body["error"]["code"].is_i64() && answer.body.get("result").is_none(), "{body:.200} got {answer:?}");
    }
    let lines = host.audited();
    assert_eq!(lines.len(), bodies.len());
    assert!(lines.iter().all(|line| line["decision"] == "refuse"), "{lines:?}");
    // A field that means nothing is not followed into its depths, and harms nobody.
    assert_eq!(host.post(&deep).await.status, 200);
}

#[tokio::test]
async fn refusals_have_their_codes() {
    let host = Host::start("").await;
    for (body, code) in [
        (call("command.run", &json!(["true"])), -32001),
        (call("nosuch.method", &json!([])), -32001),
        (changed("caller", json!("root")), -32001),
        (changed("audience", json!(["web2"])), -32002),
        (changed("start_before", json!("2020-01-01T00:00:00Z")), -32003),
        (call("test.nosuch", &json!([])), -32601),
        (call("test.add", &json!(["x", 1])), -32602),
        (call("test.add", &json!([1])), -32602),
        (call("jobs.status", &json!(["x"])), -32602),
        (call("async.jobs.status", &json!([CALL_ID])), -32600),
    ] {
        assert_eq!(host.error_of(&body).await, code, "{body}");
    }
    let denied = host.post(&call("command.run", &json!(["true"]))).await.body["error"]["message"].as_str().unwrap().to_owned();
    assert!(denied.starts_with("web1: no rule lets admin call command.run") && denied.contains("[[allow]]"), "{denied}");
    let usage = host.post(&call("test.add", &json!([1]))).await.body["error"]["message"].clone();
    assert_eq!(usage, "test.add: `b` is missing; usage: test.add A:number B:number");
    assert_eq!(host.audited().iter().filter(|line| line["decision"] == "deny").count(), 3);
    let own = host.audited().into_iter().find(|line| line["method"] == "jobs.status").unwrap();
    assert_eq!(own["rule"], "own jobs");
}

#[tokio::test]
async fn nothing_is_run_that_cannot_be_audited_and_what_the_server_answers_goes_on() {
    let host = Host::start("").await;
    let log = host.dir.path().join("state/audit.log");
    fs::remove_file(&log).unwrap();
    std::os::unix::fs::symlink("/dev/full", &log).unwrap();
    assert_eq!(host.post(&call("test.ping", &json!([]))).await.body["result"]["state"], "ok");
    for method in ["test.sleep", "async.test.sleep"] {
        let answer = host.post(&call(method, &json!([0]))).await;
        let message = answer.body["error"]["message"].as_str().unwrap();
        assert_eq!(answer.body["error"]["code"], common::outcome::ErrorCode::Undelivered as i32);
        assert!(message.contains("audit.log: No space left"), "{message}");
    }
    assert_eq!(host.error_of(&call("command.run", &json!(["true"]))).await, -32001);
}

#[tokio::test]
async fn a_minion_calls_nobody() {
    let host = Host::start("").await;
    // The role is refused in the handshake, whatever configuration the client makes of its certificate.
    let folder = host.dir.path().join("certs/web2");
    credentials(host.dir.path(), "fleet:minion/web2");
    let pem = |name: &str| fs::read(folder.join(name)).unwrap();
    use tokio_rustls::rustls::pki_types::pem::PemObject as _;
    use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
    let mut roots = tokio_rustls::rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(&pem("ca.pem")).unwrap()).unwrap();
    let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    let tls = tokio_rustls::rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(
            vec![CertificateDer::from_pem_slice(&pem("cert.pem")).unwrap()],
            PrivateKeyDer::from_pem_slice(&pem("key.pem")).unwrap(),
        )
        .unwrap();
    let stream = TcpStream::connect(host.address).await.unwrap();
    let connected = TlsConnector::from(Arc::new(tls)).connect("web1".try_into().unwrap(), stream).await;
    let refused = match connected {
        Err(_) => true,
        Ok(mut stream) => {
            let _may_fail = stream.write_all(&http(&host.signed(&call("test.ping", &json!([]))))).await;
            read(&mut stream).await.is_none()
        }
    };
    assert!(refused && host.audited().is_empty());
}
