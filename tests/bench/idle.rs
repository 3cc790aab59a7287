//! What an idle minion costs: the proportional set size of server and spawner together.

use std::fs;

use fleet::Fleet;

pub(crate) fn run() {
    let fleet = Fleet::start(1);
    let _ = fleet.overlord(["*", "test.ping"]).ok();
    let _ = fleet.overlord(["*", "test.echo", "once"]).ok();
    let mut total = 0;
    for process in fleet.processes() {
        let pss = pss_kib(process.pid);
        println!("{pss:6} KiB  {}", process.command);
        total += pss;
    }
    println!("together {:.1} MiB PSS (goal: at most 12 MiB)", f64::from(total) / 1024.0);
}

fn pss_kib(pid: i32) -> u32 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}
