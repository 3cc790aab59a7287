//! The two programs, as built beside the test that runs; built first if they are missing or older than their sources.
//! `FLEET_BINARIES=DIR` names a folder with others: those of a package, say.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::SystemTime;

/// Where the two programs are.
#[derive(Debug, Clone)]
pub struct Binaries {
    /// `overlord`.
    pub overlord: PathBuf,
    /// `minion`.
    pub minion: PathBuf,
}

/// The two programs.
///
/// # Panics
/// They cannot be built.
pub fn binaries() -> &'static Binaries {
    static BINARIES: OnceLock<Binaries> = OnceLock::new();
    BINARIES.get_or_init(find)
}

fn find() -> Binaries {
    if let Some(folder) = env::var_os("FLEET_BINARIES").map(PathBuf::from) {
        return Binaries { overlord: folder.join("overlord"), minion: folder.join("minion") };
    }
    // target/PROFILE/deps/TEST, or target/PROFILE/examples/EXAMPLE.
    let test = env::current_exe().unwrap();
    let folder = test.ancestors().nth(2).expect("a test lies in target/PROFILE/deps");
    let beside = test.parent().and_then(Path::file_name).is_some_and(|name| name == "deps" || name == "examples");
    assert!(beside, "{} does not lie in target/PROFILE: name the programs' folder in FLEET_BINARIES", test.display());
    let binaries = Binaries { overlord: folder.join("overlord"), minion: folder.join("minion") };
    let built = [&binaries.overlord, &binaries.minion].map(|binary| modified(binary));
    if built.into_iter().min().flatten().is_none_or(|built| built < newest_source()) {
        build(folder);
    }
    binaries
}

fn build(folder: &Path) {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(workspace()).args(["build", "--quiet", "-p", "overlord", "-p", "minion", "--bins", "--examples"]);
    cargo.arg("--target-dir").arg(folder.parent().expect("target"));
    if folder.ends_with("release") {
        cargo.arg("--release");
    }
    let status = cargo.status().expect("cargo runs");
    assert!(status.success(), "the programs cannot be built");
}

fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the workspace")
}

fn newest_source() -> SystemTime {
    let folders = ["common", "certs", "overlord", "minion"].map(|name| workspace().join(name));
    let sources = folders.iter().flat_map(|folder| ["src", "examples", "Cargo.toml"].map(|name| folder.join(name)));
    let others = ["Cargo.lock", "common/methods.json"].map(|name| workspace().join(name));
    sources.chain(others).filter_map(|path| newest_in(&path)).max().expect("there are sources")
}

fn newest_in(path: &Path) -> Option<SystemTime> {
    let Ok(entries) = fs::read_dir(path) else {
        return modified(path);
    };
    entries.flatten().filter_map(|entry| newest_in(&entry.path())).max()
}

fn modified(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).and_then(|metadata| metadata.modified()).ok()
}
