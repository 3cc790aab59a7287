//! Packages that take the place of others while jobs run, and one that cannot.

use std::time::{Duration, Instant};

use fleet::lab::{Host, Lab, SERVER, SPAWNER, Version, deb};
use serde_json::{Value, json};

/// How long it may take until a package that does not come up was taken back.
const TAKEN_BACK_WITHIN: Duration = Duration::from_secs(60);

/// Sees that this version is installed, and that it is what runs.
fn runs(lab: &Lab, version: Version) {
    let meant = version.of("overlord-minion");
    for host in lab.hosts() {
        let installed = host.run("dpkg-query -W -f '${Version}' overlord-minion").ok().out();
        assert_eq!(installed, meant, "{}", host.name());
        for unit in [SERVER, SPAWNER] {
            let program = host.run(&format!("readlink /proc/{}/exe", host.main_pid(unit))).ok().out();
            assert_eq!(program, "/usr/bin/minion\n", "{unit} of {} is a program that was replaced", host.name());
        }
    }
    let told = lab.overlord(["*", "system.inventory", "--output", "json"]).ok().json();
    for host in lab.hosts() {
        let told = &told["hosts"][host.name()]["result"]["minion_version"];
        assert_eq!(told.as_str(), meant.split('-').next(), "{}", host.name());
    }
}

fn install(host: &Host, version: Version) {
    let _ = host.run(&format!("apt-get install -y --allow-downgrades {}", deb("overlord-minion", version))).ok();
}

/// The overlord is older than the minions then, and they are older than what they have written; nobody minds.
#[test]
fn a_job_survives_an_upgrade_and_a_downgrade() {
    let lab = Lab::enrolled(3);
    let (first, second) = (lab.start_work("*", "first"), lab.start_work("h1", "second"));
    first.has_begun();
    lab.on_all(|host| install(host, Version::Next));
    lab.is_well();
    runs(&lab, Version::Next);
    let third = lab.start_work("*", "third");
    third.has_begun();
    first.ends_well();
    lab.on_all(|host| install(host, Version::This));
    lab.is_well();
    runs(&lab, Version::This);
    third.ends_well();
    second.ends_well();
}

/// The other way round: the overlord is newer than the minions, and started its job when it was as old as they.
#[test]
fn an_overlord_is_upgraded_while_a_job_runs() {
    let lab = Lab::enrolled(1);
    let work = lab.start_work("*", "over");
    work.has_begun();
    let install = |version| lab.control().run(&format!("apt-get install -y --allow-downgrades {}", deb("overlord", version))).ok();
    let _ = install(Version::Next);
    let version = lab.overlord(["--version"]).ok().out();
    assert!(version.contains(Version::Next.of("overlord").split('-').next().unwrap()), "{version}");
    lab.is_well();
    assert_eq!(work.status()["hosts"]["h1"]["state"], "running");
    let next = lab.start_work("*", "next");
    next.has_begun();
    let _ = install(Version::This);
    work.ends_well();
    next.ends_well();
    assert!(lab.control().is_active("overlord-certs.service"));
}

/// A file that was cut short: nothing is installed, and what ran runs.
#[test]
fn a_package_that_cannot_be_unpacked_changes_nothing() {
    let lab = Lab::enrolled(1);
    let work = lab.start_work("*", "broken");
    work.has_begun();
    let host = &lab.hosts()[0];
    let next = deb("overlord-minion", Version::Next);
    let run = host.run(&format!("head -c $(($(stat -c %s {next}) - 1000)) {next} > /var/tmp/broken.deb; dpkg -i /var/tmp/broken.deb"));
    assert_ne!(run.code(), 0, "{}{}", run.out(), run.err());
    lab.is_well();
    runs(&lab, Version::This);
    work.ends_well();
}

/// Starts `minion.upgrade` everywhere and gives what each host says in the end.
fn upgrade_itself(lab: &Lab, package: &str) -> Value {
    let job = lab.overlord(["*", "minion.upgrade", package, "--async"]).ok().out();
    lab.overlord(["job-status", job.trim(), "--wait", "--output", "json"]).json()["hosts"].clone()
}

/// By a call of the fleet's own, there and back, in the middle of a job. Who answers in the end is the new version.
#[test]
fn a_fleet_upgrades_itself_through_itself() {
    let lab = Lab::enrolled(3);
    let work = lab.start_work("*", "meanwhile");
    work.has_begun();
    for (from, to) in [(Version::This, Version::Next), (Version::Next, Version::This)] {
        let told = upgrade_itself(&lab, &deb("overlord-minion", to));
        let meant = json!({ "from": from.of("overlord-minion"), "to": to.of("overlord-minion"), "changed": true });
        for host in lab.hosts() {
            assert_eq!(told[host.name()]["result"], meant, "{told:#}");
        }
        lab.is_well();
        runs(&lab, to);
    }
    work.ends_well();
}

/// The same package with another program in it, which ends at once.
const BROKEN: &str = "dpkg-deb --raw-extract PACKAGE /root/broken
    printf '#!/bin/sh\\nexit 1\\n' > /root/broken/usr/bin/minion
    sed -i 's/^Version: .*/Version: 9.9.9-1/' /root/broken/DEBIAN/control
    dpkg-deb --build /root/broken /root/broken.deb";

#[test]
fn a_package_that_does_not_come_up_is_taken_back_by_itself() {
    let lab = Lab::enrolled(3);
    let work = lab.start_work("*", "meanwhile");
    work.has_begun();
    let _ = lab.control().run(&BROKEN.replace("PACKAGE", &deb("overlord-minion", Version::This))).ok();
    let begun = Instant::now();
    let told = upgrade_itself(&lab, "/root/broken.deb");
    assert!(begun.elapsed() < TAKEN_BACK_WITHIN, "it took {:?}", begun.elapsed());
    for host in lab.hosts() {
        let error = &told[host.name()]["error"];
        assert_eq!(error["data"]["type"], "rolled_back", "{told:#}");
        assert!(error["message"].as_str().unwrap().contains("9.9.9-1 did not come up and was taken back"), "{error}");
    }
    lab.is_well();
    runs(&lab, Version::This);
    work.ends_well();
}
