//! A fleet from nothing: one line on each host, and nothing edited.

use fleet::lab::{Lab, Version};
use fleet::{PATIENCE, wait_until};

#[test]
fn three_hosts_are_installed_enrolled_and_called() {
    let lab = Lab::with_overlord(3);
    let (first, others) = lab.hosts().split_first().unwrap();
    // The package alone: it waits, and says for what.
    let line = lab.install_line(Version::This);
    let (install, enroll) = line.split_once(" && ").unwrap();
    let _ = first.run(install).ok();
    wait_until("the minion to wait for its certificate", PATIENCE, || {
        let said =
            first.run("systemctl is-active minion.service minion-spawner.service; systemctl show -p StatusText minion.service").out();
        said.starts_with("active\nactive\n") && said.contains("minion enroll")
    });
    let _ = first.run(enroll).ok();
    for host in others {
        let _ = host.run(&lab.install_line(Version::This)).ok();
    }
    lab.is_well();
    let added = lab.overlord(["*", "test.add", "23", "45", "--output", "json"]).ok().json();
    let ran = lab.overlord(["*", "command.run", "hostname; id -un", "--output", "json"]).ok().json();
    for host in lab.hosts() {
        let name = host.name();
        assert_eq!(
            (&added["hosts"][name]["result"], &ran["hosts"][name]["result"]["stdout"]),
            (&68.into(), &format!("{name}\nroot\n").into())
        );
    }
    lab.start_work("*", "first").has_begun().ends_well();
}

/// Another caller than the administrator may do nothing, by what the package brings.
#[test]
fn the_packaged_rules_let_nobody_in_but_the_administrator() {
    let lab = Lab::enrolled(1);
    let _ = lab.overlord(["certs", "issue", "--role", "overlord", "ops", "--out", "/root/ops"]).ok();
    let ops = "mkdir -p /root/home && cp -r $(dirname $(find /root/ops -name overlord.pem)) /root/home/certs && cp /etc/overlord/hosts.toml /root/home";
    let _ = lab.control().run(ops).ok();
    let denied = lab.overlord(["--home", "/root/home", "*", "test.ping", "--output", "json"]).expect(2).json();
    assert_eq!(denied["hosts"]["h1"]["state"], "denied", "{denied}");
}
