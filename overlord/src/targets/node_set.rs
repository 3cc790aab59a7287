//! Node sets: `web[01-20,30]` → `web01` … `web20`, `web30`. Brackets mean nothing else. Pure.

use common::identity::{MinionName, NAME_MAX_BYTES};

/// The most names of one node set: twice the largest fleet that the overlord is made for.
const NODES_MAX: usize = 100_000;
/// The most digits of a number, zeros before it included: no part of a name is longer (RFC 1035, 2.3.4).
const DIGITS_MAX: usize = 63;

/// The names that `term` stands for, in its order. A number is as wide as the range's beginning is written: `[08-11]` is 08 09 10 11.
///
/// # Errors
/// Brackets that do not match, a range that is none, or more names than any fleet has.
pub(super) fn expand(term: &str) -> Result<Vec<MinionName>, String> {
    let mut names = vec![String::new()];
    let mut rest = term;
    while let Some((before, behind)) = rest.split_once('[') {
        let (set, after) = behind.split_once(']').ok_or_else(|| format!("the bracket in \"{term}\" is not closed"))?;
        let numbers = numbers(set).ok_or_else(|| format!("\"[{set}]\" is not a set of numbers, like [01-20,30]"))?;
        if names.len().saturating_mul(numbers.len()) > NODES_MAX {
            return Err(format!("\"{term}\" has more than {NODES_MAX} names"));
        }
        // Here, and not when they are made: so many that are longer would not fit into memory.
        if names.first().map_or(0, String::len) + before.len() > NAME_MAX_BYTES {
            return Err(format!("the names of \"{term}\" are longer than {NAME_MAX_BYTES} bytes"));
        }
        let joined = |name: &String| numbers.iter().map(|number| format!("{name}{before}{number}")).collect::<Vec<_>>();
        names = names.iter().flat_map(joined).collect();
        rest = after;
    }
    names.iter().map(|name| format!("{name}{rest}").parse().map_err(|error| format!("{error}"))).collect()
}

/// `01-03,7` → 01 02 03 7.
fn numbers(set: &str) -> Option<Vec<String>> {
    let mut numbers = Vec::new();
    for part in set.split(',').map(str::trim) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number = |text: &str| text.parse::<u64>().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()));
        if first.len() > DIGITS_MAX {
            return None;
        }
        let (low, high) = (number(first)?, number(last)?);
        let count = usize::try_from(high.checked_sub(low)?).ok()?.checked_add(1)?;
        if numbers.len() + count > NODES_MAX + 1 {
            return None;
        }
        numbers.extend((low..=high).map(|number| format!("{number:0width$}", width = first.len())));
    }
    Some(numbers)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;

    fn names(term: &str) -> String {
        expand(term).unwrap().iter().map(MinionName::as_str).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_set_is_each_of_its_names() {
        assert_eq!(names("web[1-3]"), "web1 web2 web3");
        assert_eq!(names("web[08-11,30]"), "web08 web09 web10 web11 web30");
        assert_eq!(names("r[1-2]n[1,3].lan"), "r1n1.lan r1n3.lan r2n1.lan r2n3.lan");
        assert_eq!(names("WEB[7]"), "web7");
    }

    #[test]
    fn numbers_are_as_large_as_those_in_names_that_are_shown() {
        assert_eq!(names("n[4294967295-4294967296]"), "n4294967295 n4294967296");
        assert_eq!(names("n[18446744073709551615]"), "n18446744073709551615");
    }

    /// Each would take gigabytes, or more digits than can be written.
    #[test]
    fn names_that_are_none_are_not_made() {
        let long = "a".repeat(4000);
        for term in [format!("{long}[1-100000]"), format!("a[1-100000]{}", "[0]".repeat(4000)), format!("a[{}1-9]", "0".repeat(70_000))] {
            assert!(expand(&term).is_err(), "{term:.40}");
        }
    }

    #[test]
    fn what_is_no_set_is_an_error() {
        for bad in [
            "web[",
            "web[1-3",
            "web[]",
            "web[3-1]",
            "web[a-c]",
            "web[1-]",
            "web[+1]",
            "web[1-3]]",
            "web[[1]]",
            "web[1-200000]",
            "w[1-999][1-999]",
            "web[1]*",
        ] {
            assert!(expand(bad).is_err(), "{bad}");
        }
    }
}
