//! `autoglm-bench kernels`.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use bench::engine::kernels::{self, Kernel};
use bench::engine::random_model::{SHAPES, Shape};
use clap::builder::ArgPredicate;
use protocol::config::KvCacheDtype;
use shaders::gpu::{Gpu, GpuOptions};
use shaders::kv_cache::{HeadShape, KvFormat};
use shaders::matmul::Products;
use shaders::weights::Format;

use super::terminal::{dim, say, write_json};

#[derive(clap::Args)]
pub(crate) struct KernelsArguments {
    /// Which adapter: its number, or a part of its name [default: the fastest kind there is].
    #[arg(long, value_name = "NAME|INDEX")]
    adapter: Option<String>,
    /// Which kernels.
    #[arg(long, value_delimiter = ',', default_value = "matmul,attention,sampler,embed,norm")]
    kernels: Vec<Kernel>,
    /// Formats of weights.
    #[arg(long, value_delimiter = ',', value_parser = format, default_value = "f16,bf16,int8,int4",
          default_value_if("peer", ArgPredicate::IsPresent, "f32,f16,bf16"))]
    formats: Vec<Format>,
    /// How products are computed: plain, cooperative-matrix, packed-dot, as by
    /// `autoglm-node --products`. Beside those by matrices, all take halves as those are stored.
    #[arg(
        long,
        value_name = "HOW",
        value_delimiter = ',',
        default_value = "plain",
        conflicts_with = "peer"
    )]
    products: Vec<Products>,
    /// Shapes of weights: values of a row, rows; or a model's, as in glm-0.3b.
    #[arg(long, value_name = "KxN|SHAPE", value_delimiter = ',', value_parser = matrices,
          default_value = "2048x2048,4096x4096",
          default_value_if("peer", ArgPredicate::IsPresent, "glm-0.3b"))]
    shapes: Vec<Matrices>,
    /// Rows multiplied at once.
    #[arg(long, value_name = "ROWS", value_delimiter = ',', default_value = "1,4,16,64,512",
          default_value_if("peer", ArgPredicate::IsPresent, "1,16,512"),
          value_parser = clap::value_parser!(u32).range(1..=65_535))]
    rows: Vec<u32>,
    /// Heads of attention: query heads, key and value heads, values of a head.
    #[arg(long, value_name = "QxKVxD", value_delimiter = ',', value_parser = heads,
          default_value = "16x4x64,32x2x128")]
    heads: Vec<HeadShape>,
    /// How keys and values are stored: auto, f32 or f16.
    #[arg(long, value_name = "DTYPE", default_value = "auto")]
    kv_cache_dtype: KvCacheDtype,
    /// Positions that a decoded token attends to.
    #[arg(long, value_name = "TOKENS", value_delimiter = ',', default_value = "512,4096",
          value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    contexts: Vec<u32>,
    /// Sequences that are decoded, or sampled, at once.
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "1,4,16",
          value_parser = clap::value_parser!(u32).range(1..=1024))]
    sequences: Vec<u32>,
    /// Tokens in the vocabulary of the sampler.
    #[arg(long, value_name = "TOKENS", default_value = "151552",
          value_parser = clap::value_parser!(u32).range(1..1 << 24))]
    vocabulary: u32,
    /// Products only, beside those of another library on the same device: of glm-0.3b, in f32, f16
    /// and bf16, of 1, 16 and 512 rows, unless --shapes, --formats and --rows say otherwise.
    #[arg(long, value_name = "PEER")]
    peer: Option<Peer>,
    /// Rounds, of which medians are taken.
    #[arg(long, value_name = "N", default_value = "5")]
    rounds: NonZeroUsize,
    /// Where to write the result as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// A library that products are compared with.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Peer {
    /// burn-wgpu.
    Burn,
}

fn format(text: &str) -> Result<Format, String> {
    let name = |format: &Format| format!("{format:?}").to_lowercase();
    let known = Format::ALL.iter().map(name).collect::<Vec<_>>().join(", ");
    Format::ALL
        .into_iter()
        .find(|format| name(format) == text)
        .ok_or_else(|| format!("choose among {known}"))
}

/// One matrix, or all of a model.
#[derive(Debug, Clone)]
struct Matrices(Vec<(usize, usize)>);

fn matrices(text: &str) -> Result<Matrices, String> {
    if let Some(model) = Shape::named(text) {
        return Ok(Matrices([&model.layer_matrices()[..], &[model.head_matrix()]].concat()));
    }
    let number = |text: &str| text.parse().ok().filter(|number| (1..=1 << 20).contains(number));
    let (k, n) = text.split_once('x').ok_or_else(|| {
        let names = SHAPES.map(|shape| shape.name).join(", ");
        format!("give KxN, as in 4096x4096, or a model of {names}")
    })?;
    match (number(k), number(n)) {
        (Some(k), Some(n)) if k % 4 == 0 => Ok(Matrices(vec![(k, n)])),
        _ => Err("K must be a multiple of 4, both from 1 to 1048576".to_owned()),
    }
}

fn heads(text: &str) -> Result<HeadShape, String> {
    let number = |text: &str| text.parse().ok().filter(|number| (1..=1024).contains(number));
    let numbers: Option<Vec<usize>> = text.split('x').map(number).collect();
    match numbers.as_deref() {
        Some(&[num_heads, num_kv_heads, head_dim])
            if num_heads.is_multiple_of(num_kv_heads) && head_dim.is_multiple_of(4) =>
        {
            Ok(HeadShape { num_heads, num_kv_heads, head_dim })
        }
        Some([_, _, _]) => Err("KV must divide Q, and D be a multiple of 4".to_owned()),
        _ => Err("give QxKVxD, as in 32x2x128, numbers from 1 to 1024".to_owned()),
    }
}

pub(crate) fn time_kernels(arguments: &KernelsArguments) -> Result<ExitCode> {
    if let Some(Peer::Burn) = arguments.peer {
        return compare_burn(arguments);
    }
    // The adapter is opened for what takes most of it.
    let demands = arguments.products.contains(&Products::Cooperative);
    let products = if demands { Products::Cooperative } else { Products::Plain };
    let opened = GpuOptions { products, ..GpuOptions::kept() };
    let gpu = Gpu::open_with(arguments.adapter.as_deref(), opened)?;
    let adapter = kernels::report::adapter(&gpu);
    let (limits, measured) = kernels::measure(&gpu, &options(arguments), |done, all| {
        eprintln!("{}", dim(&format!("round {done} of {all}")));
    })?;
    say(&kernels::report::table(&adapter, &limits, &measured));
    write_json(arguments.json.as_deref(), &kernels::report::json(&adapter, &limits, &measured))?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(feature = "peer-burn")]
fn compare_burn(arguments: &KernelsArguments) -> Result<ExitCode> {
    use bench::engine::peer_burn;

    let mut progress = |text: &str| eprintln!("{}", dim(text));
    let peer_burn::Compared { adapter, limits, measured, missing } =
        peer_burn::compare(arguments.adapter.as_deref(), &options(arguments), &mut progress)?;
    let peer = format!("burn-wgpu {}", peer_burn::VERSION);
    let mut text = kernels::report::table(&adapter, &limits, &measured);
    text += &format!("\nburn is {peer}, on the same device and queue\n");
    for why in &missing {
        text += &format!("not compared: {why}\n");
    }
    say(&text);
    let mut json = kernels::report::json(&adapter, &limits, &measured);
    json["peer"] = peer.into();
    json["not_compared"] = missing.into();
    write_json(arguments.json.as_deref(), &json)?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(not(feature = "peer-burn"))]
fn compare_burn(_: &KernelsArguments) -> Result<ExitCode> {
    anyhow::bail!(
        "this autoglm-bench was built without burn, which takes minutes to build: run \
         `cargo run -p bench --features peer-burn -- kernels --peer burn`"
    )
}

fn options(arguments: &KernelsArguments) -> kernels::KernelOptions {
    kernels::KernelOptions {
        kernels: arguments.kernels.clone(),
        formats: arguments.formats.clone(),
        products: arguments.products.clone(),
        shapes: arguments.shapes.iter().flat_map(|matrices| matrices.0.clone()).collect(),
        batches: sizes(&arguments.rows),
        heads: arguments.heads.clone(),
        kv: kv_format(arguments),
        contexts: sizes(&arguments.contexts),
        sequences: sizes(&arguments.sequences),
        vocab_size: arguments.vocabulary as usize,
        num_rounds: arguments.rounds.get(),
    }
}

fn kv_format(arguments: &KernelsArguments) -> KvFormat {
    node::model::kv_format(arguments.kv_cache_dtype)
}

fn sizes(sizes: &[u32]) -> Vec<usize> {
    sizes.iter().map(|&size| size as usize).collect()
}
