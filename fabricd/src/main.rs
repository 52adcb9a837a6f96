//! The daemon: an embedded node and its mount in one process. `kos up` starts it.
#![cfg_attr(not(test), deny(clippy::print_stderr))]

mod ctl;
mod door;
mod heap;
mod machine;
mod supervised;
mod view;
mod waits;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::Parser;
use door::Door;
use fabricd::{Hub, Local, Node, Options, Runner, RunnerOptions};
use heap::Heap;
use kos_fuse::{MountFlags, MountOptions, Mounted, SessionKind};
use kos_rpc::Server;
use kos_store::lane::Lanes;
use kos_types::{Error, Kind, Result};
use serde::Serialize;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use supervised::Supervised;
use view::View;
use waits::Waits;

/// Time between two status files.
const STATUS_PERIOD: Duration = Duration::from_secs(1);
/// What is waited for a status file, while signals wait for it.
const STATUS_LIMIT: Duration = Duration::from_secs(5);
/// Told to `kos`: the daemon that has this state.
const RUN: &str = "run.json";
/// Told to the supervisor: the program that replaces the daemon.
const UPGRADE: &str = "upgrade";
/// Open files: RocksDB's tables and the segments read, of disk and memory, have bounds that leave
/// room below it. A shard that cannot be opened would be taken for a damaged one.
const FILES_MIN: u64 = 1024;
/// For threads that are on their way out.
const LET_GO: Duration = Duration::from_secs(10);
/// Requests served at once.
const THREADS_MAX: usize = 8;

/// The kosfs daemon; `kos up` starts it with the right arguments.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// State directory; repeat it to spread shards over several disks.
    #[arg(long, required = true)]
    state: Vec<PathBuf>,
    /// Where to mount.
    #[arg(long)]
    mount: PathBuf,
    /// Bytes of the RAM tier.
    #[arg(long, default_value_t = 0)]
    tier_ram: u64,
    /// Leave fcntl locks of this mount to the kernel: faster, and other mounts do not see them.
    #[arg(long, env = "KOS_PRIVATE_LOCKS", value_parser = clap::builder::FalseyValueParser::new())]
    private_locks: bool,
    /// How the mount speaks with the kernel: dev, uring or fuser.
    #[arg(long, env = SessionKind::VARIABLE, default_value_t)]
    session: SessionKind,
    /// Be the supervisor of a daemon with the other arguments: hold its mount, and start it again when it crashes or is
    /// replaced.
    #[arg(long, hide = true, conflicts_with = "supervised")]
    supervise: bool,
    /// Be a supervisor's daemon: the standard input is the connection to it.
    #[arg(long, hide = true)]
    supervised: bool,
}

/// STATE/run.json, while the mount answers.
#[derive(Serialize)]
struct Run<'a> {
    pid: u32,
    supervisor: Option<u32>,
    mount: &'a Path,
    started: u64,
}

/// What ends the daemon.
#[derive(Debug, Clone, Copy)]
enum End {
    Signal,
    Unmounted,
    /// Nothing ends but this process: the next one goes on.
    HandOver,
}

pub(crate) fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    if let [_, mode, lock] = &args[..]
        && mode == "launch"
    {
        return launch(lock.as_ref());
    }
    let words = args;
    let args = Args::parse();
    // Fails only for a group leader, which has its own session already or is run by hand.
    if let Err(e) = rustix::process::setsid() {
        kos_types::log!("fabricd: stays in the session of its starter: {e}");
    }
    kos_types::log_in_thread();
    if args.supervise {
        let code = supervise(&args, words);
        kos_types::log_written();
        return code;
    }
    let ended = run(&args).inspect_err(|e| kos_types::log!("fabricd: {e}"));
    kos_types::log_written();
    if ended.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Start this program as the daemon.
fn supervise(args: &Args, words: Vec<OsString>) -> ExitCode {
    let program = match std::env::current_exe() {
        Ok(program) => program,
        Err(e) => {
            kos_types::log!("fabricd: supervisor: own path: {e}");
            return ExitCode::FAILURE;
        }
    };
    let words: Vec<OsString> = words.into_iter().skip(1).filter(|word| word != "--supervise").collect();
    let upgrade = args.state.first().map_or_else(PathBuf::new, |state| state.join(UPGRADE));
    kos_fuse::supervisor::supervise(&program, &words, &upgrade)
}

/// What the jobs' runner starts: this program as the process that forks.
fn launch(lock: &Path) -> ExitCode {
    match kos_kernels::launch::run(lock) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            kos_types::log!("fabricd: launcher: {e}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    heap::bound_arenas();
    let mut supervised = Supervised::take(args.supervised)?;
    let Some(state) = args.state.first() else {
        return Err(Error::new(Kind::Invalid, "no state directory"));
    };
    let dir = std::path::absolute(&args.mount).map_err(|e| Error::io("mount directory", &e))?;
    raise_files()?;
    let (ends, ended) = mpsc::channel();
    watch_signals(ends.clone())?;
    let starting = Waits::begin("start");
    starting
        .waits_for(format!("the metadata in {}: if its disk hangs, see dmesg", state.join("meta").display()));
    let node = Arc::new(Node::open(&Options {
        state: args.state.clone(),
        ram_bytes: args.tier_ram,
        resumes: !supervised.kept.devices.is_empty(),
    })?);
    drop(starting);
    let version = env!("CARGO_PKG_VERSION");
    node.events().add("start", &format!("fabricd {version}, pid {}", std::process::id()));
    let threads = std::thread::available_parallelism().map_or(4, |n| n.get().clamp(2, THREADS_MAX));
    let socket = state.join("kos.sock");
    let source = socket.to_string_lossy().into_owned();
    let options = MountOptions {
        dir: args.mount.clone(),
        source: source.clone(),
        threads,
        flags: MountFlags::empty(),
        remote: false,
        share_locks: !args.private_locks,
        session: args.session,
        first: true,
    };
    let hub = Hub::new(Arc::clone(&node))?;
    let view = Arc::new(View {
        node: Arc::clone(&node),
        hub: Arc::clone(&hub),
        state: args.state.clone(),
        mount: args.mount.to_string_lossy().into_owned(),
        source,
    });
    let lease = |cache| Ok(Some(hub.lease(cache)? as _));
    let kept = std::mem::take(&mut supervised.kept);
    let supervisor = supervised.link.as_deref().map(|link| (link, kept));
    let mounted = kos_fuse::mount(hub.embed(), &options, supervisor, view.control(), lease, move || {
        // Nobody listens any more when the daemon itself unmounts.
        let _ = ends.send(End::Unmounted);
    })?;
    hub.set_local(Some(local(&mounted)));

    // The node holds the lock of the state, so a socket that is there is a dead daemon's.
    let door = Door { hub: Arc::clone(&hub), node: Arc::clone(&node), control: view.control() };
    // Some filesystems have no sockets; the state on such a one has no other mounts.
    let server = kos_rpc::serve(&socket, door)
        .inspect_err(|e| node.events().add("socket", &format!("{e}; there can be no second mount")))
        .ok();
    let runner = Runner::start(
        &node,
        RunnerOptions {
            mount: dir,
            node: view::host(),
            lock: state.join("launcher.lock"),
            slots: threads,
            flush: mounted.flusher(),
        },
    );
    let was_gone = mounted.was_gone();
    let served = match &runner {
        // Nobody asks, and one that fails at its end is not to be started for ever.
        Ok(_) if was_gone => Ok(End::Unmounted),
        Ok(_) => serve(&view, state, &args.mount, &ended, &mut supervised),
        Err(e) => Err(e.clone()),
    };
    if let Ok(End::HandOver) = served {
        supervised::hand_over(&mounted, &node);
    }
    let ending = Waits::begin("end");
    // Before the mount goes: jobs stand in it.
    ending.waits_for("the jobs");
    drop(runner);
    // What others have buffered comes in, then nothing more that would have to be flushed.
    ending.waits_for("requests of other mounts");
    if let Err(e) = hub.retire() {
        node.events().add("lost", &format!("other mounts may lose what they have not written: {e}"));
    }
    let stopped = server.map_or(Ok(()), Server::stop);
    let served = served.and_then(|end| stopped.map(|()| end));
    hub.set_local(None);
    // Also when serving failed: what programs wrote is kept.
    ending.waits_for("the flush of what programs wrote, and the unmount");
    let unmounted = match &served {
        Ok(End::Unmounted) => mounted.finish(),
        Ok(End::Signal | End::HandOver) | Err(_) => mounted.unmount(),
    };
    drop((view, hub));
    let events = Arc::clone(node.events());
    if let Err(e) = &unmounted {
        events.add("lost", &format!("what was written and not fsynced may be lost: {e}"));
    }
    ending.waits_for("background work, the log's sync and memory's move to disk");
    let closed = alone(node).and_then(Node::close);
    drop(ending);
    served?;
    unmounted?;
    closed?;
    // Its absence says that the end was clean.
    take_back(state, was_gone)?;
    events.add("stop", &format!("{} is unmounted, all data is on disk", args.mount.display()));
    Ok(())
}

/// The node, once the last thread of the mount has let go of it.
fn alone(mut node: Arc<Node>) -> Result<Node> {
    let until = Instant::now() + LET_GO;
    loop {
        node = match Arc::try_unwrap(node) {
            Ok(node) => return Ok(node),
            Err(node) if Instant::now() < until => node,
            Err(_) => return Err(Error::new(Kind::Busy, "close: the mount still uses the node")),
        };
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// As many open files as the machine lets this process have.
fn raise_files() -> Result<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if let Some(max) = limit.maximum.filter(|&max| max < FILES_MIN) {
        let what =
            format!("start: {max} open files are too few: allow {FILES_MIN} (ulimit -Hn, LimitNOFILE=)");
        return Err(Error::new(Kind::Invalid, what));
    }
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    setrlimit(Resource::Nofile, raised).map_err(|e| Error::io("start: open files", &e.into()))
}

/// What the mount of this process does when there are others.
fn local(mounted: &Mounted) -> Local {
    let recall = mounted.recall();
    Local { settle: Box::new(move || recall.settle()) }
}

/// Tell of the mount until something ends it.
fn serve(
    view: &View,
    state: &Path,
    mount: &Path,
    ended: &Receiver<End>,
    supervised: &mut Supervised,
) -> Result<End> {
    publish(&state.join("status.json"), &view.status())?;
    let events = view.node.events();
    // Before anybody is told of the mount, who may look for it there.
    events.add("mount", &format!("{} is mounted", mount.display()));
    let started = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let tell =
        |supervisor| publish(&state.join(RUN), &Run { pid: std::process::id(), supervisor, mount, started });
    tell(supervised.supervisor())?;
    supervised.serving();
    let mut health = "ok\n".to_owned();
    let mut heap = Heap::default();
    let disk = Lanes::new("status");
    loop {
        let now = view.health_text();
        if now != health {
            events.add("health", now.trim_end());
            health = now;
        }
        match ended.recv_timeout(STATUS_PERIOD) {
            Ok(End::HandOver) if !supervised.may_hand_over() => {
                kos_types::log!(
                    "fabricd: SIGHUP: no supervisor keeps the mount for another daemon; this one goes on"
                );
            }
            Ok(end) => return Ok(end),
            Err(RecvTimeoutError::Timeout) => {
                if supervised.has_lost() {
                    events.add(
                        "supervisor",
                        "it is gone: a crash will end the mount, until kos down and kos up",
                    );
                    if let Err(e) = tell(None) {
                        kos_types::log!("fabricd: {RUN}: {e}");
                    }
                }
                let counters = view.node.counters();
                let moved =
                    [&counters.bytes_written, &counters.bytes_read].map(|n| n.load(Ordering::Relaxed));
                heap.look(moved[0].wrapping_add(moved[1]));
                if let Err(e) = view.hub.expire(Instant::now()) {
                    kos_types::log!("fabricd: ending sessions: {e}; tried again");
                }
                // One that gets old says to `kos status` that something hangs.
                let (path, status) = (state.join("status.json"), view.status());
                let ask =
                    || disk.writes.ask(move || publish(&path, &status), drop)?.wait_for(STATUS_LIMIT)?;
                if disk.check().is_ok()
                    && let Err(e) = ask()
                {
                    kos_types::log!("fabricd: status.json: {e}");
                }
            }
            Err(RecvTimeoutError::Disconnected) => return Ok(End::Signal),
        }
    }
}

/// Write a file so that readers see the old or the new one.
fn publish<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    let text = serde_json::to_vec(value).map_err(|e| Error::new(Kind::Io, format!("json: {e}")))?;
    let new = path.with_extension("new");
    std::fs::write(&new, text)
        .and_then(|()| std::fs::rename(&new, path))
        .map_err(|e| Error::io(&path.to_string_lossy(), &e))
}

/// Tell of the mount no more, unless the daemon before came so far.
fn take_back(state: &Path, was_gone: bool) -> Result<()> {
    match std::fs::remove_file(state.join(RUN)) {
        Err(e) if was_gone && e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        removed => removed.map_err(|e| Error::io("run.json: remove", &e)),
    }
}

fn watch_signals(ends: Sender<End>) -> Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP]).map_err(|e| Error::io("signals", &e))?;
    spawn("signals", move || {
        for signal in signals.forever() {
            let end = if signal == SIGHUP { End::HandOver } else { End::Signal };
            // The receiver is gone only when the daemon ends anyway.
            if ends.send(end).is_err() {
                break;
            }
        }
    })
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<()> {
    std::thread::Builder::new().name(name.into()).spawn(run).map(drop).map_err(|e| Error::io("thread", &e))
}
