//! Single rules of the leases, told step by step.

use kos_core::lease::{
    Action, Client, Commit, Epoch, Event, FileId, GrantId, Input, Limits, Mode, Output, Refusal, RequestId,
    Table, ToClient, ToLeader, Want,
};
use kos_types::{Ino, SessionId};

const LIMITS: Limits = Limits::DEFAULT;
const FILE: Ino = Ino(9);

struct Leader {
    table: Table,
    now: u64,
    requests: u64,
}

impl Leader {
    fn new(sessions: u64, limits: Limits) -> Self {
        let mut leader = Self { table: Table::new(0, 1, limits, None), now: 0, requests: 0 };
        for n in 0..sessions {
            leader.step(Event::Opened { session: SessionId(n), epoch: Epoch(1) });
        }
        leader
    }

    fn step(&mut self, event: Event) -> Vec<Action> {
        self.now += 10_000;
        self.table.step(self.now, event)
    }

    fn say(&mut self, session: u64, message: ToLeader) -> Vec<Action> {
        self.step(Event::Message { session: SessionId(session), epoch: Epoch(1), message })
    }

    fn ask(&mut self, session: u64, wants: &[Want]) -> Vec<Action> {
        self.requests += 1;
        self.say(session, ToLeader::Ask { request: RequestId(self.requests), wants: wants.to_vec() })
    }

    fn check(&self, session: u64, stamp: GrantId, seq: u64, want: Want) -> Result<(), Refusal> {
        let commit = Commit { session: SessionId(session), epoch: Epoch(1), stamp, seq, want };
        self.table.check(self.now, &commit)
    }
}

/// The grants in some actions: to whom, and their id.
fn grants(actions: &[Action]) -> Vec<(u64, GrantId)> {
    let grant = |action: &Action| match action {
        Action::Send { session, message: ToClient::Granted { id, .. }, .. } => Some((session.0, *id)),
        _ => None,
    };
    actions.iter().filter_map(grant).collect()
}

fn recalls(actions: &[Action]) -> Vec<(u64, GrantId, Ino)> {
    let recall = |action: &Action| match action {
        Action::Send { session, message: ToClient::Recall { id, ino, .. }, .. } => {
            Some((session.0, *id, *ino))
        }
        _ => None,
    };
    actions.iter().filter_map(recall).collect()
}

#[test]
fn a_commit_from_before_an_acknowledged_recall_is_refused() {
    let mut leader = Leader::new(2, LIMITS);
    let want = Want::data(FILE, 0, 1, Mode::Exclusive);
    let first = grants(&leader.ask(0, &[want]))[0].1;
    assert_eq!(leader.check(0, first, 1, want), Ok(()));
    let (_, recall, _) = recalls(&leader.ask(1, &[want]))[0];
    // The flush itself still passes.
    assert_eq!(leader.check(0, recall, 2, want), Ok(()));
    assert_eq!(leader.check(1, recall, 1, want), Err(Refusal::NotHeld));
    assert_eq!(grants(&leader.say(0, ToLeader::Ack { recall, seq: 2 }))[0].0, 1);
    assert_eq!(leader.check(0, recall, 2, want), Err(Refusal::NotHeld));
    // Also when it holds the lease again.
    let (_, recall, _) = recalls(&leader.ask(0, &[want]))[0];
    let again = grants(&leader.say(1, ToLeader::Ack { recall, seq: 0 }))[0].1;
    assert_eq!(leader.check(0, first, 1, want), Err(Refusal::NotHeld));
    assert_eq!(leader.check(0, again, 2, want), Err(Refusal::NotHeld));
    assert_eq!(leader.check(0, again, 3, want), Ok(()));
}

#[test]
fn a_silent_holder_is_fenced_and_its_caches_outlive_nothing() {
    let mut leader = Leader::new(2, LIMITS);
    let want = Want::attr(FILE, Mode::Exclusive);
    leader.ask(0, &[want]);
    assert_eq!(recalls(&leader.ask(1, &[want])).len(), 1);
    let mut fence = Vec::new();
    while fence.is_empty() {
        leader.say(0, ToLeader::Renew { sent: 0 });
        let actions = leader.say(1, ToLeader::Renew { sent: 0 });
        fence.extend(actions.into_iter().filter(|action| matches!(action, Action::Fence { .. })));
        assert!(leader.now < 2 * LIMITS.recall);
    }
    assert_eq!(fence, [Action::Fence { session: SessionId(0), epoch: Epoch(1) }]);
    assert_eq!(leader.check(0, GrantId { term: 9, counter: 0 }, 9, want), Err(Refusal::Gone));
    // Its epoch is raised, but it may still answer from its caches until its own clock says no.
    let fenced = leader.step(Event::Fenced { session: SessionId(0), epoch: Epoch(2) });
    assert!(grants(&fenced).is_empty());
    let from = leader.now;
    let mut granted = Vec::new();
    while granted.is_empty() {
        granted = grants(&leader.say(1, ToLeader::Renew { sent: 0 }));
    }
    assert!(leader.now - from >= LIMITS.ttl && leader.now - from < 2 * LIMITS.ttl);
}

#[test]
fn crossed_upgrades_and_renames_end() {
    let mut leader = Leader::new(2, LIMITS);
    let shared = Want::data(FILE, 0, 1, Mode::Shared);
    let exclusive = Want { mode: Mode::Exclusive, ..shared };
    for session in 0..2 {
        assert_eq!(grants(&leader.ask(session, &[shared])).len(), 1);
    }
    let (who, recall, _) = recalls(&leader.ask(0, &[exclusive]))[0];
    assert_eq!(who, 1);
    // The other wants the same: it is behind, and gives up what it has.
    assert!(recalls(&leader.ask(1, &[exclusive])).is_empty());
    assert_eq!(grants(&leader.say(1, ToLeader::Ack { recall, seq: 0 }))[0].0, 0);

    let dirs = [Want::names(Ino(20), Mode::Exclusive), Want::names(Ino(21), Mode::Exclusive)];
    assert_eq!(grants(&leader.ask(0, &dirs))[0].0, 0);
    let asked = recalls(&leader.ask(1, &[dirs[1], dirs[0]]));
    assert_eq!(asked.len(), 2);
    assert!(grants(&leader.say(0, ToLeader::Ack { recall: asked[0].1, seq: 0 })).is_empty());
    assert_eq!(grants(&leader.say(0, ToLeader::Ack { recall: asked[1].1, seq: 0 }))[0].0, 1);
}

#[test]
fn a_new_lease_is_held_for_a_moment() {
    let mut leader = Leader::new(2, LIMITS);
    let want = Want::attr(FILE, Mode::Exclusive);
    leader.ask(0, &[want]);
    let ask = ToLeader::Ask { request: RequestId(7), wants: vec![want] };
    let message = |message| Event::Message { session: SessionId(1), epoch: Epoch(1), message };
    assert!(recalls(&leader.table.step(leader.now + 1, message(ask))).is_empty());
    let due = leader.table.next_deadline().expect("a hold");
    assert_eq!(due, leader.now + LIMITS.hold);
    assert_eq!(recalls(&leader.table.step(due, Event::Tick)).len(), 1);
}

#[test]
fn one_session_has_the_tree_until_another_asks() {
    let mut leader = Leader::new(1, LIMITS);
    assert_eq!(grants(&leader.ask(0, &[Want::TREE])).len(), 1);
    leader.step(Event::Opened { session: SessionId(1), epoch: Epoch(1) });
    let asked = recalls(&leader.ask(1, &[Want::attr(FILE, Mode::Shared)]));
    assert_eq!((asked.len(), asked[0].0), (1, 0));
    assert_eq!(grants(&leader.say(0, ToLeader::Ack { recall: asked[0].1, seq: 0 }))[0].0, 1);
    // It is not alone any more.
    let refused = leader.ask(0, &[Want::TREE]);
    assert!(matches!(refused[0], Action::Send { message: ToClient::Refused { .. }, .. }));
}

#[test]
fn a_session_holds_a_bounded_number_of_leases() {
    const BOUND: u64 = 100;
    let mut leader = Leader::new(1, Limits { session_leases: BOUND as usize, ..LIMITS });
    let mut held = 0;
    for ino in 0..10 * BOUND {
        let mode = if ino == 0 { Mode::Exclusive } else { Mode::Shared };
        let actions = leader.ask(0, &[Want::attr(Ino(100 + ino), mode)]);
        held += grants(&actions).len() as u64;
        for (_, recall, given) in recalls(&actions) {
            // The oldest, but what is buffered stays while there are others.
            assert!(given > Ino(100));
            held -= 1;
            held += grants(&leader.say(0, ToLeader::Ack { recall, seq: 0 })).len() as u64;
        }
        assert!(held <= BOUND);
    }
    assert!(held > BOUND / 2);
}

#[test]
fn too_many_requests_are_refused() {
    let mut leader = Leader::new(2, Limits { session_requests: 10, ..LIMITS });
    let want = Want::attr(FILE, Mode::Exclusive);
    leader.ask(0, &[want]);
    let refused = |actions: &[Action]| {
        actions.iter().any(|a| matches!(a, Action::Send { message: ToClient::Refused { .. }, .. }))
    };
    assert_eq!((0..12).filter(|_| refused(&leader.ask(1, &[want]))).count(), 2);
    assert!(refused(&leader.ask(0, &[want; LIMITS.request_wants + 1])));
}

#[test]
fn a_lost_session_is_abandoned_before_the_next_and_each_file_hears_of_it_once() {
    let mut client = Client::new(LIMITS);
    let opened = |epoch, sent| Input::Opened { session: SessionId(1), epoch: Epoch(epoch), term: 1, sent };
    assert_eq!(client.step(0, Input::Tick), [Output::Open]);
    assert!(client.step(10, opened(1, 5)).iter().all(|out| matches!(out, Output::Send { .. })));
    for file in 0..3 {
        client.file_opened(FileId(file), Ino(file));
    }
    client.file_locked(FileId(2), true);
    let granted = ToClient::Granted {
        request: RequestId(1),
        id: GrantId { term: 1, counter: 1 },
        grants: vec![Want::attr(Ino(0), Mode::Exclusive)],
    };
    let begin = |n| Input::Begin {
        request: RequestId(n),
        wants: vec![Want::attr(Ino(0), Mode::Exclusive)],
        deadline: u64::MAX,
    };
    assert_eq!(client.step(20, begin(1)).len(), 1);
    let ready = client.step(30, Input::Message { epoch: Epoch(1), message: granted });
    assert_eq!(ready, [Output::Ready { request: RequestId(1) }]);
    // Counted from when the session was asked for.
    let over = 5 + LIMITS.ttl;
    assert_eq!(client.valid_until(), Some(over));
    assert!(client.may(over - 1, &Want::attr(Ino(0), Mode::Shared)));
    assert!(!client.may(over, &Want::attr(Ino(0), Mode::Shared)));
    assert!(client.commit(over, Want::attr(Ino(0), Mode::Exclusive)).is_none());
    assert_eq!(client.step(over, Input::Tick), [Output::Abandon]);
    assert!(client.step(over, begin(2)).is_empty());
    // The request may have left something after the first look.
    assert!(client.step(over, Input::Abandoned { discarded: vec![] }).is_empty());
    let end = client.step(over, Input::End { request: RequestId(1) });
    assert_eq!(end, [Output::Lost { request: RequestId(1) }, Output::Abandon]);
    assert_eq!(client.step(over, Input::Abandoned { discarded: vec![Ino(0)] }), [Output::Open]);
    assert!(client.file_fails(FileId(0)) && !client.file_fails(FileId(0)));
    assert!(!client.file_fails(FileId(1)));
    assert!(client.file_fails(FileId(2)) && client.file_fails(FileId(2)) && client.file_closed(FileId(2)));
    // The new session asks for what still waits.
    let again = client.step(over + 9, opened(2, over));
    assert!(again.iter().any(|out| matches!(
        out,
        Output::Send { epoch: Epoch(2), message: ToLeader::Ask { request: RequestId(2), .. } }
    )));
}
