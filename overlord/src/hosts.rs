//! `hosts.toml`: the roster of hosts, with their addresses, groups and variables. Says nothing of which are meant: see `targets`.

pub(crate) mod enlist;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use common::identity::MinionName;
use common::protocol::DEFAULT_PORT;
use serde::Deserialize;
use serde_json::Value;
use toml::Spanned;

use crate::config::{ConfigError, content_error, toml_error};

/// Why the roster cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RosterError {
    /// There is none.
    #[error(
        "there is no {}, so no host is known; write it, with these two lines for each host:\n  [host.web1]\n  address = \"10.0.0.11:{DEFAULT_PORT}\"",
        .path.display()
    )]
    Missing {
        /// Where it should be.
        path: PathBuf,
    },
    /// It cannot be read or understood.
    #[error(transparent)]
    Config(#[from] ConfigError),
}

/// A host of the roster.
#[derive(Debug, Clone, PartialEq)]
pub struct Host {
    /// Its name: that of its certificate.
    pub name: MinionName,
    /// Where its minion listens: `HOST:PORT`, where `HOST` is an address or a name to be looked up.
    pub address: String,
    /// The groups it is in, in lower case.
    pub groups: Vec<String>,
    /// Whatever else is said of it.
    pub vars: BTreeMap<String, Value>,
}

/// Every host that is known, by name.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Roster {
    hosts: BTreeMap<MinionName, Host>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RosterFile {
    #[serde(default)]
    host: BTreeMap<Spanned<String>, HostEntry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HostEntry {
    address: Option<String>,
    #[serde(default)]
    groups: Vec<String>,
    #[serde(default)]
    vars: BTreeMap<String, Value>,
}

impl Roster {
    pub(crate) fn load(path: &Path) -> Result<Self, RosterError> {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(RosterError::Missing { path: path.to_owned() }),
            Err(source) => return Err(ConfigError::Read { path: path.to_owned(), source }.into()),
        };
        Self::parse(path, &text)
    }

    /// The roster in `text`, which is the file `path`.
    pub(crate) fn parse(path: &Path, text: &str) -> Result<Self, RosterError> {
        let file: RosterFile = toml::from_str(text).map_err(|error| with_hint(toml_error(path, text, &error)))?;
        let mut entries: Vec<_> = file.host.into_iter().collect();
        entries.sort_by_key(|(name, _)| name.span().start);
        let mut hosts = BTreeMap::new();
        for (name, entry) in entries {
            let wrong = |problem| content_error(path, text, Some(name.span().start), problem);
            let host = host(name.get_ref(), entry).map_err(wrong)?;
            if let Some(other) = hosts.insert(host.name.clone(), host) {
                return Err(wrong(format!("the host {} stands here twice; names match without regard to case", other.name)).into());
            }
        }
        Ok(Self { hosts })
    }

    /// The host of that name.
    #[must_use]
    pub fn find(&self, name: &MinionName) -> Option<&Host> {
        self.hosts.get(name)
    }

    /// Every host, by name.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Host> {
        self.hosts.values()
    }
}

impl FromIterator<Host> for Roster {
    fn from_iter<I: IntoIterator<Item = Host>>(hosts: I) -> Self {
        Self { hosts: hosts.into_iter().map(|host| (host.name.clone(), host)).collect() }
    }
}

/// `[host.web1.example.com]` is a table in a table to TOML, which then finds a key it does not know.
fn with_hint(error: ConfigError) -> ConfigError {
    match error {
        ConfigError::Content { path, line, problem } if problem.starts_with("unknown field") => {
            let problem = format!("{problem} (a name with dots stands in quotes: [host.\"web1.example.com\"])");
            ConfigError::Content { path, line, problem }
        }
        other => other,
    }
}

fn host(name: &str, entry: HostEntry) -> Result<Host, String> {
    let name: MinionName = name.parse().map_err(|error| format!("{error}"))?;
    let address = whole_address(entry.address.as_deref().unwrap_or(name.as_str()), DEFAULT_PORT)
        .ok_or_else(|| format!("the address of {name} is not HOST:PORT, like 10.0.0.11:{DEFAULT_PORT}"))?;
    let groups = entry.groups.iter().map(|group| group.to_lowercase()).collect();
    Ok(Host { name, address, groups, vars: entry.vars })
}

/// The address with its port, the usual one if it has none.
pub(crate) fn whole_address(text: &str, usual_port: u16) -> Option<String> {
    if let Ok(address) = text.parse::<SocketAddr>() {
        return (address.port() != 0).then(|| text.to_owned());
    }
    if let Ok(ip) = text.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
        return Some(SocketAddr::new(ip, usual_port).to_string());
    }
    let (host, port) = match text.split_once(':') {
        Some((host, port)) => (host, port.parse().ok().filter(|port| *port != 0)?),
        None => (text, usual_port),
    };
    host.parse::<MinionName>().is_ok().then(|| format!("{host}:{port}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;

    fn load(text: &str) -> Result<Roster, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hosts.toml");
        fs::write(&path, text).unwrap();
        Roster::load(&path).map_err(|error| error.to_string().replace(&dir.path().display().to_string(), ""))
    }

    #[test]
    fn a_host_has_a_name_and_perhaps_more() {
        let roster = load(
            "[host.Web1]\naddress = \"10.0.0.11:5\"\ngroups = [\"Web\"]\n[host.Web1.vars]\nrack = 3\n[host.db1]\n[host.\"a.example.com\"]\naddress=\"::1\"\n",
        )
        .unwrap();
        let web = roster.find(&"WEB1".parse().unwrap()).unwrap();
        assert_eq!((web.address.as_str(), web.groups.as_slice()), ("10.0.0.11:5", ["web".to_owned()].as_slice()));
        assert_eq!(web.vars.get("rack"), Some(&Value::from(3)));
        let addresses: Vec<_> = roster.iter().map(|host| host.address.as_str()).collect();
        assert_eq!(addresses, ["[::1]:51234", "db1:51234", "10.0.0.11:5"]);
    }

    #[test]
    fn mistakes_are_named_with_their_line() {
        for (text, problem) in [
            ("[host.web1]\n[host.WEB1]\n", "/hosts.toml:2: the host web1 stands here twice"),
            ("[host.web1]\n\n[host.\"a b\"]\n", "/hosts.toml:3: \"a b\" is not a name"),
            ("[host.web1]\naddress = \"web1:0\"\n", "/hosts.toml:1: the address of web1 is not HOST:PORT"),
            ("[host.web1]\naddress = \"10.0.0.1:0\"\n", "/hosts.toml:1: the address of web1 is not HOST:PORT"),
            ("[host.web1]\nadress = \"web1\"\n", "/hosts.toml:2: unknown field `adress`"),
            ("[host.web1.example.com]\n", "/hosts.toml:1: unknown field `example`"),
            ("[hosts.web1]\n", "/hosts.toml:1: unknown field `hosts`"),
        ] {
            let error = load(text).unwrap_err();
            assert!(error.starts_with(problem), "{error}");
        }
        let error = Roster::load(Path::new("/nonexistent/hosts.toml")).unwrap_err().to_string();
        assert!(error.contains("[host.web1]"), "{error}");
    }
}
