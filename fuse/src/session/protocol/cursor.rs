//! Reading: whatever is missing is an error.

use std::fmt;

/// Bytes that are no request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed {
    /// The part that is wrong.
    pub(crate) part: &'static str,
    /// What is wrong with it.
    pub(crate) fault: Fault,
}

/// What may be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Fewer bytes than it has.
    Short,
    /// A name without the NUL that ends it.
    Unterminated,
    /// A name of no bytes.
    Empty,
    /// Bytes follow that belong to nothing.
    Trailing,
    /// A number that cannot be.
    Range,
}

impl Malformed {
    pub(super) const fn new(part: &'static str, fault: Fault) -> Self {
        Self { part, fault }
    }
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.fault {
            Fault::Short => "too short",
            Fault::Unterminated => "without its end",
            Fault::Empty => "empty",
            Fault::Trailing => "followed by bytes of nothing",
            Fault::Range => "out of range",
        };
        write!(f, "a request of the kernel: the {} is {what}", self.part)
    }
}

impl std::error::Error for Malformed {}

/// What is left of a part.
#[derive(Debug)]
pub(super) struct Cursor<'a> {
    rest: &'a [u8],
    part: &'static str,
}

impl<'a> Cursor<'a> {
    pub(super) const fn new(rest: &'a [u8], part: &'static str) -> Self {
        Self { rest, part }
    }

    const fn fault(&self, fault: Fault) -> Malformed {
        Malformed::new(self.part, fault)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (head, rest) = self.rest.split_first_chunk().ok_or_else(|| self.fault(Fault::Short))?;
        self.rest = rest;
        Ok(*head)
    }

    pub(super) fn u16(&mut self) -> Result<u16, Malformed> {
        self.array().map(u16::from_ne_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_ne_bytes)
    }

    pub(super) fn i32(&mut self) -> Result<i32, Malformed> {
        self.array().map(i32::from_ne_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_ne_bytes)
    }

    pub(super) fn i64(&mut self) -> Result<i64, Malformed> {
        self.array().map(i64::from_ne_bytes)
    }

    /// `N` bytes that mean nothing.
    pub(super) fn skip<const N: usize>(&mut self) -> Result<(), Malformed> {
        self.array::<N>().map(|_| ())
    }

    /// `len` bytes.
    pub(super) fn bytes(&mut self, len: usize) -> Result<&'a [u8], Malformed> {
        let (head, rest) = self.rest.split_at_checked(len).ok_or_else(|| self.fault(Fault::Short))?;
        self.rest = rest;
        Ok(head)
    }

    /// A name, without the NUL that ends it.
    pub(super) fn name(&mut self) -> Result<&'a [u8], Malformed> {
        let name = self.text()?;
        if name.is_empty() { Err(self.fault(Fault::Empty)) } else { Ok(name) }
    }

    /// Bytes up to a NUL, maybe none.
    pub(super) fn text(&mut self) -> Result<&'a [u8], Malformed> {
        let end =
            self.rest.iter().position(|byte| *byte == 0).ok_or_else(|| self.fault(Fault::Unterminated))?;
        let (text, rest) = self.rest.split_at(end);
        self.rest = &rest[1..];
        Ok(text)
    }

    /// All that is left.
    pub(super) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// That nothing is left.
    pub(super) const fn end(&self) -> Result<(), Malformed> {
        if self.is_empty() { Ok(()) } else { Err(self.fault(Fault::Trailing)) }
    }
}
