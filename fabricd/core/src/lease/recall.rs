//! Giving a lease back: let no new request begin, wait for those that run, flush, invalidate,
//! acknowledge. No step waits for a lease, so two recalls can never wait for each other.

use kos_types::Ino;

use super::client::{Client, Output};
use super::pieces::Piece;
use super::{GrantId, Lane, Mode, Span, TREE, ToLeader, Want};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Draining,
    Flushing,
    Invalidating,
}

#[derive(Debug)]
pub(super) struct Recall {
    ino: Ino,
    lane: Lane,
    span: Span,
    stage: Stage,
    mode: Mode,
}

impl Recall {
    /// Whether that wants something of what is given back.
    fn is_of(&self, want: &Want) -> bool {
        let meets = want.ino == self.ino && want.lane == self.lane && want.span.overlaps(self.span);
        self.ino == TREE || meets
    }
}

impl Client {
    pub(super) fn recall(&mut self, id: GrantId, ino: Ino, lane: Lane, span: Span) {
        let Some(owner) = self.session.as_ref().map(|s| s.id) else { return };
        if self.recalls.contains_key(&id) {
            // Sent again over a new connection.
            return;
        }
        self.stamp = self.stamp.max(id);
        if let Some(pieces) = self.held.get_mut(&ino) {
            pieces.mark(owner, lane, span, id);
        }
        self.recalls.insert(id, Recall { ino, lane, span, stage: Stage::Draining, mode: Mode::Shared });
        self.advance(id);
    }

    pub(super) fn advance_all(&mut self) {
        let draining = self.recalls.iter().filter(|(_, recall)| recall.stage == Stage::Draining);
        for id in draining.map(|(&id, _)| id).collect::<alloc::vec::Vec<_>>() {
            self.advance(id);
        }
    }

    /// Go on if no request runs any more under what is recalled, and nothing of it goes with an earlier recall, which was taken
    /// for more than it was.
    fn advance(&mut self, id: GrantId) {
        let draining = |recall: &&mut Recall| recall.stage == Stage::Draining;
        let Some(recall) = self.recalls.get_mut(&id).filter(draining) else { return };
        let (ino, lane, span) = (recall.ino, recall.lane, recall.span);
        let under = |want: &Want| recall.is_of(want);
        if self.running.values().any(|running| running.wants.iter().any(under)) {
            return;
        }
        let pieces = || self.held.get(&ino).into_iter().flat_map(|pieces| pieces.iter());
        let before =
            |p: &Piece| p.lane == lane && p.span.overlaps(span) && p.recall.is_some_and(|of| of < id);
        if pieces().any(before) {
            return;
        }
        let Some(mode) = pieces().filter(|p| p.recall == Some(id)).map(|p| p.mode).max() else {
            // Given back already, or never received.
            return self.acknowledge(id);
        };
        recall.mode = mode;
        if mode == Mode::Exclusive {
            recall.stage = Stage::Flushing;
            self.out.push(Output::Flush { recall: id, ino, lane, span });
        } else {
            recall.stage = Stage::Invalidating;
            self.out.push(Output::Invalidate { recall: id, ino, lane, span, mode });
        }
    }

    pub(super) fn flushed(&mut self, id: GrantId) {
        if let Some(recall) = self.recalls.get_mut(&id).filter(|recall| recall.stage == Stage::Flushing) {
            recall.stage = Stage::Invalidating;
            let (ino, lane, span, mode) = (recall.ino, recall.lane, recall.span, recall.mode);
            self.out.push(Output::Invalidate { recall: id, ino, lane, span, mode });
        }
    }

    pub(super) fn invalidated(&mut self, id: GrantId) {
        if self.recalls.get(&id).is_some_and(|recall| recall.stage == Stage::Invalidating) {
            self.acknowledge(id);
        }
    }

    fn acknowledge(&mut self, id: GrantId) {
        let Some(recall) = self.recalls.remove(&id) else { return };
        if let Some(pieces) = self.held.get_mut(&recall.ino) {
            pieces.retain(|p| p.recall != Some(id));
            if pieces.is_empty() {
                self.held.remove(&recall.ino);
            }
        }
        self.send(ToLeader::Ack { recall: id, seq: self.seq });
        self.advance_all();
    }
}
