//! Fuzz targets: each takes any bytes and panics when a promise is broken. libFuzzer chooses the
//! bytes by the code they reach; KOS_FUZZ names the target.
#![no_main]

mod extents;
mod fs;
mod fuse;
mod input;
mod lz4;
// By itself: its crate needs fuser, and a third more to build.
#[path = "../../../fuse/src/session/protocol/mod.rs"]
mod protocol;
mod records;
mod shard;
mod spec;
mod stripe;
mod wire;
mod xattr;

use std::sync::LazyLock;

type Target = fn(&[u8]);

/// run.sh reads the names from here: one in each line.
const TARGETS: [(&str, Target); 9] = [
    ("records", records::run),
    ("shard", shard::run),
    ("stripe", stripe::run),
    ("lz4", lz4::run),
    ("xattr", xattr::run),
    ("extents", extents::run),
    ("spec", spec::run),
    ("wire", wire::run),
    ("fuse", fuse::run),
];

static TARGET: LazyLock<Target> = LazyLock::new(|| {
    let name = std::env::var("KOS_FUZZ").unwrap_or_default();
    let found = TARGETS.iter().find(|(known, _)| *known == name);
    found.unwrap_or_else(|| panic!("KOS_FUZZ={name:?} names no target")).1
});

libfuzzer_sys::fuzz_target!(|data: &[u8]| TARGET(data));
