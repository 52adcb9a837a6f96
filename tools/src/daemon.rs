//! Which process serves a state directory: what the daemon wrote about itself, proved against /proc, because process
//! ids are used again.

use crate::state::State;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal};
use serde::Deserialize;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

pub(crate) const PROGRAM: &str = "fabricd";
/// Makes of the program the supervisor of a daemon.
pub(crate) const SUPERVISE: &str = "--supervise";

/// `run.json`: written when the mount answers, removed at a clean exit.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Run {
    pub(crate) pid: i32,
    /// The process that starts the daemon again, if there is one.
    #[serde(default)]
    pub(crate) supervisor: Option<i32>,
    pub(crate) mount: PathBuf,
}

impl Run {
    pub(crate) fn parse(json: &[u8]) -> io::Result<Self> {
        Ok(serde_json::from_slice(json)?)
    }

    /// Whether the daemon that wrote it lives.
    pub(crate) fn serves(&self, state: &State) -> bool {
        is_one(self.pid, state, Trust::Written, Role::Daemon)
    }
}

/// A living daemon of a state directory.
#[derive(Debug)]
pub(crate) struct Daemon {
    /// Between two daemons the supervisor's.
    pub(crate) pid: i32,
    /// Absent until its mount answers.
    pub(crate) run: Option<Run>,
    pub(crate) supervisor: Option<i32>,
}

impl Daemon {
    /// The daemon that serves `state`, first by what it wrote, then by looking through all processes.
    pub(crate) fn find(state: &State) -> io::Result<Option<Self>> {
        let run = state.run()?;
        if let Some(run) = run.filter(|run| run.serves(state)) {
            let supervisor =
                run.supervisor.filter(|pid| is_one(*pid, state, Trust::Written, Role::Supervisor));
            return Ok(Some(Self { pid: run.pid, run: Some(run), supervisor }));
        }
        let (mut daemon, mut supervisor) = (None, None);
        for entry in std::fs::read_dir("/proc")? {
            let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            match role(pid, state, Trust::Seen) {
                Some(Role::Daemon) => daemon = daemon.or(Some(pid)),
                Some(Role::Supervisor) => supervisor = supervisor.or(Some(pid)),
                None => {}
            }
        }
        Ok(daemon.or(supervisor).map(|pid| Self { pid, run: None, supervisor }))
    }

    /// Whether it still runs, as the same process, or somebody would start it again.
    pub(crate) fn lives(&self, state: &State) -> bool {
        self.processes().any(|pid| role(pid, state, Trust::Written).is_some())
    }

    /// Whether what a daemon wrote is of this one, or of one after it.
    pub(crate) fn wrote(&self, run: &Run) -> bool {
        run.pid == self.pid || (run.supervisor.is_some() && run.supervisor == self.supervisor)
    }

    /// Asks it to flush, unmount and exit.
    pub(crate) fn terminate(&self, state: &State) -> io::Result<()> {
        // The supervisor first: if the daemon crashes meanwhile, the next one is asked to.
        let mut told = Ok(());
        for pid in self.processes() {
            let one = signal(pid, state, Signal::TERM);
            told = told.and(one);
        }
        told
    }

    fn processes(&self) -> impl Iterator<Item = i32> {
        self.supervisor.into_iter().chain((self.supervisor != Some(self.pid)).then_some(self.pid))
    }
}

/// Send a signal to a process of this state, and to no other.
pub(crate) fn signal(pid: i32, state: &State, signal: Signal) -> io::Result<()> {
    let Some(raw) = Pid::from_raw(pid) else { return Ok(()) };
    // The handle is taken before the last look, so the signal cannot reach a process that got the same id.
    let handle = match rustix::process::pidfd_open(raw, PidfdFlags::empty()) {
        // What has ended needs none.
        Err(Errno::SRCH) => return Ok(()),
        other => other?,
    };
    if role(pid, state, Trust::Written).is_some() {
        rustix::process::pidfd_send_signal(handle, signal)?;
    }
    Ok(())
}

/// Where a process id comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trust {
    /// The daemon of this state wrote it.
    Written,
    /// It was met in /proc.
    Seen,
}

/// What a process of a state is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Daemon,
    /// Starts daemons, and serves nothing itself.
    Supervisor,
}

fn is_one(pid: i32, state: &State, trust: Trust, wanted: Role) -> bool {
    role(pid, state, trust) == Some(wanted)
}

/// None when it is none of this state's.
fn role(pid: i32, state: &State, trust: Trust) -> Option<Role> {
    if pid <= 0 {
        return None;
    }
    // A zombie's command line is empty, so it serves nothing.
    let cmdline = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let (role, states) = states_of(&cmdline)?;
    states.into_iter().any(|given| names_state(pid, given, state, trust)).then_some(role)
}

/// The `--state` paths of a command line and what it makes of a process, if it is a daemon's.
fn states_of(cmdline: &[u8]) -> Option<(Role, Vec<&Path>)> {
    let mut words = cmdline.split(|byte| *byte == 0).map(OsStr::from_bytes);
    let program = words.next().map(Path::new).and_then(Path::file_name);
    let (mut role, mut states) = (Role::Daemon, Vec::new());
    if program != Some(OsStr::new(PROGRAM)) {
        return None;
    }
    while let Some(word) = words.next() {
        if word == "--state" {
            states.extend(words.next().map(Path::new));
        } else if let Some(path) = word.as_bytes().strip_prefix(b"--state=") {
            states.push(Path::new(OsStr::from_bytes(path)));
        } else if word == SUPERVISE {
            role = Role::Supervisor;
        }
    }
    Some((role, states))
}

/// Whether the path that process `pid` was given is our directory: by inode, seen from that process, so that a
/// relative path or another root means what it means there.
fn names_state(pid: i32, given: &Path, state: &State, trust: Trust) -> bool {
    let from = if given.is_absolute() { "root" } else { "cwd" };
    let seen =
        Path::new("/proc").join(pid.to_string()).join(from).join(given.strip_prefix("/").unwrap_or(given));
    match (std::fs::metadata(seen), std::fs::metadata(&state.path)) {
        (Ok(theirs), Ok(ours)) if (theirs.dev(), theirs.ino()) == (ours.dev(), ours.ino()) => true,
        // It may have left the directory it was started in, or its /proc may be closed to us.
        _ => trust == Trust::Written && may_mean(given, &state.path),
    }
}

fn may_mean(given: &Path, state: &Path) -> bool {
    let given: PathBuf = given.components().filter(|part| *part != Component::CurDir).collect();
    given == state || (given.is_relative() && state.ends_with(given))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn run_json_is_read_and_its_damage_is_an_error() {
        let run = Run::parse(br#"{"pid":7,"mount":"/kos","started":1,"more":[]}"#).ok();
        assert_eq!(run, Some(Run { pid: 7, supervisor: None, mount: "/kos".into() }));
        let run = Run::parse(br#"{"pid":7,"supervisor":6,"mount":"/kos","started":1}"#).ok();
        assert_eq!(run, Some(Run { pid: 7, supervisor: Some(6), mount: "/kos".into() }));
        for damaged in
            [&b""[..], b"{", b"{\"pid\":7}", b"[]", b"{\"pid\":\"7\",\"mount\":\"/kos\"}", b"\0\0\0\0"]
        {
            assert!(Run::parse(damaged).is_err());
        }
    }

    #[test]
    fn only_a_daemons_command_line_names_states() {
        let states: Vec<&Path> = vec![Path::new("/a"), Path::new("/b c")];
        let daemon = b"/opt/bin/fabricd\0--state\0/a\0--mount\0/kos\0--state=/b c\0";
        assert_eq!(states_of(daemon), Some((Role::Daemon, states.clone())));
        let daemon = b"fabricd\0--supervised\0--state\0/a\0--state\0/b c\0";
        assert_eq!(states_of(daemon), Some((Role::Daemon, states.clone())));
        let supervisor = b"fabricd\0--supervise\0--state\0/a\0--state\0/b c\0";
        assert_eq!(states_of(supervisor), Some((Role::Supervisor, states)));
        let none = b"fabricd\0--state\0--supervise\0";
        assert_eq!(states_of(none), Some((Role::Daemon, vec![Path::new("--supervise")])));
        assert_eq!(states_of(b"vim\0--state\0/a\0"), None);
        assert_eq!(states_of(b""), None);
        assert_eq!(states_of(b"fabricd\0--state"), Some((Role::Daemon, Vec::new())));
    }

    #[test]
    fn a_path_as_given_may_mean_the_state() {
        let state = Path::new("/srv/kos/one");
        assert!(may_mean(Path::new("/srv/kos/one"), state));
        assert!(may_mean(Path::new("./one"), state));
        assert!(!may_mean(Path::new("/srv/kos"), state));
        assert!(!may_mean(Path::new("two"), state));
    }

    #[test]
    fn a_process_that_is_no_daemon_serves_nothing() {
        let state = State::at(Path::new("/")).ok();
        let own = i32::try_from(std::process::id()).ok();
        let (Some(state), Some(own)) = (state, own) else { panic!("no state or pid") };
        assert_eq!(role(own, &state, Trust::Written), None);
        assert_eq!(role(0, &state, Trust::Written), None);
        assert_eq!(role(-1, &state, Trust::Written), None);
    }
}
