//! The shape of a JSON text from a host, before anything is made of it: how deep it is nested, and which names it has.
//!
//! An answer is read again from the job log and the store, some levels deeper than here, and serde_json reads 127 levels; and it
//! takes an object whose first name is one of its own for something else. What would not be read back must not get in.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};

/// The deepest nesting of a result, or of an error's data: that of arguments.
pub(super) const DEPTH_MAX: u8 = 64;
/// What is put around it on the wire at most: an item's error, in its outcome, in their list, in what became of a chunk, in the outcome of that.
pub(super) const FRAMES_MAX: u8 = 5;

/// With what the names begin that serde_json gives a meaning.
const RESERVED_PREFIX: &str = "$serde_json::private::";

/// Makes sure that `json` can be read back wherever it will be kept.
///
/// # Errors
/// It is no JSON, nested deeper than `levels`, or uses a name that cannot be kept. The message completes "it answered something …".
pub(super) fn check(json: &str, levels: u8) -> Result<(), String> {
    let mut reader = serde_json::Deserializer::from_str(json);
    Within(levels).deserialize(&mut reader).map_err(|error| {
        let problem = error.to_string();
        [NESTED, RESERVED].into_iter().find(|known| problem.contains(known)).map_or(problem, str::to_owned)
    })
}

const NESTED: &str = "nested too deep: more than 64 levels";
const RESERVED: &str = "with a name that begins with \"$serde_json::private::\", which cannot be kept";

/// Any value with so many levels of arrays and objects at most.
#[derive(Clone, Copy)]
struct Within(u8);

/// A name that can be kept.
struct Name;

impl Within {
    fn below<E: Error>(self) -> Result<Self, E> {
        self.0.checked_sub(1).map(Self).ok_or_else(|| E::custom(NESTED))
    }
}

impl<'de> DeserializeSeed<'de> for Within {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Within {
    type Value = ();

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("JSON")
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let below = self.below()?;
        while items.next_element_seed(below)?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<(), A::Error> {
        let below = self.below()?;
        while fields.next_key_seed(Name)?.is_some() {
            fields.next_value_seed(below)?;
        }
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Name {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_str(self)
    }
}

impl Visitor<'_> for Name {
    type Value = ();

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a name")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<(), E> {
        if name.starts_with(RESERVED_PREFIX) { Err(E::custom(RESERVED)) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;

    #[test]
    fn depth_and_names_are_bounded() {
        let lists = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        let objects = |levels: usize| format!("{}1{}", "{\"a\":".repeat(levels), "}".repeat(levels));
        for fits in [lists(64), objects(64), "[1,-1,1.5,true,null,\"[[[\",{\"a$serde_json::private::\":1}]".to_owned()] {
            assert_eq!(check(&fits, DEPTH_MAX), Ok(()), "{fits}");
        }
        for deep in [lists(65), objects(65), lists(120), lists(100_000)] {
            assert_eq!(check(&deep, DEPTH_MAX).unwrap_err(), NESTED);
        }
        for reserved in ["{\"$serde_json::private::RawValue\":\"[\"}", "[{\"a\":1,\"\\u0024serde_json::private::Number\":2}]"] {
            assert_eq!(check(reserved, DEPTH_MAX).unwrap_err(), RESERVED);
        }
    }

    #[test]
    fn the_message_names_the_limit() {
        assert!(NESTED.contains(&DEPTH_MAX.to_string()) && RESERVED.contains(RESERVED_PREFIX));
    }
}
