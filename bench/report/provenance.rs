//! Where a number comes from: this machine, this binary, and what the server says of itself.

use std::collections::BTreeSet;

use serde_json::Value;

use super::result::Provenance;
use crate::client::Server;

/// Depth to which a server's answer is searched.
const MAX_DEPTH: usize = 16;
/// Names that are kept of adapters and of drivers.
const MAX_NAMES: usize = 64;

/// This machine, this binary and its command line.
pub fn here() -> Provenance {
    Provenance {
        machine: machine(),
        commit: option_env!("AUTOGLM_COMMIT").map(str::to_owned),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        flags: std::env::args_os()
            .skip(1)
            .map(|flag| flag.to_string_lossy().into_owned())
            .collect(),
        ..Provenance::default()
    }
}

/// Adds what a server tells of itself: its `server` header, and, where it is ours, the adapters
/// and drivers of its stages. One that tells nothing, or can't be asked, leaves these open.
pub async fn ask(server: &Server, provenance: &mut Provenance) {
    let Some((name, stages)) = server.about().await else { return };
    provenance.server = name;
    let join = |names: BTreeSet<String>| {
        (!names.is_empty()).then(|| names.into_iter().collect::<Vec<_>>().join(", "))
    };
    let mut adapters = BTreeSet::new();
    find(&stages, &["adapter", "adapter_name"], &mut adapters, 0);
    provenance.adapter = join(adapters);
    let mut drivers = BTreeSet::new();
    find(&stages, &["driver", "driver_info"], &mut drivers, 0);
    provenance.driver = join(drivers);
}

/// The texts under one of these names, however deep.
fn find(value: &Value, names: &[&str], found: &mut BTreeSet<String>, depth: usize) {
    if depth > MAX_DEPTH || found.len() >= MAX_NAMES {
        return;
    }
    match value {
        Value::Array(values) => {
            values.iter().for_each(|value| find(value, names, found, depth + 1))
        }
        Value::Object(fields) => {
            for (name, value) in fields {
                match value {
                    Value::String(text) if names.contains(&name.as_str()) && !text.is_empty() => {
                        found.insert(text.chars().take(200).collect());
                    }
                    value => find(value, names, found, depth + 1),
                }
            }
        }
        _ => {}
    }
}

/// As in `AMD EPYC 9B14, 2 cores, 16 GB, Debian GNU/Linux 13`.
fn machine() -> String {
    use sysinfo::{CpuRefreshKind, MemoryRefreshKind, RefreshKind, System};
    let what = RefreshKind::nothing()
        .with_cpu(CpuRefreshKind::nothing())
        .with_memory(MemoryRefreshKind::nothing().with_ram());
    let system = System::new_with_specifics(what).ok();
    let processors = system.as_ref().map_or(&[] as &[_], System::cpus);
    let processor = processors.first().map_or("", |cpu| cpu.brand().trim());
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let memory = system.as_ref().map_or(0, System::total_memory) as f64 / 1e9;
    let parts = [
        if processor.is_empty() { std::env::consts::ARCH.to_owned() } else { processor.to_owned() },
        format!("{cores} cores"),
        format!("{memory:.0} GB"),
        System::long_os_version().unwrap_or_else(|_| std::env::consts::OS.to_owned()),
    ];
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn adapters_and_drivers_are_found_however_the_server_puts_them() {
        let stages = json!({"pipelines": [{"stages": [
            {"node": 1, "adapter": "llvmpipe", "driver": "Mesa 25"},
            {"node": 2, "adapter": {"adapter_name": "H200", "driver_info": "580"}},
            {"node": 3, "adapter": "llvmpipe"},
        ]}]});
        let found = |names: &[&str]| {
            let mut found = BTreeSet::new();
            find(&stages, names, &mut found, 0);
            found.into_iter().collect::<Vec<_>>()
        };
        assert_eq!(found(&["adapter", "adapter_name"]), ["H200", "llvmpipe"]);
        assert_eq!(found(&["driver", "driver_info"]), ["580", "Mesa 25"]);
    }

    #[test]
    fn this_machine_has_a_name() {
        let here = here();
        assert!(here.machine.contains(" cores, "), "{}", here.machine);
        if let Some(commit) = here.commit {
            let id = commit.trim_end_matches("-dirty");
            assert!(id.len() == 40 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{commit}");
        }
    }
}
