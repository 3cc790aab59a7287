//! `certs.revocations`: the revocation list that the server goes by, told and taken. Whether a list is good is decided by the trust.

use std::sync::Arc;

use certs::crl::CrlError;
use common::outcome::{ErrorCode, Failure, Outcome};
use common::protocol::certs::Revocations;
use common::shown::chain;
use jiff::Timestamp;
use tracing::{info, warn};

use super::Door;
use crate::guard::Bearer;
use crate::modules::RevocationsAsked;

impl Door {
    /// Takes the list that was brought, if it is newer than ours, and says which one we go by; its text too, if the asker's is older.
    pub(super) async fn revocations(&self, bearer: Bearer<'_>, asked: RevocationsAsked) -> Result<Outcome, Failure> {
        let started_at = Timestamp::now();
        if let Some(crl) = asked.crl {
            self.take_list(bearer, crl).await?;
        }
        let trusted = self.trust.now();
        let number = trusted.crl_number();
        let crl = trusted.crl().filter(|crl| crl.number() > asked.have).map(|crl| crl.pem().to_owned());
        let answer = serde_json::to_value(Revocations { number, crl });
        let answer = answer.map_err(|error| self.no_list(ErrorCode::Internal, &error.to_string()))?;
        Ok(Outcome::ran(Ok(answer).into(), started_at, Timestamp::now()))
    }

    async fn take_list(&self, bearer: Bearer<'_>, crl: String) -> Result<(), Failure> {
        let trust = Arc::clone(&self.trust);
        // Its signature is verified, and it is written and synced.
        let taken = tokio::task::spawn_blocking(move || trust.take_crl(&crl)).await;
        match taken.map_err(|error| self.no_list(ErrorCode::Internal, &error.to_string()))? {
            Ok(true) => {
                info!(caller = bearer.caller, number = self.trust.now().crl_number(), "a newer revocation list was taken");
                Ok(())
            }
            Ok(false) => Ok(()),
            Err(error) => {
                let reason = chain(&error);
                warn!(caller = bearer.caller, peer = ?bearer.address, reason, "a revocation list was not taken");
                let code = if let CrlError::File(_) = error { ErrorCode::Internal } else { ErrorCode::InvalidArguments };
                Err(self.no_list(code, &reason))
            }
        }
    }

    fn no_list(&self, code: ErrorCode, reason: &str) -> Failure {
        let number = self.trust.now().crl_number();
        Failure::new(code, format!("{}: the revocation list was not taken: {reason}; it goes by number {number} as before", self.name))
    }
}
