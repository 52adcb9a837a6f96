//! Shard headers and checksum tables. The fuzzer cannot guess a checksum, so it chooses the fields
//! as well as the bytes.

use kos_code::compress::{self, Layout};
use kos_code::shard::{self, HEADER_BYTES, ShardHeader};
use kos_types::{Geometry, StripeId, limits};

use crate::input::Input;

pub(crate) fn run(data: &[u8]) {
    // Hardly ever one.
    if let Ok(header) = shard::decode_header(data) {
        assert_eq!(shard::encode_header(&header)[..], data[..HEADER_BYTES]);
    }
    let mut input = Input(data);
    let Ok(geometry) = Geometry::new(input.u8(), input.u8()) else { return };
    chosen(&mut input, geometry);
    sealed(&mut input, geometry);
}

/// Whatever the fields of a header with a right checksum are: it is refused, or safe to use.
fn chosen(input: &mut Input<'_>, geometry: Geometry) {
    let user_len = input.u64() as usize;
    let count = user_len.div_ceil(compress::CHUNK_BYTES).min(compress::CHUNKS_MAX);
    let count = if input.u8() & 1 == 0 { 0 } else { count };
    let chunks = (0..count).map(|_| u32::from(input.u8())).collect();
    let header = ShardHeader {
        stripe: StripeId(input.u64()),
        index: input.u8(),
        geometry,
        layout: Layout { user_len, chunks },
        payload_len: input.u64(),
        payload_hash: [input.u8(); 32],
        table_crc: input.u64() as u32,
    };
    let mut block = shard::encode_header(&header);
    if let Ok(decoded) = shard::decode_header(&block) {
        assert_eq!(decoded, header);
        assert!(usize::from(decoded.index) < geometry.n());
        assert!(decoded.layout.user_len <= limits::STRIPE_BYTES_MAX && decoded.payload_len > 0);
        assert!(shard::table_len(decoded.payload_len as usize) <= 2 * limits::STRIPE_BYTES_MAX);
        assert!(shard::decode_table(&decoded, input.0).is_err(), "its checksum is made up");
    }
    let at = input.u64() as usize % HEADER_BYTES;
    block[at] ^= input.u8().max(1);
    assert!(shard::decode_header(&block).is_err(), "a changed byte shows");
}

/// A shard of the fuzzer's bytes: whole it reads, changed it does not.
fn sealed(input: &mut Input<'_>, geometry: Geometry) {
    let (flip, index) = (input.u64() as usize, input.u8());
    let mut payload = input.0.to_vec();
    payload.resize(payload.len().next_multiple_of(limits::BLOCK_BYTES), 0);
    let layout = Layout::plain(payload.len() * geometry.k());
    let Ok((block, table)) = shard::seal(StripeId(1), index, geometry, &layout, &payload) else { return };
    let header = shard::decode_header(&block).expect("just sealed");
    let sums = shard::decode_table(&header, &table).expect("just sealed");
    assert!(shard::verify_whole(&header, &payload) && shard::verify_blocks(&payload, 0, &sums));
    assert!(!shard::verify_blocks(&payload, 1, &sums), "beyond the table");
    let at = flip % payload.len();
    payload[at] ^= 1;
    assert!(!shard::verify_whole(&header, &payload) && !shard::verify_blocks(&payload, 0, &sums));
}
