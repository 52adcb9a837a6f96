//! Frames: two lengths, a message, and bytes that are not looked at. An open file may go with the first of them.

use std::io::{self, ErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

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
/// end closed between frames. The first byte may take as long as the socket's timeout. Files that come with
/// it are closed by the kernel.
pub(crate) fn receive(stream: &UnixStream, message: &mut Vec<u8>) -> io::Result<Option<Header>> {
    let mut first = stream;
    receive_by(|bytes| first.read(bytes), stream, message)
}

/// The same, with the file that comes with it, if one does.
pub(crate) fn receive_file(
    stream: &UnixStream,
    message: &mut Vec<u8>,
    file: &mut Option<OwnedFd>,
) -> io::Result<Option<Header>> {
    receive_by(|bytes| read_file(stream, bytes, file), stream, message)
}

/// Read what there is, and a file that comes with it; further ones are closed.
fn read_file(stream: &UnixStream, out: &mut [u8], file: &mut Option<OwnedFd>) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let read = recvmsg(stream, &mut [IoSliceMut::new(out)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(files) = part {
            *file = files.last();
        }
    }
    Ok(read.bytes)
}

/// `read_first` reads the first bytes.
fn receive_by(
    mut read_first: impl FnMut(&mut [u8]) -> io::Result<usize>,
    stream: &UnixStream,
    message: &mut Vec<u8>,
) -> io::Result<Option<Header>> {
    let mut bytes = [0; HEADER_BYTES];
    let first = loop {
        match read_first(&mut bytes) {
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
pub(crate) fn send(stream: &UnixStream, message: &[u8], data: &[u8]) -> io::Result<()> {
    send_file(stream, message, data, None)
}

/// The same, with a file.
pub(crate) fn send_file(
    mut stream: &UnixStream,
    message: &[u8],
    data: &[u8],
    mut file: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
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
        let written = match file {
            Some(file) => write_file(stream, rest, file),
            None => stream.write_vectored(rest),
        };
        match written {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(count) => {
                file = None;
                IoSlice::advance_slices(&mut rest, count);
            }
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Write what fits, and a file with the first byte.
fn write_file(stream: &UnixStream, parts: &[IoSlice<'_>], file: BorrowedFd<'_>) -> io::Result<usize> {
    let files = [file];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(&files)) {
        return Err(io::Error::other("frame: no space for a file"));
    }
    Ok(sendmsg(stream, parts, &mut control, SendFlags::NOSIGNAL)?)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;

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

    fn open_files() -> usize {
        std::fs::read_dir("/proc/self/fd").expect("descriptors").count()
    }

    #[test]
    fn a_file_goes_with_its_frame_and_others_are_closed() {
        let (a, b) = pair();
        let mut sent = tempfile::tempfile().expect("a file");
        sent.write_all(b"bytes of the file").expect("writes");
        let mut message = Vec::new();
        // One after the other: which frame a file belongs to is not mixed up.
        send(&a, b"without", b"").expect("sends");
        send_file(&a, b"with", b"data", Some(sent.as_fd())).expect("sends");
        send(&a, b"without", b"").expect("sends");
        for (expected, has_file) in [(&b"without"[..], false), (b"with", true), (b"without", false)] {
            let mut file = None;
            let header = receive_file(&b, &mut message, &mut file).expect("receives").expect("a frame");
            fill(&b, &mut vec![0; header.data], Instant::now() + FRAME_DEADLINE).expect("data");
            assert_eq!((message.as_slice(), file.is_some()), (expected, has_file));
            if let Some(file) = file {
                let mut found = [0; 17];
                std::os::unix::fs::FileExt::read_exact_at(&File::from(file), &mut found, 0).expect("reads");
                assert_eq!(&found, b"bytes of the file");
            }
        }
        let before = open_files();
        // More than one file, and files that nobody asked for: none stays.
        for _ in 0..100 {
            let files = [sent.as_fd(); 9];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(9))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            assert!(control.push(SendAncillaryMessage::ScmRights(&files)));
            let frame = [IoSlice::new(&[0; HEADER_BYTES])];
            sendmsg(&a, &frame, &mut control, SendFlags::empty()).expect("sends");
            receive_file(&b, &mut message, &mut None).expect("receives").expect("a frame");
            send_file(&a, b"", b"", Some(sent.as_fd())).expect("sends");
            receive(&b, &mut message).expect("receives").expect("a frame");
        }
        // Tests beside this one open some too.
        assert!(open_files() < before + 90, "{} and {before}", open_files());
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
