//! Which descriptors of a file go past the page cache.
//!
//! A descriptor that only writes has no use for it: bytes that go past it are copied once less and take
//! no page. But the kernel does not keep a page that somebody reads in step with such a write (ADR
//! 10), so no file has both: while one descriptor writes past the cache, all others go past it.

/// What a descriptor may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    /// Both, or appending.
    Write,
    /// Nothing but writing where it says.
    Stream,
}

/// How the bytes of a descriptor go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// Through the page cache.
    Cached,
    /// Past it, and never written.
    ReadPast,
    /// Past it.
    WritePast,
    /// By the kernel from a copy.
    InPlace,
}

/// The descriptors of one file, those of mappings too: the kernel closes one when nothing uses it
/// any more.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Opens {
    cached: u32,
    reading_past: u32,
    writing_past: u32,
    in_place: u32,
}

impl Opens {
    /// One more; `cacheable` says whether the page cache may be used at all.
    pub(crate) const fn open(&mut self, access: Access, cacheable: bool) -> Way {
        let stream = matches!(access, Access::Stream) && self.cached == 0;
        let way = match access {
            _ if cacheable && !stream && self.writing_past == 0 => Way::Cached,
            Access::Read => Way::ReadPast,
            Access::Write | Access::Stream => Way::WritePast,
        };
        *self.count(way) += 1;
        way
    }

    /// One that was opened before, by an earlier process.
    pub(crate) const fn reopen(&mut self, way: Way) {
        *self.count(way) += 1;
    }

    /// One more that reads a copy; so do all that live at a time.
    pub(crate) const fn open_in_place(&mut self) -> Way {
        self.in_place += 1;
        Way::InPlace
    }

    /// One less of those that were opened that way.
    pub(crate) const fn close(&mut self, way: Way) {
        let count = self.count(way);
        *count = count.saturating_sub(1);
    }

    const fn count(&mut self, way: Way) -> &mut u32 {
        match way {
            Way::Cached => &mut self.cached,
            Way::ReadPast => &mut self.reading_past,
            Way::WritePast => &mut self.writing_past,
            Way::InPlace => &mut self.in_place,
        }
    }

    /// Whether the kernel may send writes that have not gone through its cache.
    pub(crate) const fn any_writes_past(self) -> bool {
        self.writing_past > 0
    }

    pub(crate) const fn any_cached(self) -> bool {
        self.cached > 0
    }

    pub(crate) const fn any(self) -> bool {
        self.cached > 0 || self.reading_past > 0 || self.writing_past > 0 || self.in_place > 0
    }
}

#[cfg(test)]
mod tests {
    use super::Access::{Read, Stream, Write};
    use super::Opens;
    use super::Way::{Cached, ReadPast, WritePast};

    #[test]
    fn a_stream_goes_past_a_cache_that_nobody_uses() {
        let mut opens = Opens::default();
        assert_eq!(opens.open(Stream, true), WritePast);
        assert_eq!(opens.open(Read, true), ReadPast);
        assert_eq!(opens.open(Stream, true), WritePast);
        opens.close(WritePast);
        assert_eq!(opens.open(Read, true), ReadPast, "one writes still");
        opens.close(WritePast);
        assert_eq!(opens.open(Read, true), Cached, "who reads past it holds no page");
        assert_eq!(opens.open(Stream, true), Cached, "somebody may hold pages");
        assert_eq!(opens.open(Read, false), ReadPast);
    }

    /// Whatever is opened and closed: never a cached descriptor beside one that writes past it.
    #[test]
    fn no_file_has_both() {
        let mut state = 1_u64;
        let mut below = |n: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % n
        };
        let (mut opens, mut open, mut seen) = (Opens::default(), Vec::new(), [0; 3]);
        for _ in 0..100_000 {
            // Few at a time: all kinds of company come up.
            if below(6) >= open.len() as u64 {
                let access = [Read, Write, Stream][below(3) as usize];
                let way = opens.open(access, true);
                assert!(access == Read || way != ReadPast, "writes are counted");
                seen[way as usize] += 1;
                open.push(way);
            } else {
                opens.close(open.swap_remove(below(open.len() as u64) as usize));
            }
            assert!(!(open.contains(&Cached) && open.contains(&WritePast)));
            assert_eq!(opens.any(), !open.is_empty());
        }
        assert!(seen.iter().all(|&times| times > 100), "{seen:?}");
    }
}
