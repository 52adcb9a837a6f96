//! The mount's leases: what holds them, and the connection to who grants them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use kos_core::lease::Limits;
use kos_lease::{Holder, Link, Opened};
use kos_rpc::{Client, LeaseEnd, LeaseLink};
use kos_types::lease::{Cache, Epoch, ToClient, ToLeader};
use kos_types::{Result, SessionId};

/// The way to the daemon.
struct Socket {
    client: Arc<Client>,
    link: LeaseLink,
    /// The session that was opened last: words of an earlier one's connection are not for it.
    current: Mutex<Option<SessionId>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Link for Socket {
    fn send(&self, epoch: Epoch, message: ToLeader) {
        if let Some(session) = *lock(&self.current) {
            self.link.send(session, epoch, message);
        }
    }

    fn open(&self) -> Result<Opened> {
        if lock(&self.current).take().is_some() {
            if let Err(e) = self.client.leave() {
                kos_types::log!("mount.kosfs: the lost session ends by itself: {e}");
            }
            self.client.renew_session()?;
            self.link.reconnect();
        }
        let (claim, term) = self.client.session()?;
        *lock(&self.current) = Some(claim.session);
        Ok(Opened { session: claim.session, epoch: Epoch(claim.epoch), term })
    }
}

/// What hears of the connection.
struct End {
    holder: Weak<Holder>,
    socket: Arc<Socket>,
}

impl End {
    /// If the words are for the present session.
    fn holder(&self, session: SessionId) -> Option<Arc<Holder>> {
        self.holder.upgrade().filter(|_| *lock(&self.socket.current) == Some(session))
    }
}

impl LeaseEnd for End {
    fn connected(&self, session: SessionId, term: u64) -> bool {
        self.holder(session).inspect(|holder| holder.connected(term)).is_some()
    }

    fn received(&self, session: SessionId, epoch: Epoch, message: ToClient) {
        if let Some(holder) = self.holder(session) {
            holder.receive(epoch, message);
        }
    }

    fn disconnected(&self) {
        if let Some(holder) = self.holder.upgrade() {
            holder.disconnected();
        }
    }

    fn leaderless(&self) {
        if let Some(holder) = self.holder.upgrade() {
            holder.leaderless();
        }
    }
}

/// Hold leases for `cache`. Requests wait `away` for a daemon that does not listen.
///
/// # Errors
/// `Io` when there are no threads.
pub(crate) fn hold(client: &Arc<Client>, away: Duration, cache: Arc<dyn Cache>) -> Result<Arc<Holder>> {
    let away = u64::try_from(away.as_micros()).unwrap_or(u64::MAX);
    let limits = Limits { away, ..Limits::DEFAULT };
    let link = LeaseLink::new(Arc::clone(client));
    let socket = Arc::new(Socket { client: Arc::clone(client), link, current: Mutex::default() });
    let holder = Arc::new(Holder::start(limits, cache, Arc::clone(&socket) as _)?);
    let end = End { holder: Arc::downgrade(&holder), socket: Arc::clone(&socket) };
    socket.link.start(Arc::new(end))?;
    Ok(holder)
}
