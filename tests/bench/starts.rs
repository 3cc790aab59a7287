//! Durable job starts on one minion, by the door, beside the bare limit of the disk: write, fsync, rename, fsync of the folder.

use std::io::Write as _;
use std::time::{Duration, Instant};

use fleet::Fleet;

const STARTS: usize = 300;

pub(crate) fn run() {
    let fleet = Fleet::builder().hosts(1).minion_toml("[limits]\nprocesses_max = 4096\n").start();
    let library = overlord::Fleet::open(fleet.home()).unwrap();
    let target = library.target("web1").unwrap();
    let mut starts = Vec::new();
    for _start in 0..STARTS {
        let started = Instant::now();
        let job = target.start("test.sleep", serde_json::json!([0])).unwrap();
        while job.known().unwrap().is_dispatching {
            std::thread::sleep(Duration::from_micros(200));
        }
        starts.push(started.elapsed());
    }
    let mut syncs = Vec::new();
    for sync in 0..STARTS {
        let started = Instant::now();
        write_durably(fleet.root(), sync);
        syncs.push(started.elapsed());
    }
    let ratio = crate::median(starts.clone()).as_secs_f64() / crate::median(syncs.clone()).as_secs_f64();
    println!("one job on one host, from the library's call to its minion job id: {}", crate::spread(&starts));
    println!("write, fsync, rename, fsync of the folder:                         {}", crate::spread(&syncs));
    println!("ratio of the medians: {ratio:.1}; in a row: {:.0} starts/s", STARTS as f64 / starts.iter().sum::<Duration>().as_secs_f64());
}

fn write_durably(folder: &std::path::Path, number: usize) {
    let (draft, path) = (folder.join("draft"), folder.join(format!("file-{number}")));
    let mut file = std::fs::File::create(&draft).unwrap();
    file.write_all(&[b'x'; 500]).unwrap();
    file.sync_all().unwrap();
    std::fs::rename(draft, path).unwrap();
    std::fs::File::open(folder).unwrap().sync_all().unwrap();
}
