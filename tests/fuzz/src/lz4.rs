//! lz4 blocks: any bytes are an error or at most as long as was asked; what was compressed comes back.

use kos_code::compress;

use crate::input::Input;

pub(crate) fn run(data: &[u8]) {
    let mut input = Input(data);
    let user_len = input.u64() as usize % (8 << 20);
    if let Ok(out) = compress::decompress(input.0, user_len) {
        assert_eq!(out.len(), user_len);
    }
    let data = input.0.repeat(1 + user_len % 300);
    if let Some(packed) = compress::compress(&data) {
        assert!(packed.len() < data.len());
        assert!(compress::decompress(&packed, data.len()).expect("just compressed") == data);
        assert!(compress::decompress(&packed, data.len() + 1).is_err(), "another length");
    }
}
