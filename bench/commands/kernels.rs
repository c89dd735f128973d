//! `autoglm-bench kernels`.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use bench::engine::kernels;
use shaders::gpu::{Gpu, GpuOptions};
use shaders::weights::Format;

use super::terminal::{dim, say};

#[derive(clap::Args)]
pub(crate) struct KernelsArguments {
    /// Which adapter: its number, or a part of its name [default: the fastest kind there is].
    #[arg(long, value_name = "NAME|INDEX")]
    adapter: Option<String>,
    /// Formats of weights.
    #[arg(long, value_delimiter = ',', value_parser = format, default_value = "f16,bf16,int8,int4")]
    formats: Vec<Format>,
    /// Shapes of weights: values of a row, rows.
    #[arg(long, value_name = "KxN", value_delimiter = ',', value_parser = shape,
          default_value = "2048x2048,4096x4096")]
    shapes: Vec<(usize, usize)>,
    /// Rows multiplied at once.
    #[arg(long, value_name = "ROWS", value_delimiter = ',', default_value = "1,4,16,64,512",
          value_parser = clap::value_parser!(u32).range(1..=65_535))]
    rows: Vec<u32>,
    /// Rounds, of which medians are taken.
    #[arg(long, value_name = "N", default_value = "5")]
    rounds: NonZeroUsize,
    /// Where to write the result as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

fn format(text: &str) -> Result<Format, String> {
    let name = |format: &Format| format!("{format:?}").to_lowercase();
    let known = Format::ALL.iter().map(name).collect::<Vec<_>>().join(", ");
    Format::ALL
        .into_iter()
        .find(|format| name(format) == text)
        .ok_or_else(|| format!("choose among {known}"))
}

fn shape(text: &str) -> Result<(usize, usize), String> {
    let number = |text: &str| text.parse().ok().filter(|number| (1..=1 << 20).contains(number));
    let (k, n) = text.split_once('x').ok_or("give KxN, as in 4096x4096")?;
    match (number(k), number(n)) {
        (Some(k), Some(n)) if k % 4 == 0 => Ok((k, n)),
        _ => Err("K must be a multiple of 4, both from 1 to 1048576".to_owned()),
    }
}

pub(crate) fn time_kernels(arguments: &KernelsArguments) -> Result<ExitCode> {
    let gpu = Gpu::open_with(arguments.adapter.as_deref(), GpuOptions::kept())?;
    let options = kernels::Options {
        formats: arguments.formats.clone(),
        shapes: arguments.shapes.clone(),
        batches: arguments.rows.iter().map(|&rows| rows as usize).collect(),
        num_rounds: arguments.rounds.get(),
    };
    let (limits, measured) = kernels::measure(&gpu, &options, |done, all| {
        eprintln!("{}", dim(&format!("round {done} of {all}")));
    })?;
    let info = gpu.info();
    let adapter = format!("{}, {}, {}", info.name, info.driver, info.backend);
    say(&kernels::table(&adapter, &limits, &measured));
    if let Some(path) = &arguments.json {
        let json = format!("{:#}\n", kernels::report(&adapter, &limits, &measured));
        std::fs::write(path, json).with_context(|| format!("can't write {}", path.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}
