//! A session's half: what the mount may cache and buffer now, requests parked until it may, and the
//! lease of its own session. Recalls are in `recall.rs`, the session's end in `loss.rs`.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use kos_types::{Ino, SessionId};

use super::pieces::{Piece, Pieces};
use super::recall::Recall;
use super::{
    Commit, Epoch, GrantId, Holds, Lane, Limits, Mode, RequestId, Span, TREE, ToClient, ToLeader, Want,
};

/// An open file of the mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileId(pub u64);

/// What happens to a mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// The log has a session for it.
    Opened {
        /// Which.
        session: SessionId,
        /// Its epoch.
        epoch: Epoch,
        /// The term of the leader at the connection's other end.
        term: u64,
        /// The own clock when the session was asked for.
        sent: u64,
    },
    /// A new connection to the leader of this term.
    Connected {
        /// The term.
        term: u64,
    },
    /// The connection is gone.
    Disconnected,
    /// The leader said something to the session of this epoch.
    Message {
        /// The epoch.
        epoch: Epoch,
        /// What.
        message: ToClient,
    },
    /// A request of a program needs all of these leases at once. It runs after [`Output::Ready`].
    Begin {
        /// Never used twice, and below `u64::MAX`.
        request: RequestId,
        /// What it needs.
        wants: Vec<Want>,
        /// When it fails.
        deadline: u64,
        /// What a recall may wait for until it has run.
        holds: Holds,
    },
    /// A request that ran is done: what it changed is buffered or committed, and the kernel has its
    /// reply. A running request must never wait for another lease.
    End {
        /// Which.
        request: RequestId,
    },
    /// What [`Output::Flush`] asked for is committed; also when it could not be, and was discarded and
    /// reported.
    Flushed {
        /// For which recall.
        recall: GrantId,
    },
    /// What [`Output::Invalidate`] asked for is out of every cache.
    Invalidated {
        /// For which recall.
        recall: GrantId,
    },
    /// What [`Output::Abandon`] asked for is done.
    Abandoned {
        /// Inodes that lost buffered changes.
        discarded: Vec<Ino>,
    },
    /// A recall waits for pages of requests that are parked because of it. Those whose leases are still here run now; what they
    /// bring into a cache goes before the recall is done. What is under another recall is not here: that may be past throwing
    /// out. [`Holds::Several`] fails where not all is here. Requests without pages stay where they are: programs begin
    /// others for ever, and the recall would never be done. Once the session is lost, all that have pages fail.
    Admit {
        /// Which recall; none at the session's end.
        recall: Option<GrantId>,
        /// Pages of which inode.
        ino: Ino,
        /// Of which bytes.
        span: Span,
    },
    /// Nobody leads at this time of the own clock: a leader that comes grants nothing for the time of a
    /// lease.
    Leaderless {
        /// When that was seen.
        at: u64,
    },
    /// Nothing of an inode is cached, buffered or open any more.
    Forgotten {
        /// Which.
        ino: Ino,
    },
    /// Time has passed.
    Tick,
}

/// What a mount must do, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Tell the leader, over the connection as it is now; lost with it.
    Send {
        /// Of which epoch.
        epoch: Epoch,
        /// What.
        message: ToLeader,
    },
    /// Run a request now, and end it.
    Ready {
        /// Which.
        request: RequestId,
    },
    /// Run a request now, in the middle of a recall, and end it.
    Admitted {
        /// Which.
        request: RequestId,
        /// For which inode.
        ino: Ino,
    },
    /// A request does not run: its deadline has passed.
    TimedOut {
        /// Which.
        request: RequestId,
    },
    /// A request does not run: too many wait, or a recall waits for it.
    Busy {
        /// Which.
        request: RequestId,
    },
    /// A request ran while the session was lost: it is answered with EIO.
    Lost {
        /// Which.
        request: RequestId,
    },
    /// Commit what is buffered here. Nothing new is buffered until the recall is done.
    Flush {
        /// For which recall.
        recall: GrantId,
        /// The inode; [`TREE`] for all.
        ino: Ino,
        /// The lane.
        lane: Lane,
        /// The bytes.
        span: Span,
    },
    /// Take this out of every cache; never from a thread that a request may wait for.
    Invalidate {
        /// For which recall.
        recall: GrantId,
        /// The inode; [`TREE`] for all.
        ino: Ino,
        /// The lane.
        lane: Lane,
        /// The bytes.
        span: Span,
        /// What is given back.
        mode: Mode,
    },
    /// The session is lost: discard what is buffered, refuse every write-back with EIO, take
    /// everything out of the caches.
    Abandon,
    /// Have the log end the session before, if there was one, and open a session.
    Open,
}

#[derive(Debug)]
pub(super) struct Session {
    pub(super) id: SessionId,
    pub(super) epoch: Epoch,
    term: u64,
    /// The own clock when the last renewal that was answered left.
    renewed: u64,
}

/// A request that runs.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) wants: Vec<Want>,
    pub(super) lost: bool,
}

#[derive(Debug)]
pub(super) struct Parked {
    wants: Vec<Want>,
    deadline: u64,
    holds: Holds,
    /// When it fails if there is no connection until then.
    away: Option<u64>,
}

impl Parked {
    fn ends(&self) -> u64 {
        self.away.map_or(self.deadline, |away| away.min(self.deadline))
    }
}

/// An open file.
#[derive(Debug)]
pub(super) struct OpenFile {
    pub(super) ino: Ino,
    /// It must hear of an error once.
    pub(super) owed: bool,
    pub(super) locked: bool,
    /// Its lock was lost: nothing works until it is closed.
    pub(super) broken: bool,
}

/// Where a lost session is on its way to a new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// The mount has just begun.
    New,
    Live,
    /// Being discarded; and whether a request was still running when that began.
    Abandoning {
        again: bool,
    },
    /// Discarded, but requests still run that may have cached or buffered something.
    Draining,
    Opening,
}

/// The request that asks for the whole tree.
const TREE_REQUEST: RequestId = RequestId(u64::MAX);

/// A mount's leases.
#[derive(Debug)]
pub struct Client {
    pub(super) limits: Limits,
    pub(super) phase: Phase,
    pub(super) session: Option<Session>,
    connected: bool,
    renew_at: u64,
    pub(super) seq: u64,
    pub(super) stamp: GrantId,
    pub(super) held: BTreeMap<Ino, Pieces>,
    parked: BTreeMap<RequestId, Parked>,
    pub(super) running: BTreeMap<RequestId, Running>,
    pub(super) recalls: BTreeMap<GrantId, Recall>,
    pub(super) files: BTreeMap<FileId, OpenFile>,
    tree_asked: bool,
    pub(super) out: Vec<Output>,
}

impl Client {
    /// A mount without a session; its first step asks for one.
    #[must_use]
    pub const fn new(limits: Limits) -> Self {
        Self {
            limits,
            phase: Phase::New,
            session: None,
            connected: false,
            renew_at: 0,
            seq: 0,
            stamp: GrantId { term: 0, counter: 0 },
            held: BTreeMap::new(),
            parked: BTreeMap::new(),
            running: BTreeMap::new(),
            recalls: BTreeMap::new(),
            files: BTreeMap::new(),
            tree_asked: false,
            out: Vec::new(),
        }
    }

    /// Take one input at the time `now`, which never goes back.
    #[must_use]
    pub fn step(&mut self, now: u64, input: Input) -> Vec<Output> {
        if self.phase == Phase::Live && self.valid_until() <= Some(now) {
            self.lose();
        }
        match input {
            Input::Opened { session, epoch, term, sent } => self.opened(now, session, epoch, term, sent),
            Input::Connected { term } => self.connect(now, term),
            Input::Disconnected => self.disconnect(now),
            Input::Message { epoch, message } => {
                let own = self.session.as_ref().is_some_and(|s| s.epoch == epoch);
                if own && self.phase == Phase::Live {
                    self.message(message);
                }
            }
            Input::Begin { request, wants, deadline, holds } => {
                self.begin(now, request, wants, (deadline, holds));
            }
            Input::End { request } => self.end(request),
            Input::Flushed { recall } => self.flushed(recall),
            Input::Invalidated { recall } => self.invalidated(recall),
            Input::Abandoned { discarded } => self.abandoned(&discarded),
            Input::Admit { recall, ino, span } => self.admit(recall, ino, span),
            Input::Leaderless { at } => {
                if let Some(session) = self.session.as_mut().filter(|_| !self.connected) {
                    session.renewed = session.renewed.max(at);
                }
            }
            Input::Forgotten { ino } => self.forgotten(ino),
            Input::Tick => {}
        }
        self.pass_time(now);
        core::mem::take(&mut self.out)
    }

    /// When the session ends unless it is renewed: what the kernel may answer from its caches must
    /// be gone by then.
    #[must_use]
    pub fn valid_until(&self) -> Option<u64> {
        let session = self.session.as_ref().filter(|_| self.phase == Phase::Live)?;
        Some(session.renewed + self.limits.ttl)
    }

    /// When the next [`Input::Tick`] is needed.
    #[must_use]
    pub fn next_deadline(&self) -> Option<u64> {
        let parked = self.parked.values().map(Parked::ends);
        let renewal = (self.phase == Phase::Live && self.connected).then_some(self.renew_at);
        parked.chain(renewal).chain(self.valid_until()).min()
    }

    /// Whether the mount may use this lease now: cache under it, or buffer changes if it is exclusive.
    #[must_use]
    pub fn may(&self, now: u64, want: &Want) -> bool {
        self.valid_until().is_some_and(|until| now < until) && self.covers(want)
    }

    /// The stamp of a commit, made before its bytes are taken out of the buffer: so bytes of a lost session
    /// never go out under the next one. `None` when it must not be sent: the lease or the session is lost.
    /// What was refused is stamped anew; what got no answer is sent again as it was.
    pub fn commit(&mut self, now: u64, want: Want) -> Option<Commit> {
        let until = self.valid_until()?;
        let session = self.session.as_ref()?;
        // Also under a recall: that is what the flush is for.
        if now >= until || !self.has(&want, |_| true) {
            return None;
        }
        self.seq += 1;
        Some(Commit { session: session.id, epoch: session.epoch, stamp: self.stamp, seq: self.seq, want })
    }

    /// The tree is this session's, or these leases are, and nobody wants them back.
    pub(super) fn covers(&self, want: &Want) -> bool {
        self.has(want, |p| p.recall.is_none())
    }

    /// Whether pieces that `which` names cover it, or the tree is one of them.
    fn has(&self, want: &Want, which: impl Fn(&Piece) -> bool) -> bool {
        let by = |ino, want| self.held.get(&ino).is_some_and(|pieces| pieces.cover(want, &which));
        by(want.ino, want) || by(TREE, &Want::TREE)
    }

    pub(super) fn send(&mut self, message: ToLeader) {
        if let Some(session) = self.session.as_ref().filter(|_| self.connected) {
            self.out.push(Output::Send { epoch: session.epoch, message });
        }
    }

    fn opened(&mut self, now: u64, id: SessionId, epoch: Epoch, term: u64, sent: u64) {
        self.session = Some(Session { id, epoch, term, renewed: sent });
        self.phase = Phase::Live;
        self.stamp = GrantId { term, counter: 0 };
        self.tree_asked = false;
        self.connect(now, term);
    }

    /// Greet a leader, and ask it for all that requests here wait for.
    fn connect(&mut self, now: u64, term: u64) {
        self.connected = true;
        self.parked.values_mut().for_each(|parked| parked.away = None);
        let Some(session) = self.session.as_mut().filter(|_| self.phase == Phase::Live) else { return };
        if session.term != term {
            session.term = term;
            // A new leader has recalled nothing yet.
            self.stamp = GrantId { term, counter: 0 };
            self.recalls.clear();
            for piece in self.held.values_mut().flat_map(Pieces::iter_mut) {
                (piece.id, piece.recall) = (self.stamp, None);
            }
        }
        let held = self.held.iter().flat_map(|(&ino, pieces)| {
            pieces.iter().map(move |p| Want { ino, lane: p.lane, span: p.span, mode: p.mode })
        });
        let held = held.collect();
        self.send(ToLeader::Hello { sent: now, held });
        self.renew_at = now + self.limits.renew;
        for request in self.parked.keys().copied().collect::<Vec<_>>() {
            self.ask(request);
        }
        self.tree_asked = false;
    }

    fn disconnect(&mut self, now: u64) {
        self.connected = false;
        let until = now + self.limits.away;
        for parked in self.parked.values_mut() {
            parked.away.get_or_insert(until);
        }
    }

    /// Whether there is a way to the leader.
    #[must_use]
    pub const fn is_connected(&self) -> bool {
        self.connected
    }

    fn ask(&mut self, request: RequestId) {
        if let Some(parked) = self.parked.get(&request).filter(|_| self.phase == Phase::Live) {
            let wants = parked.wants.clone();
            self.send(ToLeader::Ask { request, wants });
        }
    }

    fn message(&mut self, message: ToClient) {
        match message {
            ToClient::Renewed { sent, alone } => {
                if let Some(session) = &mut self.session {
                    session.renewed = session.renewed.max(sent);
                }
                if alone && !self.tree_asked && !self.held.contains_key(&TREE) {
                    self.tree_asked = true;
                    self.send(ToLeader::Ask { request: TREE_REQUEST, wants: Vec::from([Want::TREE]) });
                }
            }
            ToClient::Granted { request, id, grants } => self.granted(request, id, &grants),
            ToClient::Recall { id, ino, lane, span } => self.recall(id, ino, lane, span),
            ToClient::Refused { request: TREE_REQUEST } => self.tree_asked = false,
            ToClient::Refused { request } => {
                if self.parked.remove(&request).is_some() {
                    self.out.push(Output::Busy { request });
                }
            }
            ToClient::Gone => self.lose(),
        }
    }

    fn granted(&mut self, request: RequestId, id: GrantId, grants: &[Want]) {
        let Some(owner) = self.session.as_ref().map(|s| s.id) else { return };
        self.stamp = self.stamp.max(id);
        for want in grants {
            self.held.entry(want.ino).or_default().insert(Piece::new(owner, want, id), 0);
        }
        self.tree_asked &= request != TREE_REQUEST;
        let ready = self.parked.iter().filter(|(_, parked)| parked.wants.iter().all(|w| self.covers(w)));
        for ready in ready.map(|(&id, _)| id).collect::<Vec<_>>() {
            let Some(parked) = self.parked.remove(&ready) else { continue };
            self.run(ready, parked.wants);
            if ready != request {
                self.send(ToLeader::Cancel { request: ready });
            }
        }
    }

    fn begin(&mut self, now: u64, request: RequestId, wants: Vec<Want>, (deadline, holds): (u64, Holds)) {
        if self.phase == Phase::Live && wants.iter().all(|want| self.covers(want)) {
            return self.run(request, wants);
        }
        if self.parked.len() >= self.limits.session_requests {
            return self.out.push(Output::Busy { request });
        }
        let away = (!self.connected).then(|| now + self.limits.away);
        self.parked.insert(request, Parked { wants, deadline, holds, away });
        self.ask(request);
    }

    fn run(&mut self, request: RequestId, wants: Vec<Want>) {
        self.running.insert(request, Running { wants, lost: false });
        self.out.push(Output::Ready { request });
    }

    fn admit(&mut self, recall: Option<GrantId>, ino: Ino, span: Span) {
        let live = self.phase == Phase::Live;
        let free = |p: &Piece| p.recall.is_none() || p.recall == recall;
        let mut those = Vec::new();
        for (&request, parked) in self.parked.iter().filter(|(_, parked)| parked.holds.has(span)) {
            let runs = live && parked.wants.iter().all(|want| self.has(want, free));
            let ends = runs || !live || matches!(parked.holds, Holds::Several(_));
            if ends && parked.wants.iter().any(|want| want.ino == ino) {
                those.push((request, runs));
            }
        }
        for (request, runs) in those {
            let Some(parked) = self.parked.remove(&request) else { continue };
            if !live {
                self.out.push(Output::TimedOut { request });
                continue;
            }
            self.send(ToLeader::Cancel { request });
            if !runs {
                self.out.push(Output::Busy { request });
                continue;
            }
            self.running.insert(request, Running { wants: parked.wants, lost: false });
            self.out.push(Output::Admitted { request, ino });
        }
    }

    fn end(&mut self, request: RequestId) {
        let Some(running) = self.running.remove(&request) else { return };
        if running.lost {
            self.out.push(Output::Lost { request });
            self.drained();
        } else {
            self.advance_all();
        }
    }

    fn forgotten(&mut self, ino: Ino) {
        let uses = |running: &Running| running.wants.iter().any(|want| want.ino == ino);
        let recalled = self.held.get(&ino).is_none_or(|pieces| pieces.iter().any(|p| p.recall.is_some()));
        if recalled || self.running.values().any(uses) {
            return;
        }
        let stamp = self.stamp;
        for lane in [Lane::Data, Lane::Attr, Lane::Names] {
            let holds = self.held.get(&ino).is_some_and(|pieces| pieces.iter().any(|p| p.lane == lane));
            if holds {
                self.send(ToLeader::Release { ino, lane, stamp });
            }
        }
        self.held.remove(&ino);
    }

    fn pass_time(&mut self, now: u64) {
        if self.phase == Phase::New {
            self.phase = Phase::Opening;
            self.out.push(Output::Open);
        }
        if self.phase == Phase::Live && self.connected && self.renew_at <= now {
            self.renew_at = now + self.limits.renew;
            self.send(ToLeader::Renew { sent: now });
        }
        let late = self.parked.iter().filter(|(_, parked)| parked.ends() <= now);
        for request in late.map(|(&request, _)| request).collect::<Vec<_>>() {
            self.parked.remove(&request);
            self.out.push(Output::TimedOut { request });
            if self.phase == Phase::Live {
                self.send(ToLeader::Cancel { request });
            }
        }
    }
}
