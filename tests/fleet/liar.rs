//! A minion that lies: a server with a host's own certificate, which the overlord therefore believes to be that host, and which answers whatever bytes
//! the test wants. It runs nothing.

use std::fmt;
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use tokio_rustls::rustls::{ServerConfig, ServerConnection, StreamOwned, crypto::ring, version};

use crate::{Fleet, raw};

/// How long it waits for whoever has connected.
const IO_TIMEOUT: Duration = Duration::from_secs(60);

/// What the liar was asked.
#[derive(Debug, Clone)]
pub struct Question {
    /// The id of the JSON-RPC request.
    pub id: Value,
    /// The method, `async.` included.
    pub method: String,
    /// The envelope.
    pub envelope: Value,
    /// The request's body, as it came.
    pub body: Vec<u8>,
}

/// The connection on which it answers.
pub struct Answering(StreamOwned<ServerConnection, TcpStream>);

/// A liar. Dropped, it accepts no further connections.
pub struct Liar {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<Question>>>,
    stop: Arc<AtomicBool>,
}

impl Fleet {
    /// A liar in place of the host `name`, which must not run. The overlord has to be told of its address.
    #[must_use]
    pub fn liar(&self, name: &str, answer: impl Fn(&Question, &mut Answering) -> io::Result<()> + Send + Sync + 'static) -> Liar {
        assert!(!self.minion(name).is_running(), "{name} runs, and is honest");
        Liar::start(&self.minion(name).certs_dir(), answer)
    }

    /// A relay to the host `name`, which runs: it hands on what the overlord says with the overlord's own certificate, and what the host answers, and shows
    /// the bodies of both to `each`. The overlord has to be told of its address.
    #[must_use]
    pub fn relay(&self, name: &str, each: impl Fn(&Question, &[u8]) + Send + Sync + 'static) -> Liar {
        let host = self.raw_overlord(name);
        Liar::start(&self.minion(name).certs_dir(), move |question, answering| {
            let answer = host.post(&question.body)?.body;
            each(question, &answer);
            answering.respond("200 OK", "", answer)
        })
    }
}

impl Liar {
    fn start(certs: &Path, answer: impl Fn(&Question, &mut Answering) -> io::Result<()> + Send + Sync + 'static) -> Self {
        let chain = CertificateDer::pem_file_iter(certs.join("cert.pem")).unwrap().collect::<Result<Vec<_>, _>>().unwrap();
        let key = PrivateKeyDer::from_pem_file(certs.join("key.pem")).unwrap();
        let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let tls = builder.with_protocol_versions(&[&version::TLS13]).unwrap().with_no_client_auth().with_single_cert(chain, key).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let liar = Self { address: listener.local_addr().unwrap(), asked: Arc::default(), stop: Arc::default() };
        let (tls, answer) = (Arc::new(tls), Arc::new(answer));
        let (asked, stop) = (Arc::clone(&liar.asked), Arc::clone(&liar.stop));
        std::thread::spawn(move || {
            for socket in listener.incoming().flatten() {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                let (tls, answer, asked) = (Arc::clone(&tls), Arc::clone(&answer), Arc::clone(&asked));
                // The other side may close at any point; that is its right.
                std::thread::spawn(move || drop(converse(socket, tls, &asked, &*answer)));
            }
        });
        liar
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What it was asked so far.
    #[must_use]
    pub fn asked(&self) -> Vec<Question> {
        self.asked.lock().unwrap().clone()
    }
}

fn converse(
    socket: TcpStream,
    tls: Arc<ServerConfig>,
    asked: &Mutex<Vec<Question>>,
    answer: &dyn Fn(&Question, &mut Answering) -> io::Result<()>,
) -> io::Result<()> {
    socket.set_read_timeout(Some(IO_TIMEOUT))?;
    socket.set_write_timeout(Some(IO_TIMEOUT))?;
    socket.set_nodelay(true)?;
    let connection = ServerConnection::new(tls).map_err(io::Error::other)?;
    let mut answering = Answering(StreamOwned::new(connection, socket));
    loop {
        let question = answering.question()?;
        asked.lock().unwrap().push(question.clone());
        answer(&question, &mut answering)?;
    }
}

impl Answering {
    fn question(&mut self) -> io::Result<Question> {
        let body = raw::read_request(&mut self.0)?;
        let request: Value = serde_json::from_slice(&body)?;
        let envelope = request["params"]["call"].as_str().unwrap_or_default();
        Ok(Question {
            id: request["id"].clone(),
            method: request["method"].as_str().unwrap_or_default().to_owned(),
            envelope: serde_json::from_str(envelope)?,
            body,
        })
    }

    /// Sends these bytes as they are.
    ///
    /// # Errors
    /// The other side takes no more.
    pub fn raw(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.0.write_all(bytes.as_ref())?;
        self.0.flush()
    }

    /// Sends a whole response.
    ///
    /// # Errors
    /// The other side takes no more.
    pub fn respond(&mut self, status: &str, headers: &str, body: impl AsRef<[u8]>) -> io::Result<()> {
        let body = body.as_ref();
        self.raw(format!("HTTP/1.1 {status}\r\ncontent-type: application/json\r\n{headers}content-length: {}\r\n\r\n", body.len()))?;
        self.raw(body)
    }

    /// Sends the JSON-RPC response with this result, as an honest minion would.
    ///
    /// # Errors
    /// The other side takes no more.
    pub fn result(&mut self, question: &Question, result: &Value) -> io::Result<()> {
        self.respond("200 OK", "", json!({ "jsonrpc": "2.0", "id": question.id, "result": result }).to_string())
    }

    /// Closes the connection without a word.
    ///
    /// # Errors
    /// Always: there is no connection any more.
    pub fn close(&mut self) -> io::Result<()> {
        Err(io::ErrorKind::ConnectionAborted.into())
    }

    /// Until the other side has closed.
    ///
    /// # Errors
    /// Always: there is no connection any more.
    pub fn hang(&mut self) -> io::Result<()> {
        while self.0.read(&mut [0; 1024])? > 0 {}
        self.close()
    }
}

impl fmt::Debug for Answering {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answering").finish_non_exhaustive()
    }
}

impl fmt::Debug for Liar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Liar").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Drop for Liar {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // So that it looks.
        let _ = TcpStream::connect(self.address);
    }
}
