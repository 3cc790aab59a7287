//! What the transient unit does: installs the new package, looks whether it comes up, and installs the former one again if it does not. It goes
//! on whatever becomes of the job that started it.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;

use tracing::{error, info};

use super::manager::Manager;
use super::{Ended, FORMER, NEW, RESULT, units};

/// Does it, in the `folder` that was prepared, and writes there what became of it.
///
/// # Errors
/// That cannot be written.
pub(crate) fn work(folder: &Path) -> io::Result<()> {
    let ended = install(folder);
    match &ended {
        Ended::Up => info!("the new package runs"),
        Ended::RolledBack { why } => error!(why, "the new package did not come up, and the former one runs again"),
        Ended::Down { why, and } => error!(why, and, "neither the new package nor the former one comes up"),
    }
    let draft = folder.join("result.draft");
    let mut file = File::create(&draft)?;
    file.write_all(&serde_json::to_vec(&ended)?)?;
    file.sync_all()?;
    fs::rename(&draft, folder.join(RESULT))
}

fn install(folder: &Path) -> Ended {
    let manager = match Manager::of_minion() {
        Ok(manager) => manager,
        Err(why) => return Ended::RolledBack { why },
    };
    let put = |name: &str| manager.install(&folder.join(name)).and_then(|()| units::come_up());
    match put(NEW) {
        Ok(()) => Ended::Up,
        Err(why) => {
            error!(why, "the new package does not come up, and is taken back");
            match put(FORMER) {
                Ok(()) => Ended::RolledBack { why },
                Err(and) => Ended::Down { why, and },
            }
        }
    }
}
