//! `kos sync`: fsync of the mount's root directory, which the daemon answers when everything written before is
//! durable.

use crate::cli::{self, Exit, Failure, Outcome, say};
use crate::daemon::Daemon;
use crate::mounts;
use crate::probe::{self, Answer};
use crate::state::{Condition, State};
use std::io;
use std::time::Duration;

/// The RAM tier of a large machine takes its time on a slow disk.
const LIMIT: Duration = Duration::from_secs(300);
const PROGRESS: Duration = Duration::from_secs(5);

pub(crate) fn run(args: &cli::Sync) -> Outcome {
    let node = State::of_node(&args.place)?;
    let failed = |error: io::Error| Failure::at("look for the daemon of", &node.path, &error);
    let daemon = match node.condition()? {
        Condition::Ours => Daemon::find(&node).map_err(failed)?,
        Condition::Missing | Condition::Empty => None,
    };
    let Some(run) = daemon.and_then(|daemon| daemon.run) else {
        let dir = node.path.display();
        return Err(Failure::not_running(format!("not running: nothing to sync in {dir}; start it: kos up")));
    };
    let dir = mounts::resolve(&run.mount).map_err(failed)?;
    let shown = dir.display();
    if !mounts::at(&dir).map_err(failed)?.is_some_and(|mount| mount.is_kosfs()) {
        return Err(Failure::new(format!(
            "{shown} is not mounted, though its daemon runs; try: kos down, then kos up"
        )));
    }
    let mut told = Duration::ZERO;
    let answer = probe::fsync(&dir, LIMIT, |waited| {
        if waited >= told + PROGRESS {
            told = waited;
            say(format_args!("flushing {shown} ({} s)", waited.as_secs()));
        }
    });
    match answer.map_err(failed)? {
        Answer::Fuse => {
            say(format_args!("all data written to {shown} is flushed and synced"));
            Ok(Exit::Done)
        }
        Answer::Other => Err(Failure::new(format!("{shown} was unmounted meanwhile; see kos status"))),
        Answer::Error(errno) => {
            let log = node.log_file();
            Err(Failure::new(format!(
                "not all data of {shown} could be synced: {errno}; see {}",
                log.display()
            )))
        }
        Answer::Silence => {
            let limit = LIMIT.as_secs();
            Err(Failure::new(format!(
                "{shown} did not finish syncing within {limit} s; see kos status, and try again"
            )))
        }
    }
}
