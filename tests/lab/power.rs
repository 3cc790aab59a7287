//! Hosts that lose their power or are rebooted in the middle of a job: what is not known is `lost`, with the reason, and nothing runs twice.

use std::time::Duration;

use fleet::lab::{Lab, SERVER, SPAWNER};
use fleet::{PATIENCE, wait_until};
use serde_json::{Value, json};

/// What is said of a host that went down in the middle of a job.
fn assert_lost(status: &Value) {
    assert_eq!(status["state"], "lost", "{status}");
    assert!(status["error"]["message"].as_str().unwrap().contains("the host rebooted while it ran"), "{status}");
}

#[test]
fn a_host_without_power_loses_what_ran_and_nothing_else() {
    let lab = Lab::enrolled(3);
    let [runs, has_ended, has_queued] = lab.hosts() else { panic!("three hosts") };
    // One job at a time, so that a second waits.
    has_queued.write("/etc/minion/minion.toml", "user = \"minion\"\n[limits]\njobs_max = 1\n");
    let _ = has_queued.run(&format!("systemctl restart {SERVER} {SPAWNER}")).ok();
    lab.is_well();

    let work = lab.start_work("*", "work");
    work.has_begun();
    let waits = lab.start_work(has_queued.name(), "waits");
    let _ = waits.is_on(has_queued, "queued");
    let _ = work.is_on(has_ended, "running");
    work.let_go_on(has_ended);
    wait_until("it to have ended", PATIENCE, || has_ended.run("grep -l done /var/lib/minion/spool/*/outcome.json").status.success());

    lab.on_all(|host| host.power_off());
    let dark = work.status();
    for host in lab.hosts() {
        let told = &dark["hosts"][host.name()];
        assert_eq!(told["state"], "running", "what was last heard of it: {told}");
        assert!(told["unreachable"]["reason"].is_string(), "{told}");
    }
    lab.on_all(|host| host.power_on());
    lab.is_well();

    assert_lost(&work.is_on(runs, "lost"));
    assert_lost(&work.is_on(has_queued, "lost"));
    assert_eq!(work.is_on(has_ended, "ok")["result"]["stdout"], format!("{} is done\n", has_ended.name()));
    waits.has_begun_on(has_queued);
    waits.let_go_on(has_queued);
    assert_eq!(waits.ended()[has_queued.name()]["state"], "ok", "what waited has not begun before");
    // Whoever would start it again has done so by now: another job went through all hosts, and nothing holds the first.
    work.let_go();
    lab.start_work("*", "after").has_begun().ends_well();
    assert_eq!((work.traces(runs), work.traces(has_queued)), (vec!["start".to_owned()], vec!["start".to_owned()]));
    work.ran_once(has_ended);
    waits.ran_once(has_queued);
    assert_lost(&work.status_of(runs));
}

/// How many jobs are struck, each a little later in its life than the one before: the first are not handed out yet.
const STRUCK: u32 = 8;
const LATER: Duration = Duration::from_millis(40);

#[test]
fn power_is_lost_at_any_moment_and_what_is_said_is_true() {
    let lab = Lab::enrolled(3);
    for round in 0..STRUCK {
        let tag = format!("struck-{round}");
        // Half of them end quickly, and all of them would if they ran again.
        if round % 2 == 0 {
            lab.let_go(&tag);
        }
        let work = std::thread::scope(|scope| {
            for (host, third) in lab.hosts().iter().zip(0..) {
                // No wait for anything: the moment is what is varied.
                scope.spawn(move || {
                    std::thread::sleep(LATER * round + LATER / 3 * third);
                    host.power_off();
                });
            }
            lab.start_work("*", &tag)
        });
        lab.let_go(&tag);
        lab.on_all(|host| host.power_on());
        lab.is_well();
        let ended = work.ended();
        for host in lab.hosts() {
            assert_true(&ended[host.name()], &work.traces(host));
        }
    }
}

/// What is said of a host fits what lies on its disk.
fn assert_true(status: &Value, traces: &[String]) {
    let what = format!("{status}: {traces:?}");
    println!("{what}");
    match status["state"].as_str() {
        Some("ok") => assert_eq!(traces, ["start", "end"], "{what}"),
        Some("undelivered") => assert!(traces.is_empty(), "{what}"),
        Some("lost") => assert!(traces.len() < 2 || traces == ["start", "end"], "{what}"),
        _ => panic!("{what}"),
    }
}

/// An orderly reboot: systemd tells all that runs to end, job or not. Where the job's daemon outlives what it runs, it says so.
#[test]
fn a_host_is_rebooted_in_the_middle_of_a_job() {
    let lab = Lab::enrolled(1);
    let host = &lab.hosts()[0];
    let work = lab.start_work("*", "work");
    work.has_begun();
    host.reboot();
    lab.is_well();
    let ended = work.ended()[host.name()].clone();
    if ended["state"] == "failed" {
        assert!(ended["error"]["message"].as_str().unwrap().contains("killed by SIGTERM"), "{ended}");
    } else {
        assert_lost(&ended);
    }
    work.let_go();
    lab.start_work("*", "after").has_begun().ends_well();
    assert_eq!(work.traces(host), ["start"]);
}

/// The overlord's machine loses its power while it hands a job out: who got it runs it, and of the other it is found out that he never did.
#[test]
fn an_overlord_without_power_knows_its_job_afterwards() {
    let lab = Lab::enrolled(2);
    let [reached, cut_off] = lab.hosts() else { panic!("two hosts") };
    cut_off.pull_cable();
    let work = lab.start_work("*", "work");
    work.has_begun_on(reached);
    lab.control().power_off();
    work.let_go_on(reached);
    cut_off.plug_cable();
    lab.control().power_on();
    let _ = work.is_on(reached, "ok");
    // The dispatcher may have given up on it before its machine went down.
    let _ = work.is_on(cut_off, "undelivered");
    assert_eq!(work.traces(cut_off), [""; 0]);
    work.let_go();
    let _ = lab.overlord(["job-resume", &work.id]).ok();
    work.ends_well();
    assert_eq!(work.status()["state"], json!("FINISHED"));
}
