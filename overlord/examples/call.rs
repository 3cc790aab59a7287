//! Calls a method on every host of a target, and prints what each said as it arrives.
//!
//! `OVERLORD_HOME=/etc/overlord cargo run --example call -- 'web*' test.add 23 45`

use std::env;
use std::error::Error;
use std::io::{self, Write};

use overlord::{Fleet, Home, Stop};

fn main() -> Result<(), Box<dyn Error>> {
    let mut words = env::args().skip(1);
    let target = words.next().unwrap_or_else(|| "*".to_owned());
    let method = words.next().unwrap_or_else(|| "test.ping".to_owned());
    let args: Vec<String> = words.collect();

    let fleet = Fleet::at(Home::find(None)?)?;
    let mut printed = Ok(());
    fleet.target(&target)?.call_each(&method, args, &Stop::new(), |host, outcome| {
        // A host that failed, refused or is dead is an outcome like any other. What a host says is hostile: `{:?}` escapes it.
        let said = format!("{:?}", outcome.verdict);
        printed = writeln!(io::stdout(), "{host} {}: {said}", outcome.verdict.state());
    })?;
    Ok(printed?)
}
