//! Which adapters a node uses, and how much of their memory.

use anyhow::{Context, Result, bail};
use shaders::adapters::{AdapterDetails, AdapterInfo, AdapterKind, Adapters};
use shaders::gpu::Gpu;
use shaders::products::Wanted;

use crate::device_thread::DeviceThread;

/// Opens the adapters, to multiply as `products` says: the one that is named, else every GPU, else
/// the software driver.
///
/// # Errors
/// When there is none, or one of them doesn't compute what it should.
pub(crate) fn open(
    adapter: Option<&str>,
    max_memory: Option<u64>,
    products: Wanted,
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
    let used = choose(Adapters::details(), None).into_iter().filter(|(_, unused)| unused.is_none());
    let selectors: Vec<_> = used.map(|(it, _)| Some(it.info.index.to_string())).collect();
    // Whatever there is; the error says what to install when there is nothing.
    if selectors.is_empty() { vec![None] } else { selectors }
}

/// Why each adapter isn't used, if it isn't: the one that is named is, else every GPU of the
/// fastest kind, else the software driver.
pub(crate) fn choose(
    adapters: Vec<AdapterDetails>,
    selector: Option<&str>,
) -> Vec<(AdapterDetails, Option<String>)> {
    let usable = adapters.iter().filter(|it| it.lacks.is_none()).map(|it| &it.info);
    let best = match selector {
        Some(selector) => usable.clone().find(|it| it.is_selected(selector)),
        None => usable.min_by_key(|it| it.kind),
    };
    let best = best.cloned();
    let is_gpu = |kind| matches!(kind, AdapterKind::Discrete | AdapterKind::Integrated);
    let why_not = |it: &AdapterDetails| {
        let AdapterInfo { index, kind, backend, .. } = &it.info;
        match (&it.lacks, &best) {
            (Some(lacks), _) => Some(format!("it lacks {lacks}")),
            (None, Some(best)) if best.index == *index => None,
            (None, _) if selector.is_some() => Some("--adapter names another".to_owned()),
            (None, Some(best)) if best.kind != *kind => {
                Some(format!("a {} one is there", best.kind))
            }
            // One driver may offer a GPU through several interfaces: one of them is enough.
            (None, Some(best)) if best.backend != *backend => {
                Some(format!("it can be reached through {} as well", best.backend))
            }
            (None, Some(best)) if !is_gpu(best.kind) => Some("another of its kind is there".into()),
            (None, _) => None,
        }
    };
    let causes: Vec<_> = adapters.iter().map(why_not).collect();
    adapters.into_iter().zip(causes).collect()
}

/// Bytes that stages may take together.
pub(crate) fn memory(gpu: &Gpu, max_memory: Option<u64>) -> Result<u64> {
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
