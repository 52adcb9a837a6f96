//! Messages of the socket: what decodes is the same when encoded and decoded again, and no length
//! in it is believed before its bytes are there.

use kos_rpc::DECODERS;

pub(crate) fn run(data: &[u8]) {
    let Some((which, bytes)) = data.split_first() else { return };
    let decode = DECODERS[usize::from(*which) % DECODERS.len()];
    if let Ok(again) = decode(bytes) {
        assert_eq!(decode(&again).as_ref(), Ok(&again));
    }
}
