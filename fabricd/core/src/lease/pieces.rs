//! The pieces of one inode's leases: split, merged and searched. The leader keeps those of all
//! sessions in one list, a session its own.

use alloc::vec::Vec;

use kos_types::SessionId;

use super::{GrantId, Lane, Mode, Span, Want};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) owner: SessionId,
    pub(super) lane: Lane,
    pub(super) span: Span,
    pub(super) mode: Mode,
    /// The newest grant it came from.
    pub(super) id: GrantId,
    /// When its newest part was granted.
    pub(super) since: u64,
    /// Commits of this number and below were sent before it was granted.
    pub(super) floor: u64,
    /// The recall it is under.
    pub(super) recall: Option<GrantId>,
}

impl Piece {
    pub(super) fn new(owner: SessionId, want: &Want, id: GrantId) -> Self {
        let (lane, span, mode) = (want.lane, want.span, want.mode);
        Self { owner, lane, span, mode, id, since: 0, floor: 0, recall: None }
    }

    fn is_in(&self, lane: Lane, span: Span) -> bool {
        self.lane == lane && self.span.overlaps(span)
    }

    /// Whether they are one, at a time. A lease that is new stays by itself until it was held for `hold`: beside an old one it
    /// would be taken back at once.
    fn joins(&self, next: &Self, now: u64, hold: u64) -> bool {
        let alike = self.owner == next.owner && self.lane == next.lane && self.mode == next.mode;
        let free = self.recall.is_none() && next.recall.is_none();
        let old = self.since.max(next.since) + hold <= now;
        alike && free && old && self.span.end == next.span.start
    }
}

#[derive(Debug, Default)]
pub(super) struct Pieces(Vec<Piece>);

impl Pieces {
    pub(super) fn iter(&self) -> impl Iterator<Item = &Piece> {
        self.0.iter()
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Piece> {
        self.0.iter_mut()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn of(&self, owner: SessionId) -> usize {
        self.0.iter().filter(|piece| piece.owner == owner).count()
    }

    /// Add a lease in place of the same and weaker ones of its owner, where that has none that is stronger: what is not under
    /// a recall is never of two kinds. Join neighbours that were held for `hold`.
    pub(super) fn insert(&mut self, new: Piece, hold: u64) {
        let own = |p: &Piece| p.owner == new.owner && p.recall.is_none();
        self.remove(new.lane, new.span, |p| own(p) && p.mode <= new.mode);
        let mut spans = Vec::from([new.span]);
        for piece in self.0.iter().filter(|p| own(p) && p.is_in(new.lane, new.span)) {
            spans = spans.iter().flat_map(|span| span.minus(piece.span)).collect();
        }
        self.0.extend(spans.iter().map(|&span| Piece { span, ..new }));
        self.0.sort_by_key(|p| (p.owner, p.lane, p.mode, p.recall, p.span));
        self.0.dedup_by(|next, piece| {
            // Only the owner's own: pieces of each are counted where they change.
            let joins = piece.owner == new.owner && piece.joins(next, new.since, hold);
            if joins {
                piece.span.end = next.span.end;
                piece.id = piece.id.max(next.id);
                piece.floor = piece.floor.max(next.floor);
                piece.since = piece.since.max(next.since);
            }
            joins
        });
    }

    /// Cut `span` out of the pieces that `which` names.
    pub(super) fn remove(&mut self, lane: Lane, span: Span, which: impl Fn(&Piece) -> bool) {
        self.cut(lane, span, which, |_| None);
    }

    /// Put the owner's pieces within `span` under a recall, splitting them at its ends: also newer ones than the recall, which
    /// may come again over another connection and find them joined to older ones. Answers whether there are any.
    pub(super) fn mark(&mut self, owner: SessionId, lane: Lane, span: Span, recall: GrantId) -> bool {
        let due = |p: &Piece| p.owner == owner && p.recall.is_none();
        self.cut(lane, span, due, |inside| Some(Piece { recall: Some(recall), ..inside }))
    }

    /// Replace what of the pieces that `which` names lies in `span`. Answers whether any did.
    fn cut(
        &mut self,
        lane: Lane,
        span: Span,
        which: impl Fn(&Piece) -> bool,
        inside: impl Fn(Piece) -> Option<Piece>,
    ) -> bool {
        let hit = |p: &Piece| p.is_in(lane, span) && which(p);
        if !self.0.iter().any(hit) {
            return false;
        }
        let mut left = Vec::with_capacity(self.0.len() + 2);
        for piece in self.0.drain(..) {
            if hit(&piece) {
                left.extend(piece.span.minus(span).map(|span| Piece { span, ..piece }));
                left.extend(inside(Piece { span: piece.span.and(span), ..piece }));
            } else {
                left.push(piece);
            }
        }
        self.0 = left;
        true
    }

    pub(super) fn retain(&mut self, which: impl FnMut(&Piece) -> bool) {
        self.0.retain(which);
    }

    /// Whether pieces that `which` names cover all of `want`.
    pub(super) fn cover(&self, want: &Want, which: impl Fn(&Piece) -> bool) -> bool {
        let fits = |p: &&Piece| p.lane == want.lane && p.mode >= want.mode && which(p);
        let mut from = want.span.start;
        while from < want.span.end {
            let there = |p: &&Piece| p.span.start <= from && from < p.span.end;
            let Some(end) = self.0.iter().filter(fits).filter(there).map(|p| p.span.end).max() else {
                return false;
            };
            from = end;
        }
        true
    }

    /// Pieces of others that do not go with `want`.
    pub(super) fn blocking(&self, owner: SessionId, want: &Want) -> impl Iterator<Item = &Piece> {
        self.0.iter().filter(move |p| {
            let exclusive = p.mode == Mode::Exclusive || want.mode == Mode::Exclusive;
            p.owner != owner && exclusive && p.is_in(want.lane, want.span)
        })
    }
}
