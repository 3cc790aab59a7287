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
    /// The socket that job daemons poke cannot be made.
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
        let mut ids = match listed {
            Ok(Ok(ids)) => ids,
            Ok(Err(error)) => return tracing::error!(%error, "the spools cannot be listed"),
            Err(error) => return tracing::error!(%error, "the spools cannot be listed"),
        };
        ids.extend(self.live_ids());
        for id in ids {
            self.take_in(&id).await;
        }
    }

    async fn take_in(&self, id: &MinionJobId) {
        if let Err(failure) = self.learn(id).await {
            tracing::error!(minion_job_id = %id, problem = %failure.message, "a job's spool cannot be taken in");
        }
    }
}
