//! A little chance, so that hosts which begin together do not ask together, and names that were not given before. Nothing secret comes of it.

use ring::rand::{SecureRandom, SystemRandom};

/// A share from 0 to 1, drawn.
#[must_use]
pub fn share() -> f64 {
    let mut bytes = [0; 4];
    // Without random numbers all hosts are punctual, which is no harm to this one.
    let drawn = SystemRandom::new().fill(&mut bytes).is_ok();
    if drawn { f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX) } else { 0.5 }
}

/// Six letters and digits, drawn: of a billion.
#[must_use]
pub fn word() -> String {
    const LETTERS: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
    let mut bytes = [0; 6];
    if SystemRandom::new().fill(&mut bytes).is_err() {
        // The clock does not stand still between two that are asked for, either.
        bytes.copy_from_slice(jiff::Timestamp::now().as_nanosecond().to_le_bytes().get(..6).unwrap_or(&[0; 6]));
    }
    bytes.iter().filter_map(|byte| LETTERS.get(usize::from(byte % 32))).map(|letter| char::from(*letter)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_a_share() {
        assert!((0..100).map(|_| word()).collect::<std::collections::BTreeSet<_>>().iter().all(|word| word.len() == 6));
        assert!((0..100).map(|_| share()).all(|share| (0.0..=1.0).contains(&share)));
    }
}
