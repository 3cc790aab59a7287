//! `minion check` of a host whose server is another user: what it finds, and that the commands which it names mend it.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::Path;
use std::process::Command;

use fleet::{Fleet, Run, user};

use super::{USER, separated};

/// The commands that it says are to be run: what stands between "run `" and the next "`".
fn commands(check: &Run) -> Vec<String> {
    check.out().split("run `").skip(1).filter_map(|rest| Some(rest.split_once('`')?.0.to_owned())).collect()
}

/// Does what `minion check` says, after which it has nothing more to say.
pub(super) fn mend(fleet: &Fleet) {
    for command in commands(&fleet.check("web1")) {
        assert!(Command::new("sh").args(["-c", &command]).status().unwrap().success(), "{command}");
    }
    let run = fleet.check("web1");
    assert_eq!(run.code(), 0, "{}{}", run.out(), run.err());
}

fn users(path: &Path) {
    chown(path, Some(user(USER).uid.as_raw()), Some(user(USER).gid.as_raw())).unwrap();
}

fn roots(path: &Path) {
    chown(path, Some(0), Some(0)).unwrap();
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

#[test]
fn each_wrong_owner_and_mode_is_told_with_the_command_that_mends_it() {
    let Some(fleet) = separated(|fleet| fleet.stopped()) else { return };
    let web1 = fleet.minion("web1");
    let (certs, acl, config, state) = (web1.certs_dir(), web1.acl_dir(), web1.config_file(), web1.state_dir());
    web1.start();
    web1.stop();
    assert_eq!(fleet.check("web1").code(), 0);
    let wrongs: [(&str, &dyn Fn(), &str); 15] = [
        ("the folder is the user's", &|| users(&certs), "replace ca.pem"),
        ("the folder is not sticky", &|| mode(&certs, 0o770), "replace ca.pem"),
        ("the folder is root's alone", &|| mode(&certs, 0o700), "needs it to renew"),
        ("the authority's certificate is the user's", &|| users(&certs.join("ca.pem")), "ca.pem"),
        ("the authority's certificate cannot be read", &|| mode(&certs.join("ca.pem"), 0o600), "cannot read it"),
        ("the key is root's", &|| roots(&certs.join("key.pem")), "key.pem is not the user"),
        ("the certificate is root's", &|| roots(&certs.join("cert.pem")), "cert.pem is not the user"),
        ("minion.toml cannot be read", &|| mode(&config, 0o600), "minion.toml: the user nobody, as whom the server runs, cannot read it"),
        ("minion.toml is the user's", &|| users(&config), "minion.toml: the user nobody, as whom the server runs, can change it"),
        ("the rules cannot be read", &|| mode(&acl, 0o700), "acl.d: the user nobody, as whom the server runs, cannot read it"),
        ("a rule cannot be read", &|| mode(&acl.join("rules.toml"), 0o600), "rules.toml: the user nobody"),
        ("a rule is the user's", &|| users(&acl.join("rules.toml")), "rules.toml"),
        ("a rule is readable for its group alone", &|| mode(&acl.join("rules.toml"), 0o604), "rules.toml: the user nobody"),
        ("the audit log is root's", &|| roots(&state.join("audit.log")), "audit.log is not the user"),
        ("the store is root's", &|| roots(&state.join("status.sled")), "status.sled is not the user"),
    ];
    for (what, spoil, said) in wrongs {
        spoil();
        let run = fleet.check("web1");
        assert!(run.code() == 1 && run.out().contains(said), "{what}: {}{}", run.out(), run.err());
        assert_eq!(run.out().lines().count(), 1, "{what} is told once: {}", run.out());
        assert!(!commands(&run).is_empty(), "{what}: {}", run.out());
        mend(&fleet);
    }
    web1.start();
    let _ = fleet.overlord(["web1", "test.add", "1", "2"]).ok();
    fleet.assert_no_leaks();
}

#[test]
fn what_the_spawner_mends_is_a_hint_and_what_it_refuses_a_problem() {
    let Some(fleet) = separated(|fleet| fleet.stopped()) else { return };
    let web1 = fleet.minion("web1");
    let state = web1.state_dir();
    let sound = |said: &str| {
        let run = fleet.check("web1");
        assert!(run.code() == 0 && run.err().contains(said), "{}{}", run.out(), run.err());
    };
    sound("nobody renews it");
    fs::create_dir(&state).unwrap();
    mode(&state, 0o700);
    sound("is not shared with the user nobody yet");
    fs::create_dir(web1.spools_dir()).unwrap();
    users(&web1.spools_dir());
    let run = fleet.check("web1");
    assert!(run.code() == 1 && run.out().contains("chown -R -h root:root"), "{}{}", run.out(), run.err());
    fs::remove_dir(web1.spools_dir()).unwrap();
    web1.start();
    assert_eq!(fleet.check("web1").code(), 0);
    fleet.assert_no_leaks();
}

#[test]
fn a_server_that_cannot_read_its_key_says_where_to_look() {
    let Some(fleet) = separated(|fleet| fleet.stopped()) else { return };
    let web1 = fleet.minion("web1");
    roots(&web1.certs_dir().join("key.pem"));
    web1.start_without_waiting();
    assert_eq!(web1.wait_for_end().code(), Some(1));
    let said = web1.stderr();
    assert!(said.contains("key.pem") && said.contains(&format!("`minion --config {} check`", web1.config_file().display())), "{said}");
    mend(&fleet);
    web1.start();
    fleet.assert_no_leaks();
}
