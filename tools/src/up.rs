//! `kos up`: checks that everything may be ours, starts the daemon, and waits until its mount answers.

use crate::cli::{self, Exit, Failure, Outcome, say};
use crate::daemon::{self, Daemon, Run};
use crate::down::clean_leftovers;
use crate::mounts;
use crate::probe::{self, Answer};
use crate::state::{Condition, State};
use kos_fuse::SessionKind;
use rustix::fs::{Access, access};
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const START_LIMIT: Duration = Duration::from_secs(60);
/// How long a running daemon may take to show that its mount answers, or to end.
const RUNNING_LIMIT: Duration = Duration::from_secs(10);
pub(crate) const PROBE_LIMIT: Duration = Duration::from_secs(5);
const PROGRESS: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(20);

pub(crate) fn run(args: &cli::Up) -> Outcome {
    up(args).map_err(|mut failure| {
        if failure.denied {
            failure.line.push_str(", or choose directories of your own: kos up --state DIR --mount DIR");
        }
        failure
    })
}

fn up(args: &cli::Up) -> Outcome {
    if args.nodes > 1 {
        let nodes = args.nodes;
        return Err(Failure::new(format!(
            "--nodes {nodes} needs the cluster, which is not built yet; use --nodes 1"
        )));
    }
    refuse_without_rights()?;
    let mut states = State::all(&args.place)?;
    let wanted = args.mount.clone().unwrap_or_else(|| PathBuf::from(cli::MOUNT_DEFAULT));
    let mount =
        mounts::resolve(&wanted).map_err(|error| Failure::at("find the mount directory", &wanted, &error))?;
    refuse_overlaps(&states, &mount)?;

    let _lock = take(&mut states, &mount)?;
    let node = &states[0];
    if let Some(daemon) = find(node)? {
        let asked = args.mount.is_some().then_some(mount.as_path());
        if let Some(exit) = already_running(node, &daemon, asked)? {
            return Ok(exit);
        }
    }
    clean_leftovers(node, Some(&mount))?;
    make_mount_dir(node, &mount)?;
    let tier_ram = args.tier_ram.map_or_else(quarter_of_memory, Ok)?;
    start(&states, &mount, tier_ram, args.session)
}

fn find(node: &State) -> Outcome<Option<Daemon>> {
    Daemon::find(node).map_err(|error| Failure::at("look for the daemon of", &node.path, &error))
}

/// Root needs the device alone, others fusermount3 besides.
fn refuse_without_rights() -> Outcome<()> {
    let is_root = rustix::process::geteuid().is_root();
    if let Err(error) = File::options().read(true).write(true).open("/dev/fuse") {
        return Err(Failure::new(match error.kind() {
            io::ErrorKind::PermissionDenied if is_root => {
                format!(
                    "/dev/fuse: {error}; start this container with: --device /dev/fuse --cap-add SYS_ADMIN"
                )
            }
            io::ErrorKind::PermissionDenied => format!(
                "/dev/fuse: {error}; type: {}, or let users mount: sudo chmod a+rw /dev/fuse",
                cli::sudo_line()
            ),
            _ => format!("/dev/fuse: {error}; the kernel's FUSE module is missing; type: sudo modprobe fuse"),
        }));
    }
    if is_root {
        return Ok(());
    }
    let found = kos_fuse::fusermount().map(drop);
    found.map_err(|error| Failure::new(format!("{error}, or: {}", cli::sudo_line())))
}

/// No two of the directories may lie in one another: the mount would hide data, or a wipe would go too far.
fn refuse_overlaps(states: &[State], mount: &Path) -> Outcome<()> {
    let states: Vec<&Path> = states.iter().map(|state| state.path.as_path()).collect();
    for (nth, one) in states.iter().enumerate() {
        for other in states[nth + 1..].iter().chain([&mount]) {
            if one.starts_with(other) || other.starts_with(one) {
                let (one, other) = (one.display(), other.display());
                return Err(Failure::new(format!(
                    "{one} and {other} lie in one another; choose separate directories"
                )));
            }
        }
    }
    Ok(())
}

/// Makes the state directories ours and keeps others out. Nothing is made where something would be refused.
fn take(states: &mut [State], mount: &Path) -> Outcome<File> {
    loop {
        if let Some(first) = states[0].belongs_to()? {
            let (dir, first) = (states[0].path.display(), first.display());
            return Err(Failure::new(format!(
                "{dir} belongs to the node of {first}; name that first: --state {first}"
            )));
        }
        // Before the states: another up of them marks them first and mounts then, so that its mount
        // is never seen here beside states that look unmarked.
        let ground = look_at_mount_dir(mount);
        let conditions: Vec<Condition> = states.iter().map(State::condition).collect::<Outcome<_>>()?;
        if conditions[0] != Condition::Ours {
            ground?;
        }
        refuse_other_members(states)?;
        for (state, _) in
            states.iter_mut().zip(conditions).filter(|(_, condition)| *condition != Condition::Ours)
        {
            state.create()?;
        }
        let lock = states[0].lock()?;
        // Whoever held the lock before may have wiped.
        if states[0].condition()? == Condition::Ours {
            let recorded = states[0].record_members(states);
            recorded.map_err(|error| Failure::at("write to", &states[0].path, &error))?;
            return Ok(lock);
        }
    }
}

/// Data spread over directories comes back only with all of them, in the same order.
fn refuse_other_members(states: &[State]) -> Outcome<()> {
    let members = states[0].members().map_err(|error| Failure::at("read", &states[0].path, &error))?;
    let moved_alone = members.len() == 1 && states.len() == 1;
    if members.is_empty() || moved_alone || members.iter().eq(states.iter().map(|state| &state.path)) {
        return Ok(());
    }
    let words: Vec<String> =
        members.iter().map(|dir| format!("--state {}", cli::shell_word(dir.as_os_str()))).collect();
    let (dir, words) = (states[0].path.display(), words.join(" "));
    Err(Failure::new(format!("{dir} was started with other directories; give the same: {words}")))
}

/// A daemon of this state lives: says so, or why that is not what was asked. None if it ended meanwhile.
fn already_running(node: &State, daemon: &Daemon, asked: Option<&Path>) -> Outcome<Option<Exit>> {
    let pid = daemon.pid;
    // Without run.json it is still starting, and has as long as one that was started now.
    let limit = if daemon.run.is_some() { RUNNING_LIMIT } else { START_LIMIT };
    match await_mount(node, &|run| daemon.wrote(run), &mut || daemon.lives(node), limit)? {
        Waited::Ended => Ok(None),
        Waited::Late => {
            let log = node.log_file();
            Err(Failure::new(format!(
                "fabricd (pid {pid}) runs, but its mount does not answer; see {}, or stop it: kos down",
                log.display()
            )))
        }
        Waited::Answers(pid, dir) => {
            if let Some(asked) = asked.filter(|asked| *asked != dir) {
                let (state, dir, asked) = (node.path.display(), dir.display(), asked.display());
                return Err(Failure::new(format!(
                    "{state} is already mounted at {dir}, not at {asked}; stop it first (kos down) or leave --mount out"
                )));
            }
            say(format_args!("already up: {} (pid {pid}, data in {})", dir.display(), node.path.display()));
            Ok(Some(Exit::Done))
        }
    }
}

/// What lies at the mount directory.
#[derive(Debug, PartialEq, Eq)]
enum Ground {
    Missing,
    Empty,
    DeadMount,
}

fn look_at_mount_dir(dir: &Path) -> Outcome<Ground> {
    let failed = |error: io::Error| Failure::at("look at the mount directory", dir, &error);
    let shown = dir.display();
    if let Some(found) = mounts::at(dir).map_err(failed)? {
        if !found.is_kosfs() {
            let (fstype, source) = (found.fstype, found.source);
            return Err(Failure::new(format!(
                "{shown} already holds a mount of type {fstype} ({source}); choose another directory with --mount"
            )));
        }
        if probe::statfs(dir, PROBE_LIMIT).map_err(failed)?.is_dead() {
            return Ok(Ground::DeadMount);
        }
        return Err(Failure::new(format!(
            "{shown} is the mount of another kosfs state; choose another directory with --mount, or stop that one first"
        )));
    }
    match std::fs::read_dir(dir).map(|mut entries| entries.next().is_none()) {
        Ok(true) => may_write(dir).map(|()| Ground::Empty).map_err(failed),
        Ok(false) => {
            Err(Failure::new(format!("{shown} is not empty; choose an empty directory with --mount")))
        }
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(error)),
        // One directory is made, and one removed again: not a whole path.
        Err(_) if dir.parent().is_some_and(Path::is_dir) => {
            let made = dir.parent().map_or(Ok(()), may_write);
            made.map(|()| Ground::Missing)
                .map_err(|error| Failure::at("make the mount directory", dir, &error))
        }
        Err(_) => Err(Failure::new(format!(
            "the directory above {shown} is missing; make it first, or choose another --mount"
        ))),
    }
}

/// Users mount only where they may write.
fn may_write(dir: &Path) -> io::Result<()> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    Ok(access(dir, Access::WRITE_OK | Access::EXEC_OK)?)
}

fn make_mount_dir(node: &State, dir: &Path) -> Outcome<()> {
    match look_at_mount_dir(dir)? {
        Ground::Empty => Ok(()),
        Ground::DeadMount => Err(Failure::new(format!(
            "the dead mount at {} cannot be removed; try: umount -l",
            dir.display()
        ))),
        Ground::Missing => {
            // Recorded first: a record without a directory is harmless.
            let made = node.record_made_mount_dir(dir).and_then(|()| std::fs::create_dir(dir));
            made.map_err(|error| Failure::at("make the mount directory", dir, &error))
        }
    }
}

fn start(states: &[State], mount: &Path, tier_ram: u64, session: Option<SessionKind>) -> Outcome {
    let node = &states[0];
    let begun = Instant::now();
    let (log, log_end) = node.open_log().map_err(|error| Failure::at("open", &node.log_file(), &error))?;
    let mut child = spawn(daemon_args(states, mount, tier_ram, session), states, log)?;
    let pid = child.id().cast_signed();
    let mut exit = None;
    // The daemon is this child's, where that is its supervisor.
    let ours = |run: &Run| run.pid == pid || run.supervisor == Some(pid);
    let waited = await_mount(node, &ours, &mut || still_runs(&mut child, &mut exit), START_LIMIT)?;
    let (shown, log) = (mount.display(), node.log_file());
    match waited {
        Waited::Answers(pid, _) => {
            let seconds = begun.elapsed().as_secs_f32();
            let state = node.path.display();
            say(format_args!(
                "kosfs is up at {shown} after {seconds:.1} s (pid {pid}, data in {state}, log in {})",
                log.display()
            ));
            Ok(Exit::Done)
        }
        Waited::Ended => {
            let tail = node.log_tail(log_end);
            let why = exit.unwrap_or_else(|| "no exit status".to_owned());
            // What it said is more use than anything said here about leftovers.
            let _cleaned = clean_leftovers(node, Some(mount));
            Err(Failure::new(format!(
                "fabricd ended ({why}) before {shown} answered; its log, {}:{tail}",
                log.display()
            )))
        }
        Waited::Late => {
            let (limit, tail) = (START_LIMIT.as_secs(), node.log_tail(log_end));
            let log = log.display();
            Err(Failure::new(format!(
                "{shown} does not answer after {limit} s; fabricd (pid {pid}) goes on: wait with kos up, stop it with kos down; its log, {log}:{tail}"
            )))
        }
    }
}

fn still_runs(child: &mut Child, exit: &mut Option<String>) -> bool {
    match child.try_wait() {
        Ok(None) => true,
        Ok(Some(status)) => {
            *exit = Some(status.to_string());
            false
        }
        Err(_) => false,
    }
}

/// The daemon's program that lies beside this one.
pub(crate) fn program() -> Outcome<PathBuf> {
    let own = std::env::current_exe()
        .map_err(|error| Failure::new(format!("cannot find this program: {error}")))?;
    let program = own.with_file_name(daemon::PROGRAM);
    if program.is_file() {
        return Ok(program);
    }
    let program = program.display();
    Err(Failure::new(format!(
        "{program} is missing; build both programs (make build) or install them (make install)"
    )))
}

/// Starts the daemon that lies beside this program. It makes a session of its own, which it could not as the leader
/// of a process group: so it is given none.
fn spawn(args: Vec<OsString>, states: &[State], log: File) -> Outcome<Child> {
    let program = program()?;
    let failed = |error: io::Error| Failure::at("start", &program, &error);
    let mut command = Command::new(&program);
    command.arg0(daemon::PROGRAM).args(args);
    command.stdin(Stdio::null()).stdout(log.try_clone().map_err(failed)?).stderr(log);
    if states.iter().all(|state| state.given.is_absolute()) {
        // Otherwise it would keep the user's directory busy.
        command.current_dir("/");
    }
    command.spawn().map_err(failed)
}

fn daemon_args(states: &[State], mount: &Path, tier_ram: u64, session: Option<SessionKind>) -> Vec<OsString> {
    let mut args = Vec::new();
    // The others cannot take over what an earlier daemon has mounted.
    if session.unwrap_or_default() == SessionKind::Dev {
        args.push(daemon::SUPERVISE.into());
    }
    for state in states {
        args.extend(["--state".into(), state.given.clone().into_os_string()]);
    }
    args.extend(["--mount".into(), mount.as_os_str().to_owned()]);
    args.extend(["--tier-ram".into(), tier_ram.to_string().into()]);
    if let Some(session) = session {
        args.extend(["--session".into(), session.to_string().into()]);
    }
    args
}

#[derive(Debug)]
enum Waited {
    /// The daemon, and where.
    Answers(i32, PathBuf),
    Ended,
    Late,
}

/// Waits until the daemon says that its mount is there, and the mount says so too.
fn await_mount(
    node: &State,
    is_meant: &dyn Fn(&Run) -> bool,
    lives: &mut dyn FnMut() -> bool,
    limit: Duration,
) -> Outcome<Waited> {
    let failed = |error: io::Error| Failure::at("watch the start in", &node.path, &error);
    let start = Instant::now();
    let mut told = Duration::ZERO;
    loop {
        let alive = lives();
        let waited = start.elapsed();
        if let Some(run) = node.run().map_err(failed)?.filter(|run| alive && is_meant(run))
            && let Some(dir) = answers(node, &run).map_err(failed)?
        {
            return Ok(Waited::Answers(run.pid, dir));
        }
        if !alive {
            return Ok(Waited::Ended);
        }
        if waited > limit {
            return Ok(Waited::Late);
        }
        if waited >= told + PROGRESS {
            told = waited;
            say(format_args!("waiting for the mount to answer ({} s)", waited.as_secs()));
        }
        std::thread::sleep(POLL);
    }
}

/// Where the mount of a daemon answers, if both live: without the daemon the mount may only wait for the next one.
pub(crate) fn answers(node: &State, run: &Run) -> io::Result<Option<PathBuf>> {
    let dir = mounts::resolve(&run.mount)?;
    let is_there = run.serves(node) && mounts::at(&dir)?.is_some_and(|mount| mount.is_kosfs());
    Ok((is_there && probe::statfs(&dir, PROBE_LIMIT)? == Answer::Fuse).then_some(dir))
}

fn quarter_of_memory() -> Outcome<u64> {
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let available = mem_available(&meminfo);
    available
        .map(|bytes| bytes / 4)
        .ok_or_else(|| Failure::new("cannot tell the available memory; give --tier-ram SIZE"))
}

fn mem_available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(path: &str) -> State {
        State { given: path.into(), path: path.into() }
    }

    #[test]
    fn the_daemon_gets_states_as_given_and_in_order() {
        let states = [State { given: "b".into(), path: "/x/b".into() }, state("/a")];
        let args = daemon_args(&states, Path::new("/kos"), 1 << 30, Some(SessionKind::Uring));
        let given = ["--state", "b", "--state", "/a", "--mount", "/kos", "--tier-ram", "1073741824"];
        assert_eq!(args, [&given[..], &["--session", "uring"]].concat());
    }

    #[test]
    fn a_supervisor_starts_the_daemon_where_it_speaks_by_dev_fuse() {
        let first = |session| daemon_args(&[state("/a")], Path::new("/kos"), 0, session)[0].clone();
        assert_eq!(
            (first(None), first(Some(SessionKind::Dev))),
            ("--supervise".into(), "--supervise".into())
        );
        for other in [SessionKind::Uring, SessionKind::Fuser] {
            assert_eq!(first(Some(other)), "--state");
        }
    }

    #[test]
    fn directories_in_one_another_are_refused() {
        let refused = |states: &[&str], mount: &str| {
            let states: Vec<State> = states.iter().map(|path| state(path)).collect();
            refuse_overlaps(&states, Path::new(mount)).is_err()
        };
        assert!(!refused(&["/var/lib/kosfs"], "/kos"));
        assert!(!refused(&["/a", "/ab"], "/abc"));
        assert!(refused(&["/a", "/a"], "/kos"));
        assert!(refused(&["/a", "/b", "/a/c"], "/kos"));
        assert!(refused(&["/kos/state"], "/kos"));
        assert!(refused(&["/srv"], "/srv/mnt"));
    }

    #[test]
    fn available_memory_is_read_in_bytes() {
        assert_eq!(mem_available("MemTotal:  10 kB\nMemAvailable:    4096 kB\n"), Some(4096 * 1024));
        assert_eq!(mem_available("MemTotal:  10 kB\n"), None);
        assert_eq!(mem_available("MemAvailable: many kB\n"), None);
    }
}
