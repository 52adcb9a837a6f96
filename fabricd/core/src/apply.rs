//! One command in, its reply and changes out.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use kos_types::{
    Attr, Command, Cred, Error, FileKind, Ino, Kind, Op, ROOT, Reply, Result, Seq, StripeId, Time,
};

use crate::extents::Puts;
use crate::quota::{Account, Charge};
use crate::record::{Inode, State, Usage};
use crate::{Changes, Overlay, Tables, extents, history, job, keys, namespace, quota, session};

/// What a command did.
#[derive(Debug)]
pub struct Applied {
    /// The answer to whoever proposed it.
    pub reply: Reply,
    /// What to write, all at once.
    pub changes: Changes,
    /// What the daemon is to do afterwards.
    pub effects: Vec<Effect>,
}

/// Work that follows from a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// The stripe is dead: free its bytes after the grace period.
    Free(StripeId),
}

/// A command in progress: the tables as it leaves them, and its surroundings.
pub(crate) struct Txn<'a, T> {
    pub(crate) tables: Overlay<'a, T>,
    pub(crate) state: State,
    pub(crate) now: Time,
    /// The grant under which data is written.
    pub(crate) grant: u64,
    pub(crate) effects: Vec<Effect>,
    /// Charges of trees that moved with all they have.
    pub(crate) moved: BTreeMap<Account, Charge>,
    /// Quotas are counted and not enforced.
    pub(crate) unlimited: bool,
}

impl<T: Tables> Txn<'_, T> {
    pub(crate) const fn seq(&self) -> Seq {
        self.state.seq
    }

    pub(crate) fn inode(&self, ino: Ino) -> Result<Inode> {
        crate::read::inode(&self.tables, ino)
    }

    /// A directory that still has a name, so that entries may be added to it.
    pub(crate) fn live_dir(&self, ino: Ino) -> Result<Inode> {
        let dir = self.inode(ino)?;
        if dir.attr.kind != FileKind::Dir {
            return Err(Error::new(Kind::NotDir, "parent"));
        }
        if dir.attr.nlink == 0 {
            return Err(Error::new(Kind::NotFound, "parent: removed"));
        }
        Ok(dir)
    }

    pub(crate) fn put_xattr(&mut self, ino: Ino, name: &[u8], value: &[u8]) {
        let mut record = self.seq().0.to_le_bytes().to_vec();
        record.extend_from_slice(value);
        self.tables.put(keys::xattr(ino, name), record);
    }

    pub(crate) fn put_inode(&mut self, mut inode: Inode) -> Attr {
        inode.birth = self.seq();
        self.tables.put(keys::inode(inode.attr.ino), inode.encode());
        inode.attr
    }
}

/// Run `command` on `tables`. On an error nothing is to be written.
///
/// # Errors
/// As the operation's reply says; `Io` when the tables cannot be read.
pub fn apply<T: Tables>(tables: &T, command: &Command) -> Result<Applied> {
    let mut state = match tables.get(keys::STATE)? {
        Some(bytes) => State::decode(&bytes)?,
        None => return Err(Error::new(Kind::Io, "apply: tables not initialised")),
    };
    state.seq.0 += 1;
    let (now, grant) = (command.now, command.origin.grant);
    let mut txn = Txn {
        tables: Overlay::new(tables),
        state,
        now,
        grant,
        effects: Vec::new(),
        moved: BTreeMap::new(),
        unlimited: false,
    };
    if let Some(reply) = session::admit(&mut txn, &command.origin)? {
        return Ok(Applied { reply, changes: Changes::new(), effects: Vec::new() });
    }
    if changed_inodes(&command.op).iter().flatten().any(|ino| ino.view() != 0) {
        return Err(Error::new(Kind::ReadOnly, "a snapshot is not changed"));
    }
    let reply = run(&mut txn, &command.op)?;
    quota::settle(&mut txn)?;
    session::keep(&mut txn, &command.origin, &reply)?;
    history::keep(&mut txn)?;
    let state = txn.state.encode();
    txn.tables.put(keys::STATE.to_vec(), state);
    Ok(Applied { reply, changes: txn.tables.into_changes(), effects: txn.effects })
}

fn run<T: Tables>(txn: &mut Txn<'_, T>, op: &Op) -> Result<Reply> {
    match op {
        Op::Create { parent, name, kind, mode, umask, cred, rdev, target } => {
            let new =
                namespace::New { kind: *kind, mode: *mode, umask: *umask, cred: *cred, rdev: *rdev, target };
            namespace::create(txn, *parent, name, new).map(Reply::Attr)
        }
        Op::CreateUnnamed { parent, mode, umask, cred } => {
            namespace::create_unnamed(txn, *parent, (*mode, *umask), *cred).map(Reply::Attr)
        }
        Op::Link { ino, parent, name } => namespace::link(txn, *ino, *parent, name).map(Reply::Attr),
        Op::Unlink { parent, name } => namespace::unlink(txn, *parent, name).map(Reply::Unlinked),
        Op::Rmdir { parent, name } => namespace::rmdir(txn, *parent, name).map(Reply::Unlinked),
        Op::Rename { parent, name, new_parent, new_name, mode } => {
            namespace::rename(txn, (*parent, name), (*new_parent, new_name), *mode)
        }
        Op::SetAttr { ino, set } => namespace::set_attr(txn, *ino, set).map(Reply::Attr),
        Op::SetXattr { ino, name, value, mode } => {
            namespace::set_xattr(txn, *ino, name, value, *mode).map(|()| Reply::Done)
        }
        Op::RemoveXattr { ino, name } => namespace::remove_xattr(txn, *ino, name).map(|()| Reply::Done),
        Op::Commit { ino, stripes, holes, extents, inline, size_min, mtime } => {
            let puts = Puts { stripes, holes, extents, inline };
            extents::commit(txn, *ino, &puts, (*size_min, *mtime)).map(Reply::Attr)
        }
        Op::Compact { ino, stripe, extents } => {
            extents::compact(txn, *ino, *stripe, extents).map(|()| Reply::Done)
        }
        Op::Punch { ino, off, len } => extents::punch(txn, *ino, *off, *len).map(Reply::Attr),
        Op::Clone { from, from_off, to, to_off, len } => {
            extents::clone(txn, (*from, *from_off), (*to, *to_off), *len).map(Reply::Attr)
        }
        Op::Reap { ino } => namespace::reap(txn, *ino).map(|()| Reply::Done),
        Op::OpenSession
        | Op::EndSession { .. }
        | Op::ForgetSession { .. }
        | Op::FenceSession { .. }
        | Op::Fence { .. } => session::run(txn, op),
        Op::TakeSnapshot { name } => history::take(txn, name).map(Reply::Snapshot),
        Op::DropSnapshot { name } => history::discard(txn, name).map(|()| Reply::Done),
        Op::Prune { from, max } => history::prune(txn, from, *max).map(Reply::Pruned),
        Op::OpenBatch => {
            txn.state.batch += 1;
            Ok(Reply::Batch(txn.state.batch))
        }
        Op::Collected { stripes } => extents::collected(txn, stripes).map(|()| Reply::Done),
        Op::Job(op) => job::run(txn, op),
    }
}

/// The inodes that a front end names for a change.
const fn changed_inodes(op: &Op) -> [Option<Ino>; 2] {
    match op {
        Op::Create { parent: ino, .. }
        | Op::CreateUnnamed { parent: ino, .. }
        | Op::Unlink { parent: ino, .. }
        | Op::Rmdir { parent: ino, .. }
        | Op::SetAttr { ino, .. }
        | Op::SetXattr { ino, .. }
        | Op::RemoveXattr { ino, .. }
        | Op::Commit { ino, .. }
        | Op::Compact { ino, .. }
        | Op::Punch { ino, .. }
        | Op::Clone { to: ino, .. }
        | Op::Reap { ino }
        | Op::Fence { ino, .. } => [Some(*ino), None],
        Op::Link { ino, parent, .. } => [Some(*ino), Some(*parent)],
        Op::Rename { parent, new_parent, .. } => [Some(*parent), Some(*new_parent)],
        Op::OpenBatch
        | Op::Collected { .. }
        | Op::OpenSession
        | Op::EndSession { .. }
        | Op::ForgetSession { .. }
        | Op::FenceSession { .. }
        | Op::TakeSnapshot { .. }
        | Op::DropSnapshot { .. }
        | Op::Prune { .. }
        | Op::Job(_) => [None, None],
    }
}

/// The tables of a new filesystem: the counters and an empty root that everyone may use, as /tmp.
#[must_use]
pub fn initialise(now: Time) -> Changes {
    initialise_for(now, Cred { uid: 0, gid: 0 })
}

/// The same for a node that is of `owner`; one of another user than root is used by that one.
#[must_use]
pub fn initialise_for(now: Time, owner: Cred) -> Changes {
    let attr = Attr {
        ino: ROOT,
        kind: FileKind::Dir,
        mode: if owner.uid == 0 { 0o1777 } else { 0o755 },
        nlink: 2,
        uid: owner.uid,
        gid: owner.gid,
        rdev: 0,
        size: 0,
        bytes: 0,
        atime: now,
        mtime: now,
        ctime: now,
        btime: now,
        sealed: false,
    };
    let root = Inode { birth: Seq(0), attr, tree: Ino(0), target: Vec::new() };
    let usage = Usage { inodes: 1, ..Usage::default() };
    let state = State { inodes: 1, ..State::default() };
    Changes::from([
        (keys::STATE.to_vec(), Some(state.encode())),
        (keys::inode(ROOT), Some(root.encode())),
        (keys::user(root.attr.uid), Some(usage.encode())),
    ])
}
