//! Handshakes between real rustls connections, in memory: who is let in, who is refused, and what a person reads of it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test may panic")]

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use certs::authority::{Authority, Validity, write_folder};
use certs::files::Credentials;
use certs::tls::{self, Refusal, TlsError};
use common::identity::{MinionName, Role};
use jiff::{SignedDuration, Timestamp};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, Error, HandshakeKind, ServerConfig, ServerConnection, SignatureScheme,
};

const HOUR: Duration = Duration::from_secs(3600);

struct Fleet {
    home: tempfile::TempDir,
    authority: Authority,
}

impl Fleet {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        let authority = Authority::init(&home.path().join("certs"), HOUR).unwrap();
        Self { home, authority }
    }

    fn credentials(&self, role: &str) -> Credentials {
        let role: Role = role.parse().unwrap();
        load(&self.folder(role, self.authority.not_after()))
    }

    fn expired(&self, role: &str) -> Credentials {
        load(&self.folder(role.parse().unwrap(), Timestamp::now() - SignedDuration::from_mins(1)))
    }

    fn folder(&self, role: Role, not_after: Timestamp) -> PathBuf {
        let validity = Validity { not_before: Timestamp::now() - SignedDuration::from_hours(1), not_after };
        let issued = self.authority.issue_within(&[role], validity).unwrap();
        let out = tempfile::tempdir_in(self.home.path()).unwrap().keep();
        write_folder(&out, self.authority.ca_pem(), None, &issued[0]).unwrap()
    }
}

fn load(folder: &Path) -> Credentials {
    Credentials::load(&folder.join("ca.pem"), &folder.join("cert.pem"), &folder.join("key.pem")).unwrap()
}

fn minion(name: &str) -> MinionName {
    name.parse().unwrap()
}

/// Shakes hands over a socket and sends a byte each way. What each side has to say of it: the client's answer comes from a read.
fn shake(server: Arc<ServerConfig>, client: Arc<ClientConfig>, host: &str) -> (io::Result<tls::Peer>, io::Result<tls::Peer>) {
    let (server_socket, client_socket) = UnixStream::pair().unwrap();
    for socket in [&server_socket, &client_socket] {
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    }
    // Kept open until the client has read: closed at once, it would break the client's writing before it reads the refusal.
    let held_open = server_socket.try_clone().unwrap();
    let serving = std::thread::spawn(move || {
        let mut connection = ServerConnection::new(server).unwrap();
        let mut socket = server_socket;
        let mut stream = rustls::Stream::new(&mut connection, &mut socket);
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        stream.write_all(&byte)?;
        Ok(tls::peer(connection.peer_certificates().unwrap()).unwrap())
    });
    let mut connection = ClientConnection::new(client, tls::server_name(&minion(host)).unwrap()).unwrap();
    let mut socket = client_socket;
    let mut exchange = || {
        let mut stream = rustls::Stream::new(&mut connection, &mut socket);
        stream.write_all(b"x")?;
        stream.read_exact(&mut [0])
    };
    let exchanged = exchange();
    drop((socket, held_open));
    let asked = exchanged.map(|()| tls::peer(connection.peer_certificates().unwrap()).unwrap());
    (serving.join().unwrap(), asked)
}

/// The server's words for its log, and the client's refusal, of a handshake that must fail.
fn refused(server: Arc<ServerConfig>, client: Arc<ClientConfig>, host: &str) -> (String, Refusal) {
    let (served, asked) = shake(server, client, host);
    let log = tls::client_refusal(&served.expect_err("the server let the client in")).unwrap_or_default();
    (log, tls::refusal_within(&minion(host), &asked.expect_err("the client was let in")).unwrap())
}

/// A client that shows what it is told to, and believes any server: an attacker's.
fn careless_client(shows: Option<&Credentials>, folder: &Path) -> Arc<ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Careless(provider.clone())));
    Arc::new(match shows {
        None => builder.with_no_client_auth(),
        Some(_) => builder.with_client_cert_resolver(Arc::new(identity(folder, &provider))),
    })
}

fn identity(folder: &Path, provider: &rustls::crypto::CryptoProvider) -> SingleCertAndKey {
    use rustls::pki_types::{PrivateKeyDer, pem::PemObject};
    let chain = vec![CertificateDer::from_pem_file(folder.join("cert.pem")).unwrap()];
    let key = PrivateKeyDer::from_pem_file(folder.join("key.pem")).unwrap();
    SingleCertAndKey::from(CertifiedKey::from_der(chain, key, provider).unwrap())
}

#[derive(Debug)]
struct Careless(Arc<rustls::crypto::CryptoProvider>);

impl ServerCertVerifier for Careless {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// A server with whatever certificate, that lets anyone in: an attacker's.
fn careless_server(folder: &Path) -> Arc<ServerConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let identity = Arc::new(identity(folder, &provider));
    Arc::new(
        ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_cert_resolver(identity),
    )
}

#[test]
fn each_side_learns_who_the_other_is() {
    let fleet = Fleet::new();
    for host in ["web1", "db.example.com", "10.0.0.11"] {
        let (server, client) = (fleet.credentials(&format!("fleet:minion/{host}")), fleet.credentials("fleet:overlord/admin"));
        let (served, asked) = shake(tls::server_config(&server).unwrap(), tls::client_config(&client).unwrap(), host);
        let (served, asked) = (served.unwrap(), asked.unwrap());
        assert_eq!((served.role.to_string().as_str(), served.fingerprint.as_str()), ("fleet:overlord/admin", client.fingerprint()));
        assert_eq!((asked.role.name(), asked.fingerprint.as_str()), (host, server.fingerprint()));
    }
}

/// Shakes hands twice, lets what the server sends behind the handshake arrive, and says for each time whether the client resumed
/// a session, and how many tickets it was given.
fn shake_twice(server: &Arc<ServerConfig>, client: &Arc<ClientConfig>) -> [(Option<HandshakeKind>, u32); 2] {
    [(); 2].map(|()| {
        let mut server = ServerConnection::new(server.clone()).unwrap();
        let mut client = ClientConnection::new(client.clone(), tls::server_name(&minion("web1")).unwrap()).unwrap();
        let mut wire = Vec::new();
        while client.wants_write() || server.wants_write() {
            while client.wants_write() {
                client.write_tls(&mut wire).unwrap();
            }
            server.read_tls(&mut wire.as_slice()).unwrap();
            server.process_new_packets().unwrap();
            wire.clear();
            while server.wants_write() {
                server.write_tls(&mut wire).unwrap();
            }
            client.read_tls(&mut wire.as_slice()).unwrap();
            client.process_new_packets().unwrap();
            wire.clear();
        }
        assert!(!client.is_handshaking() && !server.is_handshaking());
        (client.handshake_kind(), client.tls13_tickets_received())
    })
}

#[test]
fn no_session_is_resumed() {
    let fleet = Fleet::new();
    let folder = fleet.folder("fleet:minion/web1".parse().unwrap(), fleet.authority.not_after());
    let server = tls::server_config(&load(&folder)).unwrap();
    let client = tls::client_config(&fleet.credentials("fleet:overlord/admin")).unwrap();
    let eager = careless_client(None, &folder);
    let generous = careless_server(&folder);
    assert_eq!(shake_twice(&generous, &eager), [(Some(HandshakeKind::Full), 2), (Some(HandshakeKind::Resumed), 2)]);
    assert_eq!(shake_twice(&generous, &client).map(|(kind, _)| kind), [Some(HandshakeKind::Full); 2]);
    assert_eq!(shake_twice(&server, &client), [(Some(HandshakeKind::Full), 0); 2]);
}

#[test]
fn a_minions_certificate_is_refused_as_a_clients() {
    let fleet = Fleet::new();
    let server = tls::server_config(&fleet.credentials("fleet:minion/web1")).unwrap();
    let folder = fleet.folder("fleet:minion/web2".parse().unwrap(), fleet.authority.not_after());
    let web2 = load(&folder);
    let (log, refusal) = refused(server, careless_client(Some(&web2), &folder), "web1");
    assert_eq!(log, "its certificate has not the overlord role");
    assert!(refusal.refused_by_peer && refusal.message.starts_with("web1 refuses our certificate: it has not the overlord role"));
    assert!(matches!(tls::client_config(&web2), Err(TlsError::Role { needs: "overlord", .. })));
}

#[test]
fn an_overlords_certificate_is_refused_as_a_servers() {
    let fleet = Fleet::new();
    for overlord in ["admin", "web1"] {
        let folder = fleet.folder(format!("fleet:overlord/{overlord}").parse().unwrap(), fleet.authority.not_after());
        let client = tls::client_config(&fleet.credentials("fleet:overlord/admin")).unwrap();
        let (_, refusal) = refused(careless_server(&folder), client, "web1");
        assert!(!refusal.refused_by_peer && refusal.message.contains("has not the minion role"), "{}", refusal.message);
        assert!(matches!(tls::server_config(&load(&folder)), Err(TlsError::Role { needs: "minion", .. })));
    }
}

#[test]
fn another_host_at_the_address_is_named() {
    let fleet = Fleet::new();
    let server = tls::server_config(&fleet.credentials("fleet:minion/web2")).unwrap();
    let client = tls::client_config(&fleet.credentials("fleet:overlord/admin")).unwrap();
    let (_, refusal) = refused(server, client, "web1");
    assert_eq!(refusal.message, "the host at this address is web2, not web1: mend the address of web1 in hosts.toml");
    assert!(!refusal.refused_by_peer);
}

#[test]
fn a_client_without_a_certificate_is_refused() {
    let fleet = Fleet::new();
    let server = tls::server_config(&fleet.credentials("fleet:minion/web1")).unwrap();
    let (log, refusal) = refused(server, careless_client(None, Path::new("")), "web1");
    assert_eq!(log, "it shows no certificate");
    assert!(refusal.refused_by_peer && refusal.message.contains("we showed none"), "{}", refusal.message);
}

#[test]
fn another_authority_is_refused_by_both_sides() {
    let (ours, theirs) = (Fleet::new(), Fleet::new());
    let server = tls::server_config(&theirs.credentials("fleet:minion/web1")).unwrap();
    let client = tls::client_config(&ours.credentials("fleet:overlord/admin")).unwrap();
    let (_, refusal) = refused(server.clone(), client, "web1");
    assert!(!refusal.refused_by_peer && refusal.message.contains("issued by another authority than ours"), "{}", refusal.message);

    let folder = ours.folder("fleet:overlord/admin".parse().unwrap(), ours.authority.not_after());
    let (log, refusal) = refused(server, careless_client(Some(&load(&folder)), &folder), "web1");
    assert_eq!(log, "its certificate was issued by another authority than ours");
    assert!(refusal.refused_by_peer && refusal.message.contains("another than the one that issued ours"), "{}", refusal.message);
}

#[test]
fn an_expired_certificate_is_refused_by_both_sides() {
    let fleet = Fleet::new();
    let server = tls::server_config(&fleet.credentials("fleet:minion/web1")).unwrap();
    let expired = tls::client_config(&fleet.expired("fleet:overlord/admin")).unwrap();
    let (log, refusal) = refused(server, expired, "web1");
    assert_eq!(log, "its certificate has expired");
    assert!(refusal.refused_by_peer && refusal.message.contains("by its clock it has expired"), "{}", refusal.message);

    let expired = tls::server_config(&fleet.expired("fleet:minion/web1")).unwrap();
    let client = tls::client_config(&fleet.credentials("fleet:overlord/admin")).unwrap();
    let (_, refusal) = refused(expired, client, "web1");
    assert!(!refusal.refused_by_peer && refusal.message.contains("certificate of web1 has expired (20"), "{}", refusal.message);
}

#[test]
fn errors_that_are_about_something_else_are_no_refusals() {
    let host = minion("web1");
    for error in [Error::AlertReceived(rustls::AlertDescription::ProtocolVersion), Error::DecryptError] {
        assert_eq!(tls::refusal(&host, &error), None);
    }
    assert_eq!(tls::refusal_within(&host, &io::Error::from(io::ErrorKind::ConnectionReset)), None);
}
