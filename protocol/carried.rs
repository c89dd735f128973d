//! What a step carries from stage to stage without being made anew by each: its batch, and the
//! hidden state.

use std::ops::{Deref, DerefMut};

use bytes::Bytes;

/// A value together with the bytes that it came in, if it came over the wire: whoever sends it on
/// sends those. Changed, it forgets them.
#[derive(Clone, Debug, Default)]
pub struct Carried<T> {
    value: T,
    bytes: Bytes,
}

impl<T> Carried<T> {
    /// A value that `bytes` say.
    pub(crate) fn new(value: T, bytes: Bytes) -> Self {
        Self { value, bytes }
    }

    /// The bytes that it came in, if it did.
    pub(crate) fn bytes(&self) -> Option<&Bytes> {
        (!self.bytes.is_empty()).then_some(&self.bytes)
    }
}

impl<T> From<T> for Carried<T> {
    fn from(value: T) -> Self {
        Self::new(value, Bytes::new())
    }
}

impl<T> Deref for Carried<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> DerefMut for Carried<T> {
    fn deref_mut(&mut self) -> &mut T {
        self.bytes.clear();
        &mut self.value
    }
}

impl<T: PartialEq> PartialEq for Carried<T> {
    fn eq(&self, other: &Self) -> bool {
        self.value == other.value
    }
}

/// Activations as they travel: f32s, little-endian, which is how a device reads and writes them.
/// Clones share them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hidden(Bytes);

impl Hidden {
    /// None when the bytes aren't whole f32s.
    pub fn new(bytes: Bytes) -> Option<Self> {
        bytes.len().is_multiple_of(size_of::<f32>()).then_some(Self(bytes))
    }

    /// As a device takes them.
    pub fn bytes(&self) -> &Bytes {
        &self.0
    }

    /// How many values.
    pub fn len(&self) -> usize {
        self.0.len() / size_of::<f32>()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The values. Where they came in, they need not be aligned.
    pub fn values(&self) -> impl Iterator<Item = f32> {
        let (values, _) = self.0.as_chunks();
        values.iter().map(|value| f32::from_le_bytes(*value))
    }
}

impl FromIterator<f32> for Hidden {
    fn from_iter<I: IntoIterator<Item = f32>>(values: I) -> Self {
        Self(values.into_iter().flat_map(f32::to_le_bytes).collect())
    }
}
