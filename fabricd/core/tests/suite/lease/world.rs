//! Several mounts, one leader at a time, a network and a log, all from one seed.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use kos_core::lease::{
    self, Action, Commit, Epoch, GrantId, Input, Lane, Limits, Mode, Refusal, RequestId, Span, Table,
    ToClient, ToLeader,
};
use kos_types::{Ino, SessionId};

use super::log::{Cell, Log};
use super::mount::{Clock, Connection, Mount};
use crate::rng::Rng;

const MS: u64 = 1000;
/// Ten times shorter than in use, so that a seed is soon done.
pub(super) const LIMITS: Limits = Limits {
    ttl: 300 * MS,
    margin: 50 * MS,
    renew: 100 * MS,
    hold: 2 * MS,
    recall: 400 * MS,
    away: 3000 * MS,
    session_leases: 6,
    inode_pieces: 3,
    session_requests: 64,
    request_wants: 4,
};
/// Faults end here; from then on everything must end too.
const HEAL: u64 = 1500 * MS;
/// No program begins anything from here on.
pub(super) const REST: u64 = 1800 * MS;
const END: u64 = 6000 * MS;
/// A program waits no longer than this when nothing fails.
pub(super) const WAIT_MAX: u64 = 700 * MS;

/// A mistake, planted to see that it is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bug {
    /// The leader is told of fences that the log does not have.
    FenceNotLogged,
    /// Late commits are neither refused nor known to be repeated.
    LateCommits,
    /// The leader counts less than the sessions do.
    NoMargin,
    /// Sessions count from the arrival of an answer.
    CountedFromArrival,
    /// Recalls are acknowledged before the flush.
    NotFlushed,
    /// Recalls leave the cache as it is.
    NotInvalidated,
    /// A new leader forgets the sessions.
    NoGrace,
    /// A deposed leader still answers.
    NoReadIndex,
    /// An upgrade keeps its shared lease in use while it waits.
    UpgradeHolds,
    /// Recalls are never acknowledged, and nobody is fenced for it.
    NeverAcknowledged,
    /// What holds pages of several stripes waits for all of them.
    NeverYields,
}

#[derive(Debug, Clone)]
pub(super) enum Event {
    Up(usize, u64, Epoch, ToLeader),
    Down(usize, u64, Epoch, ToClient),
    /// The log has a session for the mount, which asked for it at that time of its own clock.
    Opened(usize, u64, u64, Epoch),
    /// A leader has shown that it still was one.
    Confirmed(u64, Vec<Action>),
    Fence(u64, SessionId, Epoch),
    LeaderTick(u64),
    Tick(usize),
    Commit(usize, u64, Commit, Cell, u64),
    Committed(usize, u64, Result<(), Refusal>),
    Again(usize, u64),
    Open(usize, u64),
    OpenAgain(usize, u64),
    Fetch(usize, RequestId, Cell),
    Work(usize, RequestId, Option<(Cell, u64)>),
    Think(usize, u64),
    Flush(usize),
    Invalidated(usize, GrantId, (Ino, Lane, Span)),
    /// What was thrown out is out, and the mount comes to say so.
    Gone(usize, GrantId),
    Abandoned(usize, Vec<Ino>),
    Break(usize),
    /// Nothing that a mount sends arrives any more, until its connection breaks.
    Mute(usize),
    Connect(usize),
    Stop(usize),
    Resume(usize),
    Elect,
}

#[derive(Debug)]
struct Leader {
    table: Table,
    clock: Clock,
    tick: u64,
    /// Its answers keep their order.
    confirmed: u64,
}

/// What a seed came to.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Stats {
    pub(super) ops: u64,
    pub(super) failed: u64,
    pub(super) longest: u64,
    pub(super) recalls: u64,
    pub(super) fences: u64,
    pub(super) lost: u64,
    pub(super) refused: u64,
    pub(super) trees: u64,
    pub(super) upgrades: u64,
    pub(super) yielded: u64,
    pub(super) admitted: u64,
}

impl Stats {
    pub(super) fn add(&mut self, other: &Self) {
        self.ops += other.ops;
        self.failed += other.failed;
        self.longest = self.longest.max(other.longest);
        self.recalls += other.recalls;
        self.fences += other.fences;
        self.lost += other.lost;
        self.refused += other.refused;
        self.trees += other.trees;
        self.upgrades += other.upgrades;
        self.yielded += other.yielded;
        self.admitted += other.admitted;
    }
}

type Entry = Reverse<(u64, u64)>;

pub(super) struct World {
    pub(super) rng: Rng,
    pub(super) now: u64,
    pub(super) bug: Option<Bug>,
    pub(super) faults: bool,
    /// One message in so many is slow.
    slow: u64,
    pub(super) mounts: Vec<Mount>,
    pub(super) log: Log,
    pub(super) stats: Stats,
    pub(super) wrong: Option<String>,
    leaders: Vec<Leader>,
    order: BinaryHeap<Entry>,
    events: BTreeMap<u64, Event>,
    number: u64,
}

impl World {
    /// Run one seed to its end.
    pub(super) fn run(seed: u64, bug: Option<Bug>) -> Result<Stats, String> {
        let mut rng = Rng::new(seed);
        let faults = !rng.one_in(4);
        let limits = if bug == Some(Bug::NoMargin) { Limits { ttl: 500 * MS, ..LIMITS } } else { LIMITS };
        let slow = if rng.one_in(4) { 8 } else { 50 };
        let count = rng.within(2..5);
        let clock = |rng: &mut Rng| Clock {
            offset: rng.within(0..1_000_000_000),
            ppm: rng.within(0..2001) as i64 - 1000,
        };
        let mounts = (0..count).map(|n| Mount::new(n, clock(&mut rng), limits)).collect();
        let mut world = Self {
            rng,
            now: 0,
            bug,
            faults,
            slow,
            mounts,
            log: Log::default(),
            stats: Stats::default(),
            wrong: None,
            leaders: Vec::new(),
            order: BinaryHeap::new(),
            events: BTreeMap::new(),
            number: 0,
        };
        world.elect();
        for c in 0..world.mounts.len() {
            // The first is alone for a while.
            let begin = if c == 0 { 0 } else { world.rng.within(0..600 * MS) };
            world.at(begin, Event::Tick(c));
            world.at(begin, Event::Connect(c));
            world.at(begin, Event::Flush(c));
            for task in 0..3 {
                world.at(begin, Event::Think(c, task));
            }
        }
        world.plan_faults();
        world.go()
    }

    fn plan_faults(&mut self) {
        if !self.faults {
            return;
        }
        for c in 0..self.mounts.len() {
            for _ in 0..self.rng.within(0..5) {
                let at = self.rng.within(0..HEAL);
                // Often about as long as a session lives.
                let end = (at + self.rng.within(1..600 * MS)).min(HEAL);
                if self.rng.one_in(2) {
                    self.at(at, Event::Stop(c));
                    self.at(end, Event::Resume(c));
                }
                if self.rng.one_in(2) {
                    // Perhaps right after it goes on.
                    self.at(end, Event::Break(c));
                    // Half of it may be dead before the whole is.
                    if self.rng.one_in(2) {
                        self.at(at, Event::Mute(c));
                    }
                }
            }
        }
        for _ in 0..self.rng.within(0..3) {
            let at = self.rng.within(0..HEAL);
            self.at(at, Event::Elect);
        }
    }

    fn go(mut self) -> Result<Stats, String> {
        while let Some(Reverse((at, number))) = self.order.pop() {
            let Some(event) = self.events.remove(&number) else { continue };
            if at > END {
                break;
            }
            self.now = at;
            self.take(event);
            if let Some(wrong) = self.wrong.take() {
                return Err(format!("at {} us: {wrong}", self.now));
            }
        }
        if let Some((c, (id, op))) =
            self.mounts.iter().enumerate().find_map(|(c, m)| m.ops.first_key_value().map(|op| (c, op)))
        {
            return Err(format!("mount {c}: {id:?} {op:?} never ended"));
        }
        self.log.settled()?;
        Ok(self.stats)
    }

    pub(super) fn at(&mut self, at: u64, event: Event) {
        self.number += 1;
        self.order.push(Reverse((at, self.number)));
        self.events.insert(self.number, event);
    }

    pub(super) fn after(&mut self, delay: std::ops::Range<u64>, event: Event) {
        let delay = self.rng.within(delay);
        self.at(self.now + delay, event);
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Up(c, connection, epoch, message) => {
                let own = self.mounts[c].connection.filter(|own| own.number == connection);
                let Some(own) = own else { return };
                let session = self.mounts[c].session;
                self.lead(own.term, lease::Event::Message { session, epoch, message });
            }
            Event::Confirmed(term, actions) => self.confirmed(term, actions),
            Event::Fence(term, session, epoch) => self.fence(term, session, epoch),
            Event::LeaderTick(term) => {
                if self.leaders[term as usize - 1].tick <= self.now {
                    self.leaders[term as usize - 1].tick = u64::MAX;
                    self.lead(term, lease::Event::Tick);
                }
            }
            Event::Commit(c, term, commit, cell, version) => self.commit(c, term, &commit, cell, version),
            Event::Open(c, sent) => self.open(c, sent),
            Event::Fetch(c, request, cell) => {
                let fetched = Some((cell, self.log.committed(cell)));
                self.after(10..MS, Event::Work(c, request, fetched));
            }
            Event::Break(c) => self.cut(c),
            Event::Mute(c) => self.mounts[c].mute = true,
            Event::Stop(c) => self.mounts[c].stopped = true,
            Event::Resume(c) => {
                self.mounts[c].stopped = false;
                for event in std::mem::take(&mut self.mounts[c].backlog) {
                    self.at(self.now, event);
                }
            }
            Event::Elect => self.elect(),
            Event::Down(c, ..)
            | Event::Opened(c, ..)
            | Event::Tick(c)
            | Event::Committed(c, ..)
            | Event::Again(c, ..)
            | Event::OpenAgain(c, ..)
            | Event::Work(c, ..)
            | Event::Think(c, ..)
            | Event::Flush(c)
            | Event::Invalidated(c, ..)
            | Event::Gone(c, ..)
            | Event::Abandoned(c, ..)
            | Event::Connect(c) => {
                if self.mounts[c].stopped {
                    self.mounts[c].backlog.push(event);
                } else {
                    self.act(event);
                }
            }
        }
    }

    fn term(&self) -> u64 {
        self.leaders.len() as u64
    }

    fn elect(&mut self) {
        let term = self.term() + 1;
        let clock =
            Clock { offset: self.rng.within(0..1_000_000_000), ppm: self.rng.within(0..2001) as i64 - 1000 };
        let known = if self.bug == Some(Bug::NoGrace) { Vec::new() } else { self.log.sessions() };
        let table = Table::new(clock.at(self.now), term, LIMITS, known);
        self.leaders.push(Leader { table, clock, tick: u64::MAX, confirmed: 0 });
        self.lead(term, lease::Event::Tick);
        for c in (0..self.mounts.len()).filter(|_| term > 1) {
            // Some learn it late.
            self.after(0..200 * MS, Event::Break(c));
        }
    }

    fn cut(&mut self, c: usize) {
        let mount = &mut self.mounts[c];
        if mount.connection.take().is_some_and(|own| own.term > 0) {
            self.call(c, Input::Disconnected);
            let delay = if self.rng.one_in(2) && self.now < HEAL { 1..600 * MS } else { 1..20 * MS };
            self.after(delay, Event::Connect(c));
        }
    }

    /// Give a leader an event, also a deposed one: it does not know.
    fn lead(&mut self, term: u64, event: lease::Event) {
        let now = self.now;
        let leader = &mut self.leaders[term as usize - 1];
        let actions = leader.table.step(leader.clock.at(now), event);
        let next = leader.table.next_deadline().map(|at| leader.clock.until(now, at));
        if let Some(next) = next.filter(|&next| next < leader.tick) {
            leader.tick = next;
            self.at(next, Event::LeaderTick(term));
        }
        if !actions.is_empty() {
            let at = self.now + self.rng.within(10..300);
            let leader = &mut self.leaders[term as usize - 1];
            leader.confirmed = leader.confirmed.max(at);
            let at = leader.confirmed;
            self.at(at, Event::Confirmed(term, actions));
        }
    }

    fn confirmed(&mut self, term: u64, actions: Vec<Action>) {
        let deposed = term != self.term();
        if deposed && self.bug != Some(Bug::NoReadIndex) {
            return;
        }
        for action in actions {
            match action {
                Action::Send { session, epoch, message } => {
                    self.stats.recalls += u64::from(matches!(message, ToClient::Recall { .. }));
                    self.down(session, term, epoch, message);
                }
                Action::Close { session, epoch } if !deposed => self.log.close(session, epoch),
                Action::Close { .. } => {}
                Action::Fence { session, epoch } => {
                    self.after(10..5 * MS, Event::Fence(term, session, epoch))
                }
            }
        }
    }

    fn down(&mut self, session: SessionId, term: u64, epoch: Epoch, message: ToClient) {
        let c = session.0 as usize;
        let Some(own) = self.mounts[c].connection.filter(|own| own.term == term) else { return };
        let at = self.arrival(|mount| &mut mount.down, c);
        self.at(at, Event::Down(c, own.number, epoch, message));
    }

    /// When what is sent now arrives, behind what was sent before.
    pub(super) fn arrival(&mut self, way: impl FnOnce(&mut Mount) -> &mut u64, c: usize) -> u64 {
        let delay = if self.faults && self.rng.one_in(self.slow) { 1..200 * MS } else { 10..500 };
        let at = self.now + self.rng.within(delay);
        let last = way(&mut self.mounts[c]);
        *last = at.max(*last);
        *last
    }

    fn fence(&mut self, term: u64, session: SessionId, epoch: Epoch) {
        if term != self.term() {
            return;
        }
        self.stats.fences += 1;
        let mut raised = self.log.epoch(session);
        if self.bug == Some(Bug::FenceNotLogged) {
            raised = Epoch(epoch.0 + 1);
        } else if raised == epoch {
            raised = self.log.raise(session);
        }
        self.lead(term, lease::Event::Fenced { session, epoch: raised });
    }

    fn open(&mut self, c: usize, sent: u64) {
        let session = self.mounts[c].session;
        let epoch = self.log.raise(session);
        let term = self.term();
        self.lead(term, lease::Event::Opened { session, epoch });
        if let Some(own) = self.mounts[c].connection.filter(|own| own.term == term) {
            let at = self.arrival(|mount| &mut mount.down, c);
            self.at(at, Event::Opened(c, own.number, sent, epoch));
        }
    }

    /// A commit arrives at the leader; it comes late, twice or not at all.
    fn commit(&mut self, c: usize, term: u64, commit: &Commit, cell: Cell, version: u64) {
        if term != self.term() {
            return;
        }
        let leader = &self.leaders[term as usize - 1];
        let mut verdict = leader.table.check(leader.clock.at(self.now), commit);
        if matches!(self.bug, Some(Bug::LateCommits | Bug::FenceNotLogged)) {
            verdict = Ok(());
        }
        if self.log.has_reply(commit) && self.bug != Some(Bug::LateCommits) {
            verdict = Ok(());
        } else if self.log.epoch(commit.session) != commit.epoch && self.bug != Some(Bug::FenceNotLogged) {
            verdict = Err(Refusal::Gone);
        } else if verdict.is_ok() {
            let holds = |m: &Mount| m.session != commit.session && m.believes(self.now, cell, Mode::Shared);
            let others = self.mounts.iter().any(holds);
            if let Err(wrong) = self.log.apply(commit, cell, version, others) {
                self.wrong = Some(wrong);
            }
        }
        self.stats.refused += u64::from(verdict.is_err());
        self.after(10..2 * MS, Event::Committed(c, commit.seq, verdict));
    }

    /// Connect a mount to whoever leads now.
    pub(super) fn connect(&mut self, c: usize) {
        let term = self.term();
        let mount = &mut self.mounts[c];
        mount.connections += 1;
        mount.mute = false;
        mount.connection = Some(Connection { number: mount.connections, term });
        self.call(c, Input::Connected { term });
        if let Some(sent) = self.mounts[c].opening {
            self.after(0..MS, Event::OpenAgain(c, sent));
        }
    }

    /// No two mounts may believe at one moment what does not go together.
    pub(super) fn check_beliefs(&mut self, c: usize) {
        for cell in super::programs::cells() {
            let shared = self.mounts[c].believes(self.now, cell, Mode::Shared);
            if !shared {
                continue;
            }
            let exclusive = self.mounts[c].believes(self.now, cell, Mode::Exclusive);
            let others = self.mounts.iter().enumerate().filter(|(other, _)| *other != c);
            let mode = if exclusive { Mode::Shared } else { Mode::Exclusive };
            if let Some((other, _)) = others.into_iter().find(|(_, m)| m.believes(self.now, cell, mode)) {
                self.wrong = Some(format!("mounts {c} and {other} both believe to hold {cell:?}"));
            }
        }
    }
}
