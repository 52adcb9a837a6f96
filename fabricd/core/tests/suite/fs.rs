//! A filesystem in memory, one call a command.

use kos_core::{Effect, MemTables, apply, initialise};
use kos_types::{
    Attr, Command, Cred, ExtentPut, FileKind, Ino, Op, Origin, Policy, RenameMode, Reply, Result, StripeId,
    Time, XattrMode,
};

#[derive(Debug)]
pub(crate) struct Fs {
    pub(crate) tables: MemTables,
    /// What the last command set free.
    pub(crate) freed: Vec<StripeId>,
    clock: i64,
}

impl Fs {
    pub(crate) fn new() -> Self {
        let mut tables = MemTables::default();
        tables.write(initialise(Time::default()));
        Self { tables, freed: Vec::new(), clock: 0 }
    }

    pub(crate) fn run(&mut self, op: Op) -> Result<Reply> {
        self.run_as(Origin::default(), op)
    }

    pub(crate) fn run_as(&mut self, origin: Origin, op: Op) -> Result<Reply> {
        self.clock += 1;
        let applied = apply(&self.tables, &Command { now: Time { secs: self.clock, nanos: 0 }, origin, op })?;
        self.tables.write(applied.changes);
        self.freed = applied.effects.iter().map(|&Effect::Free(id)| id).collect();
        Ok(applied.reply)
    }

    pub(crate) fn attr_of(&mut self, op: Op) -> Attr {
        match self.run(op) {
            Ok(Reply::Attr(attr)) => attr,
            other => panic!("expected attributes: {other:?}"),
        }
    }

    pub(crate) fn create(&mut self, parent: Ino, name: &str, kind: FileKind) -> Ino {
        let cred = Cred { uid: 7, gid: 8 };
        let (name, target) = (name.into(), Vec::new());
        self.attr_of(Op::Create { parent, name, kind, mode: 0o755, umask: 0, cred, rdev: 0, target }).ino
    }

    pub(crate) fn unlink(&mut self, parent: Ino, name: &str) -> Result<Reply> {
        self.run(Op::Unlink { parent, name: name.into() })
    }

    pub(crate) fn rename(&mut self, from: (Ino, &str), to: (Ino, &str), mode: RenameMode) -> Result<Reply> {
        self.run(Op::Rename {
            parent: from.0,
            name: from.1.into(),
            new_parent: to.0,
            new_name: to.1.into(),
            mode,
        })
    }

    pub(crate) fn set_xattr(&mut self, ino: Ino, name: &[u8], value: &[u8]) -> Result<Reply> {
        self.run(Op::SetXattr { ino, name: name.into(), value: value.into(), mode: XattrMode::Any })
    }

    /// Commit a new stripe of `len` bytes, with extents `(off, len, at)` in it.
    pub(crate) fn commit(
        &mut self,
        ino: Ino,
        id: StripeId,
        len: u64,
        at: &[(u64, u64, u64)],
    ) -> Result<Reply> {
        let extents = at.iter().map(|&(off, len, at)| ExtentPut { off, len, stripe: id, at }).collect();
        let stripes = vec![(id, Policy::default(), len)];
        let (holes, inline) = (Vec::new(), Vec::new());
        self.run(Op::Commit { ino, stripes, holes, extents, inline, size_min: 0, mtime: None })
    }

    /// Commit bytes that stay with the metadata.
    pub(crate) fn inline(&mut self, ino: Ino, inline: &[(u64, &[u8])]) -> Result<Reply> {
        let inline = inline.iter().map(|&(off, bytes)| (off, bytes.to_vec())).collect();
        let (stripes, holes, extents) = (Vec::new(), Vec::new(), Vec::new());
        self.run(Op::Commit { ino, stripes, holes, extents, inline, size_min: 0, mtime: None })
    }
}
