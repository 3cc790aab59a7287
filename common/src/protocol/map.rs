//! What travels for `overlord map`: a chunk of items, which one call has a host work through with one method, and what became of each.
//!
//! The call's method is `map.module.method`, its arguments are a [`Chunk`], and its outcome's result is [`Chunked`]. It is authorised, audited and
//! claimed as one call of `module.method`. Its limit is that of each item. An item that is not reported as begun was not begun.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Arguments;
use crate::outcome::Outcome;

/// Put before a method's name, it asks for the method to be run for each of a chunk's items.
pub const MAP_PREFIX: &str = "map.";

/// The most items in a chunk.
pub const CHUNK_MAX_ITEMS: usize = 256;

/// A host begins no further item of a chunk on which it has worked for so long: others may be idle, and who asked waits.
pub const CHUNK_PERIOD: Duration = Duration::from_millis(500);

/// Nor one where what it has to say of the items before is larger than this: with the largest result that there may be it is to fit into one answer.
pub const CHUNK_ANSWER_BYTES: usize = 64 * 1024;

/// Items in a row of all the items that are mapped.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Chunk {
    /// The index of the first among all items, from 0.
    pub first: u64,
    /// The method's arguments for each, at most [`CHUNK_MAX_ITEMS`].
    pub items: Vec<Arguments>,
}

/// What became of a chunk: nobody mistakes it for what became of another.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Chunked {
    /// As in the [`Chunk`].
    pub first: u64,
    /// What became of each item, in their order; `undelivered` where it was not begun.
    pub outcomes: Vec<Outcome>,
}
