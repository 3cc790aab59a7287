//! The minion itself: a newer package of it, brought in pieces, and installed with a way back.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use common::outcome::{ErrorCode, Failure};
use common::protocol::package::{PackageId, Staged};
use schemars::JsonSchema;
use serde::Deserialize;

use super::{Context, Method, Module};
use crate::packages::{Packages, Piece};
use crate::upgrade::{Upgraded, upgrade};
use crate::variables;

pub(super) struct Minion;

impl Module for Minion {
    const NAME: &'static str = "minion";

    fn methods() -> Vec<Method> {
        vec![
            Method::new(
                "minion.stage",
                "Takes a piece of a package; `overlord TARGET minion.upgrade FILE --async` brings them all.",
                stage,
            ),
            Method::new("minion.upgrade", "Installs a package of the minion, and the former one again if it does not come up.", install),
        ]
    }
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct StageArguments {
    /// `sha256:` and the digits of the package's file.
    #[schemars(with = "String")]
    file: PackageId,
    /// The size of the whole file.
    bytes: u64,
    /// Where the piece begins.
    offset: u64,
    /// The piece, in base64.
    data: String,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct UpgradeArguments {
    /// The package's file, a .deb or .rpm, where the overlord is; to the host goes `sha256:` and its digits.
    #[schemars(with = "String")]
    file: PackageId,
}

fn stage(args: StageArguments, context: &Context<'_>) -> Result<Staged, Failure> {
    let StageArguments { file, bytes, offset, data } = args;
    let data = STANDARD.decode(data);
    let data = data.map_err(|error| Failure::new(ErrorCode::InvalidArguments, format!("minion.stage: `data` is not base64: {error}")))?;
    packages(context)?.stage(&Piece { file, bytes, offset, data }).map(|have| Staged { have })
}

fn install(args: UpgradeArguments, context: &Context<'_>) -> Result<Upgraded, Failure> {
    if std::env::var_os(variables::JOB).is_none() {
        let message = "minion.upgrade restarts the minion, and who waits for it would hear nothing: start it with --async";
        return Err(Failure::of_kind("not_a_job", message));
    }
    upgrade(&packages(context)?, &args.file)
}

fn packages(context: &Context<'_>) -> Result<Packages, Failure> {
    let folder = context.packages.ok_or_else(|| Failure::new(ErrorCode::Internal, "a server installs nothing"))?;
    Ok(Packages::at(folder))
}
