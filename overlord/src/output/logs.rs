//! What jobs write on their hosts, on its way to a person: of one host as it comes, of several in whole lines that bear the host's name.
//! Pure: what is to be printed is given back.

use std::collections::BTreeMap;

use common::identity::MinionName;
use common::outcome::cut_letter_bytes;
use common::protocol::Stream;

use super::harmless;

/// The longest line that is waited for, of each host and stream; a longer one is printed as several.
const LINE_MAX_BYTES: usize = 16 * 1024;

/// Whether lines bear the names of their hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Naming {
    /// There is one host.
    Bare,
    /// There are several.
    Named,
}

/// What has come and cannot be printed yet.
#[derive(Debug)]
pub(crate) struct LogText {
    naming: Naming,
    held: BTreeMap<(MinionName, Stream), Vec<u8>>,
}

impl LogText {
    pub(crate) fn new(naming: Naming) -> Self {
        Self { naming, held: BTreeMap::new() }
    }

    /// Takes what the host wrote, and gives what can be printed now.
    pub(crate) fn take(&mut self, host: &MinionName, stream: Stream, bytes: &[u8]) -> String {
        let held = self.held.entry((host.clone(), stream)).or_default();
        held.extend_from_slice(bytes);
        match self.naming {
            Naming::Bare => {
                let rest = held.split_off(held.len() - cut_letter_bytes(held));
                shown(&std::mem::replace(held, rest))
            }
            Naming::Named => lines(host, held),
        }
    }

    /// The rest of what the host wrote: nothing more will come from it.
    pub(crate) fn end(&mut self, host: &MinionName) -> Vec<(Stream, String)> {
        let rest = |stream| Some((stream, self.rest(host, self.held.get(&(host.clone(), stream))?)));
        let rests = Stream::ALL.into_iter().filter_map(rest).filter(|(_, text)| !text.is_empty()).collect();
        self.held.retain(|(other, _), _| other != host);
        rests
    }

    /// The hosts of which something is held.
    pub(crate) fn hosts(&self) -> Vec<MinionName> {
        self.held.keys().map(|(host, _)| host.clone()).collect()
    }

    fn rest(&self, host: &MinionName, held: &[u8]) -> String {
        match self.naming {
            Naming::Named if !held.is_empty() => line(host, held),
            Naming::Named | Naming::Bare => shown(held),
        }
    }
}

/// Takes the whole lines out of what is held.
fn lines(host: &MinionName, held: &mut Vec<u8>) -> String {
    let mut text = String::new();
    let mut done = 0;
    while let Some(rest) = held.get(done..) {
        if let Some(length) = rest.iter().take(LINE_MAX_BYTES).position(|byte| *byte == b'\n') {
            text.push_str(&line(host, rest.get(..length).unwrap_or_default()));
            done += length + 1;
        } else if let Some(part) = rest.get(..LINE_MAX_BYTES) {
            let part = part.get(..part.len() - cut_letter_bytes(part)).unwrap_or_default();
            text.push_str(&line(host, part));
            done += part.len();
        } else {
            break;
        }
    }
    held.drain(..done);
    text
}

fn line(host: &MinionName, bytes: &[u8]) -> String {
    format!("{host}: {}\n", shown(bytes))
}

/// The bytes as text that steers no terminal; what is not UTF-8 as `\xff`.
fn shown(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        text.push_str(&harmless(chunk.valid()));
        text.extend(chunk.invalid().iter().map(|byte| format!("\\x{byte:02x}")));
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may panic")]
    use super::*;

    fn host(name: &str) -> MinionName {
        name.parse().unwrap()
    }

    #[test]
    fn one_host_is_shown_as_it_comes_and_no_letter_is_cut() {
        let mut text = LogText::new(Naming::Bare);
        let mut take = |bytes: &[u8]| text.take(&host("web1"), Stream::Stdout, bytes);
        assert_eq!(take(b"no newline \xc3"), "no newline ");
        assert_eq!(take(b"\xbc\n\t\x1b[31m\xff"), "ü\n\t\\x1b[31m\\xff");
        assert_eq!(take("€".as_bytes().get(..2).unwrap()), "");
        assert_eq!(text.end(&host("web1")), [(Stream::Stdout, "\\xe2\\x82".to_owned())]);
        assert_eq!(text.end(&host("web1")), []);
    }

    #[test]
    fn several_hosts_are_shown_in_whole_lines_with_their_names() {
        let mut text = LogText::new(Naming::Named);
        assert_eq!(text.take(&host("web1"), Stream::Stdout, b"one\ntw"), "web1: one\n");
        assert_eq!(text.take(&host("web2"), Stream::Stdout, b"\nweb1: not it\r\n"), "web2: \nweb2: web1: not it\\x0d\n");
        assert_eq!(text.take(&host("web1"), Stream::Stderr, b"err"), "");
        assert_eq!(text.take(&host("web1"), Stream::Stdout, b"o\nlast"), "web1: two\n");
        let rests = [(Stream::Stdout, "web1: last\n".to_owned()), (Stream::Stderr, "web1: err\n".to_owned())];
        assert_eq!(text.end(&host("web1")), rests);
        assert_eq!((text.hosts(), text.end(&host("web2"))), (vec![host("web2")], vec![]));
    }

    #[test]
    fn a_line_without_end_is_not_held_without_end() {
        let mut text = LogText::new(Naming::Named);
        let long = "ü".repeat(LINE_MAX_BYTES);
        let shown = text.take(&host("web1"), Stream::Stdout, &long.as_bytes()[1..]);
        assert!(text.held.values().all(|held| held.len() < LINE_MAX_BYTES));
        let rest: String = text.end(&host("web1")).into_iter().map(|(_, text)| text).collect();
        let joined: String = format!("{shown}{rest}").lines().map(|line| line.strip_prefix("web1: ").unwrap()).collect();
        assert_eq!(joined, format!("\\xbc{}", "ü".repeat(LINE_MAX_BYTES - 1)));
    }
}
