//! Where a host is deployed to: one word of the command line. Does nothing.

use std::fmt;
use std::str::FromStr;

use common::identity::MinionName;

/// A host as `ssh` finds it, and the name that it has in the fleet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Destination {
    /// In the fleet.
    pub(crate) name: MinionName,
    /// The same as it was written: an ssh configuration minds the case.
    pub(crate) host: String,
    pub(crate) user: Option<String>,
    pub(crate) port: Option<u16>,
}

/// Why a word is not a destination.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "\"{word}\" is not [USER@]NAME[:PORT], where NAME is the host's name in the fleet; an address for it stands in hosts.toml, or in an ssh \
     configuration (HostName)"
)]
pub(crate) struct InvalidDestination {
    word: String,
}

impl FromStr for Destination {
    type Err = InvalidDestination;

    fn from_str(word: &str) -> Result<Self, InvalidDestination> {
        parse(word).ok_or_else(|| InvalidDestination { word: word.escape_debug().collect() })
    }
}

fn parse(word: &str) -> Option<Destination> {
    let (user, rest) = match word.rsplit_once('@') {
        Some((user, rest)) => (Some(user), rest),
        None => (None, word),
    };
    if user.is_some_and(|user| !is_user(user)) {
        return None;
    }
    let (host, port) = match rest.split_once(':') {
        Some((host, port)) => (host, Some(port.parse().ok().filter(|port| *port != 0)?)),
        None => (rest, None),
    };
    Some(Destination { name: host.parse().ok()?, host: host.to_owned(), user: user.map(str::to_owned), port })
}

/// Nothing that ssh could take for an option, nor a shell for anything.
fn is_user(text: &str) -> bool {
    let is_sound = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '.' | '_' | '-' | '\\' | '@' | '+');
    !text.is_empty() && !text.starts_with('-') && text.chars().all(is_sound)
}

/// What to type behind `ssh` to get there.
impl fmt::Display for Destination {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(port) = self.port {
            write!(out, "-p {port} ")?;
        }
        if let Some(user) = &self.user {
            write!(out, "{user}@")?;
        }
        out.write_str(&self.host)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;

    #[test]
    fn a_destination_has_a_name_and_perhaps_a_user_and_a_port() {
        let web: Destination = "deploy@Web1:2222".parse().unwrap();
        assert_eq!((web.name.as_str(), web.host.as_str(), web.user.as_deref(), web.port), ("web1", "Web1", Some("deploy"), Some(2222)));
        assert_eq!(web.to_string(), "-p 2222 deploy@Web1");
        assert_eq!("db1".parse::<Destination>().unwrap().to_string(), "db1");
    }

    #[test]
    fn nothing_can_pass_for_an_option_or_a_command() {
        for word in
            ["-oProxyCommand=x", "-l@web1", "web1:0", "web1:x", "@web1", "web 1", "a b@web1", "$(x)@web1", "web1;x", "web*", "", "u@"]
        {
            assert!(word.parse::<Destination>().is_err(), "{word}");
        }
    }
}
