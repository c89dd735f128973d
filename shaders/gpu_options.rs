//! How an adapter is opened.

use std::path::PathBuf;
use std::time::Duration;

use crate::matmul::Products;

/// How an adapter is opened.
#[derive(Debug, Clone)]
pub struct GpuOptions {
    /// Compile kernels with bounds checks and turn the driver's validation on: slow, for finding
    /// faults.
    pub checked: bool,
    /// An upper limit for the size of a tensor, below what the adapter allows. Tests use it to
    /// split weights.
    pub max_binding_bytes: Option<u64>,
    /// Whether to keep tensors that kernels take four values at a time in images; the adapter
    /// decides by default.
    pub images: Option<bool>,
    /// How long [`Gpu::wait`](crate::gpu::Gpu::wait) waits before it gives the adapter up.
    pub max_wait: Duration,
    /// Where compiled kernels are kept between runs, and which of them were found to be fast. With
    /// none, nothing is kept and nothing tried.
    pub cache_dir: Option<PathBuf>,
    /// Whether steps wait for those of other processes
    /// ([`Gpu::turn`](crate::gpu::Gpu::turn)), which share `cache_dir`; by default on GPUs. On a
    /// software driver the system shares processors out well enough.
    pub takes_turns: Option<bool>,
    /// Whether every dispatch is timed, for
    /// [`Gpu::take_profile`](crate::gpu::Gpu::take_profile): slow.
    pub profile: bool,
    /// How products with weights are computed.
    pub products: Products,
}

impl Default for GpuOptions {
    /// `checked` follows the environment variable `AUTOGLM_CHECKED_SHADERS`.
    fn default() -> Self {
        Self {
            checked: std::env::var("AUTOGLM_CHECKED_SHADERS").is_ok_and(|value| value == "1"),
            max_binding_bytes: None,
            images: None,
            max_wait: Duration::from_secs(120),
            cache_dir: None,
            takes_turns: None,
            profile: false,
            products: Products::Plain,
        }
    }
}

impl GpuOptions {
    /// The defaults, with a folder of the user's own for what is kept between runs: `autoglm` in
    /// `XDG_CACHE_HOME`, else in `.cache` at home.
    pub fn kept() -> Self {
        let folder =
            |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let home = || Some(folder("HOME")?.join(".cache"));
        let caches = folder("XDG_CACHE_HOME").or_else(home);
        Self { cache_dir: caches.map(|caches| caches.join("autoglm")), ..Self::default() }
    }
}
