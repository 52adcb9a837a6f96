//! A number of the sources that say what the messages look like, so that two builds whose messages differ never take
//! each other's for their own: nobody has to remember to count a version up.

use std::path::{Path, PathBuf};

/// FNV-1a: it need not withstand anybody.
fn hash(state: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(state, |state, &byte| (state ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

fn sources(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).expect("the vocabulary's sources");
    let mut files: Vec<_> = entries.map(|entry| entry.expect("entry").path()).collect();
    // In the same order everywhere.
    files.sort();
    files
}

fn main() {
    let vocabulary = Path::new("../types/src");
    let mut files = sources(vocabulary);
    files.extend(["src/message.rs", "src/frame.rs", "src/greeting.rs"].map(PathBuf::from));
    let mut format = 0xcbf2_9ce4_8422_2325;
    for file in &files {
        println!("cargo::rerun-if-changed={}", file.display());
        format = hash(format, &std::fs::read(file).expect("a source"));
    }
    // New files.
    println!("cargo::rerun-if-changed={}", vocabulary.display());
    println!("cargo::rustc-env=KOS_RPC_FORMAT={format:016x}");
}
