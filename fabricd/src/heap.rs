//! Memory that the process has freed and the allocator keeps: it goes back to the machine when nobody reads or writes.
//! Kept while there is work, because pages that come and go cost more than the copies made in them.

/// Looks without work between two pauses: what metadata alone takes is given back at a later one.
const QUIET: u32 = 5;

/// The allocator's arenas. It makes eight for each core, a thread keeps to one, and `malloc_trim` does not give back what lies free at
/// the end of any but the first: some megabytes in each. With fewer, threads share what one of them has freed.
const ARENAS_MAX: i32 = 8;

/// Have the allocator use few arenas. Called before there are threads.
pub(crate) fn bound_arenas() {
    #[expect(unsafe_code, reason = "no safe wrapper of mallopt")]
    // SAFETY: it sets a number that the allocator reads when a thread needs an arena. Where it does not know the option, it
    // uses more.
    let _ = unsafe { libc::mallopt(libc::M_ARENA_MAX, ARENAS_MAX) };
}

/// Watches for a pause.
#[derive(Debug, Default)]
pub(crate) struct Heap {
    /// Work done at the last look.
    seen: u64,
    /// Looks since it last changed.
    quiet: u32,
}

impl Heap {
    /// Look once: `work` is another number whenever something was done. Whether there is a pause.
    fn pauses(&mut self, work: u64) -> bool {
        self.quiet = if work == self.seen { self.quiet % QUIET + 1 } else { 0 };
        self.seen = work;
        self.quiet == QUIET
    }

    /// The same, and give back what is free when one does.
    pub(crate) fn look(&mut self, work: u64) {
        if self.pauses(work) {
            #[expect(unsafe_code, reason = "no safe wrapper of malloc_trim")]
            // SAFETY: it takes the allocator's own locks and touches free memory only. Whether there was any does
            // not matter.
            let _ = unsafe { libc::malloc_trim(0) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_comes_after_some_looks_without_work() {
        let mut heap = Heap::default();
        let mut pauses = |works: &[u64]| works.iter().filter(|&&work| heap.pauses(work)).count();
        assert_eq!(pauses(&[7; 5]), 0, "the first one saw work");
        assert_eq!(pauses(&[7; 1]), 1);
        assert_eq!((pauses(&[7; 4]), pauses(&[7; 6])), (0, 2), "again and again");
        assert_eq!(pauses(&[8, 8, 8, 8, 8, 9, 9, 9]), 0, "work in between");
    }
}
