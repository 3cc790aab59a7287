//! Packages that take the place of others while jobs run, and one that cannot.

use std::time::{Duration, Instant};

use fleet::lab::{Host, Lab, SERVER, SPAWNER, Version, deb};
use fleet::{PATIENCE, wait_for, wait_until};
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
    // The very same again is nothing to do.
    let told = upgrade_itself(&lab, &deb("overlord-minion", Version::This));
    for host in lab.hosts() {
        assert_eq!(told[host.name()]["result"]["changed"], false, "{told:#}");
    }
    work.ends_well();
}

/// The same package with another program in it, which ends at once.
const BROKEN: &str = "dpkg-deb --raw-extract PACKAGE /root/broken
    printf '#!/bin/sh\\nexit 1\\n' > /root/broken/usr/bin/minion
    sed -i 's/^Version: .*/Version: 9.9.9-1/' /root/broken/DEBIAN/control
    dpkg-deb --build /root/broken /root/broken.deb";

fn broken(lab: &Lab) -> &'static str {
    let _ = lab.control().run(&BROKEN.replace("PACKAGE", &deb("overlord-minion", Version::This))).ok();
    "/root/broken.deb"
}

#[test]
fn a_package_that_does_not_come_up_is_taken_back_by_itself() {
    let lab = Lab::enrolled(3);
    let work = lab.start_work("*", "meanwhile");
    work.has_begun();
    let broken = broken(&lab);
    let begun = Instant::now();
    let told = upgrade_itself(&lab, broken);
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

/// There was no package to go back to, and one was made of what is installed: an administrator's rules are none of its business.
#[test]
fn a_way_back_and_the_next_package_leave_rules_as_they_were() {
    const RULES: &str = "/etc/minion/acl.d/50-admin.toml";
    let lab = Lab::enrolled(2);
    let [changed, removed] = lab.hosts() else { panic!("two hosts") };
    let own = format!("{}# Ours.\n", changed.read(RULES).unwrap());
    changed.write(RULES, &own);
    let _ = removed.run(&format!("mv {RULES} /etc/minion/acl.d/60-ours.toml")).ok();
    let told = upgrade_itself(&lab, broken(&lab));
    assert_eq!(
        (&told["h1"]["error"]["data"]["type"], &told["h2"]["error"]["data"]["type"]),
        (&json!("rolled_back"), &json!("rolled_back"))
    );
    let told = upgrade_itself(&lab, &deb("overlord-minion", Version::Next));
    assert_eq!((&told["h1"]["state"], &told["h2"]["state"]), (&json!("ok"), &json!("ok")), "{told:#}");
    runs(&lab, Version::Next);
    assert_eq!(changed.read(RULES), Some(own));
    assert_eq!(removed.read(RULES), None);
}

/// An upgrade waits for a minute, and then some.
const WAITS_WITHIN: Duration = Duration::from_secs(150);

/// Somebody else installs something meanwhile, which dpkg lets one do at a time.
#[test]
fn an_upgrade_waits_for_others_and_says_when_that_was_in_vain() {
    const SLOW: &str = "mkdir -p /root/slow/DEBIAN && cd /root/slow
        printf 'Package: slow\nVersion: 1\nArchitecture: all\nMaintainer: x <x@example.com>\nDescription: slow\n' > DEBIAN/control
        printf '#!/bin/sh\ntouch /root/begun; while ! [ -e /root/go ]; do sleep 0.1; done\n' > DEBIAN/preinst
        chmod 755 DEBIAN/preinst; dpkg-deb --build . /root/slow.deb; systemd-run --unit slow dpkg -i /root/slow.deb";
    let lab = Lab::enrolled(2);
    let [waits, waits_in_vain] = lab.hosts() else { panic!("two hosts") };
    lab.on_all(|host| {
        let _ = host.run(SLOW).ok();
        wait_until("somebody to install something", PATIENCE, || host.path("/root/begun").exists());
    });
    let next = deb("overlord-minion", Version::Next);
    let job = lab.overlord(["*", "minion.upgrade", &next, "--async"]).ok().out();
    wait_until("it to have begun", PATIENCE, || host_has_begun(waits));
    waits.write("/root/go", "");
    let told = wait_for("both to end", WAITS_WITHIN, || {
        let status = lab.overlord(["job-status", job.trim(), "--output", "json"]).json();
        (status["state"] == "FINISHED").then(|| status["hosts"].clone())
    });
    assert_eq!(told[waits.name()]["state"], "ok", "{told:#}");
    let error = &told[waits_in_vain.name()]["error"];
    assert_eq!(error["data"]["type"], "not_upgraded", "{told:#}");
    assert!(error["message"].as_str().unwrap().starts_with("nothing was installed: something else is installing"), "{error}");
    lab.is_well();
}

fn host_has_begun(host: &Host) -> bool {
    host.path("/var/lib/minion/spool/packages/upgrade/begun").exists()
}

/// How many times the power goes, each time a little later in an upgrade: the first before it has begun, the last when it is all but over.
const MOMENTS: u32 = 4;
const LATER: Duration = Duration::from_millis(500);
const BROUGHT_TO_ITS_END_WITHIN: Duration = Duration::from_secs(150);

/// What is begun is brought to its end when the host is back, and a package that does not come up is taken back then.
#[test]
fn an_upgrade_that_the_power_interrupts_is_brought_to_its_end() {
    let lab = Lab::enrolled(3);
    let (next, broken) = (deb("overlord-minion", Version::Next), broken(&lab));
    for moment in 0..MOMENTS {
        for package in [&next, broken] {
            lab.on_all(|host| install(host, Version::This));
            lab.is_well();
            let job = lab.overlord(["*", "minion.upgrade", package, "--async"]).ok().out();
            std::thread::scope(|scope| {
                for (host, third) in lab.hosts().iter().zip(0..) {
                    scope.spawn(move || {
                        std::thread::sleep(LATER * (3 * moment + third));
                        host.power_off();
                    });
                }
            });
            lab.on_all(|host| host.power_on());
            lab.on_all(|host| {
                let is_over = || !host.path("/etc/systemd/system/minion-upgrade.service").exists();
                wait_until(&format!("the upgrade of {} to end", host.name()), BROUGHT_TO_ITS_END_WITHIN, is_over);
            });
            lab.is_well();
            let told = lab.overlord(["job-status", job.trim(), "--wait", "--output", "json"]).json()["hosts"].clone();
            for host in lab.hosts() {
                assert_whole(host, package == broken, &told[host.name()]);
            }
        }
    }
    // A power cut may leave a program that nothing starts; the next upgrade takes it away.
    let _ = upgrade_itself(&lab, &next);
    lab.on_all(|host| wait_until("nothing to be left", PATIENCE, || !host.path("/usr/bin/minion-upgrade-worker").exists()));
}

/// One of the two is installed, to the end, and what was said of it is true.
fn assert_whole(host: &Host, is_broken: bool, told: &Value) {
    let stands = host.run("dpkg-query -W -f '${Version} ${db:Status-Status}' overlord-minion").ok().out();
    let [this, next] = [Version::This, Version::Next].map(|version| format!("{} installed", version.of("overlord-minion")));
    let what = format!("{}: {stands}: {told}", host.name());
    println!("{what}");
    assert!(stands == this || !is_broken && stands == next, "{what}");
    match told["state"].as_str() {
        Some("ok") => assert_eq!(stands, next, "{what}"),
        Some("undelivered") => assert_eq!(stands, this, "{what}"),
        Some("failed") => assert_eq!(told["error"]["data"]["type"], "rolled_back", "{what}"),
        Some("lost") => {}
        _ => panic!("{what}"),
    }
}
