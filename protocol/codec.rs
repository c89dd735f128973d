//! The one place that names bincode: bytes of a message, with a limit.
//!
//! bincode is pinned at 2.0.1 (its successor is a tombstone); whoever replaces it edits this file.

use bincode::de::{Decoder, read::Reader};
use bincode::error::DecodeError;
use bincode::{Decode, Encode, config};

/// Why bytes are not the message that was expected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// The bytes end early, hold an unknown variant, or ask for more than the limit.
    #[error("malformed message: {0}")]
    Malformed(String),
    /// Something follows the message.
    #[error("{0} bytes follow the end of the message")]
    Trailing(usize),
}

/// Bytes that a value may take in memory for each byte that arrived; how many may arrive has a
/// limit of its own (`transport.max_frame_bytes`), so this is no other limit on what can be said.
const MAX_EXPANSION: usize = 32;

/// What messages up to a size may take. The library wants to know such limits when it is compiled.
const SMALL: usize = 16 << 20;
const MEDIUM: usize = SMALL << 4;
const LARGE: usize = MEDIUM << 7;

/// The bytes of `value`.
pub fn encode<T: Encode>(value: &T) -> Vec<u8> {
    bincode::encode_to_vec(value, config::standard())
        .expect("messages hold plain data, which always encodes")
}

/// The value whose bytes are all of `bytes`.
///
/// # Errors
/// When the bytes are anything else, or ask for far more memory than they could fill.
pub fn decode<T: Decode<()>>(bytes: &[u8]) -> Result<T, CodecError> {
    let most = bytes.len().saturating_mul(MAX_EXPANSION);
    if most <= SMALL {
        decode_within::<T, SMALL>(bytes)
    } else if most <= MEDIUM {
        decode_within::<T, MEDIUM>(bytes)
    } else {
        decode_within::<T, LARGE>(bytes)
    }
}

/// A last field, or several, that an older version doesn't write: without them the message ends
/// here, and they are what they are by default.
pub(crate) fn added<T: Decode<()> + Default, D: Decoder<Context = ()>>(
    decoder: &mut D,
) -> Result<T, DecodeError> {
    match decoder.reader().peek_read(1) {
        None => Ok(T::default()),
        Some(_) => T::decode(decoder),
    }
}

fn decode_within<T: Decode<()>, const MAX_BYTES: usize>(bytes: &[u8]) -> Result<T, CodecError> {
    let limited = config::standard().with_limit::<MAX_BYTES>();
    let (value, used) = bincode::decode_from_slice(bytes, limited)
        .map_err(|cause| CodecError::Malformed(cause.to_string()))?;
    if used < bytes.len() {
        return Err(CodecError::Trailing(bytes.len() - used));
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Batch, StageEcho, StagePlan};
    use proptest::prelude::*;

    #[test]
    fn what_follows_a_message_is_refused() {
        let mut bytes = encode(&7u32);
        bytes.push(0);
        assert_eq!(decode::<u32>(&bytes), Err(CodecError::Trailing(1)));
    }

    #[test]
    fn a_length_beyond_the_limit_takes_no_memory() {
        let mut bytes = encode(&(1u64 << 40));
        bytes.extend([0; 8]);
        assert!(decode::<Vec<u64>>(&bytes).is_err());
    }

    /// What the largest batches take is limited by the size of frames, which has a name, alone.
    #[test]
    fn a_large_message_may_take_what_it_fills() {
        let values = vec![u64::MAX; 3 << 20];
        assert_eq!(decode::<Vec<u64>>(&encode(&values)).unwrap().len(), values.len());
        let mut claims_more = encode(&(1u64 << 28));
        claims_more.extend(vec![0; 1 << 20]);
        assert!(decode::<Vec<u64>>(&claims_more).is_err());
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            let _ = decode::<Batch>(&bytes);
            let _ = decode::<StagePlan>(&bytes);
            let _ = decode::<StageEcho>(&bytes);
        }
    }
}
