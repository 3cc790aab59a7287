//! Certificates of a host whose server is another user: enrolled by root or by that user, renewed and revoked by the server alone.

use std::fs::{self, Permissions};
use std::net::SocketAddr;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::Path;

use fleet::{Authority, Fleet, Minion, Owner, PATIENCE, Run, as_server, owner, user, wait_until};
use nix::unistd::geteuid;

use super::{STRANGER, USER, group_name, program_for_all};

/// A host that has no certificate yet, and the authority; none if we are not root.
fn unenrolled(valid: &str) -> Option<(Fleet, Authority)> {
    if !geteuid().is_root() {
        return None;
    }
    let overlord_toml = format!("[certs]\nvalid = \"{valid}\"\n");
    let fleet = Fleet::builder().hosts(1).user(USER).unenrolled().overlord_toml(&overlord_toml).start();
    let authority = fleet.serve_certs();
    Some((fleet, authority))
}

fn token(fleet: &Fleet) -> String {
    fleet.overlord(["certs", "token"]).ok().out().trim().to_owned()
}

fn enroll(fleet: &Fleet, authority: &Authority) -> Run {
    fleet.enroll("web1", authority.address(), ["--token", &token(fleet)])
}

/// The same command as the server's user.
fn enroll_as_user(fleet: &Fleet, address: SocketAddr) -> Run {
    let program = program_for_all(fleet);
    let (config, pin, token) = (fleet.minion("web1").config_file(), fleet.ca_fingerprint(), token(fleet));
    as_server(USER, &format!("{program} --config {} enroll --overlord {address} --ca-fingerprint {pin} --token {token}", config.display()))
}

fn assert_owners(web1: &Minion) {
    let (certs, group) = (web1.certs_dir(), group_name());
    assert_eq!(owner(&certs), Owner::of("root", &group, 0o1770));
    assert_eq!(owner(&certs.join("ca.pem")), Owner::of("root", "root", 0o644));
    assert_eq!(owner(&certs.join("key.pem")), Owner::of(USER, &group, 0o600));
    for name in ["cert.pem", "crl.pem", "authority"] {
        let Owner { user, group: of, .. } = owner(&certs.join(name));
        assert_eq!((user.as_str(), of), (USER, group.clone()), "{name}");
    }
    let mut names: Vec<_> = fs::read_dir(&certs).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["authority", "ca.pem", "cert.pem", "crl.pem", "key.pem"], "nothing is left behind");
}

fn read(web1: &Minion, name: &str) -> Vec<u8> {
    fs::read(web1.certs_dir().join(name)).unwrap()
}

#[test]
fn what_root_enrols_the_server_renews_and_goes_by() {
    let Some((fleet, authority)) = unenrolled("12s") else { return };
    let web1 = fleet.minion("web1");
    let _ = enroll(&fleet, &authority).ok();
    assert_owners(web1);
    web1.start();
    let (first, list) = (read(web1, "cert.pem"), read(web1, "crl.pem"));
    wait_until("the certificate to be renewed", PATIENCE, || read(web1, "cert.pem") != first);
    let _ = fleet.overlord(["certs", "issue", "other", "--out", fleet.root().join("other").to_str().unwrap()]).ok();
    let _ = fleet.overlord(["certs", "revoke", "other"]).ok();
    wait_until("the revocation list to be taken", PATIENCE, || read(web1, "crl.pem") != list);
    assert_owners(web1);
    assert_eq!(fleet.overlord(["web1", "test.add", "1", "2", "--output", "json"]).ok().json()["hosts"]["web1"]["result"], 3);
    authority.stop();
    fleet.assert_no_leaks();
}

#[test]
fn enrolling_as_root_mends_what_root_or_the_user_has_left() {
    let Some((fleet, authority)) = unenrolled("1h") else { return };
    let web1 = fleet.minion("web1");
    let certs = web1.certs_dir();
    let plain = |text: &str| text.replace(&format!("user = \"{USER}\"\n"), "");
    let config = fs::read_to_string(web1.config_file()).unwrap();
    // Enrolled when all of it was root's.
    fs::write(web1.config_file(), plain(&config)).unwrap();
    let _ = enroll(&fleet, &authority).ok();
    assert_eq!((owner(&certs).mode, owner(&certs.join("key.pem")).user.as_str()), (0o700, "root"));
    let key = read(web1, "key.pem");
    fs::write(web1.config_file(), &config).unwrap();
    let _ = enroll(&fleet, &authority).ok();
    assert_owners(web1);
    assert_eq!(read(web1, "key.pem"), key);
    // The folder and the authority's certificate were the user's, who may have put another beside it.
    let nobody = |path: &Path| chown(path, Some(user(USER).uid.as_raw()), None).unwrap();
    nobody(&certs);
    nobody(&certs.join("ca.pem"));
    fs::write(certs.join("ca.pem"), [read(web1, "ca.pem"), read(web1, "ca.pem")].concat()).unwrap();
    let _ = enroll(&fleet, &authority).ok();
    assert_owners(web1);
    assert_eq!(read(web1, "ca.pem"), fs::read(fleet.home().join("certs/ca.pem")).unwrap());
    // What root has put there by hand is given to the server; what is somebody else's takes a person to decide.
    chown(certs.join("key.pem"), Some(0), None).unwrap();
    let _ = enroll(&fleet, &authority).ok();
    assert_owners(web1);
    chown(certs.join("key.pem"), Some(user(STRANGER).uid.as_raw()), None).unwrap();
    let run = enroll(&fleet, &authority);
    assert!(run.code() == 1 && run.err().contains(&format!("run `chown {USER}: {}`", certs.join("key.pem").display())), "{}", run.err());
    nobody(&certs.join("key.pem"));
    web1.start();
    let _ = fleet.overlord(["web1", "test.add", "1", "2"]).ok();
    authority.stop();
    fleet.assert_no_leaks();
}

#[test]
fn the_servers_user_may_enrol_and_root_makes_the_authority_its_own() {
    let Some((fleet, authority)) = unenrolled("1h") else { return };
    let web1 = fleet.minion("web1");
    let certs = web1.certs_dir();
    fs::create_dir(&certs).unwrap();
    chown(&certs, None, Some(user(USER).gid.as_raw())).unwrap();
    fs::set_permissions(&certs, Permissions::from_mode(0o1770)).unwrap();
    let run = enroll_as_user(&fleet, authority.address()).ok();
    let ca = certs.join("ca.pem");
    assert!(run.err().contains(&format!("run `chown root:root {}`", ca.display())), "{}", run.err());
    web1.start();
    let refused = fleet.overlord(["web1", "test.add", "1", "2"]);
    assert_ne!(refused.code(), 0, "root obeys no authority that the server could have made up");
    chown(&ca, Some(0), Some(0)).unwrap();
    wait_until("root to go by it", PATIENCE, || fleet.overlord(["web1", "test.add", "1", "2"]).code() == 0);
    // The user's own run leaves root's file alone.
    let _ = enroll_as_user(&fleet, authority.address()).ok();
    assert_owners(web1);
    authority.stop();
    fleet.assert_no_leaks();
}
