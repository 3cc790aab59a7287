//! How long a connection may keep us waiting: for a request, for the rest of its head, for taking its answer.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::rt::{Read, ReadBufCursor, Write};
use tokio::time::{Instant, sleep_until};

/// What a connection is doing, and since when.
#[derive(Debug)]
pub(super) struct Pulse {
    phase: Mutex<Phase>,
    idle_timeout: Duration,
    header_timeout: Duration,
}

#[derive(Debug, Clone, Copy)]
enum Phase {
    /// No request is under way since then, nor has any of an answer been taken.
    Idle(Instant),
    /// The first bytes of a request came then.
    Head(Instant),
    /// The head of a request was there then, and its body, which has a limit of its own, is being read.
    Body(Instant),
    /// A request is being answered, which has limits of its own.
    Busy,
}

/// A request is being read and answered until this is dropped.
#[derive(Debug)]
pub(super) struct Busy(Arc<Pulse>);

impl Busy {
    /// All of the request is here.
    pub(super) fn has_read_all(&self) {
        self.0.enter(Phase::Busy);
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.enter(Phase::Idle(Instant::now()));
    }
}

impl Pulse {
    pub(super) fn new(idle_timeout: Duration, header_timeout: Duration) -> Self {
        Self { phase: Mutex::new(Phase::Idle(Instant::now())), idle_timeout, header_timeout }
    }

    /// The head of a request is here.
    pub(super) fn has_read_head(self: &Arc<Self>) -> Busy {
        self.enter(Phase::Body(Instant::now()));
        Busy(Arc::clone(self))
    }

    /// Since when the connection keeps us waiting; none while we are answering.
    pub(super) fn waiting_since(&self) -> Option<Instant> {
        match self.phase() {
            Phase::Idle(since) | Phase::Head(since) | Phase::Body(since) => Some(since),
            Phase::Busy => None,
        }
    }

    /// Until the connection has kept us waiting too long. It looks at least once in the shorter of the two limits, for the phase, and the
    /// deadline with it, changes meanwhile.
    pub(super) async fn stopped(&self) {
        loop {
            let now = Instant::now();
            let look = now + self.idle_timeout.min(self.header_timeout);
            match self.deadline() {
                Some(deadline) if deadline <= now => return,
                Some(deadline) => sleep_until(deadline.min(look)).await,
                None => sleep_until(look).await,
            }
        }
    }

    fn deadline(&self) -> Option<Instant> {
        match self.phase() {
            Phase::Idle(since) => Some(since + self.idle_timeout),
            Phase::Head(since) => Some(since + self.header_timeout),
            Phase::Body(_) | Phase::Busy => None,
        }
    }

    fn phase(&self) -> Phase {
        *self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, phase: Phase) {
        *self.phase.lock().unwrap_or_else(PoisonError::into_inner) = phase;
    }

    fn has_read(&self) {
        let mut phase = self.phase.lock().unwrap_or_else(PoisonError::into_inner);
        if let Phase::Idle(_) = *phase {
            *phase = Phase::Head(Instant::now());
        }
    }

    fn has_written(&self) {
        let mut phase = self.phase.lock().unwrap_or_else(PoisonError::into_inner);
        if let Phase::Idle(_) = *phase {
            *phase = Phase::Idle(Instant::now());
        }
    }
}

/// A stream that tells its pulse what passes.
#[derive(Debug)]
pub(super) struct Watched<S> {
    stream: S,
    pulse: Arc<Pulse>,
}

impl<S> Watched<S> {
    pub(super) fn new(stream: S, pulse: Arc<Pulse>) -> Self {
        Self { stream, pulse }
    }

    fn told(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if matches!(written, Poll::Ready(Ok(length)) if length > 0) {
            self.pulse.has_written();
        }
        written
    }
}

impl<S: Read + Unpin> Read for Watched<S> {
    fn poll_read(mut self: Pin<&mut Self>, task: &mut Context<'_>, buffer: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(task, buffer);
        // Or it is the stream's end, after which nothing matters.
        if matches!(read, Poll::Ready(Ok(()))) {
            self.pulse.has_read();
        }
        read
    }
}

impl<S: Write + Unpin> Write for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, task: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(task, bytes);
        self.told(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(task)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(task)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, task: &mut Context<'_>, slices: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(task, slices);
        self.told(written)
    }
}
