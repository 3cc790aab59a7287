//! `overlord certs token`: a token that signs one host's request, once. It alone is on standard output, so that it can be piped to where it
//! is needed, and stands in no list of processes.

use serde_json::json;

use super::{OK, Refusal, record};
use crate::authority::audit::{Action, Entry};
use crate::authority::{Office, enroll_line};
use crate::cli::CertsTokenArgs;
use crate::fleet::Fleet;
use crate::output::{Format, Output, remark};

pub(super) fn run(fleet: &Fleet, mut output: Output, args: CertsTokenArgs) -> Result<u8, Refusal> {
    let Office { mut desk, ledger } = Office::open(fleet.home(), fleet.config())?;
    let token = desk.token(args.names.clone(), args.ttl)?;
    record(&ledger, &Entry::of_command(Action::Token).about(args.names.clone()).with_token(&token.digest))?;
    remark(&format!(
        "good for one host until {}; `overlord certs serve` must run here. On the host, with the token on standard input:\n{} --token -",
        token.expires_at.strftime("%Y-%m-%dT%H:%M:%SZ"),
        enroll_line(fleet.config(), desk.authority())
    ));
    match output.format() {
        Format::Text => output.print(&token.token)?,
        Format::Json | Format::Jsonl => {
            output.print_json(&json!({ "token": token.token, "for": args.names, "expires_at": token.expires_at }))?;
        }
    }
    Ok(OK)
}
