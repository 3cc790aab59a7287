//! Neighbouring versions: what an older or a newer one has left on disk, and what it says on the wire. What a newer version writes is made here by hand, as
//! it will be: with a number that this one does not know.

mod disk;
mod log;
mod spawner;
mod wire;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use common::seal;
use serde_json::json;

/// The version of the programs that have left it.
const NEWER: &str = "9.0.0";

/// All files below a folder, as they are: a write of the same bytes is a change, too.
#[derive(Debug, PartialEq)]
struct Snapshot(BTreeMap<PathBuf, (Vec<u8>, SystemTime)>);

impl Snapshot {
    fn of(folder: &Path) -> Self {
        let mut files = BTreeMap::new();
        let mut folders = vec![folder.to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).unwrap().flatten() {
                let metadata = entry.metadata().unwrap();
                if metadata.is_dir() {
                    folders.push(entry.path());
                }
                let bytes = if metadata.is_file() { fs::read(entry.path()).unwrap() } else { Vec::new() };
                files.insert(entry.path(), (bytes, metadata.modified().unwrap()));
            }
        }
        Self(files)
    }
}

/// Beyond that of everything that is written.
const NEWER_FORMAT: u32 = 3;

/// Marks a folder as a newer version does.
fn mark_as_newer(folder: &Path) {
    let text = seal::seal(&json!({ "format": NEWER_FORMAT, "by": NEWER, "since": "2030-01-01T00:00:00Z" })).unwrap();
    fs::write(folder.join("format"), text).unwrap();
}

/// What must be said of it: what has which format, who wrote that, who reads it, and what to type.
fn assert_refused(said: &str, program: &str, package: &str) {
    for part in [
        &format!("has format {NEWER_FORMAT}"),
        &format!("which {program} {NEWER} has written"),
        &format!("this is {program} {}, which reads formats up to ", env!("CARGO_PKG_VERSION")),
        " and has changed nothing",
        &format!("install {package} {NEWER} again, or a newer one"),
    ] {
        assert!(said.contains(part), "{part:?} is missing: {said}");
    }
}
