//! What a request that makes an inode may have at its end.

use super::cursor::{Cursor, Fault, Malformed};

/// Bytes that say the size and the type, which count as its size.
const HEAD_BYTES: u32 = 8;
/// Each ends at such a boundary.
const ALIGNMENT: u32 = 8;
/// The type of groups. Below are security contexts: the type is their number.
const GROUPS: u32 = 32;

/// The payload without the last `bytes`, and the group that they name: one of the caller's, the directory's.
pub(super) fn cut(payload: &[u8], bytes: u32) -> Result<(&[u8], Option<u32>), Malformed> {
    let short = Malformed::new("payload with extensions", Fault::Short);
    let at = payload.len().checked_sub(bytes as usize).ok_or(short)?;
    let (payload, extensions) = payload.split_at(at);
    let mut from = Cursor::new(extensions, "extension");
    let mut group = None;
    while !from.is_empty() {
        let (size, kind) = (from.u32()?, from.u32()?);
        if size < HEAD_BYTES || !size.is_multiple_of(ALIGNMENT) {
            return Err(Malformed::new("size of an extension", Fault::Range));
        }
        let inner = from.bytes((size - HEAD_BYTES) as usize)?;
        if kind == GROUPS && group.is_none() {
            group = first_group(inner)?;
        }
    }
    Ok((payload, group))
}

/// The kernel sends one. That none of those that it counts is missing is looked at all the same.
fn first_group(groups: &[u8]) -> Result<Option<u32>, Malformed> {
    let mut from = Cursor::new(groups, "list of groups");
    let count = from.u32()?;
    let mut first = None;
    for _ in 0..count {
        let group = from.u32()?;
        first = first.or(Some(group));
    }
    Ok(first)
}
