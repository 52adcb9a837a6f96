//! Policies known by inode. One is asked for several times by each flush, and is made of the attributes of
//! every directory above.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use kos_core::policy::{self, Said};
use kos_core::{Tables, read};
use kos_types::{FileKind, Ino, Op, Policy, ROOT, RenameMode, Reply, Result, Sharing};

/// Parts with a lock of their own.
const PARTS: usize = 16;
/// Inodes that each part knows, twice: about 6 MiB for all. A busy mount
/// has as many files with a buffer.
const GENERATION: usize = 4096;

/// Inodes of one part, in two generations as [`crate::cache::Cache`] has them.
#[derive(Default)]
struct Part {
    /// What is in force for an inode, by its own attributes and all above.
    young: HashMap<Ino, Said>,
    old: HashMap<Ino, Said>,
    /// Changes seen: what was read from the tables before one is not kept.
    changes: u64,
}

impl Part {
    fn get(&mut self, ino: Ino) -> Option<Said> {
        if let Some(&said) = self.young.get(&ino) {
            return Some(said);
        }
        let said = self.old.remove(&ino)?;
        self.insert(ino, said);
        Some(said)
    }

    fn insert(&mut self, ino: Ino, said: Said) {
        if self.young.len() >= GENERATION {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(ino, said);
    }

    fn forget(&mut self, ino: Ino) {
        self.young.remove(&ino);
        self.old.remove(&ino);
        self.changes += 1;
    }

    fn forget_all(&mut self) {
        self.young.clear();
        self.old.clear();
        self.changes += 1;
    }
}

/// What a command does to policies.
#[derive(Debug, PartialEq, Eq)]
enum Effect {
    Nothing,
    /// A new file in a directory; it says nothing itself.
    New {
        dir: Ino,
        file: Ino,
    },
    /// Of these, which have nothing below them.
    Of([Option<Ino>; 2]),
    All,
}

fn effect(op: &Op, reply: &Reply) -> Effect {
    match (op, reply) {
        (Op::Create { parent, kind: FileKind::File, .. }, Reply::Attr(attr)) => {
            Effect::New { dir: *parent, file: attr.ino }
        }
        // A directory may go before what was made there without a name.
        (Op::Reap { ino }, _) => Effect::Of([Some(*ino), None]),
        // The name that an inode inherits by may be another one now.
        (Op::Link { ino, .. }, _) => Effect::Of([Some(*ino), None]),
        (Op::Unlink { .. } | Op::Rmdir { .. }, Reply::Unlinked(attr)) => Effect::Of([Some(attr.ino), None]),
        (Op::Rename { mode, .. }, Reply::Renamed { moved, replaced })
            if moved.kind != FileKind::Dir && *mode != RenameMode::Exchange =>
        {
            Effect::Of([Some(moved.ino), replaced.as_ref().map(|attr| attr.ino)])
        }
        (Op::SetXattr { name, .. } | Op::RemoveXattr { name, .. }, _) if !policy::is_of(name) => {
            Effect::Nothing
        }
        // Nothing is below what can be sealed.
        (Op::SetXattr { ino, name, value, .. }, _) if name == policy::SEAL && value == policy::SEALED => {
            Effect::Of([Some(*ino), None])
        }
        (Op::Rename { .. } | Op::SetXattr { .. } | Op::RemoveXattr { .. }, _) => Effect::All,
        _ => Effect::Nothing,
    }
}

/// The policies in force now.
#[derive(Default)]
pub(crate) struct Policies {
    parts: [Mutex<Part>; PARTS],
}

impl Policies {
    fn part(&self, ino: Ino) -> MutexGuard<'_, Part> {
        self.parts[(ino.0 % PARTS as u64) as usize].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As [`policy::of`] the tables as they are now.
    pub(crate) fn of<T: Tables>(&self, tables: &T, ino: Ino) -> Result<Policy> {
        self.said(tables, ino)?.policy()
    }

    /// As [`policy::sharing`].
    pub(crate) fn sharing<T: Tables>(&self, tables: &T, ino: Ino) -> Result<Sharing> {
        Ok(self.said(tables, ino)?.sharing())
    }

    fn said<T: Tables>(&self, tables: &T, ino: Ino) -> Result<Said> {
        // From the inode up to the first that is known, each with what it says itself and the changes seen
        // before that was read.
        let mut path: Vec<(Ino, u64, Said)> = Vec::new();
        let (mut at, mut above, mut unknown) = (ino, Said::default(), Said::default());
        while path.len() < policy::DEPTH_MAX {
            let seen = {
                let mut part = self.part(at);
                if let Some(said) = part.get(at) {
                    above = said;
                    break;
                }
                part.changes
            };
            let own = Said::of(tables, at)?;
            path.push((at, seen, own));
            if at == ROOT || own.is_all() {
                break;
            }
            match read::any_parent(tables, at)? {
                Some(up) => at = up,
                None => {
                    let Some(dir) = read::made_in(tables, at)? else { break };
                    // Not known from then on: its directory may be removed, and nobody would forget what was made there.
                    path.pop();
                    unknown = own;
                    at = dir;
                }
            }
        }
        // The changes that count for one are also those of all it was made of.
        let mut still = true;
        for (ino, seen, own) in path.into_iter().rev() {
            above = own.or(above);
            let mut part = self.part(ino);
            still &= part.changes == seen;
            if still {
                part.insert(ino, above);
            }
        }
        Ok(unknown.or(above))
    }

    /// A command has changed the tables; before the next one does.
    pub(crate) fn applied(&self, op: &Op, reply: &Reply) {
        match effect(op, reply) {
            Effect::Nothing => (),
            Effect::New { dir, file } => {
                let said = self.part(dir).get(dir);
                if let Some(said) = said {
                    self.part(file).insert(file, said);
                }
            }
            Effect::Of(inodes) => inodes.into_iter().flatten().for_each(|ino| self.part(ino).forget(ino)),
            Effect::All => self.forget(),
        }
    }

    /// The tables may be anything.
    pub(crate) fn forget(&self) {
        // At once: nobody makes something new of what one part has forgotten and another not yet.
        let lock = |part| Mutex::lock(part).unwrap_or_else(PoisonError::into_inner);
        self.parts.each_ref().map(lock).iter_mut().for_each(|part| part.forget_all());
    }
}

#[cfg(test)]
mod tests {
    use kos_core::{MemTables, apply, initialise};
    use kos_types::{Class, Command, Cred, Origin, Time, XattrMode};

    use super::*;

    #[derive(Default)]
    struct Fs {
        tables: MemTables,
        policies: Policies,
    }

    impl Fs {
        fn new() -> Self {
            let mut fs = Self::default();
            fs.tables.write(initialise(Time::default()));
            fs
        }

        fn run(&mut self, op: Op) -> Reply {
            let command = Command { now: Time::default(), origin: Origin::default(), op };
            let applied = apply(&self.tables, &command).expect("applies");
            self.tables.write(applied.changes);
            self.policies.applied(&command.op, &applied.reply);
            applied.reply
        }

        fn make(&mut self, parent: Ino, name: &str, kind: FileKind) -> Ino {
            let (name, cred) = (name.as_bytes().to_vec(), Cred { uid: 0, gid: 0 });
            let op =
                Op::Create { parent, name, kind, mode: 0o777, umask: 0, cred, rdev: 0, target: Vec::new() };
            match self.run(op) {
                Reply::Attr(attr) => attr.ino,
                other => panic!("{other:?}"),
            }
        }

        fn say(&mut self, ino: Ino, class: &str) {
            let (name, value) = (policy::DURABILITY.to_vec(), class.as_bytes().to_vec());
            self.run(Op::SetXattr { ino, name, value, mode: XattrMode::Any });
        }

        fn rename(&mut self, from: (Ino, &str), to: (Ino, &str), mode: RenameMode) {
            let (name, new_name) = (from.1.as_bytes().to_vec(), to.1.as_bytes().to_vec());
            self.run(Op::Rename { parent: from.0, name, new_parent: to.0, new_name, mode });
        }

        /// What is known is what the tables say.
        fn check(&self, inodes: &[Ino]) {
            for round in ["first", "again"] {
                for &ino in inodes {
                    let known = self.policies.of(&self.tables, ino).expect("policy");
                    assert_eq!(known, policy::of(&self.tables, ino).expect("policy"), "{round} {ino:?}");
                }
            }
        }
    }

    #[test]
    fn what_is_known_follows_every_change() {
        let mut fs = Fs::new();
        let memory = fs.make(ROOT, "memory", FileKind::Dir);
        fs.say(memory, "memory");
        let dir = fs.make(memory, "dir", FileKind::Dir);
        let scratch = fs.make(ROOT, "scratch", FileKind::Dir);
        fs.say(scratch, "scratch");
        fs.check(&[memory, dir, scratch, ROOT]);
        let file = fs.make(dir, "file", FileKind::File);
        assert_eq!(
            fs.policies.part(file).get(file).and_then(|said| said.policy().ok()).map(|p| p.class),
            Some(Class::Memory)
        );
        let other = fs.make(scratch, "other", FileKind::File);
        let all = [ROOT, memory, dir, scratch, file, other];
        fs.check(&all);
        fs.rename((memory, "dir"), (scratch, "dir"), RenameMode::NoReplace);
        fs.check(&all);
        fs.rename((scratch, "dir"), (ROOT, "memory"), RenameMode::Exchange);
        fs.check(&all);
        fs.rename((ROOT, "scratch"), (ROOT, "elsewhere"), RenameMode::Replace);
        fs.check(&all);
        fs.rename((scratch, "other"), (ROOT, "other"), RenameMode::Replace);
        fs.check(&all);
        fs.say(file, "scratch");
        fs.check(&all);
        fs.run(Op::RemoveXattr { ino: file, name: policy::DURABILITY.to_vec() });
        fs.check(&all);
        fs.run(Op::SetXattr {
            ino: file,
            name: b"user.other".to_vec(),
            value: Vec::new(),
            mode: XattrMode::Any,
        });
        fs.check(&all);
        // By the older directory's name first, then by the other one alone, then by none.
        fs.say(ROOT, "disk");
        let (first, second) = (fs.make(ROOT, "a", FileKind::Dir), fs.make(ROOT, "b", FileKind::Dir));
        fs.say(first, "memory");
        let linked = fs.make(second, "x", FileKind::File);
        let all = [linked, first, second];
        fs.check(&all);
        fs.run(Op::Link { ino: linked, parent: first, name: b"x".to_vec() });
        fs.check(&all);
        fs.run(Op::Unlink { parent: first, name: b"x".to_vec() });
        fs.check(&all);
        let over = fs.make(second, "y", FileKind::File);
        fs.check(&[over]);
        fs.rename((second, "x"), (second, "y"), RenameMode::Replace);
        fs.check(&[linked, over]);
        fs.run(Op::Unlink { parent: second, name: b"y".to_vec() });
        fs.check(&all);
    }

    #[test]
    fn what_has_no_name_is_as_its_directory_is_now() {
        let mut fs = Fs::new();
        let top = fs.make(ROOT, "top", FileKind::Dir);
        fs.say(top, "memory");
        let dir = fs.make(top, "dir", FileKind::Dir);
        fs.check(&[top, dir]);
        let op = Op::CreateUnnamed { parent: dir, mode: 0o600, umask: 0, cred: Cred { uid: 0, gid: 0 } };
        let made = [0, 1].map(|_| match fs.run(op.clone()) {
            Reply::Attr(attr) => attr.ino,
            other => panic!("{other:?}"),
        });
        let is = |fs: &Fs, class| {
            fs.check(&made);
            for ino in made {
                assert_eq!(fs.policies.of(&fs.tables, ino).map(|policy| policy.class), Ok(class));
            }
        };
        is(&fs, Class::Memory);
        fs.say(top, "scratch");
        is(&fs, Class::Scratch);
        fs.say(dir, "memory");
        is(&fs, Class::Memory);
        fs.run(Op::RemoveXattr { ino: dir, name: policy::DURABILITY.to_vec() });
        is(&fs, Class::Scratch);
        fs.run(Op::Rmdir { parent: top, name: b"dir".to_vec() });
        is(&fs, Class::Disk);
        fs.run(Op::Reap { ino: dir });
        is(&fs, Class::Disk);
        fs.run(Op::Link { ino: made[0], parent: top, name: b"first".to_vec() });
        fs.check(&made);
        assert_eq!(fs.policies.of(&fs.tables, made[0]).map(|policy| policy.class), Ok(Class::Scratch));
        fs.run(Op::Unlink { parent: top, name: b"first".to_vec() });
        fs.check(&made);
        // A directory whose own word goes with it.
        let last = fs.make(ROOT, "last", FileKind::Dir);
        fs.say(last, "memory");
        let op = Op::CreateUnnamed { parent: last, mode: 0o600, umask: 0, cred: Cred { uid: 0, gid: 0 } };
        let Reply::Attr(attr) = fs.run(op) else { panic!("attributes") };
        fs.check(&[attr.ino]);
        fs.run(Op::Rmdir { parent: ROOT, name: b"last".to_vec() });
        fs.check(&[attr.ino]);
        fs.run(Op::Reap { ino: last });
        fs.check(&[attr.ino]);
    }

    #[test]
    fn it_is_bounded() {
        let mut fs = Fs::new();
        let files = 5 * PARTS * GENERATION / 2;
        for i in 0..files as u64 {
            fs.policies.part(Ino(i)).insert(Ino(i), Said::default());
        }
        let held: usize = fs
            .policies
            .parts
            .iter_mut()
            .map(|part| {
                let part = part.get_mut().expect("no panic");
                part.young.len() + part.old.len()
            })
            .sum();
        assert!((PARTS * GENERATION..=2 * PARTS * GENERATION).contains(&held), "{held}");
    }
}
