//! What the root side of a host keeps and is told: the sealed files of a spool, and the spawner's orders and replies.

use common::outcome::Outcome;
use common::seal;
use minion::spawner::{Order, Reply};
use minion::spool::{CancelRequest, Forgotten, SpoolRequest, Started};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::hides;

/// The bytes as such a file, as what such a file holds, and as a line that says the same to the spawner.
pub fn spool(data: &[u8]) {
    let whole = super::sealed(data);
    for text in [data, &whole] {
        reads_back::<SpoolRequest>(text);
        reads_back::<Started>(text);
        reads_back::<CancelRequest>(text);
        reads_back::<Outcome>(text);
        reads_back::<Forgotten>(text);
    }
    cannot_be_changed(&whole, |text| seal::open::<Value>(text).is_ok());
    line_reads_back::<Order>(data);
    line_reads_back::<Reply>(data);
}

/// Whatever byte of a sealed text is another, it is damage. `data` says which, for it is arbitrary.
pub(super) fn cannot_be_changed(whole: &[u8], is_whole: impl Fn(&[u8]) -> bool) {
    let at = crc32fast::hash(whole).to_le_bytes();
    let place = usize::from(u16::from_le_bytes([at[0], at[1]])) % whole.len();
    let mut changed = whole.to_vec();
    changed[place] ^= at[2].max(1);
    assert!(!is_whole(&changed), "byte {place} of {} was changed", String::from_utf8_lossy(whole));
    let cut = &whole[..place];
    assert!(!is_whole(cut), "{} was cut", String::from_utf8_lossy(whole));
}

fn reads_back<T: Serialize + DeserializeOwned>(text: &[u8]) {
    let Ok(value) = seal::open::<T>(text) else { return };
    let written = seal::seal(&value).expect("what was read can be written");
    match seal::open::<T>(&written) {
        Ok(again) => assert_eq!(seal::seal(&again).ok(), Some(written)),
        Err(error) => assert!(hides(text), "{error}: {}", String::from_utf8_lossy(&written)),
    }
}

fn line_reads_back<T: Serialize + DeserializeOwned>(line: &[u8]) {
    let Ok(value) = serde_json::from_slice::<T>(line) else { return };
    let written = serde_json::to_vec(&value).expect("what was read can be written");
    assert!(!written.contains(&b'\n'), "an order is one line");
    match serde_json::from_slice::<T>(&written) {
        Ok(again) => assert_eq!(serde_json::to_vec(&again).ok(), Some(written)),
        Err(error) => assert!(hides(line), "{error}: {}", String::from_utf8_lossy(&written)),
    }
}
