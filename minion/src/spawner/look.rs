//! What the server is shown of the spools, which it cannot read itself. Results pass through it to their callers anyway; what jobs have written
//! is shown to the signed call of who may see it.

use common::outcome::{ErrorCode, Failure};
use common::protocol::{LOGS_CHUNK_MIN_BYTES, Stream};

use super::Post;
use super::order::{LogsOrder, Look, Reply};
use super::verify::Signer;
use crate::acl::Scope;
use crate::call::Ask;
use crate::modules::{JobsCall, LogsWanted};
use crate::spool::{self, Seen, Spool, SpoolError};

/// The most spools, and the bytes of their files, that are read for one reply: far below the longest line, whatever a result looks like in JSON.
const SEEN_MAX: usize = 1000;
const SEEN_MAX_BYTES: u64 = 8 << 20;

impl Post {
    /// What there is to see.
    pub(super) fn look(&self, look: Look) -> Reply {
        let looked = match look {
            Look::Ids => spool::list(&self.spools).map(Reply::Ids),
            Look::Spools(ids) => Ok(Reply::Seen(self.see(ids.iter().map(|id| Spool::of(&self.spools, id))))),
            Look::Glance(id) => Spool::of(&self.spools, &id).glance().map(Reply::Glance),
            Look::Logs(order) => return self.logs(&order).unwrap_or_else(Reply::Refused),
            Look::Bearer(ask) => return self.bearer(&ask).unwrap_or_else(Reply::Refused),
            Look::Sync => spool::sync(&self.spools).map(|()| Reply::Done),
        };
        looked.unwrap_or_else(|error| Reply::Refused(error.into()))
    }

    /// Whose call it is. What he may do is asked when it is to be done.
    fn bearer(&self, ask: &Ask) -> Result<Reply, Failure> {
        let Signer { caller, fingerprint, .. } = self.identify(ask)?.signer;
        Ok(Reply::Bearer(caller, fingerprint))
    }

    fn see(&self, spools: impl Iterator<Item = Spool>) -> Vec<Result<Option<Seen>, String>> {
        let (mut seen, mut bytes) = (Vec::new(), 0);
        for spool in spools.take(SEEN_MAX) {
            let look = Seen::look(&spool).map_err(|error| error.to_string());
            bytes += look.as_ref().ok().and_then(Option::as_ref).map_or(0, |seen| seen.bytes);
            seen.push(look);
            if bytes > SEEN_MAX_BYTES {
                break;
            }
        }
        seen
    }

    /// What a job has written, for who may see it.
    fn logs(&self, order: &LogsOrder) -> Result<Reply, Failure> {
        let warrant = self.identify(&order.ask).and_then(|known| self.admit_to_look(&order.ask, known))?;
        let scope = warrant.passed.scope;
        let JobsCall::Logs(wanted) = JobsCall::read(warrant.passed.method, warrant.passed.args)? else {
            return Err(not_what_it_says(&order.ask));
        };
        let spool = Spool::of(&self.spools, &wanted.id);
        let is_own = || -> Result<bool, SpoolError> { Ok(!spool.exists()? || spool.request()?.caller == warrant.call.envelope.caller) };
        if scope == Scope::Own && !is_own()? {
            return Err(Failure::new(
                ErrorCode::UnknownJob,
                format!("this host knows no job {} of {}", wanted.id, warrant.call.envelope.caller),
            ));
        }
        read(&spool, &wanted, order)
    }
}

/// The refusal of a call that was handed on as another one.
pub(super) fn not_what_it_says(ask: &Ask) -> Failure {
    Failure::new(ErrorCode::InvalidRequest, format!("{}: the call was handed on as something else", ask.minion))
}

/// What the spool looks like, and then both pieces. Of a job that has run there are files, though they may be empty.
fn read(spool: &Spool, wanted: &LogsWanted, order: &LogsOrder) -> Result<Reply, Failure> {
    if order.is_final && !spool.exists()? {
        let message = format!("the job {} has ended, and its spool {} is gone, and its output with it", wanted.id, spool.dir().display());
        return Err(Failure::of_kind("no_spool", message));
    }
    for stream in [Stream::Stdout, Stream::Stderr] {
        if order.has_run && spool.open_output(stream)?.is_none() {
            let message = format!("the job {} has run, and what it wrote to its {} is gone from its spool", wanted.id, stream.as_str());
            return Err(Failure::of_kind("no_output", message));
        }
    }
    let before = spool.glance()?;
    let max_bytes = wanted.max_bytes.unwrap_or(u32::MAX).max(LOGS_CHUNK_MIN_BYTES).min(order.max_bytes);
    let piece = |stream, offset| spool.output_piece(stream, offset, max_bytes, order.is_final);
    Ok(Reply::Logs(before, [piece(Stream::Stdout, wanted.stdout)?, piece(Stream::Stderr, wanted.stderr)?]))
}
