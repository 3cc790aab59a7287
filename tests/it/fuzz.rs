//! The corpora of the fuzz targets, replayed: what a fuzzer once came to is tried again with every change.

use std::collections::BTreeSet;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use fleet::fuzz::{TARGETS, Target, folder};

#[test]
fn every_corpus_is_replayed() {
    let failed: Vec<String> = TARGETS.iter().flat_map(|(name, target)| replay(name, *target)).collect();
    assert!(failed.is_empty(), "these break what must be true of them:\n{}", failed.join("\n"));
}

/// `cargo fuzz` builds what `tests/fuzz` lists, and a corpus that no target reads would be replayed by nobody.
#[test]
fn every_target_is_built_and_has_a_corpus() {
    let known: BTreeSet<String> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(names(&folder().join("corpus")), known);
    let files: BTreeSet<String> = names(&folder().join("targets")).iter().map(|file| file.trim_end_matches(".rs").to_owned()).collect();
    assert_eq!(files, known);
    let manifest = fs::read_to_string(folder().join("Cargo.toml")).unwrap();
    for name in &known {
        assert!(manifest.contains(&format!("[[bin]]\nname = \"{name}\"\npath = \"targets/{name}.rs\"\n")), "{name}");
        let target = fs::read_to_string(folder().join(format!("targets/{name}.rs"))).unwrap();
        assert!(target.contains(&format!("fleet::fuzz::{name}(data)")), "{target}");
    }
}

fn replay(name: &str, target: Target) -> Vec<String> {
    let files = files(&folder().join("corpus").join(name));
    assert!(!files.is_empty(), "the corpus of {name} is empty");
    let breaks = |file: &PathBuf| {
        let data = fs::read(file).unwrap();
        catch_unwind(AssertUnwindSafe(|| target(&data))).is_err().then(|| file.display().to_string())
    };
    files.iter().filter_map(breaks).collect()
}

fn files(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect()
}

fn names(folder: &Path) -> BTreeSet<String> {
    files(folder).iter().map(|path| path.file_name().unwrap().to_string_lossy().into_owned()).collect()
}
