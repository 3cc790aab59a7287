//! The ids that callers draw for their calls.

use common::job::JobId;
use jiff::Timestamp;
use ring::rand::{SecureRandom, SystemRandom};

/// A job id that nobody has drawn before, as far as fifteen random bits in each millisecond go.
#[must_use]
pub fn fresh_id() -> JobId {
    let now = Timestamp::now();
    let mut bytes = [0; 4];
    if SystemRandom::new().fill(&mut bytes).is_err() {
        // A kernel without randomness: then what tells two ids apart is the nanosecond and the process.
        bytes = (now.subsec_nanosecond().unsigned_abs() ^ std::process::id().rotate_left(16)).to_ne_bytes();
    }
    JobId::new(now, u32::from_ne_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_differ() {
        assert_ne!(fresh_id(), fresh_id());
    }
}
