//! What the helper and the socket refuse, and that refusing hurts nobody else.

use std::fs::{self, Permissions};
use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kos_tests::{Daemon, Rng, binary, copy_binary, wait_for};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use crate::second::*;

/// A protocol's name, and a format's number.
const GREETING_BYTES: usize = 25;
const CONNECTIONS_MAX: usize = 64;
const NOBODY: u32 = 65534;

#[test]
fn the_helper_refuses_by_name() {
    let mut daemon = Daemon::start();
    let place = Second::place();
    let good = source(&daemon, "");
    for (from, options, code, name) in [
        (good.as_str(), "rw,subvol=x", 1, "subvol=x"),
        (&good, "remount,ro", 1, "remount"),
        (&good, "timeout=soon", 1, "timeout="),
        ("host:/mem", "rw", 1, "needs the cluster"),
        ("one,two:7000/", "rw", 1, "needs the cluster"),
        ("/dev/sda1", "rw", 1, "STATE/kos.sock"),
        ("/nowhere/kos.sock", "rw", 32, "kos up"),
    ] {
        let (status, said) = place.run(from, options);
        assert_eq!((status, said.contains(name)), (Some(code), true), "{from} {options}: {said}");
    }
    let helper = || Command::new(binary("mount-kosfs"));
    let (code, said) = run(helper().arg(&good).arg("/no/such/directory"));
    assert_eq!((code, said.contains("/no/such/directory")), (Some(32), true), "{said}");
    // Where nobody may start it.
    let open = tempfile::tempdir().expect("temporary directory");
    fs::set_permissions(open.path(), Permissions::from_mode(0o755)).expect("chmod");
    let copy = open.path().join("mount.kosfs");
    copy_binary("mount-kosfs", &copy);
    let (code, said) = run(Command::new(copy).arg(&good).arg(place.dir()).uid(NOBODY).current_dir("/"));
    assert_eq!((code, said.contains("sudo")), (Some(1), true), "{said}");
    let (code, said) = run(helper().arg(&good).arg(place.dir()).arg("-f"));
    assert_eq!((code, said.as_str()), (Some(0), ""), "only checked");
    assert!(!kos_tests::is_mounted(place.dir()));
    daemon.stop();
    assert!(!daemon.state().join("kos.sock").exists(), "taken away in order");
}

#[test]
fn the_socket_is_for_root() {
    let mut daemon = Daemon::start();
    let socket = daemon.state().join("kos.sock");
    let meta = fs::metadata(&socket).expect("socket");
    assert!(meta.file_type().is_socket());
    assert_eq!(meta.permissions().mode() & 0o777, 0o600);
    // Also where the file's mode would let them in.
    fs::set_permissions(&socket, Permissions::from_mode(0o666)).expect("chmod");
    for dir in socket.ancestors().skip(1).take(2) {
        fs::set_permissions(dir, Permissions::from_mode(0o755)).expect("chmod");
    }
    let said = std::thread::spawn(move || {
        become_nobody();
        say_hello(&UnixStream::connect(socket).expect("connects"))
    });
    let said = said.join().expect("thread");
    assert!(said.contains("is not root"), "{said:?}");
    daemon.stop();
}

/// This thread alone.
#[expect(unsafe_code, reason = "glibc changes the user of all threads, the system call that of one")]
fn become_nobody() {
    // SAFETY: it takes numbers and touches no memory.
    let done = unsafe { libc::syscall(libc::SYS_setresuid, NOBODY, NOBODY, NOBODY) };
    assert_eq!(done, 0, "setresuid");
}

/// Greet as a client does; all that is said until the other end closes or waits.
fn say_hello(mut stream: &UnixStream) -> String {
    stream.set_read_timeout(Some(Duration::from_secs(5))).expect("timeout");
    // A server that refuses may have closed already.
    let _refused = stream.write_all(b"kosfs/");
    let mut said = vec![0; 512];
    let mut have = 0;
    while let Ok(count @ 1..) = stream.read(&mut said[have..]) {
        have += count;
    }
    String::from_utf8_lossy(&said[..have]).into_owned()
}

/// What the daemon says to those who speak otherwise.
fn greeting_of(daemon: &Daemon) -> [u8; GREETING_BYTES] {
    let mut other = UnixStream::connect(daemon.state().join("kos.sock")).expect("connect");
    other.write_all(b"GET / HTTP/1.1\r\n\r\n").expect("write");
    let mut said = [0; GREETING_BYTES];
    other.read_exact(&mut said).expect("it says what it speaks");
    assert!(said.starts_with(b"kosfs/2\n") && said.ends_with(b"\n"), "{said:?}");
    said
}

#[test]
fn another_build_is_refused_by_both_ends() {
    let mut daemon = Daemon::start();
    let own = greeting_of(&daemon);
    // Each process is named once: this must be the first that the daemon hears of ours.
    wait_for("the daemon's line", || daemon.log().contains("speaks \"GET / HT\""));
    let mut other = own;
    other[GREETING_BYTES - 2] ^= 1;
    for _ in 0..3 {
        let mut stream = UnixStream::connect(daemon.state().join("kos.sock")).expect("connect");
        stream.write_all(&other).expect("write");
        let mut said = Vec::new();
        stream.read_to_end(&mut said).expect("it says what it speaks, and closes");
        assert_eq!(said, own);
    }
    assert!(
        daemon.log().matches("another build").count() <= 1,
        "each process is named once: {}",
        daemon.log()
    );

    // A daemon of another build.
    let place = Second::place();
    let elsewhere = tempfile::tempdir().expect("temporary directory");
    let socket = elsewhere.path().join("kos.sock");
    let listener = UnixListener::bind(&socket).expect("bind");
    for (greeting, word) in [(&other[..], "another build"), (b"kosfs/1\n", "kosfs/1")] {
        let ended = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !ended.load(Ordering::SeqCst) {
                    let (mut stream, _) = listener.accept().expect("accept");
                    // Until the helper has heard it; one that only looks who listens is gone already.
                    let _gone = stream.write_all(greeting);
                    let _closed = stream.read_to_end(&mut Vec::new());
                }
            });
            let (code, said) = place.run(&socket.display().to_string(), "rw");
            ended.store(true, Ordering::SeqCst);
            // Wakes it.
            drop(UnixStream::connect(&socket).expect("connect"));
            assert_eq!((code, said.contains(word)), (Some(32), true), "{said}");
        });
    }
    assert!(!kos_tests::is_mounted(place.dir()));
    daemon.stop();
}

#[test]
fn garbage_hurts_nobody_else() {
    let mut daemon = Daemon::start();
    let second = Second::mount(&daemon);
    let seed = std::env::var("KOS_SEED").map_or(7, |seed| seed.parse().expect("KOS_SEED"));
    println!("KOS_SEED={seed}");
    let mut rng = Rng::new(seed);
    let greeting = greeting_of(&daemon);
    for round in 0..200_u64 {
        let mut stream = UnixStream::connect(daemon.state().join("kos.sock")).expect("connect");
        if rng.below(4) > 0 {
            stream.write_all(&greeting).expect("write");
        }
        let len = rng.below(64) as usize;
        let mut frame = rng.bytes(len);
        if rng.below(2) == 0 {
            // A frame whose lengths are right.
            let header = [(len as u32).to_le_bytes(), 0_u32.to_le_bytes()].concat();
            frame.splice(0..0, header);
        }
        // It may have been closed at the first wrong byte.
        let _refused = stream.write_all(&frame);
        drop(stream);
        if round % 50 == 0 {
            fs::write(second.mem().join("file"), round.to_string()).expect("write");
            assert_eq!(fs::read(daemon.mem().join("file")).expect("read"), round.to_string().into_bytes());
        }
    }
    assert_eq!(greeting_of(&daemon), greeting);
    daemon.stop();
}

/// Open files of the daemon but for its connections, which end a little later than they are closed.
fn open_files(daemon: &Daemon) -> usize {
    let entries = fs::read_dir(format!("/proc/{}/fd", daemon.pid())).expect("descriptors");
    let targets = entries.filter_map(|entry| fs::read_link(entry.expect("a descriptor").path()).ok());
    targets.filter(|target| target.to_string_lossy().contains("kosfs-garbage")).count()
}

/// What nobody asked for is not taken: neither with garbage nor with what a client says.
#[test]
fn open_files_that_are_sent_stay_nowhere() {
    let mut daemon = Daemon::start();
    let greeting = greeting_of(&daemon);
    let file = tempfile::Builder::new().prefix("kosfs-garbage").tempfile().expect("a file");
    let files = [file.as_fd(); 50];
    let mut rng = Rng::new(8);
    let mut streams = Vec::new();
    for round in 0..40_usize {
        let stream = UnixStream::connect(daemon.state().join("kos.sock")).expect("connect");
        // With the greeting, in a frame that goes on, and with bytes that are none.
        let frame = [1000_u32.to_le_bytes(), 0_u32.to_le_bytes()].concat();
        for bytes in [&greeting[..], &frame, &rng.bytes(64)].into_iter().take(1 + round % 3) {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(50))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            assert!(control.push(SendAncillaryMessage::ScmRights(&files)));
            sendmsg(&stream, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL).expect("sends");
        }
        streams.push(stream);
        assert_eq!(open_files(&daemon), 0, "round {round}");
    }
    // Each has been read by now.
    wait_for("the greeting", || streams.iter().all(|mut stream| stream.read(&mut [0]).is_ok()));
    assert_eq!(open_files(&daemon), 0);
    drop(streams);
    let second = Second::mount(&daemon);
    assert!(second.mem().exists());
    daemon.stop();
}

#[test]
fn connections_are_bounded_and_come_back() {
    let mut daemon = Daemon::start();
    let socket = daemon.state().join("kos.sock");
    let idle: Vec<_> = (0..CONNECTIONS_MAX).map(|_| UnixStream::connect(&socket).expect("connect")).collect();
    wait_for("the bound", || {
        let extra = UnixStream::connect(&socket).expect("connect");
        say_hello(&extra).contains("in use")
    });
    let (code, said) = Second::place().run(&source(&daemon, ""), "rw");
    assert_eq!((code, said.contains("in use")), (Some(32), true), "{said}");
    drop(idle);
    let second = Second::mount(&daemon);
    assert!(second.mem().exists());
    daemon.stop();
}
