//! `jobs/ID.items`: the items of a map that goes on by itself, beside its log, for as long as one of them may still be dealt. Written whole, and on the disk,
//! before the job is promised to anyone; never changed.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use common::job::JobId;
use common::job::map::{ITEMS_MAX, MapTerms};

use super::items::{Items, ItemsError};
use crate::config::Config;
use crate::home::Home;
use crate::jobs::log;

/// So long after they were written last, items of which there is no job are what a killed command left.
const LEFT_AFTER: Duration = Duration::from_secs(60 * 60);

/// Items that are on the disk, for a job that is not there yet.
#[derive(Debug)]
pub(crate) struct KeptItems {
    pub(crate) job: JobId,
    pub(crate) count: u64,
    pub(crate) crc: u32,
}

impl KeptItems {
    /// Takes in all lines of `from`, which is the file `name`.
    ///
    /// # Errors
    /// One is no item, there are too many, or they cannot be kept. Nothing is kept then.
    pub(crate) fn take_in((home, config): (&Home, &Config), name: &str, from: impl BufRead) -> Result<Self, ItemsError> {
        let job = service::fresh_id();
        let path = home.job_items(&job);
        let kept = Self::write((home, config), &job, name, from);
        if kept.is_err() {
            let _left = fs::remove_file(&path);
        }
        kept
    }

    fn write((home, config): (&Home, &Config), job: &JobId, name: &str, from: impl BufRead) -> Result<Self, ItemsError> {
        let path = home.job_items(job);
        let place = path.display().to_string();
        let keep = |source: io::Error| ItemsError::Keep { place: place.clone(), source };
        log::make_folder(home).map_err(keep)?;
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path).map_err(keep)?;
        let items = Items::take_in_to((file, &place), name, from, (config.call_max_bytes, config.items_max_bytes))?;
        if items.count() > ITEMS_MAX {
            let problem = format!("{} items, and a map with --async has at most {ITEMS_MAX}", items.count());
            return Err(ItemsError::TooMany { name: name.to_owned(), problem });
        }
        items.file().sync_all().map_err(keep)?;
        Ok(Self { job: job.clone(), count: items.count(), crc: items.crc() })
    }

    /// Removes them: there will be no job.
    pub(crate) fn drop_from(&self, home: &Home) {
        let _swept_later = fs::remove_file(home.job_items(&self.job));
    }
}

/// The items of a job.
///
/// # Errors
/// They are gone, or are not what they were.
pub(crate) fn open(home: &Home, job: &JobId, terms: &MapTerms) -> Result<Items, ItemsError> {
    let path = home.job_items(job);
    let place = path.display().to_string();
    let file = File::open(&path).map_err(|error| ItemsError::Kept { place: place.clone(), problem: error.to_string() })?;
    Items::kept(file, &place, terms.items, terms.crc)
}

/// Removes items of which there is no job: whoever wrote them was killed before it could make one.
pub(crate) fn sweep(home: &Home) {
    let Ok(entries) = fs::read_dir(home.jobs_dir()) else { return };
    for path in entries.flatten().map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|kind| kind == "items")) {
        if is_left(&path) && matches!(path.with_extension("log").try_exists(), Ok(false)) {
            let _left = fs::remove_file(&path);
        }
    }
}

fn is_left(path: &Path) -> bool {
    let written = fs::symlink_metadata(path).ok().filter(fs::Metadata::is_file).and_then(|metadata| metadata.modified().ok());
    written.and_then(|at| SystemTime::now().duration_since(at).ok()).is_some_and(|age| age >= LEFT_AFTER)
}
