//! The process that serves the mount until it is unmounted.

use std::fs::{DirBuilder, File};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::mpsc::{self, Sender};
use std::thread;
use std::time::Duration;

use kos_fuse::supervisor::{Kept, Link};
use kos_fuse::{ControlFile, MountOptions, Mounted, WriteControl};
use kos_rpc::{Client, ControlInfo, Options};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::mount::{UnmountFlags, mount_bind, unmount};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::READY;
use crate::args::{Args, WATCH};
use crate::leases;

/// How long a mount waits for a daemon that is just starting.
pub(crate) const CONNECT_WAIT: Duration = Duration::from_secs(5);
/// Requests served at once, also with few cores: each waits for the daemon, and while that is away
/// a process that is just starting it may be closing a file of this mount.
const THREADS: usize = kos_rpc::limits::CLIENT_CONNECTIONS_MAX;

type Outcome<T = ()> = Result<T, String>;

enum End {
    Signal,
    Unmounted,
}

pub(crate) fn run(args: &Args) -> Outcome {
    // Fails only for a group leader, which has its own session already.
    let _own_session = rustix::process::setsid();
    let dir = args.dir.canonicalize().map_err(|e| format!("{}: {e}", args.dir.display()))?;
    if !dir.is_dir() {
        return Err(format!("{} is not a directory", dir.display()));
    }
    let source = args.source.to_string_lossy().into_owned();
    let options = Options {
        socket: std::path::absolute(&args.socket).map_err(|e| e.to_string())?,
        dir: dir.to_string_lossy().into_owned(),
        source: source.clone(),
        patience: args.patience,
    };
    let client = Arc::new(Client::connect(options, CONNECT_WAIT).map_err(|e| e.to_string())?);
    let outcome = serve(args, &client, dir, source);
    if let Err(e) = client.leave() {
        eprintln!("mount.kosfs: {}: {e}; its session ends by itself", args.dir.display());
    }
    outcome
}

fn serve(args: &Args, client: &Arc<Client>, dir: PathBuf, source: String) -> Outcome {
    let (ends, ended) = mpsc::channel();
    watch_signals(ends.clone()).map_err(|e| format!("signals: {e}"))?;
    let own = args.subtree.as_os_str().is_empty();
    let first = if own { dir.clone() } else { hidden_dir()? };
    let options = MountOptions {
        dir: first.clone(),
        source,
        threads: THREADS,
        flags: args.flags,
        remote: true,
        share_locks: true,
        session: args.session,
        first: false,
    };
    let control = control(client)?;
    let lease = |cache| Ok(Some(leases::hold(client, args.patience, cache)? as _));
    let watchdog = start_watchdog().map_err(|e| format!("cannot start the watchdog: {e}"))?;
    let watched = Some((&watchdog, Kept::default()));
    let mounted = kos_fuse::mount(Arc::clone(client), &options, watched, control, lease, move || {
        // Nobody listens any more when this process itself unmounts.
        let _ = ends.send(End::Unmounted);
    })
    .map_err(|e| e.to_string())?;
    if !own {
        show_subtree(&first, &args.subtree, &dir)?;
    }
    if let Err(e) = say_ready() {
        end(mounted, &dir)?;
        return Err(format!("cannot say that it is ready: {e}"));
    }
    let failed = |e: kos_types::Error| e.to_string();
    match ended.recv() {
        Ok(End::Unmounted) => mounted.finish().map_err(failed),
        Ok(End::Signal) | Err(_) => end(mounted, &dir),
    }
}

/// The process that throws what the kernel keeps out, when this one does not run: it is stopped, or hangs.
fn start_watchdog() -> io::Result<Link> {
    let mut command = Command::new("/proc/self/exe");
    command.arg0("mount.kosfs").arg(WATCH);
    kos_fuse::supervisor::watched(command)
}

/// The server's control files, read when they are opened here.
fn control(client: &Arc<Client>) -> Outcome<Vec<ControlFile>> {
    let files = client.control_files().map_err(|e| e.to_string())?;
    let file = |info: ControlInfo| {
        let (reader, name) = (Arc::clone(client), info.path.clone());
        let read = move || reader.control(&name).unwrap_or_else(|e| format!("error {e}\n").into_bytes());
        let (writer, name) = (Arc::clone(client), info.path.clone());
        // What is to be stable then is stable with the daemon: nothing waits here.
        let write: WriteControl = Box::new(move |bytes, _sync| writer.write_control(&name, bytes));
        let write = info.writable.then_some(write);
        ControlFile { path: info.path, read: Box::new(read), live: info.live, write }
    };
    Ok(files.into_iter().map(file).collect())
}

/// Where the whole tree is for a moment; nobody but root may look in.
fn hidden_dir() -> Outcome<PathBuf> {
    let dir = PathBuf::from(format!("/run/kosfs-{}", std::process::id()));
    DirBuilder::new().mode(0o700).create(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    Ok(dir)
}

/// Show one directory of the tree at `whole` at `dir`, and the whole tree nowhere.
fn show_subtree(whole: &Path, subtree: &Path, dir: &Path) -> Outcome {
    let shown = bind(whole, subtree, dir).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => format!("there is no directory /{} in the tree", subtree.display()),
        _ => format!("subtree /{}: {e}", subtree.display()),
    });
    let hidden = unmount(whole, UnmountFlags::DETACH).map_err(io::Error::from);
    let hidden = hidden.and_then(|()| std::fs::remove_dir(whole));
    shown?;
    hidden.map_err(|e| format!("{}: {e}", whole.display()))
}

fn bind(whole: &Path, subtree: &Path, dir: &Path) -> io::Result<()> {
    let root = File::open(whole)?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    // Its symbolic links belong to its users, and lead nowhere else.
    let found = rustix::fs::openat2(&root, subtree, flags, Mode::empty(), ResolveFlags::IN_ROOT)?;
    Ok(mount_bind(format!("/proc/self/fd/{}", found.as_raw_fd()), dir)?)
}

/// The starter hears it and ends; from here on nobody listens.
fn say_ready() -> io::Result<()> {
    io::stdout().write_all(READY.as_bytes())?;
    io::stdout().flush()?;
    std::env::set_current_dir("/")?;
    let null = File::options().write(true).open("/dev/null")?;
    Ok(rustix::stdio::dup2_stdout(null)?)
}

/// A signal: flush, and take the mount away.
fn end(mounted: Mounted, dir: &Path) -> Outcome {
    let flushed = mounted.flush_all();
    unmount(dir, UnmountFlags::DETACH).map_err(|e| format!("unmount {}: {e}", dir.display()))?;
    flushed.map_err(|e| e.to_string())
}

fn watch_signals(ends: Sender<End>) -> io::Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT])?;
    thread::spawn(move || {
        for _ in signals.forever() {
            if ends.send(End::Signal).is_err() {
                break;
            }
        }
    });
    Ok(())
}
