//! A simulated mount: a lease client, a cache, a write buffer, and programs that use them.

use std::collections::BTreeMap;

use kos_core::lease::{Client, Commit, Epoch, GrantId, Holds, Lane, Limits, RequestId, Span, TREE, Want};
use kos_types::{Ino, SessionId};

use super::log::{Cell, want};
use super::world::Event;
use kos_core::lease::Mode;

/// A clock that is wrong, and runs a little too fast or too slow.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock {
    pub(super) offset: u64,
    pub(super) ppm: i64,
}

impl Clock {
    pub(super) fn at(self, now: u64) -> u64 {
        let drift = i128::from(now) * i128::from(self.ppm) / 1_000_000;
        (i128::from(self.offset) + i128::from(now) + drift) as u64
    }

    /// When this clock shows `local`, or a moment later.
    pub(super) fn until(self, now: u64, local: u64) -> u64 {
        let left = local.saturating_sub(self.at(now));
        now + left + left / 500 + 1
    }
}

/// What a program does.
#[derive(Debug, Clone)]
pub(super) enum Kind {
    Read(Vec<Cell>),
    /// The same by a kernel that holds the pages meanwhile: nobody throws them out.
    Fill(Vec<Cell>),
    Write(Vec<Cell>),
}

impl Kind {
    /// What holds several may fail without a fault: each cell is asked for by itself then.
    pub(super) fn holds(&self) -> Holds {
        match self {
            Self::Fill(cells) => {
                let spans = || cells.iter().map(|&cell| want(cell, Mode::Shared).span);
                let start = spans().map(|span| span.start).min().unwrap_or(0);
                let end = spans().map(|span| span.end).max().unwrap_or(u64::MAX);
                let holds = if cells.len() > 1 { Holds::Several } else { Holds::Pages };
                holds(Span { start, end })
            }
            Self::Read(_) | Self::Write(_) => Holds::Nothing,
        }
    }
}

#[derive(Debug)]
pub(super) struct Op {
    pub(super) kind: Kind,
    /// Read, then write the same: an upgrade.
    pub(super) then: Option<Kind>,
    pub(super) task: u64,
    pub(super) began: u64,
    /// A request that must not end before this one does. A mistake, planted.
    pub(super) holds: Option<RequestId>,
    /// It was let in during a recall of this inode.
    pub(super) admitted: Option<Ino>,
}

/// A commit without an answer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Flight {
    pub(super) cell: Cell,
    pub(super) version: u64,
    pub(super) commit: Commit,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Connection {
    pub(super) number: u64,
    pub(super) term: u64,
}

#[derive(Debug)]
pub(super) struct Mount {
    pub(super) client: Client,
    pub(super) clock: Clock,
    pub(super) session: SessionId,
    pub(super) epoch: Epoch,
    pub(super) connection: Option<Connection>,
    pub(super) connections: u64,
    /// The last arrivals each way: connections keep their order.
    pub(super) up: u64,
    pub(super) down: u64,
    pub(super) mute: bool,
    pub(super) stopped: bool,
    /// What came while it was stopped.
    pub(super) backlog: Vec<Event>,
    pub(super) opening: Option<u64>,
    pub(super) tick: u64,
    pub(super) cache: BTreeMap<Cell, u64>,
    pub(super) dirty: BTreeMap<Cell, u64>,
    pub(super) flights: BTreeMap<u64, Flight>,
    pub(super) flushing: BTreeMap<GrantId, (Ino, Lane, Span)>,
    pub(super) ops: BTreeMap<RequestId, Op>,
    pub(super) requests: u64,
}

impl Mount {
    pub(super) fn new(number: u64, clock: Clock, limits: Limits) -> Self {
        Self {
            client: Client::new(limits),
            clock,
            session: SessionId(number),
            epoch: Epoch(0),
            connection: None,
            connections: 0,
            up: 0,
            down: 0,
            mute: false,
            stopped: false,
            backlog: Vec::new(),
            opening: None,
            tick: 0,
            cache: BTreeMap::new(),
            dirty: BTreeMap::new(),
            flights: BTreeMap::new(),
            flushing: BTreeMap::new(),
            ops: BTreeMap::new(),
            requests: 0,
        }
    }

    pub(super) fn next_request(&mut self) -> RequestId {
        self.requests += 1;
        RequestId(self.requests)
    }

    /// Whether it believes that it may do this now.
    pub(super) fn believes(&self, now: u64, cell: Cell, mode: Mode) -> bool {
        self.client.may(self.clock.at(now), &want(cell, mode))
    }

    pub(super) fn wants(kind: &Kind) -> Vec<Want> {
        match kind {
            Kind::Read(cells) | Kind::Fill(cells) => {
                cells.iter().map(|cell| want(*cell, Mode::Shared)).collect()
            }
            Kind::Write(cells) => cells.iter().map(|cell| want(*cell, Mode::Exclusive)).collect(),
        }
    }

    /// What is dirty in a range.
    pub(super) fn dirty_in(&self, ino: Ino, lane: Lane, span: Span) -> Vec<Cell> {
        self.dirty.keys().copied().filter(|cell| is_in(*cell, ino, lane, span)).collect()
    }

    /// Whether its session lives by its own clock.
    pub(super) fn is_live(&self, now: u64) -> bool {
        self.client.valid_until().is_some_and(|until| self.clock.at(now) < until)
    }

    /// The first of these that is not in memory.
    pub(super) fn missing(&self, cells: &[Cell]) -> Option<Cell> {
        let there = |cell: &Cell| self.cache.contains_key(cell) || self.dirty.contains_key(cell);
        cells.iter().copied().find(|cell| !there(cell))
    }

    /// Whether the kernel waits for something before it throws this out.
    pub(super) fn is_stuck(&self, ino: Ino, lane: Lane, span: Span) -> bool {
        self.ops.values().any(|op| {
            let held = matches!(&op.kind, Kind::Fill(cells) if cells.iter().any(|&cell| is_in(cell, ino, lane, span)));
            held || op.admitted.is_some_and(|of| of == ino || ino == TREE)
        })
    }

    pub(super) fn invalidate(&mut self, ino: Ino, lane: Lane, span: Span) {
        self.cache.retain(|cell, _| !is_in(*cell, ino, lane, span));
    }

    /// Recalls with nothing left to flush.
    pub(super) fn flushed(&self) -> Vec<GrantId> {
        let done = |area: &(Ino, Lane, Span)| self.dirty_in(area.0, area.1, area.2).is_empty();
        self.flushing.iter().filter(|(_, area)| done(area)).map(|(&id, _)| id).collect()
    }
}

fn is_in(cell: Cell, ino: Ino, lane: Lane, span: Span) -> bool {
    let own = want(cell, Mode::Shared);
    ino == TREE || own.ino == ino && own.lane == lane && own.span.overlaps(span)
}
