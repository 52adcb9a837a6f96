//! The mount in the leader's own process: its messages go by a queue, and its session ends with the leader.

use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex};
use std::thread;

use kos_core::lease::Limits;
use kos_types::lease::{Cache, Epoch, ToClient, ToLeader};
use kos_types::{Error, Result, SessionId};

use crate::{Holder, Keeper, Link, Opened, lock};

/// The session of this process: no log has it.
const OWN: SessionId = SessionId(0);
const EPOCH: Epoch = Epoch(1);
/// Its limits: it is never late, for nobody could notice.
const LIMITS: Limits = Limits { ttl: u64::MAX / 2, renew: u64::MAX / 2, ..Limits::DEFAULT };

/// The way to the keeper beside it.
struct Queue {
    keeper: Arc<Keeper>,
    term: u64,
    /// What the keeper says; it says it under its lock.
    inbox: Mutex<Sender<(Epoch, ToClient)>>,
}

impl Link for Queue {
    fn send(&self, epoch: Epoch, message: ToLeader) {
        self.keeper.receive(OWN, epoch, message);
    }

    fn open(&self) -> Result<Opened> {
        let inbox = lock(&self.inbox).clone();
        self.keeper.resides(OWN, EPOCH);
        // Its bound is that of what may be asked for and of what is held; nobody listens when it ends.
        self.keeper.connected(OWN, Box::new(move |epoch, message| drop(inbox.send((epoch, message)))));
        Ok(Opened { session: OWN, epoch: EPOCH, term: self.term })
    }
}

/// Hold leases for the mount in the keeper's process.
///
/// # Errors
/// `Io` when there are no threads.
pub fn reside(keeper: &Arc<Keeper>, term: u64, cache: Arc<dyn Cache>) -> Result<Arc<Holder>> {
    let (inbox, messages) = mpsc::channel();
    let queue = Queue { keeper: Arc::clone(keeper), term, inbox: Mutex::new(inbox) };
    let holder = Arc::new(Holder::start(LIMITS, cache, Arc::new(queue))?);
    let own = Arc::downgrade(&holder);
    let deliver = move || {
        for (epoch, message) in messages {
            let Some(holder) = own.upgrade() else { return };
            holder.receive(epoch, message);
        }
    };
    thread::Builder::new()
        .name("lease-queue".into())
        .spawn(deliver)
        .map_err(|e| Error::io("leases: thread", &e))?;
    Ok(holder)
}
