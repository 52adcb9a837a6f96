//! Single rules of the leases, told step by step.

use kos_core::lease::{
    Action, Client, Commit, Epoch, Event, FileId, GrantId, Holds, Input, Limits, Mode, Output, Refusal,
    RequestId, Span, Table, ToClient, ToLeader, Want,
};
use kos_types::limits::STRIPE_BYTES_MAX;
use kos_types::{Ino, SessionId};

const LIMITS: Limits = Limits::DEFAULT;
const FILE: Ino = Ino(9);
/// Two stripes.
const BOTH: Span = Span { start: 0, end: 2 * STRIPE_BYTES_MAX as u64 };

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
fn a_new_part_is_held_for_a_moment_beside_an_old_one() {
    let mut leader = Leader::new(2, LIMITS);
    let part = |nth: u64| Want::data(FILE, nth * STRIPE_BYTES_MAX as u64, 1, Mode::Exclusive);
    // Nobody minds, so it has all of the file, of which the other takes two parts.
    leader.ask(0, &[part(0)]);
    for nth in [1, 2] {
        let asked = recalls(&leader.ask(1, &[part(nth)]));
        assert_eq!((asked.len(), asked[0].0), (1, 0));
        assert_eq!(grants(&leader.say(0, ToLeader::Ack { recall: asked[0].1, seq: 0 })).len(), 1);
    }
    let ask = |n| ToLeader::Ask { request: RequestId(100 + n), wants: vec![part(n)] };
    let message = |message| Event::Message { session: SessionId(0), epoch: Epoch(1), message };
    assert!(recalls(&leader.table.step(leader.now + 1, message(ask(2)))).is_empty(), "new");
    assert_eq!(recalls(&leader.table.step(leader.now + 1, message(ask(1)))).len(), 1, "old");
    assert_eq!(recalls(&leader.table.step(leader.now + LIMITS.hold, Event::Tick)).len(), 1);
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
        holds: Holds::Nothing,
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

/// A mount with a session, and what it holds.
fn holding(wants: &[Want]) -> Client {
    let mut client = Client::new(LIMITS);
    assert_eq!(client.step(0, Input::Tick), [Output::Open]);
    let opened = Input::Opened { session: SessionId(1), epoch: Epoch(1), term: 1, sent: 1 };
    assert!(matches!(client.step(1, opened)[..], [Output::Send { message: ToLeader::Hello { .. }, .. }]));
    let id = GrantId { term: 1, counter: 1 };
    tell(&mut client, ToClient::Granted { request: RequestId(1), id, grants: wants.to_vec() });
    client
}

fn tell(client: &mut Client, message: ToClient) -> Vec<Output> {
    client.step(2, Input::Message { epoch: Epoch(1), message })
}

fn begin(client: &mut Client, request: u64, wants: &[Want]) -> Vec<Output> {
    begin_that(client, request, wants, Holds::Pages(wants[0].span))
}

fn begin_that(client: &mut Client, request: u64, wants: &[Want], holds: Holds) -> Vec<Output> {
    let (request, wants) = (RequestId(request), wants.to_vec());
    client.step(2, Input::Begin { request, wants, deadline: u64::MAX, holds })
}

#[test]
fn what_waits_for_a_recall_is_let_in_if_its_leases_are_held_still() {
    let (want, other) = (Want::attr(FILE, Mode::Exclusive), Want::attr(Ino(10), Mode::Exclusive));
    let mut client = holding(&[want]);
    let recall = GrantId { term: 1, counter: 2 };
    let asked =
        tell(&mut client, ToClient::Recall { id: recall, ino: FILE, lane: want.lane, span: want.span });
    assert!(matches!(asked[..], [Output::Flush { .. }]));
    assert!(matches!(client.step(2, Input::Flushed { recall })[..], [Output::Invalidate { .. }]));
    // Nothing begins any more.
    for (request, wants) in [(2, vec![want]), (3, vec![want, other]), (4, vec![other])] {
        let parked = begin(&mut client, request, &wants);
        assert!(matches!(parked[..], [Output::Send { message: ToLeader::Ask { .. }, .. }]), "{parked:?}");
    }
    // One needs what was never held, one is of another inode.
    let (epoch, request) = (Epoch(1), RequestId(2));
    let let_in = client.step(2, Input::Admit { recall: Some(recall), ino: FILE, span: want.span });
    let cancel = Output::Send { epoch, message: ToLeader::Cancel { request } };
    assert_eq!(let_in, [cancel, Output::Admitted { request, ino: FILE }]);
    assert!(
        client.step(2, Input::Admit { recall: Some(recall), ino: FILE, span: want.span }).is_empty(),
        "once"
    );
    assert!(client.commit(2, want).is_some(), "what it changes is committed under the lease");
    // Others go on.
    let both = GrantId { term: 1, counter: 3 };
    tell(&mut client, ToClient::Granted { request: RequestId(4), id: both, grants: vec![other] });
    assert!(client.step(2, Input::End { request: RequestId(4) }).is_empty());
    assert!(client.step(2, Input::End { request }).is_empty());
    let given = client.step(2, Input::Invalidated { recall });
    let seq = 1;
    assert_eq!(given, [Output::Send { epoch, message: ToLeader::Ack { recall, seq } }]);
    assert!(client.commit(2, want).is_none());
}

#[test]
fn a_recall_that_comes_again_means_what_was_joined_to_newer_leases_too() {
    let part = |nth: u64, mode| Want::data(FILE, nth * STRIPE_BYTES_MAX as u64, 1, mode);
    let mut client = holding(&[part(0, Mode::Shared), part(1, Mode::Shared)]);
    // The recall went down with a connection that broke. What is granted over the next one overtakes it.
    let (recall, newer) = (GrantId { term: 1, counter: 2 }, GrantId { term: 1, counter: 3 });
    let grants = vec![part(2, Mode::Shared)];
    tell(&mut client, ToClient::Granted { request: RequestId(9), id: newer, grants });
    let Want { ino, lane, span, .. } = part(1, Mode::Shared);
    let asked = tell(&mut client, ToClient::Recall { id: recall, ino, lane, span });
    assert!(matches!(asked[..], [Output::Invalidate { .. }]), "{asked:?}");
    assert!(!client.may(2, &part(1, Mode::Shared)));
    assert!(client.may(2, &part(0, Mode::Shared)) && client.may(2, &part(2, Mode::Shared)));
}

#[test]
fn what_yields_and_wants_more_than_is_held_fails_for_a_recall() {
    let parts = [0, 1].map(|nth| Want::data(FILE, nth * STRIPE_BYTES_MAX as u64, 1, Mode::Exclusive));
    let mut client = holding(&parts[..1]);
    let id = GrantId { term: 1, counter: 2 };
    let Want { ino, lane, span, .. } = parts[0];
    assert!(matches!(
        tell(&mut client, ToClient::Recall { id, ino, lane, span })[..],
        [Output::Flush { .. }]
    ));
    begin_that(&mut client, 2, &parts, Holds::Several(BOTH));
    begin_that(&mut client, 3, &parts, Holds::Pages(BOTH));
    // Nobody waits for what does not touch the part.
    begin_that(&mut client, 4, &parts[1..], Holds::Several(parts[1].span));
    let (epoch, request) = (Epoch(1), RequestId(2));
    let cancel = Output::Send { epoch, message: ToLeader::Cancel { request } };
    assert_eq!(
        client.step(2, Input::Admit { recall: Some(id), ino, span }),
        [cancel, Output::Busy { request }]
    );
}

#[test]
fn what_has_no_pages_waits_until_a_recall_is_done() {
    let want = Want::data(FILE, 0, 1, Mode::Exclusive);
    let mut client = holding(&[want]);
    let recall = GrantId { term: 1, counter: 2 };
    tell(&mut client, ToClient::Recall { id: recall, ino: FILE, lane: want.lane, span: want.span });
    begin_that(&mut client, 2, &[want], Holds::Nothing);
    assert!(client.step(2, Input::Admit { recall: Some(recall), ino: FILE, span: want.span }).is_empty());
    assert!(matches!(client.step(2, Input::Flushed { recall })[..], [Output::Invalidate { .. }]));
    assert!(matches!(client.step(2, Input::Invalidated { recall })[..], [Output::Send { .. }]));
    let (id, request) = (GrantId { term: 1, counter: 3 }, RequestId(2));
    let granted = tell(&mut client, ToClient::Granted { request, id, grants: vec![want] });
    assert_eq!(granted, [Output::Ready { request }]);
}

/// Two parts of a file, each under a recall of its own.
fn two_recalls() -> (Client, [Want; 2], [GrantId; 2]) {
    let parts = [0, 1].map(|nth| Want::data(FILE, nth * STRIPE_BYTES_MAX as u64, 1, Mode::Exclusive));
    let mut client = holding(&parts);
    let ids = [2, 3].map(|counter| GrantId { term: 1, counter });
    for (want, id) in parts.iter().zip(ids) {
        tell(&mut client, ToClient::Recall { id, ino: FILE, lane: want.lane, span: want.span });
        assert!(matches!(client.step(2, Input::Flushed { recall: id })[..], [Output::Invalidate { .. }]));
    }
    (client, parts, ids)
}

#[test]
fn what_another_recall_may_have_thrown_out_is_not_brought_in_again() {
    let (mut client, parts, ids) = two_recalls();
    begin(&mut client, 2, &parts[..1]);
    begin_that(&mut client, 3, &parts, Holds::Several(BOTH));
    begin(&mut client, 4, &parts[1..]);
    let (epoch, both, second) = (Epoch(1), RequestId(3), RequestId(4));
    let cancel = |request| Output::Send { epoch, message: ToLeader::Cancel { request } };
    let let_in = client.step(2, Input::Admit { recall: Some(ids[1]), ino: FILE, span: parts[1].span });
    let busy = Output::Busy { request: both };
    let runs = Output::Admitted { request: second, ino: FILE };
    assert_eq!(let_in, [cancel(both), busy, cancel(second), runs]);
}

#[test]
fn what_went_with_an_earlier_recall_is_given_back_after_it() {
    let parts = [0, 1].map(|nth| Want::data(FILE, nth * STRIPE_BYTES_MAX as u64, 1, Mode::Exclusive));
    let mut client = holding(&parts);
    let [first, second] = [2, 3].map(|counter| GrantId { term: 1, counter });
    let recall = |id, span| ToClient::Recall { id, ino: FILE, lane: parts[0].lane, span };
    // The mount takes it for all of the file, which is undivided there; the leader knows nothing of that.
    assert!(matches!(tell(&mut client, recall(first, Span::ALL))[..], [Output::Flush { .. }]));
    assert!(tell(&mut client, recall(second, parts[1].span)).is_empty(), "it is still in the caches");
    assert!(matches!(client.step(2, Input::Flushed { recall: first })[..], [Output::Invalidate { .. }]));
    let ack = |recall| Output::Send { epoch: Epoch(1), message: ToLeader::Ack { recall, seq: 0 } };
    assert_eq!(client.step(2, Input::Invalidated { recall: first }), [ack(first), ack(second)]);
}

#[test]
fn a_recall_waits_for_what_was_let_in_before_it() {
    let want = Want::attr(FILE, Mode::Exclusive);
    let halves = [Want::data(FILE, 0, 1, Mode::Exclusive), want];
    let mut client = holding(&halves);
    let ids = [2, 3].map(|counter| GrantId { term: 1, counter });
    let recall = |nth: usize| {
        let Want { ino, lane, span, .. } = halves[nth];
        ToClient::Recall { id: ids[nth], ino, lane, span }
    };
    assert!(matches!(tell(&mut client, recall(0))[..], [Output::Flush { .. }]));
    begin(&mut client, 2, &halves);
    assert_eq!(client.step(2, Input::Admit { recall: Some(ids[0]), ino: FILE, span: Span::ALL }).len(), 2);
    // It began after the grants that are recalled, and may touch them all the same.
    assert!(tell(&mut client, recall(1)).is_empty());
    let ended = client.step(2, Input::End { request: RequestId(2) });
    assert!(matches!(ended[..], [Output::Flush { recall, .. }] if recall == ids[1]), "{ended:?}");
}

#[test]
fn what_waits_when_the_session_is_lost_fails_if_the_kernel_waits_for_it() {
    let want = Want::attr(FILE, Mode::Exclusive);
    let mut client = holding(&[]);
    begin(&mut client, 2, &[want]);
    begin(&mut client, 3, &[Want::attr(Ino(10), Mode::Shared)]);
    assert_eq!(tell(&mut client, ToClient::Gone), [Output::Abandon]);
    let refused = client.step(2, Input::Admit { recall: None, ino: FILE, span: Span::ALL });
    assert_eq!(refused, [Output::TimedOut { request: RequestId(2) }], "and only that");
}

#[test]
fn a_recall_of_all_is_over_when_each_has_answered() {
    let mut leader = Leader::new(3, LIMITS);
    let buffered = [Want::attr(FILE, Mode::Exclusive), Want::attr(Ino(10), Mode::Exclusive)];
    leader.ask(0, &[buffered[0]]);
    leader.ask(1, &[buffered[1]]);
    leader.ask(2, &[Want::attr(Ino(11), Mode::Shared)]);
    // One is recalled already, for somebody.
    let (_, earlier, _) = recalls(&leader.ask(1, &[buffered[0]]))[0];
    let asked = recalls(&leader.step(Event::RecallAll { retire: false }));
    assert_eq!(
        asked.iter().map(|&(who, ..)| who).collect::<Vec<_>>(),
        [1],
        "nobody buffers under a shared one"
    );
    let (done, since) = leader.table.recalled(None);
    assert!(!done);
    leader.say(1, ToLeader::Ack { recall: asked[0].1, seq: 0 });
    assert!(!leader.table.recalled(Some(since)).0, "the earlier one is open");
    leader.say(0, ToLeader::Ack { recall: earlier, seq: 0 });
    // One that begins later is not waited for.
    assert_eq!(recalls(&leader.ask(2, &[buffered[0]])).len(), 1);
    assert!(leader.table.recalled(Some(since)).0);
}

#[test]
fn a_leader_that_ends_has_all_back_and_grants_only_its_own_process() {
    let mut leader = Leader::new(1, LIMITS);
    leader.step(Event::Resides { session: SessionId(9), epoch: Epoch(1) });
    let files = [20, 21, 22].map(Ino);
    assert_eq!(grants(&leader.ask(0, &[Want::attr(files[0], Mode::Shared)])).len(), 1);
    assert_eq!(grants(&leader.ask(9, &[Want::attr(files[1], Mode::Exclusive)])).len(), 1);
    let asked = recalls(&leader.step(Event::RecallAll { retire: true }));
    assert_eq!(asked.iter().map(|&(who, _, ino)| (who, ino)).collect::<Vec<_>>(), [(0, files[0])]);
    leader.say(0, ToLeader::Ack { recall: asked[0].1, seq: 0 });
    assert!(leader.table.recalled(None).0);
    assert!(grants(&leader.ask(0, &[Want::attr(files[2], Mode::Shared)])).is_empty());
    assert_eq!(grants(&leader.ask(9, &[Want::attr(files[0], Mode::Exclusive)])).len(), 1);
}

#[test]
fn the_session_of_the_leaders_process_is_never_late() {
    let mut leader = Leader::new(1, LIMITS);
    leader.step(Event::Resides { session: SessionId(9), epoch: Epoch(1) });
    let want = Want::attr(FILE, Mode::Exclusive);
    leader.ask(9, &[want]);
    assert_eq!(recalls(&leader.ask(0, &[want])).len(), 1);
    let until = leader.now + 100 * LIMITS.recall;
    let mut fenced = Vec::new();
    while leader.now < until {
        leader.now += LIMITS.renew;
        fenced.extend(leader.step(Event::Tick));
    }
    let fenced: Vec<_> = fenced.iter().filter(|action| matches!(action, Action::Fence { .. })).collect();
    assert_eq!(fenced, [&Action::Fence { session: SessionId(0), epoch: Epoch(1) }], "the other one is");
    assert_eq!(leader.check(9, GrantId { term: 1, counter: u64::MAX }, 1, want), Ok(()));
}

#[test]
fn while_nobody_leads_a_session_stays() {
    let mut client = holding(&[Want::attr(FILE, Mode::Exclusive)]);
    let later = 10 * LIMITS.ttl;
    // Connected: that somebody leads and does not answer is no excuse.
    assert!(client.step(3, Input::Leaderless { at: 3 }).is_empty());
    assert_eq!(client.valid_until(), Some(1 + LIMITS.ttl));
    assert!(client.step(3, Input::Disconnected).is_empty());
    for at in (3..later).step_by(LIMITS.renew as usize) {
        assert!(client.step(at, Input::Leaderless { at }).is_empty());
    }
    assert!(client.commit(later, Want::attr(FILE, Mode::Exclusive)).is_some());
    let hello = client.step(later, Input::Connected { term: 2 });
    assert!(
        matches!(&hello[..], [Output::Send { message: ToLeader::Hello { held, .. }, .. }] if held.len() == 1),
        "{hello:?}"
    );
}
