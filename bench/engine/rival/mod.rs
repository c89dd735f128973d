//! What row invariance costs: our kernels against a rival that may add in any order.
//!
//! The rival is tuned as an engine without that promise would be: for every shape it tries several
//! splits of k and of positions, chains, tiles, moments to load weights and numbers of rows, and
//! takes the fastest. It reads our weights and our cache, so that nothing but the freedom differs;
//! and it must compute the same numbers as ours, but for rounding, before it is timed. Both then
//! run in the same rounds.
//!
//! On a software device what counts is processor time: a machine's other work is none of it.

mod flash;
mod merge;
mod product;
pub mod report;
mod sum;

use anyhow::{Result, bail, ensure};
use shaders::attention::Attention;
use shaders::gpu::Gpu;
use shaders::kernel::Pass;
use shaders::kv_cache::KvFormat;
use shaders::matmul::{Matmul, Output};
use shaders::tensor::Tensor;
use shaders::weights::{Format, WeightMatrix};

use self::flash::BoundFlash;
use self::product::BoundProduct;
use crate::engine::kernels::attention::{self, Operands, PROMPT_TOKENS, Step};
use crate::engine::kernels::matmul::{format_name, weights};
use crate::engine::kernels::numbers;
use crate::engine::kernels::rounds::{Task, Times, interleave};
use crate::engine::random_model::Shape;
use crate::numbers::{median, time};

/// Work of a model whose price is wanted: all its products and attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// One token of one sequence, after so many.
    Decode {
        /// Positions it attends to.
        context: usize,
    },
    /// The tokens of a prompt, without the head.
    Prefill,
}

impl Phase {
    /// For people.
    pub fn name(self) -> String {
        match self {
            Self::Decode { context } => format!("decode @ {context}"),
            Self::Prefill => format!("prefill {PROMPT_TOKENS}"),
        }
    }

    fn num_rows(self) -> usize {
        match self {
            Self::Decode { .. } => 1,
            Self::Prefill => PROMPT_TOKENS,
        }
    }

    fn step(self) -> Step {
        match self {
            Self::Decode { context } => Step::Decode { sequences: 1, context },
            Self::Prefill => Step::Prefill { num_tokens: PROMPT_TOKENS },
        }
    }
}

/// One kernel of ours on one shape, and the rival's.
#[derive(Debug, Clone)]
pub struct Pair {
    /// What is computed, for people.
    pub what: String,
    /// Of the weights; none of attention.
    pub format: Option<Format>,
    /// The phases that it is part of, and how often a layer or the head makes it.
    pub times: Vec<(Phase, usize)>,
    /// How ours is laid out, and the rival's.
    pub layouts: [String; 2],
    /// Seconds of ours, and of the rival's, round by round: of processor time on a software device,
    /// else by the clock.
    pub seconds: [Vec<f64>; 2],
}

impl Pair {
    /// Our time over the rival's, the median round's.
    pub fn ratio(&self) -> f64 {
        let [ours, rival] = &self.seconds;
        median(&ours.iter().zip(rival).map(|(ours, rival)| ours / rival).collect::<Vec<_>>())
    }
}

/// What invariance costs in a phase of a model with weights of `format`: the share by which our
/// time is above the rival's, least, median and most of the rounds.
pub fn price(pairs: &[Pair], format: Format, phase: Phase) -> [f64; 3] {
    let parts: Vec<_> = pairs
        .iter()
        .filter(|pair| pair.format.is_none_or(|own| own == format))
        .filter_map(|pair| {
            let (_, times) = pair.times.iter().find(|(own, _)| *own == phase)?;
            Some((pair, *times as f64))
        })
        .collect();
    let num_rounds = parts.first().map_or(0, |(pair, _)| pair.seconds[0].len());
    let total = |side: usize, round: usize| -> f64 {
        parts.iter().map(|(pair, times)| times * pair.seconds[side][round]).sum()
    };
    let mut prices: Vec<_> =
        (0..num_rounds).map(|round| total(0, round) / total(1, round) - 1.0).collect();
    prices.sort_by(f64::total_cmp);
    let [first, last] = [prices.first(), prices.last()].map(|end| end.copied().unwrap_or(f64::NAN));
    [first, median(&prices), last]
}

/// What is compared.
#[derive(Debug, Clone)]
pub struct Options {
    /// The model whose kernels they are.
    pub model: Shape,
    /// Formats of weights.
    pub formats: Vec<Format>,
    /// Of the KV cache.
    pub kv: KvFormat,
    /// Contexts of decoding.
    pub contexts: Vec<usize>,
    /// Rounds; medians are over them.
    pub num_rounds: usize,
}

impl Options {
    /// The phases whose price is wanted.
    pub fn phases(&self) -> Vec<Phase> {
        let decode = self.contexts.iter().map(|&context| Phase::Decode { context });
        decode.chain([Phase::Prefill]).collect()
    }
}

/// Compares all kernels of a model. `progress` hears what is done.
///
/// # Errors
/// When the device has no room or fails, or the rival computes something else.
pub fn compare(gpu: &Gpu, options: &Options, progress: &mut dyn FnMut(&str)) -> Result<Vec<Pair>> {
    let (mut pairs, mut tasks) = (Vec::new(), Vec::new());
    let phases = options.phases();
    let layers = options.model.num_layers();
    let matmul = Matmul::new(gpu);
    for &format in &options.formats {
        let head = options.model.head_matrix();
        let matrices = options.model.layer_matrices().map(|shape| (shape, layers, true));
        for (shape, times, in_prefill) in matrices.into_iter().chain([(head, 1, false)]) {
            let weights = weights(gpu, shape, format)?;
            for num_rows in [1, PROMPT_TOKENS] {
                let of: Vec<_> = phases
                    .iter()
                    .filter(|phase| phase.num_rows() == num_rows)
                    .filter(|phase| in_prefill || **phase != Phase::Prefill)
                    .map(|phase| (*phase, times))
                    .collect();
                if !of.is_empty() {
                    let (pair, sides) = products(gpu, &matmul, &weights, (num_rows, of), progress)?;
                    pairs.push(pair);
                    tasks.extend(sides);
                }
            }
        }
    }
    let heads = options.model.head_shape();
    let most = options.contexts.iter().copied().chain([PROMPT_TOKENS]).max().unwrap_or(1);
    let kernel = Attention::new(gpu, heads, options.kv, most)?;
    for &phase in &phases {
        let operands = Operands::new(gpu, heads, options.kv, phase.step())?;
        let (pair, sides) = attentions(gpu, &kernel, &operands, (phase, layers), progress)?;
        pairs.push(pair);
        tasks.extend(sides);
    }
    gpu.save_kernels();
    interleave(&mut tasks, options.num_rounds, |done, all| {
        progress(&format!("round {done} of {all}"));
    })?;
    for (pair, sides) in pairs.iter_mut().zip(tasks.chunks_exact(2)) {
        pair.seconds = [0, 1].map(|side| sides[side].times.iter().map(|&t| cost(gpu, t)).collect());
    }
    Ok(pairs)
}

/// What a time counts as.
fn cost(gpu: &Gpu, times: Times) -> f64 {
    let by_processor = gpu.caps().is_cpu && times.processor.is_finite();
    if by_processor { times.processor } else { times.wall }
}

fn product_name(weights: &WeightMatrix, num_rows: usize) -> String {
    let WeightMatrix { cols, rows, format, .. } = weights;
    format!("{} {cols} x {rows}, rows {num_rows}", format_name(*format))
}

/// Our product and the rival's best.
fn products<'a>(
    gpu: &'a Gpu,
    matmul: &Matmul,
    weights: &WeightMatrix,
    (num_rows, times): (usize, Vec<(Phase, usize)>),
    progress: &mut dyn FnMut(&str),
) -> Result<(Pair, [Task<'a>; 2])> {
    let x = gpu.upload_vec4s(&numbers(num_rows * weights.cols))?;
    let out = gpu.alloc_f32(num_rows * weights.rows)?;
    let ours = matmul.bind(gpu, (&x).into(), weights, Output::Store(&out))?;
    let layout = ours.layout(num_rows);
    let ours = Side::new(layout, move |pass, tried| {
        ours.record(pass, if tried { num_rows.min(TRIED_ROWS) } else { num_rows });
    });
    let other = gpu.alloc_f32(out.len())?;
    let mut ways = Vec::new();
    for way in product::Way::all(gpu.caps(), num_rows) {
        let bound = BoundProduct::new(gpu, way, &x, weights, &other)?;
        ways.push(Side::new(bound.name(), move |pass, tried| {
            bound.record(pass, if tried { num_rows.min(TRIED_ROWS) } else { num_rows });
        }));
    }
    let what = product_name(weights, num_rows);
    let (layouts, tasks) = best(gpu, (&what, ours, &out), (ways, &other), progress)?;
    let format = Some(weights.format);
    Ok((Pair { what, format, times, layouts, seconds: Default::default() }, tasks))
}

/// Our attention and the rival's best.
fn attentions<'a>(
    gpu: &'a Gpu,
    kernel: &Attention,
    operands: &Operands,
    (phase, times): (Phase, usize),
    progress: &mut dyn FnMut(&str),
) -> Result<(Pair, [Task<'a>; 2])> {
    let Operands { inputs, shape, cache, q, out } = operands;
    let ours = kernel.bind(gpu, inputs, cache, attention::scale(cache.shape), (q, out))?;
    let (layout, shape) = (ours.layout(*shape), *shape);
    let ours = Side::new(layout, move |pass, _| ours.record(pass, shape));
    let other = gpu.alloc_vec4s(out.len())?;
    let mut ways = Vec::new();
    for way in flash::Way::all(gpu.caps(), cache.shape, phase.step()) {
        let bound = BoundFlash::new(gpu, way, operands, &other)?;
        ways.push(Side::new(bound.name(), move |pass, _| bound.record(pass)));
    }
    let what = format!("attention, {}{}", phase.name(), attention::cache_name(cache.format));
    let (layouts, tasks) = best(gpu, (&what, ours, out), (ways, &other), progress)?;
    let times = vec![(phase, times)];
    Ok((Pair { what, format: None, times, layouts, seconds: Default::default() }, tasks))
}

/// A way of computing something.
struct Side {
    layout: String,
    record: Record,
}

/// Records it; all of it, or what is enough to find out how fast it is.
type Record = Box<dyn Fn(&mut Pass, bool)>;

impl Side {
    fn new(layout: String, record: impl Fn(&mut Pass, bool) + 'static) -> Self {
        Self { layout, record: Box::new(record) }
    }
}

/// How often a way is timed while the best one is looked for.
const TRIES: usize = 3;

/// Rows of a product that are computed meanwhile: what is fastest for many hangs little on how
/// many they are.
const TRIED_ROWS: usize = 64;

/// How far a result of the rival's may be from ours, of the largest one.
const TOLERANCE: f32 = 1e-4;

/// Ours and the fastest of the rival's `ways`, each proven to compute what ours does.
fn best<'a>(
    gpu: &'a Gpu,
    (what, ours, out): (&str, Side, &Tensor),
    (ways, other): (Vec<Side>, &Tensor),
    progress: &mut dyn FnMut(&str),
) -> Result<([String; 2], [Task<'a>; 2])> {
    progress(what);
    let run = |side: &Side, out: &Tensor| -> Result<Vec<f32>> {
        let mut pass = Pass::new();
        (side.record)(&mut pass, false);
        gpu.run(&pass)?;
        Ok(gpu.read_f32(out)?)
    };
    let expected = run(&ours, out)?;
    let largest = expected.iter().fold(0.0, |largest: f32, value| largest.max(value.abs()));
    let mut fastest: Option<(f64, String, Record)> = None;
    for way in ways {
        let actual = run(&way, other)?;
        let distances = expected.iter().zip(&actual).map(|(ours, rival)| (ours - rival).abs());
        let distance = distances.fold(0.0, f32::max);
        let is_finite = actual.iter().all(|value| value.is_finite());
        ensure!(
            is_finite && distance <= TOLERANCE * largest,
            "{what}: the rival's {} is off by {distance}, of at most {largest}",
            way.layout,
        );
        let seconds = least(gpu, &way)?;
        progress(&format!("  {}: {}", way.layout, time(seconds * 1e3)));
        if fastest.as_ref().is_none_or(|(least, ..)| seconds < *least) {
            fastest = Some((seconds, way.layout, way.record));
        }
    }
    progress(&format!("  ours {}: {}", ours.layout, time(least(gpu, &ours)? * 1e3)));
    let Some((_, layout, rival)) = fastest else {
        bail!("{what}: the rival has no way for this adapter");
    };
    let task = |record: Record| Task::of_pass(gpu, move |pass| record(pass, false));
    Ok(([ours.layout, layout], [task(ours.record)?, task(rival)?]))
}

/// The least seconds of some tries.
fn least(gpu: &Gpu, side: &Side) -> Result<f64> {
    let mut task = Task::of_pass(gpu, |pass| (side.record)(pass, true))?;
    let mut least = f64::INFINITY;
    for _ in 0..TRIES {
        least = least.min(cost(gpu, task.time()?));
    }
    Ok(least)
}

#[cfg(test)]
mod tests;
