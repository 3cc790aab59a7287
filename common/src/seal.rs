//! Text that shows whether it was damaged: what is kept on a disk and read again later, as one line of JSON,
//! `{"crc32":"89abcdef","body":…}`. A flipped bit in a result would else be read as another result.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Stands before the eight hexadecimal digits of the checksum.
const HEAD: &[u8] = b"{\"crc32\":\"";
/// Stands between the checksum and the body.
const MIDDLE: &[u8] = b"\",\"body\":";
const TAIL: &[u8] = b"}";
const DIGITS: usize = 8;

/// Why a text cannot be believed.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// It is not of the form: its end or its beginning is missing, or something else stands there.
    #[error("it is torn, or was never whole")]
    Torn,
    /// The checksum is that of another text.
    #[error("its checksum does not fit: something in it was changed")]
    Changed,
    /// The text is whole, and not what was expected.
    #[error("it is whole, and says something else than it should: {0}")]
    Content(serde_json::Error),
}

/// `value` as one line without a line break, checksum included: the CRC-32 (IEEE 802.3) of the body as it is written.
///
/// # Errors
/// The value cannot be written as JSON.
pub fn seal(value: &impl Serialize) -> serde_json::Result<Vec<u8>> {
    let body = serde_json::to_vec(value)?;
    let checksum = format!("{:08x}", crc32fast::hash(&body));
    Ok([HEAD, checksum.as_bytes(), MIDDLE, &body, TAIL].concat())
}

/// What was sealed. White space behind it is passed over.
///
/// # Errors
/// The text is not as it was written.
pub fn open<T: DeserializeOwned>(text: &[u8]) -> Result<T, SealError> {
    let rest = text.trim_ascii_end().strip_prefix(HEAD).ok_or(SealError::Torn)?;
    let (checksum, rest) = rest.split_at_checked(DIGITS).ok_or(SealError::Torn)?;
    let body = rest.strip_prefix(MIDDLE).and_then(|rest| rest.strip_suffix(TAIL)).ok_or(SealError::Torn)?;
    if checksum != format!("{:08x}", crc32fast::hash(body)).as_bytes() {
        return Err(SealError::Changed);
    }
    serde_json::from_slice(body).map_err(SealError::Content)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may panic")]
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn what_was_sealed_is_read_back_and_is_json_itself() {
        for value in [json!(null), json!({ "a": ["\n", "ü", 1.5] }), json!("}")] {
            let mut text = seal(&value).unwrap();
            assert!(!text.contains(&b'\n'));
            assert_eq!(serde_json::from_slice::<Value>(&text).unwrap()["body"], value);
            text.push(b'\n');
            assert_eq!(open::<Value>(&text).unwrap(), value);
        }
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_noticed() {
        let text = seal(&json!({ "state": "ok", "result": "68" })).unwrap();
        for bit in 0..text.len() * 8 {
            let mut flipped = text.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(open::<Value>(&flipped).is_err(), "bit {bit}");
        }
        for length in 0..text.len() {
            assert!(open::<Value>(&text[..length]).is_err(), "{length} bytes");
        }
    }
}
