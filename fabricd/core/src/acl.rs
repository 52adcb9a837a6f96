//! POSIX access control lists, as `system.posix_acl_*` attributes hold them, and what they have to
//! do with mode bits. The rules are those of Linux's fs/posix_acl.c, by function name.

use alloc::vec::Vec;

use kos_types::{Error, Kind, Result};

/// The list that is checked on access.
pub(crate) const ACCESS: &[u8] = b"system.posix_acl_access";
/// The list that new entries of a directory inherit.
pub(crate) const DEFAULT: &[u8] = b"system.posix_acl_default";

const VERSION: u32 = 2;
const ENTRY_BYTES: usize = 8;
/// The id of entries that need none.
const NO_ID: u32 = u32::MAX;

const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    tag: u16,
    perm: u16,
    id: u32,
}

/// A valid list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Acl(Vec<Entry>);

fn bad() -> Error {
    Error::new(Kind::Invalid, "access control list: not a valid one")
}

impl Acl {
    /// `posix_acl_from_xattr` and `posix_acl_valid`.
    pub(crate) fn decode(value: &[u8]) -> Result<Self> {
        let (version, rest) = value.split_first_chunk().ok_or_else(bad)?;
        let (entries, tail) = rest.as_chunks::<ENTRY_BYTES>();
        if u32::from_le_bytes(*version) != VERSION || !tail.is_empty() {
            return Err(bad());
        }
        let entry = |e: &[u8; ENTRY_BYTES]| Entry {
            tag: u16::from_le_bytes([e[0], e[1]]),
            perm: u16::from_le_bytes([e[2], e[3]]),
            id: u32::from_le_bytes([e[4], e[5], e[6], e[7]]),
        };
        let acl = Self(entries.iter().map(entry).collect());
        if acl.is_valid() { Ok(acl) } else { Err(bad()) }
    }

    fn is_valid(&self) -> bool {
        let count = |tag| self.0.iter().filter(|e| e.tag == tag).count();
        let named = count(USER) + count(GROUP);
        let known = self.0.iter().all(|e| {
            e.perm <= 7
                && match e.tag {
                    USER | GROUP => e.id != NO_ID,
                    USER_OBJ | GROUP_OBJ | MASK | OTHER => true,
                    _ => false,
                }
        });
        // The tags' numbers are their order.
        known
            && self.0.is_sorted_by_key(|e| e.tag)
            && [USER_OBJ, GROUP_OBJ, OTHER].into_iter().all(|tag| count(tag) == 1)
            && count(MASK) <= 1
            && (named == 0 || count(MASK) == 1)
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = VERSION.to_le_bytes().to_vec();
        for e in &self.0 {
            out.extend_from_slice(&e.tag.to_le_bytes());
            out.extend_from_slice(&e.perm.to_le_bytes());
            out.extend_from_slice(&e.id.to_le_bytes());
        }
        out
    }

    /// The permissions mode bits show and change: owner, mask or else group, others.
    fn shown(&mut self) -> [(u32, Option<&mut u16>); 3] {
        let group = if self.0.iter().any(|e| e.tag == MASK) { MASK } else { GROUP_OBJ };
        let (mut user, mut middle, mut other) = (None, None, None);
        for e in &mut self.0 {
            match e.tag {
                USER_OBJ => user = Some(&mut e.perm),
                OTHER => other = Some(&mut e.perm),
                tag if tag == group => middle = Some(&mut e.perm),
                _ => (),
            }
        }
        [(6, user), (3, middle), (0, other)]
    }

    /// Permission bits as `posix_acl_equiv_mode` tells them.
    pub(crate) fn mode(&mut self) -> u32 {
        self.shown()
            .into_iter()
            .fold(0, |mode, (shift, perm)| mode | u32::from(perm.map_or(0, |p| *p)) << shift)
    }

    /// Whether mode bits say all of it.
    pub(crate) fn is_minimal(&self) -> bool {
        self.0.iter().all(|e| matches!(e.tag, USER_OBJ | GROUP_OBJ | OTHER))
    }

    /// `__posix_acl_chmod_masq`.
    pub(crate) fn chmod(&mut self, mode: u32) {
        for (shift, perm) in self.shown() {
            if let Some(perm) = perm {
                *perm = (mode >> shift & 7) as u16;
            }
        }
    }

    /// `posix_acl_create_masq`: this default list becomes a new entry's access list, restricted by
    /// the mode asked for. Answers the mode's permission bits.
    pub(crate) fn create(&mut self, mode: u32) -> u32 {
        for (shift, perm) in self.shown() {
            if let Some(perm) = perm {
                *perm &= (mode >> shift & 7) as u16;
            }
        }
        self.mode()
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use super::*;

    fn acl(entries: &[(u16, u16, u32)]) -> Acl {
        Acl(entries.iter().map(|&(tag, perm, id)| Entry { tag, perm, id }).collect())
    }

    fn extended() -> Acl {
        acl(&[(USER_OBJ, 7, NO_ID), (USER, 6, 1), (GROUP_OBJ, 5, NO_ID), (MASK, 6, NO_ID), (OTHER, 1, NO_ID)])
    }

    fn perm(list: &Acl, tag: u16) -> Option<u16> {
        list.0.iter().find(|e| e.tag == tag).map(|e| e.perm)
    }

    #[test]
    fn valid_lists_round_trip() {
        for list in [extended(), acl(&[(USER_OBJ, 7, NO_ID), (GROUP_OBJ, 5, NO_ID), (OTHER, 0, NO_ID)])] {
            assert_eq!(Acl::decode(&list.encode()), Ok(list));
        }
    }

    #[test]
    fn invalid_lists_are_refused() {
        let refused = |entries: &[(u16, u16, u32)]| assert!(Acl::decode(&acl(entries).encode()).is_err());
        refused(&[]);
        refused(&[(USER_OBJ, 7, NO_ID), (GROUP_OBJ, 5, NO_ID)]);
        refused(&[(USER_OBJ, 8, NO_ID), (GROUP_OBJ, 5, NO_ID), (OTHER, 0, NO_ID)]);
        refused(&[(GROUP_OBJ, 5, NO_ID), (USER_OBJ, 7, NO_ID), (OTHER, 0, NO_ID)]);
        refused(&[(USER_OBJ, 7, NO_ID), (USER, 7, 5), (GROUP_OBJ, 5, NO_ID), (OTHER, 0, NO_ID)]);
        refused(&[(USER_OBJ, 7, NO_ID), (GROUP_OBJ, 5, NO_ID), (OTHER, 0, NO_ID), (0x40, 0, NO_ID)]);
        let good = extended().encode();
        assert!(Acl::decode(&good[..good.len() - 1]).is_err() && Acl::decode(&good[..3]).is_err());
        let mut version = vec![1, 0, 0, 0];
        version.extend_from_slice(&good[4..]);
        assert!(Acl::decode(&version).is_err());
    }

    #[test]
    fn the_mask_stands_for_the_group_in_modes() {
        let mut list = extended();
        assert_eq!(list.mode(), 0o761);
        list.chmod(0o640);
        assert_eq!(list.mode(), 0o640);
        assert_eq!(perm(&list, GROUP_OBJ), Some(5), "untouched");
        let mut minimal = acl(&[(USER_OBJ, 7, NO_ID), (GROUP_OBJ, 5, NO_ID), (OTHER, 0, NO_ID)]);
        minimal.chmod(0o604);
        assert_eq!((minimal.mode(), minimal.is_minimal()), (0o604, true));
    }

    #[test]
    fn a_new_entry_has_no_more_than_was_asked_for() {
        let mut list = extended();
        assert_eq!(list.create(0o640), 0o640);
        assert_eq!(perm(&list, MASK), Some(4));
        assert_eq!(perm(&list, USER), Some(6), "the mask restricts it");
    }
}
