//! The device class of layers: what proves that an adapter computes them, and tells it from others.

use checkpoint::{Attention, Checkpoint, Matrix, Part, Weight};
use protocol::Digest;
use shaders::experts::ExpertShape;
use shaders::gpu::Gpu;
use shaders::index::IndexShape;
use shaders::kv_cache::{HeadShape, KvFormat};
use shaders::matmul::Products;
use shaders::mla::LatentShape;
use shaders::self_test::{self, SelfTest};
use shaders::self_test_experts::ExpertTest;
use shaders::self_test_mla::LatentTest;
use shaders::weights::Format;

use super::{Kernels, attention, gqa, index, mla, moe, on_device};
use crate::error::StageError;

/// What the class of a part of a layer depends on, beside the device.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Form {
    Layer(Format, HeadShape, KvFormat),
    Experts(Format, ExpertShape),
    Latent(LatentShape, Option<IndexShape>, KvFormat),
}

impl Kernels {
    /// What proves an adapter before any model is known, and tells apart all ways to compute
    /// products, of which one leaves floats as they are.
    pub(crate) fn proven(products: Products) -> (&'static [Format], HeadShape) {
        let formats: &[Format] = match products {
            Products::PackedDot | Products::Cooperative => &[Format::F16, Format::Int8],
            Products::Plain => &[Format::F16],
        };
        (formats, HeadShape { num_heads: 4, num_kv_heads: 2, head_dim: 64 })
    }

    /// The device class of layers with weights of these formats, such heads and such a cache, and
    /// the proof that the device computes them. Compiles what was made so far; `compiled` hears how
    /// many kernels of how many are.
    ///
    /// # Errors
    /// When a kernel doesn't compute what it should.
    pub fn class(
        &self,
        gpu: &Gpu,
        formats: &[Format],
        heads: HeadShape,
        kv: KvFormat,
        compiled: &mut dyn FnMut(usize, usize),
    ) -> Result<Digest, StageError> {
        let forms: Vec<_> = formats.iter().map(|format| Form::Layer(*format, heads, kv)).collect();
        self.class_of(gpu, &forms, compiled)
    }

    /// The class of a model's layers. Of all of them, wherever the model is cut: stages on devices
    /// of one class have one class, also where layers are of several kinds and formats. The head's
    /// format counts only where another would be multiplied in another way: proving a format takes
    /// a second on a software driver.
    ///
    /// # Errors
    /// When the files don't hold them, or a kernel doesn't compute what it should.
    pub(crate) fn class_of_model(
        &self,
        gpu: &Gpu,
        files: &Checkpoint,
        kv: KvFormat,
        compiled: &mut dyn FnMut(usize, usize),
    ) -> Result<Digest, StageError> {
        let model = files.config();
        let attention = attention::of_all(model);
        let heads = match &attention {
            Attention::Gqa(gqa) => gqa::shape(gqa),
            // Products are proven with some heads.
            Attention::Mla(_) => Self::proven(gpu.caps().products).1,
        };
        let mut forms = Vec::new();
        let mut add = |form| {
            if !forms.contains(&form) {
                forms.push(form);
            }
        };
        if gpu.caps().products != Products::Plain {
            add(Form::Layer(on_device(files.matrix(Matrix::LmHead)?.format()), heads, kv));
        }
        // Attention by matrices is compared where nothing else is rounded to eight bits.
        if gpu.caps().products == Products::Cooperative {
            add(Form::Layer(Format::F16, heads, kv));
        }
        for layer in 0..model.num_layers() {
            for weight in files.part(Part::Layer(layer))? {
                let Weight::Matrix(matrix) = weight else { continue };
                for view in files.matrix(matrix)?.parts() {
                    let format = on_device(view.format());
                    // Heads' own products are laid out as those of experts are.
                    match moe::shape(model).filter(|_| view.stack() > 1) {
                        Some(shape) => add(Form::Experts(format, shape)),
                        None => add(Form::Layer(format, heads, kv)),
                    }
                }
            }
        }
        if let Attention::Mla(mla) = &attention {
            forms.push(Form::Latent(mla::shape(mla), index::shape(model), kv));
        }
        self.class_of(gpu, &forms, compiled)
    }

    fn class_of(
        &self,
        gpu: &Gpu,
        forms: &[Form],
        compiled: &mut dyn FnMut(usize, usize),
    ) -> Result<Digest, StageError> {
        let mut known = self.classes.borrow_mut();
        let mut tests = Vec::new();
        for form in forms.iter().filter(|form| !known.iter().any(|(other, _)| other == *form)) {
            tests.push((*form, Test::new(gpu, form)?));
        }
        gpu.compile(compiled)?;
        for (form, test) in tests {
            known.push((form, test.run(gpu)?));
        }
        let class = |form| known.iter().find(|(other, _)| other == form).map(|(_, class)| *class);
        let classes: Vec<_> = forms.iter().filter_map(class).collect();
        Ok(Digest(self_test::of_several(&classes)))
    }

    /// What a class of such layers is told from others by before anything is computed.
    pub fn name(&self, gpu: &Gpu, formats: &[Format], heads: HeadShape, kv: KvFormat) -> Digest {
        let name = |format: &Format| self_test::name(gpu, *format, heads, kv);
        Digest(self_test::of_several(&formats.iter().map(name).collect::<Vec<_>>()))
    }
}

#[expect(clippy::large_enum_variant, reason = "there is one at a time")]
enum Test {
    Layer(SelfTest),
    Experts(ExpertTest),
    Latent(LatentTest),
}

impl Test {
    fn new(gpu: &Gpu, form: &Form) -> Result<Self, StageError> {
        Ok(match *form {
            Form::Layer(format, heads, kv) => Self::Layer(SelfTest::new(gpu, format, heads, kv)?),
            Form::Experts(format, shape) => Self::Experts(ExpertTest::new(gpu, format, shape)?),
            Form::Latent(shape, index, kv) => Self::Latent(LatentTest::new(gpu, shape, index, kv)?),
        })
    }

    fn run(self, gpu: &Gpu) -> Result<[u8; 32], StageError> {
        Ok(match self {
            Self::Layer(test) => test.run(gpu)?,
            Self::Experts(test) => test.run(gpu)?,
            Self::Latent(test) => test.run(gpu)?,
        })
    }
}
