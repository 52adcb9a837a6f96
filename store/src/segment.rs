//! One segment file: its name and the system calls on it.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::{Errno, ReadWriteFlags, preadv2, pwritev, retry_on_intr};

use crate::limits::WRITE_PARTS_MAX;

const PREFIX: &str = "seg-";
const SUFFIX: &str = ".kos";

/// The file of a segment.
pub(crate) fn path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{PREFIX}{number:016x}{SUFFIX}"))
}

/// The number in a file name, when it is exactly the name of a segment.
pub(crate) fn number(name: &str) -> Option<u64> {
    let digits = name.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?;
    let number = u64::from_str_radix(digits, 16).ok()?;
    (digits == format!("{number:016x}")).then_some(number)
}

/// A new, empty segment, to be written; one that exists already is an error.
pub(crate) fn create(dir: &Path, number: u64) -> io::Result<File> {
    File::options().write(true).create_new(true).open(path(dir, number))
}

/// All bytes of all parts, one after the other, from `at` on.
pub(crate) fn write(file: &File, parts: &[&[u8]], mut at: u64) -> io::Result<()> {
    let mut slices: Vec<_> = parts.iter().filter(|p| !p.is_empty()).map(|p| IoSlice::new(p)).collect();
    let mut left = &mut slices[..];
    while !left.is_empty() {
        let now = left.len().min(WRITE_PARTS_MAX);
        let written = retry_on_intr(|| pwritev(file, &left[..now], at))?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        at += written as u64;
        IoSlice::advance_slices(&mut left, written);
    }
    Ok(())
}

/// Bytes from `at` on that are in the page cache, at least one; none when the disk would have to be waited for,
/// and where the filesystem cannot tell.
pub(crate) fn read_cached(file: &File, out: &mut [u8], at: u64) -> Option<usize> {
    let mut out = [IoSliceMut::new(out)];
    let read = retry_on_intr(|| preadv2(file, &mut out, at, ReadWriteFlags::NOWAIT));
    read.ok().filter(|&bytes| bytes > 0)
}

/// Give the blocks of a range back; where the filesystem cannot, they stay.
pub(crate) fn punch(file: &File, at: u64, len: u64) -> io::Result<()> {
    let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    match retry_on_intr(|| fallocate(file, hole, at, len)) {
        Ok(()) | Err(Errno::OPNOTSUPP) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_exact_names_are_segments() {
        for n in [0, 1, 0xabc, u64::MAX] {
            let path = path(Path::new("/d"), n);
            assert_eq!(path.file_name().and_then(|f| f.to_str()).and_then(number), Some(n));
        }
        for name in [
            "lock",
            "seg-1.kos",
            "seg-000000000000000G.kos",
            "seg-00000000000000AB.kos",
            "seg-+00000000000000a.kos",
            "seg-0000000000000001.kos~",
            "seg-00000000000000001.kos",
        ] {
            assert_eq!(number(name), None, "{name}");
        }
    }

    #[test]
    fn more_parts_than_one_call_takes_are_all_written() {
        let file = tempfile::tempfile().expect("temporary file");
        let bytes: Vec<u8> = (0..3 * WRITE_PARTS_MAX as u32).map(|i| (i % 251) as u8).collect();
        let parts: Vec<&[u8]> = bytes.chunks(1).flat_map(|b| [b, &[]]).collect();
        write(&file, &parts, 10).expect("writes");
        let mut read = vec![0; bytes.len()];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut read, 10).expect("reads");
        assert_eq!(read, bytes);
    }
}
