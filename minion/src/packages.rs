//! The packages that were brought to this host, in a folder that is root's alone. What is not complete has another name than what is; an
//! interrupted transfer goes on where it was.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use common::outcome::{ErrorCode, Failure};
use common::protocol::package::{PACKAGE_MAX_BYTES, PIECE_MAX_BYTES, PackageId};

use crate::disk;

/// A package, or a part of one, that nobody has touched for so long is removed when another is brought.
const KEPT_FOR: Duration = Duration::from_secs(7 * 24 * 3600);
/// So much stays free on the disk.
const RESERVE_BYTES: u64 = 64 << 20;
const OWN_MODE: u32 = 0o600;
const OWN_FOLDER_MODE: u32 = 0o700;
const PART: &str = "part";
const WHOLE: &str = "package";

/// A piece of a package.
#[derive(Debug)]
pub(crate) struct Piece {
    pub(crate) file: PackageId,
    /// Of the whole.
    pub(crate) bytes: u64,
    pub(crate) offset: u64,
    pub(crate) data: Vec<u8>,
}

/// The folder.
#[derive(Debug)]
pub(crate) struct Packages {
    folder: PathBuf,
}

impl Packages {
    pub(crate) fn at(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    /// Takes a piece, and says how much is there now.
    ///
    /// # Errors
    /// It is too large, does not join what is there, the disk is full, or the whole is not what its digest says.
    pub(crate) fn stage(&self, piece: &Piece) -> Result<u64, Failure> {
        check(piece)?;
        self.make()?;
        let whole = self.path(&piece.file, WHOLE);
        if whole.is_file() {
            return Ok(piece.bytes);
        }
        let part = self.path(&piece.file, PART);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(OWN_MODE)
            .open(&part)
            .map_err(|error| failed("opening", &part, &error))?;
        // Two pieces at once, of two who bring the same, come one after the other.
        file.lock().map_err(|error| failed("locking", &part, &error))?;
        // And the last of the other's may have made it whole: then this file is that, which nobody writes to any more.
        if whole.is_file() {
            return Ok(piece.bytes);
        }
        let have = file.metadata().map_err(|error| failed("looking at", &part, &error))?.len();
        if piece.offset > have {
            return Ok(have);
        }
        self.require_room(piece.bytes.saturating_sub(have))?;
        let written = file.seek(SeekFrom::Start(piece.offset)).and_then(|_| file.write_all(&piece.data));
        written.map_err(|error| failed("writing", &part, &error))?;
        let have = have.max(piece.offset.saturating_add(piece.data.len() as u64));
        if have >= piece.bytes {
            self.complete(piece, &mut file)?;
        }
        Ok(have)
    }

    /// The file of a package that is complete.
    ///
    /// # Errors
    /// It is not here, or not complete.
    pub(crate) fn find(&self, id: &PackageId) -> Result<PathBuf, Failure> {
        let path = self.path(id, WHOLE);
        match fs::read(&path) {
            Ok(bytes) if PackageId::of(&bytes) == *id => return Ok(path),
            // The disk has lost something of it.
            Ok(_) => drop(fs::remove_file(&path)),
            Err(_) => {}
        }
        Err(Failure::of_kind("no_package", format!("the package {id} was not brought to this host whole: send the upgrade again")))
    }

    /// The folder itself, made if it is not there.
    ///
    /// # Errors
    /// It cannot be made.
    pub(crate) fn make(&self) -> Result<&Path, Failure> {
        match DirBuilder::new().mode(OWN_FOLDER_MODE).create(&self.folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(failed("making", &self.folder, &error)),
            _it_is_there => Ok(&self.folder),
        }
    }

    /// Held as long as one who installs prepares or waits; `None` if another does.
    ///
    /// # Errors
    /// It cannot be made.
    pub(crate) fn try_lock(&self) -> Result<Option<File>, Failure> {
        let path = self.make()?.join("lock");
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(OWN_MODE).open(&path);
        let file = file.map_err(|error| failed("opening", &path, &error))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(failed("locking", &path, &error)),
        }
    }

    fn path(&self, id: &PackageId, kind: &str) -> PathBuf {
        self.folder.join(format!("{}.{kind}", id.digits()))
    }

    fn complete(&self, piece: &Piece, file: &mut File) -> Result<(), Failure> {
        let part = self.path(&piece.file, PART);
        let mut bytes = Vec::new();
        let read = file.seek(SeekFrom::Start(0)).and_then(|_| file.take(PACKAGE_MAX_BYTES).read_to_end(&mut bytes));
        read.map_err(|error| failed("reading", &part, &error))?;
        if PackageId::of(&bytes) != piece.file {
            // From the beginning, the next time.
            let _gone_or_not = fs::remove_file(&part);
            let message = format!("the {} bytes that were brought are not {}: send the upgrade again", bytes.len(), piece.file);
            return Err(Failure::of_kind("damaged_package", message));
        }
        let whole = self.path(&piece.file, WHOLE);
        let kept = file.sync_all().and_then(|()| fs::rename(&part, &whole)).and_then(|()| File::open(&self.folder)?.sync_all());
        kept.map_err(|error| failed("keeping", &whole, &error))?;
        self.tidy(&whole);
        Ok(())
    }

    /// Removes what is old. What cannot be removed takes room, and is tried the next time.
    fn tidy(&self, newest: &Path) {
        let Ok(entries) = fs::read_dir(&self.folder) else { return };
        let is_old = |path: &Path| {
            let changed = path.metadata().and_then(|file| file.modified());
            changed.is_ok_and(|changed| SystemTime::now().duration_since(changed).is_ok_and(|age| age > KEPT_FOR))
        };
        let is_brought = |path: &Path| path.extension().is_some_and(|kind| kind == PART || kind == WHOLE);
        let old = entries.flatten().map(|entry| entry.path()).filter(|path| path != newest && is_brought(path) && is_old(path));
        old.for_each(|path| drop(fs::remove_file(path)));
    }

    fn require_room(&self, wanted: u64) -> Result<(), Failure> {
        let free = disk::free_bytes(&self.folder).map_err(|error| failed("asking for the free room of", &self.folder, &error))?;
        if free >= wanted.saturating_add(RESERVE_BYTES) {
            return Ok(());
        }
        let folder = self.folder.display();
        let message = format!(
            "{free} bytes are free on the disk of {folder}, and {wanted} and a reserve of {RESERVE_BYTES} are wanted: make room there"
        );
        Err(Failure::new(ErrorCode::LimitReached, message))
    }
}

fn check(piece: &Piece) -> Result<(), Failure> {
    let end = piece.offset.checked_add(piece.data.len() as u64);
    let problem = if piece.bytes == 0 || piece.bytes > PACKAGE_MAX_BYTES {
        format!("a package of 1 to {PACKAGE_MAX_BYTES} bytes is taken, and not one of {}", piece.bytes)
    } else if piece.data.len() > PIECE_MAX_BYTES {
        format!("a piece of at most {PIECE_MAX_BYTES} bytes is taken, and not one of {}", piece.data.len())
    } else if end.is_none_or(|end| end > piece.bytes) {
        format!("a piece of {} bytes from {} on is no part of a package of {}", piece.data.len(), piece.offset, piece.bytes)
    } else {
        return Ok(());
    };
    Err(Failure::new(ErrorCode::InvalidArguments, format!("minion.stage: {problem}")))
}

fn failed(doing: &str, path: &Path, error: &io::Error) -> Failure {
    let advice = match error.kind() {
        io::ErrorKind::PermissionDenied => ": minion.stage and minion.upgrade need a rule without run_as, on a minion that root started",
        _ => "",
    };
    Failure::new(ErrorCode::Failed, format!("{doing} {}: {error}{advice}", path.display()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;

    fn piece(of: &[u8], from: usize, to: usize) -> Piece {
        Piece { file: PackageId::of(of), bytes: of.len() as u64, offset: from as u64, data: of.get(from..to).unwrap().to_vec() }
    }

    #[test]
    fn pieces_make_the_whole_and_a_transfer_goes_on_where_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let packages = Packages::at(&folder.path().join("packages"));
        let whole = b"0123456789";
        assert_eq!(packages.stage(&piece(whole, 0, 4)).unwrap(), 4);
        assert_eq!(packages.stage(&piece(whole, 6, 10)).unwrap(), 4, "a hole is not written");
        assert_eq!(packages.stage(&piece(whole, 2, 6)).unwrap(), 6);
        assert!(packages.find(&PackageId::of(whole)).unwrap_err().message.contains("not brought"));
        assert_eq!(packages.stage(&piece(whole, 6, 10)).unwrap(), 10);
        assert_eq!(fs::read(packages.find(&PackageId::of(whole)).unwrap()).unwrap(), whole);
        assert_eq!(packages.stage(&piece(whole, 0, 0)).unwrap(), 10, "who asks again hears that it is there");
    }

    /// One has opened the part before another made it whole: what is whole is not written to.
    #[test]
    fn a_piece_that_comes_too_late_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let (packages, whole) = (Packages::at(folder.path()), b"0123456789");
        assert_eq!(packages.stage(&piece(whole, 0, 4)).unwrap(), 4);
        let part = File::open(packages.path(&PackageId::of(whole), PART)).unwrap();
        part.lock().unwrap();
        std::thread::scope(|scope| {
            let late = scope.spawn(|| packages.stage(&Piece { data: b"wrong".to_vec(), ..piece(whole, 4, 9) }));
            let waits = || fs::read_to_string("/proc/locks").unwrap().lines().any(|line| line.contains("-> FLOCK"));
            let deadline = std::time::Instant::now() + Duration::from_secs(20);
            while !waits() {
                assert!(std::time::Instant::now() < deadline);
                std::thread::yield_now();
            }
            // As the other does it.
            fs::write(packages.path(&PackageId::of(whole), PART), whole).unwrap();
            fs::rename(packages.path(&PackageId::of(whole), PART), packages.path(&PackageId::of(whole), WHOLE)).unwrap();
            drop(part);
            assert_eq!(late.join().unwrap().unwrap(), 10);
        });
        assert_eq!(fs::read(packages.find(&PackageId::of(whole)).unwrap()).unwrap(), whole);
    }

    #[test]
    fn what_is_not_what_its_digest_says_is_thrown_away() {
        let folder = tempfile::tempdir().unwrap();
        let packages = Packages::at(folder.path());
        let mut wrong = piece(b"abc", 0, 3);
        wrong.data = b"abd".to_vec();
        assert!(packages.stage(&wrong).unwrap_err().message.contains("are not sha256:"));
        assert_eq!(packages.stage(&piece(b"abc", 0, 3)).unwrap(), 3);
        assert!(packages.find(&PackageId::of(b"abc")).is_ok());
    }

    #[test]
    fn what_is_too_large_is_not_taken() {
        let folder = tempfile::tempdir().unwrap();
        let packages = Packages::at(folder.path());
        let of = |bytes, offset, length| Piece { file: PackageId::of(b""), bytes, offset, data: vec![0; length] };
        for bad in [of(0, 0, 0), of(PACKAGE_MAX_BYTES + 1, 0, 0), of(1 << 20, 0, PIECE_MAX_BYTES + 1), of(3, 2, 2), of(3, u64::MAX, 2)] {
            assert!(packages.stage(&bad).unwrap_err().is(ErrorCode::InvalidArguments), "{bad:?}");
        }
        assert_eq!(folder.path().read_dir().unwrap().count(), 0);
    }
}
