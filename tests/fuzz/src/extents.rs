//! Commits, holes, clones and truncation of two files, beside arrays that hold where each byte is.

use kos_core::read;
use kos_types::{ExtentPut, FileKind, Ino, Op, Policy, ROOT, Reply, SetAttr, SetSize, Source, StripeId};

use crate::fs::Fs;
use crate::input::Input;

/// Bytes of a file that are looked at.
const BYTES: u64 = 64;

/// Enough for every state, few enough to be fast.
const STEPS_MAX: u64 = 100;

/// Where a byte is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Byte {
    In(StripeId, u64),
    Inline(u8),
}

/// Where each byte below the file's end is; none in a hole.
type Model = Vec<Option<Byte>>;

pub(crate) fn run(data: &[u8]) {
    let mut input = Input(data);
    let mut fs = Fs::new();
    let batch = match fs.run(Op::OpenBatch) {
        Ok(Reply::Batch(batch)) => batch,
        other => panic!("a batch: {other:?}"),
    };
    let inos = [b"a", b"b"].map(|name| fs.create(ROOT, name, FileKind::File));
    let mut models = [Model::new(), Model::new()];
    for number in 0..STEPS_MAX {
        if input.is_empty() {
            break;
        }
        let id = StripeId::in_batch(batch, number).expect("far below the batch's end");
        step(&mut fs, inos, &mut models, (id, &mut input));
        for (ino, model) in inos.into_iter().zip(&models) {
            check(&fs, ino, model);
        }
    }
}

fn step(fs: &mut Fs, inos: [Ino; 2], models: &mut [Model; 2], (id, input): (StripeId, &mut Input<'_>)) {
    let choice = input.u8();
    let which = usize::from(choice & 1);
    let (ino, off, len) = (inos[which], input.below(BYTES), input.below(BYTES));
    match choice >> 1 & 3 {
        0 if choice >> 4 & 1 == 1 => inline(fs, ino, &mut models[which], (off, input)),
        0 => commit(fs, ino, &mut models[which], (off, len), (id, input)),
        1 => {
            fs.run(Op::Punch { ino, off, len }).expect("punches");
            models[which].iter_mut().skip(off as usize).take(len as usize).for_each(|byte| *byte = None);
        }
        2 => {
            let set = SetAttr { size: Some(SetSize { size: len }), ..SetAttr::default() };
            fs.run(Op::SetAttr { ino, set }).expect("truncates");
            models[which].resize(len as usize, None);
        }
        _ => {
            let (from, to_off) = (usize::from(choice >> 3 & 1), input.below(BYTES));
            let source: Model = models[from].iter().skip(off as usize).take(len as usize).copied().collect();
            let op = Op::Clone { from: inos[from], from_off: off, to: ino, to_off, len };
            let overlap = from == which && off < to_off + len && to_off < off + len;
            let fits = source.len() as u64 == len && len > 0;
            match fs.run(op) {
                Ok(_) if fits && !overlap => put(&mut models[which], to_off, &source),
                Ok(_) => assert_eq!(len, 0, "cloned what is not there, or onto itself"),
                Err(e) => assert!(overlap || !fits, "{e}"),
            }
        }
    }
}

fn commit(
    fs: &mut Fs,
    ino: Ino,
    model: &mut Model,
    hole: (u64, u64),
    (id, input): (StripeId, &mut Input<'_>),
) {
    let stripe_len = 1 + input.below(BYTES);
    let extents: Vec<ExtentPut> = (0..1 + input.below(3))
        .map(|_| {
            let at = input.below(stripe_len);
            ExtentPut { off: input.below(BYTES), len: 1 + input.below(stripe_len - at), stripe: id, at }
        })
        .collect();
    let holes = if input.below(2) == 1 { vec![hole] } else { Vec::new() };
    let stripes = vec![(id, Policy::default(), stripe_len)];
    let op = Op::Commit {
        ino,
        stripes,
        holes: holes.clone(),
        extents: extents.clone(),
        inline: Vec::new(),
        size_min: 0,
        mtime: None,
    };
    // Ranges that overlap may be refused; a refusal changes nothing.
    if fs.run(op).is_err() {
        return;
    }
    for (off, len) in holes {
        model.iter_mut().skip(off as usize).take(len as usize).for_each(|byte| *byte = None);
    }
    for ExtentPut { off, len, stripe, at } in extents {
        let bytes: Model = (at..at + len).map(|byte| Some(Byte::In(stripe, byte))).collect();
        put(model, off, &bytes);
    }
}

fn inline(fs: &mut Fs, ino: Ino, model: &mut Model, (off, input): (u64, &mut Input<'_>)) {
    let bytes: Vec<u8> = (0..1 + input.below(BYTES)).map(|_| input.u8()).collect();
    let own: Model = bytes.iter().map(|&byte| Some(Byte::Inline(byte))).collect();
    let op = Op::Commit {
        ino,
        stripes: Vec::new(),
        holes: Vec::new(),
        extents: Vec::new(),
        inline: vec![(off, bytes)],
        size_min: 0,
        mtime: None,
    };
    fs.run(op).expect("inline bytes");
    put(model, off, &own);
}

fn put(model: &mut Model, off: u64, bytes: &[Option<Byte>]) {
    let end = off as usize + bytes.len();
    model.resize(model.len().max(end), None);
    model[off as usize..end].copy_from_slice(bytes);
}

fn check(fs: &Fs, ino: Ino, model: &Model) {
    let map = read::extents(&fs.0, ino, 0, u64::MAX).expect("alive");
    assert_eq!(map.size, model.len() as u64);
    let mut found = Model::new();
    for extent in &map.extents {
        assert!(extent.off == found.len() as u64 && extent.len > 0, "gap-free: {map:?}");
        found.extend((0..extent.len).map(|byte| match &extent.source {
            Source::Hole => None,
            Source::Stripe(id, at) => Some(Byte::In(*id, at + byte)),
            Source::Inline(bytes) => Some(Byte::Inline(bytes[byte as usize])),
        }));
    }
    assert_eq!(&found, model);
    for byte in model.iter().flatten() {
        let Byte::In(id, _) = byte else { continue };
        let stripe = read::stripe(&fs.0, *id).expect("reads");
        assert!(stripe.is_some_and(|stripe| stripe.refs > 0), "{id:?} is used and gone");
    }
}
