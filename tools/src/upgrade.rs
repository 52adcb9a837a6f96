//! `kos upgrade`: has the supervisor replace the daemon by the program beside this one, under the same mount. It asks,
//! waits and tells; what is done when the new program fails, the supervisor decides.

use crate::cli::{self, Exit, Failure, Outcome, say};
use crate::daemon::{self, Daemon, Run};
use crate::state::{Condition, State};
use crate::up::{answers, program};
use rustix::process::Signal;
use std::io::{self, Read};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Longer than a daemon may take to hand over.
const LIMIT: Duration = Duration::from_secs(60);
/// A program only has to say its version.
const VERSION_LIMIT: Duration = Duration::from_secs(10);
const PROGRESS: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(20);

pub(crate) fn run(args: &cli::Upgrade) -> Outcome {
    let node = State::of_node(&args.place)?;
    let failed = |error: io::Error| Failure::at("upgrade the daemon of", &node.path, &error);
    let not_running = || {
        let dir = node.path.display();
        Failure::not_running(format!("not running: there is nothing to upgrade in {dir}; start it: kos up"))
    };
    if node.condition()? != Condition::Ours {
        return Err(not_running());
    }
    let _lock = node.lock()?;
    let daemon = Daemon::find(&node).map_err(failed)?.ok_or_else(not_running)?;
    let (run, supervisor) = supervised(&daemon)?;
    let program = program()?;
    let version = version_of(&program)?;
    let log_end = node.log_end();
    node.name_upgrade(&program).map_err(failed)?;
    daemon::signal(supervisor, &node, Signal::HUP)
        .map_err(|error| Failure::at("ask the supervisor of", &node.path, &error))?;
    let (old, log) = (run.pid, node.log_file());
    let Some(new) = await_next(&node, &daemon, run).map_err(failed)? else {
        let (limit, tail) = (LIMIT.as_secs(), node.log_tail(log_end));
        return Err(Failure::new(format!(
            "fabricd (pid {old}) was not replaced within {limit} s by one that answers; see kos status; its log, {}:{tail}",
            log.display()
        )));
    };
    if !is_of(new, &program) {
        let tail = node.log_tail(log_end);
        return Err(Failure::new(format!(
            "the new program did not come to serve: fabricd (pid {new}) is of the previous one; its log, {}:{tail}",
            log.display()
        )));
    }
    say(format_args!("upgraded: pid {old} → pid {new}, version {version}"));
    Ok(Exit::Done)
}

/// What a daemon wrote that can be replaced, and who replaces it.
fn supervised(daemon: &Daemon) -> Outcome<(&Run, i32)> {
    let pid = daemon.pid;
    let Some(run) = &daemon.run else {
        return Err(Failure::new(format!(
            "fabricd (pid {pid}) is starting or stopping; try again, or see kos status"
        )));
    };
    let supervisor = daemon.supervisor.ok_or_else(|| {
        Failure::new(format!(
            "fabricd (pid {pid}) has no supervisor to replace it by; type: kos down; kos up"
        ))
    });
    Ok((run, supervisor?))
}

/// What a program says of itself: also whether it can be executed at all.
fn version_of(program: &Path) -> Outcome<String> {
    let failed = |error: io::Error| Failure::at("run", program, &error);
    let mut command = Command::new(program);
    command.arg("--version").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().map_err(failed)?;
    let start = Instant::now();
    while child.try_wait().map_err(failed)?.is_none() {
        if start.elapsed() > VERSION_LIMIT {
            child.kill().map_err(failed)?;
            return Err(failed(io::ErrorKind::TimedOut.into()));
        }
        std::thread::sleep(POLL);
    }
    let mut said = String::new();
    if let Some(stdout) = &mut child.stdout {
        stdout.read_to_string(&mut said).map_err(failed)?;
    }
    let version = said.trim().strip_prefix("fabricd ").map(str::to_owned);
    version.ok_or_else(|| Failure::new(format!("{} does not say its version", program.display())))
}

/// The next daemon, once its mount answers.
fn await_next(node: &State, daemon: &Daemon, old: &Run) -> io::Result<Option<i32>> {
    let start = Instant::now();
    let mut told = PROGRESS;
    while start.elapsed() < LIMIT && daemon.lives(node) {
        let next = node.run()?.filter(|run| run.pid != old.pid && daemon.wrote(run));
        if let Some(run) = next
            && answers(node, &run)?.is_some()
        {
            return Ok(Some(run.pid));
        }
        let waited = start.elapsed();
        if waited >= told {
            told = waited + PROGRESS;
            say(format_args!("waiting for the new fabricd to answer ({} s)", waited.as_secs()));
        }
        std::thread::sleep(POLL);
    }
    Ok(None)
}

/// Whether a process executes this program.
fn is_of(pid: i32, program: &Path) -> bool {
    let executed = std::fs::read_link(format!("/proc/{pid}/exe"));
    executed.is_ok_and(|executed| program.canonicalize().is_ok_and(|program| program == executed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_supervised_daemon_that_serves_is_replaced() {
        let run = Run { pid: 7, supervisor: Some(6), mount: "/kos".into() };
        let line = |daemon: &Daemon| supervised(daemon).map(drop).map_err(|failure| failure.line);
        let mut daemon = Daemon { pid: 7, run: Some(run), supervisor: Some(6) };
        assert_eq!(line(&daemon), Ok(()));
        daemon.supervisor = None;
        assert!(line(&daemon).is_err_and(|line| line.contains("kos down; kos up")));
        daemon.run = None;
        assert!(line(&daemon).is_err_and(|line| line.contains("starting or stopping")));
    }

    #[test]
    fn a_process_is_of_the_program_that_it_executes() {
        let own = std::process::id().cast_signed();
        let program = std::env::current_exe().ok();
        assert!(program.is_some_and(|program| is_of(own, &program)));
        assert!(!is_of(own, Path::new("/bin/sh")));
    }

    #[test]
    fn what_says_no_version_is_refused() {
        assert!(version_of(Path::new("/bin/true")).is_err());
        assert!(version_of(Path::new("/no/such/program")).is_err());
    }
}
