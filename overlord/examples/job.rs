//! Starts a job on every host of a target, follows it to its end, and prints how it ended.
//!
//! `OVERLORD_HOME=/etc/overlord cargo run --example job -- '*' command.run 'sleep 2; uptime'`

use std::env;
use std::error::Error;
use std::io::{self, Write};
use std::time::Duration;

use overlord::{Fleet, Home};

fn main() -> Result<(), Box<dyn Error>> {
    let mut words = env::args().skip(1);
    let target = words.next().unwrap_or_else(|| "*".to_owned());
    let method = words.next().unwrap_or_else(|| "test.ping".to_owned());
    let args: Vec<String> = words.collect();

    let fleet = Fleet::at(Home::find(None)?)?;
    let job = fleet.target(&target)?.start(&method, args)?;
    // The id is all that is needed to come back to it: in another program, after a restart, or with `overlord job-status`.
    let job = fleet.job(job.id().as_str())?;
    let mut out = io::stdout();
    writeln!(out, "{} {}", job.id(), job.status()?.state())?;

    let status = job.wait(Duration::from_secs(300))?;
    writeln!(out, "{} {}", job.id(), status.state())?;
    for (host, record) in &status.record.hosts {
        writeln!(out, "{host} {}: {:?}", record.state, record.outcome.as_ref().map(|outcome| &outcome.verdict))?;
    }
    Ok(())
}
