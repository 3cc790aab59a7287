//! Many hosts in few words: equal answers folded, names compressed, states counted. Pure.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;

use common::identity::MinionName;
use common::job::HostState;
use common::outcome::Verdict;

/// From how many names in a row on a range is written.
const RANGE_FROM: usize = 3;

/// The hosts that gave the same answer.
#[derive(Debug, PartialEq)]
pub(crate) struct Group<'a> {
    pub(crate) hosts: Vec<&'a MinionName>,
    pub(crate) verdict: &'a Verdict,
}

/// Equal verdicts together: `ok` first, then the rest by state, each by the first host's name.
pub(crate) fn fold<'a>(answers: impl IntoIterator<Item = (&'a MinionName, &'a Verdict)>) -> Vec<Group<'a>> {
    let mut groups: Vec<Group<'a>> = Vec::new();
    let mut by_text: HashMap<String, usize> = HashMap::new();
    for (host, verdict) in answers {
        // JSON text is equal where the values are, and hashes, which values do not.
        let text = serde_json::to_string(verdict).unwrap_or_else(|_| host.to_string());
        let index = *by_text.entry(text).or_insert(groups.len());
        match groups.get_mut(index) {
            Some(group) => group.hosts.push(host),
            None => groups.push(Group { hosts: vec![host], verdict }),
        }
    }
    for group in &mut groups {
        group.hosts.sort_by_key(|host| natural(host));
    }
    groups.sort_by_cached_key(|group| (group.verdict.state(), group.hosts.first().map(|host| natural(host))));
    groups
}

/// How many hosts are in which state: `9 ok, 1 undelivered`.
pub(crate) fn counted(counts: &BTreeMap<HostState, usize>) -> String {
    let parts: Vec<String> = counts.iter().filter(|(_, count)| **count > 0).map(|(state, count)| format!("{count} {state}")).collect();
    parts.join(", ")
}

/// The same of items.
pub(crate) fn counted_items(counts: &BTreeMap<HostState, u64>) -> String {
    let parts: Vec<String> = counts.iter().filter(|(_, count)| **count > 0).map(|(state, count)| format!("{count} {state}")).collect();
    parts.join(", ")
}

/// The names in natural order, three or more in a row as a range: `db1,web[1-20]`, which is a target expression.
pub(crate) fn compressed(names: &[&MinionName]) -> String {
    let mut parts: Vec<Numbered<'_>> = names.iter().map(|name| natural(name)).collect();
    parts.sort();
    let mut text = String::new();
    let mut rest = parts.as_slice();
    while let Some(first) = rest.first() {
        let length = 1 + rest.windows(2).take_while(|pair| matches!(pair, [one, next] if one.is_before(next))).count();
        let (row, behind) = rest.split_at(length.min(rest.len()));
        rest = behind;
        match row.last() {
            Some(last) if row.len() >= RANGE_FROM => put(&mut text, &first.range(last)),
            _ => row.iter().for_each(|name| put(&mut text, name.whole)),
        }
    }
    text
}

fn put(text: &mut String, word: &str) {
    let written = if text.is_empty() { write!(text, "{word}") } else { write!(text, ",{word}") };
    debug_assert!(written.is_ok(), "writing to a string cannot fail");
}

/// A name as what stands before its last number, how many digits that has, what stands behind it, and the number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Numbered<'a> {
    before: &'a str,
    behind: &'a str,
    number: Option<u64>,
    digits: &'a str,
    whole: &'a str,
}

/// A name so that it sorts as people count: `web2` before `web10`.
fn natural(name: &MinionName) -> Numbered<'_> {
    let whole = name.as_str();
    let label_end = whole.find('.').unwrap_or(whole.len());
    let (label, domain) = whole.split_at(label_end);
    let before = label.trim_end_matches(|letter: char| letter.is_ascii_digit());
    let digits = label.get(before.len()..).unwrap_or_default();
    Numbered { before, behind: domain, number: digits.parse().ok(), digits, whole }
}

impl Numbered<'_> {
    fn is_before(&self, next: &Self) -> bool {
        // `9` and `10` are one after the other; `09` and `9` are not of one kind.
        let is_padded = |name: &Self| name.digits.starts_with('0') && name.digits.len() > 1;
        let same_kind = self.digits.len() == next.digits.len() || !(is_padded(self) || is_padded(next));
        let is_next = matches!((self.number, next.number), (Some(one), Some(next)) if one.checked_add(1) == Some(next));
        (self.before, self.behind) == (next.before, next.behind) && same_kind && is_next
    }

    fn range(&self, last: &Self) -> String {
        format!("{}[{}-{}]{}", self.before, self.digits, last.digits, self.behind)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may panic")]
    use super::*;
    use serde_json::json;

    fn names(text: &str) -> Vec<MinionName> {
        text.split(' ').map(|name| name.parse().unwrap()).collect()
    }

    #[test]
    fn names_are_compressed_where_they_count_on() {
        for (given, shown) in [
            ("web1 web2 db1", "db1,web1,web2"),
            ("web2 web10 web1 web3", "web[1-3],web10"),
            ("web8 web9 web10 web11", "web[8-11]"),
            ("n08 n09 n10 n11", "n[08-11]"),
            ("n08 n09 n10 n9", "n08,n09,n9,n10"),
            ("a1.x a2.x a3.x a4.y", "a[1-3].x,a4.y"),
            ("one", "one"),
            ("n99999999999999999999 n1", "n99999999999999999999,n1"),
        ] {
            let names = names(given);
            assert_eq!(compressed(&names.iter().collect::<Vec<_>>()), shown, "{given}");
        }
    }

    #[test]
    fn equal_answers_are_folded_and_ok_comes_first() {
        let names = names("web1 web2 db1 web10");
        let ok = |value: i32| Verdict::Ok { result: json!(value) };
        let verdicts = [ok(1), Verdict::undelivered("off"), ok(1), ok(2)];
        let groups = fold(names.iter().zip(&verdicts));
        let shown: Vec<String> = groups.iter().map(|group| format!("{} {}", compressed(&group.hosts), group.verdict.state())).collect();
        assert_eq!(shown, ["db1,web1 ok", "web10 ok", "web2 undelivered"]);
    }

    #[test]
    fn counts_name_what_is_there() {
        let counts = BTreeMap::from([(HostState::Undelivered, 1), (HostState::Ok, 9), (HostState::Lost, 0)]);
        assert_eq!(counted(&counts), "9 ok, 1 undelivered");
    }
}
