//! `autoglm-bench quality`: what rounding a model's weights costs.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use bench::engine::quality;
use bench::engine::random_model::Storage;
use checkpoint::Checkpoint;
use protocol::config::Quantize;
use shaders::matmul::Products;

use super::model::find_or_write;
use super::terminal::{dim, say, write_json};

#[derive(clap::Args)]
pub(crate) struct QualityArguments {
    /// A model directory, a GGUF file, or a shape, computed with random weights.
    #[arg(value_name = "PATH|SHAPE")]
    model: String,
    /// A text, whose perplexity is compared; without one, only logits after any tokens are.
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// What float weights are rounded to, beside `none`.
    #[arg(long, value_name = "FORMAT", value_delimiter = ',', default_value = "int8,int4")]
    quantize: Vec<Quantize>,
    /// How products are computed: plain, cooperative-matrix, packed-dot (of rounded weights), as by
    /// `autoglm-node --products`.
    #[arg(long, value_name = "HOW", value_delimiter = ',', default_value = "plain")]
    products: Vec<Products>,
    /// How the random weights of a shape are stored.
    #[arg(long, value_name = "FORMAT", default_value = "bf16")]
    storage: Storage,
    /// Which adapter: its number, or a part of its name [default: the fastest kind there is].
    #[arg(long, value_name = "NAME|INDEX")]
    adapter: Option<String>,
    /// Where to write the result as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

pub(crate) fn compare_formats(arguments: &QualityArguments) -> Result<ExitCode> {
    let text = arguments.text.as_ref().map(|path| {
        std::fs::read_to_string(path).with_context(|| format!("can't read {}", path.display()))
    });
    let text = text.transpose()?;
    let (model, _scratch) = find_or_write(&arguments.model, arguments.storage)?;
    let format = node::model::format(&Checkpoint::open(&model)?)?;
    if format.is_grouped() {
        bail!(
            "{}: its weights are {format:?} already, and nothing is left to round",
            arguments.model
        );
    }
    let windows = quality::windows(&model, text.as_deref())?;
    // What the others are compared with.
    let plain = (Quantize::None, Products::Plain);
    let mut ways = vec![plain];
    for quantize in [Quantize::None].into_iter().chain(arguments.quantize.iter().copied()) {
        let pairs = arguments.products.iter().map(|&products| (quantize, products));
        ways.extend(
            pairs.filter(|&way| way != plain && way != (Quantize::None, Products::PackedDot)),
        );
    }
    let mut all = Vec::new();
    for way in ways {
        eprintln!("{}", dim(&format!("{} windows, {} {}", windows.len(), way.0, way.1)));
        all.push(quality::listen(&model, arguments.adapter.as_deref(), way, &windows)?);
    }
    say(&quality::table(&all, text.is_some()));
    write_json(arguments.json.as_deref(), &quality::report(&all, text.is_some()))?;
    Ok(ExitCode::SUCCESS)
}
