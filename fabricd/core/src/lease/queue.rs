//! Who waits for what, and who must give it back. Requests are granted whole or not at all, in the
//! order of their arrival where they conflict: so none starves, and none holds something while it waits.

use alloc::vec::Vec;

use super::pieces::Piece;
use super::table::{Recall, Table};
use super::{Lane, Mode, RequestId, Span, TREE, ToClient, Want};
use kos_types::{Ino, SessionId};

#[derive(Debug)]
pub(super) struct Request {
    pub(super) session: SessionId,
    pub(super) id: RequestId,
    pub(super) wants: Vec<Want>,
}

/// A piece in somebody's way.
type Blocker = (Ino, Piece);

impl Table {
    /// Queue a request.
    pub(super) fn ask(&mut self, session: SessionId, id: RequestId, wants: Vec<Want>) {
        if let Some(&arrival) = self.named.get(&(session, id)) {
            // Asked again over a new connection: it keeps its turn.
            self.stale.insert(arrival);
            return;
        }
        let bounds = self.limits;
        let empty = wants.iter().any(|want| want.span.start >= want.span.end);
        let Some(known) = self.sessions.get_mut(&session) else { return };
        if empty || wants.len() > bounds.request_wants || known.waiting >= bounds.session_requests {
            return self.send(session, ToClient::Refused { request: id });
        }
        known.waiting += 1;
        self.arrivals += 1;
        let arrival = self.arrivals;
        for want in &wants {
            self.inodes.entry(want.ino).or_default().waiting.insert(arrival);
        }
        self.named.insert((session, id), arrival);
        self.requests.insert(arrival, Request { session, id, wants });
        self.stale.insert(arrival);
    }

    /// Forget a request; those behind it may go on.
    pub(super) fn drop_request(&mut self, arrival: u64) -> Option<Request> {
        let request = self.requests.remove(&arrival)?;
        self.named.remove(&(request.session, request.id));
        self.stale.remove(&arrival);
        if let Some(known) = self.sessions.get_mut(&request.session) {
            known.waiting -= 1;
        }
        for want in &request.wants {
            if let Some(inode) = self.inodes.get_mut(&want.ino) {
                inode.waiting.remove(&arrival);
                // A change of nothing: it looks at the others again.
                self.change(request.session, want.ino, |_| ());
            }
        }
        Some(request)
    }

    /// Grant and recall until nothing moves.
    pub(super) fn settle(&mut self, now: u64) {
        while let Some(arrival) = self.stale.pop_first() {
            if !self.is_learning() {
                self.consider(now, arrival);
            }
        }
    }

    fn consider(&mut self, now: u64, arrival: u64) {
        let Some(request) = self.requests.get(&arrival) else { return };
        let (session, id, wants) = (request.session, request.id, request.wants.clone());
        if self.sessions.len() > 1 && wants.iter().any(|want| want.ino == TREE) {
            self.drop_request(arrival);
            return self.send(session, ToClient::Refused { request: id });
        }
        if self.retired && !self.resides(session) {
            return;
        }
        if wants.iter().any(|want| self.is_behind(arrival, session, want)) {
            return;
        }
        let mut is_free = true;
        for want in &wants {
            // Anew for each: the one before may have taken a part of the same piece.
            for (ino, piece) in self.blockers(session, want).collect::<Vec<_>>() {
                is_free = false;
                self.recall_unless_new(now, ino, &piece, want.span);
            }
        }
        let room = self.make_room(now, session, wants.len());
        if is_free && room {
            self.grant(now, arrival);
        }
    }

    /// Whether somebody who came before wants what does not go with `want`.
    fn is_behind(&self, arrival: u64, session: SessionId, want: &Want) -> bool {
        let inodes = [want.ino, TREE].into_iter().filter_map(|ino| self.inodes.get(&ino));
        let before = inodes.flat_map(|inode| inode.waiting.range(..arrival));
        before
            .filter_map(|before| self.requests.get(before))
            .any(|other| other.session != session && other.wants.iter().any(|theirs| theirs.conflicts(want)))
    }

    /// What others hold that does not go with `want`.
    pub(super) fn blockers(&self, session: SessionId, want: &Want) -> impl Iterator<Item = Blocker> {
        let own = self.inodes.get(&want.ino).into_iter();
        let own = own.flat_map(move |inode| inode.pieces.blocking(session, want).map(|p| (want.ino, *p)));
        let tree = self.inodes.get(&TREE).into_iter().flat_map(|tree| tree.pieces.iter());
        own.chain(tree.filter(move |p| p.owner != session).map(|p| (TREE, *p)))
    }

    /// Ask for a piece back, or note when it may be asked for. Never for more: the kernel waits for requests that read what
    /// it throws out, and those may wait for a lease that is not held.
    fn recall_unless_new(&mut self, now: u64, ino: Ino, piece: &Piece, span: Span) {
        let until = piece.since + self.limits.hold;
        if piece.recall.is_some() || !self.is_live(piece.owner) {
            return;
        }
        if piece.mode == Mode::Exclusive && now < until {
            self.holds.insert((until, ino));
            return;
        }
        let pieces = self.inodes.get(&ino).map_or(0, |inode| inode.pieces.of(piece.owner));
        let whole = ino == TREE || pieces >= self.limits.inode_pieces;
        self.recall(now, ino, piece, if whole { piece.span } else { piece.span.and(span) });
    }

    pub(super) fn recall_all(&mut self, now: u64, retire: bool) {
        self.retired |= retire;
        let mut all: Vec<Blocker> = Vec::new();
        for (&ino, inode) in &self.inodes {
            let due = |p: &&Piece| {
                let asked = if retire { !self.resides(p.owner) } else { p.mode == Mode::Exclusive };
                asked && p.recall.is_none() && self.is_live(p.owner)
            };
            all.extend(inode.pieces.iter().filter(due).map(|p| (ino, *p)));
        }
        for (ino, piece) in all {
            self.recall(now, ino, &piece, piece.span);
        }
    }

    fn recall(&mut self, now: u64, ino: Ino, piece: &Piece, span: Span) {
        let id = self.next_id();
        let (session, lane) = (piece.owner, piece.lane);
        if !self.change(session, ino, |pieces| pieces.mark(session, lane, span, id)) {
            return;
        }
        let message = ToClient::Recall { id, ino, lane, span };
        let deadline = self.recall_deadline(now, session);
        self.recalls.insert(id, Recall { session, deadline, message: message.clone(), ino });
        self.send(session, message);
    }

    /// Whether the session may hold so many more. If not, its oldest leases are recalled, shared ones
    /// first.
    fn make_room(&mut self, now: u64, session: SessionId, more: usize) -> bool {
        let bound = self.limits.session_leases;
        let held = self.sessions.get(&session).map_or(0, |known| known.pieces);
        if held + more <= bound {
            return true;
        }
        let leaving = self.recalls.values().filter(|recall| recall.session == session).count();
        if held + more > bound + leaving {
            let own = |p: &&Piece| p.owner == session && p.recall.is_none();
            let mut all: Vec<Blocker> = Vec::new();
            for (&ino, inode) in &self.inodes {
                all.extend(inode.pieces.iter().filter(own).map(|p| (ino, *p)));
            }
            all.sort_by_key(|(_, p)| (p.mode, p.id));
            // An eighth at once, so that the search is paid for by many grants.
            for (ino, piece) in all.into_iter().take(more.max(bound / 8)) {
                self.recall(now, ino, &piece, piece.span);
            }
        }
        false
    }

    fn grant(&mut self, now: u64, arrival: u64) {
        let Some(mut request) = self.drop_request(arrival) else { return };
        let (session, id) = (request.session, self.next_id());
        let hold = self.limits.hold;
        let floor = self.sessions.get(&session).map_or(0, |known| known.settled);
        for want in &mut request.wants {
            let wide = Want { span: Span::ALL, ..*want };
            // Nobody minds: most files have one user, and one lease for all of it.
            if want.lane == Lane::Data && self.is_free(session, &wide) {
                *want = wide;
            }
            let piece = Piece { since: now, floor, ..Piece::new(session, want, id) };
            self.change(session, want.ino, |pieces| pieces.insert(piece, hold));
        }
        self.send(session, ToClient::Granted { request: request.id, id, grants: request.wants });
    }

    fn is_free(&self, session: SessionId, want: &Want) -> bool {
        let waits = |inode: &super::table::Inode| {
            let mut waiting = inode.waiting.iter().filter_map(|arrival| self.requests.get(arrival));
            waiting.any(|other| other.session != session)
        };
        self.blockers(session, want).next().is_none() && !self.inodes.get(&want.ino).is_some_and(waits)
    }
}
