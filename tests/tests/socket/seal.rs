//! Seals and two mounts.

use std::fs::{self, File, OpenOptions};
use std::io::Write;

use kos_tests::{Daemon, wait_for};
use rustix::fs::{XattrFlags, getxattr, removexattr, setxattr};
use rustix::io::Errno;

use crate::second::Second;

const SEAL: &str = "user.kos.seal";

#[test]
fn a_seal_holds_in_both_mounts() {
    let mut daemon = Daemon::start();
    let second = Second::mount(&daemon);
    let (here, there) = (daemon.mem().join("file"), second.mem().join("file"));
    for (writer, other) in [(&here, &there), (&there, &here)] {
        let mut file = File::create(writer).expect("create");
        file.write_all(b"bytes").expect("write");
        let busy = setxattr(other, SEAL, b"1", XattrFlags::empty());
        assert_eq!(busy, Err(Errno::BUSY), "the other mount writes");
        drop(file);
        wait_for("the release", || setxattr(other, SEAL, b"1", XattrFlags::empty()).is_ok());
        for path in [writer, other] {
            let refused = OpenOptions::new().append(true).open(path).expect_err("sealed");
            assert_eq!(refused.raw_os_error(), Some(libc::EPERM), "{}", path.display());
            assert_eq!(fs::read(path).expect("read"), b"bytes");
        }
        removexattr(writer, SEAL).expect("unseal");
    }
    second.umount(false);
    daemon.stop();
}

#[test]
fn the_last_close_of_both_mounts_seals() {
    let mut daemon = Daemon::start();
    let second = Second::mount(&daemon);
    setxattr(daemon.mem(), SEAL, b"on-close", XattrFlags::empty()).expect("on-close");
    let is_sealed = || {
        let mut value = [0; 8];
        let len = getxattr(daemon.mem().join("file"), SEAL, &mut value).expect("getxattr");
        &value[..len] == b"1"
    };
    let mut a = File::create(daemon.mem().join("file")).expect("create");
    let mut b = OpenOptions::new().append(true).open(second.mem().join("file")).expect("open");
    a.write_all(b"a").expect("write");
    b.write_all(b"b").expect("write");
    drop(a);
    // Its release has come when this one's has.
    fs::write(daemon.mem().join("after"), b"x").expect("write");
    b.write_all(b"c").expect("the other may go on");
    assert!(!is_sealed());
    drop(b);
    wait_for("the seal", is_sealed);
    assert_eq!(fs::read(daemon.mem().join("file")).expect("read"), b"abc");
    second.umount(false);
    daemon.stop();
}
