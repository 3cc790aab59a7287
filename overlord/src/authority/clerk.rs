//! The one thread that works at the desk for `overlord certs serve`. All that wait are dealt with at once, so a thousand hosts that come together cost
//! little more than one; each decision is in the audit log before anybody hears of it.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use certs::authority::AuthorityError;
use certs::authority::desk::{Asked, Certified, Desk, Enrolled, Refused};
use common::outcome::{ErrorCode, Failure};
use jiff::Timestamp;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio_rustls::rustls::pki_types::CertificateDer;
use tracing::error;

use super::Office;
use super::audit::{Decision, Entry, Ledger};
use crate::chain;

/// So many requests of each kind wait for the desk; further ones are refused, and come again. However many hosts want a first certificate, which
/// anybody may ask for, there is a place for who renews.
const QUEUE_MAX: usize = 1024;
/// How many kinds there are.
const KINDS: usize = 2;
/// So many are dealt with at once.
const BATCH_MAX: usize = 512;

/// What somebody at the other end of a connection wants of the desk.
#[derive(Debug)]
pub(super) enum Wish {
    /// A first certificate.
    Enroll(Asked),
    /// One in the place of that which was shown.
    Renew(CertificateDer<'static>),
}

/// What he gets.
#[derive(Debug)]
pub(super) enum Given {
    Enrolled(Enrolled),
    Renewed(Certified),
}

type Answer = Result<Given, Failure>;

struct Task {
    wish: Wish,
    /// The line for the log, but for what is decided.
    entry: Entry,
    reply: oneshot::Sender<Answer>,
    /// Its place among those of its kind, until it is dealt with.
    _place: OwnedSemaphorePermit,
}

/// Completes once nobody is at the desk any more.
#[derive(Debug)]
pub(super) struct Ended(oneshot::Receiver<()>);

impl Ended {
    /// Until then.
    pub(super) async fn wait(self) {
        let _never_sent = self.0.await.is_ok();
    }
}

/// The way to the desk. When the last is dropped, the thread ends.
#[derive(Debug)]
pub(super) struct Clerk {
    tasks: SyncSender<Task>,
    enrolling: Arc<Semaphore>,
    renewing: Arc<Semaphore>,
}

impl Clerk {
    /// Starts the thread, which calls `tend` at once and then every `tend_every`. [`Ended`] is told of its end, however it comes.
    pub(super) fn start(
        Office { mut desk, ledger }: Office,
        tend_every: Duration,
        mut tend: impl FnMut(&mut Desk, &Ledger) + Send + 'static,
    ) -> io::Result<(Self, Ended, JoinHandle<()>)> {
        let (tasks, waiting) = sync_channel(KINDS * QUEUE_MAX);
        let (alive, ended) = oneshot::channel();
        let work = move || {
            // Dropped by a panic, too.
            let _alive: oneshot::Sender<()> = alive;
            let mut due = Instant::now();
            while let Some(batch) = next_batch(&waiting, due) {
                deal_with(&mut desk, &ledger, batch);
                if Instant::now() >= due {
                    tend(&mut desk, &ledger);
                    due = Instant::now() + tend_every;
                }
            }
        };
        let [enrolling, renewing] = [(); KINDS].map(|()| Arc::new(Semaphore::new(QUEUE_MAX)));
        Ok((Self { tasks, enrolling, renewing }, Ended(ended), thread::Builder::new().name("desk".to_owned()).spawn(work)?))
    }

    /// Waits for its turn.
    pub(super) async fn ask(&self, wish: Wish, entry: Entry) -> Answer {
        let (reply, answer) = oneshot::channel();
        let places = match &wish {
            Wish::Enroll(_) => &self.enrolling,
            Wish::Renew(_) => &self.renewing,
        };
        let Ok(place) = Arc::clone(places).try_acquire_owned() else { return Err(full()) };
        match self.tasks.try_send(Task { wish, entry, reply, _place: place }) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => return Err(full()),
            Err(TrySendError::Disconnected(_)) => return Err(gone()),
        }
        answer.await.unwrap_or_else(|_| Err(gone()))
    }
}

fn full() -> Failure {
    let text = format!("the authority has {QUEUE_MAX} requests to deal with already, as many as may wait: ask again in a while");
    Failure::new(ErrorCode::LimitReached, text)
}

fn gone() -> Failure {
    Failure::new(ErrorCode::Internal, "the authority is stopping: ask again in a while")
}

/// All that waits, as soon as there is something, at the latest when it is `due`; nothing once nobody can ask any more.
fn next_batch(waiting: &Receiver<Task>, due: Instant) -> Option<Vec<Task>> {
    match waiting.recv_timeout(due.saturating_duration_since(Instant::now())) {
        Ok(first) => Some(std::iter::once(first).chain(waiting.try_iter().take(BATCH_MAX - 1)).collect()),
        Err(RecvTimeoutError::Timeout) => Some(Vec::new()),
        Err(RecvTimeoutError::Disconnected) => None,
    }
}

fn deal_with(desk: &mut Desk, ledger: &Arc<Ledger>, batch: Vec<Task>) {
    let (mut asked, mut enrolling, mut shown, mut renewing) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for Task { wish, entry, reply, .. } in batch {
        match wish {
            Wish::Enroll(one) => {
                asked.push(one);
                enrolling.push((entry, reply));
            }
            Wish::Renew(cert) => {
                shown.push(cert);
                renewing.push((entry, reply));
            }
        }
    }
    let began = Timestamp::now();
    if !asked.is_empty() {
        let answers = desk.enroll(&asked).map(|all| all.into_iter().map(|one| one.map(Given::Enrolled)).collect());
        tell(ledger, enrolling, answers, began);
    }
    if !shown.is_empty() {
        let answers = desk.renew(&shown).map(|all| all.into_iter().map(|one| one.map(Given::Renewed)).collect());
        tell(ledger, renewing, answers, began);
    }
}

type Decided = Result<Given, Refused>;

fn tell(ledger: &Ledger, waiting: Vec<(Entry, oneshot::Sender<Answer>)>, answers: Result<Vec<Decided>, AuthorityError>, began: Timestamp) {
    match answers {
        Ok(answers) => {
            for ((entry, reply), decided) in waiting.into_iter().zip(answers) {
                // Who has gone away meanwhile asks again, and finds how it stands.
                let _gone = reply.send(recorded(ledger, entry, decided, began));
            }
        }
        Err(problem) => {
            let problem = chain(&problem);
            error!(%problem, requests = waiting.len(), "the authority cannot deal with requests");
            for (entry, reply) in waiting {
                let _unwritten = ledger.record(&entry.decided(Decision::Failed, Some(problem.clone())));
                let text = "the authority cannot do its work; its log says why. Ask again later";
                let _gone = reply.send(Err(Failure::new(ErrorCode::Internal, text)));
            }
        }
    }
}

/// The answer, once it is in the log. What is not in the log is not given: whoever asks again gets it.
fn recorded(ledger: &Ledger, entry: Entry, decided: Decided, began: Timestamp) -> Answer {
    let entry = match &decided {
        Ok(Given::Enrolled(Enrolled::Issued(certified)) | Given::Renewed(certified)) => {
            entry.with_serials([certified.serial.clone()]).decided(Decision::Done, None)
        }
        // A host asks again and again while it waits: only the first time is news.
        Ok(Given::Enrolled(Enrolled::Waiting { since, .. })) if *since < began => return decided.map_err(|refused| failure(&refused)),
        Ok(Given::Enrolled(Enrolled::Waiting { key, .. })) => entry.decided(Decision::Waiting, Some(format!("its key is {key}"))),
        Ok(Given::Enrolled(Enrolled::Rejected { at })) => entry.decided(Decision::Refused, Some(format!("it was rejected on {at}"))),
        Err(refused) => entry.decided(Decision::Refused, Some(refused.to_string())),
    };
    if let Err(problem) = ledger.record(&entry) {
        let problem = chain(&problem);
        error!(%problem, "a decision of the authority is not told, because it cannot be written down");
        return Err(Failure::new(ErrorCode::Internal, "the authority cannot write its audit log, and gives nothing out. Ask again later"));
    }
    decided.map_err(|refused| failure(&refused))
}

fn failure(refused: &Refused) -> Failure {
    let code = match refused {
        Refused::Full { .. } => ErrorCode::LimitReached,
        Refused::Csr { .. } => ErrorCode::InvalidArguments,
        _ => ErrorCode::Denied,
    };
    Failure::new(code, refused.to_string())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use std::net::Ipv4Addr;
    use std::sync::mpsc::channel;

    use super::super::audit::Action;
    use super::*;
    use crate::fake_minion::Lab;

    fn entry(action: Action) -> Entry {
        Entry::new("nobody".to_owned(), action, Decision::Refused)
    }

    fn enrolling(number: usize) -> Wish {
        let name = format!("web{number}").parse().unwrap();
        Wish::Enroll(Asked { name, csr: "none".to_owned(), token: None, from: Ipv4Addr::LOCALHOST.to_string() })
    }

    /// The desk is held up until the test has filled the queue; who renews finds a place, and is answered.
    #[tokio::test]
    async fn however_many_want_to_enrol_there_is_a_place_for_who_renews() {
        let lab = Lab::new();
        let fleet = lab.fleet();
        let office = Office::open(fleet.home(), fleet.config()).unwrap();
        let ((go, wait), (held_up, is_held_up)) = (channel::<()>(), channel());
        let tend = move |_: &mut Desk, _: &Ledger| {
            held_up.send(()).unwrap();
            let _gone = wait.recv();
        };
        let (clerk, _ended, desk) = Clerk::start(office, Duration::from_secs(3600), tend).unwrap();
        is_held_up.recv_timeout(Duration::from_secs(20)).unwrap();
        let clerk = Arc::new(clerk);
        let ask = |wish, action| {
            let clerk = clerk.clone();
            tokio::spawn(async move { clerk.ask(wish, entry(action)).await })
        };
        let asked: Vec<_> = (0..2 * QUEUE_MAX).map(|number| ask(enrolling(number), Action::Enroll)).collect();
        let renewing = ask(Wish::Renew(CertificateDer::from(vec![0])), Action::Renew);
        for asked in asked.into_iter().skip(QUEUE_MAX) {
            assert!(asked.await.unwrap().is_err_and(|failure| failure.is(ErrorCode::LimitReached)));
        }
        go.send(()).unwrap();
        let renewed = renewing.await.unwrap().unwrap_err();
        assert!(!renewed.is(ErrorCode::LimitReached), "{renewed:?}");
        drop(clerk);
        desk.join().unwrap();
    }
}
