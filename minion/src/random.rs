//! A little chance, so that hosts which begin together do not ask together. Nothing secret comes of it.

use ring::rand::{SecureRandom, SystemRandom};

/// A share from 0 to 1, drawn.
#[must_use]
pub fn share() -> f64 {
    let mut bytes = [0; 4];
    // Without random numbers all hosts are punctual, which is no harm to this one.
    let drawn = SystemRandom::new().fill(&mut bytes).is_ok();
    if drawn { f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX) } else { 0.5 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_a_share() {
        assert!((0..100).map(|_| share()).all(|share| (0.0..=1.0).contains(&share)));
    }
}
