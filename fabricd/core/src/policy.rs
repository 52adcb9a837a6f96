//! The `user.kos.*` extended attributes: what they may say, and what is in force for an inode.

use alloc::format;

use kos_types::{Class, Compress, Error, Geometry, Ino, Kind, Pin, Policy, ROOT, Result};

use crate::{Tables, read};

/// The attribute that names the durability class.
pub const DURABILITY: &[u8] = b"user.kos.durability";
/// The attribute that names the geometry.
pub const EC: &[u8] = b"user.kos.ec";
/// The attribute that names the compression.
pub const COMPRESS: &[u8] = b"user.kos.compress";
/// The attribute that keeps bytes in memory.
pub const PIN: &[u8] = b"user.kos.pin";
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

/// # Errors
/// `Invalid` for an unknown `user.kos.` name or a bad value of a known one.
pub fn check(name: &[u8], value: &[u8]) -> Result<()> {
    match name {
        DURABILITY => class(value).map(drop),
        EC => geometry(value).map(drop),
        COMPRESS => compress(value).map(drop),
        PIN => pin(value).map(drop),
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
        }
    }

    /// Whether nothing is left for those above to say.
    #[must_use]
    pub const fn is_all(&self) -> bool {
        self.class.is_some() && self.geometry.is_some() && self.compress.is_some() && self.pin.is_some()
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
}

/// What new stripes of `ino` are written with: its own attributes, else its nearest ancestor's.
///
/// # Errors
/// `Io` when the tables cannot be read.
pub fn of<T: Tables>(tables: &T, ino: Ino) -> Result<Policy> {
    let (mut said, mut at) = (Said::of(tables, ino)?, ino);
    for _ in 0..DEPTH_MAX {
        if at == ROOT || said.is_all() {
            break;
        }
        let Some(up) = read::any_parent(tables, at)? else { break };
        at = up;
        said = said.or(Said::of(tables, at)?);
    }
    said.policy()
}
