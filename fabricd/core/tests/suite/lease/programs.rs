//! What the mounts and their programs do in the simulation, and what they check.

use kos_core::lease::{
    Epoch, Holds, Input, Lane, Mode, Output, Refusal, RequestId, TREE, ToClient, ToLeader,
};
use kos_types::Ino;

use super::log::{Cell, want};
use super::mount::{Flight, Kind, Mount, Op};
use super::world::{Bug, Event, REST, WAIT_MAX, World};

const MS: u64 = 1000;
/// Far above what a request may take.
const DEADLINE: u64 = 4000 * MS;
/// Between looks whether the kernel waits for a request.
const STUCK: u64 = MS;

/// Two files of three stripes, and two directories.
pub(super) fn cells() -> impl Iterator<Item = Cell> {
    let files =
        (10..12).flat_map(|ino| (0..3).map(move |n| (ino, Lane::Data, n)).chain([(ino, Lane::Attr, 0)]));
    files.chain((20..22).map(|dir| (dir, Lane::Names, 0)))
}

impl World {
    /// Something happens at a mount that runs.
    pub(super) fn act(&mut self, event: Event) {
        match event {
            Event::Down(c, connection, epoch, message) => {
                if self.mounts[c].connection.is_some_and(|own| own.number == connection) {
                    self.receive(c, epoch, message);
                }
            }
            Event::Opened(c, connection, sent, epoch) => {
                let mount = &mut self.mounts[c];
                let Some(own) = mount.connection.filter(|own| own.number == connection) else { return };
                if mount.opening == Some(sent) {
                    mount.opening = None;
                    mount.epoch = epoch;
                    let session = mount.session;
                    self.call(c, Input::Opened { session, epoch, term: own.term, sent });
                    self.check_beliefs(c);
                }
            }
            Event::Tick(c) => {
                // Others were overtaken by an earlier one.
                if self.mounts[c].tick <= self.now {
                    self.mounts[c].tick = u64::MAX;
                    self.call(c, Input::Tick);
                }
            }
            Event::Committed(c, seq, verdict) => self.committed(c, seq, verdict),
            Event::Again(c, seq) => {
                if let Some(flight) = self.mounts[c].flights.get(&seq).copied() {
                    self.send_commit(c, flight);
                }
            }
            Event::OpenAgain(c, sent) => {
                if self.mounts[c].opening == Some(sent) {
                    self.ask_for_session(c);
                }
            }
            Event::Work(c, request, fetched) => self.work(c, request, fetched),
            Event::Think(c, task) => self.think(c, task),
            Event::Flush(c) => {
                for cell in self.mounts[c].dirty.keys().copied().collect::<Vec<_>>() {
                    self.flush(c, cell);
                }
                self.after(5 * MS..200 * MS, Event::Flush(c));
            }
            Event::Invalidated(c, recall, (ino, lane, span)) => {
                if self.mounts[c].is_stuck(ino, lane, span) {
                    self.at(self.now + STUCK, Event::Invalidated(c, recall, (ino, lane, span)));
                    let all = if ino == TREE { vec![Ino(10), Ino(11)] } else { vec![ino] };
                    return all
                        .into_iter()
                        .for_each(|ino| self.call(c, Input::Admit { recall: Some(recall), ino, span }));
                }
                // What was let in may have left something.
                let dirty = self.mounts[c].dirty_in(ino, lane, span);
                if !dirty.is_empty() && self.mounts[c].is_live(self.now) && self.bug != Some(Bug::NotFlushed)
                {
                    dirty.into_iter().for_each(|cell| self.flush(c, cell));
                    return self.at(self.now + STUCK, Event::Invalidated(c, recall, (ino, lane, span)));
                }
                if self.bug != Some(Bug::NotInvalidated) {
                    self.mounts[c].invalidate(ino, lane, span);
                }
                self.after(1..2 * MS, Event::Gone(c, recall));
            }
            Event::Gone(c, recall) => self.call(c, Input::Invalidated { recall }),
            Event::Abandoned(c, discarded) => self.call(c, Input::Abandoned { discarded }),
            Event::Connect(c) => {
                if self.mounts[c].connection.is_none() {
                    self.connect(c);
                }
            }
            _ => self.wrong = Some("an event went astray".into()),
        }
    }

    fn receive(&mut self, c: usize, epoch: Epoch, mut message: ToClient) {
        if let ToClient::Renewed { sent, .. } = &mut message
            && self.bug == Some(Bug::CountedFromArrival)
        {
            *sent = self.mounts[c].clock.at(self.now);
        }
        self.call(c, Input::Message { epoch, message });
        self.check_beliefs(c);
    }

    /// Give a mount's machine an input, and do what it says.
    pub(super) fn call(&mut self, c: usize, input: Input) {
        let mount = &mut self.mounts[c];
        let outputs = mount.client.step(mount.clock.at(self.now), input);
        let next = mount.client.next_deadline().map(|at| mount.clock.until(self.now, at));
        if let Some(next) = next.filter(|&next| next < mount.tick) {
            mount.tick = next;
            self.at(next, Event::Tick(c));
        }
        for output in outputs {
            self.obey(c, output);
        }
    }

    fn obey(&mut self, c: usize, output: Output) {
        match output {
            Output::Send { epoch, message } => {
                let Some(own) = self.mounts[c].connection else { return };
                let lost =
                    self.bug == Some(Bug::NeverAcknowledged) && matches!(message, ToLeader::Ack { .. });
                if lost || self.mounts[c].mute {
                    return;
                }
                let at = self.arrival(|mount| &mut mount.up, c);
                self.at(at, Event::Up(c, own.number, epoch, message));
            }
            Output::Ready { request } => self.ready(c, request),
            Output::Admitted { request, ino } => {
                self.stats.admitted += 1;
                if let Some(op) = self.mounts[c].ops.get_mut(&request) {
                    op.admitted = Some(ino);
                }
                self.ready(c, request);
            }
            Output::TimedOut { request } | Output::Busy { request } => self.failed(c, request),
            Output::Lost { request } => {
                self.stats.lost += 1;
                self.failed(c, request);
            }
            Output::Flush { recall, ino, lane, span } => {
                self.stats.trees += u64::from(ino == TREE);
                self.mounts[c].flushing.insert(recall, (ino, lane, span));
                if self.bug == Some(Bug::NotFlushed) {
                    self.mounts[c].flushing.remove(&recall);
                    return self.call(c, Input::Flushed { recall });
                }
                for cell in self.mounts[c].dirty_in(ino, lane, span) {
                    self.flush(c, cell);
                }
                self.check_flushed(c);
            }
            Output::Invalidate { recall, ino, lane, span, .. } => {
                self.after(1..500, Event::Invalidated(c, recall, (ino, lane, span)));
            }
            Output::Abandon => self.abandon(c),
            Output::Open => self.ask_for_session(c),
        }
    }

    fn abandon(&mut self, c: usize) {
        let mount = &mut self.mounts[c];
        mount.cache.clear();
        mount.flights.clear();
        mount.flushing.clear();
        let dirty = std::mem::take(&mut mount.dirty);
        for (&cell, &version) in &dirty {
            self.log.discarded(cell, version);
        }
        let discarded = dirty.keys().map(|cell| Ino(cell.0)).collect();
        self.after(1..2 * MS, Event::Abandoned(c, discarded));
    }

    fn ask_for_session(&mut self, c: usize) {
        let sent = self.mounts[c].clock.at(self.now);
        self.mounts[c].opening = Some(sent);
        if self.mounts[c].connection.is_some() {
            self.after(10..MS, Event::Open(c, sent));
        }
        self.after(50 * MS..100 * MS, Event::OpenAgain(c, sent));
    }

    fn ready(&mut self, c: usize, request: RequestId) {
        let mount = &self.mounts[c];
        match mount.ops.get(&request).map(|op| &op.kind) {
            Some(Kind::Read(cells) | Kind::Fill(cells)) if mount.missing(cells).is_some() => {
                let missing = mount.missing(cells).into_iter();
                let fetch = missing.map(|cell| Event::Fetch(c, request, cell)).collect::<Vec<_>>();
                fetch.into_iter().for_each(|fetch| self.after(10..2 * MS, fetch));
            }
            Some(_) => self.after(1..500, Event::Work(c, request, None)),
            None => self.wrong = Some(format!("mount {c}: {request:?} runs twice")),
        }
    }

    /// A program's request does what it came for.
    fn work(&mut self, c: usize, request: RequestId, fetched: Option<(Cell, u64)>) {
        let Some(op) = self.mounts[c].ops.get(&request) else { return };
        let (kind, then) = (op.kind.clone(), op.then.clone());
        let mut versions = Vec::new();
        if let Kind::Write(cells) = &kind {
            for &cell in cells {
                let version = self.log.new_version();
                self.mounts[c].dirty.insert(cell, version);
                versions.push((cell, version));
            }
        }
        // The session's end cannot have come and gone: a new one waits for all that runs.
        let mount = &self.mounts[c];
        let held = mount.client.valid_until().is_some_and(|until| mount.clock.at(self.now) < until);
        // The end may begin a flush, so what all must see from now on is told first.
        for &(cell, version) in versions.iter().filter(|_| held) {
            self.log.written(cell, version, self.mounts[c].session);
        }
        if let Kind::Read(cells) | Kind::Fill(cells) = &kind
            && held
        {
            let mount = &mut self.mounts[c];
            if let Some((cell, version)) = fetched.filter(|(cell, _)| mount.missing(cells) == Some(*cell)) {
                mount.cache.insert(cell, version);
            }
            if mount.missing(cells).is_some() {
                // There are more, or an old recall has emptied the cache meanwhile.
                return self.ready(c, request);
            }
            // What a fenced session has written is lost. Until it hears of that, or its time is over, it reads its own:
            // nobody else is granted anything of it before.
            let is_fenced = self.log.epoch(mount.session) > mount.epoch;
            for &cell in cells.iter().filter(|cell| !is_fenced || !mount.dirty.contains_key(cell)) {
                let seen = mount.dirty.get(&cell).or_else(|| mount.cache.get(&cell)).copied();
                let current = self.log.current(cell);
                if seen != Some(current) {
                    self.wrong = Some(format!("mount {c} reads {seen:?} of {cell:?}, current is {current}"));
                }
            }
        }
        let holds = then.is_some() && self.bug == Some(Bug::UpgradeHolds);
        if !holds {
            self.call(c, Input::End { request });
        }
        // Otherwise it was lost.
        if self.mounts[c].ops.contains_key(&request) {
            self.finish(c, request, holds);
        }
    }

    fn finish(&mut self, c: usize, request: RequestId, holds: bool) {
        let Some(op) = self.mounts[c].ops.remove(&request) else { return };
        let waited = self.now - op.began;
        self.stats.ops += 1;
        self.stats.longest = self.stats.longest.max(waited);
        if waited > WAIT_MAX && !self.faults {
            self.wrong = Some(format!("mount {c}: {request:?} {:?} took {waited} us", op.kind));
        }
        if let Some(held) = op.holds {
            self.call(c, Input::End { request: held });
        }
        match op.then {
            Some(kind) => {
                self.stats.upgrades += 1;
                self.begin(c, op.task, kind, None, holds.then_some(request));
            }
            None => self.after(1..20 * MS, Event::Think(c, op.task)),
        }
    }

    fn failed(&mut self, c: usize, request: RequestId) {
        let Some(op) = self.mounts[c].ops.remove(&request) else { return };
        self.stats.failed += 1;
        if let Kind::Fill(cells) = &op.kind
            && matches!(op.kind.holds(), Holds::Several(_))
        {
            self.stats.yielded += 1;
            return self.begin(c, op.task, Kind::Fill(vec![cells[0]]), None, None);
        }
        if !self.faults {
            self.wrong = Some(format!("mount {c}: {request:?} {:?} failed without a fault", op.kind));
        }
        if let Some(held) = op.holds {
            self.call(c, Input::End { request: held });
        }
        self.after(1..20 * MS, Event::Think(c, op.task));
    }

    pub(super) fn think(&mut self, c: usize, task: u64) {
        if self.now >= REST {
            return;
        }
        let all: Vec<_> = cells().collect();
        let index = self.rng.within(0..all.len() as u64) as usize;
        let cell = all[index];
        let (kind, then) = match self.rng.within(0..9) {
            0..3 => (Kind::Read(vec![cell]), None),
            3..5 => (Kind::Write(vec![cell]), None),
            5 => (Kind::Read(vec![cell]), Some(Kind::Write(vec![cell]))),
            // Pages of one stripe or two.
            8 => {
                let first = self.rng.within(0..3);
                let last = (first + self.rng.within(0..2)).min(2);
                (Kind::Fill((first..=last).map(|nth| (10, Lane::Data, nth)).collect()), None)
            }
            // An append needs the size and a stripe, a rename two directories: in either order.
            6 => (Kind::Write(vec![(10, Lane::Attr, 0), (10, Lane::Data, self.rng.within(0..3))]), None),
            _ => {
                let (from, to) = if self.rng.one_in(2) { (20, 21) } else { (21, 20) };
                (Kind::Write(vec![(from, Lane::Names, 0), (to, Lane::Names, 0)]), None)
            }
        };
        self.begin(c, task, kind, then, None);
    }

    fn begin(&mut self, c: usize, task: u64, kind: Kind, then: Option<Kind>, holds: Option<RequestId>) {
        let mount = &mut self.mounts[c];
        let request = mount.next_request();
        let wants = Mount::wants(&kind);
        let deadline = mount.clock.at(self.now) + DEADLINE;
        let holds_pages = match kind.holds() {
            Holds::Several(span) if self.bug == Some(Bug::NeverYields) => Holds::Pages(span),
            holds => holds,
        };
        mount.ops.insert(request, Op { kind, then, task, began: self.now, holds, admitted: None });
        self.call(c, Input::Begin { request, wants, deadline, holds: holds_pages });
    }

    /// Commit what is dirty of a cell, unless a commit of it is on its way.
    pub(super) fn flush(&mut self, c: usize, cell: Cell) {
        let mount = &mut self.mounts[c];
        let Some(&version) = mount.dirty.get(&cell) else { return };
        if mount.flights.values().any(|flight| flight.cell == cell) {
            return;
        }
        let now = mount.clock.at(self.now);
        let Some(commit) = mount.client.commit(now, want(cell, Mode::Exclusive)) else {
            if mount.client.valid_until().is_some_and(|until| now < until) {
                self.wrong = Some(format!("mount {c}: {cell:?} is dirty without a lease"));
            }
            return;
        };
        let flight = Flight { cell, version, commit };
        mount.flights.insert(commit.seq, flight);
        self.send_commit(c, flight);
    }

    fn send_commit(&mut self, c: usize, flight: Flight) {
        let Flight { cell, version, commit } = flight;
        if let Some(own) = self.mounts[c].connection {
            for copy in 0..2 {
                let sent = if copy == 0 {
                    !self.faults || !self.rng.one_in(10)
                } else {
                    self.faults && self.rng.one_in(6)
                };
                let slow = self.faults && self.rng.one_in(8);
                if sent {
                    let delay = if slow { MS..600 * MS } else { 10..MS };
                    self.after(delay, Event::Commit(c, own.term, commit, cell, version));
                }
            }
        }
        self.after(30 * MS..60 * MS, Event::Again(c, commit.seq));
    }

    fn committed(&mut self, c: usize, seq: u64, verdict: Result<(), Refusal>) {
        if verdict == Err(Refusal::Later) {
            // It is sent again by itself.
            return;
        }
        let mount = &mut self.mounts[c];
        let Some(Flight { cell, version, .. }) = mount.flights.remove(&seq) else { return };
        if verdict == Ok(()) && mount.dirty.get(&cell) == Some(&version) {
            mount.dirty.remove(&cell);
            mount.cache.insert(cell, version);
        }
        if verdict != Err(Refusal::Gone) && !mount.flushing.is_empty() {
            self.flush(c, cell);
        }
        self.check_flushed(c);
    }

    fn check_flushed(&mut self, c: usize) {
        for recall in self.mounts[c].flushed() {
            if self.mounts[c].flushing.remove(&recall).is_some() {
                self.call(c, Input::Flushed { recall });
            }
        }
    }
}
