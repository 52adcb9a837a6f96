//! Extended attributes that mean something: access lists and policies, set by anybody's bytes.

use kos_core::{policy, read};
use kos_types::{FileKind, Op, ROOT, XattrMode};

use crate::fs::Fs;
use crate::input::Input;

const NAMES: [&[u8]; 7] = [
    b"system.posix_acl_access",
    b"system.posix_acl_default",
    b"user.kos.durability",
    b"user.kos.ec",
    b"user.kos.seal",
    b"user.kos.consistency",
    b"user.kos.",
];

/// Enough for every state, few enough to be fast.
const STEPS_MAX: usize = 64;

pub(crate) fn run(data: &[u8]) {
    let mut input = Input(data);
    let mut fs = Fs::new();
    let dir = fs.create(ROOT, b"dir", FileKind::Dir);
    let mut below = dir;
    for _ in 0..STEPS_MAX {
        if input.is_empty() {
            break;
        }
        let choice = usize::from(input.u8());
        let known = NAMES[choice % NAMES.len()];
        let name = if choice < 128 { known.to_vec() } else { [known, input.text()].concat() };
        let value = input.text().to_vec();
        let ino = if choice % 2 == 0 { dir } else { below };
        let op = Op::SetXattr { ino, name: name.clone(), value: value.clone(), mode: XattrMode::Any };
        let is_set = fs.run(op).is_ok();
        if name.starts_with(b"user.") && is_set {
            assert_eq!(read::xattr(&fs.0, ino, &name), Ok(value));
        } else if let Ok(kept) = read::xattr(&fs.0, ino, &name) {
            // An access list is kept in its normal form, which is a valid one too.
            let op = Op::SetXattr { ino, name, value: kept, mode: XattrMode::Any };
            fs.run(op).expect("what was kept is valid");
        }
        // What is below inherits.
        if below != dir {
            fs.run(Op::Unlink { parent: dir, name: b"file".to_vec() }).expect("it is there");
        }
        below = fs.create(dir, b"file", FileKind::File);
        policy::of(&fs.0, below).expect("a policy is in force");
        policy::sharing(&fs.0, below).expect("a policy is in force");
        let mode = read::inode(&fs.0, below).expect("alive").attr.mode;
        assert_eq!(mode & !0o7777, 0, "{mode:o}");
    }
}
