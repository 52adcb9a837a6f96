//! Files that are made without a name.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, linkat};

use crate::Daemon;

impl Daemon {
    /// One on an empty state whose mount makes such files.
    #[must_use]
    pub fn that_makes_unnamed() -> Self {
        let mut daemon = Self::unstarted(0);
        daemon.make_unnamed();
        daemon.spawn();
        daemon
    }

    /// From its next start on its mount makes such files.
    pub fn make_unnamed(&mut self) {
        self.env.push(("KOS_SESSION".into(), "dev".into()));
    }
}

/// Make one.
///
/// # Errors
/// As open(2).
pub fn unnamed(dir: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).mode(0o600).custom_flags(libc::O_TMPFILE).open(dir)
}

/// Give it a name.
///
/// # Errors
/// As linkat(2).
pub fn link(file: &File, to: &Path) -> io::Result<()> {
    Ok(linkat(file, "", CWD, to, AtFlags::EMPTY_PATH)?)
}
