//! What the two ends say to each other.

use std::time::Duration;

use kos_types::lease::{Epoch, ToClient, ToLeader};
use kos_types::{
    Access, Attr, Dirent, Error, ExtentMap, FileLock, Ino, Job, JobId, Kind, LockAnswer, Op, Policy, Reply,
    Result, SessionId, Sharing, Snapshot, SpaceUsage, StripeId, Time,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// A client's number: random, chosen by itself, the same on all its connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct ClientId(pub u128);

/// A control file of the server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControlInfo {
    /// Its path in the whole tree, without a leading slash.
    pub path: String,
    /// It grows while it is open.
    pub live: bool,
    /// It takes writes.
    pub writable: bool,
}

/// A session of the fabric, which outlives the daemon: proposals numbered in it are done once. It
/// ends when its client leaves or stays away for long; one that comes back later gets another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// The session.
    pub session: SessionId,
    /// Its epoch.
    pub epoch: u64,
}

/// The first message of a connection.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hello {
    pub(crate) client: ClientId,
    /// The session it has had from an earlier daemon of the same fabric.
    pub(crate) claim: Option<Claim>,
    /// Files of which it has a copy open that was lent to it.
    pub(crate) lent: Vec<Ino>,
    /// Locks that its programs hold, as many as are told at once.
    pub(crate) locks: Vec<(Ino, FileLock)>,
    /// Where the client shows the fabric.
    pub(crate) dir: String,
    /// What mount(8) shows as the source.
    pub(crate) source: String,
}

/// The answer to it.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Welcome {
    /// The session began with this connection: what it held before is forgotten.
    pub(crate) fresh: bool,
    /// The session is of an earlier leader, and no file was unsealed before this one knew which copies it
    /// was lent.
    pub(crate) kept: bool,
    /// Of the leader: no other has the same.
    pub(crate) term: u64,
    pub(crate) claim: Claim,
    /// Birth of the root: another one is another filesystem.
    pub(crate) born: Time,
}

/// What a client asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Request {
    /// With the client's number of it, so that it is done once however often it is sent; the
    /// client has the answers of all numbers up to `answered`.
    Propose {
        seq: u64,
        answered: u64,
        op: Op,
    },
    Lookup(Ino, Vec<u8>),
    Attr(Ino),
    Parent(Ino),
    List {
        dir: Ino,
        after: u64,
        max: u32,
    },
    Readlink(Ino),
    Xattr(Ino, Vec<u8>),
    Xattrs(Ino),
    Policy(Ino),
    Sharing(Ino),
    Extents {
        ino: Ino,
        off: u64,
        len: u64,
    },
    /// The bytes follow.
    WriteStripe(Policy),
    /// The bytes follow the answer.
    ReadStripe {
        stripe: StripeId,
        at: u64,
        len: u32,
    },
    /// Room for a write that is buffered.
    Reserve {
        ino: Ino,
        bytes: u64,
        grows: u64,
    },
    /// The end of a reservation.
    Release {
        ino: Ino,
        bytes: u64,
    },
    Sync,
    Usage,
    /// So many times.
    Open(Ino, Access, u32),
    Close(Ino, Access),
    WantCopy(Ino),
    /// An open file comes with the answer, if there is one.
    LendCopy(Ino),
    ReturnCopy(Ino),
    Snapshots,
    Job(JobId),
    JobSpec(JobId),
    JobOf(Ino),
    JobsChanged {
        seen: u64,
        wait: Duration,
    },
    TestLock(Ino, FileLock),
    /// Also with the number of a request that waits.
    SetLock(Ino, FileLock, Option<u64>),
    CancelLock(u64),
    LocksChanged {
        seen: u64,
        wait: Duration,
    },
    /// From here on the connection is for leases.
    Leases,
    ControlFiles,
    Control(String),
    WriteControl(String, Vec<u8>),
    /// The mount is gone and asks for nothing any more.
    Leave,
}

impl Request {
    /// Whether sending it twice is as good as sending it once.
    pub(crate) const fn repeatable(&self) -> bool {
        // Proposals are numbered, a stripe that nobody names is dropped, and an open or a copy too many
        // ends with the session.
        !matches!(self, Self::Close(..) | Self::ReturnCopy(_) | Self::Release { .. } | Self::WriteControl(..))
    }
}

/// What the server answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Answer {
    Done,
    Reply(Reply),
    Attr(Attr),
    Ino(Ino),
    Entries(Vec<Dirent>),
    Bytes(Vec<u8>),
    Names(Vec<Vec<u8>>),
    Policy(Policy),
    Sharing(Sharing),
    Extents(ExtentMap),
    Stripe(StripeId),
    /// The stripe's bytes follow.
    Data,
    /// Whether a copy comes with it.
    Copy(bool),
    Usage(SpaceUsage),
    Snapshots(Vec<Snapshot>),
    Job(Job),
    JobOf(Option<JobId>),
    Count(u64),
    Lock(Option<FileLock>),
    LockSet(LockAnswer),
    ControlFiles(Vec<ControlInfo>),
}

/// An answer or an error, as it travels.
pub(crate) type Outcome = std::result::Result<Answer, (Kind, String)>;

pub(crate) fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>> {
    postcard::to_stdvec(value).map_err(|e| Error::new(Kind::Io, format!("encode: {e}")))
}

/// A whole message; anything left over is an error.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    match postcard::take_from_bytes(bytes) {
        Ok((value, [])) => Ok(value),
        Ok(_) => Err(Error::new(Kind::Invalid, "decode: bytes after the message")),
        Err(e) => Err(Error::new(Kind::Invalid, format!("decode: {e}"))),
    }
}

/// A decoder, for fuzzing: answers what its message would be encoded as, or `Invalid`.
pub type Decoder = fn(&[u8]) -> Result<Vec<u8>>;

/// All decoders of the two ends.
pub const DECODERS: [Decoder; 6] = [
    again::<Request>,
    again::<Outcome>,
    again::<Hello>,
    again::<std::result::Result<Welcome, (Kind, String)>>,
    again::<(Epoch, ToLeader)>,
    again::<(Epoch, ToClient)>,
];

fn again<T: Serialize + DeserializeOwned>(bytes: &[u8]) -> Result<Vec<u8>> {
    decode::<T>(bytes).and_then(|message| encode(&message))
}

#[cfg(test)]
mod tests {
    use kos_types::{ExtentPut, Geometry, SetAttr, SetSize};
    use proptest::prelude::*;

    use super::*;

    fn requests() -> Vec<Request> {
        let policy = Policy { geometry: Geometry::new(16, 4).expect("geometry"), ..Policy::default() };
        let commit = Op::Commit {
            ino: Ino(u64::MAX),
            stripes: vec![(StripeId(9), policy, 4 << 20)],
            holes: vec![(0, 4096)],
            extents: vec![ExtentPut { off: 1, len: 2, stripe: StripeId(9), at: 3 }],
            inline: vec![(5, vec![6; 300])],
            size_min: 7,
            mtime: Some(Time { secs: -1, nanos: 999_999_999 }),
        };
        let set = SetAttr { size: Some(SetSize { size: 1 << 40 }), ..SetAttr::default() };
        vec![
            Request::Propose { seq: 1, answered: 0, op: commit },
            Request::Propose { seq: 2, answered: 1, op: Op::SetAttr { ino: Ino(2), set } },
            Request::Lookup(Ino(2), vec![255; 255]),
            Request::List { dir: Ino(2), after: 3, max: 128 },
            Request::WriteStripe(policy),
            Request::ReadStripe { stripe: StripeId(1), at: 2, len: 3 },
            Request::Control("sys/health".into()),
        ]
    }

    #[test]
    fn requests_come_back_whole() {
        for request in requests() {
            let bytes = encode(&request).expect("encodes");
            assert_eq!(decode::<Request>(&bytes).expect("decodes"), request);
            for cut in 0..bytes.len() {
                assert!(decode::<Request>(&bytes[..cut]).is_err(), "{request:?} cut at {cut}");
            }
            assert!(decode::<Request>(&[&bytes[..], &[0]].concat()).is_err());
        }
    }

    #[test]
    fn geometries_that_cannot_be_are_refused() {
        let good = encode(&Request::WriteStripe(Policy::default())).expect("encodes");
        // Compression and pin come after it.
        let at = good.len() - 4;
        for (k, m) in [(0, 2), (17, 2), (4, 5), (255, 255)] {
            let mut bad = good.clone();
            bad[at..at + 2].copy_from_slice(&[k, m]);
            assert!(decode::<Request>(&bad).is_err(), "{k}+{m}");
        }
    }

    #[test]
    fn a_claimed_length_allocates_nothing() {
        // A list of u64::MAX names in a few bytes.
        let mut bytes = encode(&Outcome::Ok(Answer::Names(Vec::new()))).expect("encodes");
        bytes.pop();
        bytes.extend([0xff; 9]);
        bytes.push(1);
        assert!(decode::<Outcome>(&bytes).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_decoders_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(request) = decode::<Request>(&bytes) {
                let again = encode(&request).expect("encodes");
                prop_assert_eq!(decode::<Request>(&again).expect("decodes"), request);
            }
            drop((decode::<Outcome>(&bytes), decode::<Hello>(&bytes), decode::<Welcome>(&bytes)));
        }

        #[test]
        fn changed_bytes_neither(which in 0..7_usize, at in any::<prop::sample::Index>(), byte in any::<u8>()) {
            let mut bytes = encode(&requests()[which]).expect("encodes");
            let at = at.index(bytes.len());
            bytes[at] = byte;
            drop(decode::<Request>(&bytes));
        }
    }
}
