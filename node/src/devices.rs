//! Which adapters a node uses, and how much of their memory.

use anyhow::{Context, Result, bail};
use shaders::adapters::{AdapterKind, Adapters};
use shaders::gpu::Gpu;
use shaders::matmul::Products;

use crate::device_thread::DeviceThread;

/// Opens the adapters, to multiply as `products` says: the one that is named, else every GPU, else
/// the software driver.
///
/// # Errors
/// When there is none, or one of them doesn't compute what it should.
pub fn open(
    adapter: Option<&str>,
    max_memory: Option<u64>,
    products: Products,
) -> Result<Vec<DeviceThread>> {
    let selectors = match adapter {
        Some(adapter) => vec![Some(adapter.to_owned())],
        None => every_gpu(),
    };
    let open =
        |selector| DeviceThread::start(selector, products, move |gpu| memory(gpu, max_memory));
    selectors.into_iter().map(open).collect()
}

fn every_gpu() -> Vec<Option<String>> {
    let adapters = Adapters::list();
    let is_gpu = |kind| matches!(kind, AdapterKind::Discrete | AdapterKind::Integrated);
    let Some(best) = adapters.first().filter(|best| is_gpu(best.kind)) else {
        // Whatever there is; the error says what to install when there is nothing.
        return vec![None];
    };
    // One driver may offer a GPU through several interfaces: one of them is enough.
    let same = adapters.iter().filter(|a| a.kind == best.kind && a.backend == best.backend);
    same.map(|adapter| Some(adapter.index.to_string())).collect()
}

/// Bytes that stages may take together.
fn memory(gpu: &Gpu, max_memory: Option<u64>) -> Result<u64> {
    let info = gpu.info();
    match (max_memory, info.memory_bytes) {
        (Some(max), Some(has)) => Ok(max.min(has)),
        (Some(max), None) => Ok(max),
        // Some is the driver's own.
        (None, Some(has)) => Ok(has / 10 * 9),
        (None, None) if info.is_cpu() => {
            let mut system =
                sysinfo::System::new().context("can't tell how much memory there is")?;
            system.refresh_memory();
            // The machine's memory is everyone's.
            Ok(system.available_memory() / 2)
        }
        (None, None) => {
            bail!("{} doesn't say how much memory it has: give --max-memory", info.name)
        }
    }
}
