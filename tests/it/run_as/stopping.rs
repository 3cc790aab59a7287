//! Stopping what runs as a rule's user, though it has become root by a program that is setuid: by its caller, its limit, and the death of
//! who supervises it.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;

use fleet::{COMMAND_TIMEOUT, Fleet, Minion, PATIENCE, wait_for, wait_until};
use serde_json::json;

use super::{DEPLOY, answer, host, plain, processes_of, uid_of};

/// A program of root's that anyone may run as root, which becomes root altogether, as sudo does.
fn make_rootly(web1: &Minion) {
    let path = web1.inside("/home/rootly");
    fs::copy("/usr/bin/setpriv", &path).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o4755)).unwrap();
}

const ROOTLY: &str = "/home/rootly --reuid=0 --regid=0 --clear-groups sleep 600";

fn wait_for_roots_sleep(fleet: &Fleet, count: usize) {
    let web1 = fleet.minion("web1");
    let sleeps = || {
        web1.beside().into_iter().filter(|process| process.command == "sleep 600").map(|process| uid_of(process.pid)).collect::<Vec<_>>()
    };
    wait_until("a program to be root's", PATIENCE, || {
        sleeps().iter().filter(|uid| **uid == Some(0)).count() == 1 && sleeps().len() == count
    });
}

fn wait_until_nothing_sleeps(fleet: &Fleet) {
    let web1 = fleet.minion("web1");
    wait_until("all of it to be gone", PATIENCE, || web1.beside().iter().all(|process| !process.command.contains("sleep 600")));
}

#[test]
fn it_is_stopped_with_all_that_it_started_though_that_became_root() {
    let Some(fleet) = host(|builder| builder.minion_toml("[limits]\ncancel_grace = \"200ms\"\n")) else { return };
    make_rootly(fleet.minion("web1"));
    let line = format!("trap '' TERM; setsid {ROOTLY} & setsid sleep 600 & sleep 600");
    let id = fleet.start_job(["web1", "command.run", &line]);
    wait_for_roots_sleep(&fleet, 3);
    let _ = fleet.overlord(["job-cancel", &id]).ok();
    wait_until_nothing_sleeps(&fleet);
    let status = fleet.overlord(["job-status", &id, "--wait", "--output", "json"]).expect(2).json();
    assert_eq!(status["hosts"]["web1"]["state"], "cancelled", "{status}");

    let id = fleet.start_job(["web1", "command.run", &line, "--job-timeout", "2s"]);
    let status = fleet.overlord(["job-status", &id, "--wait", "--output", "json"]).expect(2).json();
    assert_eq!(status["hosts"]["web1"]["state"], "timed_out", "{status}");
    wait_until_nothing_sleeps(&fleet);

    let call = fleet.overlord_spawn(["web1", "command.run", &line]);
    wait_for_roots_sleep(&fleet, 3);
    call.kill9();
    wait_until_nothing_sleeps(&fleet);
}

#[test]
fn a_commands_own_timeout_holds_though_the_command_became_root() {
    let Some(fleet) = plain() else { return };
    make_rootly(fleet.minion("web1"));
    let argv: Vec<_> = ROOTLY.split(' ').collect();
    let answer = answer(&fleet, &["command.run", "--json", &json!({ "argv": argv, "timeout": "300ms" }).to_string()], 2);
    assert_eq!((&answer["state"], &answer["error"]["data"]["type"]), (&json!("failed"), &json!("timeout")), "{answer}");
    assert_eq!(answer["error"]["data"]["signal"], 9, "{answer}");
    wait_until_nothing_sleeps(&fleet);
}

#[test]
fn a_killed_job_daemon_leaves_nothing_of_a_users_job() {
    let Some(fleet) = plain() else { return };
    make_rootly(fleet.minion("web1"));
    let web1 = fleet.minion("web1");
    let id = fleet.start_job(["web1", "command.run", &format!("{ROOTLY} & setsid sleep 600 & sleep 600")]);
    wait_for_roots_sleep(&fleet, 3);
    let daemon = web1.job_daemon(&web1.spools()[0]).unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(daemon.pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    let status = wait_for("the job to be lost", COMMAND_TIMEOUT, || {
        Some(fleet.job_status(&id)).filter(|status| status["hosts"]["web1"]["state"] == "lost")
    });
    assert!(status["hosts"]["web1"]["error"]["message"].as_str().unwrap().contains("job daemon was killed"), "{status}");
    wait_until_nothing_sleeps(&fleet);
    wait_until("no process of the user's to be left", PATIENCE, || processes_of(web1, DEPLOY).is_empty());

    // One that starts nothing has its supervisor's death alone to die of.
    let _ = fleet.start_job(["web1", "test.sleep", "600"]);
    wait_until("the method to run", PATIENCE, || processes_of(web1, DEPLOY).len() == 1);
    let daemon = web1.spools().iter().find_map(|id| web1.job_daemon(id)).unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(daemon.pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    wait_until("the method to be gone with it", PATIENCE, || processes_of(web1, DEPLOY).is_empty());
}
