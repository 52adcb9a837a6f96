//! What each end says before anything else: the protocol's version, and which build's messages it speaks. The first
//! line is the same for ever, so that any two builds understand why they do not understand each other.

use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use crate::frame;

/// The protocol and its version. Raised when this greeting changes; everything after it is what [`FORMAT`] counts.
const MAGIC: [u8; 8] = *b"kosfs/2\n";
/// A number of the sources of all messages, in 16 hexadecimal digits.
const FORMAT: &str = env!("KOS_RPC_FORMAT");
const FORMAT_BYTES: usize = 16;
const _: () = assert!(FORMAT.len() == FORMAT_BYTES);

/// How the other end greets.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Greeting {
    /// As this one does.
    Same,
    /// In another way, which is to be told to people.
    Other(String),
}

/// Say it.
pub(crate) fn send(mut stream: &UnixStream) -> io::Result<()> {
    stream.write_all(&[&MAGIC[..], FORMAT.as_bytes(), b"\n"].concat())
}

/// Hear what the other end says.
pub(crate) fn receive(stream: &UnixStream, until: Instant) -> io::Result<Greeting> {
    let mut magic = [0; MAGIC.len()];
    frame::fill(stream, &mut magic, until)?;
    if magic != MAGIC {
        return Ok(compare(&magic, &[]));
    }
    let mut format = [0; FORMAT_BYTES + 1];
    frame::fill(stream, &mut format, until)?;
    Ok(compare(&magic, &format))
}

fn compare(magic: &[u8], format: &[u8]) -> Greeting {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
    let (magic, own) = (text(magic), text(&MAGIC));
    if magic != own {
        return Greeting::Other(format!("it speaks {magic:?}, this program {own}"));
    }
    let format = text(format);
    if format != FORMAT {
        return Greeting::Other(format!(
            "it is of another build: its format is {format:?}, here it is {FORMAT}"
        ));
    }
    Greeting::Same
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_version_and_another_build_are_told_apart() {
        let own = format!("{FORMAT}\n");
        assert_eq!(compare(&MAGIC, own.as_bytes()), Greeting::Same);
        for (magic, format, word) in [
            (&b"kosfs/1\n"[..], own.as_bytes(), "kosfs/1"),
            (b"GET / HT", b"", "GET / HT"),
            (&MAGIC, b"0123456789abcdef\n", "0123456789abcdef"),
            (&MAGIC, &[255; 17], "another build"),
        ] {
            let Greeting::Other(why) = compare(magic, format) else { panic!("{magic:?} {format:?}") };
            assert!(why.contains(word), "{why}");
        }
    }
}
