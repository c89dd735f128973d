//! How alike two texts are: MinHash over what they are made of, five characters at a time. Bands of
//! a signature are the same for texts that are alike, mostly, so that those are found which must be
//! compared.

/// Hashes of a signature.
const NUM_HASHES: usize = 64;
/// Hashes of a band: texts that share eight tenths of their pieces share a band but in one case of
/// 4,000.
const BAND: usize = 4;
/// Characters of a piece. Words would not do for texts without spaces.
const PIECE: usize = 5;

/// What is kept of a text.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Signature([u32; NUM_HASHES]);

impl Signature {
    /// Of a text, whose white space and capitals count for nothing.
    pub(super) fn of(text: &str) -> Self {
        let lower = text.to_lowercase();
        let mut characters = Vec::with_capacity(lower.len());
        for word in lower.split_whitespace() {
            if !characters.is_empty() {
                characters.push(' ');
            }
            characters.extend(word.chars());
        }
        let mut least = [u32::MAX; NUM_HASHES];
        let num = characters.len().saturating_sub(PIECE - 1).max(1);
        for start in 0..num {
            let piece = &characters[start..(start + PIECE).min(characters.len())];
            let hash = piece.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, character| {
                mixed(hash ^ u64::from(u32::from(*character)))
            });
            // Two hashes make all others, as independent as is needed.
            let (one, two) = (hash as u32, (hash >> 32) as u32 | 1);
            for (index, least) in least.iter_mut().enumerate() {
                let index = index as u32;
                let other = one.wrapping_add(two.wrapping_mul(index.wrapping_mul(0x9e37_79b9)));
                *least = (*least).min(other ^ (other >> 15));
            }
        }
        Self(least)
    }

    /// The same for texts that are alike, mostly one of them at least.
    pub(super) fn bands(&self) -> impl Iterator<Item = u64> {
        self.0.chunks(BAND).enumerate().map(|(index, band)| {
            band.iter().fold(mixed(index as u64 + 1), |hash, least| mixed(hash ^ u64::from(*least)))
        })
    }

    /// What share of their pieces two texts share, about.
    pub(super) fn alike(&self, other: &Self) -> f64 {
        let same = self.0.iter().zip(&other.0).filter(|(one, other)| one == other).count();
        same as f64 / NUM_HASHES as f64
    }

    pub(super) fn to_bytes(&self) -> Vec<u8> {
        self.0.iter().flat_map(|hash| hash.to_le_bytes()).collect()
    }

    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut hashes = [0; NUM_HASHES];
        if bytes.len() != NUM_HASHES * 4 {
            return None;
        }
        for (hash, bytes) in hashes.iter_mut().zip(bytes.chunks(4)) {
            *hash = u32::from_le_bytes(bytes.try_into().ok()?);
        }
        Some(Self(hashes))
    }
}

/// Every bit of a number depends on every bit.
fn mixed(number: u64) -> u64 {
    let number = (number ^ (number >> 31)).wrapping_mul(0x7fb5_d329_728e_a185);
    let number = (number ^ (number >> 27)).wrapping_mul(0x81da_def4_bc2d_d44d);
    number ^ (number >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_as_alike_as_they_share_their_pieces() {
        let text: String = (0..300).map(|n| format!("word{} ", n * 7 % 101)).collect();
        let of = Signature::of;
        assert_eq!(of(&text), of(&text.to_uppercase().replace(' ', "\n ")));
        let near = format!("{text} and one more");
        assert!(of(&text).alike(&of(&near)) > 0.9);
        let bands: Vec<_> = of(&text).bands().collect();
        assert!(of(&near).bands().any(|band| bands.contains(&band)));
        let other: String = (0..300).map(|n| format!("other{} ", n * 13 % 103)).collect();
        assert!(of(&text).alike(&of(&other)) < 0.3);
        let bytes = of(&text).to_bytes();
        assert_eq!(Signature::from_bytes(&bytes), Some(of(&text)));
        // Half of the pieces are shared, a third of all.
        let (one, two) = ("a1b2c3d4e5", "texts of other pieces entirely");
        let both = format!("{one} {two}");
        let alike = of(&both).alike(&of(two));
        assert!((0.4..0.95).contains(&alike), "{alike}");
        of("");
    }
}
