//! The kernel's FUSE protocol, 7.31 to 7.45, as bytes: requests are decoded and answers encoded.
//! It does no I/O and knows no filesystem; what it is given may be any bytes.
//!
//! Integers are in the machine's byte order, as the kernel puts them.

mod cursor;
mod decode;
mod extension;
pub mod init;
pub mod listing;
pub mod notify;
mod operation;
pub mod reply;
mod request;
pub mod ring;
mod small;
#[cfg(test)]
mod tests;

pub use self::cursor::{Fault, Malformed};
pub use self::decode::decode;
pub use self::init::{Agreed, InitIn, Refused, Wanted, agree, flag};
pub use self::listing::{Listing, Name};
pub use self::operation::{Forgets, Lock, Operation, Setattr, TimeSet};
pub use self::reply::{Attr, OUT_HEADER_BYTES, OutHeader};
pub use self::request::{HEADER_BYTES, Header, UNIQUE_RESEND, args_bytes, opcode, split};
pub use self::small::Small;
