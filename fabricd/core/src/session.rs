//! Sessions: who may propose, and answers kept so that a command repeated after a lost answer is
//! not applied twice.

use alloc::vec::Vec;

use kos_types::{
    Attr, Error, Ino, JobId, Kind, Once, Op, Origin, Reply, Result, Seq, SessionId, Snapshot, limits,
};

use crate::apply::Txn;
use crate::record::{Reader, Session};
use crate::{Tables, job, keys, record};

/// Answers dropped with one command, so that none takes long.
const DROP: usize = 64;

/// Before a command runs: refuse what is fenced, and find the answer if it ran before.
pub(crate) fn admit<T: Tables>(txn: &mut Txn<'_, T>, origin: &Origin) -> Result<Option<Reply>> {
    if origin.session == SessionId::default() {
        return origin.once.map_or(Ok(None), |once| answered(txn, once));
    }
    // The answer comes first: what was applied stays applied when the session has ended since.
    if origin.seq > 0
        && let Some(bytes) = txn.tables.get(&keys::answer(origin.session, origin.seq))?
    {
        return decode_reply(&bytes).map(Some);
    }
    let session = get(txn, origin.session)?.ok_or_else(|| Error::new(Kind::Fenced, "session: unknown"))?;
    if session.ended || session.epoch != origin.epoch {
        return Err(Error::new(Kind::Fenced, "session: ended or fenced"));
    }
    if origin.seq > 0 {
        if origin.seq <= session.answered {
            return Err(Error::new(Kind::Fenced, "session: an answered command again"));
        }
        if origin.seq.saturating_sub(origin.answered) > limits::ANSWERS_MAX {
            return Err(Error::new(Kind::Busy, "session: too many answers are outstanding"));
        }
    }
    Ok(None)
}

/// After it ran: keep its answer, and drop those the client has.
pub(crate) fn keep<T: Tables>(txn: &mut Txn<'_, T>, origin: &Origin, reply: &Reply) -> Result<()> {
    if let Some(once) = origin.once {
        let kept = [name(once).as_slice(), &encode_reply(reply)].concat();
        txn.tables.put(once_key(once), kept);
    }
    if origin.session == SessionId::default() || origin.seq == 0 {
        return Ok(());
    }
    txn.tables.put(keys::answer(origin.session, origin.seq), encode_reply(reply));
    let Some(mut session) = get(txn, origin.session)? else { return Ok(()) };
    if origin.answered > session.answered {
        session.answered = origin.answered;
        txn.tables.put(keys::session(origin.session), session.encode());
        drop_answers(txn, origin.session, session.answered)?;
    }
    Ok(())
}

fn once_key(once: Once) -> Vec<u8> {
    keys::answer(SessionId::default(), once.slot.into())
}

fn name(once: Once) -> [u8; 16] {
    let mut name = [0; 16];
    name[..8].copy_from_slice(&once.mount.to_le_bytes());
    name[8..].copy_from_slice(&once.request.to_le_bytes());
    name
}

/// The answer of a request of the fabric's own mount that was applied before.
fn answered<T: Tables>(txn: &Txn<'_, T>, once: Once) -> Result<Option<Reply>> {
    let kept = txn.tables.get(&once_key(once))?;
    let of_it = kept.as_deref().and_then(|kept| kept.strip_prefix(&name(once)));
    of_it.map(decode_reply).transpose()
}

/// Whether data may be written under the command's grant.
pub(crate) fn check_fence<T: Tables>(txn: &Txn<'_, T>, ino: Ino, grant: u64) -> Result<()> {
    let Some(bytes) = txn.tables.get(&keys::fence(ino))? else { return Ok(()) };
    if grant > 0 && grant < Reader(&bytes).u64()? {
        return Err(Error::new(Kind::Fenced, "write: under a grant that was taken back"));
    }
    Ok(())
}

fn get<T: Tables>(txn: &Txn<'_, T>, id: SessionId) -> Result<Option<Session>> {
    txn.tables.get(&keys::session(id))?.map(|bytes| Session::decode(&bytes)).transpose()
}

pub(crate) fn run<T: Tables>(txn: &mut Txn<'_, T>, op: &Op) -> Result<Reply> {
    let known =
        |txn: &Txn<'_, T>, id| get(txn, id)?.ok_or_else(|| Error::new(Kind::NotFound, "session: unknown"));
    match *op {
        Op::EndSession { session: id } => {
            let session = Session { ended: true, ..known(txn, id)? };
            txn.tables.put(keys::session(id), session.encode());
            Ok(Reply::Done)
        }
        // Of the fabric's own mount, which has ended.
        Op::ForgetSession { session: id } if id == SessionId::default() => {
            drop_answers(txn, id, u64::MAX)?;
            Ok(Reply::Done)
        }
        Op::ForgetSession { session: id } => {
            if let Some(session) = get(txn, id)? {
                if !session.ended {
                    return Err(Error::new(Kind::Busy, "session: not ended"));
                }
                drop_answers(txn, id, u64::MAX)?;
                txn.tables.delete(keys::session(id));
            }
            Ok(Reply::Done)
        }
        Op::FenceSession { session: id } => {
            let mut session = known(txn, id)?;
            session.epoch += 1;
            txn.tables.put(keys::session(id), session.encode());
            Ok(Reply::Session(id, session.epoch))
        }
        Op::Fence { ino, grant } => {
            txn.inode(ino)?;
            txn.tables.put(keys::fence(ino), grant.to_le_bytes().to_vec());
            Ok(Reply::Done)
        }
        _ => {
            txn.state.session += 1;
            let id = SessionId(txn.state.session);
            let session = Session { epoch: 1, answered: 0, ended: false };
            txn.tables.put(keys::session(id), session.encode());
            Ok(Reply::Session(id, session.epoch))
        }
    }
}

/// Drop the answers up to the number `upto`, at most [`DROP`] of them.
fn drop_answers<T: Tables>(txn: &mut Txn<'_, T>, id: SessionId, upto: u64) -> Result<()> {
    let (from, to) = (keys::answer(id, 0), keys::answer(id, upto.saturating_add(1)));
    // One command adds one answer, so this many are enough to keep up.
    let max = if upto == u64::MAX { usize::MAX } else { DROP };
    for (key, _) in txn.tables.scan(&from, &to, max)? {
        txn.tables.delete(key);
    }
    Ok(())
}

fn put_attr(out: &mut Vec<u8>, attr: &Attr) {
    out.extend_from_slice(&attr.ino.0.to_le_bytes());
    record::put_attr(out, attr);
}

fn attr(r: &mut Reader<'_>) -> Result<Attr> {
    let ino = Ino(r.u64()?);
    r.attr(ino)
}

fn encode_reply(reply: &Reply) -> Vec<u8> {
    let mut out = Vec::new();
    match reply {
        Reply::Done => out.push(0),
        Reply::Attr(attr) => {
            out.push(1);
            put_attr(&mut out, attr);
        }
        Reply::Unlinked(attr) => {
            out.push(2);
            put_attr(&mut out, attr);
        }
        Reply::Renamed { moved, replaced } => {
            out.push(3);
            put_attr(&mut out, moved);
            if let Some(replaced) = replaced {
                put_attr(&mut out, replaced);
            }
        }
        Reply::Batch(batch) => {
            out.push(4);
            out.extend_from_slice(&batch.to_le_bytes());
        }
        Reply::Session(id, epoch) => {
            out.push(5);
            out.extend_from_slice(&id.0.to_le_bytes());
            out.extend_from_slice(&epoch.to_le_bytes());
        }
        Reply::Snapshot(Snapshot { name, view, taken }) => {
            out.push(6);
            out.extend_from_slice(&view.to_le_bytes());
            record::put_time(&mut out, *taken);
            out.extend_from_slice(name);
        }
        Reply::Pruned(next) => {
            out.push(7);
            out.extend_from_slice(next.as_deref().unwrap_or_default());
        }
        Reply::Job(found) => {
            out.push(8);
            out.extend_from_slice(&found.id.0.to_le_bytes());
            out.extend_from_slice(&job::encode(Seq(0), found));
        }
    }
    out
}

fn decode_reply(bytes: &[u8]) -> Result<Reply> {
    let mut r = Reader(bytes);
    Ok(match r.u8()? {
        0 => Reply::Done,
        1 => Reply::Attr(attr(&mut r)?),
        2 => Reply::Unlinked(attr(&mut r)?),
        3 => {
            let moved = attr(&mut r)?;
            let replaced = if r.0.is_empty() { None } else { Some(attr(&mut r)?) };
            Reply::Renamed { moved, replaced }
        }
        4 => Reply::Batch(r.u64()?),
        5 => Reply::Session(SessionId(r.u64()?), r.u64()?),
        6 => Reply::Snapshot(Snapshot { view: r.u64()?, taken: r.time()?, name: r.0.to_vec() }),
        7 => Reply::Pruned(Some(r.0.to_vec()).filter(|next| !next.is_empty())),
        8 => Reply::Job(job::decode(JobId(r.u64()?), r.0)?),
        _ => return Err(Error::new(Kind::Io, "answer record: unknown")),
    })
}
