//! How full a disk is.

use std::io;
use std::path::Path;

use nix::sys::statvfs::statvfs;

/// How many bytes are free, for others than root, on the file system that `folder` lies on.
///
/// # Errors
/// There is no such folder, or the kernel does not tell.
pub fn free_bytes(folder: &Path) -> io::Result<u64> {
    let room = statvfs(folder)?;
    Ok(room.blocks_available().saturating_mul(room.fragment_size()))
}
