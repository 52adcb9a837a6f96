//! The part of the log that leases need.

use std::sync::{Arc, Mutex};

use kos_lease::Log;
use kos_types::lease::Epoch;
use kos_types::{Error, Fabric, Kind, Op, Reply, Result, SessionId};

use super::{Table, lock};
use crate::Node;

/// What of leases must survive the daemon.
pub(super) struct Chronicle {
    pub(super) node: Arc<Node>,
    pub(super) table: Arc<Mutex<Table>>,
}

impl Log for Chronicle {
    fn fence(&self, session: SessionId) -> Result<Epoch> {
        match self.node.propose(Op::FenceSession { session }) {
            Ok(Reply::Session(_, epoch)) => {
                let what = format!(
                    "a mount's session {} did not answer: it loses what it has not written",
                    session.0
                );
                self.node.events().add("fenced", &what);
                Ok(Epoch(epoch))
            }
            // It ended meanwhile.
            Err(e) if e.kind() == Kind::NotFound => Ok(Epoch(u64::MAX)),
            other => Err(Error::new(Kind::Io, format!("fence a session: {other:?}"))),
        }
    }

    fn close(&self, session: SessionId) -> Result<()> {
        match self.node.propose(Op::EndSession { session }) {
            Err(e) if e.kind() != Kind::NotFound => return Err(e),
            _ => {}
        }
        // Forgotten when its client's connections are gone.
        lock(&self.table).logged.entry(session).and_modify(|logged| logged.ended = true);
        Ok(())
    }
}
