//! How the bytes of a file are kept: durability class and erasure-code geometry.

use std::fmt;

use crate::{Error, Kind, Result};

/// What an acked write survives; docs/SEMANTICS.md has the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Class {
    /// On stable storage of all shards' places before the commit.
    #[default]
    Disk,
    /// In named memory of all shards' places: survives kill -9, not a reboot.
    Memory,
    /// Memory without parity.
    Scratch,
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Disk => "disk",
            Self::Memory => "memory",
            Self::Scratch => "scratch",
        })
    }
}

/// `k` data shards and `m` parity shards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(try_from = "(u8, u8)", into = "(u8, u8)"))]
pub struct Geometry {
    k: u8,
    m: u8,
}

impl Geometry {
    /// 4+2.
    pub const DEFAULT: Self = Self { k: 4, m: 2 };

    /// # Errors
    /// `Invalid` unless 1 <= k <= 16 and m <= 4.
    pub fn new(k: u8, m: u8) -> Result<Self> {
        if (1..=16).contains(&k) && m <= 4 {
            Ok(Self { k, m })
        } else {
            Err(Error::new(Kind::Invalid, "geometry: 1 <= k <= 16 and 0 <= m <= 4"))
        }
    }

    /// Data shards.
    #[must_use]
    pub const fn k(self) -> usize {
        self.k as usize
    }

    /// Parity shards.
    #[must_use]
    pub const fn m(self) -> usize {
        self.m as usize
    }

    /// All shards.
    #[must_use]
    pub const fn n(self) -> usize {
        self.k as usize + self.m as usize
    }
}

impl TryFrom<(u8, u8)> for Geometry {
    type Error = Error;

    fn try_from((k, m): (u8, u8)) -> Result<Self> {
        Self::new(k, m)
    }
}

impl From<Geometry> for (u8, u8) {
    fn from(geometry: Geometry) -> Self {
        (geometry.k, geometry.m)
    }
}

impl fmt::Display for Geometry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}", self.k, self.m)
    }
}

/// Whether user bytes are compressed before they are coded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Compress {
    /// With LZ4 where a sample looks as if it paid.
    #[default]
    Auto,
    /// With LZ4 wherever it saves space.
    Lz4,
    /// Never.
    None,
}

impl fmt::Display for Compress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Lz4 => "lz4",
            Self::None => "none",
        })
    }
}

/// Whether bytes may leave memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Pin {
    /// When memory is short.
    #[default]
    None,
    /// Not while the node runs.
    Ram,
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Ram => "ram",
        })
    }
}

/// What a mount may keep of a file while other mounts are about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Consistency {
    /// Every call sees what calls in other mounts have done.
    #[default]
    Strong,
    /// Open and lock see what close, fsync and unlock in other mounts have written.
    Release,
    /// Others' changes are seen within a second or so.
    Eventual,
}

impl fmt::Display for Consistency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Strong => "strong",
            Self::Release => "release",
            Self::Eventual => "eventual",
        })
    }
}

/// How an inode is shared by its users.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Sharing {
    /// A file is sealed when the last of its writers closes it.
    pub seal_on_close: bool,
    /// What mounts may keep of it.
    pub consistency: Consistency,
}

/// What new stripes of an inode are written with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Policy {
    /// Durability class.
    pub class: Class,
    /// Geometry; m is 0 for scratch.
    pub geometry: Geometry,
    /// Compression.
    pub compress: Compress,
    /// Pinning; `None` for class disk.
    pub pin: Pin,
}

impl Default for Policy {
    fn default() -> Self {
        Self { class: Class::Disk, geometry: Geometry::DEFAULT, compress: Compress::Auto, pin: Pin::None }
    }
}
