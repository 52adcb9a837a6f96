//! The serving end: a thread for each connection, bounded in number, memory and time.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use kos_types::lease::{Epoch, ToLeader};
use kos_types::limits::LIST_ENTRIES_MAX;
use kos_types::{Error, Fabric, FileLock, Ino, Kind, Op, ROOT, Reply, Result};
use rustix::net::{Shutdown, sockopt::socket_peercred};

use crate::frame;
use crate::greeting::{self, Greeting};
use crate::leases::{self, LeaseOutbox};
use crate::limits::{
    ABOUT_BYTES_MAX, ANSWER_DEADLINE, CONNECTIONS_MAX, DATA_BYTES_MAX, FRAME_DEADLINE, LENT_FILES_MAX,
    LOCKS_TOLD_MAX, STRANGERS_MAX,
};
use crate::message::{
    Answer, Claim, ClientId, ControlInfo, Hello, Outcome, Request, Welcome, decode, encode,
};
use crate::socket;

/// Between tries to accept when the process has no file left for a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Between looks whether the last requests have ended.
const STOP_PAUSE: Duration = Duration::from_millis(2);

/// Who joins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Its process.
    pub pid: u32,
    /// Where it shows the fabric.
    pub dir: String,
    /// What mount(8) shows as the source there.
    pub source: String,
    /// Files of which it was lent copies; those of an earlier server are not known here.
    pub lent: Vec<Ino>,
    /// Locks that its programs hold, which an earlier server gave them.
    pub locks: Vec<(Ino, FileLock)>,
}

/// A fabric as one client has it.
pub trait Numbered: Fabric + 'static {
    /// The session whose proposals are numbered.
    fn claim(&self) -> Claim;

    /// [`Fabric::propose`], done once for each number; the client has the answers of all numbers up
    /// to `answered`.
    ///
    /// # Errors
    /// As `propose`; `Fenced` when the session is no more.
    fn propose_numbered(&self, seq: u64, answered: u64, op: Op) -> Result<Reply>;

    /// Of the leader that grants leases.
    fn term(&self) -> u64;

    /// There is a new connection for leases. What was sent over the last one and not received is lost.
    fn lease_begin(&self, outbox: LeaseOutbox);

    /// The client came with it from an earlier leader, and before that no file was unsealed.
    fn kept(&self) -> bool;

    /// The client said something over it.
    fn lease_message(&self, epoch: Epoch, message: ToLeader);

    /// The client will not come back once its connections are closed.
    fn leave(&self);
}

/// What stands behind a server.
pub trait Host: Send + Sync + 'static {
    /// Dropped when the client's last connection is gone.
    type Session: Numbered;

    /// Let a client in, with the session it has or, if that has ended, with a new one.
    ///
    /// # Errors
    /// `Busy` when there are too many.
    fn join(&self, peer: &Peer, claim: Option<Claim>) -> Result<Arc<Self::Session>>;

    /// The control files.
    fn control_files(&self) -> Vec<ControlInfo>;

    /// Contents of a control file.
    ///
    /// # Errors
    /// `NotFound`.
    fn control(&self, path: &str) -> Result<Vec<u8>>;

    /// Do what a write to a control file says.
    ///
    /// # Errors
    /// As the file says.
    fn write_control(&self, path: &str, bytes: &[u8]) -> Result<()>;
}

struct Shared<H: Host> {
    host: H,
    stopping: Arc<AtomicBool>,
    sessions: Mutex<HashMap<ClientId, Weak<H::Session>>>,
    connections: Mutex<Vec<(UnixStream, JoinHandle<()>)>>,
    /// Processes of other builds that the log has named.
    strangers: Mutex<BTreeSet<u32>>,
}

/// A listening server; it stops when this is dropped.
pub struct Server {
    path: PathBuf,
    listener: Arc<UnixListener>,
    stopping: Arc<AtomicBool>,
    end_connections: Box<dyn Fn() -> Result<()> + Send + Sync>,
    acceptor: Option<JoinHandle<()>>,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("path", &self.path).finish_non_exhaustive()
    }
}

/// Serve `host` at the socket `path`, in the place of whatever is there: the caller knows that no
/// other server lives. Only root and the caller's own user are let in.
///
/// # Errors
/// `Io` when the socket cannot be made.
pub fn serve<H: Host>(path: &Path, host: H) -> Result<Server> {
    let failed = |e: io::Error| Error::io(&format!("listen at {}", path.display()), &e);
    let listener = Arc::new(socket::listen(path).map_err(failed)?);
    let stopping = Arc::new(AtomicBool::new(false));
    let shared = Arc::new(Shared {
        host,
        stopping: Arc::clone(&stopping),
        sessions: Mutex::default(),
        connections: Mutex::default(),
        strangers: Mutex::default(),
    });
    let (accepting, accepts) = (Arc::clone(&shared), Arc::clone(&listener));
    let acceptor = thread::Builder::new()
        .name("rpc-accept".into())
        .spawn(move || accept(&accepting, &accepts))
        .map_err(failed)?;
    let end_connections = Box::new(move || shared.end_connections());
    let path = path.to_path_buf();
    Ok(Server { path, listener, stopping, end_connections, acceptor: Some(acceptor) })
}

impl Server {
    /// Answer what has been asked, let nobody ask more, and take the socket away.
    ///
    /// # Errors
    /// `TimedOut` when a request does not end.
    pub fn stop(mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        let Some(acceptor) = self.acceptor.take() else { return Ok(()) };
        let removed = std::fs::remove_file(&self.path);
        self.stopping.store(true, Ordering::SeqCst);
        // Wakes the acceptor.
        let woken = rustix::net::shutdown(&*self.listener, Shutdown::Both);
        woken.map_err(|e| Error::io("stop listening", &e.into()))?;
        if acceptor.join().is_err() {
            return Err(Error::new(Kind::Io, "stop listening: the acceptor panicked"));
        }
        (self.end_connections)()?;
        removed.map_err(|e| Error::io("remove the socket", &e))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Err(e) = self.end() {
            kos_types::log!("kos-rpc: {e}");
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn accept<H: Host>(shared: &Arc<Shared<H>>, listener: &UnixListener) {
    loop {
        let stream = loop {
            match listener.accept() {
                Ok((stream, _)) => break stream,
                Err(_) if shared.stopping.load(Ordering::SeqCst) => return,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => {
                    kos_types::log!("kos-rpc: accept: {e}; tried again");
                    thread::sleep(ACCEPT_PAUSE);
                }
            }
        };
        if shared.stopping.load(Ordering::SeqCst) {
            return;
        }
        if let Err(e) = admit(shared, stream) {
            kos_types::log!("kos-rpc: a connection was refused: {e}");
        }
    }
}

/// Let a connection in, or tell it why not.
fn admit<H: Host>(shared: &Arc<Shared<H>>, stream: UnixStream) -> Result<()> {
    let failed = |e: io::Error| Error::io("connection", &e);
    stream.set_read_timeout(Some(FRAME_DEADLINE)).map_err(failed)?;
    stream.set_write_timeout(Some(FRAME_DEADLINE)).map_err(failed)?;
    let peer = socket_peercred(&stream).map_err(|e| failed(e.into()))?;
    let known = peer.uid.is_root() || peer.uid == rustix::process::geteuid();
    // The list holds threads to their very end, so that none outlives a stop.
    let mut connections = lock(&shared.connections);
    connections.retain(|(_, thread)| !thread.is_finished());
    let refused = if !known {
        // A mount speaks for all users, so a user's own process may not.
        Some(Error::new(Kind::NotPermitted, format!("uid {} is not root", peer.uid.as_raw())))
    } else if connections.len() >= CONNECTIONS_MAX {
        Some(Error::new(Kind::Busy, format!("all {CONNECTIONS_MAX} connections are in use")))
    } else {
        None
    };
    if let Some(e) = refused {
        welcome(&stream, Err(&e)).map_err(failed)?;
        return Err(e);
    }
    let pid = peer.pid.as_raw_nonzero().get().unsigned_abs();
    let (own, for_stop) = (Arc::clone(shared), stream.try_clone().map_err(failed)?);
    let run = move || {
        let _closing = Closing(&stream);
        if let Err(e) = converse(&own, &stream, pid) {
            kos_types::log!("kos-rpc: the connection of process {pid} ended: {e}");
        }
    };
    let thread = thread::Builder::new().name("rpc".into()).spawn(run).map_err(failed)?;
    connections.push((for_stop, thread));
    Ok(())
}

/// Tells the other end, also after a panic: the server's list holds the socket open for longer.
struct Closing<'a>(&'a UnixStream);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        // It may have closed first.
        drop(self.0.shutdown(std::net::Shutdown::Both));
    }
}

impl<H: Host> Shared<H> {
    /// Whether a process that speaks otherwise has not been met yet, as far as is remembered.
    fn is_new_stranger(&self, pid: u32) -> bool {
        let mut strangers = lock(&self.strangers);
        if strangers.len() >= STRANGERS_MAX {
            strangers.clear();
        }
        strangers.insert(pid)
    }

    /// Ask every connection to end after its present request, and wait for that.
    fn end_connections(&self) -> Result<()> {
        let until = Instant::now() + ANSWER_DEADLINE;
        for (stream, thread) in lock(&self.connections).drain(..) {
            // What has been sent is still read. It may have ended by itself.
            drop(stream.shutdown(std::net::Shutdown::Read));
            while !thread.is_finished() {
                if Instant::now() > until {
                    return Err(Error::new(Kind::TimedOut, "stop serving: a request does not end"));
                }
                thread::sleep(STOP_PAUSE);
            }
        }
        Ok(())
    }

    /// The session of a client, and whether it began now.
    fn session(&self, hello: Hello, pid: u32) -> Result<(Arc<H::Session>, bool)> {
        if hello.dir.len() + hello.source.len() > ABOUT_BYTES_MAX {
            return Err(Error::new(Kind::Invalid, "hello: names too long"));
        }
        if hello.locks.len() > LOCKS_TOLD_MAX {
            return Err(Error::new(Kind::Invalid, "hello: more locks than are told at once"));
        }
        if hello.lent.len() > LENT_FILES_MAX {
            return Err(Error::new(Kind::Invalid, "hello: more copies than are lent"));
        }
        let mut sessions = lock(&self.sessions);
        sessions.retain(|_, session| session.strong_count() > 0);
        if let Some(session) = sessions.get(&hello.client).and_then(Weak::upgrade) {
            return Ok((session, false));
        }
        let peer = Peer { pid, dir: hello.dir, source: hello.source, lent: hello.lent, locks: hello.locks };
        let session = self.host.join(&peer, hello.claim)?;
        sessions.insert(hello.client, Arc::downgrade(&session));
        Ok((session, true))
    }
}

fn welcome(stream: &UnixStream, answer: std::result::Result<Welcome, &Error>) -> io::Result<()> {
    let answer = answer.map_err(|e| (e.kind(), e.to_string()));
    greeting::send(stream)?;
    frame::send(stream, &encode(&answer).map_err(io::Error::other)?, b"")
}

/// Serve one connection to its end.
fn converse<H: Host>(shared: &Shared<H>, stream: &UnixStream, pid: u32) -> io::Result<()> {
    let mut message = Vec::new();
    match greeting::receive(stream, Instant::now() + FRAME_DEADLINE) {
        Ok(Greeting::Same) => {}
        Ok(Greeting::Other(how)) => {
            greeting::send(stream)?;
            // A mount that stays tries at each request: once is enough.
            let first = shared.is_new_stranger(pid);
            return if first { Err(io::Error::new(ErrorKind::InvalidData, how)) } else { Ok(()) };
        }
        // It said nothing: a look whether somebody listens.
        Err(e) if e.kind() == ErrorKind::UnexpectedEof => return Ok(()),
        Err(e) => return Err(e),
    }
    let Some(_) = frame::receive(stream, &mut message)? else { return Ok(()) };
    let joined = decode::<Hello>(&message).and_then(|hello| {
        let (session, fresh) = shared.session(hello, pid)?;
        let (term, claim, born) = (session.term(), session.claim(), session.attr(ROOT)?.btime);
        Ok((Welcome { fresh, kept: session.kept(), term, claim, born }, session))
    });
    let session = match joined {
        Ok((words, session)) => {
            welcome(stream, Ok(words))?;
            session
        }
        Err(e) => {
            welcome(stream, Err(&e))?;
            return Err(io::Error::other(e));
        }
    };
    let mut data = Vec::new();
    loop {
        let header = match frame::receive(stream, &mut message) {
            Ok(Some(header)) => header,
            Ok(None) => return Ok(()),
            // Nothing to do.
            Err(e) if frame::is_late(&e) => continue,
            Err(e) => return Err(e),
        };
        data.resize(header.data, 0);
        frame::fill(stream, &mut data, Instant::now() + FRAME_DEADLINE)?;
        let request = decode(&message);
        if request == Ok(Request::Leases) {
            frame::send(stream, &encode(&Outcome::Ok(Answer::Done)).map_err(io::Error::other)?, b"")?;
            return leases::serve(&*session, stream);
        }
        let mut copy = None;
        let answer =
            request.and_then(|request| answer(&shared.host, &*session, request, &mut data, &mut copy));
        // Only an answer of its own kind has bytes behind it.
        if answer != Ok(Answer::Data) {
            data.clear();
        }
        let outcome: Outcome = answer.map_err(|e| (e.kind(), e.to_string()));
        let message = encode(&outcome).map_err(io::Error::other)?;
        frame::send_file(stream, &message, &data, copy.as_ref().map(File::as_fd))?;
    }
}

/// Answers with bytes in `data`, and with a file in `copy`.
fn answer<H: Host>(
    host: &H,
    session: &H::Session,
    request: Request,
    data: &mut Vec<u8>,
    copy: &mut Option<File>,
) -> Result<Answer> {
    Ok(match request {
        Request::Propose { seq, answered, op } => Answer::Reply(session.propose_numbered(seq, answered, op)?),
        Request::Lookup(parent, name) => Answer::Attr(session.lookup(parent, &name)?),
        Request::Attr(ino) => Answer::Attr(session.attr(ino)?),
        Request::Parent(dir) => Answer::Ino(session.parent(dir)?),
        Request::List { dir, after, max } => {
            Answer::Entries(session.list(dir, after, (max as usize).min(LIST_ENTRIES_MAX))?)
        }
        Request::Readlink(ino) => Answer::Bytes(session.readlink(ino)?),
        Request::Xattr(ino, name) => Answer::Bytes(session.xattr(ino, &name)?),
        Request::Xattrs(ino) => Answer::Names(session.xattrs(ino)?),
        Request::Policy(ino) => Answer::Policy(session.policy(ino)?),
        Request::Sharing(ino) => Answer::Sharing(session.sharing(ino)?),
        Request::Extents { ino, off, len } => Answer::Extents(session.extents(ino, off, len)?),
        Request::WriteStripe(policy) => Answer::Stripe(session.write_stripe(policy, data)?),
        Request::ReadStripe { stripe, at, len } => {
            let len = len as usize;
            if len > DATA_BYTES_MAX {
                return Err(Error::new(Kind::Invalid, "read: longer than a stripe"));
            }
            data.resize(len, 0);
            session.read_stripe(stripe, at, data)?;
            Answer::Data
        }
        Request::Reserve { ino, bytes, grows } => {
            session.reserve(ino, bytes, grows)?;
            Answer::Done
        }
        Request::Release { ino, bytes } => {
            session.release(ino, bytes);
            Answer::Done
        }
        Request::Leases => return Err(Error::new(Kind::Invalid, "leases: on a connection of their own")),
        Request::Sync => session.sync().map(|()| Answer::Done)?,
        Request::Usage => Answer::Usage(session.usage()?),
        Request::Open(ino, access, times) => {
            let mut attr = session.open(ino, access)?;
            for _ in 1..times {
                attr = session.open(ino, access)?;
            }
            Answer::Attr(attr)
        }
        Request::Close(ino, access) => {
            session.close(ino, access);
            Answer::Done
        }
        Request::WantCopy(ino) => {
            session.want_copy(ino);
            Answer::Done
        }
        Request::LendCopy(ino) => {
            *copy = session.lend_copy(ino);
            Answer::Copy(copy.is_some())
        }
        Request::ReturnCopy(ino) => {
            session.return_copy(ino);
            Answer::Done
        }
        Request::Snapshots => Answer::Snapshots(session.snapshots()?),
        Request::Job(id) => Answer::Job(session.job(id)?),
        Request::JobSpec(id) => Answer::Bytes(session.job_spec(id)?),
        Request::JobOf(dir) => Answer::JobOf(session.job_of(dir)?),
        Request::JobsChanged { seen, wait } => {
            Answer::Count(session.jobs_changed(seen, wait.min(FRAME_DEADLINE))?)
        }
        Request::TestLock(ino, lock) => Answer::Lock(session.test_lock(ino, &lock)?),
        Request::SetLock(ino, lock, wait) => Answer::LockSet(session.set_lock(ino, &lock, wait)?),
        Request::CancelLock(request) => session.cancel_lock(request).map(|()| Answer::Done)?,
        Request::LocksChanged { seen, wait } => {
            Answer::Count(session.locks_changed(seen, wait.min(FRAME_DEADLINE))?)
        }
        Request::Leave => {
            session.leave();
            Answer::Done
        }
        Request::ControlFiles => Answer::ControlFiles(host.control_files()),
        Request::Control(path) => Answer::Bytes(host.control(&path)?),
        Request::WriteControl(path, bytes) => {
            host.write_control(&path, &bytes)?;
            Answer::Done
        }
    })
}
