//! Compiling the kernels of an adapter before they are needed, on all processors.
//!
//! A GPU's driver compiles a kernel when its pipeline is made, which several threads may do at
//! once. A software driver compiles it when it is first dispatched, on the only queue of its
//! device: there each thread opens the adapter once more, and what it compiles reaches the device
//! that is to use it through the driver's cache of kernels, which processes share, too. A driver
//! without one is noticed, and compiles one kernel after another.

use std::collections::HashMap;
use std::num::NonZero;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use crate::adapters::AdapterInfo;
use crate::error::GpuError;
use crate::gpu::{Gpu, GpuOptions};
use crate::kernel::{Access, Code, Kernel, KernelSource, Pass};
use crate::tensor::{Tensor, Texel};

/// So few kernels aren't worth more devices.
const FEW: usize = 4;

/// More threads would take memory for devices.
const MAX_THREADS: usize = 16;

/// What a driver takes at most for a kernel that it has in its cache.
const LOADED: Duration = Duration::from_millis(15);

impl Gpu {
    /// Compiles the kernels that were made since the last call; `report` hears how many of how
    /// many are compiled. Those that are dispatched without this are compiled then.
    pub fn compile(&self, report: &mut dyn FnMut(usize, usize)) -> Result<(), GpuError> {
        let codes = self.codes.waiting.take();
        report(0, codes.len());
        if self.caps().is_cpu {
            // Tensors that live as long as this isn't what anyone asked for.
            let usage = self.usage();
            let compiled = self.compile_by_dispatch(codes, report);
            self.set_usage(usage);
            return compiled;
        }
        let compiler = &self.compiler;
        let work = |(): &mut (), code: &Code| code.pipeline(compiler).map(drop);
        side_by_side(&codes, num_threads(), || Ok(()), work, report)
    }

    fn compile_by_dispatch(
        &self,
        mut codes: Vec<Arc<Code>>,
        report: &mut dyn FnMut(usize, usize),
    ) -> Result<(), GpuError> {
        let total = codes.len();
        // Another process that starts now begins elsewhere, and each finds what the other did.
        codes.rotate_left(std::process::id() as usize * 7 % total.max(1));
        let mut tensors = Tensors::default();
        let mut done = 0;
        let more = More::of(self);
        if num_threads() > 1 && total > FEW && self.finds_what_others_compile(&codes, &more)? {
            let open = || Ok((more.open()?, Tensors::default()));
            let work = |(gpu, tensors): &mut (Self, Tensors), code: &Code| {
                gpu.touch(&code.source, tensors)
            };
            side_by_side(&codes, num_threads(), open, work, report)?;
            done = total;
        }
        for (number, code) in codes.iter().enumerate() {
            self.touch(&code.source, &mut tensors)?;
            report(done.max(number + 1), total);
        }
        Ok(())
    }

    /// Whether this device is spared what another one of the adapter has compiled.
    fn finds_what_others_compile(
        &self,
        codes: &[Arc<Code>],
        more: &More<'_>,
    ) -> Result<bool, GpuError> {
        let (other, tensors) = (more.open()?, &mut Tensors::default());
        let began = Instant::now();
        other.touch(&codes[0].source, tensors)?;
        let first = began.elapsed();
        // A driver writes to its cache when it finds the time.
        other.touch(&codes[1].source, tensors)?;
        let began = Instant::now();
        self.touch(&codes[0].source, &mut Tensors::default())?;
        let second = began.elapsed();
        Ok(second < first / 2 || second < LOADED)
    }

    /// Has a driver compile a kernel that would when it is first dispatched.
    fn touch(&self, source: &KernelSource, tensors: &mut Tensors) -> Result<(), GpuError> {
        let began = Instant::now();
        let tensors = tensors.of(self, &source.bindings)?;
        let bound = Kernel::new(self, source)?.bind(self, &tensors.iter().collect::<Vec<_>>())?;
        let mut pass = Pass::new();
        pass.touch(&bound);
        self.run(&pass)?;
        tracing::debug!(kernel = source.name, took_ms = began.elapsed().as_millis(), "compiled");
        Ok(())
    }
}

fn num_threads() -> usize {
    thread::available_parallelism().map_or(1, NonZero::get).min(MAX_THREADS)
}

/// Has threads `work` on one kernel after another, each with what it has opened.
fn side_by_side<W>(
    codes: &[Arc<Code>],
    num_threads: usize,
    open: impl Fn() -> Result<W, GpuError> + Sync,
    work: impl Fn(&mut W, &Code) -> Result<(), GpuError> + Sync,
    report: &mut dyn FnMut(usize, usize),
) -> Result<(), GpuError> {
    let next = AtomicUsize::new(0);
    let (done, results) = mpsc::channel();
    thread::scope(|scope| {
        for _ in 0..num_threads.min(codes.len()) {
            let (done, next, open, work) = (done.clone(), &next, &open, &work);
            scope.spawn(move || {
                let mut opened = match open() {
                    Ok(opened) => opened,
                    Err(error) => return drop(done.send(Err(error))),
                };
                while let Some(code) = codes.get(next.fetch_add(1, Ordering::Relaxed)) {
                    // Whoever hears of a failure listens no more.
                    if done.send(work(&mut opened, code)).is_err() {
                        return;
                    }
                }
            });
        }
        drop(done);
        for (number, result) in results.iter().enumerate() {
            result?;
            report(number + 1, codes.len());
        }
        Ok(())
    })
}

/// What opens an adapter once more.
struct More<'a> {
    adapter: &'a wgpu::Adapter,
    info: AdapterInfo,
    options: GpuOptions,
}

impl<'a> More<'a> {
    fn of(gpu: &'a Gpu) -> Self {
        let options = GpuOptions {
            checked: gpu.compiler.checked,
            images: Some(gpu.caps().images),
            products: gpu.caps().products,
            ..GpuOptions::default()
        };
        Self { adapter: &gpu.adapter, info: gpu.info().clone(), options }
    }

    fn open(&self) -> Result<Gpu, GpuError> {
        let more = wgpu::Features::empty();
        Gpu::open_adapter(self.adapter, self.info.clone(), self.options.clone(), more)
    }
}

/// Something to bind, for kernels that never touch it.
#[derive(Default)]
struct Tensors(HashMap<(Access, usize), Tensor>);

/// More than an element of any kernel's arrays has.
const BUFFER_WORDS: usize = 1024;

impl Tensors {
    /// One for each binding, none twice.
    fn of(&mut self, gpu: &Gpu, bindings: &[Access]) -> Result<Vec<Tensor>, GpuError> {
        let tensor = |(place, access): (usize, &Access)| {
            if let Some(tensor) = self.0.get(&(*access, place)) {
                return Ok(tensor.clone());
            }
            let tensor = match access {
                Access::Read | Access::ReadWrite => gpu.alloc_u32(BUFFER_WORDS)?,
                Access::ReadImage | Access::WriteImage => gpu.alloc_image(4, Texel::F32)?,
                Access::ReadWordsImage | Access::WriteWordsImage => {
                    gpu.alloc_image(4, Texel::U32)?
                }
                Access::ReadPairsImage | Access::WritePairsImage => {
                    gpu.alloc_image(2, Texel::Pair)?
                }
            };
            self.0.insert((*access, place), tensor.clone());
            Ok(tensor)
        };
        bindings.iter().enumerate().map(tensor).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::template::expand;
    use crate::testing;

    /// A kernel of its own for each number.
    fn source(number: usize) -> KernelSource {
        let text = "struct Params { n: u32, }\nvar<immediate> params: Params;\n\
                    @group(0) @binding(0) var<storage, read_write> out: array<u32>;\n\
                    @compute @workgroup_size(1)\nfn main() { out[0] = params.n + {NUMBER}u; }\n";
        let wgsl = expand(text, &[("NUMBER", number as u32)]);
        KernelSource::new::<u32>(format!("number {number}"), wgsl, &[Access::ReadWrite])
    }

    #[test]
    fn each_text_is_compiled_once_and_all_are_told_of() {
        let Some(gpu) = testing::new_gpu() else { return };
        let kernels: Vec<_> =
            (0..12).map(|number| Kernel::new(&gpu, &source(number % 6)).unwrap()).collect();
        let mut told = Vec::new();
        gpu.compile(&mut |done, total| told.push((done, total))).unwrap();
        assert_eq!(told.first(), Some(&(0, 6)));
        assert_eq!(told.last(), Some(&(6, 6)));
        assert!(told.windows(2).all(|pair| pair[0].0 <= pair[1].0), "{told:?}");
        // Nothing is left.
        gpu.compile(&mut |done, total| assert_eq!((done, total), (0, 0))).unwrap();
        let out = gpu.alloc_u32(1).unwrap();
        for (number, kernel) in kernels.iter().enumerate() {
            let mut pass = Pass::new();
            pass.dispatch(&kernel.bind(&gpu, &[&out]).unwrap(), &100u32, [1, 1, 1]);
            gpu.run(&pass).unwrap();
            assert_eq!(gpu.read_u32(&out).unwrap()[0], 100 + number as u32 % 6);
        }
    }

    #[test]
    fn a_kernel_that_does_not_compile_is_an_error_with_its_name() {
        let Some(gpu) = testing::new_gpu() else { return };
        (0..6).for_each(|number| drop(Kernel::new(&gpu, &source(number)).unwrap()));
        let broken = KernelSource { wgsl: "fn main() { nothing }".into(), ..source(7) };
        let kernel = Kernel::new(&gpu, &broken).unwrap();
        let error = gpu.compile(&mut |_, _| ()).unwrap_err().to_string();
        assert!(error.contains("kernel number 7 does not compile"), "{error}");
        let out = gpu.alloc_u32(1).unwrap();
        let mut pass = Pass::new();
        pass.dispatch(&kernel.bind(&gpu, &[&out]).unwrap(), &1u32, [1, 1, 1]);
        assert!(gpu.run(&pass).is_err());
    }
}
