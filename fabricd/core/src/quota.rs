//! Usage and quotas, exact: each command's changes of inodes are charged to their owners and to
//! the directory trees they are in, in the same batch.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::vec;
use alloc::vec::Vec;

use kos_types::{Error, FileKind, Ino, Kind, ROOT, Result, limits};

use crate::apply::Txn;
use crate::record::Inode;
pub use crate::record::Usage;
use crate::{Tables, keys, read};

/// The attribute of a directory that limits what is in it, as `bytes=10G inodes=1000`.
pub const QUOTA: &[u8] = b"trusted.kos.quota";
/// The attribute of the root that limits what a user owns: its number follows.
pub const USER_QUOTA: &[u8] = b"trusted.kos.quota.uid.";
/// No other names begin so.
pub(crate) const PREFIX: &[u8] = b"trusted.kos.";
/// Entries that one command moves from one tree to another.
const WALK_MAX: usize = 100_000;
/// Trees around an inode: directories with a quota of their own, one in the other.
const NESTED_MAX: usize = 16;

/// What an inode is charged to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Account {
    /// A user.
    User(u32),
    /// A directory with a quota, and all in it.
    Tree(Ino),
}

impl Account {
    fn key(self) -> Vec<u8> {
        match self {
            Self::User(uid) => keys::user(uid),
            Self::Tree(dir) => keys::tree(dir),
        }
    }
}

/// What an account has and may have.
///
/// # Errors
/// `Io`.
pub fn usage<T: Tables>(tables: &T, account: Account) -> Result<Option<Usage>> {
    tables.get(&account.key())?.map(|bytes| Usage::decode(&bytes)).transpose()
}

/// All accounts an inode is charged to.
///
/// # Errors
/// `Io`.
pub fn accounts<T: Tables>(tables: &T, inode: &Inode) -> Result<Vec<Account>> {
    let mut out = vec![Account::User(inode.attr.uid)];
    trees(tables, inode.tree, &mut out)?;
    Ok(out)
}

/// A tree and those around it.
fn trees<T: Tables>(tables: &T, mut tree: Ino, out: &mut Vec<Account>) -> Result<()> {
    for _ in 0..NESTED_MAX {
        if tree == Ino(0) {
            break;
        }
        out.push(Account::Tree(tree));
        tree = usage(tables, Account::Tree(tree))?.map_or(Ino(0), |usage| usage.parent);
    }
    Ok(())
}

/// All users' usage.
///
/// # Errors
/// `Io`.
pub fn users<T: Tables>(tables: &T, max: usize) -> Result<Vec<(u32, Usage)>> {
    let found = tables.scan(&keys::user(0), &keys::end_of(b"Q"), max)?;
    // The key was made of a u32.
    found.iter().map(|(key, value)| Ok((keys::field(key, 1) as u32, Usage::decode(value)?))).collect()
}

/// All trees' usage.
///
/// # Errors
/// `Io`.
pub fn all_trees<T: Tables>(tables: &T, max: usize) -> Result<Vec<(Ino, Usage)>> {
    let found = tables.scan(&keys::tree(Ino(0)), &keys::end_of(b"U"), max)?;
    found.iter().map(|(key, value)| Ok((Ino(keys::field(key, 1)), Usage::decode(value)?))).collect()
}

/// A limit: `bytes=` and `inodes=`, either or both, with K, M, G or T.
fn parse(value: &[u8]) -> Result<(u64, u64)> {
    let bad = || Error::new(Kind::Invalid, "quota: bytes=N inodes=N, N with K, M, G or T");
    let text = core::str::from_utf8(value).map_err(|_| bad())?;
    let (mut bytes, mut inodes) = (None, None);
    for word in text.split_ascii_whitespace() {
        let (name, number) = word.split_once('=').ok_or_else(bad)?;
        let limit = match name {
            "bytes" => &mut bytes,
            "inodes" => &mut inodes,
            _ => return Err(bad()),
        };
        let (digits, shift) = match number.as_bytes().last() {
            Some(b'K') => (&number[..number.len() - 1], 10),
            Some(b'M') => (&number[..number.len() - 1], 20),
            Some(b'G') => (&number[..number.len() - 1], 30),
            Some(b'T') => (&number[..number.len() - 1], 40),
            _ => (number, 0),
        };
        if limit.is_some() || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return Err(bad());
        }
        let number: u64 = digits.parse().map_err(|_| bad())?;
        *limit = Some(number.checked_mul(1 << shift).ok_or_else(bad)?);
    }
    if bytes.is_none() && inodes.is_none() {
        return Err(bad());
    }
    Ok((bytes.unwrap_or(u64::MAX), inodes.unwrap_or(u64::MAX)))
}

/// A quota attribute is set, or removed with no value. Whether it is one.
pub(crate) fn set<T: Tables>(
    txn: &mut Txn<'_, T>,
    ino: Ino,
    name: &[u8],
    value: Option<&[u8]>,
) -> Result<bool> {
    let limit = |value: Option<&[u8]>| value.map_or(Ok((u64::MAX, u64::MAX)), parse);
    if let Some(uid) = name.strip_prefix(USER_QUOTA) {
        let bad = || Error::new(Kind::Invalid, "quota: trusted.kos.quota.uid.NUMBER, on the root directory");
        let uid: u32 = core::str::from_utf8(uid).map_err(|_| bad())?.parse().map_err(|_| bad())?;
        if ino != ROOT {
            return Err(bad());
        }
        if uid == 0 {
            return Err(Error::new(Kind::Invalid, "quota: root has none"));
        }
        let mut record = usage(&txn.tables, Account::User(uid))?.unwrap_or_default();
        (record.bytes_max, record.inodes_max) = limit(value)?;
        put(txn, Account::User(uid), &record);
        return Ok(true);
    }
    if name != QUOTA {
        return Ok(false);
    }
    let (bytes_max, inodes_max) = limit(value)?;
    // It may be less than what is there.
    txn.unlimited = true;
    let dir = read::dir(&txn.tables, ino)?;
    if dir.tree != ino {
        let around = dir.tree;
        let mut nested = Vec::new();
        trees(&txn.tables, around, &mut nested)?;
        if nested.len() + 1 >= NESTED_MAX {
            return Err(Error::new(Kind::Invalid, "quota: too many directories with a quota around it"));
        }
        put(txn, Account::Tree(ino), &Usage { parent: around, ..Usage::default() });
        retag(txn, ino, around, ino)?;
    }
    let mut record = usage(&txn.tables, Account::Tree(ino))?.unwrap_or_default();
    (record.bytes_max, record.inodes_max) = (bytes_max, inodes_max);
    put(txn, Account::Tree(ino), &record);
    Ok(true)
}

fn put<T: Tables>(txn: &mut Txn<'_, T>, account: Account, usage: &Usage) {
    if matches!(account, Account::User(_)) && usage.inodes == 0 && !usage.is_limited() {
        txn.tables.delete(account.key());
    } else {
        txn.tables.put(account.key(), usage.encode());
    }
}

/// Move `top` and all below it that is of the tree `from` to the tree `to`. Trees below stay, and
/// are then in `to`.
fn retag<T: Tables>(txn: &mut Txn<'_, T>, top: Ino, from: Ino, to: Ino) -> Result<()> {
    let mut left = WALK_MAX;
    let mut found = vec![top];
    // Names met of files that have several.
    let mut linked = BTreeMap::<Ino, u32>::new();
    while let Some(ino) = found.pop() {
        let mut inode = txn.inode(ino)?;
        let is_dir = inode.attr.kind == FileKind::Dir;
        if !is_dir && inode.attr.nlink > 1 {
            *linked.entry(ino).or_insert(inode.attr.nlink) -= 1;
        }
        if inode.tree == ino && ino != to {
            reparent(txn, ino, to)?;
            continue;
        }
        if inode.tree != from {
            continue;
        }
        inode.tree = to;
        txn.put_inode(inode);
        if !is_dir {
            continue;
        }
        let mut after = 0;
        loop {
            let page = read::list(&txn.tables, ino, after, limits::LIST_ENTRIES_MAX)?;
            let Some(last) = page.last() else { break };
            after = last.cookie;
            left = left.checked_sub(page.len()).ok_or_else(|| {
                Error::new(Kind::Busy, format!("quota: more than {WALK_MAX} entries change their tree"))
            })?;
            found.extend(page.iter().map(|entry| entry.attr.ino));
        }
    }
    if linked.values().any(|&elsewhere| elsewhere > 0) {
        return Err(Error::new(Kind::CrossDevice, "quota: a file has links inside and outside"));
    }
    Ok(())
}

/// The tree `dir` moves with all it has into another.
fn reparent<T: Tables>(txn: &mut Txn<'_, T>, dir: Ino, to: Ino) -> Result<()> {
    let mut moved = usage(&txn.tables, Account::Tree(dir))?.unwrap_or_default();
    let (mut out, mut into) = (Vec::new(), Vec::new());
    trees(&txn.tables, moved.parent, &mut out)?;
    trees(&txn.tables, to, &mut into)?;
    let has = Charge { bytes: i128::from(moved.bytes), inodes: i128::from(moved.inodes) };
    for account in out {
        txn.moved.entry(account).or_default().add(&has, -1);
    }
    for account in into {
        txn.moved.entry(account).or_default().add(&has, 1);
    }
    moved.parent = to;
    put(txn, Account::Tree(dir), &moved);
    Ok(())
}

/// An inode gets a name in `parent`: it goes to its tree.
pub(crate) fn enter<T: Tables>(txn: &mut Txn<'_, T>, ino: Ino, parent: Ino) -> Result<()> {
    let (inode, to) = (txn.inode(ino)?, txn.inode(parent)?.tree);
    let is_tree = inode.tree == ino;
    let from = match usage(&txn.tables, Account::Tree(ino))? {
        Some(own) if is_tree => own.parent,
        _ => inode.tree,
    };
    if from == to {
        return Ok(());
    }
    if inode.attr.kind != FileKind::Dir && inode.attr.nlink > 1 {
        return Err(Error::new(Kind::CrossDevice, "links of one file under two quotas"));
    }
    if is_tree {
        return reparent(txn, ino, to);
    }
    retag(txn, ino, from, to).map_err(|e| match e.kind() {
        // As between filesystems: mv copies then.
        Kind::Busy => Error::new(Kind::CrossDevice, "rename: a large directory to another quota"),
        _ => e,
    })
}

/// A change of what an account has.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Charge {
    bytes: i128,
    inodes: i128,
}

impl Charge {
    const fn add(&mut self, other: &Self, times: i128) {
        self.bytes += other.bytes * times;
        self.inodes += other.inodes * times;
    }

    const fn of(inode: &Inode) -> Self {
        Self { bytes: inode.attr.bytes as i128, inodes: 1 }
    }
}

/// At the end of a command: charge what it changed, or refuse it.
pub(crate) fn settle<T: Tables>(txn: &mut Txn<'_, T>) -> Result<()> {
    let mut charges: BTreeMap<Account, Charge> = core::mem::take(&mut txn.moved);
    let changed: Vec<(Ino, Option<Inode>)> = txn
        .tables
        .changed()
        .filter(|(key, _)| keys::is_inode(key))
        .map(|(key, value)| {
            let ino = Ino(keys::field(key, 1));
            Ok((ino, value.as_ref().map(|value| Inode::decode(ino, value)).transpose()?))
        })
        .collect::<Result<_>>()?;
    for (ino, new) in changed {
        let old = txn.tables.before(&keys::inode(ino))?;
        let old = old.map(|old| Inode::decode(ino, &old)).transpose()?;
        let what = |inode: &Inode| (inode.attr.uid, inode.tree, inode.attr.bytes);
        if old.as_ref().map(what) == new.as_ref().map(what) {
            continue;
        }
        if let Some(old) = old {
            // A tree that this command made or moved was charged as it was before.
            let mut before = vec![Account::User(old.attr.uid)];
            trees(txn.tables.base(), old.tree, &mut before)?;
            for account in before {
                charges.entry(account).or_default().add(&Charge::of(&old), -1);
            }
        }
        if let Some(new) = new {
            for account in accounts(&txn.tables, &new)? {
                charges.entry(account).or_default().add(&Charge::of(&new), 1);
            }
        }
    }
    for (account, charge) in charges {
        charge_one(txn, account, charge)?;
    }
    Ok(())
}

fn charge_one<T: Tables>(txn: &mut Txn<'_, T>, account: Account, charge: Charge) -> Result<()> {
    if charge.bytes == 0 && charge.inodes == 0 {
        return Ok(());
    }
    let mut record = usage(&txn.tables, account)?.unwrap_or_default();
    let wrong = |_| Error::new(Kind::Io, format!("usage of {account:?}: below nothing"));
    record.bytes = u64::try_from(i128::from(record.bytes) + charge.bytes).map_err(wrong)?;
    record.inodes = u64::try_from(i128::from(record.inodes) + charge.inodes).map_err(wrong)?;
    let is_root = account == Account::User(0);
    let over = charge.bytes > 0 && record.bytes > record.bytes_max
        || charge.inodes > 0 && record.inodes > record.inodes_max;
    if over && !is_root && !txn.unlimited {
        return Err(Error::new(Kind::QuotaExceeded, format!("quota of {account:?}")));
    }
    if record.inodes == 0 && matches!(account, Account::Tree(_)) {
        // The directory is gone, and all that was in it.
        txn.tables.delete(account.key());
    } else {
        put(txn, account, &record);
    }
    Ok(())
}
