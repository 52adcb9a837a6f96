//! The leader's table: sessions, what they hold, and fencing. All of it is soft state: the log has
//! only the sessions' epochs, and a new leader learns the rest from them.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use kos_types::{Ino, SessionId};

use super::pieces::{Piece, Pieces};
use super::queue::Request;
use super::{Epoch, GrantId, Limits, RequestId, Span, TREE, ToClient, ToLeader, Want};

/// What happens to a leader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The log has opened a session, or opened it anew.
    Opened {
        /// Which.
        session: SessionId,
        /// Its epoch from now on.
        epoch: Epoch,
    },
    /// The leader's own process has a session, which ends with the leader: it is never late.
    Resides {
        /// Which; the log does not have it.
        session: SessionId,
        /// Its epoch.
        epoch: Epoch,
    },
    /// The log has raised an epoch: nothing of the older ones is applied any more.
    Fenced {
        /// Whose.
        session: SessionId,
        /// The new one.
        epoch: Epoch,
    },
    /// The log has closed a session that gave everything back.
    Closed {
        /// Which.
        session: SessionId,
    },
    /// A session said something.
    Message {
        /// Which.
        session: SessionId,
        /// Of which epoch.
        epoch: Epoch,
        /// What.
        message: ToLeader,
    },
    /// Have everybody commit what is buffered; with `retire`, have the other processes give back everything, and
    /// grant them nothing more.
    RecallAll {
        /// The leader ends.
        retire: bool,
    },
    /// Time has passed.
    Tick,
}

/// What a leader must do, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Tell a session, once a read-index round begun after the event has shown that this is still
    /// the leader. Lost with the connection.
    Send {
        /// Whom.
        session: SessionId,
        /// Of which epoch.
        epoch: Epoch,
        /// What.
        message: ToClient,
    },
    /// Raise this epoch in the log, and say so with [`Event::Fenced`]. Until then nothing of what
    /// the session holds is granted.
    Fence {
        /// Whose.
        session: SessionId,
        /// The epoch to end.
        epoch: Epoch,
    },
    /// What a fenced session had cached is gone too: the log need not tell a next leader of it.
    Close {
        /// Which.
        session: SessionId,
        /// The epoch it was fenced with.
        epoch: Epoch,
    },
}

/// No time comes after it.
pub(super) const NEVER: u64 = u64::MAX;

/// A change that needs a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Commit {
    /// Who sends it.
    pub session: SessionId,
    /// In which epoch.
    pub epoch: Epoch,
    /// The newest grant it had seen when it sent this.
    pub stamp: GrantId,
    /// Grows with every commit of the session.
    pub seq: u64,
    /// The lease it is made under.
    pub want: Want,
}

/// Why a commit is not applied now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// A new leader does not know yet what the session holds: it is sent again as it is. With another
    /// number both could be applied, in any order.
    Later,
    /// The session is over: it is never applied.
    Gone,
    /// Not under a lease that the session holds now: it is never applied. With a newer stamp and number it
    /// may be tried again, if the session still holds one.
    NotHeld,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// A new leader does not know yet what it holds.
    Unclaimed,
    Live,
    /// It is losing its leases: the log does not have the new epoch yet.
    Fencing,
    /// It writes nothing more, but its caches answer until it knows, or its time is over.
    Fenced,
}

#[derive(Debug)]
pub(super) struct Session {
    epoch: Epoch,
    state: State,
    /// It may hold what this leader does not know of.
    unknown: bool,
    /// Never, for the one of this process.
    expires: u64,
    /// The last commit that an acknowledged recall named.
    pub(super) settled: u64,
    pub(super) pieces: usize,
    pub(super) waiting: usize,
}

impl Session {
    const fn new(epoch: Epoch, state: State, expires: u64) -> Self {
        Self { epoch, state, unknown: false, expires, settled: 0, pieces: 0, waiting: 0 }
    }
}

/// What is known of one inode.
#[derive(Debug, Default)]
pub(super) struct Inode {
    pub(super) pieces: Pieces,
    /// Requests that want something of it, by arrival.
    pub(super) waiting: BTreeSet<u64>,
}

/// A piece that a session must give back.
#[derive(Debug)]
pub(super) struct Recall {
    pub(super) session: SessionId,
    pub(super) deadline: u64,
    pub(super) message: ToClient,
    pub(super) ino: Ino,
}

/// A leader's leases.
#[derive(Debug)]
pub struct Table {
    pub(super) limits: Limits,
    last: GrantId,
    pub(super) arrivals: u64,
    pub(super) sessions: BTreeMap<SessionId, Session>,
    pub(super) inodes: BTreeMap<Ino, Inode>,
    pub(super) requests: BTreeMap<u64, Request>,
    pub(super) named: BTreeMap<(SessionId, RequestId), u64>,
    pub(super) recalls: BTreeMap<GrantId, Recall>,
    /// Requests to look at again.
    pub(super) stale: BTreeSet<u64>,
    /// Only the session of this process is granted anything.
    pub(super) retired: bool,
    /// When a lease has been held long enough for those who wait for it.
    pub(super) holds: BTreeSet<(u64, Ino)>,
    pub(super) out: Vec<Action>,
}

impl Table {
    /// The table of a new leader. `logged` are the sessions in the log when its term began, also
    /// those that were fenced and neither closed nor opened anew. Nothing new is granted until each of them has said
    /// what it holds, or is fenced.
    #[must_use]
    pub fn new(
        now: u64,
        term: u64,
        limits: Limits,
        logged: impl IntoIterator<Item = (SessionId, Epoch)>,
    ) -> Self {
        let expires = now + limits.ttl + limits.margin;
        let unclaimed = |epoch| Session { unknown: true, ..Session::new(epoch, State::Unclaimed, expires) };
        Self {
            limits,
            last: GrantId { term, counter: 0 },
            arrivals: 0,
            sessions: logged.into_iter().map(|(id, epoch)| (id, unclaimed(epoch))).collect(),
            inodes: BTreeMap::new(),
            requests: BTreeMap::new(),
            named: BTreeMap::new(),
            recalls: BTreeMap::new(),
            stale: BTreeSet::new(),
            retired: false,
            holds: BTreeSet::new(),
            out: Vec::new(),
        }
    }

    /// Take one event at the time `now`, which never goes back.
    #[must_use]
    pub fn step(&mut self, now: u64, event: Event) -> Vec<Action> {
        self.pass_time(now);
        match event {
            Event::Opened { session, epoch } => self.open(now, session, epoch),
            Event::Resides { session, epoch } => {
                self.open(now, session, epoch);
                if let Some(known) = self.sessions.get_mut(&session) {
                    known.expires = NEVER;
                }
            }
            Event::Fenced { session, epoch } => {
                if let Some(known) = self.sessions.get_mut(&session).filter(|s| s.epoch < epoch) {
                    (known.state, known.epoch) = (State::Fenced, epoch);
                    self.silence(session);
                }
                self.pass_time(now);
            }
            Event::Closed { session } => self.forget(session),
            Event::RecallAll { retire } => self.recall_all(now, retire),
            Event::Message { session, epoch, message } => self.message(now, session, epoch, message),
            Event::Tick => {}
        }
        self.settle(now);
        core::mem::take(&mut self.out)
    }

    /// When the next [`Event::Tick`] is needed.
    #[must_use]
    pub fn next_deadline(&self) -> Option<u64> {
        let sessions = self.sessions.values().filter(|s| s.state != State::Fencing).map(|s| s.expires);
        let recall = self.recalls.values().map(|recall| recall.deadline).min();
        sessions.chain(recall).chain(self.holds.first().map(|hold| hold.0)).min()
    }

    /// Whether a commit may be proposed now, in the term that this table is of. Of its own kind it
    /// is not the last word: what is applied must also be of the epoch that the log has.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self, now: u64, commit: &Commit) -> Result<(), Refusal> {
        match self.sessions.get(&commit.session).filter(|s| s.epoch == commit.epoch) {
            Some(s) if s.state == State::Live && now < s.expires => {}
            Some(s) if s.state == State::Unclaimed => return Err(Refusal::Later),
            _ => return Err(Refusal::Gone),
        }
        let current = |p: &Piece| p.owner == commit.session && p.id <= commit.stamp && p.floor < commit.seq;
        let held = |want: &Want| self.inodes.get(&want.ino).is_some_and(|i| i.pieces.cover(want, current));
        if held(&commit.want) || held(&Want::TREE) { Ok(()) } else { Err(Refusal::NotHeld) }
    }

    /// Whether there are sessions beside the one of this process, also such that may come back.
    #[must_use]
    pub fn has_others(&self) -> bool {
        self.sessions.values().any(|session| session.expires != NEVER)
    }

    /// Whether recalls that began up to now are all answered, as seen then: `since` is what this answered first.
    #[must_use]
    pub fn recalled(&self, since: Option<GrantId>) -> (bool, GrantId) {
        let last = since.unwrap_or(self.last);
        (self.recalls.keys().next().is_none_or(|&oldest| oldest > last), last)
    }

    pub(super) fn resides(&self, session: SessionId) -> bool {
        self.sessions.get(&session).is_some_and(|known| known.expires == NEVER)
    }

    pub(super) fn next_id(&mut self) -> GrantId {
        self.last.counter += 1;
        self.last
    }

    pub(super) fn send(&mut self, session: SessionId, message: ToClient) {
        if let Some(epoch) = self.sessions.get(&session).map(|s| s.epoch) {
            self.out.push(Action::Send { session, epoch, message });
        }
    }

    /// Until this is over nothing is granted: a session may hold what this leader does not know of.
    #[must_use]
    pub fn is_learning(&self) -> bool {
        self.sessions.values().any(|s| s.unknown)
    }

    /// How long it has to give something back.
    pub(super) fn recall_deadline(&self, now: u64, session: SessionId) -> u64 {
        if self.resides(session) { NEVER } else { now + self.limits.recall }
    }

    pub(super) fn is_live(&self, session: SessionId) -> bool {
        self.sessions.get(&session).is_some_and(|s| s.state == State::Live)
    }

    fn pass_time(&mut self, now: u64) {
        let silent = self.recalls.values().filter(|r| r.deadline <= now).map(|r| r.session);
        let expired = self.sessions.iter().filter(|(_, s)| s.expires <= now).map(|(&id, _)| id);
        for session in silent.chain(expired).collect::<Vec<_>>() {
            match self.sessions.get(&session) {
                Some(&Session { state: State::Fenced, epoch, .. }) => {
                    self.out.push(Action::Close { session, epoch });
                    self.forget(session);
                }
                _ => self.fence(session),
            }
        }
        while let Some(&(at, ino)) = self.holds.first().filter(|hold| hold.0 <= now) {
            self.holds.remove(&(at, ino));
            self.look_again(ino);
        }
    }

    fn open(&mut self, now: u64, session: SessionId, epoch: Epoch) {
        if self.sessions.get(&session).is_some_and(|s| s.epoch >= epoch) {
            return;
        }
        self.forget(session);
        let expires = now + self.limits.ttl + self.limits.margin;
        self.sessions.insert(session, Session::new(epoch, State::Live, expires));
    }

    fn message(&mut self, now: u64, session: SessionId, epoch: Epoch, message: ToLeader) {
        let Some(known) = self.sessions.get_mut(&session).filter(|s| s.epoch == epoch) else {
            return self.out.push(Action::Send { session, epoch, message: ToClient::Gone });
        };
        match known.state {
            State::Fencing | State::Fenced => return self.send(session, ToClient::Gone),
            // Of a connection that was not greeted: the hello is still to come.
            State::Unclaimed if !matches!(message, ToLeader::Hello { .. }) => return,
            State::Unclaimed | State::Live => {}
        }
        match message {
            ToLeader::Hello { sent, held } => {
                if known.state == State::Unclaimed && !self.claim(now, session, &held) {
                    // Two sessions cannot hold the same, so one of them is wrong about itself.
                    return self.fence(session);
                }
                self.renew(now, session, sent);
                // The recalls went down with the old connection.
                let again = self.recalls.values().filter(|r| r.session == session);
                for message in again.map(|r| r.message.clone()).collect::<Vec<_>>() {
                    self.send(session, message);
                }
            }
            ToLeader::Renew { sent } => self.renew(now, session, sent),
            ToLeader::Ask { request, wants } => self.ask(session, request, wants),
            ToLeader::Cancel { request } => {
                if let Some(&arrival) = self.named.get(&(session, request)) {
                    self.drop_request(arrival);
                }
            }
            ToLeader::Release { ino, lane, stamp } => {
                let given = |p: &Piece| p.owner == session && p.id <= stamp;
                self.change(session, ino, |pieces| pieces.remove(lane, Span::ALL, given));
            }
            ToLeader::Ack { recall, seq } => {
                known.settled = known.settled.max(seq);
                if self.recalls.get(&recall).is_some_and(|r| r.session == session)
                    && let Some(done) = self.recalls.remove(&recall)
                {
                    self.change(session, done.ino, |pieces| pieces.retain(|p| p.recall != Some(recall)));
                }
            }
        }
    }

    fn renew(&mut self, now: u64, session: SessionId, sent: u64) {
        let alone = self.sessions.len() == 1;
        if let Some(known) = self.sessions.get_mut(&session).filter(|known| known.expires != NEVER) {
            known.expires = now + self.limits.ttl + self.limits.margin;
            self.send(session, ToClient::Renewed { sent, alone });
        }
    }

    /// Take over what a session holds from the leader before. Answers whether that can be.
    fn claim(&mut self, now: u64, session: SessionId, held: &[Want]) -> bool {
        let (id, hold) = (GrantId { term: self.last.term, counter: 0 }, self.limits.hold);
        for want in held {
            if self.blockers(session, want).next().is_some() {
                return false;
            }
            let piece = Piece { since: now, ..Piece::new(session, want, id) };
            self.change(session, want.ino, |pieces| pieces.insert(piece, hold));
        }
        if let Some(known) = self.sessions.get_mut(&session) {
            (known.state, known.unknown) = (State::Live, false);
        }
        self.stale.extend(self.requests.keys());
        true
    }

    fn fence(&mut self, session: SessionId) {
        let Some(known) = self.sessions.get_mut(&session) else { return };
        if matches!(known.state, State::Fencing | State::Fenced) {
            return;
        }
        known.state = State::Fencing;
        self.out.push(Action::Fence { session, epoch: known.epoch });
        self.send(session, ToClient::Gone);
        self.silence(session);
    }

    /// End its requests and recalls.
    fn silence(&mut self, session: SessionId) {
        self.recalls.retain(|_, recall| recall.session != session);
        let waiting = self.requests.iter().filter(|(_, r)| r.session == session);
        for arrival in waiting.map(|(&arrival, _)| arrival).collect::<Vec<_>>() {
            self.drop_request(arrival);
        }
    }

    /// It holds nothing any more.
    fn forget(&mut self, session: SessionId) {
        self.silence(session);
        let held: Vec<_> =
            self.inodes.iter().filter(|(_, i)| i.pieces.of(session) > 0).map(|(&ino, _)| ino).collect();
        for ino in held {
            self.change(session, ino, |pieces| pieces.retain(|p| p.owner != session));
        }
        self.sessions.remove(&session);
        self.stale.extend(self.requests.keys());
    }

    /// Change what a session holds of an inode, and look again at who waits for it.
    pub(super) fn change<R>(
        &mut self,
        session: SessionId,
        ino: Ino,
        how: impl FnOnce(&mut Pieces) -> R,
    ) -> R {
        let inode = self.inodes.entry(ino).or_default();
        let before = inode.pieces.of(session);
        let result = how(&mut inode.pieces);
        let after = inode.pieces.of(session);
        if inode.pieces.is_empty() && inode.waiting.is_empty() {
            self.inodes.remove(&ino);
        }
        if let Some(known) = self.sessions.get_mut(&session) {
            let was_full = known.pieces + self.limits.request_wants > self.limits.session_leases;
            known.pieces = known.pieces + after - before;
            if was_full && after < before {
                let own = self.requests.iter().filter(|(_, r)| r.session == session);
                self.stale.extend(own.map(|(&arrival, _)| arrival));
            }
        }
        self.look_again(ino);
        result
    }

    fn look_again(&mut self, ino: Ino) {
        if ino == TREE {
            self.stale.extend(self.requests.keys());
        } else if let Some(inode) = self.inodes.get(&ino) {
            self.stale.extend(&inode.waiting);
        }
    }
}
