//! What an .rpm says of itself: the tags of its header (rpm's format V4: lead, signature, header). The few bytes of an index are read here: the crate
//! that knows the rest of the format brings along four kinds of digests and a parser of payloads.

use super::{Description, Kind};

pub(super) const MAGIC: [u8; 4] = [0xed, 0xab, 0xee, 0xdb];
const LEAD_BYTES: usize = 96;
const HEADER_MAGIC: [u8; 4] = [0x8e, 0xad, 0xe8, 0x01];
/// Magic, four bytes that are reserved, the number of entries, and the bytes behind them.
const INTRO_BYTES: usize = 16;
const ENTRY_BYTES: usize = 16;
/// As rpm itself has it.
const ENTRIES_MAX: usize = 0xffff;
/// The signature ends at a multiple of this.
const ALIGNMENT: usize = 8;

const TAG_NAME: u32 = 1000;
const TAG_VERSION: u32 = 1001;
const TAG_RELEASE: u32 = 1002;
const TAG_SIZE: u32 = 1009;
const TAG_ARCH: u32 = 1022;
const TAG_SOURCE_PACKAGE: u32 = 1106;
const TYPE_INT32: u32 = 4;
const TYPE_STRING: u32 = 6;

/// An index and the values that it points into.
struct Header<'b> {
    index: &'b [u8],
    values: &'b [u8],
}

pub(super) fn describe(bytes: &[u8]) -> Result<Description, String> {
    let header = header(bytes).ok_or("its header is damaged")?;
    if header.find(TAG_SOURCE_PACKAGE).is_some() {
        return Err("it is a source package".to_owned());
    }
    let require = |tag, name: &str| header.text(tag).ok_or_else(|| format!("its header has no {name}"));
    let (version, release) = (require(TAG_VERSION, "version")?, require(TAG_RELEASE, "release")?);
    Ok(Description {
        kind: Kind::Rpm,
        name: require(TAG_NAME, "name")?,
        version: format!("{version}-{release}"),
        arch: require(TAG_ARCH, "architecture")?,
        installed_kib: header.number(TAG_SIZE).unwrap_or(0).div_ceil(1024),
    })
}

fn header(bytes: &[u8]) -> Option<Header<'_>> {
    let (_, after_signature) = split_header(bytes.get(LEAD_BYTES..)?)?;
    // Counted from the beginning of the signature, which the lead leaves aligned.
    let read = bytes.len() - LEAD_BYTES - after_signature.len();
    let padding = read.next_multiple_of(ALIGNMENT) - read;
    split_header(after_signature.get(padding..)?).map(|(header, _)| header)
}

/// The header at the beginning, and what is behind it.
fn split_header(bytes: &[u8]) -> Option<(Header<'_>, &[u8])> {
    if !bytes.starts_with(&HEADER_MAGIC) {
        return None;
    }
    let entries = usize::try_from(number_at(bytes, 8)?).ok().filter(|entries| *entries <= ENTRIES_MAX)?;
    let values = usize::try_from(number_at(bytes, 12)?).ok()?;
    let (index, rest) = bytes.get(INTRO_BYTES..)?.split_at_checked(entries * ENTRY_BYTES)?;
    let (values, rest) = rest.split_at_checked(values)?;
    Some((Header { index, values }, rest))
}

impl Header<'_> {
    /// The type of a tag's value, and where that begins.
    fn find(&self, tag: u32) -> Option<(u32, usize)> {
        let entry = self.index.chunks_exact(ENTRY_BYTES).find(|entry| number_at(entry, 0) == Some(tag))?;
        Some((number_at(entry, 4)?, usize::try_from(number_at(entry, 8)?).ok()?))
    }

    fn text(&self, tag: u32) -> Option<String> {
        let (TYPE_STRING, at) = self.find(tag)? else { return None };
        let text = self.values.get(at..)?.split(|byte| *byte == 0).next()?;
        String::from_utf8(text.to_vec()).ok()
    }

    fn number(&self, tag: u32) -> Option<u64> {
        let (TYPE_INT32, at) = self.find(tag)? else { return None };
        number_at(self.values, at).map(u64::from)
    }
}

fn number_at(bytes: &[u8], at: usize) -> Option<u32> {
    let four = bytes.get(at..at.checked_add(4)?)?;
    four.try_into().ok().map(u32::from_be_bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::super::{Kind, describe};
    use super::*;

    fn header_bytes(tags: &[(u32, u32, &[u8])]) -> Vec<u8> {
        let (mut index, mut values) = (Vec::new(), Vec::new());
        for (tag, kind, value) in tags {
            for number in [*tag, *kind, u32::try_from(values.len()).unwrap(), 1] {
                index.extend(number.to_be_bytes());
            }
            values.extend_from_slice(value);
        }
        let counts = [u32::try_from(tags.len()).unwrap(), u32::try_from(values.len()).unwrap()].map(u32::to_be_bytes).concat();
        [HEADER_MAGIC.as_slice(), &[0; 4], &counts, &index, &values].concat()
    }

    fn rpm(tags: &[(u32, u32, &[u8])]) -> Vec<u8> {
        let mut lead = MAGIC.to_vec();
        lead.resize(LEAD_BYTES, 0);
        let mut signature = header_bytes(&[(62, TYPE_STRING, b"odd")]);
        signature.resize(signature.len().next_multiple_of(ALIGNMENT), 0);
        [lead, signature, header_bytes(tags), b"payload".to_vec()].concat()
    }

    const TAGS: [(u32, u32, &[u8]); 5] = [
        (TAG_SIZE, TYPE_INT32, &[0, 0, 8, 1]),
        (TAG_NAME, TYPE_STRING, b"overlord-minion\0"),
        (TAG_VERSION, TYPE_STRING, b"0.1.0\0"),
        (TAG_RELEASE, TYPE_STRING, b"1\0"),
        (TAG_ARCH, TYPE_STRING, b"x86_64\0"),
    ];

    #[test]
    fn a_package_says_what_it_is() {
        let says = describe(&rpm(&TAGS)).unwrap();
        assert_eq!((says.kind, says.name.as_str(), says.version.as_str()), (Kind::Rpm, "overlord-minion", "0.1.0-1"));
        assert_eq!((says.arch.as_str(), says.installed_kib), ("x86_64", 3));
    }

    #[test]
    fn cut_anywhere_it_is_damaged_and_no_panic() {
        let whole = rpm(&TAGS);
        for length in 4..whole.len() - b"payload".len() {
            assert!(describe(whole.get(..length).unwrap()).is_err(), "{length}");
        }
        let mut huge = whole.clone();
        huge.splice(LEAD_BYTES + 8..LEAD_BYTES + 16, [0xff; 8]);
        assert!(describe(&huge).is_err());
        let sources = [TAGS.as_slice(), &[(TAG_SOURCE_PACKAGE, TYPE_INT32, &[0, 0, 0, 1])]].concat();
        assert!(describe(&rpm(&sources)).unwrap_err().contains("source package"));
        assert!(describe(&rpm(TAGS.get(..4).unwrap())).unwrap_err().contains("no architecture"));
    }
}
