//! Sessions: fenced ones are refused, and what is repeated is not done twice.

use kos_core::Tables;
use kos_types::limits::ANSWERS_MAX;
use kos_types::{FileKind, Ino, Kind, Once, Op, Origin, ROOT, Reply, SessionId, StripeId};

use crate::fs::Fs;
use crate::invariants;

fn open(fs: &mut Fs) -> Origin {
    match fs.run(Op::OpenSession) {
        Ok(Reply::Session(session, epoch)) => Origin { session, epoch, ..Origin::default() },
        other => panic!("expected a session: {other:?}"),
    }
}

fn create(name: &str) -> Op {
    let (name, target) = (name.into(), Vec::new());
    let cred = kos_types::Cred { uid: 1, gid: 2 };
    Op::Create { parent: ROOT, name, kind: FileKind::File, mode: 0o644, umask: 0, cred, rdev: 0, target }
}

/// Answers in the tables.
fn answers(fs: &Fs) -> usize {
    fs.tables.scan(b"K", b"L", usize::MAX).expect("scan").len()
}

/// Of the fabric's own mount, whose process was killed before it could answer.
#[test]
fn a_request_that_the_next_process_is_asked_again_is_not_done_twice() {
    let mut fs = Fs::new();
    let once = |slot, request| Origin { once: Some(Once { slot, mount: 7, request }), ..Origin::default() };
    let unlink = || Op::Unlink { parent: ROOT, name: b"a".into() };
    let made = fs.run_as(once(3, 10), create("a")).expect("create");
    let before = fs.tables.clone();
    assert_eq!(fs.run_as(once(3, 10), create("a")), Ok(made));
    assert_eq!(fs.tables, before, "done twice");
    let other = Origin { once: Some(Once { slot: 3, mount: 8, request: 10 }), ..Origin::default() };
    assert_eq!(fs.run_as(other, create("a")).map_err(|e| e.kind()), Err(Kind::Exists), "of another mount");
    let gone = fs.run_as(once(3, 12), unlink()).expect("unlink");
    fs.run_as(once(4, 14), create("a")).expect("somebody else's");
    assert_eq!(fs.run_as(once(3, 12), unlink()), Ok(gone), "its answer stays beside others");
    assert!(kos_core::read::lookup(&fs.tables, ROOT, b"a").is_ok(), "somebody else's was removed");
    assert_eq!(answers(&fs), 2, "one for each slot");
    fs.run(Op::ForgetSession { session: SessionId::default() }).expect("its mount has ended");
    assert_eq!(answers(&fs), 0);
    invariants::check(&fs.tables);
}

#[test]
fn a_repeated_command_is_answered_and_not_done_again() {
    let mut fs = Fs::new();
    let origin = open(&mut fs);
    let other = open(&mut fs);
    assert_ne!(origin.session, other.session);
    let rename = |name: &str, to: &str| Op::Rename {
        parent: ROOT,
        name: name.into(),
        new_parent: ROOT,
        new_name: to.into(),
        mode: kos_types::RenameMode::Replace,
    };
    let file = fs.create(ROOT, "f", FileKind::File);
    fs.commit(file, StripeId(1), 10, &[(0, 10, 0)]).expect("commit");
    let snapshot = || Op::TakeSnapshot { name: b"s".into() };
    let unlink = || Op::Unlink { parent: ROOT, name: b"d".into() };
    let ops =
        [create("a"), create("b"), rename("a", "c"), rename("c", "b"), create("d"), unlink(), snapshot()];
    for (seq, op) in (1..).zip(ops) {
        let at = Origin { seq, ..origin };
        let first = fs.run_as(at, op.clone()).expect("once");
        let before = fs.tables.clone();
        assert_eq!(fs.run_as(at, op), Ok(first));
        assert_eq!(fs.tables, before, "command {seq} was done twice");
    }
    // Another session's numbers are its own.
    fs.run_as(Origin { seq: 1, ..other }, create("mine")).expect("create");
    // What was refused is tried again.
    assert_eq!(fs.run_as(Origin { seq: 8, ..origin }, create("f")).map_err(|e| e.kind()), Err(Kind::Exists));
    fs.unlink(ROOT, "f").expect("unlink");
    fs.run_as(Origin { seq: 8, ..origin }, create("f")).expect("create");
    invariants::check(&fs.tables);
}

#[test]
fn answers_go_when_the_client_has_them() {
    let mut fs = Fs::new();
    let origin = open(&mut fs);
    for seq in 1..=300 {
        let at = Origin { seq, answered: seq.saturating_sub(10), ..origin };
        fs.run_as(at, create(&format!("f{seq}"))).expect("create");
        assert!(answers(&fs) <= 10 + 1, "{} answers after command {seq}", answers(&fs));
    }
    let old = fs.run_as(Origin { seq: 280, answered: 290, ..origin }, create("old"));
    assert_eq!(old.map_err(|e| e.kind()), Err(Kind::Fenced));
    let far = Origin { seq: ANSWERS_MAX + 291, answered: 290, ..origin };
    assert_eq!(fs.run_as(far, create("far")).map_err(|e| e.kind()), Err(Kind::Busy));
}

#[test]
fn a_fenced_or_ended_session_changes_nothing() {
    let mut fs = Fs::new();
    let origin = open(&mut fs);
    let at = |origin: Origin, seq| Origin { seq, ..origin };
    let made = fs.run_as(at(origin, 1), create("a")).expect("create");
    let raised = fs.run(Op::FenceSession { session: origin.session }).expect("fence");
    assert_eq!(raised, Reply::Session(origin.session, origin.epoch + 1));
    assert_eq!(fs.run_as(at(origin, 2), create("b")).map_err(|e| e.kind()), Err(Kind::Fenced));
    // What it did before is still answered.
    assert_eq!(fs.run_as(at(origin, 1), create("a")), Ok(made.clone()));
    let origin = Origin { epoch: origin.epoch + 1, ..origin };
    fs.run_as(at(origin, 2), create("b")).expect("create under the new epoch");

    fs.run(Op::EndSession { session: origin.session }).expect("end");
    assert_eq!(fs.run_as(at(origin, 3), create("c")).map_err(|e| e.kind()), Err(Kind::Fenced));
    assert_eq!(fs.run_as(at(origin, 1), create("a")), Ok(made));
    fs.run(Op::ForgetSession { session: origin.session }).expect("forget");
    fs.run(Op::ForgetSession { session: origin.session }).expect("forget again");
    assert_eq!(answers(&fs), 0);
    assert_eq!(fs.run_as(at(origin, 1), create("a")).map_err(|e| e.kind()), Err(Kind::Fenced));
    let unknown = fs.run(Op::FenceSession { session: SessionId(99) });
    assert_eq!(unknown.map_err(|e| e.kind()), Err(Kind::NotFound));
    let live = open(&mut fs);
    let busy = fs.run(Op::ForgetSession { session: live.session });
    assert_eq!(busy.map_err(|e| e.kind()), Err(Kind::Busy));
}

#[test]
fn an_old_grant_writes_nothing() {
    let mut fs = Fs::new();
    let file = fs.create(ROOT, "f", FileKind::File);
    let origin = open(&mut fs);
    let under = |grant| Origin { grant, ..origin };
    let punch = || Op::Punch { ino: file, off: 0, len: 1 };
    fs.run_as(under(3), punch()).expect("no fence");
    fs.run(Op::Fence { ino: file, grant: 5 }).expect("fence");
    assert_eq!(fs.run_as(under(4), punch()).map_err(|e| e.kind()), Err(Kind::Fenced));
    fs.run_as(under(5), punch()).expect("the grant it names");
    fs.run_as(under(0), punch()).expect("no grant needed");
    assert_eq!(fs.run(Op::Fence { ino: Ino(99), grant: 1 }).map_err(|e| e.kind()), Err(Kind::Stale));
    // The fence goes with the inode.
    fs.unlink(ROOT, "f").expect("unlink");
    fs.run(Op::Reap { ino: file }).expect("reap");
    assert!(fs.tables.scan(b"F", b"G", 1).expect("scan").is_empty());
}
