//! `minion enroll`: asks the fleet's authority for this host's certificate, and puts what it gets into `certs_dir`.
//!
//! The host's key is made here and never leaves it. Nothing is sent before the handshake has proved that the authority is the one whose
//! fingerprint was given. A kill at any point leaves what the same command puts right.
//!
//! As root, for a server of another user, it is that user in all it does but two things: the folder, and the authority's certificate in it.

mod asking;
mod awaiting;

use std::fs::DirBuilder;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use certs::csr::{self, CsrError};
use certs::enrolled::{self, Enrolled, EnrolledError};
use certs::files::FileError;
use certs::tls::{CaPin, TlsError};
use certs::trust::TrustFiles;
use clap::Args;
use common::period;
use common::protocol::certs::EnrollParams;
use common::shown::{SAID_MAX_LETTERS, chain, harmless_line};
use jiff::Timestamp;
use nix::sys::stat::{Mode, umask};
use nix::unistd::geteuid;
use tokio::runtime::Builder;

use crate::config::{Config, ConfigError};
use crate::folders::{self, FolderError};
use crate::server_user::{BecomeError, ServerUser, own_name};
use asking::{Asked, Ended};
pub(crate) use awaiting::await_certificate;

/// The exit status of a request that waits: EX_TEMPFAIL of sysexits.h.
const EXIT_WAITS: u8 = 75;
/// The exit status after SIGINT, as of a shell.
const EXIT_INTERRUPTED: u8 = 130;
/// Where a token is read from that stands in no argument.
const TOKEN_VARIABLE: &str = "MINION_TOKEN";
/// The longest token that is read.
const TOKEN_MAX_BYTES: u64 = 1024;
/// Everyone can read the authority's certificate.
const ROOTS_UMASK: Mode = Mode::from_bits_truncate(0o022);

/// What `minion enroll` is told.
#[derive(Debug, Args)]
pub struct Request {
    /// Where `overlord certs serve` listens.
    #[arg(long, value_name = "HOST[:PORT]")]
    overlord: String,
    /// The fingerprint of the fleet's authority, as `overlord certs status` prints it.
    #[arg(long, value_name = "SHA256")]
    ca_fingerprint: CaPin,
    /// A one-time token that signs the request without asking. Other users of this host can read arguments: `-` reads it from stdin, and
    /// without the option the variable `MINION_TOKEN` may hold it.
    #[arg(long, value_name = "T")]
    token: Option<String>,
    /// Ask until the request is signed or rejected, at most this long: 30s, 10m, 1h.
    #[arg(long, value_name = "DUR", value_parser = period::parse)]
    wait: Option<Duration>,
}

/// Why this host has no certificate by this. What it says is one line and names the next command.
#[derive(Debug, thiserror::Error)]
enum EnrollError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("making the folder {}", .path.display())]
    Folder { path: PathBuf, source: io::Error },
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Key(#[from] CsrError),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(transparent)]
    Shared(#[from] FolderError),
    #[error(transparent)]
    User(#[from] BecomeError),
    #[error("{path} is not the user {user}'s, as whom the server runs: run `chown {user}: {path}`, and this again", path = .path.display())]
    NotUsers { path: PathBuf, user: String },
    #[error("reading the token from stdin")]
    Token(#[source] io::Error),
    #[error("starting")]
    Runtime(#[source] io::Error),
    #[error(
        "{} is the certificate of another authority ({present}) than the one asked for ({pin}): nothing was sent; if this host is to change \
         fleets, move the files of {} away, and run this again",
        .ca.display(), .folder.display()
    )]
    OtherAuthority { ca: PathBuf, folder: PathBuf, present: String, pin: CaPin },
    #[error("{0}")]
    Refused(String),
    #[error("what {address} answers cannot be used, and nothing of it was kept")]
    Answer { address: String, source: Box<EnrolledError> },
}

/// Does it, and says on stdout what there is now, on stderr what is to be done.
pub(crate) fn run(config: &Path, request: Request) -> ExitCode {
    match enroll(config, request) {
        Ok(done) => done,
        Err(error) => {
            say(&harmless_line(&chain(&error), SAID_MAX_LETTERS));
            ExitCode::FAILURE
        }
    }
}

fn enroll(path: &Path, request: Request) -> Result<ExitCode, EnrollError> {
    let config = Config::load(path)?;
    let files = TrustFiles::of_minion(&config.certs_dir);
    let user = config.user.as_ref().filter(|_| geteuid().is_root());
    if let Some(user) = user {
        umask(ROOTS_UMASK);
        folders::share_certs(&config.certs_dir, user)?;
        user.act()?;
        require_users(&config.certs_dir, user)?;
    }
    require_authority(&files, &config, &request.ca_fingerprint)?;
    let token = token(request.token)?;
    make_folder(&config.certs_dir)?;
    make_key(&files.key)?;
    let params = EnrollParams { name: config.name.clone(), csr: csr::write_csr(&files.key, &config.name)?, token };
    let asked = Asked { address: &request.overlord, pin: request.ca_fingerprint, params, wait: request.wait };
    let runtime = Builder::new_current_thread().enable_all().build().map_err(EnrollError::Runtime)?;
    match runtime.block_on(asking::ask(asked, &config, &files))? {
        Ended::Issued { ca, issued, address } => {
            let (cert, crl) = (issued.cert.as_str(), issued.revocations.crl.as_deref());
            let enrolled = Enrolled { name: &config.name, ca: &ca, cert, crl, authority: &address };
            let useless = |source| EnrollError::Answer { address: address.clone(), source: Box::new(source) };
            if let Some(user) = user {
                enrolled::check(&files, &enrolled).map_err(useless)?;
                user.as_root(|| enrolled::install_authority(&files, &ca, geteuid().as_raw()))??;
            }
            let until = enrolled::install(&files, &enrolled).map_err(useless)?;
            tell_other_address(&config, &address);
            tell_other_user(&config, &files);
            Ok(report(&config, &files, until))
        }
        Ended::Waiting => Ok(ExitCode::from(EXIT_WAITS)),
        Ended::Interrupted => Ok(ExitCode::from(EXIT_INTERRUPTED)),
    }
}

/// Refuses files that the server could neither read nor replace, which it does with all but the authority's certificate.
fn require_users(certs_dir: &Path, user: &ServerUser) -> Result<(), EnrollError> {
    let is_anothers = |path: &PathBuf| path.symlink_metadata().is_ok_and(|file| file.uid() != user.uid());
    match folders::CERTS_OF_SERVER.map(|name| certs_dir.join(name)).into_iter().find(is_anothers) {
        Some(path) => Err(EnrollError::NotUsers { path, user: user.name().to_owned() }),
        None => Ok(()),
    }
}

/// Refuses a folder that belongs to another fleet.
fn require_authority(files: &TrustFiles, config: &Config, pin: &CaPin) -> Result<(), EnrollError> {
    let known = enrolled::known_authorities(files)?;
    if known.is_empty() || known.contains(pin) {
        return Ok(());
    }
    let present = known.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    Err(EnrollError::OtherAuthority { ca: files.ca.clone(), folder: config.certs_dir.clone(), present, pin: pin.clone() })
}

fn token(given: Option<String>) -> Result<Option<String>, EnrollError> {
    let text = match given {
        Some(dash) if dash == "-" => {
            let mut text = String::new();
            io::stdin().take(TOKEN_MAX_BYTES).read_to_string(&mut text).map_err(EnrollError::Token)?;
            Some(text)
        }
        Some(text) => Some(text),
        None => std::env::var(TOKEN_VARIABLE).ok(),
    };
    Ok(text.map(|text| text.trim().to_owned()).filter(|text| !text.is_empty()))
}

/// Only its owner gets into it; folders above it are made as usual.
fn make_folder(path: &Path) -> Result<(), EnrollError> {
    let failed = |source| EnrollError::Folder { path: path.to_owned(), source };
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(failed)?;
    }
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made.map_err(failed),
    }
}

fn make_key(path: &Path) -> Result<(), EnrollError> {
    match csr::make_key(path) {
        // The same command, run twice at once, has made it.
        Ok(_) | Err(CsrError::File(FileError::Exists { .. })) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn tell_other_address(config: &Config, address: &str) {
    if let Some(other) = config.authority.as_ref().filter(|other| service::authority::full_address(other) != address) {
        say(&format!(
            "{} says `authority = \"{other}\"`, which goes before {address}: renewals are asked for there",
            config.file.display()
        ));
    }
}

/// Of a host whose server is another user, or whose authority anybody but root could replace.
fn tell_other_user(config: &Config, files: &TrustFiles) {
    let Some(user) = &config.user else { return };
    let (name, file) = (user.name(), config.file.display());
    if !geteuid().is_root() && geteuid().as_raw() != user.uid() {
        say(&format!("{file} says `user = {name:?}`, and the files made now are those of {}: run this as root, or as {name}", own_name()));
    } else if files.ca.symlink_metadata().is_ok_and(|ca| ca.uid() != 0) {
        let ca = files.ca.display();
        say(&format!("{ca} is not root's, and a spawner that is root goes by no other: run `chown root:root {ca}`, or this as root"));
    }
}

fn report(config: &Config, files: &TrustFiles, until: Timestamp) -> ExitCode {
    let line = format!("{}: minion {}, certificate good until {until}\n", files.cert.display(), config.name);
    match io::stdout().write_all(line.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// Talk, for stderr. That nobody hears it changes nothing.
fn say(text: &str) {
    let _unheard = io::stderr().write_all(format!("minion: {text}\n").as_bytes());
}

#[cfg(test)]
mod tests;
