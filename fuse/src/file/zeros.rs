//! Whether a range is all zeros, so that it can be kept as a hole.

/// Bytes folded at once: a few vector registers, so that the loop vectorises and still stops
/// early at the first byte that is not zero.
const LANE: usize = 128;

/// Whether every byte is zero; true for no bytes.
pub(crate) fn is_zero(data: &[u8]) -> bool {
    let (lanes, rest) = data.as_chunks::<LANE>();
    lanes.iter().all(|lane| folded(lane) == 0) && folded(rest) == 0
}

/// All bytes or-ed, without a branch per byte.
fn folded(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |all, byte| all | byte)
}

#[cfg(test)]
mod tests {
    use super::is_zero;

    #[test]
    fn zeros_of_any_length_are_zero() {
        for len in [0, 1, 127, 128, 129, 4095, 4096, 4097] {
            assert!(is_zero(&vec![0; len]), "{len}");
        }
    }

    #[test]
    fn one_set_bit_anywhere_is_found() {
        let mut data = vec![0; 4096 + 77];
        for at in 0..data.len() {
            data[at] = 1 << (at % 8);
            assert!(!is_zero(&data), "{at}");
            data[at] = 0;
        }
    }
}
