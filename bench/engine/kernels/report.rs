//! What was measured of kernels, for people and for machines.

use serde_json::{Value, json};

use shaders::gpu::Gpu;

use super::{KernelTimes, Limits};
use loadgen::numbers;

/// What an adapter is called.
pub fn adapter(gpu: &Gpu) -> String {
    let info = gpu.info();
    format!("{}, {}, {}", info.name, info.driver, info.backend)
}

/// The measurements for people.
pub fn table(adapter: &str, limits: &Limits, measured: &[KernelTimes]) -> String {
    let mut text = format!(
        "{adapter}\n  copy {:.1} GB/s · multiply-add {:.1} GFLOP/s · dispatch {:.1} µs\n\n\
         {:<9}  {:<26} {:>5} {:>10} {:>8} {:>7} {:>8} {:>7}  layout\n",
        limits.copy_bytes / 1e9,
        limits.fma_operations / 1e9,
        limits.dispatch * 1e6,
        "kernel",
        "shape",
        "rows",
        "time",
        "GB/s",
        "%copy",
        "GFLOP/s",
        "%fma",
    );
    for one in measured {
        let about = &one.about;
        let (operations, percent) = match about.num_operations {
            0.0 => ("-".to_owned(), "-".to_owned()),
            _ => (
                format!("{:.2}", one.operations_rate() / 1e9),
                format!("{:.1}", one.arithmetic_percent(limits)),
            ),
        };
        let last = match one.ratio {
            Some(ratio) => format!("ours/{} {ratio:.3}", about.kernel),
            None => about.layout.clone(),
        };
        let line = format!(
            "{:<9}  {:<26} {:>5} {:>10} {:>8.2} {:>7.1} {operations:>8} {percent:>7}  {last}",
            about.kernel,
            about.shape,
            about.rows,
            numbers::time(one.seconds() * 1e3),
            one.bytes_rate() / 1e9,
            one.memory_percent(limits),
        );
        text += line.trim_end();
        text.push('\n');
    }
    text
}

/// The measurements for machines.
pub fn json(adapter: &str, limits: &Limits, measured: &[KernelTimes]) -> Value {
    let kernels: Vec<_> = measured
        .iter()
        .map(|one| {
            let about = &one.about;
            let mut entry = json!({ "kernel": about.kernel });
            let more = json!({
                "rows": about.rows,
                "layout": about.layout,
                "seconds": one.seconds(),
                "bytes_per_second": one.bytes_rate(),
                "flops": one.operations_rate(),
                "copy_percent": one.memory_percent(limits),
                "fma_percent": one.arithmetic_percent(limits),
            });
            if let Value::Object(entry) = &mut entry {
                for object in [&about.keys, &more] {
                    entry.extend(object.as_object().cloned().unwrap_or_default());
                }
                entry.extend(one.ratio.map(|ratio| ("ours_over_peer".to_owned(), ratio.into())));
            }
            entry
        })
        .collect();
    json!({
        "adapter": adapter,
        "copy_bytes_per_second": limits.copy_bytes,
        "fma_flops": limits.fma_operations,
        "dispatch_seconds": limits.dispatch,
        "kernels": kernels,
    })
}
