//! Frames: two lengths, a message, and bytes that are not looked at.

use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use crate::limits::{DATA_BYTES_MAX, FRAME_DEADLINE, MESSAGE_BYTES_MAX};

const HEADER_BYTES: usize = 8;
/// A message is believed to be long only as its bytes come in.
const GROWTH_BYTES: usize = 64 << 10;

/// The lengths of what follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    message: usize,
    pub(crate) data: usize,
}

impl Header {
    fn parse(bytes: [u8; HEADER_BYTES]) -> io::Result<Self> {
        let [a, b, c, d, e, f, g, h] = bytes;
        let message = u32::from_le_bytes([a, b, c, d]) as usize;
        let data = u32::from_le_bytes([e, f, g, h]) as usize;
        if message > MESSAGE_BYTES_MAX || data > DATA_BYTES_MAX {
            return Err(io::Error::new(ErrorKind::InvalidData, "frame: too long"));
        }
        Ok(Self { message, data })
    }
}

/// Fill `out`; what takes too long is an error.
pub(crate) fn fill(mut stream: &UnixStream, mut out: &mut [u8], until: Instant) -> io::Result<()> {
    while !out.is_empty() {
        match stream.read(out) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(count) => out = &mut out[count..],
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
        if !out.is_empty() && Instant::now() > until {
            return Err(ErrorKind::TimedOut.into());
        }
    }
    Ok(())
}

/// Whether a read or write gave up waiting.
pub(crate) fn is_late(e: &io::Error) -> bool {
    matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

/// The next frame's message into `message`; its data is still to be read. `None` when the other
/// end closed between frames. The first byte may take as long as the socket's timeout.
pub(crate) fn receive(mut stream: &UnixStream, message: &mut Vec<u8>) -> io::Result<Option<Header>> {
    let mut bytes = [0; HEADER_BYTES];
    let first = loop {
        match stream.read(&mut bytes) {
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            other => break other?,
        }
    };
    if first == 0 {
        return Ok(None);
    }
    let until = Instant::now() + FRAME_DEADLINE;
    let cut = |e: io::Error| {
        if is_late(&e) { io::Error::new(ErrorKind::InvalidData, "frame: cut short") } else { e }
    };
    fill(stream, &mut bytes[first..], until).map_err(cut)?;
    let header = Header::parse(bytes)?;
    message.clear();
    while message.len() < header.message {
        let have = message.len();
        message.resize(header.message.min(have + GROWTH_BYTES), 0);
        fill(stream, &mut message[have..], until).map_err(cut)?;
    }
    Ok(Some(header))
}

/// Send one frame. After an error it did not arrive whole, so nobody has acted on it.
pub(crate) fn send(mut stream: &UnixStream, message: &[u8], data: &[u8]) -> io::Result<()> {
    if message.len() > MESSAGE_BYTES_MAX || data.len() > DATA_BYTES_MAX {
        return Err(io::Error::new(ErrorKind::InvalidInput, "frame: too long"));
    }
    let until = Instant::now() + FRAME_DEADLINE;
    let mut header = [0; HEADER_BYTES];
    // Both are below 2^32, as checked.
    header[..4].copy_from_slice(&(message.len() as u32).to_le_bytes());
    header[4..].copy_from_slice(&(data.len() as u32).to_le_bytes());
    let mut parts = [IoSlice::new(&header), IoSlice::new(message), IoSlice::new(data)];
    let mut rest = &mut parts[..];
    while rest.iter().any(|part| !part.is_empty()) {
        // Before each write, so that a frame that went out whole is never an error.
        if Instant::now() > until {
            return Err(ErrorKind::TimedOut.into());
        }
        match stream.write_vectored(rest) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(count) => IoSlice::advance_slices(&mut rest, count),
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (UnixStream, UnixStream) {
        let (a, b) = UnixStream::pair().expect("sockets");
        for stream in [&a, &b] {
            stream.set_read_timeout(Some(FRAME_DEADLINE)).expect("timeout");
        }
        (a, b)
    }

    #[test]
    fn frames_arrive_as_they_were_sent() {
        let (a, b) = pair();
        let data = vec![7; DATA_BYTES_MAX];
        std::thread::scope(|scope| {
            scope.spawn(|| send(&a, b"message", &data).and_then(|()| send(&a, b"", b"x")).expect("sends"));
            let mut message = Vec::new();
            let header = receive(&b, &mut message).expect("receives").expect("a frame");
            assert_eq!((message.as_slice(), header.data), (&b"message"[..], DATA_BYTES_MAX));
            let mut out = vec![0; header.data];
            fill(&b, &mut out, Instant::now() + FRAME_DEADLINE).expect("data");
            assert!(out == data);
            let header = receive(&b, &mut message).expect("receives").expect("a frame");
            assert_eq!((message.len(), header.data), (0, 1));
        });
    }

    #[test]
    fn long_lengths_short_frames_and_ends_are_told_apart() {
        let mut message = Vec::new();
        for (bytes, whole) in
            [(&b""[..], true), (b"\x01", false), (&[255; 8], false), (&[1, 0, 0, 0, 0, 0, 0, 0], false)]
        {
            let (mut a, b) = pair();
            a.write_all(bytes).expect("writes");
            drop(a);
            let found = receive(&b, &mut message);
            assert_eq!(found.is_ok(), whole, "{bytes:?}: {found:?}");
        }
        let (a, _b) = pair();
        assert!(send(&a, &vec![0; MESSAGE_BYTES_MAX + 1], b"").is_err());
    }
}
