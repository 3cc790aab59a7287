//! `minion.toml`: what may stand in it, what holds if it does not, and where the minion's files lie.
//!
//! It only reads; `check` says what is wrong with what the file points at.

mod paths;
mod trust;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::identity::{InvalidName, MinionName};
use common::job::retention::{KEPT_AT_LEAST, Retention};
use common::period;
use common::protocol::DEFAULT_PORT;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use service::audit::Rotation;
use toml::Spanned;

use crate::server_user::ServerUser;
pub use trust::Trust;

const MIB: usize = 1 << 20;
/// The most that `body_max_bytes` and `result_max_bytes` can be: below what a file of a spool may hold.
const BODY_LARGEST: u32 = 8 << 20;
const RESULT_LARGEST: usize = 16 << 20;
const AUDIT_FILES_MOST: u32 = 1000;
const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

/// The most jobs that one job may submit: with 17 bytes for each they fit into the margin that an answer has beside a result.
pub const FOLLOWUPS_MAX: usize = 10_000;

/// A minion's configuration. Its folders are absolute: what stands relative in the file is meant from the file's folder.
#[derive(Debug, Clone)]
pub struct Config {
    /// The file that it was read from.
    pub file: PathBuf,
    /// The name in this host's certificate.
    pub name: MinionName,
    /// As whom the server runs where the spawner is root; none: as whoever it is started.
    pub user: Option<ServerUser>,
    /// Where the server listens.
    pub listen: SocketAddr,
    /// What the minion itself writes.
    pub state_dir: PathBuf,
    /// `ca.pem`, `cert.pem`, `key.pem`, `crl.pem` and `authority`.
    pub certs_dir: PathBuf,
    /// The rules of who may do what, `*.toml`.
    pub acl_dir: PathBuf,
    /// The resident workers, `NAME.toml`.
    pub workers_dir: PathBuf,
    /// Where the authority is asked, if the file says it: `HOST` or `HOST:PORT`.
    pub authority: Option<String>,
    /// How the host goes by its revocation list: the keys of `[trust]`.
    pub trust: Trust,
    /// The bounds of everything.
    pub limits: Limits,
    /// How long jobs that have ended are kept: the keys of `[retention]`.
    pub retention: Retention,
    /// How large the audit log grows: the keys of `[audit]`.
    pub audit: Rotation,
}

/// The bounds of everything: the keys of `[limits]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// The largest body of a request.
    #[serde(deserialize_with = "body_bytes")]
    pub body_max_bytes: u32,
    /// Connections held open at once whose handshake is over; one more takes the place of one of the caller with most, which keeps us waiting.
    #[serde(deserialize_with = "positive")]
    pub connections_max: usize,
    /// Connections held open at once that are in their handshake; one more takes the place of a silent one, or of the oldest, of the address with most.
    #[serde(deserialize_with = "positive")]
    pub handshakes_max: usize,
    /// From accepting a connection to the end of its TLS handshake.
    #[serde(deserialize_with = "period::deserialize")]
    pub handshake_timeout: Duration,
    /// From the first byte of a request to the end of its headers; its body has as long again.
    #[serde(deserialize_with = "period::deserialize")]
    pub header_timeout: Duration,
    /// How long a connection may stay open without a request.
    #[serde(deserialize_with = "period::deserialize")]
    pub idle_timeout: Duration,
    /// The longest run of a synchronous call.
    #[serde(deserialize_with = "period::deserialize")]
    pub call_time_max: Duration,
    /// The longest run of a job.
    #[serde(deserialize_with = "period::deserialize")]
    pub job_time_max: Duration,
    /// The largest result of a method, as JSON text.
    #[serde(deserialize_with = "result_bytes")]
    pub result_max_bytes: usize,
    /// How much of each of a job's stdout and stderr is kept on disk.
    #[serde(deserialize_with = "positive")]
    pub output_max_bytes: u64,
    /// Methods of synchronous calls running at once.
    #[serde(deserialize_with = "positive")]
    pub calls_max: usize,
    /// Jobs running at once; the rest wait.
    #[serde(deserialize_with = "positive")]
    pub jobs_max: usize,
    /// Jobs that may wait, for a place or for jobs that they have submitted; with 0, none does for a place.
    pub queue_max: usize,
    /// Jobs that one job may submit, [`FOLLOWUPS_MAX`] at most.
    #[serde(deserialize_with = "followups")]
    pub followups_max: usize,
    /// Where less is free on the disk of `state_dir`, new jobs are refused.
    pub disk_reserve_bytes: u64,
    /// From SIGTERM to SIGKILL when a method is stopped.
    #[serde(deserialize_with = "period::deserialize")]
    pub cancel_grace: Duration,
    /// How long a server that was told to stop lets running calls end.
    #[serde(deserialize_with = "period::deserialize")]
    pub shutdown_grace: Duration,
    /// How often the spools are compared with the status store.
    #[serde(deserialize_with = "period::deserialize")]
    pub reconcile_every: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body_max_bytes: 1 << 20,
            connections_max: 1024,
            handshakes_max: 1024,
            handshake_timeout: 10 * SECOND,
            header_timeout: 10 * SECOND,
            idle_timeout: 60 * SECOND,
            call_time_max: HOUR,
            job_time_max: 7 * 24 * HOUR,
            result_max_bytes: MIB,
            output_max_bytes: 16 << 20,
            calls_max: 256,
            jobs_max: 128,
            queue_max: 1000,
            followups_max: FOLLOWUPS_MAX,
            disk_reserve_bytes: 64 << 20,
            cancel_grace: 5 * SECOND,
            shutdown_grace: 10 * SECOND,
            reconcile_every: 60 * SECOND,
        }
    }
}

impl Limits {
    /// Those of the listener.
    #[must_use]
    pub fn listener(&self) -> service::Limits {
        let Self {
            body_max_bytes, connections_max, handshakes_max, handshake_timeout, header_timeout, idle_timeout, shutdown_grace, ..
        } = *self;
        service::Limits {
            body_max_bytes,
            connections_max,
            handshakes_max,
            handshake_timeout,
            header_timeout,
            idle_timeout,
            shutdown_grace,
            strangers: None,
        }
    }
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {}; --config names another", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// What stands in the file cannot stand there.
    #[error("{}:{line}: {problem}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong, and what may stand there.
        problem: String,
    },
    /// The file has no `name`, and the host's name does not do.
    #[error("{} has no `name`, and the host's own cannot stand for it; write `name = \"…\"` as in the host's certificate", path.display())]
    HostName {
        /// The file.
        path: PathBuf,
        /// What is wrong with the host's name.
        source: InvalidName,
    },
}

/// The file as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    name: Option<MinionName>,
    user: Option<Spanned<String>>,
    #[serde(default = "everywhere")]
    listen: SocketAddr,
    #[serde(default = "default_state_dir")]
    state_dir: PathBuf,
    #[serde(default = "default_certs_dir")]
    certs_dir: PathBuf,
    #[serde(default = "default_acl_dir")]
    acl_dir: PathBuf,
    #[serde(default = "default_workers_dir")]
    workers_dir: PathBuf,
    #[serde(default, deserialize_with = "trust::authority")]
    authority: Option<String>,
    #[serde(default)]
    trust: Trust,
    #[serde(default)]
    limits: Limits,
    #[serde(default)]
    retention: RetentionKeys,
    #[serde(default)]
    audit: AuditKeys,
}

/// `[retention]` as it is written.
#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RetentionKeys {
    #[serde(deserialize_with = "kept_for")]
    age: Duration,
    #[serde(deserialize_with = "positive")]
    count: usize,
    #[serde(deserialize_with = "positive")]
    bytes: u64,
}

impl Default for RetentionKeys {
    fn default() -> Self {
        Self { age: 7 * 24 * HOUR, count: 100_000, bytes: 4 << 30 }
    }
}

/// `[audit]` as it is written.
#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct AuditKeys {
    #[serde(deserialize_with = "positive")]
    max_bytes: u64,
    #[serde(deserialize_with = "older_files")]
    files: u32,
}

impl Default for AuditKeys {
    fn default() -> Self {
        Self { max_bytes: Rotation::default().max_bytes, files: Rotation::default().files }
    }
}

fn everywhere() -> SocketAddr {
    (Ipv4Addr::UNSPECIFIED, DEFAULT_PORT).into()
}

fn default_state_dir() -> PathBuf {
    "/var/lib/minion".into()
}

fn default_certs_dir() -> PathBuf {
    "/etc/minion/certs".into()
}

fn default_acl_dir() -> PathBuf {
    "/etc/minion/acl.d".into()
}

/// Beside the file.
fn default_workers_dir() -> PathBuf {
    "workers.d".into()
}

fn positive<'de, D: Deserializer<'de>, N: Deserialize<'de> + Default + PartialEq>(input: D) -> Result<N, D::Error> {
    let number = N::deserialize(input)?;
    if number == N::default() { Err(D::Error::custom("0 would let nothing through; it must be at least 1")) } else { Ok(number) }
}

fn followups<'de, D: Deserializer<'de>>(input: D) -> Result<usize, D::Error> {
    let number = usize::deserialize(input)?;
    let why = || D::Error::custom(format!("{FOLLOWUPS_MAX} is the most: a job's outcome names them all"));
    if number > FOLLOWUPS_MAX { Err(why()) } else { Ok(number) }
}

fn kept_for<'de, D: Deserializer<'de>>(input: D) -> Result<Duration, D::Error> {
    let age = period::deserialize(input)?;
    if age < KEPT_AT_LEAST { Err(D::Error::custom("every job is kept for at least 60m after its end")) } else { Ok(age) }
}

/// Each is renamed at every rotation.
fn older_files<'de, D: Deserializer<'de>>(input: D) -> Result<u32, D::Error> {
    at_most(positive(input)?, AUDIT_FILES_MOST)
}

/// A request is kept in the spool, which is read whole.
fn body_bytes<'de, D: Deserializer<'de>>(input: D) -> Result<u32, D::Error> {
    at_most(positive(input)?, BODY_LARGEST)
}

/// A result is written and read whole, more than once.
fn result_bytes<'de, D: Deserializer<'de>>(input: D) -> Result<usize, D::Error> {
    at_most(positive(input)?, RESULT_LARGEST)
}

fn at_most<N: PartialOrd + std::fmt::Display, E: serde::de::Error>(number: N, largest: N) -> Result<N, E> {
    if number > largest { Err(E::custom(format!("{number} is more than {largest}, the most that it can be"))) } else { Ok(number) }
}

impl Config {
    /// The configuration in the file `path`.
    ///
    /// # Errors
    /// It cannot be read, has a key that is not one of ours, or a value that cannot stand there.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let read = |source| ConfigError::Read { path: path.to_owned(), source };
        let text = std::fs::read_to_string(path).map_err(read)?;
        let file = std::path::absolute(path).map_err(read)?;
        Self::parse(file, &text)
    }

    /// The configuration in `text`, which is that of the absolute path `file`.
    ///
    /// # Errors
    /// It has a key that is not one of ours, or a value that cannot stand there.
    pub fn parse(file: PathBuf, text: &str) -> Result<Self, ConfigError> {
        let invalid = |line, problem| ConfigError::Invalid { path: file.clone(), line, problem };
        let read: File = toml::from_str(text).map_err(|error| invalid(line_of(text, &error), error.message().replace('\n', "; ")))?;
        let find = |name: Spanned<String>| {
            ServerUser::find(name.get_ref()).map_err(|problem| invalid(line_at(text, name.span().start), format!("user: {problem}")))
        };
        let name = match read.name {
            Some(name) => name,
            None => nix::unistd::gethostname()
                .unwrap_or_default()
                .to_string_lossy()
                .parse()
                .map_err(|source| ConfigError::HostName { path: file.clone(), source })?,
        };
        let from_file = |path: PathBuf| file.parent().map(|folder| folder.join(&path)).unwrap_or(path);
        Ok(Self {
            name,
            user: read.user.map(find).transpose()?,
            listen: read.listen,
            state_dir: from_file(read.state_dir),
            certs_dir: from_file(read.certs_dir),
            acl_dir: from_file(read.acl_dir),
            workers_dir: from_file(read.workers_dir),
            authority: read.authority,
            trust: read.trust,
            limits: read.limits,
            retention: Retention { age: read.retention.age, count: read.retention.count, bytes: read.retention.bytes },
            audit: Rotation { max_bytes: read.audit.max_bytes, files: read.audit.files },
            file,
        })
    }
}

/// The line of `text`, from 1, that a TOML error is about.
pub(crate) fn line_of(text: &str, error: &toml::de::Error) -> usize {
    let start = error.span().map_or(0, |span| span.start);
    line_at(text, start)
}

/// The line of `text`, from 1, in which the byte `offset` stands.
pub(crate) fn line_at(text: &str, offset: usize) -> usize {
    1 + text.bytes().take(offset).filter(|byte| *byte == b'\n').count()
}

#[cfg(test)]
mod tests;
