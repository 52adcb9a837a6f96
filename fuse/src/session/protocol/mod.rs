//! The kernel's FUSE protocol, 7.31 to 7.45, as bytes: requests are decoded and answers encoded.
//! It does no I/O and knows no filesystem; what it is given may be any bytes.
//!
//! Integers are in the machine's byte order, as the kernel puts them. Only std is used, and nothing outside of this
//! folder: the fuzzer builds it alone.
#![allow(dead_code, unused_imports, reason = "it is the whole protocol, whatever a session needs of it")]

mod cursor;
mod decode;
mod extension;
pub(crate) mod init;
pub(crate) mod listing;
pub(crate) mod notify;
mod operation;
pub(crate) mod reply;
mod request;
pub(crate) mod ring;
mod small;
#[cfg(test)]
mod tests;

pub(crate) use self::cursor::{Fault, Malformed};
pub(crate) use self::decode::decode;
pub(crate) use self::init::{Agreed, InitIn, Refused, Wanted, agree, flag};
pub(crate) use self::listing::{Listing, Name};
pub(crate) use self::operation::{Forgets, Lock, Operation, Setattr, TimeSet};
pub(crate) use self::reply::{Attr, OUT_HEADER_BYTES, OutHeader};
pub(crate) use self::request::{HEADER_BYTES, Header, UNIQUE_RESEND, args_bytes, opcode, split};
pub(crate) use self::small::Small;
