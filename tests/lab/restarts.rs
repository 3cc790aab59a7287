//! What is done to the units while a job runs: it runs on, once, its result arrives, and the units run afterwards.

use fleet::lab::{Host, Lab};
use fleet::{PATIENCE, wait_until};

const SERVER: &str = "minion.service";
const SPAWNER: &str = "minion-spawner.service";

/// The number of the process that a unit is.
fn main_pid(host: &Host, unit: &str) -> String {
    host.run(&format!("systemctl show --value -p MainPID {unit}")).ok().out().trim().to_owned()
}

fn kill9(host: &Host, unit: &str) {
    let before = main_pid(host, unit);
    let _ = host.run(&format!("systemctl kill --kill-who=main --signal=KILL {unit}")).ok();
    wait_until(&format!("{unit} of {} to come back", host.name()), PATIENCE, || !["0", before.as_str()].contains(&main_pid(host, unit).as_str()));
}

fn restart(host: &Host, units: &str) {
    let _ = host.run(&format!("systemctl restart {units}")).ok();
}

fn on_each(lab: &Lab, whats: [&(dyn Fn(&Host) + Sync); 3]) {
    for (host, what) in lab.hosts().iter().zip(whats) {
        what(host);
    }
}

#[test]
fn either_unit_is_restarted_while_a_job_runs() {
    let lab = Lab::enrolled(3);
    let work = lab.start_work("*", "restarts");
    work.has_begun();
    let both = format!("{SERVER} {SPAWNER}");
    on_each(&lab, [&|host| restart(host, SERVER), &|host| restart(host, SPAWNER), &|host| restart(host, &both)]);
    lab.is_well();
    work.ends_well();
    lab.start_work("*", "after").has_begun().ends_well();
}

#[test]
fn either_unit_is_killed_while_a_job_runs() {
    let lab = Lab::enrolled(3);
    let work = lab.start_work("*", "kills");
    work.has_begun();
    let both = |host: &Host| [SERVER, SPAWNER].into_iter().for_each(|unit| kill9(host, unit));
    on_each(&lab, [&|host| kill9(host, SERVER), &|host| kill9(host, SPAWNER), &both]);
    lab.is_well();
    work.ends_well();
    lab.start_work("*", "after").has_begun().ends_well();
}

