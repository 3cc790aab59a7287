//! `overlord deploy` over OpenSSH: bare hosts with an sshd, hosts that have it already, and all that can be wrong.

use fleet::lab::{Host, Lab, Version, deb};
use serde_json::Value;

/// One has failed; at least one was undelivered.
const FAILED: i32 = 2;
const UNDELIVERED: i32 = 4;

/// Bare hosts that let `control` in by a key, and whose own keys it knows.
fn with_ssh(hosts: u8) -> Lab {
    let lab = Lab::with_overlord(hosts);
    let _ = lab.control().run("mkdir -p -m 700 /root/.ssh && ssh-keygen -q -t ed25519 -N '' -f /root/.ssh/id_ed25519").ok();
    let key = lab.control().run("cat /root/.ssh/id_ed25519.pub").ok().out();
    lab.on_all(|host| {
        let _ = host.run("systemctl start ssh && mkdir -p -m 700 /root/.ssh").ok();
        host.write("/root/.ssh/authorized_keys", &key);
    });
    for host in lab.hosts() {
        let _ = lab.control().run(&format!("ssh-keyscan -t ed25519 {} >>/root/.ssh/known_hosts", host.name())).ok();
    }
    lab
}

fn deploy(lab: &Lab, hosts: &[&str], package: &str, more: &[&str]) -> fleet::Run {
    lab.overlord([&["deploy"], hosts, &["--package", package], more].concat())
}

/// The kind and the words of the only host's trouble.
fn trouble(lab: &Lab, host: &str, package: &str, code: i32) -> (String, String) {
    let document = deploy(lab, &[host], package, &["--output", "json"]).expect(code).json();
    let name = host.rsplit('@').next().unwrap();
    let error = &document["hosts"][name]["error"];
    let text = |value: &Value| value.as_str().unwrap_or_else(|| panic!("{document}")).to_owned();
    (text(&error["data"]["type"]), text(&error["message"]))
}

/// Nothing of the package, and nothing of what brings it.
fn is_bare(host: &Host) {
    let left = "dpkg-query -W -f '${db:Status-Status}' overlord-minion; ls -d /etc/minion /var/lib/minion /usr/bin/minion /var/tmp/overlord-deploy.*";
    let left = host.run(&format!("({left}) 2>/dev/null")).out();
    assert!(left.trim_start_matches("not-installed").trim().is_empty(), "{}: {left}", host.name());
}

/// The package made anew on `control`, after `change` in its unpacked folder.
fn bent(lab: &Lab, name: &str, change: &str) -> String {
    let (from, to) = (deb("overlord-minion", Version::This), format!("/root/{name}.deb"));
    let line = format!(
        "set -e; rm -rf /root/bent; dpkg-deb -R {from} /root/bent; cd /root/bent; {change}; dpkg-deb --root-owner-group -Zgzip -z1 -b . {to}"
    );
    let _ = lab.control().run(&line).ok();
    to
}

#[test]
fn bare_hosts_become_members_again_changes_nothing_and_jobs_outlive_an_upgrade() {
    let lab = with_ssh(2);
    let (this, next) = (deb("overlord-minion", Version::This), deb("overlord-minion", Version::Next));
    let run = deploy(&lab, &["h1", "root@h2"], &this, &[]).ok();
    assert!(
        run.out().lines().count() == 2 && run.out().lines().all(|line| line.contains(": ok: ") && line.contains("installed, enrolled")),
        "{}",
        run.out()
    );
    lab.is_well();
    let cert = |host: &str| lab.host(host).read("/etc/minion/certs/cert.pem");
    let certs = (cert("h1"), cert("h2"));
    let again = deploy(&lab, &["h1", "h2"], &this, &[]).ok();
    assert!(again.out().lines().all(|line| line.contains(" kept, answers")), "{}", again.out());
    assert_eq!((cert("h1"), cert("h2")), certs);

    let work = lab.start_work("*", "deploy");
    work.has_begun();
    let upgraded = deploy(&lab, &["h1", "h2"], &next, &[]).ok();
    assert!(upgraded.out().lines().all(|line| line.contains(" in the place of ")), "{}", upgraded.out());
    lab.is_well();
    let _down = deploy(&lab, &["h1", "h2"], &this, &[]).ok();
    work.ends_well();
    lab.is_well();
    assert_eq!((cert("h1"), cert("h2")), certs);
    for host in lab.hosts() {
        assert_eq!(host.run("ls -d /var/tmp/overlord-deploy.* 2>/dev/null").out(), "");
    }
}

#[test]
fn each_trouble_is_a_clear_line_and_leaves_a_host_as_it_was() {
    let lab = with_ssh(3);
    let this = deb("overlord-minion", Version::This);
    let [h1, h2, h3] = ["h1", "h2", "h3"].map(|name| lab.host(name));

    let arm = bent(&lab, "arm", "sed -i 's/^Architecture: .*/Architecture: arm64/' DEBIAN/control");
    let (kind, words) = trouble(&lab, "h1", &arm, FAILED);
    assert!(kind == "other_arch" && words.contains("arm64") && words.contains("amd64"), "{words}");

    let fills = "fallocate -l $(($(df --output=avail -k /var/tmp | tail -n 1) - 1024))K /fills";
    let _ = h2.run(fills).ok();
    let (kind, words) = trouble(&lab, "h2", &this, FAILED);
    assert!(kind == "disk_full" && words.contains("MiB free"), "{words}");

    let _ = lab.control().run("ssh-keygen -R h3").ok();
    assert_eq!(trouble(&lab, "h3", &this, UNDELIVERED).0, "host_key");
    let _ = lab.control().run("ssh-keyscan -t ed25519 h3 >>/root/.ssh/known_hosts; mv /root/.ssh/id_ed25519 /root/.ssh/other").ok();
    let (kind, words) = trouble(&lab, "h3", &this, UNDELIVERED);
    assert!(kind == "no_login" && words.contains("ssh-copy-id h3"), "{words}");
    lab.control().write("/root/config", "Host *\n  IdentityFile /root/.ssh/other\nHost h2\n  HostName 10.77.0.99\n");
    let (kind, words) = trouble_by(&lab, "h2", &this, UNDELIVERED);
    assert!(kind == "unreachable", "{words}");

    let silent = bent(&lab, "silent", "printf '#!/bin/sh\\necho it has its reasons >&2\\nexit 1\\n' >DEBIAN/postinst");
    let _ = lab.control().run("mv /root/.ssh/other /root/.ssh/id_ed25519").ok();
    let (kind, words) = trouble(&lab, "h3", &silent, FAILED);
    assert!(kind == "install" && words.contains("it has its reasons") && words.contains("nothing of it is left"), "{words}");
    [h1, h2, h3].into_iter().for_each(is_bare);
}

/// As [`trouble`], by the configuration for ssh that lies on `control`.
fn trouble_by(lab: &Lab, host: &str, package: &str, code: i32) -> (String, String) {
    let document = deploy(lab, &[host], package, &["--output", "json", "--ssh-config", "/root/config"]).expect(code).json();
    let error = &document["hosts"][host]["error"];
    let text = |value: &Value| value.as_str().unwrap_or_else(|| panic!("{document}")).to_owned();
    (text(&error["data"]["type"]), text(&error["message"]))
}

#[test]
fn a_package_that_does_not_come_up_is_taken_back_while_a_job_goes_on() {
    let lab = with_ssh(1);
    let host = lab.host("h1");
    // Installed by hand: nobody has kept the package.
    let _ = host.run(&lab.install_line(Version::This)).ok();
    lab.answers();
    let version = |host: &Host| {
        host.run("dpkg-query -W -f '${db:Status-Status} ${Version}' overlord-minion; cat /usr/bin/minion | sha256sum").ok().out()
    };
    let before = version(host);
    let work = lab.start_work("*", "back");
    work.has_begun();
    let newer = "sed -i 's/^Version: .*/Version: 9.0.0-1/' DEBIAN/control";
    let dumb = bent(
        &lab,
        "dumb",
        &format!("{newer}; printf '#!/bin/sh\\necho no program >&2\\nexit 1\\n' >usr/bin/minion; chmod 755 usr/bin/minion"),
    );
    let (kind, words) = trouble(&lab, "h1", &dumb, FAILED);
    assert!(
        matches!(kind.as_str(), "install" | "program" | "start") && words.contains("what was installed before is back"),
        "{kind}: {words}"
    );
    assert_eq!(version(host), before);
    lab.is_well();
    work.ends_well();
}

#[test]
fn a_user_who_is_not_root_needs_sudo_without_a_password() {
    let lab = with_ssh(1);
    let host = lab.host("h1");
    let _ = host.run("useradd -m -s /bin/bash ops && cp -r /root/.ssh /home/ops/ && chown -R ops: /home/ops/.ssh").ok();
    let this = deb("overlord-minion", Version::This);
    let (kind, words) = trouble(&lab, "ops@h1", &this, FAILED);
    assert!(kind == "sudo" && words.contains("root@h1"), "{words}");
    is_bare(host);
    host.write("/etc/sudoers.d/ops", "ops ALL=(ALL) NOPASSWD: ALL\n");
    let run = deploy(&lab, &["ops@h1"], &this, &[]).ok();
    assert!(run.out().starts_with("h1: ok: "), "{}", run.out());
    lab.is_well();
}
