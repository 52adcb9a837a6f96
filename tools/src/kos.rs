//! `kos`, the command a user types: `up`, `down`, `status`, `sync`, `upgrade`, `seal`, `unseal`.
//!
//! It starts and asks the daemon through files of the state directory and signals, and never links it. It never
//! touches a mounted directory itself, but where the user names files in it: a process of its own does (`probe`), so that
//! a hanging mount cannot hang `kos`.

mod cli;
mod daemon;
mod down;
mod mounts;
mod probe;
mod seal;
mod state;
mod status;
mod sync;
mod up;
mod upgrade;

use clap::Parser;
use cli::{Args, Command};
use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    let outcome = match Args::parse().command {
        Command::Up(args) => up::run(&args),
        Command::Down(args) => down::run(&args),
        Command::Status(args) => status::run(&args),
        Command::Sync(args) => sync::run(&args),
        Command::Upgrade(args) => upgrade::run(&args),
        Command::Seal(args) => seal::run(&args, true),
        Command::Unseal(args) => seal::run(&args, false),
        Command::Probe(args) => probe::run(&args),
    };
    match outcome {
        Ok(exit) => exit.into(),
        Err(failure) => {
            // A closed stderr is no reason to lose the exit code.
            let _unheard = writeln!(std::io::stderr(), "kos: {}", failure.line);
            failure.exit.into()
        }
    }
}
