//! The socket where jobs submit calls: one line in, one line out, and for how long. Everybody on the host may connect; `places` says for whom there is
//! room. It decides nothing: the door does.

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::outcome::{ErrorCode, Failure};
use service::audit::COUNTED_FOR;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::unix::OwnedReadHalf;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, sleep_until, timeout};

use super::Answer;
use super::places::{Place, Places};
use crate::config::Limits;
use crate::dispatch::{Door, Reply};

/// How long an answer may take to be taken.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a refused submission keeps its place, so that nobody keeps the server and the spawner busy as fast as he can say something.
const REFUSED_PAUSE: Duration = Duration::from_millis(200);

/// The pause after a connection that could not be accepted: there are no files to be had, say.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How much and how long somebody may talk.
#[derive(Debug, Clone, Copy)]
pub struct SubmitLimits {
    /// The longest line.
    pub line_max_bytes: u64,
    /// From accepting a connection to the end of its line.
    pub line_timeout: Duration,
    /// How long those that run may take to end when the server is told to stop.
    pub shutdown_grace: Duration,
}

impl From<&Limits> for SubmitLimits {
    fn from(limits: &Limits) -> Self {
        let &Limits { body_max_bytes, header_timeout, shutdown_grace, .. } = limits;
        Self { line_max_bytes: body_max_bytes.into(), line_timeout: header_timeout, shutdown_grace }
    }
}

/// The socket, listening.
#[derive(Debug)]
pub struct Submissions {
    listener: UnixListener,
    limits: SubmitLimits,
    places: Arc<Places>,
}

impl Submissions {
    /// Listens at `socket`, where everybody may connect. One that a dead server left behind is replaced.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub fn listen(socket: &Path, limits: SubmitLimits) -> io::Result<Self> {
        match std::fs::remove_file(socket) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _gone => {}
        }
        let listener = UnixListener::bind(socket)?;
        std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o666))?;
        Ok(Self { listener, limits, places: Arc::default() })
    }

    /// Has `door` do what is submitted, until `stop` is true; what runs then may end.
    pub async fn serve(self, door: Arc<Door>, mut stop: watch::Receiver<bool>) {
        let Self { listener, limits, places } = self;
        let mut attended = JoinSet::new();
        loop {
            let due = door.repeats_due_at();
            tokio::select! {
                // A sender that is gone stops nothing any more, and there is nobody left to serve.
                _ = stop.wait_for(|stop| *stop) => break,
                Some(_ended) = attended.join_next() => {}
                () = sleep_until(due.unwrap_or_else(Instant::now).into()), if due.is_some() => door.tell_repeats(Instant::now()),
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => attend(&mut attended, stream, &door, limits, &places),
                    Err(error) => {
                        tracing::warn!(%error, "a job's connection cannot be accepted");
                        sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
        }
        drop(listener);
        let all = async { while attended.join_next().await.is_some() {} };
        let _ended_or_cut = timeout(limits.shutdown_grace, all).await;
        door.tell_repeats(Instant::now() + COUNTED_FOR);
    }
}

fn attend(attended: &mut JoinSet<()>, stream: UnixStream, door: &Arc<Door>, limits: SubmitLimits, places: &Arc<Places>) {
    let Ok(user) = stream.peer_cred().map(|peer| peer.uid()) else { return };
    match Places::take(places, user) {
        Ok(place) => {
            let door = Arc::clone(door);
            attended.spawn(async move {
                let was_refused = converse(&door, stream, limits, &place).await;
                if was_refused {
                    place.wait_at_most(REFUSED_PAUSE).await;
                }
                drop(place);
            });
        }
        // Small enough for the buffer of a socket that is new; and who does not take it will try again anyway.
        Err(refusal) => drop(line(&Answer::<Reply>::Error(refusal)).map(|line| stream.try_write(&line))),
    }
}

/// One submission; `true` if it was refused.
async fn converse(door: &Door, stream: UnixStream, limits: SubmitLimits, place: &Place) -> bool {
    let (read, mut write) = stream.into_split();
    let mut read = BufReader::new(read);
    let heard = tokio::select! {
        heard = hear(&mut read, limits) => heard,
        refusal = place.lost() => Err(refusal),
    };
    let settle = || place.release();
    let answer = match heard.and_then(|said| place.keep().map(|()| said)) {
        Ok(said) => tokio::select! {
            answer = door.submit(place.user(), &said, &settle) => answer,
            () = hung_up(&mut read) => return false,
        },
        Err(failure) => Err(failure),
    };
    let was_refused = answer.is_err();
    let answer = answer.map_or_else(Answer::Error, Answer::Result);
    if let Some(line) = line(&answer) {
        let _gone = timeout(ANSWER_TIMEOUT, write.write_all(&line)).await;
    }
    was_refused
}

/// The line that is said.
async fn hear(read: &mut BufReader<OwnedReadHalf>, limits: SubmitLimits) -> Result<Vec<u8>, Failure> {
    let (max_bytes, mut said) = (limits.line_max_bytes, Vec::new());
    let mut line = read.take(max_bytes.saturating_add(1));
    let Ok(heard) = timeout(limits.line_timeout, line.read_until(b'\n', &mut said)).await else {
        return Err(invalid(format!("the line was not said within limits.header_timeout, {:?}", limits.line_timeout)));
    };
    match heard {
        _ if said.pop_if(|last| *last == b'\n').is_some() => Ok(said),
        Ok(count) if u64::try_from(count).is_ok_and(|count| count > max_bytes) => {
            Err(invalid(format!("the line is longer than limits.body_max_bytes, {max_bytes}")))
        }
        Ok(_) => Err(invalid("the connection ended before the line did".to_owned())),
        Err(error) => Err(invalid(format!("the line cannot be read: {error}"))),
    }
}

/// Waits until nobody waits for the answer any more. Who says a second line before he has heard the answer to the first is as good as gone.
async fn hung_up(read: &mut BufReader<OwnedReadHalf>) {
    let _end_or_more = read.read(&mut [0]).await;
}

fn invalid(problem: String) -> Failure {
    Failure::new(ErrorCode::InvalidRequest, problem)
}

fn line(answer: &Answer<Reply>) -> Option<Vec<u8>> {
    let mut line = serde_json::to_vec(answer).inspect_err(|error| tracing::error!(%error, "an answer to a job cannot be written")).ok()?;
    line.push(b'\n');
    Some(line)
}
