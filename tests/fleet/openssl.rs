//! A client of TLS that is not ours: `openssl s_client`.

use std::fs;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use crate::{PATIENCE, tools, wait};

/// What is asked once the handshake is over. The server answers with a status, and closes.
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
/// It refuses old versions by itself, and so does the configuration of some distributions, unless told otherwise.
const WILLING: [&str; 2] = ["-cipher", "DEFAULT@SECLEVEL=0"];

/// A certificate and its key, in PEM files.
#[derive(Debug, Clone)]
pub struct Shown {
    /// The certificate.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

impl Shown {
    /// What lies in a folder that the authority issued.
    #[must_use]
    pub fn of(folder: &Path) -> Self {
        Self { cert: folder.join("cert.pem"), key: folder.join("key.pem") }
    }

    /// A certificate that nobody but its bearer has signed, with this role in it, made in `folder`.
    ///
    /// # Panics
    /// It cannot be made.
    #[must_use]
    pub fn self_signed(folder: &Path, role: &str) -> Self {
        let shown = Self { cert: folder.join("self-signed.pem"), key: folder.join("self-signed.key") };
        let config = folder.join("self-signed.cnf");
        let extensions = format!("basicConstraints=critical,CA:FALSE\nextendedKeyUsage=clientAuth\nsubjectAltName=URI:{role}\n");
        fs::write(&config, format!("[req]\ndistinguished_name=name\nx509_extensions=extensions\n[name]\n[extensions]\n{extensions}"))
            .unwrap();
        let words = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1", "-subj", "/CN=x"];
        let mut command = tools::with(tools::tool("openssl"), words);
        command.arg("-config").arg(&config).arg("-out").arg(&shown.cert).arg("-keyout").arg(&shown.key);
        tools::run(command);
        shown
    }
}

/// Connects to `address`, with a certificate or without, with these further words of `s_client`, and asks something. Gives all that openssl says,
/// and what the server answered.
///
/// # Panics
/// It does not end.
#[must_use]
pub fn s_client(address: SocketAddr, shown: Option<&Shown>, words: &[&str]) -> String {
    let mut command = tools::with(tools::tool("openssl"), ["s_client", "-connect", &address.to_string(), "-ign_eof"]);
    command.args(WILLING).args(words).env("OPENSSL_CONF", "/dev/null");
    if let Some(Shown { cert, key }) = shown {
        command.arg("-cert").arg(cert).arg("-key").arg(key);
    }
    let mut client = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // It may have been refused already.
    let _ = client.stdin.take().unwrap().write_all(REQUEST);
    let ended = wait::until(PATIENCE, || client.try_wait().unwrap().is_some());
    if !ended {
        client.kill().unwrap();
    }
    let output = client.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(ended, "openssl s_client does not end: {said}");
    said
}
