//! What mount(8) and fstab(5) may say: the source, the directory, the options.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use kos_fuse::{MountFlags, SessionKind};

/// The first word of the serving process.
pub(crate) const SERVE: &str = "--serve";
/// The first word of the process that watches it.
pub(crate) const WATCH: &str = "--watch";
const SOCKET: &[u8] = b"kos.sock";
const FORM: &str = "mount -t kosfs STATE/kos.sock[:/subtree] DIR [-o options]";
/// How long requests wait for a daemon that is away, unless `timeout=` says otherwise.
const PATIENCE: Duration = Duration::from_secs(30);
const PATIENCE_SECS_MAX: u64 = 3600;

/// One call.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Args {
    /// The source as it was given, for the table of mounts.
    pub(crate) source: OsString,
    pub(crate) socket: PathBuf,
    /// Relative to the whole tree's root; empty is all of it.
    pub(crate) subtree: PathBuf,
    pub(crate) dir: PathBuf,
    pub(crate) flags: MountFlags,
    pub(crate) patience: Duration,
    pub(crate) session: SessionKind,
    /// Check, and mount nothing.
    pub(crate) fake: bool,
}

pub(crate) fn parse(words: &[OsString]) -> Result<Args, String> {
    let (mut places, mut options) = (Vec::new(), Vec::new());
    let (mut fake, mut sloppy) = (false, false);
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let Some(letters) = word.as_bytes().strip_prefix(b"-").filter(|letters| !letters.is_empty()) else {
            places.push(word);
            continue;
        };
        match letters {
            b"o" => options.push(words.next().ok_or("-o needs options behind it")?.as_os_str()),
            // The type is known by the name of this program.
            b"t" => drop(words.next()),
            [b'o', options_too @ ..] if !options_too.starts_with(b"-") => {
                options.push(OsStr::from_bytes(options_too));
            }
            letters if letters.iter().all(|letter| b"sfnv".contains(letter)) => {
                fake |= letters.contains(&b'f');
                sloppy |= letters.contains(&b's');
            }
            _ => return Err(format!("unknown switch {word:?}; usage: {FORM}")),
        }
    }
    let [source, dir] = places[..] else { return Err(format!("usage: {FORM}")) };
    let (socket, subtree) = source_of(source)?;
    let mut flags = MountFlags::empty();
    let mut patience = PATIENCE;
    let mut session = SessionKind::of_environment()?;
    for option in options.iter().flat_map(|list| list.as_bytes().split(|byte| *byte == b',')) {
        let known = set_flag(&mut flags, option)
            || is_for_others(option)
            || set_patience(&mut patience, option)?
            || set_session(&mut session, option)?;
        if !known && !sloppy {
            let option = String::from_utf8_lossy(option);
            return Err(format!(
                "unknown option {option:?}; kosfs's own are timeout=SECONDS and session=fuser|dev"
            ));
        }
    }
    let (source, dir) = (source.clone(), PathBuf::from(dir));
    Ok(Args { source, socket, subtree, dir, flags, patience, session, fake })
}

/// The socket and the directory of the tree behind it.
fn source_of(source: &OsStr) -> Result<(PathBuf, PathBuf), String> {
    let text = source.as_bytes();
    let shown = source.to_string_lossy();
    let colon = text.iter().position(|byte| *byte == b':');
    if colon.is_some_and(|colon| !text[..colon].contains(&b'/') && &text[..colon] != SOCKET) {
        return Err(format!("{shown}: a HOST needs the cluster, which is not built yet; use STATE/kos.sock"));
    }
    let is_socket =
        |path: &[u8]| Path::new(OsStr::from_bytes(path)).file_name() == Some(OsStr::from_bytes(SOCKET));
    if is_socket(text) {
        return Ok((source.into(), PathBuf::new()));
    }
    let split = (0..text.len()).rev().find(|&at| text[at..].starts_with(b":/") && is_socket(&text[..at]));
    let Some(split) = split else {
        return Err(format!(
            "{shown} is no source of kosfs; write STATE/kos.sock or STATE/kos.sock:/subtree"
        ));
    };
    let below = Path::new(OsStr::from_bytes(&text[split + 2..]));
    let subtree: PathBuf = below.components().filter(|part| *part != Component::RootDir).collect();
    if subtree.components().any(|part| !matches!(part, Component::Normal(_))) {
        return Err(format!("{shown}: a subtree is named from the root down, without . and .."));
    }
    Ok((OsStr::from_bytes(&text[..split]).into(), subtree))
}

/// Options that are flags of mount(2), and those that take one away.
fn set_flag(flags: &mut MountFlags, option: &[u8]) -> bool {
    let (flag, on) = match option {
        b"ro" => (MountFlags::RDONLY, true),
        b"rw" => (MountFlags::RDONLY, false),
        b"nodev" => (MountFlags::NODEV, true),
        b"dev" => (MountFlags::NODEV, false),
        b"nosuid" => (MountFlags::NOSUID, true),
        b"suid" => (MountFlags::NOSUID, false),
        b"noexec" => (MountFlags::NOEXEC, true),
        b"exec" => (MountFlags::NOEXEC, false),
        b"noatime" => (MountFlags::NOATIME, true),
        b"atime" => (MountFlags::NOATIME, false),
        b"nodiratime" => (MountFlags::NODIRATIME, true),
        b"diratime" => (MountFlags::NODIRATIME, false),
        b"relatime" => (MountFlags::RELATIME, true),
        b"norelatime" => (MountFlags::RELATIME, false),
        b"strictatime" => (MountFlags::STRICTATIME, true),
        b"nostrictatime" => (MountFlags::STRICTATIME, false),
        b"sync" => (MountFlags::SYNCHRONOUS, true),
        b"async" => (MountFlags::SYNCHRONOUS, false),
        b"dirsync" => (MountFlags::DIRSYNC, true),
        b"silent" => (MountFlags::SILENT, true),
        b"loud" => (MountFlags::SILENT, false),
        _ => return false,
    };
    flags.set(flag, on);
    true
}

/// Options that mount(8), fstab(5) and systemd read themselves.
fn is_for_others(option: &[u8]) -> bool {
    const WORDS: [&[u8]; 13] = [
        b"",
        b"defaults",
        b"auto",
        b"noauto",
        b"user",
        b"nouser",
        b"users",
        b"owner",
        b"group",
        b"nofail",
        b"_netdev",
        b"nomand",
        b"noiversion",
    ];
    const STARTS: [&[u8]; 5] = [b"x-", b"X-", b"comment=", b"user=", b"uhelper="];
    WORDS.contains(&option) || STARTS.iter().any(|start| option.starts_with(start))
}

fn set_patience(patience: &mut Duration, option: &[u8]) -> Result<bool, String> {
    let Some(value) = option.strip_prefix(b"timeout=") else { return Ok(false) };
    let secs = std::str::from_utf8(value).ok().and_then(|value| value.parse().ok());
    let secs = secs.filter(|secs| (1..=PATIENCE_SECS_MAX).contains(secs));
    let secs = secs.ok_or_else(|| format!("timeout= takes seconds, 1 to {PATIENCE_SECS_MAX}"))?;
    *patience = Duration::from_secs(secs);
    Ok(true)
}

fn set_session(session: &mut SessionKind, option: &[u8]) -> Result<bool, String> {
    let Some(word) = option.strip_prefix(b"session=") else { return Ok(false) };
    *session = String::from_utf8_lossy(word).parse()?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_words(words: &str) -> Result<Args, String> {
        parse(&words.split(' ').map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn what_mount_gives_is_understood() {
        let args = parse_words("/s/kos.sock /mnt -sfnv -o rw,nodev,nosuid,noatime,_netdev,x-systemd.automount,timeout=7 -t kosfs")
            .expect("good");
        assert_eq!((args.socket, args.subtree, args.dir), ("/s/kos.sock".into(), "".into(), "/mnt".into()));
        assert_eq!(args.flags, MountFlags::NODEV | MountFlags::NOSUID | MountFlags::NOATIME);
        assert_eq!((args.patience, args.fake), (Duration::from_secs(7), true));
        let args = parse_words("-o ro,exec -ouser=me,rw s/kos.sock:/mem/a:/b /mnt").expect("good");
        assert_eq!((args.socket, args.subtree), ("s/kos.sock".into(), "mem/a:/b".into()));
        assert_eq!((args.flags, args.patience), (MountFlags::empty(), PATIENCE));
        assert_eq!(args.source, "s/kos.sock:/mem/a:/b");
    }

    #[test]
    fn sources_are_sockets() {
        let of = |source: &str| source_of(OsStr::new(source));
        assert_eq!(of("/a:/kos.sock"), Ok(("/a:/kos.sock".into(), "".into())));
        assert_eq!(of("/a:/kos.sock:/"), Ok(("/a:/kos.sock".into(), "".into())));
        assert_eq!(of("kos.sock:/mem//x/"), Ok(("kos.sock".into(), "mem/x".into())));
        for host in ["host:/", "one,two:7000/mem", "10.0.0.1:", "kos://host/mem"] {
            assert!(of(host).expect_err("refused").contains("needs the cluster"), "{host}");
        }
        for wrong in
            ["/var/lib/kosfs", "/dev/sda1", "", "/s/kos.sock:mem", "/s/kos.sock:/../etc", "/s/kos.sock2"]
        {
            assert!(of(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_is_unknown_is_refused_by_name() {
        for (words, name) in [
            ("s/kos.sock /mnt -o ro,subvol=x", "subvol=x"),
            ("s/kos.sock /mnt -o remount,ro", "remount"),
            ("s/kos.sock /mnt -o timeout=0", "timeout="),
            ("s/kos.sock /mnt -o timeout=1h", "timeout="),
            ("s/kos.sock /mnt -x", "-x"),
            ("s/kos.sock /mnt /more", "usage"),
            ("s/kos.sock", "usage"),
            ("s/kos.sock /mnt -o", "-o"),
        ] {
            assert!(parse_words(words).expect_err(words).contains(name), "{words}");
        }
        assert!(parse_words("s/kos.sock /mnt -s -o subvol=x").is_ok(), "sloppy");
    }
}
