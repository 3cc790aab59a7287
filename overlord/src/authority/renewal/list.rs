//! The revocation list in a home that is not the authority's: asked for at `overlord certs serve` before hosts are called, and told when it is stale.
//! It stops no command.

use std::fs;
use std::thread;
use std::time::Duration;

use common::protocol::certs::Revocations;
use jiff::Timestamp;
use service::authority::{AuthorityClient, Deadlines};

use super::{Office, Renewal, is_long_ago};
use crate::chain;

/// It is asked for at most so often, however many commands there are.
const ASK_EVERY: Duration = Duration::from_secs(60);
/// That there is no answer is told at most so often.
const TELL_EVERY: Duration = Duration::from_secs(60 * 60);

impl Renewal {
    /// Asks for a newer list if it is time, for no longer than `connect_timeout`; and says so if the one that is gone by is stale.
    pub(super) fn look_at_list(&self) {
        let authority = self.config.authority.as_deref().filter(|_| !Office::is_in(&self.home));
        if let Some(address) = authority
            && is_long_ago(&self.home.list_mark(), ASK_EVERY)
        {
            // Where it cannot be written, each command asks.
            let _unmarked = fs::write(self.home.list_mark(), []);
            // In a thread of its own: whoever calls may be within a runtime.
            let taken = thread::scope(|scope| scope.spawn(|| self.take_list(address)).join());
            self.tell(taken.unwrap_or_else(|_| Err("asking for it panicked, which is a bug".to_owned())));
        }
        if let Some(since) = self.trust.now().stale_since() {
            let hint =
                if authority.is_none() { "; `authority = \"HOST:PORT\"` in overlord.toml says whom to ask for a newer one" } else { "" };
            (self.warning)(&format!("the revocation list is stale since {since}: what was revoked later is not known here{hint}"));
        }
    }

    fn take_list(&self, address: &str) -> Result<(), String> {
        let trusted = self.trust.now();
        let within = self.config.connect_timeout;
        let ours = trusted.credentials().role().clone();
        let deadlines = Deadlines { connect: within, answer: within };
        let mut authority = AuthorityClient::new(address, trusted.tls().authority.clone(), deadlines).showing(ours);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| error.to_string())?;
        let asked = runtime.block_on(async { tokio::time::timeout(within, authority.revocations(trusted.crl_number())).await });
        // A name server that does not answer must not keep the command.
        runtime.shutdown_background();
        let Revocations { crl, .. } = asked
            .map_err(|_| format!("the authority at {address} gave no answer within {within:?}"))?
            .map_err(|error| error.to_string())?;
        let taken = crl.map(|pem| self.trust.take_crl(&pem)).transpose();
        taken.map(drop).map_err(|error| chain(&error))
    }

    fn tell(&self, taken: Result<(), String>) {
        let mark = self.home.list_trouble_mark();
        match taken {
            // So that the next trouble is told at once.
            Ok(()) => drop(fs::remove_file(mark)),
            Err(reason) if is_long_ago(&mark, TELL_EVERY) => {
                let _unmarked = fs::write(mark, []);
                let number = self.trust.now().crl_number();
                (self.warning)(&format!(
                    "no newer revocation list is to be had, and number {number} is gone by ({}): {reason}",
                    Timestamp::now()
                ));
            }
            Err(_) => {}
        }
    }
}
