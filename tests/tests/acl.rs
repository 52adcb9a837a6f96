//! POSIX access control lists with the tools that people use.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use kos_tests::Daemon;

fn run(program: &str, args: &[&str], path: &Path) -> String {
    let out = Command::new(program).args(args).arg(path).output().expect(program);
    assert!(out.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).expect("text")
}

/// Entries of the list, by name of users.
fn list(path: &Path) -> String {
    run("getfacl", &["-cpE"], path)
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("stat").mode() & 0o7777
}

/// Whether the user `nobody` can read a file: the kernel's answer, not ours.
fn nobody_reads(path: &Path) -> bool {
    let out = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "cat"])
        .arg(path)
        .output()
        .expect("setpriv");
    out.status.success()
}

#[test]
fn a_list_grants_and_shows_in_the_mode() {
    let mut daemon = Daemon::start();
    // The test's own directories are closed to others.
    fs::set_permissions(daemon.state().parent().expect("root"), fs::Permissions::from_mode(0o755))
        .expect("chmod");
    let path = daemon.mem().join("file");
    fs::write(&path, b"x").expect("write");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("chmod");
    assert!(!nobody_reads(&path));
    run("setfacl", &["-m", "u:nobody:r"], &path);
    assert!(nobody_reads(&path));
    assert_eq!(mode(&path), 0o640, "the mask is the group's bits");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("chmod");
    assert!(list(&path).contains("mask::---") && !nobody_reads(&path), "chmod sets the mask");
    run("setfacl", &["-m", "m::r"], &path);
    daemon.kill();
    daemon.spawn();
    assert!(nobody_reads(&path) && list(&path).contains("user:nobody:r--"), "through kill -9");
    run("setfacl", &["-b"], &path);
    assert!(!nobody_reads(&path) && !list(&path).contains("nobody"));
    daemon.stop();
}

#[test]
fn defaults_are_inherited_and_the_umask_is_not_asked() {
    let mut daemon = Daemon::start();
    let dir = daemon.mem().join("dir");
    fs::create_dir(&dir).expect("mkdir");
    run("setfacl", &["-d", "-m", "u::rwx,g::rwx,o::-,u:nobody:rw"], &dir);
    run("sh", &["-c", "umask 077; cd \"$0\" && echo x >file && mkdir sub"], &dir);
    let file = list(&dir.join("file"));
    assert!(file.contains("user:nobody:rw-") && file.contains("mask::rw-"), "{file}");
    assert_eq!(mode(&dir.join("file")), 0o660);
    let sub = list(&dir.join("sub"));
    assert!(sub.contains("default:user:nobody:rw-") && sub.contains("user:nobody:rw-"), "{sub}");
    let copy = daemon.mem().join("copy");
    run("cp", &["-a", dir.to_str().expect("utf-8")], &copy);
    assert_eq!((list(&copy), list(&copy.join("file"))), (list(&dir), list(&dir.join("file"))));
    daemon.stop();
}
