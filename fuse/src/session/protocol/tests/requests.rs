//! Requests decode to what was encoded, and nothing less does.

use std::collections::BTreeSet;

use super::super::{
    Fault, Forgets, HEADER_BYTES, Header, Malformed, Operation, TimeSet, args_bytes, decode, opcode, split,
};
use super::samples::{Sample, all};
use super::{Bytes, NEWEST, OLDEST, header};

/// As /dev/fuse has it: args and payload are one.
fn whole<'a>(sample: &Sample, body: &'a [u8]) -> Result<Operation<'a>, Malformed> {
    let (args, payload) = split(sample.opcode, body, &sample.agreed)?;
    decode(&header(sample.opcode, sample.extensions), args, payload, &sample.agreed)
}

#[test]
fn decodes_to_what_was_encoded() {
    for sample in all() {
        let op = sample.opcode;
        assert_eq!(sample.args.len(), args_bytes(op, &sample.agreed), "opcode {op}");
        let body = [&sample.args[..], &sample.payload].concat();
        assert_eq!(whole(&sample, &body).as_ref(), Ok(&sample.is), "opcode {op}");
    }
}

#[test]
fn has_a_sample_of_each() {
    let sampled: BTreeSet<u32> = all().iter().map(|sample| sample.opcode).collect();
    // 7 and 19 were never given.
    let known = (opcode::LOOKUP..=opcode::COPY_FILE_RANGE_64).filter(|op| ![7, 19].contains(op));
    let missing: Vec<u32> = known.filter(|op| !sampled.contains(op)).collect();
    assert_eq!(missing, []);
}

#[test]
fn takes_what_a_ring_has_behind_the_args() {
    for sample in all() {
        // What an earlier request left is not cleared.
        let mut op_in = vec![0xa5; 128];
        op_in[..sample.args.len()].copy_from_slice(&sample.args);
        let header = header(sample.opcode, sample.extensions);
        assert_eq!(decode(&header, &op_in, &sample.payload, &sample.agreed).as_ref(), Ok(&sample.is));
    }
}

#[test]
fn refuses_every_shorter_one() {
    for sample in all().iter().filter(|sample| !matches!(sample.is, Operation::Unknown(_))) {
        let body = [&sample.args[..], &sample.payload].concat();
        for len in 0..body.len() {
            assert!(whole(sample, &body[..len]).is_err(), "opcode {} of {len} bytes", sample.opcode);
        }
    }
}

#[test]
fn refuses_every_longer_one() {
    for sample in all().iter().filter(|sample| !matches!(sample.is, Operation::Unknown(_))) {
        let at = sample.payload.len() - sample.extensions as usize;
        let mut payload = sample.payload.clone();
        payload.insert(at, b'x');
        let header = header(sample.opcode, sample.extensions);
        let refused = decode(&header, &sample.args, &payload, &sample.agreed);
        assert!(refused.is_err(), "opcode {}: {refused:?}", sample.opcode);
    }
}

#[test]
fn survives_every_changed_byte() {
    for sample in all() {
        let body = [&sample.args[..], &sample.payload].concat();
        for (at, value) in (0..body.len()).flat_map(|at| [0, 1, 0x7f, 0x80, 0xff].map(|value| (at, value))) {
            let mut changed = body.clone();
            changed[at] = value;
            // Either way is right: that it comes back is what is looked at.
            let _ = whole(&sample, &changed);
        }
    }
}

#[test]
fn names_are_not_empty_and_end() {
    let lookup = |payload: &'static [u8]| {
        decode(&header(opcode::LOOKUP, 0), &[], payload, &OLDEST).map_err(|e| e.fault)
    };
    assert_eq!(lookup(b"a\xffb\0"), Ok(Operation::Lookup { name: b"a\xffb" }));
    assert_eq!(lookup(b""), Err(Fault::Unterminated));
    assert_eq!(lookup(b"ab"), Err(Fault::Unterminated));
    assert_eq!(lookup(b"\0"), Err(Fault::Empty));
    assert_eq!(lookup(b"a\0b\0"), Err(Fault::Trailing));
    let rename = decode(&header(opcode::RENAME, 0), &[0; 8], b"a\0\0", &OLDEST);
    assert_eq!(rename.map_err(|e| e.fault), Err(Fault::Empty));
}

#[test]
fn sizes_are_those_of_the_data() {
    let write = Bytes::default().u64(5).u64(0).u32(3).u32(0).u64(0).u32(0).u32(0).0;
    let of =
        |data: &'static [u8]| decode(&header(opcode::WRITE, 0), &write, data, &OLDEST).map_err(|e| e.fault);
    assert!(of(b"abc").is_ok());
    assert_eq!(of(b"ab"), Err(Fault::Short));
    assert_eq!(of(b"abcd"), Err(Fault::Trailing));
}

#[test]
fn forgets_are_pairs() {
    let of = |count: u32, list: &[u8]| {
        let args = Bytes::default().u32(count).u32(0).0;
        decode(&header(opcode::BATCH_FORGET, 0), &args, list, &OLDEST).map(|is| match is {
            Operation::BatchForget(forgets) => forgets.collect::<Vec<_>>(),
            other => panic!("{other:?}"),
        })
    };
    let list = Bytes::default().u64(10).u64(1).u64(20).u64(u64::MAX).0;
    assert_eq!(of(2, &list), Ok(vec![(10, 1), (20, u64::MAX)]));
    assert_eq!(of(0, &[]), Ok(vec![]));
    for (count, list) in [(1, &list[..]), (3, &list), (2, &list[..31]), (u32::MAX, &list), (1, &[])] {
        assert!(of(count, list).is_err(), "{count} in {} bytes", list.len());
    }
    assert_eq!(Forgets(&[[0; 16]; 3]).len(), 3);
}

#[test]
fn times_are_below_a_second() {
    let setattr = |valid: u32, nanos: u32| {
        let fixed =
            Bytes::default().u32(valid).raw(&[0; 52]).u32(nanos).u32(nanos).u32(nanos).raw(&[0; 20]).0;
        decode(&header(opcode::SETATTR, 0), &fixed, &[], &NEWEST).map(|is| match is {
            Operation::Setattr(set) => set,
            other => panic!("{other:?}"),
        })
    };
    for valid in [1 << 4, 1 << 5, 1 << 10] {
        assert!(setattr(valid, 999_999_999).is_ok());
        assert_eq!(setattr(valid, 1_000_000_000).map_err(|e| e.fault), Err(Fault::Range), "{valid:#x}");
    }
    // Nobody looks at the number where it is not meant.
    assert!(setattr(0, u32::MAX).is_ok());
    assert_eq!(setattr(1 << 4 | 1 << 7, u32::MAX).map(|set| set.atime), Ok(Some(TimeSet::Now)));
}

#[test]
fn extensions_are_cut_off() {
    let mkdir = |payload: &[u8], extensions: u32| {
        decode(&header(opcode::MKDIR, extensions), &[0; 8], payload, &NEWEST).map_err(|e| e.fault).map(|is| {
            match is {
                Operation::Mkdir { group, .. } => group,
                other => panic!("{other:?}"),
            }
        })
    };
    let with = |extension: Bytes| {
        let bytes = extension.0.len() as u32;
        mkdir(&[b"n\0", &extension.0[..]].concat(), bytes)
    };
    let new = Bytes::default;
    assert_eq!(with(new()), Ok(None));
    assert_eq!(with(new().u32(16).u32(32).u32(1).u32(7)), Ok(Some(7)));
    assert_eq!(with(new().u32(16).u32(32).u32(0).u32(7)), Ok(None));
    // Of another kind.
    assert_eq!(with(new().u32(16).u32(33).u32(1).u32(7)), Ok(None));
    // A group that is not there, and sizes that cannot be.
    assert_eq!(with(new().u32(16).u32(32).u32(2).u32(7)), Err(Fault::Short));
    assert_eq!(with(new().u32(8).u32(32)), Err(Fault::Short));
    assert_eq!(with(new().u32(24).u32(32).u32(1).u32(7)), Err(Fault::Short));
    assert_eq!(with(new().u32(0).u32(32).u32(1).u32(7)), Err(Fault::Range));
    assert_eq!(with(new().u32(12).u32(32).u32(1).u32(7)), Err(Fault::Range));
    assert_eq!(mkdir(b"n\0", 8), Err(Fault::Short));
}

#[test]
fn headers_say_who_asks() {
    let bytes = Bytes::default().u32(48).u32(2).u64(u64::MAX).u64(9).u32(1).u32(2).u32(3).u16(5).u16(0).0;
    assert_eq!(bytes.len(), HEADER_BYTES);
    let is = Header { len: 48, opcode: 2, unique: u64::MAX, node: 9, uid: 1, gid: 2, pid: 3, extensions: 40 };
    assert_eq!(Header::decode(&bytes), Ok(is));
    assert_eq!(Header::decode(&[&bytes[..], b"body"].concat()), Ok(is));
    for len in 0..HEADER_BYTES {
        assert_eq!(Header::decode(&bytes[..len]).map_err(|e| e.fault), Err(Fault::Short));
    }
    let small = Bytes::default().u32(39).raw(&bytes[4..]).0;
    assert_eq!(Header::decode(&small).map_err(|e| e.fault), Err(Fault::Range));
}

#[test]
fn says_what_is_wrong() {
    let short = decode(&header(opcode::READ, 0), &[0; 39], &[], &OLDEST).expect_err("a byte is missing");
    assert_eq!(short.to_string(), "a request of the kernel: the arguments is too short");
}
