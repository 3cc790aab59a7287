//! A host's own small disk: what fills it, frees it, and makes it read-only. It is mounted where its processes alone see it, and is gone
//! with the last of them.

use std::fs::{self, OpenOptions};
use std::io::Write as _;

use nix::sys::statvfs::statvfs;

use crate::{Minion, PATIENCE, wait};

/// The file that takes the room.
const BALLAST: &str = ".ballast";

impl Minion {
    /// Takes all the room that is left on its disk but for `left` bytes.
    ///
    /// # Panics
    /// It has no disk of its own.
    pub fn fill(&self, left: u64) {
        self.assert_own_disk();
        let path = self.state_dir().join(BALLAST);
        let mut ballast = OpenOptions::new().create(true).append(true).open(&path).unwrap();
        let chunk = vec![0; 4096];
        while ballast.write_all(&chunk).is_ok() {}
        let length = ballast.metadata().unwrap().len();
        ballast.set_len(length.saturating_sub(left)).unwrap();
    }

    /// Gives the room back.
    pub fn free(&self) {
        self.assert_own_disk();
        fs::remove_file(self.state_dir().join(BALLAST)).unwrap();
        let has_room = || statvfs(&self.state_dir()).is_ok_and(|disk| disk.blocks_available() > 0);
        wait::wait_until("the kernel to give the room back", PATIENCE, has_room);
    }

    /// Makes its disk read-only for whatever is opened from now on. (The kernel makes no disk read-only that is being written to, so it is
    /// covered with a read-only view of itself; files that are open stay as they are.)
    pub fn remount_ro(&self) {
        self.assert_own_disk();
        let (enclosure, dir) = (self.enclosure().unwrap(), self.own_state_dir());
        let dir = dir.to_str().unwrap();
        enclosure.run(&["mount", "--bind", dir, dir]);
        enclosure.run(&["mount", "-o", "remount,bind,ro", dir]);
    }

    /// Makes it writable again.
    pub fn remount_rw(&self) {
        self.assert_own_disk();
        self.enclosure().unwrap().run(&["umount", "--lazy", self.own_state_dir().to_str().unwrap()]);
    }

    /// Mounts its disk, if it has one of its own.
    pub(crate) fn mount_disk(&self) {
        let Some(bytes) = self.disk_bytes() else { return };
        let dir = self.own_state_dir();
        fs::create_dir_all(&dir).unwrap();
        let options = format!("size={bytes},mode=700");
        self.enclosure().unwrap().run(&["mount", "-t", "tmpfs", "-o", &options, "none", dir.to_str().unwrap()]);
    }

    fn assert_own_disk(&self) {
        assert!(self.disk_bytes().is_some(), "describe the fleet with small_disk()");
    }
}
