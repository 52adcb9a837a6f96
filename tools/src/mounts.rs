//! The kernel's table of mounts, read without touching any mount, and the one way `kos` unmounts: lazily, and only
//! what is a kosfs mount.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// The type that a kosfs mount shows in the table.
pub(crate) const FSTYPE: &str = "fuse.kosfs";

const SYMLINKS_MAX: usize = 40;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mount {
    id: u64,
    parent: u64,
    pub(crate) point: PathBuf,
    pub(crate) fstype: String,
    pub(crate) source: String,
}

impl Mount {
    pub(crate) fn is_kosfs(&self) -> bool {
        self.fstype == FSTYPE
    }
}

/// Every mount of this process's namespace.
pub(crate) fn table() -> io::Result<Vec<Mount>> {
    Ok(parse(&std::fs::read("/proc/self/mountinfo")?))
}

/// The mount that a program entering `dir` would meet, if `dir` is a mount point.
pub(crate) fn at(dir: &Path) -> io::Result<Option<Mount>> {
    Ok(topmost(&table()?, dir).cloned())
}

fn topmost<'a>(table: &'a [Mount], dir: &Path) -> Option<&'a Mount> {
    let here = || table.iter().filter(|mount| mount.point == dir);
    here().find(|mount| !here().any(|other| other.parent == mount.id && other.id != mount.id))
}

fn parse(mountinfo: &[u8]) -> Vec<Mount> {
    mountinfo.split(|byte| *byte == b'\n').filter_map(parse_line).collect()
}

/// One line: `id parent major:minor root point options [optional…] - fstype source super-options`.
fn parse_line(line: &[u8]) -> Option<Mount> {
    let words: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
    let dash = 6 + words.get(6..)?.iter().position(|word| *word == b"-")?;
    let number = |at: usize| std::str::from_utf8(words.get(at)?).ok()?.parse().ok();
    let text = |at: usize| words.get(at).map(|word| String::from_utf8_lossy(&unescape(word)).into_owned());
    Some(Mount {
        id: number(0)?,
        parent: number(1)?,
        point: PathBuf::from(OsString::from_vec(unescape(words.get(4)?))),
        fstype: text(dash + 1)?,
        source: text(dash + 2)?,
    })
}

/// Undoes the kernel's escapes: a space is written `\040`, a backslash `\134`.
fn unescape(word: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(word.len());
    let mut rest = word;
    while let Some((first, tail)) = rest.split_first() {
        match octal(rest) {
            Some(byte) => {
                plain.push(byte);
                rest = &rest[4..];
            }
            None => {
                plain.push(*first);
                rest = tail;
            }
        }
    }
    plain
}

fn octal(text: &[u8]) -> Option<u8> {
    let [b'\\', digits @ ..] = text.get(..4)? else { return None };
    digits.iter().try_fold(0_u8, |value, digit| {
        let digit = digit.checked_sub(b'0').filter(|digit| *digit < 8)?;
        value.checked_mul(8)?.checked_add(digit)
    })
}

/// The socket that a mount's source names, with or without a subtree behind it; absolute, as far as it exists.
pub(crate) fn socket_of(source: &str) -> Option<PathBuf> {
    let end = source.rfind("kos.sock:/").map_or(source.len(), |at| at + "kos.sock".len());
    let socket = Path::new(&source[..end]);
    let dir = socket.parent()?.canonicalize().ok()?;
    (socket.file_name()? == "kos.sock").then(|| dir.join("kos.sock"))
}

/// The absolute path of a mount point, symlinks followed, without ever asking the mounted filesystem itself.
pub(crate) fn resolve(dir: &Path) -> io::Result<PathBuf> {
    let table = table()?;
    let mut path = std::path::absolute(dir)?;
    for _hop in 0..SYMLINKS_MAX {
        path = settle_parent(&path)?;
        if table.iter().any(|mount| mount.point == path) {
            return Ok(path);
        }
        let Ok(target) = std::fs::read_link(&path) else { return Ok(path) };
        path = path.parent().unwrap_or_else(|| Path::new("/")).join(target);
    }
    Err(io::Error::other("too many levels of symbolic links"))
}

/// Canonical parent, plus the name as it stands; a parent that is missing stays as written.
fn settle_parent(path: &Path) -> io::Result<PathBuf> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        // "/" or a path that ends in ".."
        return path.canonicalize();
    };
    match parent.canonicalize() {
        Ok(parent) => Ok(parent.join(name)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(path.to_path_buf()),
        Err(error) => Err(error),
    }
}

/// Detaches a kosfs mount; anything else is refused.
pub(crate) fn detach(mount: &Mount) -> io::Result<()> {
    assert!(mount.is_kosfs(), "only kosfs mounts are ever unmounted");
    kos_fuse::detach_dead(&mount.point)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[u8] = b"\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
40 22 0:45 / /kos rw,nosuid shared:7 master:2 - fuse.kosfs kosfs rw,user_id=0
41 22 0:46 / /mnt/a\\040b\\134c\\011d rw - fuse.kosfs ko\\040s rw
42 40 0:47 / /kos rw - tmpfs none rw
nonsense
43 22 0:48 / /short rw shared:3
";

    #[test]
    fn lines_are_read_with_any_number_of_optional_words() {
        let table = parse(TABLE);
        assert_eq!(table.len(), 4);
        assert_eq!((table[0].id, table[0].parent, table[0].fstype.as_str()), (22, 1, "ext4"));
        assert_eq!((table[1].point.as_path(), table[1].source.as_str()), (Path::new("/kos"), "kosfs"));
        assert!(table[1].is_kosfs() && !table[0].is_kosfs());
    }

    #[test]
    fn octal_escapes_are_undone() {
        let table = parse(TABLE);
        assert_eq!(table[2].point, Path::new("/mnt/a b\\c\td"));
        assert_eq!(table[2].source, "ko s");
        assert_eq!(unescape(br"a\04"), br"a\04");
        assert_eq!(unescape(br"\0409"), b" 9");
        assert_eq!(unescape(br"\777\089"), br"\777\089");
        assert_eq!(unescape(br"\377"), [0xff]);
    }

    #[test]
    fn the_upper_of_two_stacked_mounts_is_the_one_met() {
        let table = parse(TABLE);
        assert_eq!(topmost(&table, Path::new("/kos")).map(|mount| mount.fstype.as_str()), Some("tmpfs"));
        assert_eq!(topmost(&table, Path::new("/")).map(|mount| mount.id), Some(22));
        assert_eq!(topmost(&table, Path::new("/kos/mem")), None);
    }

    #[test]
    fn a_source_names_its_socket() {
        let root = Some(PathBuf::from("/kos.sock"));
        assert_eq!(socket_of("/kos.sock"), root);
        assert_eq!(socket_of("/proc/../kos.sock:/mem/a:/b"), root);
        assert_eq!(socket_of("/none/kos.sock"), None);
        assert_eq!(socket_of("kosfs"), None);
    }

    #[test]
    fn a_path_resolves_without_its_last_name_existing() {
        assert_eq!(resolve(Path::new("/proc/../no-such-dir")).ok(), Some(PathBuf::from("/no-such-dir")));
        assert_eq!(resolve(Path::new("/")).ok(), Some(PathBuf::from("/")));
    }
}
