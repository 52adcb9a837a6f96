//! The kernel's protocol: any bytes are a request or an error, what a request names lies within its bytes,
//! and terms never hold more than both sides have.

use crate::protocol::reply::{Attr, Entry};
use crate::protocol::{
    Agreed, HEADER_BYTES, Header, InitIn, Listing, Malformed, Name, Operation, Refused, TimeSet, Wanted,
    agree, args_bytes, decode, flag, init, opcode, ring, split,
};

use crate::input::Input;

/// A ring's part for args.
const OP_IN: usize = ring::PART_BYTES;

pub(crate) fn run(data: &[u8]) {
    let mut input = Input(data);
    match input.below(4) {
        0 => terms(&mut input),
        1 => listing(&mut input),
        2 => device(&mut input),
        _ => entry(&mut input),
    }
}

fn agreed(input: &mut Input<'_>) -> Agreed {
    let flags = if input.below(2) == 0 { 0 } else { flag::SETXATTR_EXT };
    Agreed { minor: 45, flags, max_write: 4096, max_readahead: 0, max_pages: 32 }
}

/// The opcode is mostly one that is known, and the extensions few: else hardly any bytes would be a request.
fn header(input: &mut Input<'_>) -> Result<Header, Malformed> {
    let mut bytes = [0; HEADER_BYTES];
    let given = input.bytes(HEADER_BYTES);
    bytes[..given.len()].copy_from_slice(given);
    let mut header = Header::decode(&bytes)?;
    assert!(header.len as usize >= HEADER_BYTES);
    if header.opcode & 0x80 == 0 {
        header.opcode &= 0x3f;
        header.extensions = if input.below(4) == 0 { 8 * (header.extensions & 7) } else { 0 };
    }
    Ok(header)
}

/// As /dev/fuse gives it.
fn device(input: &mut Input<'_>) {
    let agreed = agreed(input);
    let Ok(header) = header(input) else { return };
    let body = input.bytes(usize::MAX);
    let Ok((args, payload)) = split(header.opcode, body, &agreed) else {
        assert!(body.len() < args_bytes(header.opcode, &agreed));
        return;
    };
    assert_eq!(args.len() + payload.len(), body.len());
    let result = decode(&header, args, payload, &agreed);
    check(&header, payload, &result);
    // What a ring has behind the args changes nothing.
    let mut op_in = [0xa5; OP_IN];
    op_in[..args.len()].copy_from_slice(args);
    assert_eq!(decode(&header, &op_in, payload, &agreed), result);
}

/// As a ring gives it, but that any length is tried.
fn entry(input: &mut Input<'_>) {
    let agreed = agreed(input);
    let Ok(header) = header(input) else { return };
    let args = input.text();
    let payload = input.bytes(usize::MAX);
    if let Ok(entry) = ring::Entry::decode(payload) {
        let again = ring::Entry::decode(&entry.encode());
        assert_eq!(again, Ok(entry));
    }
    let result = decode(&header, args, payload, &agreed);
    check(&header, payload, &result);
    if args.len() < args_bytes(header.opcode, &agreed) {
        assert!(result.is_err());
    }
}

fn check(header: &Header, payload: &[u8], result: &Result<Operation<'_>, Malformed>) {
    let Ok(operation) = result else {
        assert!(!result.as_ref().expect_err("it is one").to_string().is_empty());
        return;
    };
    assert!(header.extensions as usize <= payload.len(), "extensions are within");
    let plain = payload.len() - header.extensions as usize;
    let of_payload = Payload(&payload[..plain]);
    match operation {
        Operation::Lookup { name }
        | Operation::Unlink { name }
        | Operation::Rmdir { name }
        | Operation::Link { name, .. }
        | Operation::Mknod { name, .. }
        | Operation::Mkdir { name, .. }
        | Operation::Create { name, .. }
        | Operation::Removexattr { name }
        | Operation::Getxattr { name, .. } => of_payload.is_all(&[name]),
        Operation::Symlink { name, target: other, .. } | Operation::Rename { name, new_name: other, .. } => {
            of_payload.is_all(&[name, other]);
        }
        Operation::Setxattr { name, value, .. } => {
            of_payload.name(name);
            assert_eq!(name.len() + 1 + value.len(), plain);
        }
        Operation::Write { data, .. } | Operation::Ioctl { data, .. } => assert_eq!(data.len(), plain),
        Operation::NotifyReply { data, .. } => assert_eq!(data.len() + 40, plain),
        Operation::BatchForget(forgets) => {
            assert_eq!(forgets.len() * 16, plain);
            assert_eq!(forgets.clone().count(), forgets.len());
        }
        Operation::Setattr(set) => {
            assert!(set.ctime.is_none_or(|(_, nanos)| nanos < 1_000_000_000));
            for time in [set.atime, set.mtime].into_iter().flatten() {
                assert!(matches!(time, TimeSet::Now | TimeSet::At(_, 0..1_000_000_000)));
            }
        }
        Operation::Unknown(op) => assert_eq!(*op, header.opcode),
        Operation::Tmpfile { .. } => {
            assert_eq!(payload[..plain].iter().position(|b| *b == 0), Some(plain - 1))
        }
        _ => assert_eq!(plain, 0, "nothing that is lost: {operation:?}"),
    }
    let known = (opcode::LOOKUP..=opcode::COPY_FILE_RANGE_64).contains(&header.opcode);
    assert!(known || matches!(operation, Operation::Unknown(_)));
}

/// What names come from.
struct Payload<'a>(&'a [u8]);

impl Payload<'_> {
    fn name(&self, name: &[u8]) {
        assert!(!name.is_empty() && !name.contains(&0));
        assert!(self.0.as_ptr_range().contains(&name.as_ptr()), "it lies where it was sent");
    }

    /// The names and their ends.
    fn is_all(&self, names: &[&[u8]]) {
        names.iter().for_each(|name| self.name(name));
        assert_eq!(names.iter().map(|name| name.len() + 1).sum::<usize>(), self.0.len());
    }
}

fn terms(input: &mut Input<'_>) {
    let wanted = Wanted {
        flags: input.u64(),
        max_write: input.u64() as u32,
        max_readahead: input.u64() as u32,
        max_pages: input.u64() as u16,
        max_background: input.u64() as u16,
        max_stack_depth: input.u8().into(),
        ..Wanted::default()
    };
    let Ok(kernel) = InitIn::decode(input.bytes(64)) else { return };
    match agree(&kernel, &wanted) {
        Ok((agreed, answer)) => {
            assert_eq!(answer.len(), 64);
            assert!(
                (init::MINOR_LEAST..=init::MINOR).contains(&agreed.minor) && agreed.minor <= kernel.minor
            );
            assert_eq!(agreed.flags & !kernel.flags, 0, "what is not offered");
            assert_eq!(agreed.flags & !(wanted.flags | flag::INIT_EXT), 0, "what is not wanted");
            assert_eq!(agreed.lacks(&wanted) & agreed.flags, 0);
            assert_eq!(agreed.flags >> 32 != 0 && !agreed.has(flag::INIT_EXT), false);
            assert!(agreed.max_readahead <= kernel.max_readahead && agreed.max_pages > 0);
            assert!(agreed.buffer_bytes() >= 8192 && agreed.ring_payload_bytes(4096) >= 8192);
        }
        Err(Refused::Newer(answer)) => assert!(answer.len() == 64 && kernel.major > init::MAJOR),
        Err(Refused::Older(major, minor)) => assert!((major, minor) < (init::MAJOR, init::MINOR_LEAST)),
    }
}

/// What is listed is read as the kernel reads it.
fn listing(input: &mut Input<'_>) {
    let mut buffer = vec![0xa5; usize::from(input.u8()) * 4];
    let plus = input.below(2) == 0;
    let head = if plus { 152 } else { 24 };
    let entry = Entry {
        attr: Attr { ino: 7, ..Attr::default() },
        generation: 0,
        entry_ttl: std::time::Duration::ZERO,
        attr_ttl: std::time::Duration::ZERO,
    };
    let mut list = Listing::new(&mut buffer);
    let mut kept = Vec::new();
    while !input.is_empty() {
        let name = input.text();
        let of = Name { ino: input.u8().into(), next: kept.len() as u64, mode: 0o100_644, name };
        let is_full = if plus { list.add_plus(&of, Some(&entry)) } else { list.add(&of) };
        if !is_full {
            kept.push(of);
        }
    }
    let mut bytes = list.as_bytes();
    for name in kept {
        let size = (head + name.name.len()).next_multiple_of(8);
        let (one, rest) = bytes.split_at(size);
        let dirent = &one[head - 24..];
        assert_eq!(dirent[..8], name.ino.to_ne_bytes());
        assert_eq!(dirent[8..16], name.next.to_ne_bytes());
        assert_eq!(dirent[16..20], (name.name.len() as u32).to_ne_bytes());
        assert_eq!(dirent[20..24], 8_u32.to_ne_bytes());
        assert_eq!(&one[head..head + name.name.len()], name.name);
        assert!(one[head + name.name.len()..].iter().all(|byte| *byte == 0));
        bytes = rest;
    }
    assert!(bytes.is_empty());
}
