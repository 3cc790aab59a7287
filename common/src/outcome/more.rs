//! What a newer version says besides: fields that this one does not know, which it keeps and hands on.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

type Fields = BTreeMap<String, Value>;

/// The fields, to be flattened into what they were found in. As a rule there are none, which takes no room.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(from = "Fields", into = "Fields")]
pub struct More(Option<Box<Fields>>);

impl More {
    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Their names, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().flat_map(|fields| fields.keys()).map(String::as_str)
    }

    /// The field of that name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.0.as_ref()?.get(name)
    }
}

impl From<Fields> for More {
    fn from(fields: Fields) -> Self {
        Self((!fields.is_empty()).then(|| Box::new(fields)))
    }
}

impl From<More> for Fields {
    fn from(more: More) -> Self {
        more.0.map(|fields| *fields).unwrap_or_default()
    }
}
