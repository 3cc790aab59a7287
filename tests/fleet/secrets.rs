//! Watches a folder, and all that come to be in it, for files with private keys: with which modes they were ever seen.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};

/// What every private key in PEM form says.
const MARK: &[u8] = b"PRIVATE KEY";
/// How long to wait between two looks at events.
const PAUSE: Duration = Duration::from_millis(1);

/// A watch. Dropped, it ends.
#[derive(Debug)]
pub struct Secrets {
    files: Arc<Mutex<Files>>,
    stop: Arc<AtomicBool>,
    watching: Option<JoinHandle<()>>,
}

/// The files that were seen, by their inodes: a file keeps that when it is renamed.
#[derive(Debug, Default)]
struct Files {
    seen: HashMap<u64, Seen>,
    /// Which file has a name now: an inode without names may be another file's later.
    named: HashMap<PathBuf, u64>,
}

#[derive(Debug, Default)]
struct Seen {
    has_key: bool,
    /// Each mode that it was seen with, and under which name.
    modes: BTreeSet<(PathBuf, u32)>,
}

impl Secrets {
    /// Watches `folder` from now on.
    #[must_use]
    pub fn watch(folder: &Path) -> Self {
        let (files, stop) = (Arc::default(), Arc::new(AtomicBool::new(false)));
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).unwrap();
        let mut watched = HashMap::new();
        add(&inotify, &mut watched, folder);
        let (noted, told) = (Arc::clone(&files), Arc::clone(&stop));
        let watching = std::thread::spawn(move || watch(&inotify, &mut watched, &noted, &told));
        Self { files, stop, watching: Some(watching) }
    }

    /// Ends the watch: each file in which there was ever a key, with each mode and name that it ever had, before the key was in it too.
    #[must_use]
    pub fn seen(mut self) -> BTreeSet<(PathBuf, u32)> {
        self.end();
        let files = self.files.lock().unwrap();
        files.seen.values().filter(|seen| seen.has_key).flat_map(|seen| seen.modes.clone()).collect()
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(watching) = self.watching.take() {
            let _ = watching.join();
        }
    }
}

impl Files {
    /// Looks at what has the name `path`, and below it.
    fn look(&mut self, path: &Path) {
        let Ok(file) = fs::symlink_metadata(path) else { return };
        if file.is_dir() {
            fs::read_dir(path).into_iter().flatten().flatten().for_each(|entry| self.look(&entry.path()));
        }
        if !file.is_file() {
            return;
        }
        if self.named.insert(path.to_owned(), file.ino()).is_some_and(|before| before != file.ino()) {
            self.forget_nameless();
        }
        let seen = self.seen.entry(file.ino()).or_default();
        seen.modes.insert((path.to_owned(), file.permissions().mode() & 0o7777));
        seen.has_key |= fs::read(path).is_ok_and(|text| text.windows(MARK.len()).any(|part| part == MARK));
    }

    fn gone(&mut self, path: &Path) {
        self.named.remove(path);
        self.forget_nameless();
    }

    fn forget_nameless(&mut self) {
        let named: BTreeSet<u64> = self.named.values().copied().collect();
        self.seen.retain(|inode, seen| seen.has_key || named.contains(inode));
    }
}

impl Drop for Secrets {
    fn drop(&mut self) {
        self.end();
    }
}

fn watch(inotify: &Inotify, watched: &mut HashMap<WatchDescriptor, PathBuf>, files: &Mutex<Files>, stop: &AtomicBool) {
    loop {
        let is_last = stop.load(Ordering::Acquire);
        match inotify.read_events() {
            Ok(events) => {
                for event in events {
                    let Some(path) = event.name.and_then(|name| Some(watched.get(&event.wd)?.join(name))) else { continue };
                    if event.mask.contains(AddWatchFlags::IN_ISDIR) {
                        add(inotify, watched, &path);
                    }
                    let mut files = files.lock().unwrap();
                    match event.mask.intersects(AddWatchFlags::IN_DELETE | AddWatchFlags::IN_MOVED_FROM) {
                        true => files.gone(&path),
                        false => files.look(&path),
                    }
                }
            }
            Err(Errno::EAGAIN) if is_last => return,
            Err(Errno::EAGAIN) => std::thread::sleep(PAUSE),
            Err(error) => panic!("inotify: {error}"),
        }
    }
}

/// Watches a folder and those in it. What came into it before the watch did is looked at by whoever made it known.
fn add(inotify: &Inotify, watched: &mut HashMap<WatchDescriptor, PathBuf>, folder: &Path) {
    let flags = AddWatchFlags::IN_CREATE
        | AddWatchFlags::IN_MODIFY
        | AddWatchFlags::IN_ATTRIB
        | AddWatchFlags::IN_DELETE
        | AddWatchFlags::IN_MOVED_FROM
        | AddWatchFlags::IN_MOVED_TO
        | AddWatchFlags::IN_CLOSE_WRITE
        | AddWatchFlags::IN_ONLYDIR;
    // It may have been renamed away already; then its new name is told.
    let Ok(descriptor) = inotify.add_watch(folder, flags) else { return };
    watched.insert(descriptor, folder.to_owned());
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            add(inotify, watched, &entry.path());
        }
    }
}
