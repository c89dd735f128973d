//! Model files: safetensors, GGUF, configurations and tensor names of each architecture.
//!
//! [`Checkpoint::open`] maps the files of a model, reads their headers and checks that every
//! tensor that the architecture needs is there, in its right shape. From then on weights are
//! asked for by what they do ([`Matrix`], [`Vector`]), never by a file's name for them, and come
//! out in one form whatever the source: q, k and v stacked, gate above up, rotated pairs next to
//! each other, all of them finite.
//!
//! Nothing in a file can panic the process or make it allocate without a bound: every length is
//! checked before it is used. No GPU, no network.

mod architecture;
#[cfg(test)]
mod changed_tests;
mod chatglm;
mod config;
mod cost;
mod digest;
mod dtype;
mod error;
mod files;
#[cfg(test)]
mod finite_tests;
mod fp8;
#[cfg(test)]
mod fp8_tests;
mod generation;
mod gguf;
#[cfg(test)]
mod gguf_format_tests;
mod gguf_layers;
mod gguf_model;
mod gguf_split;
#[cfg(test)]
mod gguf_split_tests;
#[cfg(test)]
mod gguf_tests;
#[cfg(test)]
mod gguf_writer;
mod huggingface;
mod levels;
mod mapped;
mod matrix;
mod order;
mod outline;
mod packed;
#[cfg(test)]
mod packed_tests;
mod quantize;
mod quants;
#[cfg(test)]
mod quants_golden_tests;
mod safetensors;
mod spec;
#[cfg(test)]
mod spec_tests;
mod tensors;
#[cfg(test)]
mod tests;
mod tiktoken;
mod tokenizer;
mod weight;

use std::path::{Path, PathBuf};

pub use architecture::Architecture;
pub use config::ModelConfig;
pub use cost::PartCost;
pub use dtype::{DType, Format, Quantize};
pub use error::CheckpointError;
pub use files::ModelFile;
pub use generation::SamplingDefaults;
pub use gguf_model::BOS_BY_DEFAULT;
pub use matrix::MatrixView;
pub use outline::Outline;
pub use spec::{Attention, Dense, Gqa, Index, LayerSpec, Mla, Mlp, Moe, ScratchRow};
pub use tokenizer::{SpecialTokens, TokenizerSource};
pub use weight::{Matrix, Vector, Weight};

use architecture::Role;
use digest::Sum;
use huggingface::Configuration;
use mapped::Mapped;
use tensors::{Tensors, Weights};

/// A blake3 hash.
pub(crate) type Digest = [u8; 32];

/// What a stage can hold of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Part {
    /// From tokens to the first layer's input.
    Embedding,
    /// A decoder layer, counted from 0.
    Layer(usize),
    /// The final norm and the head, which may be the embedding.
    Head,
}

/// A model in its files.
#[derive(Debug)]
pub struct Checkpoint {
    name: String,
    config: ModelConfig,
    weights: Weights,
    source: Source,
    quantize: Quantize,
}

/// Where everything but the weights comes from.
#[derive(Debug)]
enum Source {
    Directory(PathBuf),
    Gguf(gguf::Header),
}

impl Checkpoint {
    /// Opens a Hugging Face directory, a .gguf file, or a directory with one .gguf file. Maps the
    /// files and reads their headers, not their weights.
    ///
    /// # Errors
    ///
    /// If there is no model, if it is damaged, if it asks for something that is not computed
    /// here, or if a tensor that the architecture needs is missing or has another shape.
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        mapped::check_link(path)?;
        if !path.exists() {
            return Err(CheckpointError::NotFound { path: path.to_owned() });
        }
        if !path.is_dir() {
            return Self::open_file(path);
        }
        if mapped::is_named(&path.join("config.json")) {
            return Self::open_directory(path);
        }
        let mut ggufs = Vec::new();
        let io = |source| CheckpointError::Io { path: path.to_owned(), source };
        for entry in path.read_dir().map_err(io)? {
            let entry = entry.map_err(io)?.path();
            if entry.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf")) {
                ggufs.push(entry);
            }
        }
        match (&ggufs[..], gguf_split::of_one_model(&ggufs)) {
            (_, Some(first)) => Self::open_gguf(&first),
            ([one], None) => Self::open_gguf(one),
            _ => Err(CheckpointError::NotAModel {
                path: path.to_owned(),
                reason: format!(
                    "it holds no config.json and {} .gguf files, expected one of either",
                    ggufs.len()
                ),
            }),
        }
    }

    /// A file of a Hugging Face directory stands for all of it.
    fn open_file(path: &Path) -> Result<Self, CheckpointError> {
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
        let dir = dir.unwrap_or(Path::new("."));
        if gguf::is_one(path) {
            return Self::open_gguf(path);
        }
        if dir.join("config.json").exists() {
            return Self::open_directory(dir);
        }
        let extension = path.extension().unwrap_or_default();
        if !["safetensors", "json"].iter().any(|it| extension.eq_ignore_ascii_case(it)) {
            return Self::open_gguf(path);
        }
        Err(CheckpointError::NotAModel {
            path: path.to_owned(),
            reason:
                "it is part of a Hugging Face model, and the directory that it stands in holds \
                     no config.json"
                    .to_owned(),
        })
    }

    fn open_directory(dir: &Path) -> Result<Self, CheckpointError> {
        let Configuration { model: config, layout, scaling, .. } = huggingface::config(dir)?;
        let weights = Weights::find(huggingface::tensors(dir, scaling)?, layout, &config)?;
        let io = |source| CheckpointError::Io { path: dir.to_owned(), source };
        // So that "." has a name too.
        let full = dir.canonicalize().map_err(io)?;
        let name = name_of(&full);
        Ok(Self {
            name,
            config,
            weights,
            source: Source::Directory(dir.to_owned()),
            quantize: Quantize::None,
        })
    }

    fn open_gguf(path: &Path) -> Result<Self, CheckpointError> {
        // A part of several stands for all of them.
        let split = gguf_split::whole(path).filter(|(_, first)| first.exists());
        let path = split.as_ref().map_or(path, |(_, first)| first);
        let mapped = Mapped::open(path)?;
        let mut header = gguf::read(&mapped)?;
        let others = gguf_split::others(path, &mut header)?;
        let (config, layout) = gguf_model::config(&mapped, &header)?;
        let name = match &split {
            Some((name, _)) if !others.is_empty() => name.clone(),
            _ => path.file_stem().unwrap_or(path.as_os_str()).to_string_lossy().into_owned(),
        };
        let by_name = std::mem::take(&mut header.tensors);
        let files = [mapped].into_iter().chain(others).collect();
        let tensors = Tensors { path: path.to_owned(), files, by_name, scaling: None };
        let weights = Weights::find(tensors, layout, &config)?;
        Ok(Self { name, config, weights, source: Source::Gguf(header), quantize: Quantize::None })
    }

    /// The same model with its matrices rounded while they are read.
    #[must_use]
    pub fn quantized(mut self, quantize: Quantize) -> Self {
        self.quantize = quantize;
        self
    }

    /// The model's shape and constants.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The model's name: the directory's, or the file's without `.gguf`. In a cache of Hugging
    /// Face's, whose directories are named by hashes, what it is called there: `ORG/NAME`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Reads what describes the tokenizer.
    ///
    /// # Errors
    ///
    /// If there is none, naming the file or key that should hold it, or if it is damaged.
    pub fn tokenizer(&self) -> Result<TokenizerSource, CheckpointError> {
        match &self.source {
            Source::Directory(dir) => tokenizer::read(dir),
            Source::Gguf(header) => gguf_model::tokenizer(&self.weights.files[0], header),
        }
    }

    /// What the files recommend for requests that don't say how to sample.
    ///
    /// # Errors
    ///
    /// If a value can't be, naming it.
    pub fn sampling_defaults(&self) -> Result<SamplingDefaults, CheckpointError> {
        match &self.source {
            Source::Directory(dir) => generation::of_directory(dir),
            Source::Gguf(header) => generation::of_gguf(&self.weights.files[0].path, header),
        }
    }

    /// A weight matrix, not yet read.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::NoSuchLayer`].
    pub fn matrix(&self, matrix: Matrix) -> Result<MatrixView<'_>, CheckpointError> {
        let (role, layer) = matrix.role();
        self.check_layer(layer)?;
        let number = layer.unwrap_or(0);
        let pieces = self.weights.pieces(self.tied(role), number);
        let quantize = self.quantize.of(role);
        let stack = role.stack(&self.config, number);
        let is_paired = matches!(role, Role::GateUp | Role::ExpertsGateUp | Role::SharedGateUp);
        let quantize = (quantize, layer.is_some());
        Ok(MatrixView::new(&self.weights, pieces, stack, quantize, is_paired))
    }

    /// A vector of weights as f32.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::NoSuchLayer`], [`CheckpointError::NoSuchVector`] for what the
    /// configuration says the model has not, and [`CheckpointError::NotFinite`] if a weight is NaN
    /// or infinite.
    pub fn vector(&self, vector: Vector) -> Result<Vec<f32>, CheckpointError> {
        let (role, layer) = vector.role();
        self.check_layer(layer)?;
        if self.weights.pieces(role, layer.unwrap_or(0)).is_empty() {
            return Err(CheckpointError::NoSuchVector {
                vector: format!("{vector:?}"),
                architecture: self.config.architecture.to_string(),
            });
        }
        matrix::vector(&self.weights, self.weights.pieces(role, layer.unwrap_or(0)))
    }

    /// Bytes of a part's weights on an adapter: matrices in their
    /// [`format`](MatrixView::format), vectors as f32.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::NoSuchLayer`].
    pub fn bytes(&self, part: Part) -> Result<u64, CheckpointError> {
        Ok(self.cost(part)?.bytes)
    }

    /// Values of a vector.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::NoSuchLayer`].
    pub fn vector_len(&self, vector: Vector) -> Result<usize, CheckpointError> {
        let (role, layer) = vector.role();
        self.check_layer(layer)?;
        let pieces = self.weights.pieces(role, layer.unwrap_or(0));
        Ok(pieces.iter().map(|piece| piece.rows).sum())
    }

    /// A hash of a part: of role, type, shape and the first 4096 bytes of each of its tensors.
    ///
    /// A sample, so that comparing models doesn't read them: training changes nearly all weights
    /// and so the first ones, but a file whose damage lies further back has the same digest.
    /// The same weights in other shards have the same digest; quantised or stacked in another
    /// way they have another one.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::NoSuchLayer`].
    pub fn digest(&self, part: Part) -> Result<Digest, CheckpointError> {
        let mut sum = Sum::new("autoglm part 1");
        for (role, layer) in self.roles(part)? {
            sum.role(&self.weights, role, layer);
        }
        Ok(sum.end())
    }

    /// A hash of the configuration, as far as an answer depends on it.
    pub fn config_digest(&self) -> Digest {
        let mut sum = Sum::new("autoglm config 1");
        sum.config(&self.config);
        sum.end()
    }

    /// A hash of everything that an answer depends on: configuration, tokenizer and template, and
    /// the digests of all parts. A model without a tokenizer has one too.
    ///
    /// # Errors
    ///
    /// If the tokenizer is damaged.
    pub fn model_digest(&self) -> Result<Digest, CheckpointError> {
        let mut sum = Sum::new("autoglm model 1");
        sum.config(&self.config);
        match self.quantize {
            Quantize::None => {}
            Quantize::Int8 => sum.bytes(b"int8"),
            Quantize::Int4 => sum.bytes(b"int4"),
        }
        match self.tokenizer() {
            Ok(tokenizer) => sum.tokenizer(&tokenizer),
            Err(CheckpointError::MissingTokenizer { .. }) => sum.bytes(b"none"),
            Err(error) => return Err(error),
        }
        let layers = (0..self.config.num_layers()).map(Part::Layer);
        for part in [Part::Embedding].into_iter().chain(layers).chain([Part::Head]) {
            sum.bytes(&self.digest(part)?);
        }
        Ok(sum.end())
    }

    /// What a part is made of, in the order of computation.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::NoSuchLayer`].
    pub fn part(&self, part: Part) -> Result<Vec<Weight>, CheckpointError> {
        if let Part::Layer(layer) = part {
            self.check_layer(Some(layer))?;
        }
        Ok(self.config.part(part))
    }

    /// The tensors of a part, each with its layer (0 outside of layers).
    fn roles(&self, part: Part) -> Result<Vec<(Role, usize)>, CheckpointError> {
        let role = |weight: Weight| {
            let (role, layer) = weight.role();
            (self.tied(role), layer.unwrap_or(0))
        };
        Ok(self.part(part)?.into_iter().map(role).collect())
    }

    fn tied(&self, role: Role) -> Role {
        let is_tied = role == Role::LmHead && self.config.tie_word_embeddings;
        if is_tied { Role::Embedding } else { role }
    }

    fn check_layer(&self, layer: Option<usize>) -> Result<(), CheckpointError> {
        let num_layers = self.config.num_layers();
        match layer {
            Some(layer) if layer >= num_layers => {
                Err(CheckpointError::NoSuchLayer { layer, num_layers })
            }
            _ => Ok(()),
        }
    }
}

/// What a directory's model is called: `ORG/NAME` where a cache of Hugging Face's holds it, as in
/// `models--ORG--NAME/snapshots/HASH`, or else as the directory is.
fn name_of(dir: &Path) -> String {
    let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
    let cached = || {
        let snapshots = dir.parent().filter(|it| name(it).as_deref() == Some("snapshots"))?;
        let model = name(snapshots.parent()?)?;
        Some(model.strip_prefix("models--")?.replace("--", "/"))
    };
    cached().or_else(|| name(dir)).unwrap_or_else(|| dir.to_string_lossy().into_owned())
}
