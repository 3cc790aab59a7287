//! Words that stand for something: names, roles, methods, ids, lengths of time, addresses, fingerprints.

use std::fmt::{Debug, Display};
use std::str::FromStr;

use certs::tls::CaPin;
use common::identity::{CallerName, MinionName, NAME_MAX_BYTES, Role};
use common::job::{CallId, JobId, MinionJobId, normal_prefix};
use common::method::{METHOD_MAX_BYTES, MethodName};
use common::period;
use serde::de::DeserializeOwned;
use service::authority::full_address;

use super::assert_harmless;

/// The most letters of a complaint: it repeats what it complains of, but not a mebibyte of that.
const COMPLAINT_MAX_CHARS: usize = 600;

/// The bytes as each of them.
pub fn words(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    names(text);
    ids(text);
    if let Some(method) = read::<MethodName>(text) {
        assert_eq!(format!("{}.{}", method.module(), method.method()), text);
        assert!(text.len() <= METHOD_MAX_BYTES && text.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'.')));
    }
    if let Some(pin) = read::<CaPin>(text) {
        assert!(is_lower_hex(&pin.to_string()) && pin.to_string().len() == 64, "{pin}");
    }
    length_of_time(text);
    let address = full_address(text);
    assert_eq!(full_address(&address), address, "a full address is full");
}

/// Small hexadecimal digits, at least one.
pub(super) fn is_lower_hex(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// What is read prints as what reads the same; what is not is complained of in a few harmless words.
fn read<T: FromStr<Err: Display> + Display + PartialEq + Debug>(text: &str) -> Option<T> {
    match text.parse::<T>() {
        Ok(value) => {
            assert_eq!(value.to_string().parse::<T>().ok().as_ref(), Some(&value));
            Some(value)
        }
        Err(error) => {
            let complaint = error.to_string();
            assert_harmless(&complaint);
            assert!(complaint.chars().count() <= COMPLAINT_MAX_CHARS, "{complaint}");
            None
        }
    }
}

/// As JSON it is read by the same rule.
fn is_the_same_in_json<T: DeserializeOwned + PartialEq + Debug>(text: &str, value: Option<&T>) {
    let json = serde_json::to_string(text).expect("a text can be written");
    assert_eq!(serde_json::from_str::<T>(&json).ok().as_ref(), value);
}

fn names(text: &str) {
    let name = read::<MinionName>(text);
    is_the_same_in_json(text, name.as_ref());
    assert_eq!(read::<CallerName>(text).map(String::from), name.clone().map(String::from), "hosts and callers are named alike");
    if let Some(name) = &name {
        let is_plain = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.');
        let name = name.as_str();
        assert!(
            name.len() <= NAME_MAX_BYTES && name.bytes().all(is_plain) && !name.starts_with(['.', '-']),
            "{name:?} can stand in a path"
        );
        assert!(name.eq_ignore_ascii_case(text));
    }
    if let Some(role) = read::<Role>(text) {
        assert!(role.to_string().eq_ignore_ascii_case(text), "{role}");
    }
}

fn ids(text: &str) {
    let job = read::<JobId>(text);
    is_the_same_in_json(text, job.as_ref());
    assert_eq!(read::<MinionJobId>(text).map(String::from), job.clone().map(String::from));
    if let Ok(prefix) = normal_prefix(text) {
        assert!(prefix.len() <= 14 && normal_prefix(&prefix).as_deref() == Ok(&prefix), "{prefix:?}");
        assert_eq!(job.is_some(), prefix.len() == 14);
    }
    if let Some(job) = &job {
        assert_eq!(normal_prefix(text).as_deref(), Ok(job.as_str()));
        let made_at = job.made_at();
        assert!(made_at >= jiff::Timestamp::UNIX_EPOCH, "{job} of {made_at}");
    }
    let call = read::<CallId>(text);
    is_the_same_in_json(text, call.as_ref());
    assert!(job.is_none_or(|job| call.is_some_and(|call| *call.job() == job)), "a job id is the call id of its first sending");
}

fn length_of_time(text: &str) {
    match period::parse(text) {
        Ok(length) => {
            assert!(!length.is_zero() && length <= period::LONGEST, "{length:?}");
            assert_eq!(period::parse(&format!("{}ns", length.as_nanos())), Ok(length));
        }
        Err(error) => assert_harmless(&error.to_string()),
    }
}
