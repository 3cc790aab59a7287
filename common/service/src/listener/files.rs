//! How many connections the process can hold: each is an open file.

use nix::sys::resource::{Resource, getrlimit};
use tracing::info;

/// Files that are open besides connections: what the program has open anyway, its stores and logs, and a socket for each call that runs.
const OTHER_FILES: usize = 384;
/// Handshakes get one part in so many of the files.
const HANDSHAKES_PART: usize = 4;

/// Of the connections and handshakes that are wanted at once so many as files may be open.
pub(super) fn allow(connections_max: usize, handshakes_max: usize) -> (usize, usize) {
    let files = getrlimit(Resource::RLIMIT_NOFILE).map_or(u64::MAX, |(files, _)| files);
    let files = usize::try_from(files).unwrap_or(usize::MAX);
    let allowed = within(files, connections_max, handshakes_max);
    if allowed != (connections_max, handshakes_max) {
        let (connections, handshakes) = allowed;
        info!(
            files,
            connections,
            handshakes,
            "fewer connections are held than connections_max and handshakes_max say: raise `ulimit -n`, or LimitNOFILE of the unit"
        );
    }
    allowed
}

fn within(files: usize, connections_max: usize, handshakes_max: usize) -> (usize, usize) {
    let room = files.saturating_sub(OTHER_FILES);
    if connections_max.saturating_add(handshakes_max) <= room {
        return (connections_max, handshakes_max);
    }
    let handshakes = handshakes_max.min(room / HANDSHAKES_PART).max(1);
    (connections_max.min(room.saturating_sub(handshakes)).max(1), handshakes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_connections_are_held_than_files_may_be_open() {
        assert_eq!(within(16_384, 1024, 1024), (1024, 1024));
        assert_eq!(within(1024, 1024, 1024), (480, 160));
        assert_eq!(within(1024, 10, 1024), (10, 160));
        assert_eq!(within(10, 1024, 1024), (1, 1));
    }
}
