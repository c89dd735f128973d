//! A model of which only the configuration is there: what it would weigh, before anybody fetches
//! hundreds of gigabytes.

use std::path::Path;

use crate::architecture::Role;
use crate::config::Refused;
use crate::dtype::{DType, Format, Quantize};
use crate::error::CheckpointError;
use crate::huggingface::{self, Configuration};
use crate::{Matrix, ModelConfig, Part, PartCost};

/// A config.json without its weights.
#[derive(Debug)]
pub struct Outline {
    name: String,
    config: ModelConfig,
    stored: DType,
    quantize: Quantize,
}

impl Outline {
    /// Whether what is at this path is a configuration alone: a .json file without weights beside
    /// it, or a directory with a config.json and without weights.
    pub fn is_all(path: &Path) -> bool {
        if path.is_dir() {
            return path.join(huggingface::CONFIG).exists() && !huggingface::has_weights(path);
        }
        let is_json = path.extension().is_some_and(|it| it.eq_ignore_ascii_case("json"));
        is_json && path.exists() && !path.parent().is_some_and(huggingface::has_weights)
    }

    /// Reads a configuration: a .json file of any name, or a directory with a config.json.
    ///
    /// # Errors
    ///
    /// If it is damaged or asks for something that is not computed here.
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        let (path, named) = match path.is_dir() {
            true => (path.join(huggingface::CONFIG), path.canonicalize().ok()),
            // Of several in a directory each has a name of its own.
            false => (path.to_owned(), Some(path.with_extension(""))),
        };
        let generation = path.with_file_name(huggingface::GENERATION_CONFIG);
        let Configuration { model, scaling, dtype, .. } =
            huggingface::config_of(&path, &generation)?;
        let stored = match (scaling, dtype.as_deref()) {
            (Some(scaling), _) => scaling.stored(),
            (None, Some("bfloat16") | None) => DType::BF16,
            (None, Some("float16")) => DType::F16,
            (None, Some("float32")) => DType::F32,
            (None, Some(other)) => {
                let problem =
                    format!("is {other:?}, supported are \"bfloat16\", \"float16\", \"float32\"");
                let Refused { key, problem } = Refused::new("dtype", problem);
                return Err(CheckpointError::Config { path, key, problem });
            }
        };
        let name = named.as_deref().map(crate::name_of).unwrap_or_default();
        Ok(Self { name, config: model, stored, quantize: Quantize::None })
    }

    /// The same model whose matrices are stored in another way.
    #[must_use]
    pub fn stored_as(mut self, stored: DType) -> Self {
        self.stored = stored;
        self
    }

    /// The same model with its matrices rounded while they are read.
    #[must_use]
    pub fn quantized(mut self, quantize: Quantize) -> Self {
        self.quantize = quantize;
        self
    }

    /// The model's name: the file's or the directory's.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The model's shape and constants.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// As what its matrices are taken to be stored.
    pub fn stored(&self) -> DType {
        self.stored
    }

    /// What a part would cost.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::NoSuchLayer`].
    pub fn cost(&self, part: Part) -> Result<PartCost, CheckpointError> {
        let num_layers = self.config.num_layers();
        match part {
            Part::Layer(layer) if layer >= num_layers => {
                Err(CheckpointError::NoSuchLayer { layer, num_layers })
            }
            _ => Ok(self.config.cost(part, |matrix, (rows, cols)| {
                rows as u64 * self.format(matrix).device_row_bytes(cols) as u64
            })),
        }
    }

    /// As files of this kind have a matrix: 8-bit floats in the products of layers alone, and what
    /// latent keys are made of as floats, since it is turned while it is read.
    fn format(&self, matrix: Matrix) -> Format {
        let (role, layer) = matrix.role();
        let is_plain = layer.is_none() || matches!(role, Role::Router | Role::IndexWeights);
        let stored = match (self.stored, role) {
            (DType::F8_E4M3 | DType::I4, _) if is_plain => Format::BF16,
            (_, Role::Router) => self.stored.format().float(),
            (_, Role::LatentKeys) => self.stored.format().float(),
            _ => self.stored.format(),
        };
        self.quantize.of(role).format(stored, layer.is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Checkpoint;

    fn fixtures() -> &'static Path {
        Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures"))
    }

    /// Goal: a model costs what its configuration says. Method: every fixture, its weights beside
    /// it and looked away from.
    #[test]
    fn a_configuration_costs_what_the_model_does() {
        for name in ["glm", "glm-edge", "glm4", "glm4-moe", "glm4-moe-lite", "glm-moe-dsa"] {
            for quantize in [Quantize::None, Quantize::Int8, Quantize::Int4] {
                let path = fixtures().join(name).join("bf16");
                let model = Checkpoint::open(&path).unwrap().quantized(quantize);
                let alone = tempfile::tempdir().unwrap();
                let config = alone.path().join("some-model.json");
                std::fs::copy(path.join("config.json"), &config).unwrap();
                assert!(Outline::is_all(&config) && !Outline::is_all(&path.join("config.json")));
                let outline = Outline::open(&config).unwrap().quantized(quantize);
                assert_eq!((outline.name(), outline.stored()), ("some-model", DType::BF16));
                let layers = (0..model.config().num_layers()).map(Part::Layer);
                for part in layers.chain([Part::Embedding, Part::Head]) {
                    let (found, expected) = (outline.cost(part), model.cost(part));
                    assert_eq!(found.unwrap(), expected.unwrap(), "{name} {quantize:?} {part:?}");
                }
                assert!(outline.cost(Part::Layer(99)).is_err());
            }
        }
    }

    #[test]
    fn a_directory_with_a_configuration_alone_is_one_and_says_as_what_it_is_stored() {
        let folder = tempfile::tempdir().unwrap();
        assert!(!Outline::is_all(folder.path()));
        let text = std::fs::read_to_string(fixtures().join("glm/bf16/config.json")).unwrap();
        let config = folder.path().join("config.json");
        let mut fields: serde_json::Value = serde_json::from_str(&text).unwrap();
        for (dtype, stored) in [("float32", Some(DType::F32)), ("int3", None)] {
            fields["dtype"] = dtype.into();
            std::fs::write(&config, fields.to_string()).unwrap();
            assert!(Outline::is_all(folder.path()));
            let found = Outline::open(folder.path());
            match stored {
                Some(stored) => assert_eq!(found.unwrap().stored(), stored),
                None => assert!(found.unwrap_err().to_string().contains("dtype is \"int3\"")),
            }
        }
        fields["quantization_config"] = serde_json::json!({"quant_method": "fp8"});
        std::fs::write(&config, fields.to_string()).unwrap();
        let outline = Outline::open(&config).unwrap();
        assert_eq!(outline.stored(), DType::F8_E4M3);
        let bf16 = outline.cost(Part::Layer(0)).unwrap().bytes;
        assert!(
            Outline::open(&config)
                .unwrap()
                .stored_as(DType::BF16)
                .cost(Part::Layer(0))
                .unwrap()
                .bytes
                > bf16
        );
    }
}
