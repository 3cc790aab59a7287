//! What is fuzzed: for each family of parsers that meet the network or a file, one function of arbitrary bytes that holds the parsers to what
//! must be true of whatever they let through. It panics where that is not so, and touches neither the network nor a file.
//!
//! Each is called by a target of `tests/fuzz`, and by a test that replays the corpora of these.

mod answers;
mod arguments;
mod authority_records;
mod certificates;
mod configs;
mod deploy;
mod flows;
mod job_log;
mod requests;
mod rules;
mod spool;
mod targets;
mod words;
mod workers;

use std::fmt::Debug;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

pub use answers::answers;
pub use arguments::arguments;
pub use authority_records::authority_records;
pub use certificates::{certificate, crl, csr};
pub use configs::{configs, roster};
pub use deploy::{deploy_report, package};
pub use flows::flows;
pub use job_log::job_log;
pub use requests::requests;
pub use rules::rules;
pub use spool::spool;
pub use targets::targets;
pub use words::words;
pub use workers::workers;

/// A family of parsers, held to its invariants.
pub type Target = fn(&[u8]);

/// Every target, by the name of its corpus.
pub const TARGETS: [(&str, Target); 18] = [
    ("answers", answers),
    ("arguments", arguments),
    ("authority_records", authority_records),
    ("certificate", certificate),
    ("configs", configs),
    ("crl", crl),
    ("csr", csr),
    ("deploy_report", deploy_report),
    ("flows", flows),
    ("job_log", job_log),
    ("package", package),
    ("requests", requests),
    ("roster", roster),
    ("rules", rules),
    ("spool", spool),
    ("targets", targets),
    ("words", words),
    ("workers", workers),
];

/// The folder in which the targets and their corpora lie.
#[must_use]
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz")
}

/// With what the names begin that serde_json gives a meaning: what hides in them is nested deeper than it looks.
const RESERVED: &[u8] = b"$serde_json::private::";

/// `body` as [`common::seal`] would have sealed it, were it the JSON of a value.
fn sealed(body: &[u8]) -> Vec<u8> {
    let head = format!("{{\"crc32\":\"{:08x}\",\"body\":", crc32fast::hash(body));
    [head.as_bytes(), body, b"}"].concat()
}

/// Whether JSON text may hide what is nested deeper than it looks.
fn hides(json: &[u8]) -> bool {
    json.windows(RESERVED.len()).any(|window| window == RESERVED) || json.windows(2).any(|window| window == b"\\u")
}

/// What was read as JSON is written as what reads back the same.
fn stands_in_json<T: Serialize + DeserializeOwned + PartialEq + Debug>(value: &T) {
    let text = serde_json::to_vec(value).expect("what was read can be written");
    let again: T = serde_json::from_slice(&text).unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&text)));
    assert_eq!(again, *value, "{}", String::from_utf8_lossy(&text));
}

/// Nothing in it steers a terminal or turns the direction of reading; it may have lines.
fn assert_harmless(shown: &str) {
    let is_harmless = |letter: char| match letter {
        '\n' | '\t' => true,
        '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => false,
        other => !other.is_control(),
    };
    assert!(shown.chars().all(is_harmless), "{shown:?}");
}
