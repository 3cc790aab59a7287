//! SECURITY.md names a test for each thing that somebody cannot do: each of them is there.

use std::fs;
use std::path::{Path, PathBuf};

fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// The lines of the table: their cells.
fn rows(text: &str) -> Vec<Vec<&str>> {
    let lines = text.lines().filter(|line| line.starts_with('|')).skip(2);
    lines.map(|line| line.trim_matches('|').split('|').map(str::trim).collect()).collect()
}

/// Where a test named `FILE::TEST`, or `FOLDER/FILE.rs::TEST`, should be.
fn file_of(name: &str) -> PathBuf {
    let (file, _) = name.rsplit_once("::").unwrap_or_else(|| panic!("{name} names no test"));
    if file.ends_with(".rs") {
        return workspace().join(file);
    }
    workspace().join("tests/it").join(file.replace("::", "/")).with_extension("rs")
}

fn is_there(name: &str) -> bool {
    let text = fs::read_to_string(file_of(name)).unwrap_or_default();
    let function = format!("fn {}(", name.rsplit("::").next().unwrap());
    // The first function behind the attribute is the test.
    text.split("#[test]").skip(1).filter_map(|after| after.find("fn ").map(|at| &after[at..])).any(|test| test.starts_with(&function))
}

#[test]
fn each_line_of_the_threat_model_names_tests_that_are_there() {
    let text = fs::read_to_string(workspace().join("SECURITY.md")).unwrap();
    let rows = rows(&text);
    assert!(rows.len() > 30, "{} lines", rows.len());
    for row in rows {
        let [_, _, cannot, shown] = row.as_slice() else { panic!("{row:?} has not four cells") };
        let names: Vec<&str> = shown.split('`').skip(1).step_by(2).collect();
        assert!(!names.is_empty(), "{cannot:?} is shown by nothing");
        for name in names {
            assert!(is_there(name), "{name}, which shows {cannot:?}, is not in {}", file_of(name).display());
        }
    }
}
