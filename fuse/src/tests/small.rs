//! Small files: their bytes go with the metadata, as long as all of the file fits.

use kos_types::limits::INLINE_BYTES_MAX;
use kos_types::{Fabric, ROOT, SetAttr, SetSize, Source};

use super::{create, read, unmounted};

const MAX: u64 = INLINE_BYTES_MAX as u64;

#[test]
fn a_file_leaves_the_metadata_when_it_grows_and_comes_back() {
    let (model, fs) = unmounted();
    let ino = create(&fs, "a");
    let mut expected = vec![1; INLINE_BYTES_MAX - 10];
    let write = |off: u64, data: &[u8]| {
        fs.write(ino, Some(off), data, false).expect("write");
        fs.files.flush(ino).expect("flush");
    };
    write(0, &expected);
    write(MAX - 10, &[2; 10]);
    expected.extend([2; 10]);
    assert_eq!(model.stripes(), 0, "all of it fits");
    // One byte more: it goes to a stripe, what was there stays.
    write(MAX, &[3]);
    expected.push(3);
    assert_eq!(model.stripes(), 1);
    // Of a file that is not small, neither the head nor bytes behind a hole are small.
    write(5, &[4; 5]);
    expected[5..10].fill(4);
    assert_eq!(model.stripes(), 2);
    assert_eq!(read(&fs, ino, 0, 10_000).expect("read"), expected);
    let size = Some(SetSize { size: 100 });
    fs.set_attr(ino, SetAttr { size, ..SetAttr::default() }).expect("truncate");
    write(0, &[5; 100]);
    assert_eq!(model.stripes(), 0, "it is small again");
    assert_eq!(read(&fs, ino, 0, 10_000).expect("read"), [5; 100]);
    fs.unlink((ROOT, b"a")).expect("unlink");
    fs.forget(ino, 1);
    fs.files.reap();
    assert_eq!(model.orphans(), []);
}

#[test]
fn small_and_large_files_of_one_flush_go_each_their_way() {
    let (model, fs) = unmounted();
    let sizes = [10, INLINE_BYTES_MAX, INLINE_BYTES_MAX + 1, 100_000, 1, 6000];
    let files: Vec<_> = sizes
        .iter()
        .enumerate()
        .map(|(i, &size)| (create(&fs, &i.to_string()), vec![i as u8; size]))
        .collect();
    for (ino, data) in &files {
        fs.write(*ino, Some(0), data, false).expect("write");
    }
    fs.flush_all().expect("flush");
    assert_eq!(model.stripes(), 1, "the larger ones share it");
    for (ino, data) in &files {
        assert!(read(&fs, *ino, 0, data.len() + 1).expect("read") == *data);
        let map = model.extents(*ino, 0, u64::MAX).expect("extents");
        let inline = map.extents.iter().all(|extent| matches!(extent.source, Source::Inline(_)));
        assert_eq!(inline, data.len() <= INLINE_BYTES_MAX, "{} bytes", data.len());
    }
}
