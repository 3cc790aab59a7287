//! What the server does for jobs unasked: takes in the outcomes that job daemons tell of, and from time to time, and at its start,
//! compares every spool with the store.

use std::sync::Arc;

use common::job::MinionJobId;
use tokio::net::UnixDatagram;

use super::Jobs;
use crate::spool;

/// The longest poke: an id and a problem.
const POKE_MAX_BYTES: usize = 4096;

impl Jobs {
    /// Tends the jobs until it is dropped.
    ///
    /// # Errors
    /// The socket that job daemons poke cannot be made; or the store has failed: started again, the minion makes it anew from the spools.
    pub async fn tend(self: Arc<Self>) -> std::io::Result<()> {
        match std::fs::remove_file(&self.server_socket) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _gone => {}
        }
        let pokes = UnixDatagram::bind(&self.server_socket)?;
        let mut rounds = tokio::time::interval(self.limits.reconcile_every);
        rounds.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut poke = vec![0; POKE_MAX_BYTES];
        loop {
            tokio::select! {
                () = self.store_failed.notified() => return Err(std::io::Error::other("the status store cannot be written")),
                _round = rounds.tick() => self.reconcile().await,
                received = pokes.recv(&mut poke) => self.hear(poke.get(..received?).unwrap_or_default()).await,
            }
        }
    }

    /// A poke is a hint, and comes from a socket that others may write to: what counts is the spool.
    async fn hear(&self, poke: &[u8]) {
        let text = String::from_utf8_lossy(poke);
        let (id, problem) = text.split_once(' ').unwrap_or((&text, ""));
        let Ok(id) = id.parse::<MinionJobId>() else { return };
        if !problem.is_empty() {
            tracing::error!(minion_job_id = %id, problem = %problem.escape_debug(), "a job daemon needs help");
        }
        self.take_in(&id).await;
    }

    /// Compares every spool with the store. What has ended in the store is settled and not looked at again.
    async fn reconcile(&self) {
        let spools = self.spools.clone();
        let listed = tokio::task::spawn_blocking(move || spool::list(&spools)).await;
        let ids = match listed {
            Ok(Ok(ids)) => ids,
            Ok(Err(error)) => return tracing::error!(%error, "the spools cannot be listed"),
            Err(error) => return tracing::error!(%error, "the spools cannot be listed"),
        };
        for id in ids {
            if !self.store.find(&id).is_some_and(|known| known.is_settled()) {
                self.take_in(&id).await;
            }
        }
        self.take_in_live().await;
    }

    /// Looks at every job that has not ended as far as is known.
    pub(super) async fn take_in_live(&self) {
        for id in self.live_ids() {
            self.take_in(&id).await;
        }
    }

    async fn take_in(&self, id: &MinionJobId) {
        match self.learn(id).await {
            Ok(Some(report)) if !report.progress.state().is_final() => {}
            // It has ended, or it never came to be: a start that was refused, or whose caller hung up.
            Ok(_) => drop(self.lock_live().remove(id)),
            Err(failure) => tracing::error!(minion_job_id = %id, problem = %failure.message, "a job's spool cannot be taken in"),
        }
    }
}
