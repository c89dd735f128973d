//! What is served: read once from the model's files, for the cluster and for the API.

use std::path::Path;

use checkpoint::{Checkpoint, CheckpointError, ModelConfig, Part, PartCost};
use protocol::{BLOCK_TOKENS, Digest, ModelId, config::Config};

use crate::placement::ModelCost;

/// Bytes of one element of a hidden state: f32.
const ELEMENT_BYTES: u64 = 4;

/// What is served, as the cluster needs to know it.
#[derive(Clone, Debug)]
pub struct Model {
    /// Which.
    pub id: ModelId,
    /// Where its files are.
    pub path: String,
    /// What its parts weigh.
    pub cost: ModelCost,
    /// The digest of its configuration.
    pub config: Digest,
    /// Digests of its embedding, of each layer, of its head.
    pub digests: Vec<Digest>,
    /// Values of a token's row between two stages.
    pub hidden_size: u32,
    /// Tokens of one sequence.
    pub max_model_len: u32,
    /// Tokens that it knows.
    pub vocab_size: u32,
}

/// Bytes of a frame that describes a step, its rows apart.
const MAX_DESCRIPTION_BYTES: u64 = 1 << 20;

/// A frame has room for the largest step: its rows, and a mask for each sequence.
///
/// # Errors
/// When the rows of the largest step that the configuration allows don't fit into a frame: they
/// would be refused by the next stage, again and again.
pub(crate) fn check_frames(model: &Model, config: &Config) -> Result<(), String> {
    let row = model.cost.row_bytes.max(u64::from(model.hidden_size) * ELEMENT_BYTES);
    let (tokens, max) = (config.scheduler.max_batched_tokens, config.transport.max_frame_bytes);
    let mask = u64::from(model.vocab_size.div_ceil(32) + 1) * 4;
    let masks = u64::from(config.scheduler.max_num_seqs) * mask;
    let needed = u64::from(tokens) * row + masks + MAX_DESCRIPTION_BYTES;
    if needed <= u64::from(max) {
        return Ok(());
    }
    Err(format!(
        "transport.max_frame_bytes = {max}: must be at least {needed}, which a step of {tokens} \
         tokens (scheduler.max_batched_tokens) of this model takes"
    ))
}

/// The model, as the cluster needs to know it.
///
/// # Errors
/// When the files are damaged.
pub fn describe(
    files: &Checkpoint,
    path: &Path,
    config: &Config,
) -> Result<Model, CheckpointError> {
    let layers = (0..files.config().num_layers()).map(Part::Layer);
    let parts = [Part::Embedding].into_iter().chain(layers).chain([Part::Head]);
    Ok(Model {
        id: ModelId::of(Digest(files.model_digest()?)),
        path: path.to_string_lossy().into_owned(),
        config: Digest(files.config_digest()),
        digests: parts.map(|part| files.digest(part).map(Digest)).collect::<Result<_, _>>()?,
        ..outline(files.config(), |part| files.cost(part), config)?
    })
}

/// What placement needs to know of a model, which is known before its weights are there; its
/// digests are none.
///
/// # Errors
/// Those of `cost`.
pub(crate) fn outline(
    model: &ModelConfig,
    cost: impl Fn(Part) -> Result<PartCost, CheckpointError>,
    config: &Config,
) -> Result<Model, CheckpointError> {
    let layers = (0..model.num_layers()).map(Part::Layer);
    let max_model_len = max_model_len(model, config);
    let in_blocks = |tokens: u64| tokens.next_multiple_of(BLOCK_TOKENS as u64);
    let least_cache_tokens = in_blocks(max_model_len.into());
    let cache_tokens = match config.scheduler.max_blocks {
        0 => least_cache_tokens * u64::from(config.scheduler.max_num_seqs),
        blocks => u64::from(blocks) * BLOCK_TOKENS as u64,
    };
    let activations =
        u64::from(config.scheduler.max_batched_tokens) * model.scratch_values() * ELEMENT_BYTES
            + 2 * LOGIT_ROWS * model.vocab_size as u64 * ELEMENT_BYTES;
    Ok(Model {
        id: ModelId::default(),
        path: String::new(),
        cost: ModelCost {
            layers: layers.map(&cost).collect::<Result<_, _>>()?,
            embedding: cost(Part::Embedding)?,
            head: cost(Part::Head)?,
            tied: model.tie_word_embeddings,
            kv_value_bytes: config.model.kv_cache_dtype.num_bytes(),
            least_cache_tokens,
            cache_tokens: cache_tokens.max(least_cache_tokens),
            row_bytes: (model.row_values() + model.side_words()) as u64 * ELEMENT_BYTES,
            activations,
        },
        config: Digest::default(),
        digests: vec![Digest::default(); model.num_layers() + 2],
        hidden_size: model.row_values() as u32,
        max_model_len,
        vocab_size: model.vocab_size as u32,
    })
}

/// The configuration's word in the checkpoint's.
pub(crate) fn quantize(quantize: protocol::config::Quantize) -> checkpoint::Quantize {
    match quantize {
        protocol::config::Quantize::None => checkpoint::Quantize::None,
        protocol::config::Quantize::Int8 => checkpoint::Quantize::Int8,
        protocol::config::Quantize::Int4 => checkpoint::Quantize::Int4,
    }
}

/// Rows of logits that a stage computes at once.
const LOGIT_ROWS: u64 = 32;

/// Tokens of one sequence: what the model was made for, or less where configured.
pub(crate) fn max_model_len(model: &ModelConfig, config: &Config) -> u32 {
    let made_for = model.max_position_embeddings as u32;
    match config.model.max_model_len {
        0 => made_for,
        configured => configured.min(made_for),
    }
}
