//! An adapter that was opened and has shown that it computes what it should.

use anyhow::Result;
use protocol::Digest;
use shaders::error::GpuError;
use shaders::gpu::{Gpu, GpuOptions};
use shaders::kv_cache::KvFormat;
use shaders::matmul::Products;
use shaders::products::Wanted;
use tracing::warn;

use crate::error::StageError;
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
            let open = || Self::open_for(adapter, products, prove);
            // An adapter that was lost meanwhile says nothing of products, unless they lose it.
            let opened =
                open().or_else(|cause| if cause.is::<GpuError>() { open() } else { Err(cause) });
            match opened {
                Ok(proven) => return Ok(proven),
                Err(cause) => warn!(%cause, "no {products} products here: others take their place"),
            }
        }
        Self::open_for(adapter, last, prove)
    }

    /// Fails with a [`GpuError`] when the adapter does, with a [`StageError`] when only its
    /// products do.
    fn open_for(adapter: Option<&str>, products: Products, prove: Prove) -> Result<Self> {
        let gpu = Gpu::open_with(adapter, GpuOptions { products, ..GpuOptions::kept() })?;
        let shown = Self::shown(&gpu, products, prove);
        if shown.is_err() {
            // One that is gone refuses whatever it is asked.
            gpu.flush()?;
        }
        let (kernels, class) = shown?;
        gpu.check()?;
        Ok(Self { gpu, kernels, class })
    }

    fn shown(gpu: &Gpu, products: Products, prove: Prove) -> Result<(Kernels, Digest), StageError> {
        let kernels = Kernels::new(gpu)?;
        let (formats, heads) = Kernels::proven(products);
        let class = match prove {
            Prove::Hardware if gpu.caps().is_cpu => {
                kernels.name(gpu, formats, heads, KvFormat::F32)
            }
            Prove::All | Prove::Hardware => {
                kernels.class(gpu, formats, heads, KvFormat::F32, &mut |_, _| ())?
            }
        };
        Ok((kernels, class))
    }
}
