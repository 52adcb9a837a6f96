//! Sealed files: what may still be done with them, and what is refused; how they are read.

mod copies;
mod rules;

use std::path::Path;

use rustix::fs::{XattrFlags, getxattr, setxattr};
use rustix::io::Errno;

fn set(path: &Path, name: &str, value: &str) -> Result<(), Errno> {
    setxattr(path, name, value.as_bytes(), XattrFlags::empty())
}

fn get(path: &Path, name: &str) -> String {
    let mut value = [0; 64];
    let len = getxattr(path, name, &mut value).expect("getxattr");
    String::from_utf8(value[..len].to_vec()).expect("text")
}
