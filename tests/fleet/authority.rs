//! The fleet's authority as a server, `overlord certs serve`, and who asks it: hosts that enrol, and overlords beside the first.

use std::ffi::OsStr;
use std::fs::{self, OpenOptions};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::run::Running;
use crate::{Fleet, PATIENCE, Run, addresses, binaries, processes, tools, wait};

/// What `overlord certs serve` says once it accepts connections: the line for a host.
const LISTENING: &str = "--ca-fingerprint";

/// A running `overlord certs serve`. Dropped, it is killed.
#[derive(Debug)]
pub struct Authority {
    process: Child,
    address: SocketAddr,
    stderr: PathBuf,
}

impl Fleet {
    /// Starts `overlord certs serve` on the fleet's home, at an address that stays its own for all its starts.
    ///
    /// # Panics
    /// It does not start.
    #[must_use]
    pub fn serve_certs(&self) -> Authority {
        let file = self.root().join("authority.address");
        let address = fs::read_to_string(&file).ok().and_then(|text| text.parse().ok()).unwrap_or_else(|| {
            let address = addresses::addresses(1).remove(0);
            fs::write(&file, address.to_string()).unwrap();
            address
        });
        self.serve_certs_at(address, &self.overlord_words())
    }

    fn serve_certs_at(&self, address: SocketAddr, words: &[String]) -> Authority {
        let stderr = self.root().join("authority.stderr");
        let written = OpenOptions::new().create(true).append(true).open(&stderr).unwrap();
        let before = usize::try_from(written.metadata().unwrap().len()).unwrap();
        let mut command = tools::within(words, &binaries().overlord);
        command.args(["certs", "serve", "--listen", &address.to_string()]);
        command.env("OVERLORD_HOME", self.home()).env(processes::MARK, self.root());
        let process = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(written).spawn().unwrap();
        let mut authority = Authority { process, address, stderr };
        let listens = wait::until(PATIENCE, || {
            let ended = authority.process.try_wait().unwrap();
            assert!(ended.is_none(), "certs serve has ended ({ended:?}) instead of listening:\n{}", authority.stderr());
            authority.stderr().get(before..).is_some_and(|said| said.contains(LISTENING))
        });
        assert!(listens, "certs serve does not listen:\n{}", authority.stderr());
        authority
    }

    /// The SHA-256 of the authority's certificate, as hosts pin it.
    #[must_use]
    pub fn ca_fingerprint(&self) -> String {
        ca_fingerprint(&self.home().join("certs/ca.pem"))
    }

    /// Starts `minion enroll` on a host's configuration, with the pin of this fleet's authority.
    pub fn enroll_spawn<A: AsRef<OsStr>>(&self, minion: &str, authority: SocketAddr, args: impl IntoIterator<Item = A>) -> Running {
        self.enroll_pinned(minion, authority, &self.ca_fingerprint(), args)
    }

    /// Runs it to its end.
    pub fn enroll<A: AsRef<OsStr>>(&self, minion: &str, authority: SocketAddr, args: impl IntoIterator<Item = A>) -> Run {
        self.enroll_spawn(minion, authority, args).wait()
    }

    /// The same with any pin.
    pub fn enroll_pinned<A: AsRef<OsStr>>(
        &self,
        minion: &str,
        authority: SocketAddr,
        pin: &str,
        args: impl IntoIterator<Item = A>,
    ) -> Running {
        let mut command = Command::new(&binaries().minion);
        command.arg("--config").arg(self.minion(minion).config_file()).arg("enroll");
        command.args(["--overlord", &authority.to_string(), "--ca-fingerprint", pin]).args(args).env(processes::MARK, self.root());
        Running::start(command)
    }

    /// The home of another overlord, `name`, with a certificate that the real `overlord certs issue --role overlord` made, and the same hosts.
    #[must_use]
    pub fn another_overlord(&self, name: &str) -> PathBuf {
        let (out, home) = (self.root().join("issued-overlords"), self.root().join(format!("home-{name}")));
        let _ = self.overlord(["certs", "issue", "--role", "overlord", name, "--out", out.to_str().unwrap()]).ok();
        fs::create_dir_all(&home).unwrap();
        fs::rename(out.join(name), home.join("certs")).unwrap();
        fs::copy(self.home().join("hosts.toml"), home.join("hosts.toml")).unwrap();
        home
    }

    /// Starts the overlord on another home.
    pub fn overlord_at<A: AsRef<OsStr>>(&self, home: &Path, args: impl IntoIterator<Item = A>) -> Running {
        Running::overlord_within(&self.overlord_words(), home, self.root(), args)
    }
}

impl Authority {
    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> i32 {
        i32::try_from(self.process.id()).unwrap()
    }

    /// All that it and those before it wrote to stderr.
    #[must_use]
    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.stderr).unwrap_or_default()).into_owned()
    }

    /// Whether it runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.process.try_wait(), Ok(None))
    }

    /// Kills it, and waits until it is gone.
    pub fn kill9(self) {
        drop(self);
    }

    /// Tells it to stop, and waits until it has, with status 0.
    ///
    /// # Panics
    /// It does not, or ends otherwise.
    pub fn stop(mut self) {
        kill(Pid::from_raw(self.pid()), Signal::SIGTERM).unwrap();
        assert!(wait::until(PATIENCE, || !self.is_running()), "certs serve does not end on SIGTERM:\n{}", self.stderr());
        let status = self.process.wait().unwrap();
        assert!(status.success(), "certs serve: {status}:\n{}", self.stderr());
    }
}

impl Drop for Authority {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- what certs serve wrote\n{}", self.stderr());
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The SHA-256 of the first certificate of a PEM file, in hexadecimal digits.
#[must_use]
pub fn ca_fingerprint(path: &Path) -> String {
    use tokio_rustls::rustls::pki_types::{CertificateDer, pem::PemObject};
    let cert = CertificateDer::from_pem_file(path).unwrap();
    let digest = ring::digest::digest(&ring::digest::SHA256, &cert);
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}
