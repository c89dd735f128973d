//! An adapter that was opened and has shown that it computes what it should.

use anyhow::Result;
use protocol::Digest;
use shaders::gpu::{Gpu, GpuOptions};
use shaders::kv_cache::KvFormat;
use shaders::matmul::Products;
use shaders::products::Wanted;
use tracing::warn;

use crate::model::Kernels;

/// The adapter and what it has shown.
pub(crate) struct Proven {
    pub(crate) gpu: Gpu,
    pub(crate) kernels: Kernels,
    /// The class of what it was proven by. Whatever is loaded later has one of its own.
    pub(crate) class: Digest,
}

/// Which adapters are proven when they are opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Prove {
    All,
    /// A software driver takes long to compile what no model may need: what is loaded is proven.
    Hardware,
}

impl Proven {
    /// Opens the adapter for the products that are `wanted`; where nobody insists on them, for the
    /// best that it computes right.
    pub(crate) fn open(adapter: Option<&str>, wanted: Wanted, prove: Prove) -> Result<Self> {
        let mut products = wanted.on(adapter)?;
        let last = products.pop().expect("there are plain products everywhere");
        for products in products {
            match Self::open_for(adapter, products, prove) {
                Ok(proven) => return Ok(proven),
                Err(cause) => warn!(%cause, "no {products} products here: others take their place"),
            }
        }
        Self::open_for(adapter, last, prove)
    }

    fn open_for(adapter: Option<&str>, products: Products, prove: Prove) -> Result<Self> {
        let gpu = Gpu::open_with(adapter, GpuOptions { products, ..GpuOptions::kept() })?;
        let kernels = Kernels::new(&gpu)?;
        let (formats, heads) = Kernels::proven(products);
        let class = match prove {
            Prove::Hardware if gpu.caps().is_cpu => {
                kernels.name(&gpu, formats, heads, KvFormat::F32)
            }
            Prove::All | Prove::Hardware => {
                kernels.class(&gpu, formats, heads, KvFormat::F32, &mut |_, _| ())?
            }
        };
        gpu.check()?;
        Ok(Self { gpu, kernels, class })
    }
}
