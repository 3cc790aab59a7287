//! The lab itself: its hosts are hosts, each alone, and nothing of it is left behind.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use fleet::lab::Lab;
use fleet::{PATIENCE, wait_until};

/// Set where this binary is to hold a lab until it is killed.
const HOLD: &str = "LAB_HOLD";

/// The processes that boot hosts, or hold a lab, for the process `pid`.
fn left_of(pid: u32) -> Vec<String> {
    let mark = format!("overlord-lab-{pid}-");
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let command = |entry: fs::DirEntry| Some(String::from_utf8_lossy(&fs::read(entry.path().join("cmdline")).ok()?).replace('\0', " "));
    let cgroup = |entry: &fs::DirEntry| fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default().contains(&mark);
    let in_cgroup = processes.filter(cgroup).filter_map(command);
    in_cgroup.chain(cgroups().into_iter().filter(|name| name.contains(&mark))).collect()
}

/// The cgroups that are below our own.
fn cgroups() -> Vec<String> {
    let look = "mount -t cgroup2 none /sys/fs/cgroup && find /sys/fs/cgroup -maxdepth 8 -name 'overlord-lab-*'";
    let found = Command::new("unshare").args(["--mount", "sh", "-c", look]).output().unwrap();
    assert!(found.status.success(), "{found:?}");
    String::from_utf8(found.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn a_lab_that_is_killed_leaves_nothing() {
    if std::env::var_os(HOLD).is_some() {
        let _lab = Lab::bare(1);
        println!("it is up");
        std::thread::park();
    }
    let name = "harness::a_lab_that_is_killed_leaves_nothing";
    let mut holder = Command::new(std::env::current_exe().unwrap());
    holder.args(["--exact", name, "--nocapture"]).env(HOLD, "1").stdout(Stdio::piped());
    let mut holder = holder.spawn().unwrap();
    let mut lines = BufReader::new(holder.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("it is up")), "it has ended by itself");
    let pid = holder.id();
    assert!(left_of(pid).iter().any(|left| left.contains("systemd-journald")), "{:?}", left_of(pid));
    holder.kill().unwrap();
    holder.wait().unwrap();
    wait_until("all of it to be gone", PATIENCE, || left_of(pid).is_empty());
}

#[test]
fn hosts_boot_and_lose_their_power_and_their_cable() {
    let lab = Lab::bare(2);
    let [first, second] = lab.hosts() else { panic!("two hosts") };
    let boot = |line: &str| first.run(line).ok().out();
    let id = "cat /proc/sys/kernel/random/boot_id";
    let _ = first.run("systemctl start ssh && echo kept > /root/kept").ok();
    let (before, hears) = (boot(id), || lab.control().run("timeout 5 bash -c 'exec 3<>/dev/tcp/h1/22'").status.success());
    assert!(hears());
    first.pull_cable();
    assert!(!hears());
    first.plug_cable();
    assert!(hears());
    first.power_off();
    assert!(!hears());
    first.power_on();
    assert_eq!(boot("cat /root/kept"), "kept\n", "its disk is as it was");
    let after = boot(id);
    assert_ne!(before, after);
    first.reboot();
    assert_ne!(boot(id), after);
    assert_ne!(boot(id), second.run(id).ok().out());
    assert!(!second.path("/root/kept").exists());
    assert_eq!(second.run("hostname").ok().out(), "h2\n");
}
