//! `overlord.toml`: the limits, each with a default. The file may be missing; a key it does not know is an error.

mod authority;

use std::fs;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::job::retention::{KEPT_AT_LEAST, Retention};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

pub use self::authority::{CertsLimits, TrustLimits};
pub(crate) use self::authority::{authority_address, valid};

/// Why a file of the home cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("reading {}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// What it says cannot be understood.
    #[error("{}:{line}: {problem}", .path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        problem: String,
    },
}

/// The limits of the overlord. Each is a key of `overlord.toml`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Hosts in flight at once.
    pub forks: u16,
    /// How long a method may take on a host in a synchronous call.
    #[serde(deserialize_with = "common::period::deserialize")]
    pub timeout: Duration,
    /// How long looking a host up, connecting and the TLS handshake may take together.
    #[serde(deserialize_with = "common::period::deserialize")]
    pub connect_timeout: Duration,
    /// How long a host may take to accept a job.
    #[serde(deserialize_with = "common::period::deserialize")]
    pub accept_timeout: Duration,
    /// How long a host may take to say how far a job is.
    #[serde(deserialize_with = "common::period::deserialize")]
    pub poll_timeout: Duration,
    /// A host that has not answered for so long is `lost`.
    #[serde(deserialize_with = "common::period::deserialize")]
    pub lost_after: Duration,
    /// How long to wait while other commands use the job store.
    #[serde(deserialize_with = "common::period::deserialize")]
    pub store_wait: Duration,
    /// The largest answer of a host that is read.
    pub result_max_bytes: u32,
    /// The largest call that is sent.
    pub call_max_bytes: u32,
    /// How much of a job's stdout, and of its stderr, is read from a host.
    pub logs_max_bytes: u64,
    /// How many bytes of items a map has at most that goes on by itself.
    pub items_max_bytes: u64,
    /// Where `overlord certs serve` listens, `HOST:PORT` or `HOST`, for a home that is not the authority's.
    #[serde(deserialize_with = "authority::address")]
    pub authority: Option<String>,
    /// What goes for certificates of others.
    pub trust: TrustLimits,
    /// How long jobs are kept here, and how many.
    pub retention: RetentionLimits,
    /// How the authority issues certificates, and serves.
    pub certs: CertsLimits,
}

/// How long jobs that have ended are kept here: the table `[retention]` of `overlord.toml`. Whatever it says, none is given up in the 60
/// minutes after its end.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RetentionLimits {
    /// So long after its end a job is given up; at least 60 minutes.
    #[serde(deserialize_with = "kept_for")]
    pub age: Duration,
    /// So many jobs are kept.
    #[serde(deserialize_with = "some_jobs")]
    pub count: usize,
    /// So many bytes of job logs are kept.
    pub bytes: u64,
}

impl Default for RetentionLimits {
    fn default() -> Self {
        Self { age: Duration::from_secs(30 * 24 * 60 * 60), count: 10_000, bytes: 10 << 30 }
    }
}

impl RetentionLimits {
    pub(crate) fn rule(&self) -> Retention {
        Retention { age: self.age, count: self.count, bytes: self.bytes }
    }
}

fn kept_for<'de, D: Deserializer<'de>>(input: D) -> Result<Duration, D::Error> {
    let age = common::period::deserialize(input)?;
    if age < KEPT_AT_LEAST {
        let least = KEPT_AT_LEAST.as_secs() / 60;
        return Err(D::Error::custom(format!(
            "retention.age is shorter than the {least} minutes for which every job is kept after its end"
        )));
    }
    Ok(age)
}

fn some_jobs<'de, D: Deserializer<'de>>(input: D) -> Result<usize, D::Error> {
    match usize::deserialize(input)? {
        0 => Err(D::Error::custom("retention.count is 0: no job could be started")),
        count => Ok(count),
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            forks: 64,
            timeout: Duration::from_secs(60),
            connect_timeout: Duration::from_secs(3),
            accept_timeout: Duration::from_secs(10),
            poll_timeout: Duration::from_secs(10),
            lost_after: Duration::from_secs(24 * 60 * 60),
            store_wait: Duration::from_secs(10),
            // A minion with limits of its own default sends 1.25 MiB at most; and while it is read, an answer takes many times its size.
            result_max_bytes: 4 << 20,
            call_max_bytes: 10 << 20,
            // A minion with limits of its own default keeps 16 MiB; it passes through, and is not kept.
            logs_max_bytes: 1 << 30,
            items_max_bytes: 1 << 30,
            authority: None,
            trust: TrustLimits::default(),
            retention: RetentionLimits::default(),
            certs: CertsLimits::default(),
        }
    }
}

impl Config {
    /// Reads `path`; the defaults if there is no such file.
    pub(crate) fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(source) => return Err(ConfigError::Read { path: path.to_owned(), source }),
        };
        Self::parse(path, &text)
    }

    /// The limits in `text`, which is the file `path`.
    pub(crate) fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text).map_err(|error| toml_error(path, text, &error))?;
        let sizes = [
            ("forks", u64::from(config.forks)),
            ("result_max_bytes", config.result_max_bytes.into()),
            ("call_max_bytes", config.call_max_bytes.into()),
            ("logs_max_bytes", config.logs_max_bytes),
            ("items_max_bytes", config.items_max_bytes),
        ];
        let zero = sizes.into_iter().find(|(_, value)| *value == 0);
        match zero {
            None => Ok(config),
            Some((key, _)) => Err(content_error(path, text, text.find(key), format!("{key} is 0: nothing could get through"))),
        }
    }
}

pub(crate) fn toml_error(path: &Path, text: &str, error: &toml::de::Error) -> ConfigError {
    content_error(path, text, error.span().map(|Range { start, .. }| start), error.message().trim_end().to_owned())
}

/// A [`ConfigError`] about what stands at byte `at` of `text`.
pub(crate) fn content_error(path: &Path, text: &str, at: Option<usize>, problem: String) -> ConfigError {
    let before = text.get(..at.unwrap_or(0)).unwrap_or_default();
    ConfigError::Content { path: path.to_owned(), line: before.matches('\n').count() + 1, problem }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;

    fn load(text: &str) -> Result<Config, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("overlord.toml");
        fs::write(&path, text).unwrap();
        Config::load(&path).map_err(|error| error.to_string().replace(&dir.path().display().to_string(), ""))
    }

    #[test]
    fn what_is_not_said_has_a_default() {
        assert_eq!(Config::load(Path::new("/nonexistent/overlord.toml")).unwrap(), Config::default());
        let config = load("forks = 8\nlost_after = \"2d\"\n").unwrap();
        assert_eq!((config.forks, config.lost_after), (8, Duration::from_secs(172_800)));
        assert_eq!(config.timeout, Config::default().timeout);
        let kept = load("[retention]\nage = \"1h\"\nbytes = 5\n").unwrap().retention;
        assert_eq!(kept, RetentionLimits { age: KEPT_AT_LEAST, bytes: 5, ..Default::default() });
        let config = load("authority = \"ca.example.com\"\n[certs]\nvalid = \"10s\"\n").unwrap();
        assert_eq!(config.authority.as_deref(), Some("ca.example.com:51235"));
        assert_eq!(config.certs, CertsLimits { valid: Duration::from_secs(10), ..Default::default() });
        assert!(config.result_max_bytes >= (1 << 20) + (256 << 10), "a minion's default result_max_bytes, and what is around it");
    }

    #[test]
    fn errors_name_the_file_and_the_line() {
        for (text, problem) in [
            ("forks = 8\nfroks = 9\n", "/overlord.toml:2: unknown field `froks`"),
            ("\n\ntimeout = \"60\"\n", "/overlord.toml:3: \"60\" is not a length of time"),
            ("forks = 1\nresult_max_bytes = 0\n", "/overlord.toml:2: result_max_bytes is 0"),
            ("forks = \n", "/overlord.toml:1: "),
            ("[retention]\ncount = 9\nage = \"59m\"\n", "/overlord.toml:3: retention.age is shorter than the 60 minutes"),
            ("[retention]\ncount = 0\n", "/overlord.toml:2: retention.count is 0"),
            ("[certs]\nvalid = \"9s\"\n", "/overlord.toml:2: certs.valid is shorter than 10s"),
            ("[trust]\nstale_crl = \"warn\"\n", "/overlord.toml:2: trust.stale_crl is \"serve\" or \"refuse\""),
            ("[certs]\nlisten = \"here\"\n", "/overlord.toml:2: "),
            ("[certs]\nrequests_max = 0\n", "/overlord.toml:2: "),
            ("authority = \"a b\"\n", "/overlord.toml:1: \"a b\" is not HOST:PORT"),
        ] {
            let error = load(text).unwrap_err();
            assert!(error.starts_with(problem), "{error}");
        }
    }
}
