//! Lines in the daemon's log, which is its standard error.

use std::fmt;
use std::io::{self, Write as _};

/// A line in the log, formatted as by `format!`. `eprintln!` panics when it cannot be written, and a
/// disk that is full must not end the daemon.
#[macro_export]
macro_rules! log {
    ($($part:tt)*) => { $crate::log_line(format_args!($($part)*)) };
}

/// What [`log!`] calls. One write, so that lines of several threads do not mix.
pub fn log_line(line: fmt::Arguments<'_>) {
    // There is nobody left to tell.
    let _ = io::stderr().write_all(format!("{line}\n").as_bytes());
}
