//! What somebody could do who has captured a minion's server: speak to its spawner, as the server does and with all that the server knows.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use common::protocol::Envelope;
use serde_json::{Value, json};
use tokio_rustls::rustls::pki_types::{CertificateDer, pem::PemObject};

use crate::minion::Minion;
use crate::raw;

/// How long the spawner may take to answer.
const TIMEOUT: Duration = Duration::from_secs(30);

/// A server that was captured.
#[derive(Debug)]
pub struct CapturedServer {
    name: String,
    socket: PathBuf,
    /// What was done, what was refused, and what no job's token proves.
    logs: [PathBuf; 3],
}

impl CapturedServer {
    /// That of `minion`.
    #[must_use]
    pub fn of(minion: &Minion) -> Self {
        Self {
            name: minion.name().to_owned(),
            socket: minion.state_dir().join("spawner.sock"),
            logs: ["audit.log", "refused.log", "unproved.log"].map(|name| minion.spools_dir().join(name)),
        }
    }

    /// What the spawner answers to `order`; none if it hangs up.
    ///
    /// # Panics
    /// It cannot be reached.
    #[must_use]
    pub fn order(&self, order: &Value) -> Option<Value> {
        let said = json!({ "protocol": minion::spawner::PROTOCOL, "by": common::format::VERSION, "order": order });
        self.say(format!("{said}\n").as_bytes())
    }

    /// What it answers to these bytes.
    ///
    /// # Panics
    /// It cannot be reached.
    #[must_use]
    pub fn say(&self, bytes: &[u8]) -> Option<Value> {
        let mut stream = UnixStream::connect(&self.socket).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        stream.set_write_timeout(Some(TIMEOUT)).unwrap();
        // It may hang up in the middle of it.
        let _heard_enough = stream.write_all(bytes);
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).ok()?;
        serde_json::from_str(&line).ok()
    }

    /// The call of `envelope` as the server hands it on: signed with the key in `folder`, by whose certificate it is to be believed.
    #[must_use]
    pub fn ask(&self, folder: &Path, envelope: &Envelope) -> Value {
        let call = serde_json::to_string(envelope).unwrap();
        self.ask_with(folder, &call, &raw::signature_of(folder, &call))
    }

    /// The text of a call, with whatever signature.
    ///
    /// # Panics
    /// There is no certificate in `folder`.
    #[must_use]
    pub fn ask_with(&self, folder: &Path, call: &str, signature: &str) -> Value {
        let cert = CertificateDer::from_pem_file(folder.join("cert.pem")).unwrap();
        let proof = json!({ "signed": { "signature": signature, "certificate": STANDARD.encode(&cert) } });
        json!({ "minion": self.name, "call": call, "proof": proof })
    }

    /// What the spawner has written down, done and refused, in the order in which it was.
    ///
    /// # Panics
    /// A line is none.
    #[must_use]
    pub fn audit(&self) -> Vec<Value> {
        let texts = self.logs.iter().map(|log| std::fs::read_to_string(log).unwrap_or_default());
        let mut lines: Vec<Value> =
            texts.flat_map(|text| text.lines().map(|line| serde_json::from_str(line).unwrap()).collect::<Vec<_>>()).collect();
        lines.sort_by_key(|line| line["at"].as_str().map(|at| at.parse::<jiff::Timestamp>().unwrap()));
        lines
    }
}
