//! The client of the authority against a listener of this crate, and against servers that misbehave.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, reason = "a test may panic")]

use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use certs::authority::desk::{Desk, Terms};
use certs::authority::{Authority, Validity, write_folder};
use certs::crl::StaleCrl;
use certs::files::Credentials;
use certs::tls::{self, Anchor, CaPin};
use certs::trust::AuthorityTrust;
use common::identity::Role;
use common::outcome::{ErrorCode, Failure};
use common::protocol::certs::{
    ENROLL, EnrollParams, EnrollReply, Issued, RENEW, REVOCATIONS, REVOCATIONS_MAX_BYTES, Revocations, RevocationsParams,
};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use service::authority::{AskError, AuthorityClient, Deadlines, full_address};
use service::{Knock, Limits, Reception, Visitor};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::{CertificateDer, pem::PemObject};

const HOUR: Duration = Duration::from_secs(3600);
const DEADLINES: Deadlines = Deadlines { connect: Duration::from_secs(5), answer: Duration::from_secs(5) };

struct Lab {
    home: tempfile::TempDir,
    authority: Authority,
}

impl Lab {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        let authority = Authority::init(&home.path().join("certs"), HOUR).unwrap();
        Self { home, authority }
    }

    fn ca(&self) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(self.authority.ca_pem().as_bytes()).unwrap()
    }

    fn credentials(&self, role: &str, not_after: Timestamp) -> Credentials {
        let validity = Validity { not_before: Timestamp::now() - SignedDuration::from_mins(30), not_after };
        let issued = self.authority.issue_within(&[role.parse().unwrap()], validity).unwrap();
        let out = tempfile::tempdir_in(self.home.path()).unwrap().keep();
        let folder: PathBuf = write_folder(&out, self.authority.ca_pem(), None, &issued[0]).unwrap();
        Credentials::load(&folder.join("ca.pem"), &folder.join("cert.pem"), &folder.join("key.pem")).unwrap()
    }

    fn trust(&self) -> AuthorityTrust {
        let dir = self.home.path().join("certs");
        let (ca, crl) = (dir.join("ca.pem"), dir.join("crl.pem"));
        let make = move || {
            let identity = Authority::open(&dir).unwrap().server_identity(HOUR / 2).unwrap();
            Credentials::made(&dir.join("ca.pem"), identity).map_err(|error| error.to_string())
        };
        AuthorityTrust::of_made(ca, crl, StaleCrl::Serve, make, |trouble| panic!("{trouble}")).unwrap()
    }

    fn member(&self, address: SocketAddr, role: &str, not_after: Timestamp) -> AuthorityClient {
        let credentials = self.credentials(role, not_after);
        let anchor = Anchor::Authorities(vec![self.ca()]);
        let tls = tls::authority_client_config(&anchor, Some(&credentials)).unwrap();
        AuthorityClient::new(&address.to_string(), tls, DEADLINES).showing(role.parse().unwrap())
    }

    fn stranger(&self, address: SocketAddr) -> AuthorityClient {
        AuthorityClient::pinned(&address.to_string(), CaPin::of(&self.ca()), DEADLINES).unwrap()
    }
}

/// Answers what is asked, and counts who came.
#[derive(Default)]
struct Office {
    connections: AtomicUsize,
    entered: Mutex<Vec<(String, Option<Role>)>>,
}

struct Caller(Option<Role>);

impl Reception for Office {
    type Caller = Caller;
    type Reply = Value;

    fn admit(&self, visitor: Visitor) -> Result<Caller, String> {
        self.connections.fetch_add(1, Ordering::SeqCst);
        Ok(Caller(visitor.peer().map(|peer| peer.role.clone())))
    }

    fn enter(&self, caller: &Caller, knock: Knock<'_>) -> impl Future<Output = Result<Value, Failure>> + Send {
        let Knock::Call { method, params } = knock else { panic!("{knock:?}") };
        self.entered.lock().unwrap().push((method.to_owned(), caller.0.clone()));
        let revocations = Revocations { number: 7, crl: None };
        let reply = match method {
            ENROLL => {
                let params: EnrollParams = serde_json::from_str(params).unwrap();
                match params.name.as_str() {
                    "rejected" => Ok(json!(EnrollReply::Rejected { at: Timestamp::UNIX_EPOCH })),
                    _ => Ok(json!(EnrollReply::Waiting { key: params.csr, since: Timestamp::UNIX_EPOCH })),
                }
            }
            RENEW if caller.0.is_none() => Err(Failure::new(ErrorCode::Denied, "show a certificate")),
            RENEW => Ok(json!(Issued { cert: "new".to_owned(), revocations })),
            REVOCATIONS => {
                let have = serde_json::from_str::<RevocationsParams>(params).unwrap().have;
                // Every line's end takes two bytes in JSON, and it is read all the same.
                let crl = (have == 0).then(|| format!("{}\n", "x".repeat(64)).repeat(REVOCATIONS_MAX_BYTES / 65));
                Ok(json!(Revocations { number: 7, crl }))
            }
            _ => panic!("{method}"),
        };
        async { reply }
    }

    fn reply_max_bytes(&self) -> usize {
        2 * REVOCATIONS_MAX_BYTES
    }

    fn reply_too_large(&self) -> Failure {
        panic!("too large")
    }
}

/// A listener that serves until it is dropped.
struct Served {
    address: SocketAddr,
    office: Arc<Office>,
    _stop: watch::Sender<bool>,
}

async fn serve(lab: &Lab, idle_timeout: Duration) -> Served {
    let limits = Limits {
        body_max_bytes: 1 << 20,
        connections_max: 16,
        handshakes_max: 16,
        handshake_timeout: Duration::from_secs(5),
        header_timeout: Duration::from_secs(5),
        idle_timeout,
        shutdown_grace: Duration::from_secs(1),
        strangers: None,
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = watch::channel(false);
    let office = Arc::new(Office::default());
    tokio::spawn(service::serve(listener, Arc::new(lab.trust()), office.clone(), Arc::new(limits), stopped));
    Served { address, office, _stop: stop }
}

fn request(name: &str) -> EnrollParams {
    EnrollParams { name: name.parse().unwrap(), csr: "the request".to_owned(), token: None }
}

fn in_half_an_hour() -> Timestamp {
    Timestamp::now() + SignedDuration::from_mins(30)
}

#[tokio::test]
async fn a_stranger_enrols_over_one_connection_and_learns_the_pinned_authority() {
    let lab = Lab::new();
    let served = serve(&lab, HOUR).await;
    let mut client = lab.stranger(served.address);
    assert_eq!(client.shown_authority(), None);
    let waiting = EnrollReply::Waiting { key: "the request".to_owned(), since: Timestamp::UNIX_EPOCH };
    for _ in 0..3 {
        assert_eq!(client.enroll(&request("web1")).await, Ok(waiting.clone()));
    }
    assert_eq!(client.enroll(&request("rejected")).await, Ok(EnrollReply::Rejected { at: Timestamp::UNIX_EPOCH }));
    assert_eq!(client.shown_authority(), Some(lab.ca()));
    assert_eq!(served.office.connections.load(Ordering::SeqCst), 1);
    let refused = client.renew().await.unwrap_err();
    assert!(matches!(&refused, AskError::Refused(failure) if failure.is(ErrorCode::Denied)), "{refused:?}");
    assert_eq!(refused.to_string(), "the authority refuses: show a certificate");
}

#[tokio::test]
async fn members_renew_and_the_largest_list_is_read() {
    let lab = Lab::new();
    let served = serve(&lab, HOUR).await;
    for role in ["fleet:minion/web1", "fleet:overlord/admin"] {
        let mut client = lab.member(served.address, role, in_half_an_hour());
        assert_eq!(client.renew().await.unwrap().cert, "new");
        assert_eq!(client.revocations(7).await, Ok(Revocations { number: 7, crl: None }));
        let list = client.revocations(0).await.unwrap().crl.unwrap();
        assert!(list.len() > REVOCATIONS_MAX_BYTES - 65, "{}", list.len());
        assert_eq!(served.office.entered.lock().unwrap().pop().unwrap().1, Some(role.parse().unwrap()));
    }
}

#[tokio::test]
async fn a_connection_that_was_closed_while_nobody_asked_is_made_again() {
    let lab = Lab::new();
    let served = serve(&lab, Duration::from_millis(100)).await;
    let mut client = lab.stranger(served.address);
    let begun = Instant::now();
    while served.office.connections.load(Ordering::SeqCst) < 3 {
        assert!(begun.elapsed() < Duration::from_secs(20));
        client.revocations(7).await.unwrap();
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
}

#[tokio::test]
async fn a_fake_authority_hears_nothing() {
    let (lab, fake) = (Lab::new(), Lab::new());
    let served = serve(&fake, HOUR).await;
    let error = lab.stranger(served.address).enroll(&request("web1")).await.unwrap_err();
    let (ours, theirs) = (CaPin::of(&lab.ca()), CaPin::of(&fake.ca()));
    assert_eq!(
        error.to_string(),
        format!(
            "what answers at {} is not our authority: it shows the authority {theirs}, and {ours} is expected; \
             `overlord certs status`, where the authority is, prints its fingerprint",
            served.address
        )
    );
    let error = lab.member(served.address, "fleet:minion/web1", in_half_an_hour()).renew().await.unwrap_err();
    assert!(matches!(&error, AskError::Certificate { refused_by_peer: false, .. }), "{error:?}");
    assert_eq!((served.office.connections.load(Ordering::SeqCst), served.office.entered.lock().unwrap().len()), (0, 0));
}

#[tokio::test]
async fn a_member_whose_certificate_is_not_good_reads_why() {
    let lab = Lab::new();
    let served = serve(&lab, HOUR).await;
    // Many times: whether the refusal is read before or after the question was written is a race.
    for _ in 0..20 {
        let expired = Timestamp::now() - SignedDuration::from_mins(1);
        let error = lab.member(served.address, "fleet:minion/web1", expired).renew().await.unwrap_err();
        assert!(matches!(&error, AskError::Certificate { refused_by_peer: true, .. }), "{error:?}");
        let (message, address) = (error.to_string(), served.address);
        assert!(
            message.starts_with(&format!("the authority at {address} refuses our certificate: by its clock it has expired")),
            "{message}"
        );
        assert!(message.contains("`overlord certs clean web1`"), "{message}");
    }
    assert_eq!(served.office.entered.lock().unwrap().len(), 0);
}

#[tokio::test]
async fn a_member_that_is_revoked_is_cut_off_and_reads_why() {
    let lab = Lab::new();
    let served = serve(&lab, HOUR).await;
    let mut client = lab.member(served.address, "fleet:minion/web1", in_half_an_hour());
    let mut other = lab.member(served.address, "fleet:minion/web2", in_half_an_hour());
    client.renew().await.unwrap();
    other.renew().await.unwrap();
    let terms = Terms { valid: HOUR / 2, crl_valid: HOUR / 2, requests_max: 1 };
    Desk::open(&lab.home.path().join("certs"), terms).unwrap().revoke(&["web1".to_owned()], None).unwrap();
    let begun = Instant::now();
    let error = loop {
        match client.renew().await {
            Ok(_) => assert!(begun.elapsed() < Duration::from_secs(1)),
            Err(error) => break error,
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert!(matches!(&error, AskError::Certificate { refused_by_peer: true, .. }), "{error:?}");
    assert!(error.to_string().contains("it has been revoked; if web1 is to be one of the fleet"), "{error}");
    other.renew().await.unwrap();
    assert_eq!(served.office.connections.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn nobody_there_is_told_with_the_address() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let lab = Lab::new();
    let error = lab.stranger(closed).revocations(0).await.unwrap_err();
    let message = error.to_string();
    assert!(matches!(error, AskError::Unreachable { .. }), "{message}");
    assert!(
        message.contains(&closed.to_string()) && message.contains("refused") && message.contains("`overlord certs serve`"),
        "{message}"
    );
}

#[tokio::test]
async fn a_silent_port_costs_no_more_than_the_deadline() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let deadlines = Deadlines { connect: Duration::from_millis(200), ..DEADLINES };
    let address = silent.local_addr().unwrap().to_string();
    let mut client = AuthorityClient::pinned(&address, CaPin::of(&Lab::new().ca()), deadlines).unwrap();
    let begun = Instant::now();
    let error = client.revocations(0).await.unwrap_err();
    assert!(matches!(&error, AskError::Unreachable { reason, .. } if reason == "no connection within 200ms"), "{error:?}");
    assert!(begun.elapsed() < Duration::from_secs(3));
}

/// A server with our authority's certificate that answers any first bytes with these, or with nothing at all, and closes.
async fn misbehaving(lab: &Lab, answer: Option<Vec<u8>>) -> SocketAddr {
    let acceptor = TlsAcceptor::from(lab.trust().server());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let mut stream = acceptor.accept(listener.accept().await.unwrap().0).await.unwrap();
        let _ = stream.read(&mut [0; 4096]).await;
        let Some(answer) = answer else { return std::future::pending().await };
        // Whoever has heard enough closes before all is written.
        let _ = stream.write_all(&answer).await;
        let _ = stream.shutdown().await;
    });
    address
}

fn http(body: &[u8]) -> Option<Vec<u8>> {
    Some([format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len()).as_bytes(), body].concat())
}

#[tokio::test]
async fn an_answer_that_is_none_is_told_as_such() {
    let lab = Lab::new();
    let huge = vec![b' '; service::authority::ANSWER_MAX_BYTES + 1];
    let cases = [
        (http(b"no json"), "is not understood"),
        (http(b"{\"jsonrpc\":\"2.0\",\"id\":2,\"result\":{\"number\":1}}"), "it is no answer to what was asked"),
        (http(b"{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{\"number\":-1}}"), "is not understood"),
        (http(b"{\"jsonrpc\":\"2.0\",\"id\":1}"), "it is no answer to what was asked"),
        (http(&huge), "it is longer than"),
        (Some(b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n".to_vec()), "503 Service Unavailable"),
        (Some(b"\x15\x03nonsense\r\n\r\n".to_vec()), "gave no answer"),
        (Some(Vec::new()), "gave no answer"),
        (None, "no answer came within 300ms"),
    ];
    for (answer, words) in cases {
        let address = misbehaving(&lab, answer).await.to_string();
        let deadlines =
            Deadlines { answer: if words.contains("300ms") { Duration::from_millis(300) } else { DEADLINES.answer }, ..DEADLINES };
        let mut client = AuthorityClient::pinned(&address, CaPin::of(&lab.ca()), deadlines).unwrap();
        let error = client.revocations(0).await.unwrap_err();
        assert!(matches!(error, AskError::Silent { .. } | AskError::NotUnderstood { .. }), "{error:?}");
        assert!(error.to_string().contains(words) && error.to_string().contains(&address), "{words}: {error}");
    }
}

#[test]
fn an_address_may_leave_out_the_port() {
    for (given, full) in [
        ("ca", "ca:51235"),
        ("ca.example.com:7", "ca.example.com:7"),
        ("10.0.0.1", "10.0.0.1:51235"),
        ("10.0.0.1:7", "10.0.0.1:7"),
        ("::1", "[::1]:51235"),
        ("[::1]", "[::1]:51235"),
        ("[::1]:7", "[::1]:7"),
    ] {
        assert_eq!(full_address(given), full);
    }
}
