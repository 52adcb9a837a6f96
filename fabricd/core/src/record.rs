//! The bytes of every record. Each starts with the sequence number of its birth.

use alloc::vec::Vec;

use kos_types::limits::INLINE_BYTES_MAX;
use kos_types::{
    Attr, Class, Compress, Error, FileKind, Geometry, Ino, Kind, Pin, Policy, Result, Seq, StripeId, Time,
};

/// Reads fields off the front of a record.
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn take(&mut self, n: usize) -> Result<&'a [u8]> {
        let Some((head, rest)) = self.0.split_at_checked(n) else {
            return Err(Error::new(Kind::Io, "record: too short"));
        };
        self.0 = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    pub(crate) fn u8(&mut self) -> Result<u8> {
        Ok(self.array::<1>()?[0])
    }

    pub(crate) fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(crate) fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    pub(crate) fn time(&mut self) -> Result<Time> {
        Ok(Time { secs: i64::from_le_bytes(self.array()?), nanos: self.u32()? })
    }

    /// What [`put_attr`] wrote.
    pub(crate) fn attr(&mut self, ino: Ino) -> Result<Attr> {
        let kind = self.u8()?;
        let sealed = kind & SEALED != 0;
        let kind = *KINDS
            .get(usize::from(kind & !SEALED))
            .ok_or_else(|| Error::new(Kind::Io, "inode record: unknown kind"))?;
        Ok(Attr {
            ino,
            kind,
            mode: self.u32()?,
            nlink: self.u32()?,
            uid: self.u32()?,
            gid: self.u32()?,
            rdev: self.u32()?,
            size: self.u64()?,
            bytes: self.u64()?,
            atime: self.time()?,
            mtime: self.time()?,
            ctime: self.time()?,
            btime: self.time()?,
            sealed,
        })
    }
}

pub(crate) fn put_time(out: &mut Vec<u8>, time: Time) {
    out.extend_from_slice(&time.secs.to_le_bytes());
    out.extend_from_slice(&time.nanos.to_le_bytes());
}

/// Counts up whenever a record's layout changes: "kos" and a number.
const FORMAT: u64 = 0x6b6f_7300_0000_0005;

/// The state machine's counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct State {
    /// Sequence number of the last commit.
    pub seq: Seq,
    /// The open batch of stripe ids.
    pub batch: u64,
    /// Inodes alive.
    pub inodes: u64,
    /// The newest snapshot: what was born up to it is kept when it is overwritten.
    pub snapshot: Option<Seq>,
    /// The view given out last.
    pub view: u64,
    /// The session opened last.
    pub session: u64,
}

impl State {
    /// To bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        // Commits count from 1, so 0 is no snapshot.
        let snapshot = self.snapshot.map_or(0, |seq| seq.0);
        let fields = [FORMAT, self.seq.0, self.batch, self.inodes, snapshot, self.view, self.session];
        fields.iter().flat_map(|v| v.to_le_bytes()).collect()
    }

    /// # Errors
    /// `Io` when the bytes are no such record.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let mut r = Reader(bytes);
        if r.u64()? != FORMAT {
            let what =
                "the state was written by another version of kosfs: use that, or wipe it (kos down --wipe)";
            return Err(Error::new(Kind::Unsupported, what));
        }
        let (seq, batch, inodes) = (Seq(r.u64()?), r.u64()?, r.u64()?);
        let snapshot = Some(Seq(r.u64()?)).filter(|seq| seq.0 > 0);
        Ok(Self { seq, batch, inodes, snapshot, view: r.u64()?, session: r.u64()? })
    }
}

/// An inode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inode {
    /// Commit of this version.
    pub birth: Seq,
    /// What stat shows.
    pub attr: Attr,
    /// The nearest directory with a quota that it is in, or itself one; 0 for none.
    pub tree: Ino,
    /// Target of a symbolic link.
    pub target: Vec<u8>,
}

const KINDS: [FileKind; 7] = [
    FileKind::File,
    FileKind::Dir,
    FileKind::Symlink,
    FileKind::Fifo,
    FileKind::Socket,
    FileKind::CharDev,
    FileKind::BlockDev,
];

/// Bit of an inode's kind that says it is sealed.
const SEALED: u8 = 0x80;

/// All but the inode number.
pub(crate) fn put_attr(out: &mut Vec<u8>, a: &Attr) {
    // KINDS holds every kind, so the position exists and is below 7.
    let kind = KINDS.iter().position(|k| *k == a.kind).map_or(0, |i| i as u8);
    out.push(kind | if a.sealed { SEALED } else { 0 });
    for v in [a.mode, a.nlink, a.uid, a.gid, a.rdev] {
        out.extend_from_slice(&v.to_le_bytes());
    }
    for v in [a.size, a.bytes] {
        out.extend_from_slice(&v.to_le_bytes());
    }
    for t in [a.atime, a.mtime, a.ctime, a.btime] {
        put_time(out, t);
    }
}

impl Inode {
    /// To bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(128 + self.target.len());
        out.extend_from_slice(&self.birth.0.to_le_bytes());
        put_attr(&mut out, &self.attr);
        out.extend_from_slice(&self.tree.0.to_le_bytes());
        out.extend_from_slice(&self.target);
        out
    }

    /// # Errors
    /// `Io` when the bytes are no such record.
    pub fn decode(ino: Ino, bytes: &[u8]) -> Result<Self> {
        let mut r = Reader(bytes);
        let birth = Seq(r.u64()?);
        let attr = r.attr(ino)?;
        Ok(Self { birth, attr, tree: Ino(r.u64()?), target: r.0.to_vec() })
    }
}

/// A dentry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dentry {
    /// Commit of this version.
    pub birth: Seq,
    /// What it names.
    pub ino: Ino,
    /// Its position in listings.
    pub cookie: u64,
}

impl Dentry {
    /// To bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        [self.birth.0, self.ino.0, self.cookie].iter().flat_map(|v| v.to_le_bytes()).collect()
    }

    /// # Errors
    /// `Io` when the bytes are no such record.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let mut r = Reader(bytes);
        Ok(Self { birth: Seq(r.u64()?), ino: Ino(r.u64()?), cookie: r.u64()? })
    }
}

/// Where the bytes of an extent are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// In a stripe, from this byte of its user bytes on.
    Stripe(StripeId, u64),
    /// In this record.
    Inline(Vec<u8>),
}

/// An extent; its file offset is in the key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExtentRecord {
    /// Commit of this version.
    pub birth: Seq,
    /// Bytes.
    pub len: u64,
    /// Where they are.
    pub place: Place,
}

impl ExtentRecord {
    /// `len` of its bytes after the first `skip`, born now.
    #[must_use]
    pub fn part(&self, birth: Seq, skip: u64, len: u64) -> Self {
        let place = match &self.place {
            Place::Stripe(id, at) => Place::Stripe(*id, at + skip),
            // An inline extent is small, and callers stay inside it.
            Place::Inline(bytes) => Place::Inline(bytes[skip as usize..(skip + len) as usize].to_vec()),
        };
        Self { birth, len, place }
    }

    /// To bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = self.birth.0.to_le_bytes().to_vec();
        match &self.place {
            Place::Stripe(id, at) => {
                out.push(0);
                [self.len, id.0, *at].iter().for_each(|v| out.extend_from_slice(&v.to_le_bytes()));
            }
            Place::Inline(bytes) => {
                out.push(1);
                out.extend_from_slice(bytes);
            }
        }
        out
    }

    /// # Errors
    /// `Io` when the bytes are no such record.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let mut r = Reader(bytes);
        let birth = Seq(r.u64()?);
        match r.u8()? {
            0 => Ok(Self { birth, len: r.u64()?, place: Place::Stripe(StripeId(r.u64()?), r.u64()?) }),
            1 if (1..=INLINE_BYTES_MAX).contains(&r.0.len()) => {
                Ok(Self { birth, len: r.0.len() as u64, place: Place::Inline(r.0.to_vec()) })
            }
            _ => Err(Error::new(Kind::Io, "extent record: unknown form")),
        }
    }
}

/// Bit of a stripe's class that says it is pinned to memory.
const PINNED: u8 = 0x80;

/// A stripe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stripe {
    /// Commit of this version.
    pub birth: Seq,
    /// Extents that point at it.
    pub refs: u32,
    /// How it is kept.
    pub policy: Policy,
    /// User bytes.
    pub len: u64,
}

impl Stripe {
    /// To bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(24);
        out.extend_from_slice(&self.birth.0.to_le_bytes());
        out.extend_from_slice(&self.refs.to_le_bytes());
        out.extend_from_slice(&self.len.to_le_bytes());
        let class = match self.policy.class {
            Class::Disk => 0,
            Class::Memory => 1,
            Class::Scratch => 2,
        };
        let pin = match self.policy.pin {
            Pin::None => 0,
            Pin::Ram => PINNED,
        };
        let compress = match self.policy.compress {
            Compress::Auto => 0,
            Compress::Lz4 => 1,
            Compress::None => 2,
        };
        let geometry = self.policy.geometry;
        // A Geometry holds k <= 16 and m <= 4.
        out.extend_from_slice(&[class | pin, geometry.k() as u8, geometry.m() as u8, compress]);
        out
    }

    /// # Errors
    /// `Io` when the bytes are no such record.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let mut r = Reader(bytes);
        let (birth, refs, len) = (Seq(r.u64()?), r.u32()?, r.u64()?);
        let kept = r.u8()?;
        let pin = if kept & PINNED == 0 { Pin::None } else { Pin::Ram };
        let class = match kept & !PINNED {
            0 => Class::Disk,
            1 => Class::Memory,
            2 => Class::Scratch,
            _ => return Err(Error::new(Kind::Io, "stripe record: unknown class")),
        };
        let geometry = Geometry::new(r.u8()?, r.u8()?)?;
        let compress = match r.u8()? {
            0 => Compress::Auto,
            1 => Compress::Lz4,
            2 => Compress::None,
            _ => return Err(Error::new(Kind::Io, "stripe record: unknown compression")),
        };
        Ok(Self { birth, refs, policy: Policy { class, geometry, compress, pin }, len })
    }
}

/// A snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotRecord {
    /// The last commit it shows.
    pub seq: Seq,
    /// When it was taken.
    pub taken: Time,
    /// Its name.
    pub name: Vec<u8>,
}

impl SnapshotRecord {
    /// To bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = self.seq.0.to_le_bytes().to_vec();
        put_time(&mut out, self.taken);
        out.extend_from_slice(&self.name);
        out
    }

    /// # Errors
    /// `Io` when the bytes are no such record.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let mut r = Reader(bytes);
        Ok(Self { seq: Seq(r.u64()?), taken: r.time()?, name: r.0.to_vec() })
    }
}

/// A session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Session {
    /// Raised when everything granted to it is taken away.
    pub epoch: u64,
    /// Its client has all answers up to this number.
    pub answered: u64,
    /// It proposes nothing any more.
    pub ended: bool,
}

impl Session {
    /// To bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let fields = [self.epoch, self.answered, u64::from(self.ended)];
        fields.iter().flat_map(|v| v.to_le_bytes()).collect()
    }

    /// # Errors
    /// `Io` when the bytes are no such record.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let mut r = Reader(bytes);
        Ok(Self { epoch: r.u64()?, answered: r.u64()?, ended: r.u64()? != 0 })
    }
}

/// What a user or a directory tree has, and may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// For a tree: the tree around it, or 0.
    pub parent: Ino,
    /// Bytes of data mapped, each file counted for itself.
    pub bytes: u64,
    /// Inodes, those without a name that are still open among them.
    pub inodes: u64,
    /// The most bytes, or `u64::MAX`.
    pub bytes_max: u64,
    /// The most inodes, or `u64::MAX`.
    pub inodes_max: u64,
}

impl Default for Usage {
    fn default() -> Self {
        Self { parent: Ino(0), bytes: 0, inodes: 0, bytes_max: u64::MAX, inodes_max: u64::MAX }
    }
}

impl Usage {
    /// Whether it may not have everything.
    #[must_use]
    pub const fn is_limited(&self) -> bool {
        self.bytes_max < u64::MAX || self.inodes_max < u64::MAX
    }

    /// To bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let fields = [self.parent.0, self.bytes, self.inodes, self.bytes_max, self.inodes_max];
        fields.iter().flat_map(|v| v.to_le_bytes()).collect()
    }

    /// # Errors
    /// `Io` when the bytes are no such record.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let mut r = Reader(bytes);
        let (parent, bytes, inodes) = (Ino(r.u64()?), r.u64()?, r.u64()?);
        Ok(Self { parent, bytes, inodes, bytes_max: r.u64()?, inodes_max: r.u64()? })
    }
}
