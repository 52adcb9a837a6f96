//! The daemon: an embedded node and its mount in one process. `kos up` starts it.
#![cfg_attr(not(test), deny(clippy::print_stderr))]

mod ctl;
mod machine;
mod view;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Parser;
use fabricd::{Node, Options, Runner, RunnerOptions};
use kos_fuse::MountOptions;
use kos_types::{Error, Kind, Result};
use serde::Serialize;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use view::View;

/// Time between two status files.
const STATUS_PERIOD: Duration = Duration::from_secs(1);
/// Told to `kos`: the daemon that has this state.
const RUN: &str = "run.json";
/// Open files: RocksDB's tables and the segments read, of disk and memory, have bounds that leave
/// room below it. A shard that cannot be opened would be taken for a damaged one.
const FILES_MIN: u64 = 1024;
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
}

/// STATE/run.json, while the mount answers.
#[derive(Serialize)]
struct Run<'a> {
    pid: u32,
    mount: &'a Path,
    started: u64,
}

/// What ends the daemon.
#[derive(Debug, Clone, Copy)]
enum End {
    Signal,
    Unmounted,
}

pub(crate) fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    if let [_, mode, lock] = &args[..]
        && mode == "launch"
    {
        return launch(lock.as_ref());
    }
    let args = Args::parse();
    // Fails only for a group leader, which has its own session already or is run by hand.
    if let Err(e) = rustix::process::setsid() {
        kos_types::log!("fabricd: stays in the session of its starter: {e}");
    }
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            kos_types::log!("fabricd: {e}");
            ExitCode::FAILURE
        }
    }
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
    let Some(state) = args.state.first() else {
        return Err(Error::new(Kind::Invalid, "no state directory"));
    };
    let dir = std::path::absolute(&args.mount).map_err(|e| Error::io("mount directory", &e))?;
    raise_files()?;
    let (ends, ended) = mpsc::channel();
    watch_signals(ends.clone())?;
    let node = Arc::new(Node::open(&Options { state: args.state.clone(), ram_bytes: args.tier_ram })?);
    let version = env!("CARGO_PKG_VERSION");
    node.events().add("start", &format!("fabricd {version}, pid {}", std::process::id()));
    let threads = std::thread::available_parallelism().map_or(4, |n| n.get().clamp(2, THREADS_MAX));
    let source = state.join("kos.sock").to_string_lossy().into_owned();
    let options = MountOptions { dir: args.mount.clone(), source: source.clone(), threads, first: true };
    let view = Arc::new(View {
        node: Arc::clone(&node),
        state: args.state.clone(),
        mount: args.mount.to_string_lossy().into_owned(),
        source,
    });
    let mounted = kos_fuse::mount(Arc::clone(&node), &options, view.control(), move || {
        // Nobody listens any more when the daemon itself unmounts.
        let _ = ends.send(End::Unmounted);
    })?;

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
    let served = match &runner {
        Ok(_) => serve(&view, state, &args.mount, &ended),
        Err(e) => Err(e.clone()),
    };
    // Before the mount goes: jobs stand in it.
    drop(runner);
    // Also when serving failed: what programs wrote is kept.
    let unmounted = match &served {
        Ok(End::Unmounted) => mounted.finish(),
        Ok(End::Signal) | Err(_) => mounted.unmount(),
    };
    drop(view);
    let events = Arc::clone(node.events());
    if let Err(e) = &unmounted {
        events.add("lost", &format!("what was written and not fsynced may be lost: {e}"));
    }
    let closed = match Arc::into_inner(node) {
        Some(node) => node.close(),
        None => Err(Error::new(Kind::Busy, "close: the mount still uses the node")),
    };
    served?;
    unmounted?;
    closed?;
    // Its absence says that the end was clean.
    std::fs::remove_file(state.join(RUN)).map_err(|e| Error::io("run.json: remove", &e))?;
    events.add("stop", &format!("{} is unmounted, all data is on disk", args.mount.display()));
    Ok(())
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

/// Tell of the mount until something ends it.
fn serve(view: &View, state: &Path, mount: &Path, ended: &Receiver<End>) -> Result<End> {
    publish(&state.join("status.json"), &view.status())?;
    let started = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    publish(&state.join(RUN), &Run { pid: std::process::id(), mount, started })?;
    let events = view.node.events();
    events.add("mount", &format!("{} is mounted", mount.display()));
    let mut health = "ok\n".to_owned();
    loop {
        let now = view.health_text();
        if now != health {
            events.add("health", now.trim_end());
            health = now;
        }
        match ended.recv_timeout(STATUS_PERIOD) {
            Ok(end) => return Ok(end),
            Err(RecvTimeoutError::Timeout) => {
                if let Err(e) = publish(&state.join("status.json"), &view.status()) {
                    kos_types::log!("fabricd: {e}");
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

fn watch_signals(ends: Sender<End>) -> Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT]).map_err(|e| Error::io("signals", &e))?;
    spawn("signals", move || {
        for _ in signals.forever() {
            // The receiver is gone only when the daemon ends anyway.
            if ends.send(End::Signal).is_err() {
                break;
            }
        }
    })
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<()> {
    std::thread::Builder::new().name(name.into()).spawn(run).map(drop).map_err(|e| Error::io("thread", &e))
}
