//! A mount whose process is stopped for longer than its session lives: its watchdog throws out what the kernel keeps.
#![expect(unsafe_code, reason = "mmap")]

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::thread;
use std::time::Duration;

use kos_tests::Daemon;
use memmap2::{Mmap, MmapMut};
use rustix::process::{Signal, kill_process};

use crate::second::*;

const PAGE: usize = 4096;
const FILES: usize = 12;

fn map(path: &Path) -> Mmap {
    let file = File::open(path).expect("open");
    // SAFETY: others change it, and it is read as bytes, one at a time.
    unsafe { Mmap::map(&file).expect("mmap") }
}

/// What a process of [`reads`] maps.
const PATH: &str = "KOS_WATCHDOG_PATH";

/// No test of its own: it reads a page of a mapping, and again when it is told to.
#[test]
#[ignore = "no test: it is started by another"]
fn reads() {
    let Some(path) = std::env::var_os(PATH) else { return };
    let map = map(Path::new(&path));
    // SAFETY: inside of the mapping.
    let say = || eprintln!("byte {}", unsafe { std::ptr::read_volatile(map.as_ptr()) });
    say();
    for line in std::io::stdin().lines() {
        line.expect("a line");
        say();
    }
}

/// A process that has a page of a file mapped.
struct Reader {
    process: Child,
    said: BufReader<ChildStderr>,
}

impl Reader {
    fn start(path: &Path) -> Self {
        let mut command = Command::new(std::env::current_exe().expect("own path"));
        command.args(["--ignored", "--exact", "--nocapture", "watchdog::reads"]).env(PATH, path);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut process = command.spawn().expect("reader");
        let said = BufReader::new(process.stderr.take().expect("its words"));
        let mut reader = Self { process, said };
        assert_eq!(reader.says(), "byte 1\n");
        reader
    }

    fn read(&mut self) {
        self.process.stdin.as_mut().expect("its input").write_all(b"again\n").expect("a word");
    }

    /// Nothing, when it ended.
    fn says(&mut self) -> String {
        let mut line = String::new();
        self.said.read_line(&mut line).expect("a line");
        line
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        // It has ended where it read what could not be had.
        let _ended = self.process.kill();
        self.process.wait().expect("its end");
    }
}

#[test]
fn mappings_of_a_stopped_mount_show_nothing_old() {
    let mut daemon = Daemon::with_ram(256 << 20);
    let second = Second::mount(&daemon);
    let process = process(&daemon);
    let names = (0..FILES).map(|nth| format!("file{nth}"));
    let names: Vec<_> = names.chain(["changed".to_owned()]).collect();
    for name in &names {
        fs::write(daemon.mem().join(name), [1; PAGE]).expect("write");
    }
    let mut readers: Vec<_> =
        names[..FILES].iter().map(|name| Reader::start(&second.mem().join(name))).collect();
    // The kernel cannot let go of what is changed before the process runs again.
    let changed = OpenOptions::new().read(true).write(true).open(second.mem().join("changed")).expect("open");
    // SAFETY: nobody else stores into it.
    let mut stored = unsafe { MmapMut::map_mut(&changed) }.expect("mmap");
    stored[0] = 7;

    let stopped = Stopped::new(process);
    for name in &names[..FILES] {
        let file = OpenOptions::new().write(true).open(daemon.mem().join(name)).expect("open");
        // Waits until the other one has no lease any more.
        file.write_all_at(&[2; PAGE], 0).expect("write");
    }
    readers.iter_mut().for_each(Reader::read);
    // What is old would be seen at once; what is not here waits for the process.
    thread::sleep(Duration::from_millis(500));
    drop(stopped);
    for (reader, name) in readers.iter_mut().zip(&names) {
        let said = reader.says();
        // What is asked for while the session is lost may fail, which is SIGBUS for a mapping.
        assert!(said == "byte 2\n" || said.is_empty(), "{name}: {said}");
    }
    drop((readers, stored, changed));
    // And it goes on.
    Reader::start(&{
        fs::write(daemon.mem().join("after"), [1; PAGE]).expect("write");
        second.mem().join("after")
    });
    second.umount(false);
    daemon.stop();
}

/// The process that watches goes with the mount, also when it is killed.
#[test]
fn the_watchdog_goes_with_its_mount() {
    let mut daemon = Daemon::with_ram(0);
    for killed in [false, true] {
        let second = Second::mount(&daemon);
        let process = process(&daemon);
        let children = format!("/proc/{0}/task/{0}/children", process.as_raw_nonzero());
        let children = fs::read_to_string(children).expect("children");
        let watchdog: u32 = children.trim().parse().expect("one child");
        let runs = || {
            let line = fs::read(format!("/proc/{watchdog}/cmdline")).unwrap_or_default();
            line.windows(7).any(|word| word == b"--watch")
        };
        assert!(runs());
        if killed {
            kill_process(process, Signal::KILL).expect("kill");
        } else {
            second.umount(false);
        }
        kos_tests::wait_for("its end", || !runs());
        drop(second);
    }
    daemon.stop();
}
