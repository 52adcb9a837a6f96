//! Asking a mount something that may hang: done by a child process, which is left behind when it does. A thread
//! would not do: the kernel cannot end one that waits for a FUSE answer, and so `kos` could not exit.

use crate::cli::{self, Exit, Outcome};
use rustix::io::Errno;
use std::io::{self, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const FUSE_SUPER_MAGIC: u64 = 0x6573_5546;
const POLL: Duration = Duration::from_millis(5);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The call came back well, from a FUSE filesystem.
    Fuse,
    /// The call came back well, from another one.
    Other,
    /// The call came back with an error.
    Error(Errno),
    /// Nothing came back in time.
    Silence,
}

impl Answer {
    /// "Transport endpoint is not connected": no daemon holds the other end any more.
    pub(crate) fn is_dead(self) -> bool {
        matches!(self, Self::Error(Errno::NOTCONN | Errno::CONNABORTED))
    }

    fn to_word(self) -> String {
        match self {
            Self::Fuse => "fuse".to_owned(),
            Self::Other => "other".to_owned(),
            Self::Error(errno) => errno.raw_os_error().to_string(),
            Self::Silence => "silence".to_owned(),
        }
    }

    fn from_word(word: &str) -> Self {
        match word.trim() {
            "fuse" => Self::Fuse,
            "other" => Self::Other,
            number => {
                number.parse().map_or(Self::Silence, |errno| Self::Error(Errno::from_raw_os_error(errno)))
            }
        }
    }
}

/// Whether the filesystem at `dir` answers within `limit`.
pub(crate) fn statfs(dir: &Path, limit: Duration) -> io::Result<Answer> {
    ask(dir, false, limit, |_waited| ())
}

/// Flushes everything behind the mount at `dir`; `tick` hears about the wait.
pub(crate) fn fsync(dir: &Path, limit: Duration, tick: impl FnMut(Duration)) -> io::Result<Answer> {
    ask(dir, true, limit, tick)
}

fn ask(dir: &Path, fsync: bool, limit: Duration, mut tick: impl FnMut(Duration)) -> io::Result<Answer> {
    let mut command = Command::new("/proc/self/exe");
    command.arg("probe").args(fsync.then_some("--fsync")).arg("--").arg(dir);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).current_dir("/");
    let mut child = command.spawn()?;
    let start = Instant::now();
    while child.try_wait()?.is_none() {
        if start.elapsed() >= limit {
            // It ends when the mount lets go of it; waiting for that is just what must not happen here.
            child.kill()?;
            return Ok(Answer::Silence);
        }
        tick(start.elapsed());
        std::thread::sleep(POLL);
    }
    read_answer(&mut child)
}

fn read_answer(child: &mut Child) -> io::Result<Answer> {
    let mut word = String::new();
    if let Some(stdout) = &mut child.stdout {
        stdout.read_to_string(&mut word)?;
    }
    Ok(Answer::from_word(&word))
}

/// The child's side.
pub(crate) fn run(args: &cli::Probe) -> Outcome {
    let asked = if args.fsync { fsync_dir(&args.dir) } else { Ok(()) };
    let answer = match asked.and_then(|()| rustix::fs::statfs(&args.dir)) {
        Ok(found) if u64::try_from(found.f_type) == Ok(FUSE_SUPER_MAGIC) => Answer::Fuse,
        Ok(_) => Answer::Other,
        Err(errno) => Answer::Error(errno),
    };
    cli::say(answer.to_word());
    Ok(Exit::Done)
}

fn fsync_dir(dir: &Path) -> rustix::io::Result<()> {
    use rustix::fs::{Mode, OFlags};
    let root = rustix::fs::open(dir, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::fs::fsync(root)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_survive_the_pipe() {
        for answer in [Answer::Fuse, Answer::Other, Answer::Error(Errno::NOTCONN), Answer::Silence] {
            assert_eq!(Answer::from_word(&format!("{}\n", answer.to_word())), answer);
        }
        assert_eq!(Answer::from_word(""), Answer::Silence);
    }

    #[test]
    fn only_a_lost_connection_is_dead() {
        assert!(Answer::Error(Errno::NOTCONN).is_dead());
        assert!(!Answer::Error(Errno::ACCESS).is_dead());
        assert!(!Answer::Silence.is_dead());
    }
}
