//! What is refused, by whom, and how it is told.

use std::fs::{self, File};
use std::io::{self, Seek, Write};
use std::os::fd::IntoRawFd;
use std::os::unix::fs::{PermissionsExt, symlink};

use kos_tests::Daemon;

use crate::{Jobs, sh, sh_as};

fn errno<T>(result: io::Result<T>) -> Option<i32> {
    result.err().expect("refused").raw_os_error()
}

#[test]
fn a_bad_specification_fails_the_close_and_says_why() {
    let mut daemon = Daemon::start();
    let jobs = Jobs::of(&daemon);
    let source = tempfile::tempdir().expect("temporary directory");
    for (text, line) in [
        ("#!/bin/sh\n#KOS --color=red\n", "line 2: unknown option --color"),
        ("command = \"true\"\nimage = \"x\"\n", "line 2: unknown key \"image\""),
        ("just words\n", "line 1: no TOML"),
    ] {
        fs::write(source.path().join("bad"), text).expect("write");
        for how in ["cp", "mv"] {
            let dropped = sh(&format!("{how} bad {}", jobs.dir.display()), source.path());
            let said = String::from_utf8_lossy(&dropped.stderr).into_owned();
            assert!(!dropped.status.success() && said.contains("Invalid argument"), "{how} {text}: {said}");
            assert!(jobs.why_rejected("bad").starts_with(line), "{}", jobs.why_rejected("bad"));
            fs::write(source.path().join("bad"), text).expect("write");
        }
        assert_eq!(fs::read_to_string(jobs.dir.join("rejected/bad")).expect("kept"), text);
    }
    assert_eq!(jobs.listed(), [""; 0]);
    fs::write(source.path().join("bad"), "#!/bin/sh\n").expect("write");
    let dropped = sh(&format!("cp bad {}", jobs.dir.display()), source.path());
    assert!(dropped.status.success(), "{dropped:?}");
    assert_eq!(jobs.wait("bad"), "0\n");
    assert_eq!(fs::read_dir(jobs.dir.join("rejected")).expect("lists").count(), 0, "it was accepted");
    let large = vec![b'#'; (1 << 20) + 1];
    fs::write(source.path().join("large"), [&b"#!/bin/sh\n"[..], &large].concat()).expect("write");
    let dropped = sh(&format!("cp large {}", jobs.dir.display()), source.path());
    assert!(!dropped.status.success() && jobs.why_rejected("large").contains("1 MiB"));
    // Renaming and linking in are answered at once, and change nothing.
    for name in ["mem/wrong", "mem/other"] {
        fs::write(daemon.mount().join(name), "words").expect("write");
    }
    let wrong = daemon.mem().join("wrong");
    assert_eq!(errno(fs::rename(&wrong, jobs.dir.join("wrong"))), Some(libc::EINVAL));
    assert_eq!(errno(fs::hard_link(&wrong, jobs.dir.join("wrong"))), Some(libc::EINVAL));
    assert!(wrong.exists() && jobs.why_rejected("wrong").starts_with("line 1"));
    daemon.stop();
}

/// The kernel releases a file some time after its close returned; here only once the copy is closed as well.
#[test]
fn what_is_refused_is_kept_when_the_close_returns() {
    let mut daemon = Daemon::start();
    let jobs = Jobs::of(&daemon);
    let kept = jobs.dir.join("rejected/bad");
    let mut file = File::create(jobs.dir.join("bad")).expect("create");
    let mut copy = file.try_clone().expect("dup");
    file.write_all(b"just words\n").expect("write");
    #[expect(unsafe_code, reason = "the standard library hides the error of close")]
    // SAFETY: the descriptor is ours, and nothing else closes it.
    let closed = unsafe { libc::close(file.into_raw_fd()) };
    assert_eq!((closed, io::Error::last_os_error().raw_os_error()), (-1, Some(libc::EINVAL)));
    assert_eq!(fs::read_to_string(&kept).expect("kept"), "just words\n");
    assert_eq!(jobs.listed(), [""; 0]);
    // Its last writer may still make it a job.
    copy.set_len(0).and_then(|()| copy.rewind()).expect("truncate");
    copy.write_all(b"#!/bin/sh\n").expect("write");
    drop(copy);
    assert_eq!(jobs.wait("bad"), "0\n");
    assert!(!kept.exists(), "it was accepted");
    daemon.stop();
}

#[test]
fn other_kinds_of_files_are_refused() {
    let mut daemon = Daemon::start();
    let jobs = Jobs::of(&daemon);
    let (dir, mem) = (&jobs.dir, daemon.mem());
    let eperm = Some(libc::EPERM);
    assert_eq!(errno(symlink("/bin/true", dir.join("link"))), eperm);
    assert_eq!(errno(fs::create_dir(dir.join("dir"))), eperm);
    assert_eq!(errno(fs::create_dir(dir.join("by-name/dir"))), eperm);
    assert_eq!(errno(File::create(dir.join("rejected/x"))), eperm);
    assert_eq!(errno(fs::remove_dir(dir.join("by-name"))), eperm);
    assert_eq!(errno(File::create(dir.join("17"))), Some(libc::EINVAL));
    assert_eq!(errno(File::create(dir.join("n".repeat(250)))), Some(libc::ENAMETOOLONG));
    let fifo = sh("mkfifo fifo && mv fifo ../jobs/", &mem);
    assert!(!fifo.status.success(), "{fifo:?}");
    symlink("/bin/true", mem.join("link")).expect("symlink");
    assert_eq!(errno(fs::rename(mem.join("link"), dir.join("link"))), eperm);
    fs::create_dir(mem.join("dir")).expect("mkdir");
    assert_eq!(errno(fs::rename(mem.join("dir"), dir.join("dir"))), eperm);
    for mode in [0o4755, 0o2755, 0o757] {
        let path = mem.join("mode");
        fs::write(&path, "#!/bin/sh\n").expect("write");
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("chmod");
        assert_eq!(errno(fs::rename(&path, dir.join("mode"))), eperm, "{mode:o}");
        assert_eq!(errno(fs::hard_link(&path, dir.join("mode"))), eperm, "{mode:o}");
    }
    assert_eq!(jobs.listed(), [""; 0]);
    daemon.stop();
}

#[test]
fn a_file_of_another_user_is_nobodys_job() {
    let mut daemon = Daemon::start();
    let jobs = Jobs::of(&daemon);
    let mem = daemon.mem();
    let made = sh_as(4321, "printf '#!/bin/sh\\nid -u' > theirs", &mem);
    assert!(made.status.success(), "{made:?}");
    let (from, to) = (mem.join("theirs"), jobs.dir.join("theirs"));
    assert_eq!(errno(fs::rename(&from, &to)), Some(libc::EPERM), "not even for root");
    assert_eq!(errno(fs::hard_link(&from, &to)), Some(libc::EPERM));
    assert!(jobs.why_rejected("theirs").contains("another user"));
    let own = sh_as(4321, "mv theirs ../jobs/", &mem);
    assert!(own.status.success(), "{own:?}");
    assert_eq!((jobs.wait("theirs"), jobs.read("theirs", "stdout")), ("0\n".into(), "4321\n".into()));
    // A name that root made and gave away does not run as root.
    let given = File::create(jobs.dir.join("given")).expect("create");
    std::os::unix::fs::fchown(&given, Some(4321), Some(4321)).expect("chown");
    let written = sh_as(4321, "printf '#!/bin/sh\\nid -u' > given; true", &jobs.dir);
    assert!(written.status.success(), "{written:?}");
    drop(given);
    assert!(jobs.by_name("given").symlink_metadata().is_err());
    assert!(jobs.why_rejected("given").contains("another user"));
    // Nobody else can write what is being dropped, whatever the umask.
    let open = sh("umask 0; touch open; stat -c %a open", &jobs.dir);
    assert_eq!(open.stdout, b"644\n");
    daemon.stop();
}

#[test]
fn a_jobs_own_files_take_only_their_words() {
    let mut daemon = Daemon::start();
    let jobs = Jobs::of(&daemon);
    fs::write(jobs.dir.join("x"), "#!/bin/sh\n").expect("drop");
    assert_eq!(jobs.wait("x"), "0\n");
    let own = jobs.by_name("x");
    assert_eq!(errno(fs::write(own.join("ctl"), "dance\n")), Some(libc::EINVAL));
    assert_eq!(errno(fs::write(own.join("status"), "done\n")), Some(libc::EPERM));
    assert_eq!(errno(fs::rename(own.join("status"), own.join("other"))), Some(libc::EPERM));
    assert_eq!(errno(fs::rename(own.join("stdout"), own.join("status"))), Some(libc::EPERM));
    assert_eq!(errno(File::create_new(own.join("wait"))), Some(libc::EEXIST));
    assert_eq!(errno(fs::rename(jobs.dir.join("1"), daemon.mem().join("1"))), Some(libc::EPERM));
    fs::write(own.join("ctl"), "kill\n").expect("a job that ended is left alone");
    assert_eq!(jobs.status("x", "state"), "\"done\"");
    // Copies of them work on the mount itself.
    let copied =
        sh("cat status > ../../mem/status && cp status ../../mem/copy && cmp status ../../mem/copy", &own);
    assert!(copied.status.success(), "{copied:?}");
    daemon.stop();
}
