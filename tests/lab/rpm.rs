//! The package for Fedora, by Debian's own `rpm`, whose database knows of no other package.

use fleet::lab::{Lab, SERVER, SPAWNER, Version, rpm};

#[test]
fn the_rpm_installs_starts_answers_and_goes() {
    let lab = Lab::with_overlord(1);
    let host = &lab.hosts()[0];
    let (package, next) = (rpm("overlord-minion", Version::This), rpm("overlord-minion", Version::Next));
    let line = lab.install_line(Version::This);
    let (_, enroll) = line.split_once(" && ").unwrap();
    let _ = host.run(&format!("rpm --install --nodeps {package} && {enroll}")).ok();
    lab.is_well();
    let work = lab.start_work("*", "work");
    work.has_begun();
    let _ = host.run(&format!("rpm --upgrade --nodeps {next}")).ok();
    lab.is_well();
    let _ = host.run(&format!("rpm --upgrade --oldpackage --nodeps {package}")).ok();
    lab.is_well();
    work.ends_well();
    let _ = host.run("rpm --erase --nodeps overlord-minion").ok();
    let units = host.run(&format!("systemctl is-active {SERVER} {SPAWNER}; systemctl --failed --plain --no-legend"));
    assert_eq!(units.out(), "inactive\ninactive\n");
    assert!(!host.path("/usr/bin/minion").exists());
}
