//! What the user may type, what `kos` answers with, and the sizes in between. Decides nothing.

use clap::{Parser, Subcommand};
use kos_fuse::SessionKind;
use std::ffi::OsStr;
use std::fmt::Display;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

pub(crate) const MOUNT_DEFAULT: &str = "/kos";
const EXIT_CODES: &str = "Exit codes: 0 done, 1 failed, 2 usage, 3 not running, 4 degraded.";

/// A filesystem over the machine's pooled memory and disks, mounted at /kos.
#[derive(Debug, Parser)]
#[command(name = "kos", version, after_help = EXIT_CODES, disable_help_subcommand = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start a node here and mount it; on a running node, do nothing
    Up(Up),
    /// Flush, unmount and stop; the data stays
    Down(Down),
    /// Say how the node is
    Status(Status),
    /// Flush all written data and wait until it is as durable as its class promises
    Sync(Sync),
    /// Replace the running programs by those beside this kos, without unmounting
    Upgrade(Upgrade),
    /// Make the bytes of files unchangeable: they are flushed, and read as fast as memory
    Seal(Seal),
    /// Let files be changed again
    Unseal(Seal),
    /// Ask a mount whether it answers (run by the others)
    #[command(hide = true)]
    Probe(Probe),
}

#[derive(Debug, clap::Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct Up {
    /// How many nodes to start on this machine
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) nodes: u32,
    /// Where to mount; made if missing, and removed again by `down` [default: /kos]
    #[arg(long, value_name = "DIR", env = "KOS_MOUNT")]
    pub(crate) mount: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) place: Place,
    /// Memory for the RAM tier, e.g. 512M, 2G, 1GiB [default: a quarter of the available memory]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub(crate) tier_ram: Option<u64>,
    /// How the mount speaks with the kernel: dev, uring or fuser [default: dev]
    #[arg(long, value_name = "NAME", env = SessionKind::VARIABLE)]
    pub(crate) session: Option<SessionKind>,
}

#[derive(Debug, clap::Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct Down {
    #[command(flatten)]
    pub(crate) place: Place,
    /// Then delete all data: everything in the state directories
    #[arg(long)]
    pub(crate) wipe: bool,
}

#[derive(Debug, clap::Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct Status {
    #[command(flatten)]
    pub(crate) place: Place,
    /// As one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, clap::Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct Sync {
    #[command(flatten)]
    pub(crate) place: Place,
}

#[derive(Debug, clap::Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct Upgrade {
    #[command(flatten)]
    pub(crate) place: Place,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Seal {
    /// Everything below directories, too
    #[arg(short, long)]
    pub(crate) recursive: bool,
    /// Files of the mount
    #[arg(required = true, value_name = "PATH")]
    pub(crate) paths: Vec<PathBuf>,
}

/// Where a node keeps its data.
#[derive(Debug, clap::Args)]
pub(crate) struct Place {
    /// Where the data is kept; may be given again to spread it over disks: the first one names the node
    #[arg(long = "state", value_name = "DIR", env = "KOS_STATE", default_value = "/var/lib/kosfs")]
    pub(crate) states: Vec<PathBuf>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Probe {
    #[arg(long)]
    pub(crate) fsync: bool,
    pub(crate) dir: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    Done = 0,
    Failed = 1,
    NotRunning = 3,
    Degraded = 4,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why a command ended otherwise than asked: one line that says what happened and what to do.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) exit: Exit,
    pub(crate) line: String,
    /// Only the right was missing.
    pub(crate) denied: bool,
}

pub(crate) type Outcome<T = Exit> = Result<T, Failure>;

impl Failure {
    pub(crate) fn new(line: impl Into<String>) -> Self {
        Self { exit: Exit::Failed, line: line.into(), denied: false }
    }

    pub(crate) fn not_running(line: impl Into<String>) -> Self {
        Self { exit: Exit::NotRunning, line: line.into(), denied: false }
    }

    /// An error at a path. Where only the right is missing, the line to type says so.
    pub(crate) fn at(doing: &str, path: &Path, error: &std::io::Error) -> Self {
        let denied =
            error.kind() == std::io::ErrorKind::PermissionDenied && !rustix::process::geteuid().is_root();
        let advice = if denied { format!("; try: {}", sudo_line()) } else { String::new() };
        let line = format!("cannot {doing} {}: {error}{advice}", path.display());
        Self { exit: Exit::Failed, line, denied }
    }
}

/// Prints one line; a reader that has gone away is no failure.
pub(crate) fn say(line: impl Display) {
    let _unheard = writeln!(std::io::stdout(), "{line}");
}

/// The command line as root would have to type it, with the settings that sudo would drop.
pub(crate) fn sudo_line() -> String {
    let mut words = vec!["sudo".to_owned()];
    let kept: Vec<String> = ["KOS_MOUNT", "KOS_STATE", SessionKind::VARIABLE]
        .iter()
        .filter_map(|name| std::env::var_os(name).map(|value| format!("{name}={}", shell_word(&value))))
        .collect();
    if !kept.is_empty() {
        words.push("env".to_owned());
        words.extend(kept);
    }
    words.push(program_word());
    words.extend(std::env::args_os().skip(1).map(|word| shell_word(&word)));
    words.join(" ")
}

/// `kos`, or its whole path where root's PATH would not find it.
fn program_word() -> String {
    const FOUND_BY_ROOT: [&str; 4] = ["/usr/local/bin", "/usr/bin", "/bin", "/usr/local/sbin"];
    match std::env::current_exe() {
        Ok(path) if !FOUND_BY_ROOT.iter().any(|dir| path.parent() == Some(Path::new(dir))) => {
            shell_word(path.as_os_str())
        }
        _ => "kos".to_owned(),
    }
}

/// Quotes a word for a POSIX shell where it needs it.
pub(crate) fn shell_word(word: &OsStr) -> String {
    let text = word.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-=:,@%+".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.into_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// Reads a size as coreutils do: 512M, 2G and 1GiB count in 1024s, 1GB in 1000s, a bare number is bytes.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.chars().take_while(char::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let number: u64 =
        number.parse().map_err(|_error| format!("{text:?} is no size; write it as 512M, 2G or 1GiB"))?;
    let factor = unit_bytes(unit).ok_or_else(|| format!("unknown unit {unit:?}; use K, M, G or T"))?;
    number.checked_mul(factor).ok_or_else(|| format!("{text} is more than any machine has"))
}

fn unit_bytes(unit: &str) -> Option<u64> {
    let unit = unit.to_ascii_uppercase();
    let mut chars = unit.chars();
    let Some(prefix) = chars.next() else { return Some(1) };
    if unit == "B" {
        return Some(1);
    }
    let power = match prefix {
        'K' => 1,
        'M' => 2,
        'G' => 3,
        'T' => 4,
        _ => return None,
    };
    match chars.as_str() {
        "" | "IB" => Some(1024_u64.pow(power)),
        "B" => Some(1000_u64.pow(power)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn sizes_count_as_coreutils_do() {
        assert_eq!(parse_size("0"), Ok(0));
        assert_eq!(parse_size("4096"), Ok(4096));
        assert_eq!(parse_size("7B"), Ok(7));
        assert_eq!(parse_size("512M"), Ok(512 << 20));
        assert_eq!(parse_size("2g"), Ok(2 << 30));
        assert_eq!(parse_size("1GiB"), Ok(1 << 30));
        assert_eq!(parse_size("1GB"), Ok(1_000_000_000));
        assert_eq!(parse_size("3T"), Ok(3 << 40));
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in
            ["", "G", "-1", "1.5G", "2 G", "5X", "1GiBs", "1Mi", "99999999999999999999", "99999999999T"]
        {
            assert!(parse_size(text).is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn words_survive_the_shell() {
        assert_eq!(shell_word(OsStr::new("/var/lib/kosfs")), "/var/lib/kosfs");
        assert_eq!(shell_word(OsStr::new("")), "''");
        assert_eq!(shell_word(OsStr::new("a b")), "'a b'");
        assert_eq!(shell_word(OsStr::new("it's")), r"'it'\''s'");
    }

    #[test]
    fn states_repeat_in_order() {
        let args = Args::try_parse_from(["kos", "up", "--state", "/b", "--state", "/a", "--tier-ram", "1G"]);
        let Ok(Args { command: Command::Up(up) }) = args else { panic!("refused: {args:?}") };
        assert_eq!(up.place.states, [PathBuf::from("/b"), PathBuf::from("/a")]);
        assert_eq!(up.tier_ram, Some(1 << 30));
        assert!(Args::try_parse_from(["kos", "up", "--nodes", "0"]).is_err());
    }
}
