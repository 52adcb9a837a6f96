//! Commands: everything that changes metadata, as it goes through the log.

use crate::{Attr, FileKind, Ino, Job, JobOp, Policy, SessionId, Snapshot, StripeId, Time};

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Cred {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// On whose behalf a command is proposed. The default is the fabric itself, which never repeats one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Origin {
    /// The session, or 0 for the fabric itself.
    pub session: SessionId,
    /// The session's epoch as its client knows it: an older one is refused.
    pub epoch: u64,
    /// The client's number for this command, from 1: one that was applied is answered again and
    /// not applied again. 0 is never repeated.
    pub seq: u64,
    /// The client has the answers of all numbers up to this one.
    pub answered: u64,
    /// The grant under which data is written; one older than the inode's fence is refused. 0 needs
    /// none.
    pub grant: u64,
    /// For the fabric itself, where a process may be killed and the next one asked again.
    pub once: Option<Once>,
}

/// Names a request, so that its command is applied once although the process that proposed it was killed before it
/// could answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Once {
    /// Where its answer is kept, over that of the request before. No other request has this number until it is answered.
    pub slot: u32,
    /// Whose request it is: a number that no other mount has or had.
    pub mount: u64,
    /// The mount's number of the request.
    pub request: u64,
}

/// One entry of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// The committer's clock.
    pub now: Time,
    /// Who proposed it.
    pub origin: Origin,
    /// The change.
    pub op: Op,
}

/// A requested time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum TimeChange {
    /// The command's own time.
    Now,
    /// This time.
    Set(Time),
}

/// A truncation or extension.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct SetSize {
    /// The new size in bytes.
    pub size: u64,
}

/// What setattr changes; `None` keeps.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct SetAttr {
    /// Permission bits (07777).
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Size.
    pub size: Option<SetSize>,
    /// Access time.
    pub atime: Option<TimeChange>,
    /// Modification time.
    pub mtime: Option<TimeChange>,
    /// Clear setuid, and setgid where group-executable: a write, truncation or chown by an
    /// unprivileged caller.
    pub kill_suidgid: bool,
}

/// rename(2)'s flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum RenameMode {
    /// Replace the target.
    Replace,
    /// `RENAME_NOREPLACE`.
    NoReplace,
    /// `RENAME_EXCHANGE`.
    Exchange,
}

/// setxattr(2)'s flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum XattrMode {
    /// Create or replace.
    Any,
    /// `XATTR_CREATE`.
    Create,
    /// `XATTR_REPLACE`.
    Replace,
}

/// One range of a file that a commit points at a stripe.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct ExtentPut {
    /// First byte in the file.
    pub off: u64,
    /// Bytes, at least 1.
    pub len: u64,
    /// The stripe that holds them.
    pub stripe: StripeId,
    /// Where they begin in the stripe's user bytes.
    pub at: u64,
}

/// A change of metadata.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Op {
    /// Create an inode and its first name. Replies `Attr`; `Exists` when the name is taken.
    Create {
        /// The directory.
        parent: Ino,
        /// The name.
        name: Vec<u8>,
        /// The type.
        kind: FileKind,
        /// Permission bits as asked for.
        mode: u32,
        /// Bits the caller never gives; a parent's default access list stands in its place.
        umask: u32,
        /// Owner; a setgid parent overrides the group.
        cred: Cred,
        /// Device number, or 0.
        rdev: u32,
        /// Target of a symbolic link, else empty.
        target: Vec<u8>,
    },
    /// Create a file without a name, which [`Op::Link`] can give it later. It is dropped as an unlinked one is; until it
    /// has a name, what it says nothing about itself is what the directory says. The directory does not change. Replies
    /// `Attr` with no links; `NotFound` when the directory was removed.
    CreateUnnamed {
        /// The directory.
        parent: Ino,
        /// Permission bits as asked for.
        mode: u32,
        /// Bits the caller never gives; the directory's default access list stands in its place.
        umask: u32,
        /// Owner; a setgid directory overrides the group.
        cred: Cred,
    },
    /// Give an inode another name, or a first one. Replies `Attr`; `NotFound` when its last name was removed.
    Link {
        /// The inode, not a directory.
        ino: Ino,
        /// The directory.
        parent: Ino,
        /// The name.
        name: Vec<u8>,
    },
    /// Remove a name of something that is not a directory. Replies `Unlinked`.
    Unlink {
        /// The directory.
        parent: Ino,
        /// The name.
        name: Vec<u8>,
    },
    /// Remove an empty directory. Replies `Unlinked`.
    Rmdir {
        /// The directory that holds it.
        parent: Ino,
        /// Its name.
        name: Vec<u8>,
    },
    /// rename(2). Replies `Renamed`.
    Rename {
        /// From this directory.
        parent: Ino,
        /// This name.
        name: Vec<u8>,
        /// To this directory.
        new_parent: Ino,
        /// This name.
        new_name: Vec<u8>,
        /// Flags.
        mode: RenameMode,
    },
    /// Change attributes. Replies `Attr`.
    SetAttr {
        /// The inode.
        ino: Ino,
        /// The changes.
        set: SetAttr,
    },
    /// Set an extended attribute. Replies `Done`.
    SetXattr {
        /// The inode.
        ino: Ino,
        /// Its name with namespace.
        name: Vec<u8>,
        /// Its value.
        value: Vec<u8>,
        /// Flags.
        mode: XattrMode,
    },
    /// Remove an extended attribute. Replies `Done`; `NoAttr` when it was not set.
    RemoveXattr {
        /// The inode.
        ino: Ino,
        /// Its name with namespace.
        name: Vec<u8>,
    },
    /// Make written stripes and inline bytes visible, all or none. Replies `Attr`.
    Commit {
        /// The file.
        ino: Ino,
        /// Stripes that this command introduces: id, policy, user bytes.
        stripes: Vec<(StripeId, Policy, u64)>,
        /// Ranges of the file that become holes, before the extents: offset and bytes.
        holes: Vec<(u64, u64)>,
        /// Ranges of the file and where their bytes now are.
        extents: Vec<ExtentPut>,
        /// Bytes that are kept with the metadata, put last: offset and bytes, all in the first
        /// [`crate::limits::INLINE_BYTES_MAX`] of the file and together no more.
        inline: Vec<(u64, Vec<u8>)>,
        /// The file is at least this long afterwards.
        size_min: u64,
        /// Modification time, or keep it.
        mtime: Option<Time>,
    },
    /// Put a new stripe in the place of extents that are still exactly these. Neither the bytes of
    /// the file nor a time of it change. Replies `Done`; `Busy` when an extent has changed.
    Compact {
        /// The file.
        ino: Ino,
        /// The stripe that this command introduces: id, policy, user bytes.
        stripe: (StripeId, Policy, u64),
        /// What it replaces: in order, without gaps, together as long as the stripe.
        extents: Vec<ExtentPut>,
    },
    /// Make a range a hole, without changing the size. Replies `Attr`.
    Punch {
        /// The file.
        ino: Ino,
        /// First byte.
        off: u64,
        /// Bytes.
        len: u64,
    },
    /// Share the extents of one range with another: copy_file_range. Replies `Attr` of `to`.
    Clone {
        /// Source file.
        from: Ino,
        /// First byte in it.
        from_off: u64,
        /// Destination file.
        to: Ino,
        /// First byte in it.
        to_off: u64,
        /// Bytes.
        len: u64,
    },
    /// The last user of an unlinked inode let go: drop it. Replies `Done`; harmless when it has
    /// a name or is gone.
    Reap {
        /// The inode.
        ino: Ino,
    },
    /// Open a session. Replies `Session`.
    OpenSession,
    /// End a session. Its answers are kept: a client that lost it may still ask. Replies `Done`.
    EndSession {
        /// The session.
        session: SessionId,
    },
    /// Drop what is kept of an ended session. Replies `Done`; harmless when it is gone.
    ForgetSession {
        /// The session.
        session: SessionId,
    },
    /// Take everything granted to a session away: raise its epoch. Replies `Session`.
    FenceSession {
        /// The session.
        session: SessionId,
    },
    /// Refuse data of an inode written under a grant older than this. Replies `Done`.
    Fence {
        /// The inode.
        ino: Ino,
        /// The oldest grant that counts.
        grant: u64,
    },
    /// Keep the regions' tree as it is now, read-only, under this name. Replies `Snapshot`;
    /// `Exists` when the name is taken, `Busy` when there are too many.
    TakeSnapshot {
        /// The name.
        name: Vec<u8>,
    },
    /// Drop a snapshot. Replies `Done`; `NotFound`.
    DropSnapshot {
        /// Its name.
        name: Vec<u8>,
    },
    /// Drop what no snapshot holds any more among the next `max` old records. Replies `Pruned`.
    Prune {
        /// The key that the last step answered, or nothing.
        from: Vec<u8>,
        /// Records to look at.
        max: u32,
    },
    /// Open a batch of stripe ids; the one before stays open, all earlier ones close. Replies
    /// `Batch`.
    OpenBatch,
    /// The bytes of these dead stripes are gone. Replies `Done`.
    Collected {
        /// The stripes, each with the second it died.
        stripes: Vec<(u64, StripeId)>,
    },
    /// A change of a job. Replies `Job`.
    Job(JobOp),
}

/// The answer to a command.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Reply {
    /// Nothing to say.
    Done,
    /// The inode as it is now.
    Attr(Attr),
    /// What the removed name pointed at, with its link count afterwards.
    Unlinked(Attr),
    /// What the rename moved, and what it replaced with its link count afterwards.
    Renamed {
        /// The inode that has the new name.
        moved: Attr,
        /// The inode that lost it.
        replaced: Option<Attr>,
    },
    /// The number of the opened batch.
    Batch(u64),
    /// A session and its epoch.
    Session(SessionId, u64),
    /// A new snapshot.
    Snapshot(Snapshot),
    /// Where the next step begins, or nothing when all was looked at.
    Pruned(Option<Vec<u8>>),
    /// The job as it is now.
    Job(Job),
}
