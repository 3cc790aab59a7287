//! `packaging/flows/rollout.toml` on real hosts: a package with a service, taken to all of them or to none.

use fleet::lab::{Host, Lab};

/// The flow that the documentation has.
const ROLLOUT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../packaging/flows/rollout.toml");
/// The versions whose packages lie on each host.
const VERSIONS: [&str; 2] = ["1", "2"];

/// Makes `/root/app_VERSION.deb`: a service, of which the second version does not come up where `/etc/app.broken` is.
fn make_package(host: &Host, version: &str) {
    let root = format!("/root/app-{version}");
    let test = if version == "2" { "test ! -e /etc/app.broken && " } else { "" };
    let _ = host.run(&format!("mkdir -p {root}/DEBIAN {root}/lib/systemd/system {root}/usr/share/app")).ok();
    host.write(
        &format!("{root}/DEBIAN/control"),
        &format!(
            "Package: app\nVersion: {version}\nArchitecture: all\nMaintainer: Nobody <nobody@example.invalid>\nDescription: a service\n"
        ),
    );
    host.write(
        &format!("{root}/lib/systemd/system/app.service"),
        &format!("[Service]\nExecStart=/bin/sh -c '{test}exec sleep infinity'\n"),
    );
    host.write(&format!("{root}/usr/share/app/version"), version);
    host.write(&format!("{root}/DEBIAN/postinst"), "#!/bin/sh\nsystemctl daemon-reload\n");
    let build = format!("chmod 0755 {root}/DEBIAN/postinst && dpkg-deb --root-owner-group -Zgzip -b {root} /root/app_{version}.deb");
    let _ = host.run(&build).ok();
}

/// Version `version` runs on every host, and none is out of service.
fn all_run(lab: &Lab, version: &str) {
    for host in lab.hosts() {
        assert_eq!(host.read("/usr/share/app/version").as_deref(), Some(version), "{}", host.name());
        assert!(host.is_active("app"), "{}", host.name());
        let _ = host.run("test ! -e /run/app.drained").ok();
    }
}

#[test]
fn a_rollout_that_is_not_well_on_one_host_is_taken_back_on_all_and_then_goes_through() {
    let lab = Lab::enrolled(3);
    lab.on_all(|host| {
        VERSIONS.iter().for_each(|version| make_package(host, version));
        let _ = host.run("dpkg --install /root/app_1.deb && systemctl restart app").ok();
    });
    all_run(&lab, "1");
    lab.control().write("/root/rollout.toml", &std::fs::read_to_string(ROLLOUT).unwrap());
    let words = "flow run /root/rollout.toml --var package=/root/app_2.deb --var former=/root/app_1.deb --var service=app --var hosts=* --output json";
    let roll_out = || lab.overlord(words.split(' '));

    lab.host("h2").write("/etc/app.broken", "");
    let document = roll_out().expect(2).json();
    assert_eq!(document["state"], "REVERTED");
    assert_eq!((document["cause"]["task"].as_str(), document["cause"]["host"].as_str()), (Some("healthy"), Some("h2")), "{document}");
    all_run(&lab, "1");

    let _ = lab.host("h2").run("rm /etc/app.broken").ok();
    assert_eq!(roll_out().ok().json()["state"], "SUCCESS");
    all_run(&lab, "2");
}
