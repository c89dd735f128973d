//! The model on the device: the kernels, and a decoder layer line by line.
//!
//! One layer serves every architecture that we compute: `GlmForCausalLM` adds a sublayer's output
//! to the residual stream as it is, `Glm4ForCausalLM` normalises it first (sandwich norms).

use std::cell::RefCell;

use checkpoint::{Checkpoint, Matrix, ModelConfig, Vector};
use protocol::{Digest, config};
use shaders::attention::{Attention, BoundAttention};
use shaders::copy_blocks::{BoundCopyBlocks, CopyBlocks};
use shaders::error::GpuError;
use shaders::gpu::Gpu;
use shaders::inputs::{Inputs, StepShape};
use shaders::kernel::Pass;
use shaders::kv_cache::{HeadShape, KvCache, KvFormat};
use shaders::matmul::{BoundMatmul, Matmul, Norm, Operand, Output, Products, Qkv};
use shaders::quantize_rows::QuantizedRows;
use shaders::rms_norm::{BoundRmsNorm, RmsNorm};
use shaders::rotary::Rotary;
use shaders::self_test::{self, SelfTest};
use shaders::tensor::Tensor;
use shaders::weights::{Format, RowOrder, WeightMatrix};

use crate::error::StageError;

/// The kernels that serve layers of every shape, compiled.
pub struct Kernels {
    pub(crate) rms_norm: RmsNorm,
    pub(crate) matmul: Matmul,
    // Computed once for each form of layer: the self-test takes a second.
    classes: RefCell<Vec<(LayerForm, [u8; 32])>>,
}

/// What the class of a layer depends on, beside the device.
type LayerForm = (Format, HeadShape, KvFormat);

impl Kernels {
    /// Compiles them.
    ///
    /// # Errors
    /// When the driver refuses one.
    pub fn new(gpu: &Gpu) -> Result<Self, GpuError> {
        Ok(Self {
            rms_norm: RmsNorm::new(gpu)?,
            matmul: Matmul::new(gpu),
            classes: RefCell::default(),
        })
    }

    /// What proves an adapter before any model is known, and tells apart all ways to compute
    /// products, of which one leaves floats as they are.
    pub fn proven(products: Products) -> (&'static [Format], HeadShape) {
        let formats: &[Format] = match products {
            Products::PackedDot => &[Format::F16, Format::Int8],
            Products::Plain | Products::Cooperative => &[Format::F16],
        };
        (formats, HeadShape { num_heads: 4, num_kv_heads: 2, head_dim: 64 })
    }

    /// The device class of layers with weights of these formats, such heads and such a cache, and
    /// the proof that the device computes them. Compiles what was made so far; `compiled` hears how
    /// many kernels of how many are.
    ///
    /// # Errors
    /// When a kernel doesn't compute what it should.
    pub fn class(
        &self,
        gpu: &Gpu,
        formats: &[Format],
        heads: HeadShape,
        kv: KvFormat,
        compiled: &mut dyn FnMut(usize, usize),
    ) -> Result<Digest, StageError> {
        let mut known = self.classes.borrow_mut();
        let forms: Vec<LayerForm> = formats.iter().map(|format| (*format, heads, kv)).collect();
        let mut tests = Vec::new();
        for form in forms.iter().filter(|form| !known.iter().any(|(other, _)| other == *form)) {
            tests.push((*form, SelfTest::new(gpu, form.0, heads, kv)?));
        }
        gpu.compile(compiled)?;
        for (form, test) in tests {
            known.push((form, test.run(gpu)?));
        }
        let class = |form| known.iter().find(|(other, _)| other == form).map(|(_, class)| *class);
        let classes: Vec<_> = forms.iter().filter_map(class).collect();
        Ok(Digest(self_test::of_several(&classes)))
    }

    /// What a class of such layers is told from others by before anything is computed.
    pub fn name(&self, gpu: &Gpu, formats: &[Format], heads: HeadShape, kv: KvFormat) -> Digest {
        let name = |format: &Format| self_test::name(gpu, *format, heads, kv);
        Digest(self_test::of_several(&formats.iter().map(name).collect::<Vec<_>>()))
    }
}

/// What a step computes with, overwritten layer by layer. Rows are tokens.
pub struct Scratch {
    /// The residual stream between layers. [max_tokens, hidden_size]
    pub hidden: Tensor,
    /// The residual stream between the sublayers of a layer. [max_tokens, hidden_size]
    middle: Tensor,
    /// Rotated queries. [max_tokens, num_heads head_dim]
    queries: Tensor,
    /// [max_tokens, num_heads head_dim]
    attended: Tensor,
    /// [max_tokens, intermediate_size]
    gated: Tensor,
    /// A sublayer's output before its norm, where it has one. [max_tokens, hidden_size]
    sublayer: Option<Tensor>,
    /// Before a product by packed dot products, where the adapter computes them: the widest of all
    /// these, in bytes.
    pub quantized: Option<QuantizedRows>,
}

impl Scratch {
    /// Tensors for steps of at most `max_tokens` tokens.
    ///
    /// # Errors
    /// When the adapter has no room.
    pub fn new(gpu: &Gpu, model: &ModelConfig, max_tokens: usize) -> Result<Self, GpuError> {
        let queries = model.num_heads * model.head_dim;
        let sublayer = model.sandwich_norms.then(|| gpu.alloc_f32(max_tokens * model.hidden_size));
        Ok(Self {
            hidden: gpu.alloc_vec4s(max_tokens * model.hidden_size)?,
            middle: gpu.alloc_vec4s(max_tokens * model.hidden_size)?,
            queries: gpu.alloc_vec4s(max_tokens * queries)?,
            attended: gpu.alloc_vec4s(max_tokens * queries)?,
            gated: gpu.alloc_vec4s(max_tokens * model.intermediate_size)?,
            sublayer: sublayer.transpose()?,
            quantized: quantizes(gpu)
                .then(|| QuantizedRows::new(gpu, max_tokens, widest(model)))
                .transpose()?,
        })
    }

    /// Bytes that [`new`](Self::new) takes.
    pub fn num_bytes(gpu: &Gpu, model: &ModelConfig, max_tokens: usize) -> u64 {
        let rows = |width: usize| gpu.vec4s_bytes(max_tokens * width);
        let sublayer = if model.sandwich_norms { max_tokens * model.hidden_size * 4 } else { 0 };
        let quantized = match quantizes(gpu) {
            true => QuantizedRows::num_bytes(gpu, max_tokens, widest(model)),
            false => 0,
        };
        2 * rows(model.hidden_size)
            + 2 * rows(model.num_heads * model.head_dim)
            + rows(model.intermediate_size)
            + sublayer as u64
            + quantized
    }
}

fn quantizes(gpu: &Gpu) -> bool {
    gpu.caps().products == Products::PackedDot
}

/// Values of the longest row that is multiplied.
fn widest(model: &ModelConfig) -> usize {
    model.hidden_size.max(model.num_heads * model.head_dim).max(model.intermediate_size)
}

/// One decoder layer, bound to its weights.
pub struct Layer {
    /// Before anything: blocks of the cache that become copies of others.
    copy_blocks: BoundCopyBlocks,
    /// Input norm, queries, keys and values, their rotation, the cache.
    qkv: BoundMatmul,
    attention: BoundAttention,
    output: BoundMatmul,
    /// Sandwich norms only: adds the normalised attention to the residual stream.
    post_self_attn_norm: Option<BoundRmsNorm>,
    /// Post-attention norm, gate and up, SwiGLU.
    gate_up: BoundMatmul,
    down: BoundMatmul,
    /// Sandwich norms only: adds the normalised MLP to the residual stream.
    post_mlp_norm: Option<BoundRmsNorm>,
}

/// A decoder layer's weights on the adapter, which no stage changes.
pub struct LayerWeights {
    input_norm: Tensor,
    qkv: WeightMatrix,
    bias: Option<Tensor>,
    output: WeightMatrix,
    post_self_attn_norm: Option<Tensor>,
    post_attention_norm: Tensor,
    gate_up: WeightMatrix,
    down: WeightMatrix,
    post_mlp_norm: Option<Tensor>,
}

impl LayerWeights {
    /// Loads them. `loaded` hears of every matrix's bytes.
    ///
    /// # Errors
    /// When the files don't hold the layer, or the adapter has no room.
    pub fn load(
        gpu: &Gpu,
        files: &Checkpoint,
        layer: usize,
        loaded: &mut dyn FnMut(u64),
    ) -> Result<Self, StageError> {
        let model = files.config();
        let vector = |vector| -> Result<Tensor, StageError> {
            Ok(gpu.upload_vec4s(&files.vector(vector)?)?)
        };
        let vector_if = |is_there: bool, it| is_there.then(|| vector(it)).transpose();
        let mut matrix = |matrix, order| upload(gpu, files, matrix, order, loaded);
        Ok(Self {
            input_norm: vector(Vector::InputNorm(layer))?,
            qkv: matrix(Matrix::Qkv(layer), RowOrder::Plain)?,
            bias: vector_if(model.attention_bias, Vector::QkvBias(layer))?,
            output: matrix(Matrix::Output(layer), RowOrder::Plain)?,
            post_self_attn_norm: vector_if(model.sandwich_norms, Vector::PostSelfAttnNorm(layer))?,
            post_attention_norm: vector(Vector::PostAttentionNorm(layer))?,
            gate_up: matrix(Matrix::GateUp(layer), RowOrder::Paired)?,
            down: matrix(Matrix::Down(layer), RowOrder::Plain)?,
            post_mlp_norm: vector_if(model.sandwich_norms, Vector::PostMlpNorm(layer))?,
        })
    }
}

/// What all layers of a stage share.
pub struct Shared<'a> {
    /// The adapter.
    pub gpu: &'a Gpu,
    /// The compiled kernels.
    pub kernels: &'a Kernels,
    /// The model's shape.
    pub model: &'a ModelConfig,
    /// What a step is told.
    pub inputs: &'a Inputs,
    /// Attention, compiled for the model's heads.
    pub attention: &'a Attention,
    /// Copies within the cache.
    pub copy_blocks: &'a CopyBlocks,
    /// Cosines and sines of every position.
    pub rotary: &'a Rotary,
    /// What a step computes with.
    pub scratch: &'a Scratch,
}

impl Layer {
    /// Binds a layer's kernels to its weights and its cache.
    ///
    /// # Errors
    /// When the adapter has no room.
    pub fn bind(
        shared: &Shared<'_>,
        weights: &LayerWeights,
        cache: &KvCache,
    ) -> Result<Self, StageError> {
        let Shared { gpu, kernels, model, inputs, attention, copy_blocks, rotary, scratch } =
            *shared;
        let eps = model.rms_norm_eps;
        let Scratch { hidden, middle, queries, attended, gated, sublayer, quantized } = scratch;
        // Where a norm follows a sublayer, its output waits in a tensor of its own.
        let stream = |residual, out| match sublayer {
            Some(sublayer) => Output::Store(sublayer),
            None => Output::Residual { residual, out },
        };
        let after = |norm: &Option<Tensor>, stream| -> Result<Option<BoundRmsNorm>, StageError> {
            let (Some(sublayer), Some(norm)) = (sublayer, norm) else { return Ok(None) };
            Ok(Some(kernels.rms_norm.bind(gpu, eps, sublayer, norm, stream)?))
        };
        let plain = |x| Operand { x, norm: None, quantized: quantized.as_ref() };
        let normed = |x, weight| Operand { norm: Some(Norm { weight, eps }), ..plain(x) };
        let product = |operand, weights: &WeightMatrix, output| {
            kernels.matmul.bind(gpu, operand, weights, output)
        };
        let bias = weights.bias.as_ref();
        let to = Output::Qkv(Qkv { bias, inputs, rotary, cache, queries });
        Ok(Self {
            copy_blocks: copy_blocks.bind(gpu, inputs, cache)?,
            qkv: product(normed(hidden, &weights.input_norm), &weights.qkv, to)?,
            attention: attention.bind(
                gpu,
                inputs,
                cache,
                // By the head's own width, also where heads together are wider than a hidden row.
                (model.head_dim as f32).sqrt().recip(),
                (queries, attended),
            )?,
            output: product(plain(attended), &weights.output, stream(hidden, middle))?,
            post_self_attn_norm: after(&weights.post_self_attn_norm, (hidden, middle))?,
            gate_up: product(
                normed(middle, &weights.post_attention_norm),
                &weights.gate_up,
                Output::Swiglu(gated),
            )?,
            down: product(plain(gated), &weights.down, stream(middle, hidden))?,
            post_mlp_norm: after(&weights.post_mlp_norm, (middle, hidden))?,
        })
    }

    /// Records the layer's part of a step.
    pub fn record(&self, pass: &mut Pass, step: StepShape) {
        let num_tokens = step.num_tokens;
        self.copy_blocks.record(pass, step);
        self.qkv.record_step(pass, step);
        self.attention.record(pass, step);
        self.output.record(pass, num_tokens);
        if let Some(norm) = &self.post_self_attn_norm {
            norm.record(pass, num_tokens);
        }
        self.gate_up.record(pass, num_tokens);
        self.down.record(pass, num_tokens);
        if let Some(norm) = &self.post_mlp_norm {
            norm.record(pass, num_tokens);
        }
    }
}

/// Copies a matrix to the adapter, in the type in which the files hand it over.
///
/// # Errors
/// When the files don't hold it, or the adapter has no room.
pub fn upload(
    gpu: &Gpu,
    files: &Checkpoint,
    matrix: Matrix,
    order: RowOrder,
    loaded: &mut dyn FnMut(u64),
) -> Result<WeightMatrix, StageError> {
    let view = files.matrix(matrix)?;
    let shape = (view.rows(), view.cols());
    WeightMatrix::upload(gpu, shape, (on_device(view.format()), order), |rows, bytes| {
        view.read_rows(rows, bytes)?;
        loaded(bytes.len() as u64);
        Ok::<_, StageError>(())
    })
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

/// The shape of a model's heads, as kernels take it.
pub fn head_shape(model: &ModelConfig) -> HeadShape {
    HeadShape {
        num_heads: model.num_heads,
        num_kv_heads: model.num_kv_heads,
        head_dim: model.head_dim,
    }
}

/// The format of a model's weights, as far as they have one: that of its first product.
///
/// # Errors
/// When the files don't hold it.
pub fn format(files: &Checkpoint) -> Result<Format, StageError> {
    Ok(on_device(files.matrix(Matrix::Qkv(0))?.format()))
}

/// The formats of a model's products that a class is of, each once. Of all layers, wherever the
/// model is cut: stages on devices of one class have one class, also where layers are of several
/// formats. The head's counts only where another format would be multiplied in another way:
/// proving a format takes a second on a software driver.
///
/// # Errors
/// When the files don't hold them.
pub fn formats(files: &Checkpoint, products: Products) -> Result<Vec<Format>, StageError> {
    let mut formats = Vec::new();
    if products == Products::PackedDot {
        formats.push(on_device(files.matrix(Matrix::LmHead)?.format()));
    }
    for layer in 0..files.config().num_layers {
        for matrix in [Matrix::Qkv, Matrix::Output, Matrix::GateUp, Matrix::Down] {
            let format = on_device(files.matrix(matrix(layer))?.format());
            if !formats.contains(&format) {
                formats.push(format);
            }
        }
    }
    Ok(formats)
}

/// The format on the device of weights that the files hand over in `format`.
pub fn on_device(format: checkpoint::Format) -> Format {
    match format {
        checkpoint::Format::F32 => Format::F32,
        checkpoint::Format::F16 => Format::F16,
        checkpoint::Format::BF16 => Format::Bf16,
        checkpoint::Format::Int8 => Format::Int8,
        checkpoint::Format::Int4 => Format::Int4,
        checkpoint::Format::Fp8 => Format::Fp8,
    }
}
