//! The `user.kos.*` extended attributes: what they may say, and what is in force for an inode.

use alloc::format;

use kos_types::{
    Class, Compress, Consistency, Error, FileKind, Geometry, Ino, Kind, Pin, Policy, ROOT, Result, Sharing,
};

use crate::{Tables, read};

/// The attribute that names the durability class.
pub const DURABILITY: &[u8] = b"user.kos.durability";
/// The attribute that names the geometry.
pub const EC: &[u8] = b"user.kos.ec";
/// The attribute that names the compression.
pub const COMPRESS: &[u8] = b"user.kos.compress";
/// The attribute that keeps bytes in memory.
pub const PIN: &[u8] = b"user.kos.pin";
/// The attribute that seals a file, or the files of a directory when they are closed.
pub const SEAL: &[u8] = b"user.kos.seal";
/// The attribute that says what mounts may keep.
pub const CONSISTENCY: &[u8] = b"user.kos.consistency";
/// What [`SEAL`] says on a file that is sealed.
pub const SEALED: &[u8] = b"1";
/// What [`SEAL`] says on a directory.
const ON_CLOSE: &[u8] = b"on-close";
const PREFIX: &[u8] = b"user.kos.";
/// Directories above an inode: PATH_MAX bytes hold no more.
pub const DEPTH_MAX: usize = 4096;

fn class(value: &[u8]) -> Result<Class> {
    match value {
        b"disk" => Ok(Class::Disk),
        b"memory" => Ok(Class::Memory),
        b"scratch" => Ok(Class::Scratch),
        _ => Err(Error::new(Kind::Invalid, "user.kos.durability: disk, memory or scratch")),
    }
}

fn geometry(value: &[u8]) -> Result<Geometry> {
    let bad = || Error::new(Kind::Invalid, "user.kos.ec: k+m, as 4+2");
    let text = core::str::from_utf8(value).map_err(|_| bad())?;
    let (k, m) = text.split_once('+').ok_or_else(bad)?;
    // parse() would take it for a sign; `k` holds none.
    if m.starts_with('+') {
        return Err(bad());
    }
    Geometry::new(k.parse().map_err(|_| bad())?, m.parse().map_err(|_| bad())?)
}

fn compress(value: &[u8]) -> Result<Compress> {
    match value {
        b"auto" => Ok(Compress::Auto),
        b"lz4" => Ok(Compress::Lz4),
        b"none" => Ok(Compress::None),
        _ => Err(Error::new(Kind::Invalid, "user.kos.compress: auto, lz4 or none")),
    }
}

fn pin(value: &[u8]) -> Result<Pin> {
    match value {
        b"none" => Ok(Pin::None),
        b"ram" => Ok(Pin::Ram),
        _ => Err(Error::new(Kind::Invalid, "user.kos.pin: none or ram")),
    }
}

/// Whether this value of [`SEAL`] seals an inode of this kind now.
///
/// # Errors
/// `Invalid` for a value that the kind does not have.
pub(crate) fn seals(kind: FileKind, value: &[u8]) -> Result<bool> {
    match (kind, value) {
        (FileKind::File | FileKind::Dir, b"0") | (FileKind::Dir, ON_CLOSE) => Ok(false),
        (FileKind::File, SEALED) => Ok(true),
        _ => Err(Error::new(Kind::Invalid, "user.kos.seal: 0 or 1 on a file, on-close or 0 on a directory")),
    }
}

fn consistency(value: &[u8]) -> Result<Consistency> {
    match value {
        b"strong" => Ok(Consistency::Strong),
        b"release" => Ok(Consistency::Release),
        b"eventual" => Ok(Consistency::Eventual),
        _ => Err(Error::new(Kind::Invalid, "user.kos.consistency: strong, release or eventual")),
    }
}

/// The value of [`SEAL`] is looked at where the inode's kind is known.
///
/// # Errors
/// `Invalid` for an unknown `user.kos.` name or a bad value of a known one.
pub fn check(name: &[u8], value: &[u8]) -> Result<()> {
    match name {
        DURABILITY => class(value).map(drop),
        EC => geometry(value).map(drop),
        COMPRESS => compress(value).map(drop),
        PIN => pin(value).map(drop),
        CONSISTENCY => consistency(value).map(drop),
        SEAL => Ok(()),
        _ if is_of(name) => Err(Error::new(
            Kind::Invalid,
            format!("{}: unknown", alloc::string::String::from_utf8_lossy(name)),
        )),
        _ => Ok(()),
    }
}

/// Whether an attribute of this name may say something here.
#[must_use]
pub fn is_of(name: &[u8]) -> bool {
    name.starts_with(PREFIX)
}

/// What an inode's own attributes say, or with [`Said::or`] those of all above it too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Said {
    class: Option<Class>,
    geometry: Option<Geometry>,
    compress: Option<Compress>,
    pin: Option<Pin>,
    seal_on_close: Option<bool>,
    consistency: Option<Consistency>,
}

impl Said {
    /// By the attributes of `ino` alone.
    ///
    /// # Errors
    /// `Io` when the tables cannot be read.
    pub fn of<T: Tables>(tables: &T, ino: Ino) -> Result<Self> {
        let said = |name| read::own_xattr(tables, ino, name);
        Ok(Self {
            class: said(DURABILITY)?.map(|v| class(&v)).transpose()?,
            geometry: said(EC)?.map(|v| geometry(&v)).transpose()?,
            compress: said(COMPRESS)?.map(|v| compress(&v)).transpose()?,
            pin: said(PIN)?.map(|v| pin(&v)).transpose()?,
            // A file's own 0 stands against its directory's word.
            seal_on_close: said(SEAL)?.map(|v| v == ON_CLOSE),
            consistency: said(CONSISTENCY)?.map(|v| consistency(&v)).transpose()?,
        })
    }

    /// The same, and for the rest what those `above` say.
    #[must_use]
    pub fn or(self, above: Self) -> Self {
        Self {
            class: self.class.or(above.class),
            geometry: self.geometry.or(above.geometry),
            compress: self.compress.or(above.compress),
            pin: self.pin.or(above.pin),
            seal_on_close: self.seal_on_close.or(above.seal_on_close),
            consistency: self.consistency.or(above.consistency),
        }
    }

    /// Whether nothing is left for those above to say.
    #[must_use]
    pub const fn is_all(&self) -> bool {
        self.class.is_some()
            && self.geometry.is_some()
            && self.compress.is_some()
            && self.pin.is_some()
            && self.seal_on_close.is_some()
            && self.consistency.is_some()
    }

    /// What follows from it.
    ///
    /// # Errors
    /// `Invalid`; never for attributes that [`check`] let in.
    pub fn policy(self) -> Result<Policy> {
        let class = self.class.unwrap_or_default();
        let geometry = self.geometry.unwrap_or(Geometry::DEFAULT);
        let geometry = match class {
            Class::Scratch => Geometry::new(u8::try_from(geometry.k()).unwrap_or(1), 0)?,
            Class::Disk | Class::Memory => geometry,
        };
        // Nothing of class disk is in memory.
        let pin = self.pin.filter(|_| class != Class::Disk).unwrap_or_default();
        Ok(Policy { class, geometry, compress: self.compress.unwrap_or_default(), pin })
    }

    /// How the inode is shared.
    #[must_use]
    pub fn sharing(self) -> Sharing {
        Sharing {
            seal_on_close: self.seal_on_close.unwrap_or_default(),
            consistency: self.consistency.unwrap_or_default(),
        }
    }
}

/// What the attributes of `ino` say, and for the rest those of its nearest ancestors.
///
/// # Errors
/// `Io` when the tables cannot be read.
pub fn said<T: Tables>(tables: &T, ino: Ino) -> Result<Said> {
    let (mut said, mut at) = (Said::of(tables, ino)?, ino);
    for _ in 0..DEPTH_MAX {
        if at == ROOT || said.is_all() {
            break;
        }
        let Some(up) = above(tables, at)? else { break };
        at = up;
        said = said.or(Said::of(tables, at)?);
    }
    Ok(said)
}

/// From which directory `ino` inherits: one that holds a name of it, or the one it was made in without a name.
fn above<T: Tables>(tables: &T, ino: Ino) -> Result<Option<Ino>> {
    match read::any_parent(tables, ino)? {
        None => read::made_in(tables, ino),
        found => Ok(found),
    }
}

/// What new stripes of `ino` are written with.
///
/// # Errors
/// As [`said`].
pub fn of<T: Tables>(tables: &T, ino: Ino) -> Result<Policy> {
    said(tables, ino)?.policy()
}

/// How `ino` is shared.
///
/// # Errors
/// As [`said`].
pub fn sharing<T: Tables>(tables: &T, ino: Ino) -> Result<Sharing> {
    Ok(said(tables, ino)?.sharing())
}
