//! A filesystem in memory, one call a command.

use kos_core::{MemTables, apply, initialise};
use kos_types::{Command, Cred, FileKind, Ino, Op, Origin, Reply, Result, Time};

pub(crate) struct Fs(pub(crate) MemTables);

impl Fs {
    pub(crate) fn new() -> Self {
        let mut tables = MemTables::default();
        tables.write(initialise(Time::default()));
        Self(tables)
    }

    pub(crate) fn run(&mut self, op: Op) -> Result<Reply> {
        let applied = apply(&self.0, &Command { now: Time::default(), origin: Origin::default(), op })?;
        self.0.write(applied.changes);
        Ok(applied.reply)
    }

    pub(crate) fn create(&mut self, parent: Ino, name: &[u8], kind: FileKind) -> Ino {
        let (name, cred, target) = (name.to_vec(), Cred { uid: 1, gid: 2 }, Vec::new());
        match self.run(Op::Create { parent, name, kind, mode: 0o7777, umask: 0o22, cred, rdev: 0, target }) {
            Ok(Reply::Attr(attr)) => attr.ino,
            other => panic!("a new name: {other:?}"),
        }
    }
}
