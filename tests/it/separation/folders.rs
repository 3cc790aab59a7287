//! The folders that root and the server share: made, mended, and refused where somebody else could have filled them.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, chown, lchown, symlink};

use fleet::{Fleet, Owner, owner, user};
use nix::unistd::geteuid;

use super::check::mend;
use super::{USER, ended, group_name, separated};

fn shared() -> Owner {
    Owner::of("root", &group_name(), 0o1771)
}

#[test]
fn what_the_parts_make_has_its_owners() {
    let Some(fleet) = separated(|fleet| fleet) else { return };
    let web1 = fleet.minion("web1");
    let id = fleet.start_job(["web1", "test.add", "1", "2"]);
    assert_eq!(ended(&fleet, &id)["state"], "ok");
    let state = web1.state_dir();
    let group = group_name();
    assert_eq!(owner(&state), shared());
    assert_eq!(owner(&state.join("spool")), Owner::of("root", "root", 0o700));
    assert_eq!(owner(&state.join("spawner.sock")), Owner::of("root", &group, 0o660));
    for (name, mode) in
        [("audit.log", 0o600), ("server.lock", 0o600), ("status.sled", 0o700), ("server.sock", 0o700), ("submit.sock", 0o666)]
    {
        assert_eq!(owner(&state.join(name)), Owner::of(USER, &group, mode), "{name}");
    }
    let spools = fs::read_dir(state.join("spool")).unwrap().map(|entry| entry.unwrap().path());
    for path in spools {
        assert_eq!(owner(&path).user, "root", "{}", path.display());
    }
    fleet.assert_no_leaks();
}

#[test]
fn a_minion_that_was_root_all_through_goes_on_as_two_users() {
    if !geteuid().is_root() {
        return;
    }
    let fleet = Fleet::start(1);
    let web1 = fleet.minion("web1");
    let id = fleet.start_job(["web1", "command.run", "echo before"]);
    assert_eq!(ended(&fleet, &id)["state"], "ok");
    web1.stop();
    fs::set_permissions(fleet.root(), Permissions::from_mode(0o711)).unwrap();
    let text = fs::read_to_string(web1.config_file()).unwrap();
    fs::write(web1.config_file(), format!("user = \"{USER}\"\n{text}")).unwrap();
    fs::write(web1.state_dir().join("roots.txt"), "not the server's").unwrap();
    fs::hard_link(web1.config_file(), web1.state_dir().join("audit.log.9")).unwrap();
    mend(&fleet);
    web1.start();
    for name in ["audit.log", "server.lock", "status.sled", "status.sled/db"] {
        assert_eq!(owner(&web1.state_dir().join(name)).user, USER, "{name}");
    }
    assert_eq!(owner(&web1.state_dir()), shared());
    for roots in [web1.state_dir().join("roots.txt"), web1.config_file()] {
        assert_eq!(owner(&roots).user, "root", "{}", roots.display());
    }
    let listed = fleet.overlord(["web1", "jobs.list", "--output", "json"]).ok().out();
    assert!(listed.contains(&web1.spools()[0]), "{listed}");
    let id = fleet.start_job(["web1", "command.run", "echo after"]);
    assert_eq!(ended(&fleet, &id)["result"]["stdout"], "after\n");
    fleet.assert_no_leaks();
}

/// Starts the minion, which cannot, and gives what it said.
fn refusal(fleet: &Fleet) -> String {
    let web1 = fleet.minion("web1");
    let before = web1.stderr().len();
    web1.start_without_waiting();
    assert_eq!(web1.wait_for_end().code(), Some(1));
    web1.stderr()[before..].to_owned()
}

#[test]
fn spools_that_somebody_else_could_have_written_are_refused() {
    let Some(fleet) = separated(|fleet| fleet.stopped()) else { return };
    let web1 = fleet.minion("web1");
    let (spools, elsewhere) = (web1.spools_dir(), fleet.root().join("elsewhere"));
    web1.start();
    let id = fleet.start_job(["web1", "command.run", "echo kept"]);
    assert_eq!(ended(&fleet, &id)["state"], "ok");
    web1.stop();

    chown(&spools, Some(user(USER).uid.as_raw()), None).unwrap();
    let said = refusal(&fleet);
    assert!(said.contains("is not root's") && said.contains(&format!("`chown -R -h root:root {}`", spools.display())), "{said}");

    chown(&spools, Some(0), None).unwrap();
    fs::rename(&spools, &elsewhere).unwrap();
    symlink(&elsewhere, &spools).unwrap();
    lchown(&spools, Some(user(USER).uid.as_raw()), None).unwrap();
    let said = refusal(&fleet);
    let aside = format!("{}.set-aside", spools.display());
    assert!(said.contains("is a link") && said.contains(&format!("`mv {} {aside}`", spools.display())), "{said}");

    // As it says. What was there is given up, and told so.
    fs::rename(&spools, aside).unwrap();
    web1.start();
    assert_eq!(owner(&spools), Owner::of("root", "root", 0o700));
    let id = fleet.start_job(["web1", "command.run", "echo anew"]);
    assert_eq!(ended(&fleet, &id)["result"]["stdout"], "anew\n");
    fleet.assert_no_leaks();
}

#[test]
fn a_state_that_its_user_could_lead_elsewhere_is_refused() {
    let Some(fleet) = separated(|fleet| fleet.stopped()) else { return };
    let folder = fleet.minion("web1").config_file().parent().unwrap().to_owned();
    chown(&folder, Some(user(USER).uid.as_raw()), None).unwrap();
    let said = refusal(&fleet);
    assert!(said.contains(&format!("the user {USER} may put something else into {}", folder.display())), "{said}");
    chown(&folder, Some(0), None).unwrap();
    fleet.minion("web1").start();
    fleet.assert_no_leaks();
}

/// The server's user owns a folder, and has put a link there, to where root alone may make anything; once as the state's folder above, and once as
/// what another link leads to.
#[test]
fn root_makes_nothing_where_the_user_leads_it() {
    let Some(fleet) = separated(|fleet| fleet.stopped()) else { return };
    let web1 = fleet.minion("web1");
    let [users, roots] = ["users", "roots"].map(|name| fleet.root().join(name));
    [&users, &roots].into_iter().for_each(|folder| fs::create_dir(folder).unwrap());
    symlink(&roots, users.join("link")).unwrap();
    symlink(users.join("link"), fleet.root().join("first")).unwrap();
    lchown(users.join("link"), Some(user(USER).uid.as_raw()), None).unwrap();
    chown(&users, Some(user(USER).uid.as_raw()), None).unwrap();
    let config = fs::read_to_string(web1.config_file()).unwrap();
    for way in ["users/link/above/state", "first/state"] {
        let state = format!("state_dir = {:?}", fleet.root().join(way));
        fs::write(web1.config_file(), config.replace("state_dir = \"state\"", &state)).unwrap();
        let said = refusal(&fleet);
        assert!(said.contains(&format!("the user {USER} may put something else into {}", users.display())), "{said}");
        assert_eq!(fs::read_dir(&roots).unwrap().count(), 0, "{way}");
    }
    fs::write(web1.config_file(), config).unwrap();
    web1.start();
    fleet.assert_no_leaks();
}
