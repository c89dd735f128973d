//! Goldens by Hugging Face transformers, and where they are.

use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use serde_json::Value;

/// The folder of a fixture: `glm`, `glm-edge`, `glm4`, `glm4-moe`, `glm4-moe-groups`.
pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name)
}

/// The folder of a trained model: `glass-en`, `glass-en-moe`, `smollm2-135m-instruct`.
pub fn model(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models").join(name)
}

/// What a command line names: a model's folder or file, or a folder of tests/models.
pub fn model_or_path(named: PathBuf) -> PathBuf {
    if named.exists() { named } else { model(&named.to_string_lossy()) }
}

/// SmolLM2's GGUF, where `make test` put it; says so when it is absent.
pub fn smollm2() -> Option<PathBuf> {
    let path = std::env::var_os("AUTOGLM_SMOLLM2").map(PathBuf::from);
    if path.is_none() {
        eprintln!("skipped: SmolLM2 (AUTOGLM_SMOLLM2 names no GGUF; make test fetches it)");
    }
    path
}

/// `golden.json` and `golden.safetensors` of a folder.
pub struct Golden {
    pub json: Value,
    tensors: Option<Vec<u8>>,
}

/// A tensor of rows.
pub struct Rows {
    pub width: usize,
    pub values: Vec<f32>,
}

impl Rows {
    pub fn row(&self, row: usize) -> &[f32] {
        &self.values[row * self.width..(row + 1) * self.width]
    }

    pub fn len(&self) -> usize {
        self.values.len() / self.width
    }

    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }
}

impl Golden {
    pub fn open(folder: &Path) -> Self {
        let json = std::fs::read(folder.join("golden.json")).unwrap();
        let tensors = std::fs::read(folder.join("golden.safetensors")).ok();
        Self { json: serde_json::from_slice(&json).unwrap(), tensors }
    }

    pub fn prompts(&self) -> Vec<Prompt> {
        let prompts = self.json["prompts"].as_array().unwrap();
        prompts.iter().map(Prompt::new).collect()
    }

    pub fn tensor(&self, name: &str) -> Rows {
        let file = SafeTensors::deserialize(self.tensors.as_ref().unwrap()).unwrap();
        let view = file.tensor(name).unwrap();
        Rows {
            width: *view.shape().last().unwrap(),
            values: bytemuck::pod_collect_to_vec(view.data()),
        }
    }
}

/// A prompt and what follows it.
pub struct Prompt {
    pub ids: Vec<u32>,
    /// Positions whose logits are stored.
    pub positions: Vec<usize>,
    pub greedy: Vec<u32>,
}

impl Prompt {
    fn new(json: &Value) -> Self {
        let positions = json["positions"].as_array();
        Self {
            ids: numbers(&json["ids"]),
            positions: positions.map_or_else(Vec::new, |_| {
                numbers(&json["positions"]).into_iter().map(|p| p as usize).collect()
            }),
            greedy: numbers(&json["greedy"]),
        }
    }
}

pub fn numbers(json: &Value) -> Vec<u32> {
    json.as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as u32).collect()
}

/// `x - ln(sum(exp(x)))`, in f64.
pub fn log_softmax(logits: &[f32]) -> Vec<f32> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&x| f64::from(x - max).exp()).sum();
    let norm = f64::from(max) + sum.ln();
    logits.iter().map(|&x| (f64::from(x) - norm) as f32).collect()
}
