//! To whom a failed flush is told.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::IntoRawFd;

use kos_tests::{Daemon, faulty_daemon, wait_for};

/// A daemon whose first commit of stripes fails.
fn faulty() -> Daemon {
    let mut daemon = Daemon::unstarted(0);
    daemon.program = faulty_daemon();
    daemon.env = vec![("KOS_FAULTS".into(), "settled=io@1".into())];
    daemon.spawn();
    daemon
}

#[test]
fn errors_are_told_once() {
    each_descriptor_is_told_of_an_error_once();
    a_failed_flush_in_the_background_is_told_at_close();
}

/// close(2), whose error `File` keeps to itself.
fn close(file: File) -> io::Result<()> {
    #[expect(unsafe_code, reason = "the standard library hides the error of close")]
    // SAFETY: the descriptor was owned by `file` alone and is not used after this.
    let closed = unsafe { libc::close(file.into_raw_fd()) };
    if closed == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn each_descriptor_is_told_of_an_error_once() {
    let errno = |result: io::Result<()>| result.err().and_then(|e| e.raw_os_error());
    let mut daemon = faulty();
    let path = daemon.mem().join("file");
    let mut file = File::create(&path).expect("create");
    let (second, third) = (File::open(&path).expect("open"), File::open(&path).expect("open"));
    let copy = second.try_clone().expect("dup");
    file.write_all(b"kept").expect("write");
    assert_eq!(errno(file.sync_all()), Some(libc::EIO));
    assert_eq!(errno(file.sync_all()), None, "the bytes were kept and tried again");
    assert_eq!(errno(close(file)), None);
    assert_eq!(errno(close(copy)), Some(libc::EIO), "as a forked child closes it");
    assert_eq!(errno(second.sync_all()), Some(libc::EIO), "still");
    assert_eq!(errno(close(second)), None);
    assert_eq!(errno(close(third)), Some(libc::EIO));
    assert_eq!(errno(close(File::open(&path).expect("open"))), None, "it has nothing to do with it");
    assert_eq!(fs::read(&path).expect("read"), b"kept");
    daemon.stop();
}

fn a_failed_flush_in_the_background_is_told_at_close() {
    let mut daemon = faulty();
    let path = daemon.mem().join("file");
    let mut file = File::create(&path).expect("create");
    file.write_all(b"kept").expect("write");
    wait_for("the flush", || daemon.log().contains("unflushed"));
    assert_eq!(close(file).expect_err("told").raw_os_error(), Some(libc::EIO));
    File::open(&path).and_then(|file| file.sync_all()).expect("the second try");
    assert_eq!(fs::read(&path).expect("read"), b"kept");
    daemon.stop();
}
