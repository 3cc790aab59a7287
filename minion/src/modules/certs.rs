//! What can be asked about the host's revocation list: the spec of `certs.revocations`, and its arguments once read. The door hands it to the
//! server's trust.

use common::outcome::Failure;
use common::protocol::certs::REVOCATIONS;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use super::{Method, Module};

pub(super) struct Certs;

impl Module for Certs {
    const NAME: &'static str = "certs";

    fn methods() -> Vec<Method> {
        vec![Method::of_trust::<RevocationsAsked>(
            REVOCATIONS,
            "The revocation list that this host goes by; takes a newer one that the authority has signed.",
        )]
    }
}

/// The arguments of `certs.revocations`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RevocationsAsked {
    /// The number of the list that the asker has: an answer holds the list only if its number is larger.
    #[serde(default)]
    pub have: u64,
    /// A list in PEM form for this host, no larger than `limits.body_max_bytes` lets through: by default some 10,000 certificates.
    pub crl: Option<String>,
}

impl RevocationsAsked {
    /// What `args`, bound to the spec of `method`, ask.
    ///
    /// # Errors
    /// `InvalidArguments`.
    pub fn read(method: &Method, args: Value) -> Result<Self, Failure> {
        serde_json::from_value(args).map_err(|error| method.invalid(&error))
    }
}
