//! Which tokens may be sampled, where an answer keeps to a grammar: a bit for each token of the
//! vocabulary. Only the last stage looks at masks: where there are others they go straight to it.

use bytes::Bytes;

/// The masks of a step, as they travel. Clones share them.
///
/// ```text
/// 0  4  words of a mask
/// then, for each mask in ascending order of its slice:
/// 0  4  the slice, by its place in the batch
/// 4  .  the mask's words: token 32 i + j is bit j of word i, 1 where it may be sampled
/// ```
/// All numbers are little-endian; without masks there are no bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Masks(Bytes);

const WORD: usize = size_of::<u32>();

impl Masks {
    /// None when the bytes aren't whole masks, each of another slice.
    pub fn new(bytes: Bytes) -> Option<Self> {
        let masks = Self(bytes);
        let is_whole = match masks.split() {
            None => masks.0.is_empty(),
            Some((stride, rest)) => {
                stride > WORD && rest.len().is_multiple_of(stride) && !rest.is_empty()
            }
        };
        let slices = || masks.iter().map(|(slice, _)| slice);
        (is_whole && slices().is_sorted_by(|a, b| a < b)).then_some(masks)
    }

    /// Each with the place of its slice, in ascending order, and of as many words as the others.
    pub fn with(masks: &[(usize, &[u32])]) -> Self {
        let Some((_, first)) = masks.first() else { return Self::default() };
        let mut bytes = Vec::with_capacity(WORD + masks.len() * WORD * (1 + first.len()));
        bytes.extend_from_slice(&(first.len() as u32).to_le_bytes());
        for (slice, words) in masks {
            debug_assert_eq!(words.len(), first.len());
            bytes.extend_from_slice(&(*slice as u32).to_le_bytes());
            // In one piece: a mask has thousands of words.
            let at = bytes.len();
            bytes.resize(at + words.len() * WORD, 0);
            let (room, _) = bytes[at..].as_chunks_mut();
            room.iter_mut().zip(*words).for_each(|(room, word)| *room = word.to_le_bytes());
        }
        Self(bytes.into())
    }

    /// As they travel.
    pub fn bytes(&self) -> &Bytes {
        &self.0
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Each has as many, of 32 tokens each; 0 where there are no masks.
    pub fn num_words(&self) -> usize {
        self.split().map_or(0, |(stride, _)| stride / WORD - 1)
    }

    /// Each with the place of its slice.
    pub fn iter(&self) -> impl Iterator<Item = (usize, impl Iterator<Item = u32> + '_)> {
        let (stride, rest) = self.split().unwrap_or((WORD, &[]));
        rest.chunks_exact(stride).map(|mask| {
            let mut words = words_of(mask);
            (words.next().unwrap_or_default() as usize, words)
        })
    }

    /// Bytes of a mask with its slice, and all of them.
    fn split(&self) -> Option<(usize, &[u8])> {
        let (num_words, rest) = self.0.split_first_chunk::<WORD>()?;
        let num_words = u32::from_le_bytes(*num_words) as usize;
        Some((num_words.checked_add(1)?.checked_mul(WORD)?, rest))
    }
}

fn words_of(bytes: &[u8]) -> impl Iterator<Item = u32> + '_ {
    let (words, _) = bytes.as_chunks();
    words.iter().map(|word| u32::from_le_bytes(*word))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn masks_come_back_as_they_were_sent() {
        let masks = Masks::with(&[(1, &[7, 1 << 31]), (4, &[0, 9])]);
        let came = Masks::new(masks.bytes().clone()).unwrap();
        let all: Vec<_> = came.iter().map(|(slice, words)| (slice, words.collect())).collect();
        assert_eq!(all, [(1, vec![7, 1 << 31]), (4, vec![0, 9])]);
        assert_eq!(came.num_words(), 2);
        assert_eq!(Masks::new(Bytes::new()), Some(Masks::default()));
        assert!(Masks::with(&[]).is_empty());
    }

    #[test]
    fn whatever_is_no_mask_is_refused() {
        let words = |words: &[u32]| -> Bytes {
            words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>().into()
        };
        for bad in [
            words(&[1]),
            words(&[0, 3]),
            words(&[2, 0, 5]),
            words(&[1, 0, 5, 0, 5]),
            words(&[1, 3, 5, 2, 5]),
            words(&[u32::MAX, 0, 5]),
            words(&[1, 0, 5]).slice(..11),
        ] {
            assert_eq!(Masks::new(bad.clone()), None, "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(0u8..4, 0..40)) {
            if let Some(masks) = Masks::new(bytes.into()) {
                for (_, words) in masks.iter() {
                    prop_assert_eq!(words.count(), masks.num_words());
                }
            }
        }
    }
}
