//! Where a number comes from: this machine, this binary, and what the server says of itself.

use std::collections::BTreeSet;

use serde_json::Value;

use super::result::Provenance;
use crate::client::Server;

/// Names that are kept of adapters and of drivers.
const MAX_NAMES: usize = 64;
/// Characters of a name.
const MAX_NAME_CHARS: usize = 200;

/// This machine, this binary and its command line.
pub fn here() -> Provenance {
    Provenance {
        machine: machine(),
        commit: option_env!("AUTOGLM_COMMIT").map(str::to_owned),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        flags: without_secrets(
            std::env::args_os().skip(1).map(|flag| flag.to_string_lossy().into_owned()),
        ),
        ..Provenance::default()
    }
}

/// Options whose values give access to a server: results are shown around.
const SECRET_FLAGS: [&str; 2] = ["--api-key", "--header"];
/// What stands in their place.
const HIDDEN: &str = "(not shown)";

/// A command line as a result may hold it: without keys. Of a header its name is kept.
pub fn without_secrets(flags: impl IntoIterator<Item = String>) -> Vec<String> {
    let hide = |name: &str, value: &str| match value.split_once(':') {
        Some((header, _)) if name == "--header" => format!("{header}: {HIDDEN}"),
        _ => HIDDEN.to_string(),
    };
    let mut secret = None;
    let shown = flags.into_iter().map(|flag| {
        if let Some(name) = secret.take() {
            return hide(name, &flag);
        }
        let given = flag.split_once('=').map_or((flag.as_str(), None), |(a, b)| (a, Some(b)));
        match (SECRET_FLAGS.into_iter().find(|name| *name == given.0), given.1) {
            (Some(name), Some(value)) => format!("{name}={}", hide(name, value)),
            (found, _) => {
                secret = found;
                flag
            }
        }
    });
    shown.collect()
}

/// Adds what a server tells of itself: its `server` header, and, where it is ours, the adapters
/// and drivers of its nodes. One that tells nothing, or can't be asked, leaves these open.
pub async fn ask(server: &Server, provenance: &mut Provenance) {
    let Some((name, stages)) = server.about().await else { return };
    provenance.server = name;
    provenance.adapter = of_nodes(&stages, "adapters");
    provenance.driver = of_nodes(&stages, "drivers");
}

/// The texts that nodes list under `name`, each once, with commas; none where there is none.
fn of_nodes(stages: &Value, name: &str) -> Option<String> {
    let nodes = stages["nodes"].as_array().into_iter().flatten();
    let texts = nodes.filter_map(|node| node[name].as_array()).flatten().filter_map(Value::as_str);
    let short = |text: &str| text.chars().take(MAX_NAME_CHARS).collect::<String>();
    let found: BTreeSet<String> = texts.take(MAX_NAMES).map(short).collect();
    (!found.is_empty()).then(|| found.into_iter().collect::<Vec<_>>().join(", "))
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
    fn adapters_and_drivers_are_told_once_each() {
        let stages = json!({"nodes": [
            {"node": "1", "adapters": ["llvmpipe"], "drivers": ["Mesa 25"]},
            {"node": "2", "adapters": ["H200", "llvmpipe"], "drivers": [580, "580"]},
        ]});
        assert_eq!(of_nodes(&stages, "adapters").as_deref(), Some("H200, llvmpipe"));
        assert_eq!(of_nodes(&stages, "drivers").as_deref(), Some("580, Mesa 25"));
        assert_eq!(of_nodes(&json!("another server"), "adapters"), None);
    }

    #[test]
    fn a_result_holds_no_key() {
        let given = [
            "load",
            "--api-key",
            "sk-1",
            "--url",
            "http://a",
            "--api-key=sk-2",
            "--header",
            "authorization: Basic 3",
            "--header=x-team: 4",
            "--rate=1",
            "--header",
            "5",
        ];
        let shown = without_secrets(given.map(str::to_string));
        let expected = [
            "load",
            "--api-key",
            HIDDEN,
            "--url",
            "http://a",
            "--api-key=(not shown)",
            "--header",
            "authorization: (not shown)",
            "--header=x-team: (not shown)",
            "--rate=1",
            "--header",
            HIDDEN,
        ];
        assert_eq!(shown, expected);
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
