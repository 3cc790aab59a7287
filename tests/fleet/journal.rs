//! The systemd journal of one host, as its processes see it: the test listens at its socket, and reads or does not read what comes.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use crate::{Minion, PATIENCE, wait};

/// The folder that the host has for itself.
const FOLDER: &str = "/run";
/// Where the journal takes entries.
const SOCKET: &str = "/run/systemd/journal/socket";
/// Larger than any entry that is sent as a datagram.
const DATAGRAM_MAX_BYTES: usize = 1 << 20;

/// The fields of one entry.
pub type Fields = BTreeMap<String, String>;

/// A journal that the test is. Dropped, it is away again, and its socket with it.
#[derive(Debug)]
pub struct Journal {
    socket: UnixDatagram,
    path: PathBuf,
    entries: Mutex<Vec<Fields>>,
}

impl Minion {
    /// Begins to be this host's journal.
    ///
    /// # Panics
    /// It has no place of its own for one.
    #[must_use]
    pub fn journal(&self) -> Journal {
        assert!(self.has_journal(), "describe the fleet with own_journal()");
        let path = self.enclosure().unwrap().root().join(SOCKET.trim_start_matches('/'));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_nonblocking(true).unwrap();
        Journal { socket, path, entries: Mutex::default() }
    }

    /// Mounts the folder of its journal's socket, if it has one for itself.
    pub(crate) fn mount_journal(&self) {
        if self.has_journal() {
            self.enclosure().unwrap().run(&["mount", "-t", "tmpfs", "none", FOLDER]);
        }
    }
}

impl Journal {
    /// All entries so far.
    #[must_use]
    pub fn entries(&self) -> Vec<Fields> {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let mut datagram = vec![0; DATAGRAM_MAX_BYTES];
        loop {
            match self.socket.recv(&mut datagram) {
                // With an empty one a sender asks whether anybody listens.
                Ok(0) => {}
                Ok(length) => entries.push(fields(&datagram[..length])),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return entries.clone(),
                Err(error) => panic!("the journal's socket: {error}"),
            }
        }
    }

    /// All entries so far, once one of them is as `is_meant` says.
    pub fn wait_for(&self, what: &str, is_meant: impl Fn(&Fields) -> bool) -> Vec<Fields> {
        wait::wait_for(what, PATIENCE, || Some(self.entries()).filter(|entries| entries.iter().any(&is_meant)))
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// The fields of an entry in the journal's native protocol: `NAME=VALUE`, or `NAME`, the value's length in 8 bytes, and the value.
fn fields(mut entry: &[u8]) -> Fields {
    let mut fields = Fields::new();
    while let Some(end) = entry.iter().position(|byte| *byte == b'\n') {
        let (line, rest) = (String::from_utf8(entry[..end].to_vec()).unwrap(), &entry[end + 1..]);
        if let Some((name, value)) = line.split_once('=') {
            fields.insert(name.to_owned(), value.to_owned());
            entry = rest;
        } else {
            let length = usize::try_from(u64::from_le_bytes(rest[..8].try_into().unwrap())).unwrap();
            fields.insert(line, String::from_utf8(rest[8..8 + length].to_vec()).unwrap());
            entry = &rest[8 + length + 1..];
        }
    }
    fields
}
