//! Compressed chunks: any bytes are an error or as many as were asked for; what was compressed comes back.

use kos_code::compress::{self, Layout};
use kos_types::{Error, Kind, Result};

use crate::input::Input;

fn read(coded: &[u8], layout: &Layout, at: usize, len: usize) -> Result<Vec<u8>> {
    let mut out = vec![0; len];
    layout.read(at, &mut out, |from, part| {
        let bytes = coded.get(from..from + part.len());
        part.copy_from_slice(bytes.ok_or_else(|| Error::new(Kind::Io, "beyond the coded bytes"))?);
        Ok(())
    })?;
    Ok(out)
}

pub(crate) fn run(data: &[u8]) {
    let mut input = Input(data);
    let (user_len, count) = (input.u64() as usize % (8 << 20), input.u8());
    let chunks = (0..count % 5).map(|_| input.u64() as u32 % (80 << 10)).collect();
    let layout = Layout { user_len, chunks };
    if layout.is_possible() {
        let at = input.u64() as usize % (user_len + 10);
        let _ = read(input.0, &layout, at, user_len.saturating_sub(at).min(100_000));
    }
    let data = input.0.repeat(1 + user_len % 300);
    if let Some((coded, layout)) = compress::compress(&data) {
        assert!(coded.len() < data.len() && layout.is_possible() && layout.coded_len() == coded.len());
        let at = user_len % data.len();
        assert!(read(&coded, &layout, at, data.len() - at).expect("just compressed") == data[at..]);
        assert!(read(&coded, &layout, at, data.len() - at + 1).is_err(), "beyond the end");
    }
}
