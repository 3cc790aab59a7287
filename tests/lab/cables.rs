//! Cables that are pulled while a job is handed out, while it runs and while it is asked for, and put back.

use fleet::lab::{Host, Lab, SPAWNER, Work};
use fleet::{COMMAND_TIMEOUT, PATIENCE, wait_for, wait_until};

/// Waits until it is known that the host is out of reach, and sees that it is still in `state`, as far as is known.
fn is_unreachable(work: &Work<'_>, host: &Host, state: &str) {
    let status = wait_for(&format!("{} to be missed", host.name()), COMMAND_TIMEOUT, || {
        Some(work.status_of(host)).filter(|status| status["unreachable"]["reason"].is_string())
    });
    assert_eq!(status["state"], state, "{status}");
}

/// One host was never reached; another took the job, and could not say so any more.
#[test]
fn a_cable_is_pulled_while_a_job_is_handed_out() {
    let lab = Lab::enrolled(3);
    let [sound, never_reached, unheard] = lab.hosts() else { panic!("three hosts") };
    never_reached.pull_cable();
    let signal = |signal: &str| drop(unheard.run(&format!("systemctl kill --kill-who=main --signal={signal} {SPAWNER}")).ok());
    signal("STOP");
    let work = lab.start_work("*", "work");
    wait_until("the call to arrive", PATIENCE, || unheard.read("/var/lib/minion/audit.log").is_some_and(|log| log.contains(&work.id)));
    unheard.pull_cable();
    signal("CONT");
    work.has_begun_on(unheard);
    work.has_begun_on(sound);
    let told = work.is_on(never_reached, "undelivered");
    assert!(told["error"]["message"].as_str().unwrap().contains("cannot reach"), "{told}");
    is_unreachable(&work, unheard, "pending");
    assert_eq!(work.status_of(sound)["state"], "running");

    lab.on_all(|host| host.plug_cable());
    lab.answers();
    let _ = work.is_on(unheard, "running");
    assert_eq!(work.traces(never_reached), [""; 0]);
    let _ = lab.overlord(["job-resume", &work.id]).ok();
    work.has_begun();
    work.ends_well();
}

#[test]
fn a_cable_is_pulled_while_a_job_runs_and_while_it_is_asked_for() {
    let lab = Lab::enrolled(3);
    let [ends_alone, asked, sound] = lab.hosts() else { panic!("three hosts") };
    let work = lab.start_work("*", "work");
    work.has_begun();
    let _ = (work.is_on(ends_alone, "running"), work.is_on(asked, "running"));
    ends_alone.pull_cable();
    work.let_go_on(ends_alone);
    wait_until("it to end while nobody hears of it", PATIENCE, || work.traces(ends_alone).len() == 2);
    is_unreachable(&work, ends_alone, "running");

    let mut poll = lab.overlord_start(["job-status", &work.id, "--wait", "--output", "json"]);
    work.let_go_on(sound);
    // It has been asked for since the poll began, which is a line in the audit log.
    let polled =
        || asked.read("/var/lib/minion/audit.log").map_or(0, |log| log.lines().filter(|line| line.contains("jobs.status")).count());
    let before = polled();
    wait_until("the poll to ask", PATIENCE, || polled() > before);
    asked.pull_cable();
    work.let_go_on(asked);
    wait_until("it to end while nobody hears of it", PATIENCE, || work.traces(asked).len() == 2);
    assert!(poll.is_running(), "two hosts are out of reach");
    lab.on_all(|host| host.plug_cable());
    let ended = poll.wait().ok().json();
    assert_eq!(ended["state"], "FINISHED", "{ended}");
    work.ends_well();
}
