//! What is done to the units while a job runs: it runs on, once, its result arrives, and the units run afterwards.

use fleet::lab::{Host, Lab, SERVER, SPAWNER};

/// On each of three hosts something else happens in the middle of one job.
fn a_job_survives(what: fn(&Host, &[&str])) {
    let lab = Lab::enrolled(3);
    let work = lab.start_work("*", "under-way");
    work.has_begun();
    for (host, units) in lab.hosts().iter().zip([&[SERVER][..], &[SPAWNER], &[SERVER, SPAWNER]]) {
        what(host, units);
    }
    lab.is_well();
    work.ends_well();
    lab.start_work("*", "after").has_begun().ends_well();
}

#[test]
fn a_job_survives_a_restart_of_either_unit() {
    a_job_survives(|host, units| drop(host.run(&format!("systemctl restart {}", units.join(" "))).ok()));
}

#[test]
fn a_job_survives_a_kill_of_either_unit() {
    a_job_survives(|host, units| units.iter().for_each(|unit| host.kill_unit(unit)));
}
