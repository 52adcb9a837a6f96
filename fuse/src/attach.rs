//! How a mount gets into the tree and out of it: by mount(2) and umount(2), and for users who may not call these by
//! fusermount3. It knows neither the kernel's requests nor what is mounted.
//!
//! One rule: the system call first; when it may not be called, by a user other than root, fusermount3.

use std::env;
use std::ffi::{CString, OsStr, OsString};
use std::fs;
use std::io::{self, IoSliceMut, Read as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use kos_types::{Error, Result};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, UnmountFlags, fsconfig_create, fsmount, fsopen,
    unmount,
};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType, recvmsg,
    socketpair,
};
use rustix::process::{getegid, geteuid};

use crate::mount::MountOptions;

const DEVICE: &str = "/dev/fuse";
const PROGRAM: &str = "fusermount3";
/// Where it is, whatever PATH says.
const DIRS: [&str; 2] = ["/bin", "/usr/bin"];
/// What it is told the number of its socket by.
const COMM: &str = "_FUSE_COMMFD";
/// Its settings: what the administrator lets users do.
const SETTINGS: &str = "/etc/fuse.conf";
/// It only asks the kernel.
const LIMIT: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(2);
/// Of what it says.
const WORDS_MAX: u64 = 1000;
/// Where most machines mount the kernel's list of connections, in which users may end their own.
const CONNECTIONS: &str = "/sys/fs/fuse/connections";

/// Attach a new connection to the directory, as type `fuse.kosfs`, which fuser itself cannot name.
///
/// # Errors
/// `Io` when the kernel refuses, or fusermount3 does, with its words.
pub(crate) fn attach(options: &MountOptions, read_bytes_max: u32) -> Result<OwnedFd> {
    attach_ourselves(options, read_bytes_max).or_else(|(step, e)| {
        if !is_denied(&e) {
            return Err(Error::io(&step, &e));
        }
        let step = format!("mount {}", options.dir.display());
        attach_by(&program().map_err(|e| Error::io(&step, &e))?, options, read_bytes_max)
            .map_err(|e| Error::io(&step, &e))
    })
}

fn attach_ourselves(
    options: &MountOptions,
    read_bytes_max: u32,
) -> std::result::Result<OwnedFd, (String, io::Error)> {
    let device = fs::File::options()
        .read(true)
        .write(true)
        .open(DEVICE)
        .map_err(|e| (format!("open {DEVICE}: is the kernel module fuse loaded?"), e))?;
    let data = format!(
        "fd={},rootmode=40000,user_id={},group_id={},default_permissions,allow_other,max_read={read_bytes_max}",
        device.as_raw_fd(),
        geteuid().as_raw(),
        getegid().as_raw(),
    );
    let step = || format!("mount {}", options.dir.display());
    let data = CString::new(data).map_err(|e| (step(), e.into()))?;
    rustix::mount::mount(&options.source, &options.dir, "fuse.kosfs", options.flags, Some(data.as_c_str()))
        .map_err(|e| (step(), e.into()))?;
    Ok(device.into())
}

/// Whether it is for want of rights that fusermount3 has. Root has none to gain by it.
fn is_denied(e: &io::Error) -> bool {
    e.kind() == io::ErrorKind::PermissionDenied && !geteuid().is_root()
}

/// fusermount3 mounts, and sends the connection by a socket that it inherits.
fn attach_by(program: &Path, options: &MountOptions, read_bytes_max: u32) -> io::Result<OwnedFd> {
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
        .map_err(io::Error::from)?;
    let settings = fs::read_to_string(SETTINGS).unwrap_or_default();
    let words = words(options, read_bytes_max, others_allowed(&settings));
    let mut command = Command::new(program);
    command.arg("-o").arg(words).arg("--").arg(&options.dir);
    // As its standard input no other program can inherit the socket meanwhile.
    command.env(COMM, "0").stdin(Stdio::from(theirs));
    run(&mut command, LIMIT)?;
    drop(command);
    receive(&ours).inspect_err(|_| {
        // Nothing serves it.
        let _ = detach_by(program, &options.dir, true);
    })
}

/// What fusermount3 is asked for. It adds `nosuid` and `nodev` by itself.
fn words(options: &MountOptions, read_bytes_max: u32, others: bool) -> OsString {
    let mut words = OsString::from("fsname=");
    for &byte in options.source.as_bytes() {
        if matches!(byte, b',' | b'\\') {
            words.push("\\");
        }
        words.push(OsStr::from_bytes(&[byte]));
    }
    words.push(format!(",subtype=kosfs,default_permissions,max_read={read_bytes_max}"));
    let flags = [
        (MountFlags::RDONLY, ",ro"),
        (MountFlags::NOEXEC, ",noexec"),
        (MountFlags::NOATIME, ",noatime"),
        (MountFlags::SYNCHRONOUS, ",sync"),
        (MountFlags::DIRSYNC, ",dirsync"),
    ];
    for (_, word) in flags.into_iter().filter(|(flag, _)| options.flags.contains(*flag)) {
        words.push(word);
    }
    if others {
        words.push(",allow_other");
    }
    words
}

/// Whether users may let others into their mounts.
fn others_allowed(settings: &str) -> bool {
    settings.lines().any(|line| line.trim() == "user_allow_other")
}

/// The descriptor that came with a byte.
fn receive(socket: &OwnedFd) -> io::Result<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0_u8];
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    recvmsg(socket, &mut [IoSliceMut::new(&mut byte)], &mut control, flags)?;
    let sent = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    sent.ok_or_else(|| io::Error::other(format!("{PROGRAM} mounted and sent no connection")))
}

/// How a mount goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Detach {
    /// Nobody may use it.
    Unused,
    /// Those who use it lose it.
    Forced,
    /// Those who use it keep it for now.
    Lazy,
    /// Lazily, and never what a symbolic link leads to.
    Dead,
}

/// Take a mount out of the tree.
///
/// # Errors
/// `EBUSY` when it is in use, from umount(2) and fusermount3 alike; what else they say.
pub(crate) fn detach(dir: &Path, how: Detach) -> io::Result<()> {
    let flags = match how {
        Detach::Unused => UnmountFlags::empty(),
        Detach::Forced => UnmountFlags::FORCE | UnmountFlags::DETACH,
        Detach::Lazy => UnmountFlags::DETACH,
        Detach::Dead => UnmountFlags::DETACH | UnmountFlags::NOFOLLOW,
    };
    let denied = match unmount(dir, flags).map_err(io::Error::from) {
        Err(e) if is_denied(&e) => e,
        other => return other,
    };
    let Ok(program) = program() else { return Err(denied) };
    detach_by(&program, dir, how != Detach::Unused)
}

/// Take a mount that nobody serves any more out of the tree; what programs still have open of it stays dead.
///
/// # Errors
/// When the kernel or fusermount3 refuses.
pub fn detach_dead(dir: &Path) -> io::Result<()> {
    detach(dir, Detach::Dead)
}

fn detach_by(program: &Path, dir: &Path, lazy: bool) -> io::Result<()> {
    let mut command = Command::new(program);
    command.arg("-u").args(lazy.then_some("-z")).arg("--").arg(dir).stdin(Stdio::null());
    run(&mut command, LIMIT).map_err(|e| {
        // Its words are those of strerror(3), in no language but this: it never sets one.
        let busy = e.to_string().contains("Device or resource busy");
        if busy { Errno::BUSY.into() } else { e }
    })
}

/// End a connection, whoever has its mount. The kernel lists its connections in a filesystem that need not be mounted
/// anywhere: root's is in no namespace at all. Users need one that is mounted.
///
/// # Errors
/// `ENOENT` when it has ended.
pub(crate) fn abort(connection: u32) -> io::Result<()> {
    let path = format!("{connection}/abort");
    let list = list().or_else(|e| if is_denied(&e) { mounted_list() } else { Err(e) })?;
    let file = rustix::fs::openat(&list, path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    Ok(rustix::io::write(&file, b"1").map(drop)?)
}

fn mounted_list() -> io::Result<OwnedFd> {
    if Path::new(CONNECTIONS).read_dir()?.next().is_none() {
        let what = format!("programs still use it, and no list of connections is mounted at {CONNECTIONS}");
        return Err(io::Error::other(what));
    }
    Ok(rustix::fs::open(CONNECTIONS, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

fn list() -> io::Result<OwnedFd> {
    let context = fsopen("fusectl", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(context.as_fd())?;
    Ok(fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?)
}

/// Where fusermount3 is.
///
/// # Errors
/// `NotFound`, with the line to type.
pub fn program() -> io::Result<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let dirs = env::split_paths(&path).filter(|dir| dir.is_absolute()).chain(DIRS.map(PathBuf::from));
    let found = dirs.map(|dir| dir.join(PROGRAM)).find(|program| program.is_file());
    found.ok_or_else(|| {
        let what = format!("{PROGRAM} is missing, by which users mount; type: sudo apt install fuse3");
        io::Error::new(io::ErrorKind::NotFound, what)
    })
}

/// Run it to its end; what it says is the error.
fn run(command: &mut Command, limit: Duration) -> io::Result<()> {
    let shown = PathBuf::from(command.get_program());
    let failed = |why: String| io::Error::other(format!("{}: {why}", shown.display()));
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|e| failed(e.to_string()))?;
    let start = Instant::now();
    let status: ExitStatus = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if start.elapsed() > limit {
            // It is root's by now, and ours to kill all the same: its real user is ours.
            let killed =
                child.kill().map_or_else(|e| format!("it lives on: {e}"), |()| "it was ended".to_owned());
            return Err(failed(format!("no answer within {limit:?}; {killed}")));
        }
        thread::sleep(POLL);
    };
    if status.success() {
        return Ok(());
    }
    let mut said = Vec::new();
    if let Some(stderr) = child.stderr.take() {
        stderr.take(WORDS_MAX).read_to_end(&mut said)?;
    }
    let said = String::from_utf8_lossy(&said);
    let said = said.trim().trim_start_matches("fusermount3: ").replace('\n', "; ");
    Err(failed(if said.is_empty() { status.to_string() } else { said }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SessionKind;

    fn options(source: &str, flags: MountFlags) -> MountOptions {
        MountOptions {
            dir: "/mnt".into(),
            source: source.into(),
            threads: 1,
            first: false,
            flags,
            remote: false,
            share_locks: false,
            session: SessionKind::default(),
        }
    }

    #[test]
    fn options_become_words_of_fusermount3() {
        let said = words(&options(r"/a,b\c/kos.sock", MountFlags::RDONLY | MountFlags::NOEXEC), 4096, true);
        let text =
            r"fsname=/a\,b\\c/kos.sock,subtype=kosfs,default_permissions,max_read=4096,ro,noexec,allow_other";
        assert_eq!(said, *text);
        assert!(
            !words(&options("s", MountFlags::empty()), 4096, false).to_string_lossy().contains("allow_other")
        );
    }

    #[test]
    fn only_a_line_of_its_own_lets_others_in() {
        assert!(others_allowed("# comment\nuser_allow_other \nmount_max = 7\n"));
        assert!(!others_allowed("#user_allow_other\n") && !others_allowed("not_user_allow_other\n"));
    }

    fn shell(script: &str, limit: Duration) -> String {
        let mut command = Command::new("/bin/sh");
        run(command.args(["-c", script]), limit).expect_err("failed").to_string()
    }

    #[test]
    fn what_fusermount3_says_is_the_error() {
        let said = shell("echo 'fusermount3: no write access' >&2; exit 1", LIMIT);
        assert_eq!(said, "/bin/sh: no write access");
        assert_eq!(shell("exit 3", LIMIT), "/bin/sh: exit status: 3");
        let silent = attach_by("/bin/true".as_ref(), &options("s", MountFlags::empty()), 4096);
        assert!(silent.expect_err("nothing was sent").to_string().contains("sent no connection"));
    }

    #[test]
    fn a_fusermount3_that_hangs_is_ended() {
        let said = shell("exec sleep 600", Duration::from_millis(50));
        assert!(said.contains("no answer") && said.contains("it was ended"), "{said}");
    }
}
