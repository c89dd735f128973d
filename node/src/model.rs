//! The model on the device: the kernels, and a decoder layer line by line. What a layer is made of
//! is in its [`LayerSpec`], and each part of it in a file of its own: its weights, what it is bound
//! to, how it is recorded.

mod attention;
mod class;
mod gqa;
pub mod head;
pub mod index;
mod mla;
mod mlp;
mod moe;
mod weights;

use std::cell::RefCell;
use std::collections::HashMap;

use checkpoint::{Checkpoint, LayerSpec, ModelConfig, ScratchRow, Vector};
use protocol::config;
use shaders::error::GpuError;
use shaders::experts::Routes;
use shaders::gpu::Gpu;
use shaders::inputs::{Inputs, StepShape};
use shaders::kernel::Pass;
use shaders::kv_cache::KvFormat;
use shaders::matmul::{Matmul, Norm, Operand, Output, Products};
use shaders::quantize_rows::QuantizedRows;
use shaders::rms_norm::{BoundRmsNorm, RmsNorm};
use shaders::tensor::Tensor;
use shaders::weights::GROUP;

pub(crate) use self::attention::{AttentionKernels, LayerCache};
use self::attention::{AttentionWeights, BoundAttention};
use self::mlp::{BoundMlp, MlpWeights};
use self::weights::Loader;
pub use self::weights::format;
pub(crate) use self::weights::{on_device, upload, vector_bytes};
use crate::error::StageError;

/// The kernels that serve layers of every shape, compiled.
pub struct Kernels {
    pub(crate) rms_norm: RmsNorm,
    pub(crate) matmul: Matmul,
    /// In f32, whatever the others are: what is chosen hangs on it.
    pub(crate) router: Matmul,
    // Computed once for each form of layer: the self-test takes a second.
    classes: RefCell<Vec<(class::Form, [u8; 32])>>,
}

impl Kernels {
    /// Compiles them.
    ///
    /// # Errors
    /// When the driver refuses one.
    pub fn new(gpu: &Gpu) -> Result<Self, GpuError> {
        Ok(Self {
            rms_norm: RmsNorm::new(gpu)?,
            matmul: Matmul::new(gpu),
            router: Matmul::of(gpu, Products::Plain),
            classes: RefCell::default(),
        })
    }
}

/// What a step computes with, overwritten layer by layer. Rows are tokens.
pub(crate) struct Scratch {
    rows: HashMap<ScratchRow, Tensor>,
    /// Before a product by packed dot products, where the adapter computes them: the widest of all
    /// rows, in bytes.
    pub quantized: Option<QuantizedRows>,
    routes: Option<Routes>,
}

impl Scratch {
    /// Tensors for steps of at most `max_tokens` tokens.
    ///
    /// # Errors
    /// When the adapter has no room.
    pub(crate) fn new(gpu: &Gpu, model: &ModelConfig, max_tokens: usize) -> Result<Self, GpuError> {
        let tensor = |(row, width): (ScratchRow, usize)| {
            let len = max_tokens * width;
            Ok((row, if row.is_vec4s() { gpu.alloc_vec4s(len)? } else { gpu.alloc_f32(len)? }))
        };
        Ok(Self {
            rows: model.rows().into_iter().map(tensor).collect::<Result<_, GpuError>>()?,
            quantized: quantizes(gpu)
                .then(|| QuantizedRows::new(gpu, max_tokens, widest(model)))
                .transpose()?,
            routes: moe::shape(model)
                .map(|shape| Routes::new(gpu, &shape, max_tokens))
                .transpose()?,
        })
    }

    /// Bytes that [`new`](Self::new) takes.
    pub(crate) fn num_bytes(gpu: &Gpu, model: &ModelConfig, max_tokens: usize) -> u64 {
        let bytes = |(row, width): (ScratchRow, usize)| match row.is_vec4s() {
            true => gpu.vec4s_bytes(max_tokens * width),
            false => (max_tokens * width * 4) as u64,
        };
        let quantized = match quantizes(gpu) {
            true => QuantizedRows::num_bytes(gpu, max_tokens, widest(model)),
            false => 0,
        };
        let routes = moe::shape(model).map_or(0, |shape| Routes::num_bytes(&shape, max_tokens));
        model.rows().into_iter().map(bytes).sum::<u64>() + quantized + routes
    }

    /// The tensor of a row that layers of the model compute with.
    pub(crate) fn row(&self, row: ScratchRow) -> &Tensor {
        self.rows.get(&row).expect("a layer asks for the rows of its kind")
    }

    /// An operand of a product that is taken as it is.
    fn plain<'a>(&'a self, x: &'a Tensor) -> Operand<'a> {
        Operand { x, norm: None, quantized: self.quantized.as_ref() }
    }
}

fn quantizes(gpu: &Gpu) -> bool {
    gpu.caps().packs
}

/// Values of the longest row that may be multiplied.
fn widest(model: &ModelConfig) -> usize {
    let is_operand = |row| {
        matches!(
            row,
            ScratchRow::Hidden
                | ScratchRow::Middle
                | ScratchRow::QueryLatent
                | ScratchRow::Attended
                | ScratchRow::Gated
        )
    };
    // A token's experts have a row each.
    let top_k = moe::shape(model).map_or(1, |shape| shape.top_k);
    let width = |(row, width): (ScratchRow, usize)| match row {
        ScratchRow::ExpertsGated => Some((width / top_k).next_multiple_of(GROUP) * top_k),
        _ => is_operand(row).then_some(width),
    };
    model.rows().into_iter().filter_map(width).max().unwrap_or(0)
}

/// What all layers of a stage share.
pub(crate) struct Shared<'a> {
    pub gpu: &'a Gpu,
    pub kernels: &'a Kernels,
    /// The model's shape.
    pub model: &'a ModelConfig,
    pub inputs: &'a Inputs,
    pub attention: &'a AttentionKernels,
    /// What a step computes with.
    pub scratch: &'a Scratch,
}

impl Shared<'_> {
    /// A norm of the model's before a product.
    fn normed<'a>(&'a self, x: &'a Tensor, weight: &'a Tensor) -> Operand<'a> {
        let norm = Norm { weight, eps: self.model.rms_norm_eps };
        Operand { norm: Some(norm), ..self.scratch.plain(x) }
    }
}

/// The residual stream on its way past a sublayer.
#[derive(Clone, Copy)]
struct Stream<'a> {
    from: &'a Tensor,
    to: &'a Tensor,
}

/// One decoder layer, bound to its weights.
pub(crate) struct Layer {
    attention: BoundAttention,
    /// Sandwich norms only: adds the normalised attention to the residual stream.
    post_self_attn_norm: Option<BoundRmsNorm>,
    mlp: BoundMlp,
    /// Sandwich norms only: adds the normalised MLP to the residual stream.
    post_mlp_norm: Option<BoundRmsNorm>,
}

/// A decoder layer's weights on the adapter, which no stage changes.
pub(crate) struct LayerWeights {
    input_norm: Tensor,
    attention: AttentionWeights,
    post_self_attn_norm: Option<Tensor>,
    post_attention_norm: Tensor,
    mlp: MlpWeights,
    post_mlp_norm: Option<Tensor>,
}

impl LayerWeights {
    /// Loads them. `loaded` hears of every matrix's bytes.
    ///
    /// # Errors
    /// When the files don't hold the layer, or the adapter has no room.
    pub(crate) fn load(
        gpu: &Gpu,
        files: &Checkpoint,
        layer: usize,
        loaded: &mut dyn FnMut(u64),
    ) -> Result<Self, StageError> {
        let LayerSpec { attention, mlp, sandwich_norms } = files.config().layers[layer];
        let mut loader = Loader { gpu, files, layer, loaded };
        Ok(Self {
            input_norm: loader.vector(Vector::InputNorm)?,
            attention: AttentionWeights::load(&mut loader, &attention)?,
            post_self_attn_norm: loader.vector_if(sandwich_norms, Vector::PostSelfAttnNorm)?,
            post_attention_norm: loader.vector(Vector::PostAttentionNorm)?,
            mlp: MlpWeights::load(&mut loader, &mlp)?,
            post_mlp_norm: loader.vector_if(sandwich_norms, Vector::PostMlpNorm)?,
        })
    }
}

impl Layer {
    /// Binds a layer's kernels to its weights and its cache.
    ///
    /// # Errors
    /// When the adapter has no room.
    pub(crate) fn bind(
        shared: &Shared<'_>,
        weights: &LayerWeights,
        cache: &LayerCache,
    ) -> Result<Self, StageError> {
        let (hidden, middle) =
            (shared.scratch.row(ScratchRow::Hidden), shared.scratch.row(ScratchRow::Middle));
        let first = Stream { from: hidden, to: middle };
        let second = Stream { from: middle, to: hidden };
        let after = |norm: &Option<Tensor>, Stream { from, to }| -> Result<_, StageError> {
            let Some(norm) = norm else { return Ok(None) };
            let (sublayer, eps) =
                (shared.scratch.row(ScratchRow::Sublayer), shared.model.rms_norm_eps);
            let kernel = &shared.kernels.rms_norm;
            Ok(Some(kernel.bind(shared.gpu, eps, sublayer, norm, (from, to))?))
        };
        // Where a norm follows a sublayer, its output waits in a tensor of its own.
        let output = |norm: &Option<Tensor>, Stream { from, to }| match norm {
            Some(_) => Output::Store(shared.scratch.row(ScratchRow::Sublayer)),
            None => Output::Residual { residual: from, out: to },
        };
        let LayerWeights { post_self_attn_norm, post_mlp_norm, .. } = weights;
        Ok(Self {
            attention: BoundAttention::bind(
                shared,
                &weights.attention,
                shared.normed(hidden, &weights.input_norm),
                cache,
                output(post_self_attn_norm, first),
            )?,
            post_self_attn_norm: after(post_self_attn_norm, first)?,
            mlp: BoundMlp::bind(
                shared,
                &weights.mlp,
                shared.normed(middle, &weights.post_attention_norm),
                output(post_mlp_norm, second),
            )?,
            post_mlp_norm: after(post_mlp_norm, second)?,
        })
    }

    /// Records the layer's part of a step.
    pub(crate) fn record(&self, pass: &mut Pass, step: StepShape) {
        self.attention.record(pass, step);
        if let Some(norm) = &self.post_self_attn_norm {
            norm.record(pass, step.num_tokens);
        }
        self.mlp.record(pass, step);
        if let Some(norm) = &self.post_mlp_norm {
            norm.record(pass, step.num_tokens);
        }
    }
}

/// What the files are asked for, in their own words.
pub fn quantize(quantize: config::Quantize) -> checkpoint::Quantize {
    match quantize {
        config::Quantize::None => checkpoint::Quantize::None,
        config::Quantize::Int8 => checkpoint::Quantize::Int8,
        config::Quantize::Int4 => checkpoint::Quantize::Int4,
    }
}

/// How keys and values are stored, as kernels take it.
pub fn kv_format(dtype: config::KvCacheDtype) -> KvFormat {
    match dtype {
        config::KvCacheDtype::Auto | config::KvCacheDtype::F32 => KvFormat::F32,
        config::KvCacheDtype::F16 => KvFormat::F16,
    }
}
