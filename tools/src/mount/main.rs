//! `mount.kosfs`: what mount(8) runs for `mount -t kosfs STATE/kos.sock[:/subtree] DIR`.
//!
//! It starts itself again as the process that serves the mount, and returns when that answers.

mod args;
mod leases;
mod serve;

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use args::{Args, SERVE, WATCH};

/// mount(8)'s exit codes.
const USAGE: u8 = 1;
const FAILED: u8 = 32;
/// What the serving process says when the mount answers.
const READY: &str = "ready\n";
/// For the serving process beyond its wait for the daemon: far more than it takes.
const START_DEADLINE: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    let words: Vec<_> = std::env::args_os().skip(1).collect();
    if words.first().is_some_and(|word| word == WATCH) {
        return kos_fuse::supervisor::watch();
    }
    let serving = words.first().is_some_and(|word| word == SERVE);
    let args = match args::parse(&words[usize::from(serving)..]) {
        Ok(args) => args,
        Err(why) => return fail(USAGE, &why),
    };
    if serving {
        return match serve::run(&args) {
            Ok(()) => ExitCode::SUCCESS,
            Err(why) => {
                // Heard by the starter before the mount answers, and by the log after.
                let _unheard = write!(io::stdout(), "{why}");
                eprintln!("mount.kosfs: {}: {why}", args.dir.display());
                ExitCode::from(FAILED)
            }
        };
    }
    if !rustix::process::geteuid().is_root() {
        return fail(USAGE, "only root may mount; type: sudo mount -t kosfs …");
    }
    if args.fake {
        return ExitCode::SUCCESS;
    }
    match start(&words, &args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => fail(FAILED, &format!("{}: {why}", args.source.to_string_lossy())),
    }
}

fn fail(code: u8, why: &str) -> ExitCode {
    let _unheard = writeln!(io::stderr(), "mount.kosfs: {why}");
    ExitCode::from(code)
}

/// Start the serving process, and wait until its mount answers.
fn start(words: &[std::ffi::OsString], args: &Args) -> Result<(), String> {
    let log = open_log(&args.socket).map_err(|e| format!("cannot open the log: {e}"))?;
    let mut command = Command::new("/proc/self/exe");
    command.arg0("mount.kosfs").arg(SERVE).args(words);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
    let mut child = command.spawn().map_err(|e| format!("cannot start the serving process: {e}"))?;
    let deadline = START_DEADLINE + serve::CONNECT_WAIT;
    match hear(&mut child, deadline) {
        Some(said) if said == READY => Ok(()),
        Some(said) if said.is_empty() => Err("the serving process ended without a word".to_owned()),
        Some(said) => Err(said),
        None => {
            // It is ours and has mounted nothing that anybody uses.
            let killed = child.kill().map_or_else(|e| format!("; it lives on: {e}"), |()| String::new());
            Err(format!("no answer within {} s{killed}", deadline.as_secs()))
        }
    }
}

/// All that the serving process says before it is ready or ends.
fn hear(child: &mut Child, deadline: Duration) -> Option<String> {
    let mut stdout = child.stdout.take()?;
    let (said, heard) = mpsc::channel();
    thread::spawn(move || {
        let mut text = String::new();
        // What is not text is no word of ours.
        let _ended = stdout.read_to_string(&mut text);
        said.send(text)
    });
    heard.recv_timeout(deadline).ok()
}

/// Beside the daemon's log; a state that nothing can be written to has none.
fn open_log(socket: &Path) -> io::Result<File> {
    let dir = socket.with_file_name("log");
    let log = std::fs::create_dir_all(&dir)
        .and_then(|()| File::options().create(true).append(true).open(dir.join("mount.log")));
    log.or_else(|_| File::options().write(true).open("/dev/null"))
}
