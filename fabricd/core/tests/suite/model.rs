//! The state machine and the model, side by side.

use std::collections::{BTreeMap, BTreeSet};

use kos_core::{Applied, AsOf, Effect, MemTables, Overlay, Tables, apply, initialise, read};
use kos_types::{Command, Error, FileKind, Ino, Kind, Op, Origin, ROOT, Reply, Source, StripeId, Time};

use crate::ops::Ops;
use crate::spec::{Byte, Spec};
use crate::{invariants, rng};

const SEEDS: u64 = 300;
const STEPS: u64 = 400;

/// How often each command ended how.
type Seen = BTreeMap<(String, Option<String>), u64>;

#[test]
fn random_commands_do_what_the_model_does() {
    let mut seen = Seen::new();
    let mut seeds = 0;
    rng::for_seeds(SEEDS, |seed| {
        side_by_side(seed, &mut seen);
        seeds += 1;
    });
    if seeds == SEEDS {
        everything_happened(&seen);
    }
}

fn side_by_side(seed: u64, seen: &mut Seen) {
    let mut tables = MemTables::default();
    tables.write(initialise(Time::default()));
    let mut spec = Spec::new(read::inode(&tables, ROOT).expect("root").attr);
    let mut ops = Ops::new(seed);
    let (mut before, mut group) = (tables.clone(), Vec::new());
    for step in 0..STEPS {
        let command = Command { now: ops.time(), origin: Origin::default(), op: ops.next(&spec) };
        let what = format!("seed {seed}, step {step}: {command:?}");
        let applied = apply(&tables, &command);
        same_again(&tables, &command, &applied);
        let fresh = match &applied {
            Ok(Applied { reply: Reply::Attr(attr), .. }) => attr.ino,
            _ => Ino(0),
        };
        let is_new =
            matches!(command.op, Op::Link { ino, .. } if spec.nodes.get(&ino).is_some_and(|n| n.is_new));
        let expected = spec.apply(&command, fresh);
        assert_eq!(reply(&applied), expected, "{what}");
        count(seen, name_of(&command, is_new), expected.err());
        if let Ok(applied) = applied {
            ops.created(fresh);
            in_force(&mut tables, applied, &spec.freed, &what);
            invariants::check(&tables);
            if matches!(command.op, Op::Prune { .. }) {
                invariants::check_pruned(&tables);
            }
        }
        group.push(command);
        if step % 10 == 9 {
            same_state(&tables, &spec, &what);
            same_together(before, &std::mem::take(&mut group), &tables, &what);
            before = tables.clone();
        }
    }
}

/// Commands applied one on top of the other and written at once leave the same tables.
fn same_together(mut before: MemTables, group: &[Command], after: &MemTables, what: &str) {
    let mut together = Overlay::new(&before);
    for command in group {
        if let Ok(applied) = apply(&together, command) {
            together.absorb(applied.changes);
        }
    }
    let changes = together.into_changes();
    before.write(changes);
    assert!(before == *after, "{what}: together");
}

fn reply(applied: &Result<Applied, Error>) -> Result<Reply, Kind> {
    applied.as_ref().map(|applied| applied.reply.clone()).map_err(Error::kind)
}

/// Replicas must agree: one command on the same tables does the same.
fn same_again(tables: &MemTables, command: &Command, first: &Result<Applied, Error>) {
    match (first, &apply(tables, command)) {
        (Ok(a), Ok(b)) => {
            assert_eq!((&a.reply, &a.changes, &a.effects), (&b.reply, &b.changes, &b.effects));
        }
        (Err(a), Err(b)) => assert_eq!(a, b),
        (a, b) => panic!("{a:?}, then {b:?}"),
    }
}

/// Write the changes; one commit more, and what went into the garbage is exactly what is to be freed.
fn in_force(tables: &mut MemTables, applied: Applied, freed: &BTreeSet<StripeId>, what: &str) {
    let garbage = applied.changes.iter().filter(|(key, value)| key[0] == b'G' && value.is_some());
    let garbage: Vec<StripeId> = garbage.map(|(key, _)| StripeId(kos_core::keys::field(key, 9))).collect();
    let mut free: Vec<StripeId> = applied.effects.iter().map(|&Effect::Free(id)| id).collect();
    free.sort_unstable();
    assert_eq!(free, freed.iter().copied().collect::<Vec<_>>(), "freed by {what}");
    assert_eq!(free, garbage, "freed and garbage of {what}");
    let before = read::state(tables).expect("state").seq;
    tables.write(applied.changes);
    assert_eq!(read::state(tables).expect("state").seq.0, before.0 + 1, "{what}");
}

/// The command's, and another one for links that are a file's first name.
fn name_of(command: &Command, is_new: bool) -> String {
    let op = format!("{:?}", command.op);
    if is_new { "FirstLink".into() } else { op.split(' ').next().unwrap_or_default().into() }
}

fn count(seen: &mut Seen, op: String, error: Option<Kind>) {
    *seen.entry((op, error.map(|kind| format!("{kind:?}")))).or_default() += 1;
}

/// Every read answers as the model is.
fn same_state(tables: &MemTables, spec: &Spec, what: &str) {
    let state = read::state(tables).expect("state");
    assert_eq!((state.batch, state.inodes), (spec.batch, spec.nodes.len() as u64), "{what}");
    same_tree(tables, spec, what);
    for &view in spec.snapshots.keys() {
        let what = format!("{what}, view {view}");
        same_tree(
            &AsOf::seen_by(tables, ROOT.in_view(view)).expect("a snapshot"),
            &spec.seen_in(view),
            &what,
        );
    }
    let shown = kos_core::snapshots(tables).expect("snapshots").into_iter();
    assert!(
        shown.map(|s| (s.view, s.name)).eq(spec.snapshots.iter().map(|(&v, s)| (v, s.0.clone()))),
        "{what}"
    );
    let dead = read::garbage(tables, u64::MAX, usize::MAX).expect("garbage");
    assert!(dead.iter().map(|dead| (dead.0, dead.1)).eq(spec.garbage.iter().copied()), "{what}");
    let orphans = spec.nodes.keys().copied().filter(|&ino| spec.nlink(ino) == 0);
    assert!(read::orphans(tables).expect("orphans").into_iter().eq(orphans), "{what}");
}

fn same_tree<T: Tables>(tables: &T, spec: &Spec, what: &str) {
    for (&ino, node) in &spec.nodes {
        let attr = read::inode(tables, ino).expect("inode").attr;
        assert_eq!(Ok(&attr), spec.stat(ino).as_ref(), "{what}");
        let xattrs = read::xattrs(tables, ino).expect("xattrs").into_iter();
        let xattrs = xattrs.map(|name| (name.clone(), read::xattr(tables, ino, &name).expect("xattr")));
        assert!(xattrs.eq(node.xattrs.clone()), "attributes of {ino:?} after {what}");
        match attr.kind {
            FileKind::Dir => same_names(tables, spec, ino, what),
            FileKind::File => same_bytes(tables, spec, ino, what),
            FileKind::Symlink => assert_eq!(read::readlink(tables, ino).as_ref(), Ok(&node.target)),
            _ => (),
        }
    }
}

fn same_names<T: Tables>(tables: &T, spec: &Spec, ino: Ino, what: &str) {
    let listed = read::list(tables, ino, 0, usize::MAX).expect("list");
    assert!(listed.is_sorted_by(|a, b| a.cookie < b.cookie), "{what}");
    let names: Vec<_> = listed.into_iter().map(|entry| (entry.name, entry.attr.ino)).collect();
    assert_eq!(names, spec.nodes[&ino].names, "{ino:?} after {what}");
    for (name, child) in names {
        assert_eq!(read::lookup(tables, ino, &name).expect("lookup").ino, child, "{what}");
        if spec.is_dir(child) {
            assert_eq!(read::parent(tables, child), Ok(ino), "{what}");
        }
    }
}

fn same_bytes<T: Tables>(tables: &T, spec: &Spec, ino: Ino, what: &str) {
    let map = read::extents(tables, ino, 0, u64::MAX).expect("extents");
    let (mut bytes, mut at) = (BTreeMap::new(), 0);
    for extent in map.extents {
        assert_eq!(extent.off, at, "a gap after {what}");
        at += extent.len;
        match extent.source {
            Source::Hole => (),
            Source::Stripe(id, from) => {
                bytes.extend((0..extent.len).map(|i| (extent.off + i, Byte::In(id, from + i))));
            }
            Source::Inline(own) => {
                assert_eq!(own.len() as u64, extent.len, "inline bytes after {what}");
                bytes.extend((extent.off..).zip(own.into_iter().map(Byte::Inline)));
            }
        }
    }
    assert_eq!(at, map.size, "{what}");
    assert_eq!(bytes, spec.nodes[&ino].data, "bytes of {ino:?} after {what}");
}

/// A comparison of commands that all fail says nothing.
fn everything_happened(seen: &Seen) {
    let usual = "Create CreateUnnamed Link FirstLink Unlink Rmdir Rename SetAttr SetXattr RemoveXattr Commit Punch Clone Reap \
                 OpenBatch Collected TakeSnapshot DropSnapshot Prune";
    let errors = "Create:Exists,NotDir,NotFound,Stale,Invalid,NameTooLong CreateUnnamed:NotDir,NotFound,Stale \
                  Link:NotPermitted,NotFound,Exists,Stale FirstLink:Exists \
                  Unlink:IsDir,NotFound,NotDir Rmdir:NotEmpty,NotDir,NotFound \
                  Rename:Exists,NotFound,Invalid,IsDir,NotDir,NotEmpty,Stale SetAttr:IsDir,Invalid,TooLarge,Stale \
                  SetXattr:Range,Invalid,Exists,NoAttr,Stale RemoveXattr:NoAttr,Stale \
                  Commit:Stale,Invalid,IsDir,TooLarge Punch:TooLarge,IsDir,Stale Clone:Invalid,TooLarge,IsDir";
    for op in usual.split_whitespace() {
        let times = seen.get(&(op.into(), None)).copied().unwrap_or(0);
        assert!(times > 200, "{op} succeeded {times} times");
    }
    for (op, kinds) in errors.split_whitespace().filter_map(|line| line.split_once(':')) {
        for kind in kinds.split(',') {
            let times = seen.get(&(op.into(), Some(kind.into()))).copied().unwrap_or(0);
            assert!(times > 5, "{op} failed with {kind} {times} times");
        }
    }
}
