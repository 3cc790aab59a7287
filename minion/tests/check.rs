//! `minion check`, as a user who may not write everywhere.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use certs::authority::{Authority, write_folder};
use nix::unistd::geteuid;

/// Who has no rights; a test that root does not run goes on as who runs it.
const NOBODY: u32 = 65534;

/// Exit status, stdout and stderr of a check of a host whose certs_dir cannot be written.
fn check(dir: &Path, toml: &str) -> (Option<i32>, String, String) {
    let authority = Authority::init(&dir.join("ca"), Duration::from_secs(86_400 * 3650)).unwrap();
    let issued = authority.issue(&["fleet:minion/web1".parse().unwrap()], Duration::from_secs(86_400 * 400)).unwrap().remove(0);
    let certs = write_folder(dir, authority.ca_pem(), None, &issued).unwrap();
    let (state, config) = (dir.join("state"), dir.join("minion.toml"));
    fs::create_dir(&state).unwrap();
    let text =
        format!("name = \"web1\"\nlisten = \"127.0.0.1:0\"\ncerts_dir = {certs:?}\nstate_dir = {state:?}\nacl_dir = {state:?}\n{toml}");
    fs::write(&config, text).unwrap();
    let program = dir.join("minion");
    fs::copy(env!("CARGO_BIN_EXE_minion"), &program).unwrap();
    fs::set_permissions(dir, Permissions::from_mode(0o755)).unwrap();
    let mut command = Command::new(program);
    if geteuid().is_root() {
        for file in fs::read_dir(&certs).unwrap() {
            chown(file.unwrap().path(), Some(NOBODY), None).unwrap();
        }
        chown(&state, Some(NOBODY), None).unwrap();
        command.uid(NOBODY);
    }
    fs::set_permissions(&certs, Permissions::from_mode(0o555)).unwrap();
    let output = command.arg("--config").arg(&config).arg("check").output().unwrap();
    fs::set_permissions(&certs, Permissions::from_mode(0o755)).unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

/// One test, as no other thread may fork while the program is copied.
#[test]
fn a_folder_that_renewals_cannot_be_written_to_is_a_problem_and_a_hint_where_nobody_renews() {
    let dir = tempfile::tempdir().unwrap();
    let (code, problems, _) = check(dir.path(), "authority = \"ca.example\"\n");
    assert!(code == Some(1) && problems.contains("certs_dir") && problems.contains("cannot write"), "{problems}");
    assert_eq!(problems.lines().count(), 1, "{problems}");
    let dir = tempfile::tempdir().unwrap();
    let (code, said, hints) = check(dir.path(), "");
    assert!(code == Some(0) && hints.contains("certs_dir") && hints.contains("cannot write"), "{said}{hints}");
}
