//! `autoglm-bench adapters`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use serde_json::{Value, json};
use shaders::adapters::{AdapterDetails, Adapters};

use super::terminal::{say, write_json};

#[derive(clap::Args)]
pub(crate) struct AdaptersArguments {
    /// Where to write it as JSON, with all features and limits.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

pub(crate) fn list(arguments: &AdaptersArguments) -> Result<ExitCode> {
    let adapters = Adapters::details();
    if adapters.is_empty() {
        say("no driver offers an adapter (Debian's mesa-vulkan-drivers has a software one)\n");
    }
    for adapter in &adapters {
        say(&text(adapter));
    }
    let all: Vec<_> = adapters.iter().map(report).collect();
    write_json(arguments.json.as_deref(), &all)?;
    Ok(if adapters.is_empty() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn text(adapter: &AdapterDetails) -> String {
    let AdapterDetails { info, subgroup_sizes: [least, most], features, .. } = adapter;
    let memory = match info.memory_bytes {
        Some(bytes) => format!("{:.1} GiB of its own", bytes as f64 / f64::from(1 << 30)),
        None if info.is_cpu() => "the machine's".to_owned(),
        None => "not told by the driver".to_owned(),
    };
    let binding = info.max_binding_bytes >> 20;
    let sizes = match adapter.cooperative_matrices.join(", ") {
        none if none.is_empty() => "none".to_owned(),
        sizes => sizes,
    };
    format!(
        "{info}\n  driver    {}\n  memory    {memory}; tensors of at most {binding} MiB\n  \
         subgroups {least} to {most} lanes\n  matrices  {sizes}\n  products  {}\n  \
         features  {} (--json names them)\n",
        info.driver,
        names(adapter).join(", "),
        features.len(),
    )
}

fn names(adapter: &AdapterDetails) -> Vec<String> {
    adapter.products.iter().map(ToString::to_string).collect()
}

fn report(adapter: &AdapterDetails) -> Value {
    let info = &adapter.info;
    json!({
        "index": info.index,
        "name": info.name,
        "driver": info.driver,
        "backend": info.backend,
        "kind": info.kind.to_string(),
        "memory_bytes": info.memory_bytes,
        "max_binding_bytes": info.max_binding_bytes,
        "subgroup_sizes": adapter.subgroup_sizes,
        "cooperative_matrices": adapter.cooperative_matrices,
        "products": names(adapter),
        "features": adapter.features,
        "limits": adapter.limits,
    })
}
