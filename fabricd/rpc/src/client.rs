//! The asking end: a fabric whose other half is behind a socket, and may be away for a while.

mod fabric;

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::io::{self, ErrorKind, Read};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use kos_types::{Access, Attr, Error, Ino, Kind, LockAnswer, Result, SessionId, Time};

use crate::frame;
use crate::greeting::{self, Greeting};
use crate::held::Held;
use crate::leases::refused;
use crate::limits::{ANSWER_DEADLINE, CLIENT_CONNECTIONS_MAX, FRAME_DEADLINE, LOCKS_TOLD_MAX};
use crate::loans::Loans;
use crate::message::{
    Answer, Claim, ClientId, ControlInfo, Hello, Outcome, Request, Welcome, decode, encode,
};
use crate::socket;

/// Between tries to connect.
const CONNECT_PAUSE: Duration = Duration::from_millis(50);

/// Whom a client asks, and as whom.
#[derive(Debug, Clone)]
pub struct Options {
    /// The socket.
    pub socket: PathBuf,
    /// Where the fabric is shown: for those who look at the server.
    pub dir: String,
    /// What mount(8) shows as the source there.
    pub source: String,
    /// How long a request waits for a server that is away.
    pub patience: Duration,
}

/// The fabric behind a socket.
pub struct Client {
    options: Options,
    /// Another one with each session that it asked for.
    number: Mutex<ClientId>,
    /// Birth of the root, as first met.
    born: OnceLock<Time>,
    /// The session it has; another one when it was away for too long.
    claim: Mutex<Option<(Claim, u64)>>,
    pool: Mutex<Pool>,
    returned: Condvar,
    /// Opens that the server knows of, to be told again to one that has forgotten.
    held: Mutex<HashMap<(Ino, Access), u32>>,
    /// Locks that the server knows of, likewise.
    locks: Mutex<Held>,
    /// Copies that it was lent, likewise.
    loans: Mutex<Loans>,
    proposals: Mutex<Proposals>,
}

/// Numbers of proposals, from 1.
#[derive(Default)]
struct Proposals {
    last: u64,
    /// Those without an answer yet.
    waiting: BTreeSet<u64>,
}

#[derive(Default)]
struct Pool {
    idle: Vec<Connection>,
    /// Idle ones, and those in use.
    open: usize,
}

struct Connection {
    stream: UnixStream,
    /// The session it belongs to.
    claim: Claim,
    /// The server's.
    term: u64,
}

/// Where an answer's bytes go, and the file that came with it.
#[derive(Default)]
struct Gets<'a> {
    bytes: &'a mut [u8],
    file: Option<OwnedFd>,
}

/// How a connection ended in the middle of a request.
enum Lost {
    /// The server never had it whole.
    Unsent(io::Error),
    /// It may or may not have been done.
    Unanswered(io::Error),
}

/// Why a connection was not made.
pub(crate) enum Refused {
    /// Nobody listens; a server may come.
    Nobody(String),
    /// A server may get room.
    ForNow(String),
    ForGood(Error),
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("options", &self.options).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn away(why: impl fmt::Display) -> Error {
    Error::new(Kind::Io, why.to_string())
}

fn unexpected(answer: &Answer) -> Error {
    Error::new(Kind::Io, format!("rpc: unexpected answer {answer:?}"))
}

impl Client {
    /// Connect, waiting for a server for at most `wait`.
    ///
    /// # Errors
    /// `Io` when nobody answers; `NotPermitted`.
    pub fn connect(options: Options, wait: Duration) -> Result<Self> {
        let client = Self {
            options,
            number: Mutex::new(new_number()?),
            born: OnceLock::new(),
            claim: Mutex::default(),
            pool: Mutex::default(),
            returned: Condvar::new(),
            held: Mutex::default(),
            locks: Mutex::default(),
            loans: Mutex::default(),
            proposals: Mutex::default(),
        };
        client.lend(Instant::now() + wait)?.give_back();
        Ok(client)
    }

    /// The session it has now, and the term of whoever gave it.
    ///
    /// # Errors
    /// `Io` when it has none.
    pub fn session(&self) -> Result<(Claim, u64)> {
        let claim = *lock(&self.claim);
        claim.ok_or_else(|| away("no session"))
    }

    /// Have another session: what the present one holds is lost.
    ///
    /// # Errors
    /// `Io` when nobody answers.
    pub fn renew_session(&self) -> Result<()> {
        *lock(&self.number) = new_number()?;
        *lock(&self.claim) = None;
        self.hang_up();
        self.lend(Instant::now())?.give_back();
        Ok(())
    }

    /// A connection that is for leases, its session, and the term of the leader at its other end.
    pub(crate) fn connect_for_leases(&self) -> std::result::Result<(UnixStream, SessionId, u64), Refused> {
        let connection = self.connect_once()?;
        let request = encode(&Request::Leases).map_err(Refused::ForGood)?;
        match talk(&connection.stream, &request, b"", &mut Gets::default()) {
            Ok(Ok(Answer::Done)) => Ok((connection.stream, connection.claim.session, connection.term)),
            Ok(other) => Err(Refused::ForGood(refused(&other))),
            Err(Lost::Unsent(e) | Lost::Unanswered(e)) => Err(Refused::ForNow(e.to_string())),
        }
    }

    /// The server's control files.
    ///
    /// # Errors
    /// `Io`.
    pub fn control_files(&self) -> Result<Vec<ControlInfo>> {
        match self.ask(&Request::ControlFiles)? {
            Answer::ControlFiles(files) => Ok(files),
            other => Err(unexpected(&other)),
        }
    }

    /// Contents of one.
    ///
    /// # Errors
    /// `NotFound`, `Io`.
    pub fn control(&self, path: &str) -> Result<Vec<u8>> {
        self.bytes(&Request::Control(path.to_owned()))
    }

    /// Write to one.
    ///
    /// # Errors
    /// As the file says; `Io`.
    pub fn write_control(&self, path: &str, bytes: &[u8]) -> Result<()> {
        self.ask(&Request::WriteControl(path.to_owned(), bytes.to_vec())).map(drop)
    }

    /// The mount is gone: the session ends now, and not only when it is missed for long.
    ///
    /// # Errors
    /// `Io` when nobody answers; the session then ends by itself.
    pub fn leave(&self) -> Result<()> {
        let left = self.ask_once(&Request::Leave);
        self.hang_up();
        left.map(drop)
    }

    fn ask(&self, request: &Request) -> Result<Answer> {
        self.exchange(request, b"", &mut Gets::default(), self.options.patience)
    }

    /// The same, without waiting for a server that is away.
    fn ask_once(&self, request: &Request) -> Result<Answer> {
        self.exchange(request, b"", &mut Gets::default(), Duration::ZERO)
    }

    fn bytes(&self, request: &Request) -> Result<Vec<u8>> {
        match self.ask(request)? {
            Answer::Bytes(bytes) => Ok(bytes),
            other => Err(unexpected(&other)),
        }
    }

    fn attributes(&self, request: &Request) -> Result<Attr> {
        match self.ask(request)? {
            Answer::Attr(attr) => Ok(attr),
            other => Err(unexpected(&other)),
        }
    }

    /// Ask until it is answered, as often as that is safe and for as long as is allowed.
    fn exchange(
        &self,
        request: &Request,
        data: &[u8],
        out: &mut Gets<'_>,
        patience: Duration,
    ) -> Result<Answer> {
        let message = encode(request)?;
        if message.len() > crate::limits::MESSAGE_BYTES_MAX {
            return Err(Error::new(Kind::TooLarge, "rpc: the request is too long"));
        }
        let until = Instant::now() + patience;
        let mut asked_in = None;
        loop {
            let lent = self.lend(until)?;
            let Some(Connection { stream, claim, .. }) = &lent.connection else {
                return Err(away("a connection without a socket"));
            };
            // Another session does not know whether it was done in the first.
            if matches!(request, Request::Propose { .. }) && asked_in.is_some_and(|first| first != *claim) {
                lent.give_back();
                return Err(away("the session ended meanwhile: it may have been done or not"));
            }
            let claim = *claim;
            match talk(stream, &message, data, out) {
                Ok(answer) => {
                    lent.give_back();
                    return answer.map_err(|(kind, step)| Error::new(kind, step));
                }
                Err(lost) => {
                    drop(lent);
                    // The others of the same server are gone too; those that are not cost nothing.
                    self.hang_up();
                    let (Lost::Unsent(e) | Lost::Unanswered(e)) = &lost;
                    // One that is only late may be under way still: not beside itself.
                    let over = matches!(&lost, Lost::Unanswered(e) if !frame::is_late(e));
                    let again = matches!(lost, Lost::Unsent(_)) || over && request.repeatable();
                    if !again {
                        return Err(away(format!(
                            "the daemon went away ({e}): it may have been done or not"
                        )));
                    }
                    if Instant::now() > until {
                        return Err(away(format!("the daemon does not answer: {e}")));
                    }
                    if over {
                        asked_in = asked_in.or(Some(claim));
                    }
                }
            }
        }
    }

    fn hang_up(&self) {
        let mut pool = lock(&self.pool);
        pool.open -= pool.idle.len();
        pool.idle.clear();
    }

    fn lend(&self, until: Instant) -> Result<Lent<'_>> {
        let mut pool = lock(&self.pool);
        loop {
            if let Some(connection) = pool.idle.pop() {
                return Ok(Lent { client: self, connection: Some(connection) });
            }
            if pool.open < CLIENT_CONNECTIONS_MAX {
                pool.open += 1;
                break;
            }
            if Instant::now() > until + ANSWER_DEADLINE {
                return Err(Error::new(Kind::TimedOut, "rpc: every connection is in use"));
            }
            pool =
                self.returned.wait_timeout(pool, ANSWER_DEADLINE).unwrap_or_else(PoisonError::into_inner).0;
        }
        drop(pool);
        let connection = self.connect_until(until).inspect_err(|_| {
            lock(&self.pool).open -= 1;
            self.returned.notify_one();
        })?;
        Ok(Lent { client: self, connection: Some(connection) })
    }

    fn connect_until(&self, until: Instant) -> Result<Connection> {
        loop {
            match self.connect_once() {
                Ok(connection) => return Ok(connection),
                Err(Refused::ForGood(e)) => return Err(e),
                Err(Refused::Nobody(why) | Refused::ForNow(why))
                    if Instant::now() + CONNECT_PAUSE > until =>
                {
                    let socket = self.options.socket.display();
                    return Err(away(format!("no daemon answers at {socket} ({why}); start it: kos up")));
                }
                Err(Refused::Nobody(_) | Refused::ForNow(_)) => thread::sleep(CONNECT_PAUSE),
            }
        }
    }

    fn connect_once(&self) -> std::result::Result<Connection, Refused> {
        let for_now = |e: io::Error| Refused::ForNow(e.to_string());
        let stream = socket::connect(&self.options.socket).map_err(|e| match e.kind() {
            ErrorKind::PermissionDenied => {
                Refused::ForGood(Error::new(Kind::NotPermitted, "only root may connect"))
            }
            ErrorKind::NotFound | ErrorKind::ConnectionRefused => Refused::Nobody(e.to_string()),
            _ => for_now(e),
        })?;
        stream.set_write_timeout(Some(FRAME_DEADLINE)).map_err(for_now)?;
        stream.set_read_timeout(Some(ANSWER_DEADLINE)).map_err(for_now)?;
        let asked_as = *lock(&self.number);
        let hello = Hello {
            client: asked_as,
            claim: lock(&self.claim).map(|(claim, _)| claim),
            lent: lock(&self.loans).all(),
            locks: lock(&self.locks).all().into_iter().take(LOCKS_TOLD_MAX).collect(),
            dir: self.options.dir.clone(),
            source: self.options.source.clone(),
        };
        let hello = encode(&hello).map_err(Refused::ForGood)?;
        // A server without room has its answer ready and listens to nothing.
        let said = greeting::send(&stream).and_then(|()| frame::send(&stream, &hello, b""));
        let heard = greeting::receive(&stream, Instant::now() + FRAME_DEADLINE).map_err(for_now)?;
        if let Greeting::Other(how) = heard {
            let why = format!("the daemon cannot be asked: {how}: install both anew, umount and mount again");
            return Err(Refused::ForGood(Error::new(Kind::Io, why)));
        }
        let mut message = Vec::new();
        let welcome = match frame::receive(&stream, &mut message) {
            Ok(Some(_)) => {
                decode::<std::result::Result<Welcome, (Kind, String)>>(&message).map_err(Refused::ForGood)?
            }
            Ok(None) => return Err(Refused::ForNow("it closed the connection".to_owned())),
            Err(e) => return Err(for_now(e)),
        };
        let welcome = welcome.map_err(|(kind, why)| match kind {
            Kind::NotPermitted | Kind::Invalid => Refused::ForGood(Error::new(kind, why)),
            _ => Refused::ForNow(why),
        })?;
        said.map_err(for_now)?;
        if *self.born.get_or_init(|| welcome.born) != welcome.born {
            let why = "another filesystem is behind the socket now: unmount, and mount that one";
            return Err(Refused::ForGood(Error::new(Kind::Io, why)));
        }
        {
            // A session that was given up since is not taken again.
            let number = lock(&self.number);
            if *number != asked_as {
                return Err(Refused::ForNow("the session was given up".to_owned()));
            }
            *lock(&self.claim) = Some((welcome.claim, welcome.term));
        }
        if !welcome.kept {
            lock(&self.loans).forgotten(welcome.term);
        }
        if welcome.fresh {
            self.open_again(&stream).map_err(Refused::ForNow)?;
        }
        Ok(Connection { stream, claim: welcome.claim, term: welcome.term })
    }

    /// Tell a server that knows nothing of it what is open here.
    fn open_again(&self, stream: &UnixStream) -> std::result::Result<(), String> {
        let held: Vec<_> = lock(&self.held).iter().map(|(&open, &times)| (open, times)).collect();
        for ((ino, access), times) in held {
            let request = encode(&Request::Open(ino, access, times)).map_err(|e| e.to_string())?;
            match talk(stream, &request, b"", &mut Gets::default()) {
                // An inode that is gone answers so when it is used.
                Ok(_) => {}
                Err(Lost::Unsent(e) | Lost::Unanswered(e)) => return Err(e.to_string()),
            }
        }
        for (ino, lock) in lock(&self.locks).all() {
            let request = encode(&Request::SetLock(ino, lock, None)).map_err(|e| e.to_string())?;
            match talk(stream, &request, b"", &mut Gets::default()) {
                Ok(Ok(Answer::LockSet(LockAnswer::Granted))) => {}
                // Another mount was faster.
                Ok(other) => kos_types::log!("kos-rpc: a lock on inode {} is lost: {other:?}", ino.0),
                Err(Lost::Unsent(e) | Lost::Unanswered(e)) => return Err(e.to_string()),
            }
        }
        Ok(())
    }
}

fn new_number() -> Result<ClientId> {
    let mut random = [0; 16];
    let urandom = std::fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut random));
    urandom.map_err(|e| Error::io("session number", &e))?;
    Ok(ClientId(u128::from_le_bytes(random)))
}

/// One request and its answer.
fn talk(
    stream: &UnixStream,
    message: &[u8],
    data: &[u8],
    out: &mut Gets<'_>,
) -> std::result::Result<Outcome, Lost> {
    frame::send(stream, message, data).map_err(Lost::Unsent)?;
    let mut answer = Vec::new();
    out.file = None;
    let header = match frame::receive_file(stream, &mut answer, &mut out.file) {
        Ok(Some(header)) => header,
        Ok(None) => return Err(Lost::Unanswered(ErrorKind::UnexpectedEof.into())),
        Err(e) => return Err(Lost::Unanswered(e)),
    };
    let broken = |why: String| Lost::Unanswered(io::Error::new(ErrorKind::InvalidData, why));
    let outcome: Outcome = decode(&answer).map_err(|e| broken(e.to_string()))?;
    let expected = if outcome == Ok(Answer::Data) { out.bytes.len() } else { 0 };
    if header.data != expected {
        return Err(broken(format!("{} bytes where {expected} were asked for", header.data)));
    }
    frame::fill(stream, &mut out.bytes[..expected], Instant::now() + FRAME_DEADLINE)
        .map_err(Lost::Unanswered)?;
    Ok(outcome)
}

/// A connection while it is in use; dropped, it is closed.
struct Lent<'a> {
    client: &'a Client,
    connection: Option<Connection>,
}

impl Lent<'_> {
    /// It works: for the next request.
    fn give_back(mut self) {
        let connection = self.connection.take();
        let mut pool = lock(&self.client.pool);
        pool.open += 1;
        pool.idle.extend(connection);
    }
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        lock(&self.client.pool).open -= 1;
        self.client.returned.notify_one();
    }
}
