//! A client of the wire itself, which sends whatever bytes a test wants, with whatever certificate: what an attacker would use.
//!
//! It believes any server. The real client is in the overlord.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use common::identity::{CallerName, MinionName};
use common::job::{CallId, JobId};
use common::protocol::{Arguments, CallParams, Envelope, SIGNED_CONTEXT};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject};
use tokio_rustls::rustls::sign::SigningKey;
use tokio_rustls::rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, Error, SignatureScheme, StreamOwned, version};

/// How long a read or a write may take.
const IO_TIMEOUT: Duration = Duration::from_secs(30);

/// A client of one minion.
#[derive(Debug, Clone)]
pub struct Client {
    address: SocketAddr,
    name: ServerName<'static>,
    tls: Arc<ClientConfig>,
    /// The key of the certificate that it shows.
    key: Option<Arc<dyn SigningKey>>,
}

/// A connection: bytes written are sent, bytes read are what the minion sent.
pub type Connection = StreamOwned<ClientConnection, TcpStream>;

/// Reads a connection without writing what is still to be written, which fails once the other side has closed.
#[derive(Debug)]
pub struct ReadOnly<'c>(pub &'c mut Connection);

impl Read for ReadOnly<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Connection { conn, sock, .. } = &mut *self.0;
        loop {
            match conn.reader().read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => return read,
            }
            if conn.read_tls(sock)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            conn.process_new_packets().map_err(io::Error::other)?;
        }
    }
}

/// An HTTP response.
#[derive(Debug, Clone)]
pub struct Response {
    /// `200` and so on.
    pub status: u16,
    /// The lines of its head, status line included.
    pub head: String,
    /// Its body.
    pub body: Vec<u8>,
}

impl Client {
    pub(crate) fn new(address: SocketAddr, name: &str, folder: Option<&Path>) -> Self {
        match folder {
            Some(folder) => Self::showing(address, name, &folder.join("cert.pem"), &folder.join("key.pem")),
            None => Self::with(address, name, None),
        }
    }

    /// A client that shows no certificate, of any server.
    #[must_use]
    pub fn stranger(address: SocketAddr, name: &str) -> Self {
        Self::with(address, name, None)
    }

    /// A client that shows this certificate.
    #[must_use]
    pub fn showing(address: SocketAddr, name: &str, cert: &Path, key: &Path) -> Self {
        let chain = CertificateDer::pem_file_iter(cert).unwrap().collect::<Result<Vec<_>, _>>().unwrap();
        Self::with(address, name, Some((chain, PrivateKeyDer::from_pem_file(key).unwrap())))
    }

    fn with(address: SocketAddr, name: &str, identity: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>) -> Self {
        let provider = Arc::new(ring::default_provider());
        let verifier = Arc::new(Anyone(provider.clone()));
        let builder = ClientConfig::builder_with_provider(provider).with_protocol_versions(&[&version::TLS13]).unwrap();
        let builder = builder.dangerous().with_custom_certificate_verifier(verifier);
        let key = identity.as_ref().map(|(_, key)| ring::sign::any_supported_type(key).unwrap());
        let tls = match identity {
            Some((chain, key)) => builder.with_client_auth_cert(chain, key).unwrap(),
            None => builder.with_no_client_auth(),
        };
        Self { address, name: ServerName::try_from(name.to_owned()).unwrap(), tls: Arc::new(tls), key }
    }

    /// Sends a call, signed with the key of the certificate that this client shows, and reads the answer.
    ///
    /// # Errors
    /// As [`Client::post_json`].
    pub fn call(&self, envelope: &Envelope) -> io::Result<Value> {
        self.post_json(&self.signed(json!(1), envelope))
    }

    /// The JSON-RPC request that carries `envelope`, signed with the key of the certificate that this client shows.
    #[must_use]
    pub fn signed(&self, id: Value, envelope: &Envelope) -> Value {
        let call = serde_json::to_string(envelope).unwrap();
        request(id, &envelope.method, &call, &self.signature(&call))
    }

    /// The signature of this text, made with the key of the certificate that this client shows.
    ///
    /// # Panics
    /// It shows none, or its key signs no calls.
    #[must_use]
    pub fn signature(&self, call: &str) -> String {
        sign(&**self.key.as_ref().expect("who shows no certificate has no key"), call)
    }

    /// A connection whose handshake is over on this side. Whether the minion accepts our certificate shows with the first read.
    ///
    /// # Errors
    /// There is none to be had.
    pub fn connect(&self) -> io::Result<Connection> {
        let socket = TcpStream::connect_timeout(&self.address, IO_TIMEOUT)?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(IO_TIMEOUT))?;
        socket.set_write_timeout(Some(IO_TIMEOUT))?;
        let connection = ClientConnection::new(self.tls.clone(), self.name.clone()).map_err(io::Error::other)?;
        let mut stream = StreamOwned::new(connection, socket);
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock)?;
        }
        Ok(stream)
    }

    /// Sends `body` to `/` as JSON in one request.
    ///
    /// # Errors
    /// The minion refuses the connection, or cuts it before it has answered.
    pub fn post(&self, body: &[u8]) -> io::Result<Response> {
        let head = format!(
            "POST / HTTP/1.1\r\nhost: {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
            self.address,
            body.len()
        );
        let mut connection = self.connect()?;
        // A minion that has read enough may close while we still write: its answer, or its refusal, is there all the same.
        let written = connection.write_all(head.as_bytes()).and_then(|()| connection.write_all(body)).and_then(|()| connection.flush());
        let read = read_response(&mut ReadOnly(&mut connection));
        read.map_err(|error| match written {
            Err(broken) if error.get_ref().is_none() => broken,
            _ => error,
        })
    }

    /// Sends a JSON document and reads one.
    ///
    /// # Errors
    /// As [`Client::post`]; or the answer is not JSON.
    pub fn post_json(&self, body: &Value) -> io::Result<Value> {
        Ok(serde_json::from_slice(&self.post(body.to_string().as_bytes())?.body)?)
    }
}

/// An envelope that a minion accepts, to be bent by the test. Its call id is new.
#[must_use]
pub fn envelope(caller: &str, audience: &str, method: &str, args: Value) -> Envelope {
    let now = Timestamp::now();
    let random = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), std::process::id()) as u32;
    Envelope {
        call_id: CallId::new(JobId::new(now, random), 1),
        caller: caller.parse::<CallerName>().unwrap(),
        audience: vec![audience.parse::<MinionName>().unwrap()],
        method: method.to_owned(),
        args: Arguments::Json(args),
        start_before: now + SignedDuration::from_mins(1),
        limit_ms: Some(30_000),
    }
}

/// The signature of this text, made with the key `key.pem` of a folder.
///
/// # Panics
/// There is none, or it signs no calls.
#[must_use]
pub fn signature_of(folder: &Path, call: &str) -> String {
    let key = PrivateKeyDer::from_pem_file(folder.join("key.pem")).unwrap();
    sign(&*ring::sign::any_supported_type(&key).unwrap(), call)
}

fn sign(key: &dyn SigningKey, call: &str) -> String {
    let signer = key.choose_scheme(&[SignatureScheme::ECDSA_NISTP256_SHA256]).expect("a key on P-256");
    STANDARD.encode(signer.sign(&[SIGNED_CONTEXT, call.as_bytes()].concat()).unwrap())
}

/// The JSON-RPC request that carries the text of a call, with whatever signature.
#[must_use]
pub fn request(id: Value, method: &str, call: &str, signature: &str) -> Value {
    let params = CallParams { call: call.to_owned(), signature: signature.to_owned() };
    json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params })
}

/// Reads a response to its end: by its length, in chunks, or until the connection is closed.
///
/// # Errors
/// The connection is cut before.
pub fn read_response(connection: &mut impl Read) -> io::Result<Response> {
    let head = read_head(connection)?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    let status = status.ok_or_else(|| io::Error::other(format!("not HTTP: {head}")))?;
    let body = read_body(connection, &head)?;
    Ok(Response { status, head, body })
}

/// Reads a request to its end, and gives its body.
///
/// # Errors
/// The connection is cut before.
pub(crate) fn read_request(connection: &mut impl Read) -> io::Result<Vec<u8>> {
    let head = read_head(connection)?;
    read_body(connection, &head)
}

fn read_head(connection: &mut impl Read) -> io::Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        connection.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}

fn read_body(connection: &mut impl Read, head: &str) -> io::Result<Vec<u8>> {
    match (header(head, "content-length"), header(head, "transfer-encoding")) {
        (Some(length), _) => {
            let mut body = vec![0; length.parse().map_err(io::Error::other)?];
            connection.read_exact(&mut body)?;
            Ok(body)
        }
        (None, Some(_)) => read_chunks(connection),
        (None, None) => Ok(Vec::new()),
    }
}

fn header<'h>(head: &'h str, name: &str) -> Option<&'h str> {
    head.lines().filter_map(|line| line.split_once(':')).find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
}

fn read_chunks(connection: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            let mut byte = [0];
            connection.read_exact(&mut byte)?;
            line.push(byte[0]);
        }
        let length = usize::from_str_radix(String::from_utf8_lossy(&line).trim(), 16).map_err(io::Error::other)?;
        let mut chunk = vec![0; length + 2];
        connection.read_exact(&mut chunk)?;
        body.extend_from_slice(&chunk[..length]);
        if length == 0 {
            return Ok(body);
        }
    }
}

#[derive(Debug)]
struct Anyone(Arc<CryptoProvider>);

impl ServerCertVerifier for Anyone {
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
