//! A fleet for tests: an authority in a folder of its own, certificates and lists of any kind, and handshakes in memory.
#![allow(dead_code, unreachable_pub, reason = "it is a part of several test binaries, each of which uses its share")]

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use certs::authority::{Authority, Validity, write_folder};
use certs::crl::Crl;
use certs::files::Credentials;
use certs::tls::{self, Peer, Refusal};
use common::identity::Role;
use jiff::{SignedDuration, Timestamp};
use rcgen::{CertificateParams, CertificateRevocationListParams, Issuer, KeyIdMethod, KeyPair, RevokedCertParams, SanType, SerialNumber};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, ClientConnection, ServerConfig, ServerConnection};

/// A date as rcgen wants it, of a type that it does not name.
macro_rules! rcgen_date {
    ($at:expr) => {
        rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(u64::try_from(($at).as_second()).unwrap())
    };
}

pub const HOUR: Duration = Duration::from_secs(3600);

pub struct Lab {
    pub home: tempfile::TempDir,
    pub authority: Authority,
}

impl Lab {
    pub fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        let authority = Authority::init(&home.path().join("certs"), HOUR).unwrap();
        Self { home, authority }
    }

    pub fn dir(&self) -> PathBuf {
        self.home.path().join("certs")
    }

    pub fn ca(&self) -> Vec<CertificateDer<'static>> {
        vec![CertificateDer::from_pem_slice(self.authority.ca_pem().as_bytes()).unwrap()]
    }

    pub fn issuer(&self) -> Issuer<'static, KeyPair> {
        let key = KeyPair::from_pem(&fs::read_to_string(self.dir().join("ca.key")).unwrap()).unwrap();
        Issuer::from_ca_cert_pem(self.authority.ca_pem(), key).unwrap()
    }

    /// A folder with `ca.pem`, `cert.pem` and `key.pem`.
    pub fn folder(&self, role: &str) -> PathBuf {
        self.folder_until(role, self.authority.not_after())
    }

    pub fn folder_until(&self, role: &str, not_after: Timestamp) -> PathBuf {
        let validity = Validity { not_before: Timestamp::now() - SignedDuration::from_mins(30), not_after };
        let issued = self.authority.issue_within(&[role.parse().unwrap()], validity).unwrap();
        let out = tempfile::tempdir_in(self.home.path()).unwrap().keep();
        write_folder(&out, self.authority.ca_pem(), None, &issued[0]).unwrap()
    }

    pub fn credentials(&self, role: &str) -> Credentials {
        load(&self.folder(role))
    }

    /// What `certs serve` shows.
    pub fn serving(&self) -> Credentials {
        Credentials::made(&self.dir().join("ca.pem"), self.authority.server_identity(HOUR / 2).unwrap()).unwrap()
    }

    /// The PEM of a list of this number, which is stale if `good_for` is negative.
    pub fn list(&self, number: u64, serials: &[&str], good_for: SignedDuration) -> String {
        list(&self.issuer(), &SerialNumber::from(number), serials, good_for)
    }

    pub fn crl(&self, number: u64, serials: &[&str]) -> Crl {
        Crl::parse(&self.list(number, serials, SignedDuration::from_hours(1)), &self.ca()).unwrap()
    }

    /// A certificate for the key in `folder`.
    pub fn again(&self, folder: &Path, role: &str, from: Timestamp, until: Timestamp) -> String {
        let key = KeyPair::from_pem(&fs::read_to_string(folder.join("key.pem")).unwrap()).unwrap();
        certificate(&self.issuer(), &key, role, from, until)
    }
}

pub fn list(issuer: &Issuer<'static, KeyPair>, number: &SerialNumber, serials: &[&str], good_for: SignedDuration) -> String {
    let now = Timestamp::now();
    let revoked = |serial: &&str| RevokedCertParams {
        serial_number: SerialNumber::from_slice(&bytes(serial)),
        revocation_time: rcgen_date!(now),
        reason_code: None,
        invalidity_date: None,
    };
    let list = CertificateRevocationListParams {
        this_update: rcgen_date!(now - SignedDuration::from_hours(2)),
        next_update: rcgen_date!(now + good_for),
        crl_number: number.clone(),
        issuing_distribution_point: None,
        revoked_certs: serials.iter().map(revoked).collect(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    list.signed_by(issuer).unwrap().pem().unwrap()
}

pub fn certificate(issuer: &Issuer<'static, KeyPair>, key: &KeyPair, role: &str, from: Timestamp, until: Timestamp) -> String {
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(role.try_into().unwrap())];
    if let Ok(Role::Minion(name)) = role.parse() {
        params.subject_alt_names.push(SanType::DnsName(name.as_str().try_into().unwrap()));
    }
    (params.not_before, params.not_after) = (rcgen_date!(from), rcgen_date!(until));
    params.signed_by(key, issuer).unwrap().pem()
}

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len() / 2).map(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).unwrap()).collect()
}

pub fn load(folder: &Path) -> Credentials {
    Credentials::load(&folder.join("ca.pem"), &folder.join("cert.pem"), &folder.join("key.pem")).unwrap()
}

/// What came of a handshake, and of a byte each way after it.
pub struct Shaken {
    /// Whom the server has let in; nobody has shown a certificate in the inner `None`.
    pub served: io::Result<Option<Peer>>,
    /// The chain that the server has shown.
    pub asked: io::Result<Vec<CertificateDer<'static>>>,
    /// The server has read a byte of what the client had to say.
    pub heard: bool,
}

pub fn shake(server: Arc<ServerConfig>, client: Arc<ClientConfig>, name: &str) -> Shaken {
    let (server_socket, client_socket) = UnixStream::pair().unwrap();
    for socket in [&server_socket, &client_socket] {
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    }
    // Kept open until the client has read: closed at once, it would break the client's writing before it reads the refusal.
    let held_open = server_socket.try_clone().unwrap();
    let serving = std::thread::spawn(move || {
        let mut connection = ServerConnection::new(server).unwrap();
        let mut socket = server_socket;
        let mut heard = false;
        let mut exchange = || {
            let mut stream = rustls::Stream::new(&mut connection, &mut socket);
            let mut byte = [0];
            stream.read_exact(&mut byte)?;
            heard = true;
            stream.write_all(&byte)
        };
        let exchanged = exchange();
        let peer = || connection.peer_certificates().map(|chain| tls::peer(chain).unwrap());
        (exchanged.map(|()| peer()), heard)
    });
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut connection = ClientConnection::new(client, name).unwrap();
    let mut socket = client_socket;
    let mut exchange = || {
        let mut stream = rustls::Stream::new(&mut connection, &mut socket);
        stream.write_all(b"x")?;
        stream.read_exact(&mut [0])
    };
    let exchanged = exchange();
    drop((socket, held_open));
    let (served, heard) = serving.join().unwrap();
    Shaken { served, asked: exchanged.map(|()| connection.peer_certificates().unwrap().to_vec()), heard }
}

/// The server's words for its log, and the refusal that the client reads, between an overlord and web1.
pub fn refused(server: Arc<ServerConfig>, client: Arc<ClientConfig>) -> (String, Refusal) {
    let shaken = shake(server, client, "web1");
    let log = tls::client_refusal(&shaken.served.expect_err("the server let the client in")).unwrap_or_default();
    (log, tls::refusal_within(&"web1".parse().unwrap(), &shaken.asked.expect_err("the client was let in")).unwrap())
}

/// The same between `ours` and the authority. Nothing is heard of a client that refuses the server.
pub fn refused_authority(server: Arc<ServerConfig>, client: Arc<ClientConfig>, ours: Option<&Role>) -> (String, Refusal) {
    let shaken = shake(server, client, tls::AUTHORITY_NAME);
    let log = tls::client_refusal(&shaken.served.expect_err("the server let the client in")).unwrap_or_default();
    let error = shaken.asked.expect_err("the client was let in");
    let refusal = tls::authority_refusal_within("ca:51235", ours, &error).unwrap_or_else(|| panic!("{error:?}"));
    assert!(!shaken.heard, "a byte was sent");
    (log, refusal)
}

/// A server that shows `chain`, and lets anyone in: an attacker's.
pub fn careless_server(chain: Vec<CertificateDer<'static>>, folder: &Path) -> Arc<ServerConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let key = PrivateKeyDer::from_pem_file(folder.join("key.pem")).unwrap();
    let identity = Arc::new(SingleCertAndKey::from(CertifiedKey::from_der(chain, key, &provider).unwrap()));
    let builder = ServerConfig::builder_with_provider(provider).with_protocol_versions(&[&rustls::version::TLS13]).unwrap();
    Arc::new(builder.with_no_client_auth().with_cert_resolver(identity))
}

pub fn certificate_in(folder: &Path) -> CertificateDer<'static> {
    CertificateDer::from_pem_file(folder.join("cert.pem")).unwrap()
}
