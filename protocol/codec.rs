//! The one place that names bincode: bytes of a message, with a limit.
//!
//! bincode is pinned at 2.0.1 (its successor is a tombstone); whoever replaces it edits this file.

use bincode::config;

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

/// Most bytes that one decoded message may take.
pub const MAX_MESSAGE_BYTES: usize = 16 << 20;

/// The bytes of `value`.
pub fn encode<T: bincode::Encode>(value: &T) -> Vec<u8> {
    bincode::encode_to_vec(value, config::standard())
        .expect("messages hold plain data, which always encodes")
}

/// The value whose bytes are all of `bytes`.
///
/// # Errors
/// When the bytes are anything else, or would take more than [`MAX_MESSAGE_BYTES`].
pub fn decode<T: bincode::Decode<()>>(bytes: &[u8]) -> Result<T, CodecError> {
    let limited = config::standard().with_limit::<MAX_MESSAGE_BYTES>();
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

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            let _ = decode::<Batch>(&bytes);
            let _ = decode::<StagePlan>(&bytes);
            let _ = decode::<StageEcho>(&bytes);
        }
    }
}
