//! Where each tensor of a checkpoint lies, whatever kind of file holds it.

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::architecture::{EXPERT, Layout, Role, RowOrder};
use crate::config::ModelConfig;
use crate::dtype::DType;
use crate::error::CheckpointError;
use crate::fp8::{Scales, Scaling, is_of_activations};
use crate::mapped::Mapped;
use crate::order::{HalfSplit, Heads, Order};
use crate::packed::{Groups, Side};
use crate::spec::Attention;

/// A tensor as its file's header describes it, with bounds that have been checked.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    /// Index into the files.
    pub(crate) file: usize,
    /// `Err`: a type that can't be read, by the file's name for it.
    pub(crate) dtype: Result<DType, String>,
    /// Outermost dimension first.
    pub(crate) shape: Vec<usize>,
    /// Bytes from the start of the file.
    pub(crate) start: usize,
    pub(crate) len: usize,
}

/// Tensors by name, and the files that hold them.
#[derive(Debug)]
pub(crate) struct Tensors {
    /// What errors name: the file, or the directory of several.
    pub(crate) path: PathBuf,
    pub(crate) files: Vec<Mapped>,
    pub(crate) by_name: HashMap<String, Stored>,
    /// Of 8-bit floats, if the model says that it has any.
    pub(crate) scaling: Option<Scaling>,
}

impl Tensors {
    /// Those of one layer, without the files.
    fn of_layer(&self, layout: &Layout, layer: usize) -> Self {
        let prefix = format!("{}{layer}.", layout.layer_prefix);
        let all = self.by_name.iter().filter(|(name, _)| name.starts_with(&prefix));
        let by_name = all.map(|(name, stored)| (name.clone(), stored.clone())).collect();
        Self { path: self.path.clone(), files: Vec::new(), by_name, scaling: self.scaling }
    }
}

/// One of the tensors that a role is made of: readable, and of the right shape.
#[derive(Clone, Debug)]
pub(crate) struct Piece {
    pub(crate) name: String,
    pub(crate) dtype: DType,
    pub(crate) rows: usize,
    /// 1 for a vector.
    pub(crate) cols: usize,
    pub(crate) order: Order,
    /// Of 8-bit floats.
    pub(crate) scales: Option<Scales>,
    /// Of packed integers.
    pub(crate) groups: Option<Groups>,
    pub(crate) file: usize,
    pub(crate) start: usize,
    pub(crate) len: usize,
}

impl Piece {
    /// Rows and columns of the tensor.
    pub(crate) fn stored_shape(&self) -> (usize, usize) {
        self.order.stored_shape(self.rows, self.cols)
    }

    fn ranges(&self) -> impl Iterator<Item = (usize, Range<u64>)> + use<> {
        let scales = self.scales.as_ref().map(|it| (it.file, it.start, it.len));
        let sides = self.groups.iter().flat_map(Groups::sides);
        let sides = sides.map(|it| (it.file, it.range.start, it.range.len())).collect::<Vec<_>>();
        [(self.file, self.start, self.len)]
            .into_iter()
            .chain(scales)
            .chain(sides)
            .map(|(file, start, len)| (file, start as u64..(start + len) as u64))
    }
}

/// Every tensor that a model needs, by role and layer (0 outside of layers).
#[derive(Debug)]
pub(crate) struct Weights {
    pub(crate) files: Vec<Mapped>,
    pieces: HashMap<(Role, usize), Vec<Piece>>,
}

impl Weights {
    /// Finds all tensors of the model and checks their shapes, so that a file that lies is
    /// refused when it is opened and not in the middle of loading.
    pub(crate) fn find(
        mut tensors: Tensors,
        layout: &Layout,
        config: &ModelConfig,
    ) -> Result<Self, CheckpointError> {
        if let Some(packing) = tensors.scaling.and_then(|scaling| scaling.packing) {
            packing.unwrap(&mut tensors);
        }
        let mut pieces = HashMap::new();
        for weight in config.weights() {
            let (role, layer) = weight.role();
            let found = match role {
                // Its tensor may be that of another role, too, which takes it.
                Role::LatentKeys => {
                    let mut copy = tensors.of_layer(layout, layer.unwrap_or(0));
                    let found = claim(&mut copy, layout, config, role, layer)?;
                    let taken = found.iter().filter(|piece| !piece.name.ends_with(BOTH));
                    taken.for_each(|piece| drop(tensors.by_name.remove(&piece.name)));
                    found
                }
                _ => claim(&mut tensors, layout, config, role, layer)?,
            };
            pieces.insert((role, layer.unwrap_or(0)), found);
        }
        // The first by name, so that the message is the same every time.
        let has_fp8 = tensors.scaling.is_some();
        let ignores =
            |name: &str| layout.ignores(name, config) || (has_fp8 && is_of_activations(name));
        let unexpected = tensors.by_name.keys().filter(|name| !ignores(name)).min();
        if let Some(name) = unexpected {
            return Err(CheckpointError::UnexpectedTensor {
                path: tensors.path.clone(),
                tensor: name.clone(),
                architecture: config.architecture.to_string(),
            });
        }
        Ok(Self { files: tensors.files, pieces })
    }

    /// The tensors of a role; empty if the model doesn't have it.
    pub(crate) fn pieces(&self, role: Role, layer: usize) -> &[Piece] {
        self.pieces.get(&(role, layer)).map_or(&[], Vec::as_slice)
    }

    /// Where the tensors of a role lie, with their factors: the file, and its bytes.
    pub(crate) fn ranges(
        &self,
        role: Role,
        layer: usize,
    ) -> impl Iterator<Item = (usize, Range<u64>)> {
        self.pieces(role, layer).iter().flat_map(Piece::ranges)
    }

    /// Where the tensors of a file begin.
    pub(crate) fn starts(&self, file: usize) -> impl Iterator<Item = usize> {
        let ranges = self.pieces.values().flatten().flat_map(Piece::ranges);
        ranges.filter(move |(of, _)| *of == file).map(|(_, range)| range.start as usize)
    }

    /// A tensor's bytes, as stored.
    pub(crate) fn bytes(&self, piece: &Piece) -> &[u8] {
        &self.files[piece.file].bytes()[piece.start..piece.start + piece.len]
    }

    /// The tensors beside a packed one, as stored.
    pub(crate) fn side_bytes(&self, side: &Side) -> &[u8] {
        &self.files[side.file].bytes()[side.range.clone()]
    }

    /// A tensor's factors, as stored.
    pub(crate) fn scale_bytes(&self, scales: &Scales) -> &[u8] {
        &self.files[scales.file].bytes()[scales.start..scales.start + scales.len]
    }
}

/// Takes the tensors of a role out of the list of those that are left.
fn claim(
    tensors: &mut Tensors,
    layout: &Layout,
    config: &ModelConfig,
    role: Role,
    layer: Option<usize>,
) -> Result<Vec<Piece>, CheckpointError> {
    let ways = layout.names(role, layer);
    let way = ways
        .iter()
        .find(|way| {
            let first = way.first().map(|first| first.replace(EXPERT, "0"));
            first.is_some_and(|first| tensors.by_name.contains_key(&first))
        })
        .or(ways.first())
        .map_or(&[][..], Vec::as_slice);
    let number = layer.unwrap_or(0);
    let (mut rows, cols) = role.shape(config, number);
    if way.len() == 1 {
        rows = vec![rows.iter().sum()];
    }
    let stack = role.stack(config, number);
    let mut pieces = Vec::with_capacity(way.len());
    for (index, (name, &rows)) in way.iter().zip(&rows).enumerate() {
        let order = order(layout, config, (role, number), (index, name, rows));
        // A tensor for each of a stack, or all in one of three dimensions.
        let (num_tensors, depth) = if name.contains(EXPERT) { (stack, 1) } else { (1, stack) };
        for tensor in 0..num_tensors {
            let name = name.replace(EXPERT, &tensor.to_string());
            let stored =
                tensors.by_name.remove(&name).ok_or_else(|| CheckpointError::MissingTensor {
                    path: tensors.path.clone(),
                    tensor: name.clone(),
                    num_layers: config.num_layers(),
                })?;
            let shape = Shape { depth, rows: rows / num_tensors, cols, order };
            let mut piece = shape.of(&name, stored, &tensors.path)?;
            if piece.dtype == DType::F8_E4M3 {
                piece.scales = Some(Scales::claim(tensors, &name, piece.stored_shape())?);
            }
            if piece.dtype == DType::I4 {
                piece.groups = Some(Groups::claim(tensors, &name, piece.stored_shape())?);
            }
            pieces.push(piece);
        }
    }
    Ok(pieces)
}

/// What makes keys and values of latent rows, where it is one tensor.
const BOTH: &str = "kv_b_proj.weight";

/// How a role's tensor of this number and name has the rows of its matrix.
fn order(
    layout: &Layout,
    config: &ModelConfig,
    (role, layer): (Role, usize),
    (index, name, rows): (usize, &str, usize),
) -> Order {
    let rotates = match role {
        Role::Qkv | Role::QkvBias => index < 2,
        Role::QueryNorm | Role::KeyNorm => true,
        _ => false,
    };
    match config.layer(layer).attention {
        Attention::Gqa(gqa) if rotates && layout.row_order == RowOrder::HalfSplit => {
            Order::HalfSplit(HalfSplit {
                rows: rows.min(gqa.q_rows() + gqa.kv_rows()),
                head_dim: gqa.head_dim,
                rotary_dim: gqa.rotary_dim,
            })
        }
        Attention::Mla(mla) if name.ends_with(BOTH) => {
            let (num_heads, of) = (mla.num_heads, mla.nope_dim + mla.value_dim);
            match role {
                Role::LatentKeys => {
                    Order::Transposed(Heads { num_heads, first: 0, rows: mla.nope_dim, of })
                }
                _ => {
                    let (first, rows) = (mla.nope_dim, mla.value_dim);
                    Order::Heads(Heads { num_heads, first, rows, of })
                }
            }
        }
        Attention::Gqa(_) | Attention::Mla(_) => Order::Plain,
    }
}

/// What a tensor must be like.
struct Shape {
    /// Matrices of it.
    depth: usize,
    /// Rows of all matrices together.
    rows: usize,
    cols: Option<usize>,
    order: Order,
}

impl Shape {
    fn of(self, name: &str, stored: Stored, path: &Path) -> Result<Piece, CheckpointError> {
        let expected: Vec<usize> = match (self.order, self.cols) {
            (Order::Heads(_) | Order::Transposed(_), Some(cols)) => {
                let (rows, cols) = self.order.stored_shape(self.rows, cols);
                vec![rows, cols]
            }
            _ => {
                let depth = (self.depth > 1).then_some(self.depth);
                let rows = self.rows / self.depth;
                depth.into_iter().chain([rows]).chain(self.cols).collect()
            }
        };
        if stored.shape != expected {
            return Err(CheckpointError::WrongShape {
                path: path.to_owned(),
                tensor: name.to_owned(),
                found: stored.shape,
                expected,
            });
        }
        let dtype = stored.dtype.map_err(|found| CheckpointError::WrongType {
            path: path.to_owned(),
            tensor: name.to_owned(),
            found,
        })?;
        if matches!(dtype, DType::F8_E4M3 | DType::I4) && self.cols.is_none() {
            return Err(CheckpointError::Malformed {
                path: path.to_owned(),
                problem: format!("tensor {name} is a vector in {dtype}, which only matrices are"),
            });
        }
        Ok(Piece {
            name: name.to_owned(),
            dtype,
            rows: self.rows,
            cols: self.cols.unwrap_or(1),
            order: self.order,
            scales: None,
            groups: None,
            file: stored.file,
            start: stored.start,
            len: stored.len,
        })
    }
}
