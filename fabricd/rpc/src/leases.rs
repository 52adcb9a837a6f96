//! The connection of a client that carries leases: both ends speak at any time.

use std::fmt;
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use kos_types::lease::{Epoch, ToClient, ToLeader};
use kos_types::{Error, Kind, Result, SessionId};
use serde::Serialize;

use crate::client::{Client, Refused};
use crate::frame;
use crate::limits::LEASE_MESSAGES_MAX;
use crate::message::{decode, encode};
use crate::server::Numbered;

/// Where the server's words to a client go: called in order, and never waits.
pub type LeaseOutbox = Box<dyn FnMut(Epoch, ToClient) + Send>;

/// Between tries to connect.
const PAUSE: Duration = Duration::from_millis(20);

/// What hears of leases at the client.
pub trait LeaseEnd: Send + Sync + 'static {
    /// There is a new connection of this session, to the leader of `term`. Without interest in it, it is
    /// closed.
    fn connected(&self, session: SessionId, term: u64) -> bool;

    /// The leader said something over the connection of this session.
    fn received(&self, session: SessionId, epoch: Epoch, message: ToClient);

    /// It is gone.
    fn disconnected(&self);

    /// Nobody listens at the socket: there is no leader now.
    fn leaderless(&self);
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What is sent, until there is nothing.
type Waiting<M> = Receiver<Option<(Epoch, M)>>;

/// Frames that wait to be sent, and the connection they go to. When there are too many, it is closed: the next
/// one begins anew.
struct Outgoing<M> {
    session: SessionId,
    queue: SyncSender<Option<(Epoch, M)>>,
    stream: UnixStream,
}

impl<M> Outgoing<M> {
    fn new(stream: &UnixStream, session: SessionId) -> io::Result<(Self, Waiting<M>)> {
        let (queue, waiting) = mpsc::sync_channel(LEASE_MESSAGES_MAX);
        Ok((Self { session, queue, stream: stream.try_clone()? }, waiting))
    }

    fn push(&self, epoch: Epoch, message: M) {
        if self.queue.try_send(Some((epoch, message))).is_err() {
            self.close();
        }
    }

    fn close(&self) {
        // It may be closed already.
        drop(self.stream.shutdown(std::net::Shutdown::Both));
    }
}

/// Send what comes until there is nothing, or nobody.
fn write_all<M: Serialize>(stream: &UnixStream, waiting: &Waiting<M>) {
    while let Ok(Some(message)) = waiting.recv() {
        let sent = encode(&message).map_err(io::Error::other).and_then(|m| frame::send(stream, &m, b""));
        if let Err(e) = sent {
            if e.kind() != io::ErrorKind::BrokenPipe {
                kos_types::log!("kos-rpc: leases: {e}");
            }
            drop(stream.shutdown(std::net::Shutdown::Both));
            return;
        }
    }
}

/// Give all messages that come to `hear`, until the connection ends.
fn read_all<M: serde::de::DeserializeOwned>(
    stream: &UnixStream,
    mut hear: impl FnMut(Epoch, M),
) -> io::Result<()> {
    let mut bytes = Vec::new();
    loop {
        match frame::receive(stream, &mut bytes) {
            Ok(Some(header)) if header.data == 0 => {}
            Ok(Some(_)) => return Err(io::Error::new(io::ErrorKind::InvalidData, "leases: bytes")),
            Ok(None) => return Ok(()),
            Err(e) if frame::is_late(&e) => continue,
            Err(e) => return Err(e),
        }
        let (epoch, message) = decode(&bytes).map_err(io::Error::other)?;
        hear(epoch, message);
    }
}

/// Serve a client's connection of leases to its end.
pub(crate) fn serve<S: Numbered>(session: &S, stream: &UnixStream) -> io::Result<()> {
    let (outgoing, waiting) = Outgoing::new(stream, session.claim().session)?;
    let end = outgoing.queue.clone();
    session.lease_begin(Box::new(move |epoch, message: ToClient| outgoing.push(epoch, message)));
    thread::scope(|scope| {
        let writer = thread::Builder::new().name("rpc-leases".into());
        let writer = writer.spawn_scoped(scope, move || write_all(stream, &waiting))?;
        let read = read_all(stream, |epoch, message| session.lease_message(epoch, message));
        // The queue may be full, but then its writer has nobody to write to, and ends by itself.
        drop(stream.shutdown(std::net::Shutdown::Both));
        drop(end.try_send(None));
        drop(writer.join());
        read
    })
}

struct Shared {
    client: Arc<Client>,
    outgoing: Mutex<Option<Arc<Outgoing<ToLeader>>>>,
    stopping: AtomicBool,
}

/// A client's connection of leases: made again whenever it is lost, until this is dropped.
pub struct LeaseLink {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl fmt::Debug for LeaseLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LeaseLink").finish_non_exhaustive()
    }
}

impl LeaseLink {
    /// Not connected before [`Self::start`].
    #[must_use]
    pub fn new(client: Arc<Client>) -> Self {
        let shared = Shared { client, outgoing: Mutex::default(), stopping: AtomicBool::new(false) };
        Self { shared: Arc::new(shared), thread: Mutex::default() }
    }

    /// Connect, and tell `end` what comes.
    ///
    /// # Errors
    /// `Io` when there is no thread.
    pub fn start(&self, end: Arc<dyn LeaseEnd>) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        let thread = thread::Builder::new()
            .name("lease-link".into())
            .spawn(move || shared.run(&*end))
            .map_err(|e| Error::io("leases: thread", &e))?;
        *lock(&self.thread) = Some(thread);
        Ok(())
    }

    /// Say something for a session over the present connection; lost without one of that session.
    pub fn send(&self, session: SessionId, epoch: Epoch, message: ToLeader) {
        let outgoing = lock(&self.shared.outgoing);
        if let Some(outgoing) = outgoing.as_ref().filter(|outgoing| outgoing.session == session) {
            outgoing.push(epoch, message);
        }
    }

    /// Close the present connection; the next is of the session that the client has then.
    pub fn reconnect(&self) {
        if let Some(outgoing) = &*lock(&self.shared.outgoing) {
            outgoing.close();
        }
    }
}

impl Drop for LeaseLink {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        self.reconnect();
        if lock(&self.thread).take().is_some_and(|thread| thread.join().is_err()) {
            kos_types::log!("kos-rpc: the thread of leases panicked");
        }
    }
}

impl Shared {
    fn run(&self, end: &dyn LeaseEnd) {
        while !self.stopping.load(Ordering::SeqCst) {
            match self.client.connect_for_leases() {
                Ok((stream, session, term)) => {
                    if let Err(e) = self.converse(&stream, session, term, end) {
                        kos_types::log!("kos-rpc: the connection of leases ended: {e}");
                    }
                    end.disconnected();
                }
                Err(Refused::Nobody(_)) => {
                    end.disconnected();
                    end.leaderless();
                }
                // The client's own requests say so.
                Err(Refused::ForNow(_) | Refused::ForGood(_)) => end.disconnected(),
            }
            thread::sleep(PAUSE);
        }
    }

    fn converse(
        &self,
        stream: &UnixStream,
        session: SessionId,
        term: u64,
        end: &dyn LeaseEnd,
    ) -> io::Result<()> {
        let (outgoing, waiting) = Outgoing::new(stream, session)?;
        let outgoing = Arc::new(outgoing);
        thread::scope(|scope| {
            let writer = thread::Builder::new().name("lease-send".into());
            let writer = writer.spawn_scoped(scope, move || write_all(stream, &waiting))?;
            *lock(&self.outgoing) = Some(Arc::clone(&outgoing));
            let read = if end.connected(session, term) {
                read_all(stream, |epoch, message| end.received(session, epoch, message))
            } else {
                Ok(())
            };
            *lock(&self.outgoing) = None;
            outgoing.close();
            drop(outgoing.queue.try_send(None));
            drop(writer.join());
            read
        })
    }
}

/// What the client answers instead of a connection for leases.
pub(crate) fn refused(answer: &impl fmt::Debug) -> Error {
    Error::new(Kind::Io, format!("leases: unexpected answer {answer:?}"))
}
