//! In which order a tensor has the rows of its matrix.

/// Where the rows of a matrix are in the tensor that it is stored in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Order {
    /// The order in which they are computed.
    #[default]
    Plain,
    /// Heads whose rotated pairs lie half of the rotated dimensions apart.
    HalfSplit(HalfSplit),
    /// Some rows of each head.
    Heads(Heads),
    /// The columns of some rows of each head: those are the matrix' columns.
    Transposed(Heads),
}

/// Heads whose rotated pairs lie half of the rotated dimensions apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HalfSplit {
    /// Rows from here on (v, where it is stored under q and k) keep their order.
    pub(crate) rows: usize,
    pub(crate) head_dim: usize,
    pub(crate) rotary_dim: usize,
}

/// Rows `first .. first + rows` of every `of`, `num_heads` times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Heads {
    pub(crate) num_heads: usize,
    pub(crate) first: usize,
    pub(crate) rows: usize,
    pub(crate) of: usize,
}

impl Order {
    /// Which stored row is this row of the matrix; not of a transposed one.
    pub(crate) fn stored_row(self, row: usize) -> usize {
        match self {
            Self::Plain | Self::Transposed(_) => row,
            Self::HalfSplit(split) => split.stored_row(row),
            Self::Heads(Heads { first, rows, of, .. }) => row / rows * of + first + row % rows,
        }
    }

    /// Rows and columns of the tensor of a matrix that has so many.
    pub(crate) fn stored_shape(self, rows: usize, cols: usize) -> (usize, usize) {
        match self {
            Self::Plain | Self::HalfSplit(_) => (rows, cols),
            Self::Heads(heads) => (rows / heads.rows * heads.of, cols),
            // Each head has as many rows of the matrix as columns in the tensor.
            Self::Transposed(heads) => (heads.num_heads * heads.of, rows / heads.num_heads),
        }
    }

    /// Part of what digests cover: must never change.
    pub(crate) fn number(self) -> u64 {
        match self {
            Self::Plain => 0,
            Self::HalfSplit(split) => split.rotary_dim as u64,
            Self::Heads(heads) => 1 << 32 | heads.first as u64,
            Self::Transposed(heads) => 2 << 32 | heads.first as u64,
        }
    }
}

impl HalfSplit {
    /// Which stored row is row `row` when pairs are neighbours: 2i was i, 2i + 1 was i + half.
    fn stored_row(self, row: usize) -> usize {
        if row >= self.rows {
            return row;
        }
        let (head, dim) = (row / self.head_dim, row % self.head_dim);
        let dim =
            if dim < self.rotary_dim { dim / 2 + (dim % 2) * (self.rotary_dim / 2) } else { dim };
        head * self.head_dim + dim
    }
}
