//! The daemon with failpoints, for tests: built only with the feature `faults`, never installed.

use std::process::ExitCode;

#[path = "main.rs"]
mod daemon;

fn main() -> ExitCode {
    daemon::main()
}
