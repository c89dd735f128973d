//! Headers of safetensors files: eight bytes of length, JSON, data
//! (<https://github.com/huggingface/safetensors#format>).

use std::collections::HashMap;

use safetensors::Dtype;
use safetensors::tensor::Metadata;

use crate::dtype::DType;
use crate::error::CheckpointError;
use crate::mapped::Mapped;
use crate::tensors::Stored;

/// A header of the largest published model has about 6 MB.
const MAX_HEADER_BYTES: u64 = 64 << 20;
const MAX_TENSORS: usize = 100_000;

/// Finds the tensors of a file, which is number `file` of its checkpoint.
pub(crate) fn read(
    mapped: &Mapped,
    file: usize,
) -> Result<HashMap<String, Stored>, CheckpointError> {
    let bytes = mapped.bytes();
    parse(bytes, file)
        .map_err(|problem| CheckpointError::Malformed { path: mapped.path.clone(), problem })
}

/// Our own bounds around the crate's parser: `SafeTensors::read_metadata` adds the header's length
/// to those of all tensors without a check, and claims that sum up to nearly 2⁶⁴ end it with a
/// panic.
fn parse(bytes: &[u8], file: usize) -> Result<HashMap<String, Stored>, String> {
    let Some((length, rest)) = bytes.split_first_chunk() else {
        return Err(format!(
            "the file has {} bytes, a safetensors file has at least 10",
            bytes.len()
        ));
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER_BYTES {
        return Err(format!("the header claims {length} bytes, at most {MAX_HEADER_BYTES} fit"));
    }
    let length = length as usize;
    let Some((header, data)) = rest.split_at_checked(length) else {
        return Err(format!(
            "the header claims {length} bytes, the file ends {} bytes after its start",
            rest.len()
        ));
    };
    let metadata: Metadata = serde_json::from_slice(header)
        .map_err(|error| format!("the header is no safetensors header: {error}"))?;
    // The parser has checked that the tensors follow each other without gap or overlap and that
    // each one's length is that of its shape and type.
    if metadata.data_len() != data.len() {
        return Err(format!(
            "the header describes {} bytes of tensors, the file has {}: it is truncated or damaged",
            metadata.data_len(),
            data.len()
        ));
    }
    let tensors = metadata.tensors();
    if tensors.len() > MAX_TENSORS {
        return Err(format!("the file has {} tensors, at most {MAX_TENSORS} fit", tensors.len()));
    }
    let stored = tensors.into_iter().map(|(name, info)| {
        let (start, end) = info.data_offsets;
        let stored = Stored {
            file,
            dtype: dtype(info.dtype),
            shape: info.shape.clone(),
            start: 8 + length + start,
            len: end - start,
        };
        (name, stored)
    });
    Ok(stored.collect())
}

fn dtype(dtype: Dtype) -> Result<DType, String> {
    match dtype {
        Dtype::F32 => Ok(DType::F32),
        Dtype::F16 => Ok(DType::F16),
        Dtype::BF16 => Ok(DType::BF16),
        Dtype::F8_E4M3 => Ok(DType::F8_E4M3),
        other => Err(format!("{other:?}")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn file(header: &str, data: usize) -> Vec<u8> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.extend(std::iter::repeat_n(7, data));
        bytes
    }

    const TWO: &str = r#"{"__metadata__":{"format":"pt"},
        "a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},
        "b":{"dtype":"BF16","shape":[4],"data_offsets":[24,32]}}"#;

    #[test]
    fn a_good_file() {
        let tensors = parse(&file(TWO, 32), 3).unwrap();
        let a = &tensors["a"];
        assert_eq!((a.file, &a.dtype, &a.shape[..]), (3, &Ok(DType::F32), &[2, 3][..]));
        assert_eq!((a.start, a.len), (8 + TWO.len(), 24));
        assert_eq!((tensors["b"].start, tensors["b"].len), (8 + TWO.len() + 24, 8));
    }

    #[test]
    fn other_types_are_kept_by_name() {
        let header = r#"{"a":{"dtype":"F8_E5M2","shape":[2],"data_offsets":[0,2]}}"#;
        assert_eq!(parse(&file(header, 2), 0).unwrap()["a"].dtype, Err("F8_E5M2".to_owned()));
    }

    #[test]
    fn lies_are_refused_with_a_sentence() {
        let one = |fields: &str| file(&format!("{{\"a\":{{{fields}}}}}"), 8);
        let mut huge = u64::MAX.to_le_bytes().to_vec();
        huge.extend([b'{'; 9]);
        // Eight tensors that end just where adding the header's length overflows.
        let claims = (0..8u64).map(|n| {
            let len = (1u64 << 61) - 1;
            let (start, end) = (n * len, (n + 1) * len);
            format!(
                "\"{n}\":{{\"dtype\":\"U8\",\"shape\":[{len}],\"data_offsets\":[{start},{end}]}}"
            )
        });
        let eight = format!("{{{}}}", claims.collect::<Vec<_>>().join(","));
        let cases = [
            (vec![], "the file has 0 bytes"),
            (vec![1, 0, 0], "the file has 3 bytes"),
            (huge, "the header claims 18446744073709551615 bytes, at most"),
            (file(TWO, 32)[..60].to_vec(), "the file ends 52 bytes after its start"),
            (file(TWO, 31), "describes 32 bytes of tensors, the file has 31"),
            (file(TWO, 33), "describes 32 bytes of tensors, the file has 33"),
            (file("[]", 0), "no safetensors header"),
            (file("{\"a\":1}", 0), "no safetensors header"),
            (file(&"[".repeat(100_000), 0), "no safetensors header"),
            (one(r#""dtype":"F32","shape":[2],"data_offsets":[8,0]"#), "no safetensors header"),
            (one(r#""dtype":"F32","shape":[3],"data_offsets":[0,8]"#), "no safetensors header"),
            (one(r#""dtype":"F32","shape":[-1],"data_offsets":[0,8]"#), "no safetensors header"),
            (one(r#""dtype":"NEW","shape":[2],"data_offsets":[0,8]"#), "no safetensors header"),
            (
                one(r#""dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,8]"#),
                "no safetensors header",
            ),
            (file(&eight, 8), "describes 18446744073709551608 bytes of tensors, the file has 8"),
            (
                file(
                    r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},
                        "b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}"#,
                    12,
                ),
                "no safetensors header",
            ),
        ];
        for (bytes, expected) in cases {
            let problem = parse(&bytes, 0).unwrap_err();
            assert!(problem.contains(expected), "{problem} / {expected}");
        }
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes, 0);
        }

        #[test]
        fn changed_headers_never_panic(
            changes in proptest::collection::vec((8usize..300, 0x20u8..0x7f), 1..5),
            cut in 0usize..400,
        ) {
            let mut bytes = file(TWO, 32);
            for (at, byte) in changes {
                let at = at % bytes.len();
                bytes[at] = byte;
            }
            bytes.truncate(cut);
            for tensor in parse(&bytes, 0).iter().flatten() {
                prop_assert!(tensor.1.start + tensor.1.len <= bytes.len());
            }
        }
    }
}
