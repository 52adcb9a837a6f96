//! A few files in memory, as far as FUSE's protocol has to be known for them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};
use std::thread;

use super::super::{Handler, RingReply};

/// Files f0 to f7, from inode 2 on; then those that are special.
const FILES: u64 = 8;
const FIRST: u64 = 2;
/// Each read and write is a request, and writes do not wait for each other: FOPEN_DIRECT_IO, FOPEN_PARALLEL_DIRECT_WRITES.
const DIRECT: u32 = 1 | 1 << 6;
const FILE_BYTES_MAX: usize = 8 << 20;

/// Of an inode, its name.
type Attribute = (u64, Vec<u8>);

/// What reads of a file come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Special {
    /// Kept until the test says so, and writes too; refused where too many are.
    Waits,
    /// Kept also then.
    Hogs,
    /// Answered by another thread, at once.
    Later,
    Panics,
    Drops,
    Overfills,
    PanicsFilling,
}

const SPECIAL: [(&str, Special); 7] = [
    ("waits", Special::Waits),
    ("hogs", Special::Hogs),
    ("later", Special::Later),
    ("panics", Special::Panics),
    ("drops", Special::Drops),
    ("overfills", Special::Overfills),
    ("panics-filling", Special::PanicsFilling),
];

impl Special {
    pub(super) fn of(name: &str) -> Option<Self> {
        SPECIAL.iter().find(|(of, _)| *of == name).map(|(_, special)| *special)
    }
}

pub(super) struct Files {
    data: [RwLock<Vec<u8>>; FILES as usize],
    attributes: Mutex<BTreeMap<Attribute, Vec<u8>>>,
    kept: Mutex<Vec<(Kept, RingReply)>>,
    refused: AtomicUsize,
    by_ring: AtomicUsize,
    later: Sender<(u64, usize, RingReply)>,
}

pub(super) enum Kept {
    /// Of pages that have their number in each byte.
    Read {
        off: u64,
        len: usize,
    },
    Write {
        len: u32,
    },
}

/// What a request is answered by, on either transport.
pub(super) enum Out {
    Error(i32),
    /// So many bytes of it.
    Small([u8; 160], usize),
    /// An attribute's value.
    Long {
        value: Vec<u8>,
        fill: bool,
    },
    /// The bytes of a file.
    Read {
        file: usize,
        off: usize,
        len: usize,
    },
    Special(Special, Kept),
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("four"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(bytes[at..at + 8].try_into().expect("eight"))
}

fn small(parts: &[&[u8]]) -> Out {
    let (mut bytes, mut len) = ([0; 160], 0);
    for part in parts {
        bytes[len..len + part.len()].copy_from_slice(part);
        len += part.len();
    }
    Out::Small(bytes, len)
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Bytes of the operation's structure, for those that come here.
pub(super) fn args_bytes(opcode: u32) -> usize {
    match opcode {
        4 => 88,
        15 | 16 | 28 | 44 => 40,
        18 | 25 | 29 => 24,
        3 | 20 => 16,
        14 | 21 | 22 | 27 | 34 => 8,
        _ => 0,
    }
}

impl Files {
    pub(super) fn new() -> Self {
        let (later, replies) = mpsc::channel::<(u64, usize, RingReply)>();
        let answer = move || {
            for (off, len, reply) in replies {
                reply.fill(len, |to| {
                    to.fill((off / 4096) as u8);
                    Ok(to.len())
                });
            }
        };
        thread::Builder::new().name("later".into()).spawn(answer).expect("thread");
        Self {
            data: Default::default(),
            attributes: Mutex::default(),
            kept: Mutex::default(),
            refused: AtomicUsize::new(0),
            by_ring: AtomicUsize::new(0),
            later,
        }
    }

    pub(super) fn kept(&self) -> usize {
        locked(&self.kept).len()
    }

    pub(super) fn refused(&self) -> usize {
        self.refused.load(Ordering::Relaxed)
    }

    /// How many requests came by the ring.
    pub(super) fn by_ring(&self) -> usize {
        self.by_ring.load(Ordering::Relaxed)
    }

    pub(super) fn answer_kept(&self) {
        let kept = std::mem::take(&mut *locked(&self.kept));
        for (kept, reply) in kept {
            match kept {
                Kept::Read { off, len } => reply.fill(len, |to| {
                    to.fill((off / 4096) as u8);
                    Ok(to.len())
                }),
                Kept::Write { len } => reply.bytes(&u64::from(len).to_le_bytes()),
            }
        }
    }

    fn attr(&self, ino: u64) -> [u8; 88] {
        let mut attr = [0; 88];
        let (mode, size) = match self.file(ino) {
            Some(file) => (0o100_666u32, file.read().unwrap_or_else(PoisonError::into_inner).len()),
            None if ino == 1 => (0o040_777, 0),
            None => (0o100_666, 1 << 20),
        };
        attr[..8].copy_from_slice(&ino.to_ne_bytes());
        attr[8..16].copy_from_slice(&(size as u64).to_ne_bytes());
        attr[60..64].copy_from_slice(&mode.to_ne_bytes());
        attr[64..68].copy_from_slice(&1u32.to_ne_bytes());
        attr
    }

    fn file(&self, ino: u64) -> Option<&RwLock<Vec<u8>>> {
        self.data.get(usize::try_from(ino.checked_sub(FIRST)?).ok()?)
    }

    pub(super) fn answer(&self, header: &[u8; 40], args: &[u8], payload: &[u8]) -> Out {
        let (opcode, ino) = (u32_at(header, 4), u64_at(header, 16));
        match opcode {
            1 => self.lookup(payload),
            3 => small(&[&[0; 16], &self.attr(ino)]),
            4 => self.set_attributes(ino, args),
            14 | 27 => small(&[&[0; 8], &DIRECT.to_ne_bytes(), &[0; 4]]),
            15 => self.read(ino, u64_at(args, 8), u32_at(args, 16) as usize),
            16 => self.write(ino, u64_at(args, 8) as usize, payload),
            17 => small(&[&[0; 80]]),
            18 | 20 | 25 | 28 | 29 | 34 | 44 => small(&[]),
            21 => self.set_attribute(ino, payload),
            22 => self.attribute(ino, u32_at(args, 0), payload),
            _ => Out::Error(libc::ENOSYS),
        }
    }

    fn lookup(&self, name: &[u8]) -> Out {
        let name = String::from_utf8_lossy(name.strip_suffix(b"\0").unwrap_or(name));
        let special = SPECIAL.iter().position(|(of, _)| *of == name).map(|at| FIRST + FILES + at as u64);
        let file = name.strip_prefix('f').and_then(|n| n.parse::<u64>().ok()).filter(|n| *n < FILES);
        match special.or_else(|| file.map(|n| FIRST + n)) {
            Some(ino) => {
                small(&[&ino.to_ne_bytes(), &[0; 8], &3600u64.to_ne_bytes(), &[0; 16], &self.attr(ino)])
            }
            None => Out::Error(libc::ENOENT),
        }
    }

    /// Only the size can be set.
    fn set_attributes(&self, ino: u64, args: &[u8]) -> Out {
        const SIZE: u32 = 1 << 3;
        if let Some(file) = self.file(ino).filter(|_| u32_at(args, 0) & SIZE != 0) {
            file.write().unwrap_or_else(PoisonError::into_inner).resize(u64_at(args, 16) as usize, 0);
        }
        small(&[&[0; 16], &self.attr(ino)])
    }

    fn read(&self, ino: u64, off: u64, len: usize) -> Out {
        let Some(file) = self.file(ino) else {
            let (_, special) = SPECIAL[(ino - FIRST - FILES) as usize];
            return Out::Special(special, Kept::Read { off, len });
        };
        let size = file.read().unwrap_or_else(PoisonError::into_inner).len();
        let off = (off as usize).min(size);
        Out::Read { file: (ino - FIRST) as usize, off, len: len.min(size - off) }
    }

    fn write(&self, ino: u64, off: usize, data: &[u8]) -> Out {
        let Some(file) = self.file(ino) else {
            return Out::Special(Special::Waits, Kept::Write { len: data.len() as u32 });
        };
        let end = off + data.len();
        if end > FILE_BYTES_MAX {
            return Out::Error(libc::EFBIG);
        }
        let mut file = file.write().unwrap_or_else(PoisonError::into_inner);
        if file.len() < end {
            file.resize(end, 0);
        }
        file[off..end].copy_from_slice(data);
        small(&[&(data.len() as u64).to_le_bytes()])
    }

    fn set_attribute(&self, ino: u64, payload: &[u8]) -> Out {
        let name = payload.iter().position(|byte| *byte == 0).expect("a name");
        locked(&self.attributes).insert((ino, payload[..name].to_vec()), payload[name + 1..].to_vec());
        small(&[])
    }

    fn attribute(&self, ino: u64, room: u32, payload: &[u8]) -> Out {
        let name = payload.strip_suffix(b"\0").expect("a name");
        match locked(&self.attributes).get(&(ino, name.to_vec())) {
            None => Out::Error(libc::ENODATA),
            Some(value) if room == 0 => small(&[&(value.len() as u64).to_le_bytes()]),
            Some(value) => Out::Long { value: value.clone(), fill: name.ends_with(b"fill") },
        }
    }

    /// The bytes of [`Out::Read`].
    pub(super) fn copy(&self, file: usize, off: usize, to: &mut [u8]) {
        let data = self.data[file].read().unwrap_or_else(PoisonError::into_inner);
        to.copy_from_slice(&data[off..off + to.len()]);
    }

    fn special(&self, special: Special, kept: Kept, reply: RingReply) {
        match special {
            Special::Waits if !reply.may_wait() => {
                self.refused.fetch_add(1, Ordering::Relaxed);
                reply.error(libc::EAGAIN);
            }
            Special::Waits | Special::Hogs => locked(&self.kept).push((kept, reply)),
            Special::Later => {
                let Kept::Read { off, len } = kept else { unreachable!("it is only read") };
                self.later.send((off, len, reply)).expect("the thread lives");
            }
            Special::Panics => panic!("a request that panics, for a test"),
            Special::Drops => drop(reply),
            Special::Overfills => reply.fill(10, |_| Ok(11)),
            Special::PanicsFilling => reply.fill(10, |_| panic!("an answer that panics, for a test")),
        }
    }
}

impl Handler for Files {
    fn handle(&self, header: &[u8; 40], args: &[u8], payload: &[u8], reply: RingReply) {
        self.by_ring.fetch_add(1, Ordering::Relaxed);
        match self.answer(header, args, payload) {
            Out::Error(errno) => reply.error(errno),
            Out::Small(bytes, len) => reply.bytes(&bytes[..len]),
            Out::Long { value, fill: true } => reply.fill(value.len(), |to| {
                to.copy_from_slice(&value);
                Ok(to.len())
            }),
            Out::Long { value, fill: false } => reply.owned(value),
            Out::Read { file, off, len } => reply.fill(len, |to| {
                self.copy(file, off, to);
                Ok(to.len())
            }),
            Out::Special(special, kept) => self.special(special, kept, reply),
        }
    }
}
