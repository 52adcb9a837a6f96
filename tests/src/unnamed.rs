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
        self.env.push((SESSION.into(), own_session().into()));
    }
}

/// What says who speaks with the kernel.
pub const SESSION: &str = "KOS_SESSION";

/// A session of our own: the one that the tests run by, if that is one.
#[must_use]
pub fn own_session() -> &'static str {
    if std::env::var_os(SESSION).is_some_and(|session| session == "uring") { "uring" } else { "dev" }
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
