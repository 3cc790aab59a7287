//! The parts of a minion that are killed: what ends with them, what starts again, and that jobs go on.

use fleet::{Minion, PATIENCE, Process, wait_for, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{daemon, ended, let_go, separated, server_of, start_job};

fn signal(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).unwrap();
}

fn another_spawner(web1: &Minion, dead: &Process) -> Process {
    wait_for("another spawner", PATIENCE, || web1.spawner().filter(|spawner| spawner.pid != dead.pid))
}

#[test]
fn a_spawner_that_is_killed_is_started_again_and_nothing_else_is() {
    let Some(fleet) = separated(|fleet| fleet) else { return };
    let web1 = fleet.minion("web1");
    let id = start_job(&fleet);
    let (daemon, server) = (daemon(web1), server_of(web1));
    for _ in 0..4 {
        let spawner = web1.spawner().unwrap();
        signal(spawner.pid, Signal::SIGKILL);
        // Until it is dead it takes a call, which is lost with it.
        wait_until("the spawner to be dead", PATIENCE, || !spawner.is_there());
        let _ = fleet.overlord(["web1", "test.add", "1", "2"]).ok();
        assert_ne!(another_spawner(web1, &spawner).pid, spawner.pid);
    }
    assert!(daemon.is_there() && server.is_there());
    assert_eq!(server_of(web1), server);
    let_go(&fleet);
    assert_eq!(ended(&fleet, &id)["result"]["stdout"], "done\n");
    assert!(web1.stderr().contains("the spawner has died and is started again"), "{}", web1.stderr());
    fleet.assert_no_leaks();
}

#[test]
fn the_minion_ends_with_its_server_and_jobs_go_on() {
    let Some(fleet) = separated(|fleet| fleet) else { return };
    let web1 = fleet.minion("web1");
    let id = start_job(&fleet);
    let (daemon, spawner) = (daemon(web1), web1.spawner().unwrap());
    signal(server_of(web1).pid, Signal::SIGKILL);
    assert_eq!(web1.wait_for_end().code(), Some(128 + 9));
    assert!(!spawner.is_there() && daemon.is_there());
    web1.start();
    let_go(&fleet);
    assert_eq!(ended(&fleet, &id)["result"]["stdout"], "done\n");
    fleet.assert_no_leaks();
}

#[test]
fn a_keeper_that_is_killed_takes_both_parts_along_and_jobs_go_on() {
    let Some(fleet) = separated(|fleet| fleet) else { return };
    let web1 = fleet.minion("web1");
    let id = start_job(&fleet);
    let (daemon, server, spawner) = (daemon(web1), server_of(web1), web1.spawner().unwrap());
    signal(web1.pid(), Signal::SIGKILL);
    assert_eq!(web1.wait_for_end().code(), None);
    wait_until("both parts to be gone", PATIENCE, || !server.is_there() && !spawner.is_there());
    assert!(daemon.is_there());
    web1.start();
    let_go(&fleet);
    assert_eq!(ended(&fleet, &id)["result"]["stdout"], "done\n");
    fleet.assert_no_leaks();
}

#[test]
fn a_minion_that_is_told_to_stop_lets_running_calls_end() {
    let Some(fleet) = separated(|fleet| fleet) else { return };
    let web1 = fleet.minion("web1");
    let (server, spawner) = (server_of(web1), web1.spawner().unwrap());
    let call = fleet.overlord_spawn(["web1", "test.sleep", "1", "--output", "json"]);
    wait_until("the call to be there", PATIENCE, || web1.audit().iter().any(|entry| entry["method"] == "test.sleep"));
    signal(web1.pid(), Signal::SIGTERM);
    assert_eq!(web1.wait_for_end().code(), Some(0));
    assert!(!server.is_there() && !spawner.is_there());
    assert_eq!(call.wait().ok().json()["hosts"]["web1"]["state"], "ok");
    fleet.assert_no_leaks();
}

#[test]
fn a_second_minion_of_the_same_state_takes_nothing_from_the_first() {
    let Some(fleet) = separated(|fleet| fleet) else { return };
    let web1 = fleet.minion("web1");
    let spawner = web1.spawner().unwrap();
    let run = fleet.run_minion("web1", &["serve"]);
    assert_eq!(run.code(), 1, "{}", run.err());
    assert!(run.err().contains("another minion runs with this state_dir"), "{}", run.err());
    assert!(run.err().contains("the spawner did not start"), "{}", run.err());
    assert_eq!(web1.spawner(), Some(spawner));
    let _ = fleet.overlord(["web1", "test.add", "1", "2"]).ok();
    fleet.assert_no_leaks();
}
