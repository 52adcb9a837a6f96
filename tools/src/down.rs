//! `kos down`: asks the daemon to flush, unmount and exit, waits for it, and clears away what a daemon left behind.
//! It never kills, and deletes data only with `--wipe`.

use crate::cli::{self, Exit, Failure, Outcome, say};
use crate::daemon::Daemon;
use crate::mounts;
use crate::probe;
use crate::state::{Condition, LOST_FOUND, MARKER, State};
use crate::up::PROBE_LIMIT;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

const STOP_LIMIT: Duration = Duration::from_secs(60);
const PROGRESS: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(20);
/// More dead mounts than this on one directory are no accident.
const STACKED_MAX: usize = 16;

pub(crate) fn run(args: &cli::Down) -> Outcome {
    let node = State::of_node(&args.place)?;
    if node.condition()? != Condition::Ours {
        return nothing_there(&node, args.wipe);
    }
    let lock = node.lock()?;
    if node.condition()? != Condition::Ours {
        return nothing_there(&node, args.wipe);
    }
    let daemon =
        Daemon::find(&node).map_err(|error| Failure::at("look for the daemon of", &node.path, &error))?;
    let did_something = match &daemon {
        Some(daemon) => {
            stop(&node, daemon)?;
            let stays = if args.wipe {
                String::new()
            } else {
                format!("; the data stays in {}", node.path.display())
            };
            say(format_args!("stopped (pid {}){stays}", daemon.pid));
            name_other_mounts(&node);
            true
        }
        None => clean_leftovers(&node, None)?,
    };
    if args.wipe {
        wipe_all(&node, &State::all(&args.place)?)?;
    }
    drop(lock);
    if did_something || args.wipe {
        return Ok(Exit::Done);
    }
    Err(Failure::not_running(format!(
        "not running: no daemon serves {}; start one: kos up",
        node.path.display()
    )))
}

/// Mounts of other processes stay: they wait for the next daemon, and then answer EIO until it comes.
fn name_other_mounts(node: &State) {
    let socket = node.path.join("kos.sock");
    // What cannot be read is not told; nothing else depends on it.
    for mount in mounts::table().unwrap_or_default().into_iter().filter(mounts::Mount::is_kosfs) {
        let source = mounts::socket_of(&mount.source);
        if source.is_some_and(|path| path == socket) {
            say(format_args!(
                "{} is still mounted from here: it waits for kos up; to end it, type: umount {}",
                mount.point.display(),
                cli::shell_word(mount.point.as_os_str())
            ));
        }
    }
}

fn nothing_there(node: &State, wipe: bool) -> Outcome {
    let line = format!("not running: there is no kosfs state at {}", node.path.display());
    if wipe {
        say(line);
        return Ok(Exit::Done);
    }
    Err(Failure::not_running(line))
}

fn stop(node: &State, daemon: &Daemon) -> Outcome<()> {
    let pid = daemon.pid;
    match daemon.terminate(node) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            return Err(Failure::new(format!(
                "may not stop fabricd (pid {pid}); type: {}",
                cli::sudo_line()
            )));
        }
        // It may have ended since it was found.
        Err(error) if daemon.lives(node) => {
            return Err(Failure::new(format!("cannot stop fabricd (pid {pid}): {error}")));
        }
        _ => {}
    }
    await_end(node, daemon)?;
    // A clean exit takes run.json with it.
    let unclean = node.run().ok().flatten().is_some_and(|run| daemon.wrote(&run));
    clean_leftovers(node, daemon.run.as_ref().map(|run| run.mount.as_path()))?;
    if unclean {
        return Err(Failure::new(format!(
            "fabricd (pid {pid}) ended without saying that all is flushed; what was fsynced is safe; see {}",
            node.log_file().display()
        )));
    }
    Ok(())
}

fn await_end(node: &State, daemon: &Daemon) -> Outcome<()> {
    let start = Instant::now();
    let mut told = Duration::ZERO;
    while daemon.lives(node) {
        let waited = start.elapsed();
        if waited > STOP_LIMIT {
            let (pid, limit, log) = (daemon.pid, STOP_LIMIT.as_secs(), node.log_file());
            return Err(Failure::new(format!(
                "fabricd (pid {pid}) still flushes after {limit} s and goes on; wait with kos down; see {}",
                log.display()
            )));
        }
        if waited >= told + PROGRESS {
            told = waited;
            say(format_args!(
                "waiting for fabricd (pid {}) to flush and unmount ({} s)",
                daemon.pid,
                waited.as_secs()
            ));
        }
        std::thread::sleep(POLL);
    }
    Ok(())
}

/// Clears away what a daemon that is gone left: dead mounts (at its own directory and at `also`), what it wrote about
/// itself, and the mount directory that was made for it. Says each, and returns whether there was any.
pub(crate) fn clean_leftovers(node: &State, also: Option<&Path>) -> Outcome<bool> {
    let failed = |error: io::Error| Failure::at("clean up after the last run in", &node.path, &error);
    let mut any = false;
    if let Some(run) = node.run().map_err(failed)? {
        say(format_args!(
            "the last daemon (pid {}) ended without a clean stop; cleaning up after it",
            run.pid
        ));
        unmount_dead(&run.mount)?;
        any = true;
    }
    // Also where it is damaged and says nothing.
    node.forget_run().map_err(failed)?;
    if let Some(dir) = also {
        any |= unmount_dead(dir)?;
    }
    any |= remove_made_dir(node).map_err(failed)?;
    Ok(any)
}

fn unmount_dead(dir: &Path) -> Outcome<bool> {
    let failed = |error: io::Error| Failure::at("unmount the dead mount at", dir, &error);
    let dir = mounts::resolve(dir).map_err(failed)?;
    for nth in 0..STACKED_MAX {
        let Some(mount) = mounts::at(&dir).map_err(failed)?.filter(mounts::Mount::is_kosfs) else {
            return Ok(nth > 0);
        };
        if !probe::statfs(&dir, PROBE_LIMIT).map_err(failed)?.is_dead() {
            return Ok(nth > 0);
        }
        mounts::detach(&mount).map_err(failed)?;
        say(format_args!("unmounted the dead kosfs mount at {}", dir.display()));
    }
    Err(failed(io::Error::other("too many mounts on one another")))
}

fn remove_made_dir(node: &State) -> io::Result<bool> {
    let Some(dir) = node.made_mount_dir()? else { return Ok(false) };
    if mounts::at(&dir)?.is_some() {
        return Ok(false);
    }
    match std::fs::remove_dir(&dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => say(format_args!("left the mount directory {}: {error}", dir.display())),
        Ok(()) => {}
    }
    node.forget_made_mount_dir()?;
    Ok(true)
}

/// What the daemon mounts its memory tier as.
const RAM_SOURCE: &str = "kosfs-ram";

/// Empties all directories of a stopped node. Everything is checked before anything is deleted.
fn wipe_all(node: &State, given: &[State]) -> Outcome<()> {
    let failed = |error: io::Error| Failure::at("wipe", &node.path, &error);
    let mut states = vec![node.clone()];
    for path in node.members().map_err(failed)? {
        states.push(State::at(&path).map_err(failed)?);
    }
    states.extend_from_slice(given);
    states.sort_by(|one, other| one.path.cmp(&other.path));
    states.dedup_by(|one, other| one.path == other.path);
    let mut ours = Vec::new();
    for state in states {
        if state.condition()? != Condition::Ours {
            continue;
        }
        if state.belongs_to()?.is_some_and(|first| first != node.path) {
            return Err(Failure::new(format!(
                "{} belongs to another node; nothing was wiped",
                state.path.display()
            )));
        }
        give_memory_back(&state)?;
        refuse_mounts_inside(&state)?;
        ours.push(state);
    }
    // The node's own directory goes last: it knows the others, should this be cut short.
    ours.sort_by_key(|state| state.path == node.path);
    for state in ours {
        wipe(&state.path).map_err(|error| Failure::at("wipe", &state.path, &error))?;
        say(format_args!("wiped {}", state.path.display()));
    }
    Ok(())
}

/// Unmounts the memory tier that a killed daemon left behind.
fn give_memory_back(state: &State) -> Outcome<()> {
    let table =
        mounts::table().map_err(|error| Failure::new(format!("cannot read the table of mounts: {error}")))?;
    let ram = state.path.join("ram");
    if table.iter().any(|mount| mount.point == ram && mount.source == RAM_SOURCE) {
        // Programs may still read sealed files in place: their memory goes when they let go of it.
        rustix::mount::unmount(&ram, rustix::mount::UnmountFlags::DETACH)
            .map_err(|errno| Failure::at("unmount", &ram, &errno.into()))?;
    }
    Ok(())
}

fn refuse_mounts_inside(state: &State) -> Outcome<()> {
    let table =
        mounts::table().map_err(|error| Failure::new(format!("cannot read the table of mounts: {error}")))?;
    let inside = table.iter().find(|mount| mount.point.starts_with(&state.path) && mount.point != state.path);
    inside.map_or(Ok(()), |mount| {
        let point = mount.point.display();
        Err(Failure::new(format!("{point} is a mount inside the state; nothing was wiped; unmount it first")))
    })
}

/// Deletes what the marker vouches for: the directory was empty when kosfs took it. The marker goes last, so that a
/// wipe that was cut short can be repeated.
fn wipe(dir: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name() == MARKER || entry.file_name() == LOST_FOUND {
            continue;
        }
        if entry.file_type()?.is_dir() {
            std::fs::remove_dir_all(entry.path())?;
        } else {
            std::fs::remove_file(entry.path())?;
        }
    }
    std::fs::remove_file(dir.join(MARKER))
}
