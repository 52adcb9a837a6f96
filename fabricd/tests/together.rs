//! Changes proposed together are applied or refused one by one.

use std::path::Path;
use std::sync::Arc;

use fabricd::{Hub, Node, Options};
use kos_types::{
    Access, Cred, ExtentPut, Fabric, FileKind, Ino, Kind, Op, Policy, ROOT, Reply, Result, Source, StripeId,
    limits,
};

fn node(state: &Path) -> Arc<Node> {
    Arc::new(
        Node::open(&Options { state: vec![state.to_owned()], ram_bytes: 0, resumes: false }).expect("node"),
    )
}

fn create(name: &str) -> Op {
    let (name, cred) = (name.as_bytes().to_vec(), Cred { uid: 0, gid: 0 });
    let kind = FileKind::File;
    Op::Create { parent: ROOT, name, kind, mode: 0o600, umask: 0, cred, rdev: 0, target: Vec::new() }
}

fn ino(reply: Result<Reply>) -> Ino {
    match reply.expect("created") {
        Reply::Attr(attr) => attr.ino,
        other => panic!("{other:?}"),
    }
}

fn commit(ino: Ino, stripes: &[(StripeId, u64)], at: u64, stripe: StripeId) -> Op {
    Op::Commit {
        ino,
        stripes: stripes.iter().map(|&(id, len)| (id, Policy::default(), len)).collect(),
        holes: Vec::new(),
        extents: vec![ExtentPut { off: 0, len: 100, stripe, at }],
        inline: Vec::new(),
        size_min: 0,
        mtime: None,
    }
}

#[test]
fn each_is_answered_in_its_place_and_survives_a_restart() {
    let state = tempfile::tempdir().expect("temporary directory");
    let first = node(state.path());
    let count = 2 * limits::GROUP_MAX + 5;
    let names: Vec<String> = (0..count).map(|i| (i - i % 7 / 6).to_string()).collect();
    let replies = first.propose_all(names.iter().map(|name| create(name)).collect());
    assert_eq!(replies.len(), count);
    for (i, (name, reply)) in names.iter().zip(&replies).enumerate() {
        match reply {
            Ok(Reply::Attr(attr)) => assert_eq!(first.lookup(ROOT, name.as_bytes()), Ok(attr.clone())),
            other => {
                // Of a name that came right before it, perhaps in the group before.
                assert_eq!(i % 7, 6, "{other:?}");
                assert_eq!(other.as_ref().map_err(kos_types::Error::kind), Err(Kind::Exists));
            }
        }
    }
    let entries = first.list(ROOT, 0, usize::MAX).expect("list");
    Arc::into_inner(first).expect("the only one").close().expect("close");
    assert_eq!(node(state.path()).list(ROOT, 0, usize::MAX).expect("list"), entries);
}

#[test]
fn a_stripe_that_one_brings_is_there_for_the_next() {
    let state = tempfile::tempdir().expect("temporary directory");
    let node = node(state.path());
    let files: Vec<Ino> = ["a", "b"].map(|name| ino(node.propose(create(name)))).into();
    let data = [[1; 100], [2; 100]].concat();
    let id = node.write_stripe(Policy::default(), &data).expect("stripe");
    let unwritten = StripeId(id.0 + 1);
    let replies = node.propose_all(vec![
        commit(files[0], &[(unwritten, 200)], 0, unwritten),
        commit(files[0], &[(id, 200)], 0, id),
        commit(files[1], &[], 100, id),
        commit(Ino(1 << 40), &[], 0, id),
    ]);
    let kinds: Vec<_> = replies.iter().map(|reply| reply.as_ref().map(drop).map_err(|e| e.kind())).collect();
    assert_eq!(kinds, [Err(Kind::Stale), Ok(()), Ok(()), Err(Kind::Stale)]);
    for (file, byte) in files.into_iter().zip([1, 2]) {
        let map = node.extents(file, 0, 100).expect("extents");
        let Some(&Source::Stripe(stripe, at)) = map.extents.first().map(|extent| &extent.source) else {
            panic!("{map:?}")
        };
        let mut out = [0; 100];
        node.read_stripe(stripe, at, &mut out).expect("read");
        assert_eq!(out, [byte; 100]);
    }
}

#[test]
fn what_is_open_is_not_dropped_with_the_others() {
    let state = tempfile::tempdir().expect("temporary directory");
    let node = node(state.path());
    let hub = Hub::new(Arc::clone(&node)).expect("hub");
    let session = hub.embed();
    let names = ["a", "b", "c"];
    let files = names.map(|name| ino(session.propose(create(name))));
    session.open(files[1], Access::Read).expect("open");
    for name in names {
        session.propose(Op::Unlink { parent: ROOT, name: name.as_bytes().to_vec() }).expect("unlink");
    }
    let replies = session.propose_all(files.map(|ino| Op::Reap { ino }).into());
    assert_eq!(replies, [Ok(Reply::Done), Ok(Reply::Done), Ok(Reply::Done)]);
    let there = |ino| node.attr(ino).is_ok();
    assert_eq!(files.map(there), [false, true, false]);
    session.close(files[1], Access::Read);
    assert_eq!(files.map(there), [false, false, false]);
}
