//! What is installed on hosts beside the programs.

use std::fs;
use std::path::Path;

use fleet::Fleet;
use minion::config::{Config, Limits};

/// The text of a file that is packaged.
fn packaged(file: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging").join(file)).unwrap()
}

/// The packaged configuration with every line that shows a default made effective.
fn every_key(root: &Path) -> (Config, String) {
    let shows_key = |line: &&str| line.starts_with('#') && !line.starts_with("# ") && line.len() > 1;
    let text: String = packaged("minion.toml")
        .lines()
        .map(|line| if shows_key(&line) { format!("{}\n", &line[1..]) } else { format!("{line}\n") })
        .collect();
    // The user that the package makes, which this machine need not have.
    assert!(text.contains("\nuser = \"minion\"\n"));
    let text = text.replace("\nuser = \"minion\"\n", "\n");
    let path = root.join("minion.toml");
    fs::write(&path, &text).unwrap();
    (Config::load(&path).unwrap(), text)
}

#[test]
fn the_configuration_shows_every_key_with_its_default() {
    let root = tempfile::tempdir().unwrap();
    let (shown, text) = every_key(root.path());
    let bare = root.path().join("bare.toml");
    fs::write(&bare, "name = \"web1\"\n").unwrap();
    let defaults = Config { file: shown.file.clone(), ..Config::load(&bare).unwrap() };
    assert_eq!(format!("{shown:#?}"), format!("{defaults:#?}"));

    let limits = format!("{:#?}", Limits::default());
    let keys = limits.lines().filter_map(|line| line.strip_prefix("    ")?.split_once(':')).map(|(key, _)| key);
    for key in
        keys.chain(["name", "listen", "state_dir", "certs_dir", "acl_dir", "workers_dir", "age", "count", "bytes", "max_bytes", "files"])
    {
        assert!(text.lines().any(|line| line.starts_with(&format!("{key} = "))), "packaging/minion.toml does not show {key}");
    }
}

#[test]
fn the_packaged_rule_lets_the_administrator_call_everything_and_nobody_else() {
    let fleet = Fleet::builder().hosts(1).acl(&packaged("acl.d/50-admin.toml")).start();
    let _ = fleet.check("web1").ok();
    let _ = fleet.overlord(["*", "command.run", "true"]).ok();

    let issued = fleet.issue("fleet:overlord/ops");
    for (from, to) in [("cert.pem", "overlord.pem"), ("key.pem", "overlord.key")] {
        fs::copy(issued.join(from), fleet.home().join("certs").join(to)).unwrap();
    }
    let denied = fleet.overlord(["*", "test.ping", "--output", "json"]).expect(2).json();
    assert_eq!(denied["hosts"]["web1"]["state"], "denied", "{denied}");
}
