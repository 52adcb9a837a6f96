//! Which process serves a state directory: what the daemon wrote about itself, proved against /proc, because process
//! ids are used again.

use crate::state::State;
use rustix::process::{Pid, PidfdFlags, Signal};
use serde::Deserialize;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

pub(crate) const PROGRAM: &str = "fabricd";

/// `run.json`: written when the mount answers, removed at a clean exit.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Run {
    pub(crate) pid: i32,
    pub(crate) mount: PathBuf,
}

impl Run {
    pub(crate) fn parse(json: &[u8]) -> io::Result<Self> {
        Ok(serde_json::from_slice(json)?)
    }
}

/// A living daemon of a state directory.
#[derive(Debug)]
pub(crate) struct Daemon {
    pub(crate) pid: i32,
    /// Absent until its mount answers.
    pub(crate) run: Option<Run>,
}

impl Daemon {
    /// The daemon that serves `state`, first by what it wrote, then by looking through all processes.
    pub(crate) fn find(state: &State) -> io::Result<Option<Self>> {
        let run = state.run()?;
        if let Some(run) = run.clone().filter(|run| serves(run.pid, state, Trust::Written)) {
            return Ok(Some(Self { pid: run.pid, run: Some(run) }));
        }
        for entry in std::fs::read_dir("/proc")? {
            let pid = entry?.file_name().to_str().and_then(|name| name.parse().ok());
            if let Some(pid) = pid.filter(|pid| serves(*pid, state, Trust::Seen)) {
                return Ok(Some(Self { pid, run: None }));
            }
        }
        Ok(None)
    }

    /// Whether it still runs, as the same process.
    pub(crate) fn lives(&self, state: &State) -> bool {
        serves(self.pid, state, Trust::Written)
    }

    /// Asks it to flush, unmount and exit.
    pub(crate) fn terminate(&self, state: &State) -> io::Result<()> {
        let Some(pid) = Pid::from_raw(self.pid) else { return Ok(()) };
        // The handle is taken before the last look, so the signal cannot reach a process that got the same id.
        let handle = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
        if self.lives(state) {
            rustix::process::pidfd_send_signal(handle, Signal::TERM)?;
        }
        Ok(())
    }
}

/// Where a process id comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trust {
    /// The daemon of this state wrote it.
    Written,
    /// It was met in /proc.
    Seen,
}

fn serves(pid: i32, state: &State, trust: Trust) -> bool {
    if pid <= 0 {
        return false;
    }
    // A zombie's command line is empty, so it serves nothing.
    let Ok(cmdline) = std::fs::read(format!("/proc/{pid}/cmdline")) else { return false };
    states_of(&cmdline).into_iter().any(|given| names_state(pid, given, state, trust))
}

/// The `--state` paths of a command line, if it is a daemon's.
fn states_of(cmdline: &[u8]) -> Vec<&Path> {
    let mut words = cmdline.split(|byte| *byte == 0).map(OsStr::from_bytes);
    let program = words.next().map(Path::new).and_then(Path::file_name);
    let mut states = Vec::new();
    if program != Some(OsStr::new(PROGRAM)) {
        return states;
    }
    while let Some(word) = words.next() {
        if word == "--state" {
            states.extend(words.next().map(Path::new));
        } else if let Some(path) = word.as_bytes().strip_prefix(b"--state=") {
            states.push(Path::new(OsStr::from_bytes(path)));
        }
    }
    states
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
        assert_eq!(run, Some(Run { pid: 7, mount: "/kos".into() }));
        for damaged in
            [&b""[..], b"{", b"{\"pid\":7}", b"[]", b"{\"pid\":\"7\",\"mount\":\"/kos\"}", b"\0\0\0\0"]
        {
            assert!(Run::parse(damaged).is_err());
        }
    }

    #[test]
    fn only_a_daemons_command_line_names_states() {
        let states = states_of(b"/opt/bin/fabricd\0--state\0/a\0--mount\0/kos\0--state=/b c\0");
        assert_eq!(states, [Path::new("/a"), Path::new("/b c")]);
        assert!(states_of(b"vim\0--state\0/a\0").is_empty());
        assert!(states_of(b"").is_empty());
        assert!(states_of(b"fabricd\0--state").is_empty());
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
        assert!(!serves(own, &state, Trust::Written));
        assert!(!serves(0, &state, Trust::Written));
        assert!(!serves(-1, &state, Trust::Written));
    }
}
