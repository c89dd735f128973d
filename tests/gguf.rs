//! GGUF files of every architecture, written by a script with llama.cpp's own package of keys and
//! names, against what the models that they are made of compute.

use std::path::{Path, PathBuf};
use std::process::Command;

use checkpoint::{Checkpoint, Format, Matrix, TokenizerSource};
use coordinator::tokenizer::Tokenizer;
use tests::golden::{self, Golden};

use crate::stages::{LOGITS_TOLERANCE, Pipeline, device, sharing_model, worst};

/// What GGUF calls each fixture.
const FIXTURES: [(&str, &str); 7] = [
    ("glm", "chatglm"),
    ("glm-edge", "chatglm"),
    ("glm4", "glm4"),
    ("glm4-moe", "glm4moe"),
    ("glm4-moe-groups", "glm4moe"),
    ("glm4-moe-lite", "deepseek2"),
    ("glm-moe-dsa", "glm-dsa"),
];

/// A Python with the gguf package; says so where there is none.
fn python() -> Option<PathBuf> {
    let python = std::env::var_os("AUTOGLM_GGUF_PYTHON").map(PathBuf::from);
    if python.is_none() {
        eprintln!("skipped: GGUF files by the gguf package (AUTOGLM_GGUF_PYTHON names no Python)");
    }
    python
}

/// Writes a file of a directory, and says where the first of its parts is.
fn write(python: &Path, directory: &Path, out: &Path, more: &[&str]) {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/gguf_file.py");
    let mut command = Command::new(python);
    let output = command.arg(script).arg(directory).arg(out).args(more).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// The golden logits of all prompts of a fixture, at the positions at which they are kept.
fn golden_logits(golden: &Golden) -> Vec<f32> {
    let each = (0..golden.prompts().len()).map(|i| golden.tensor(&format!("logits.{i}")).values);
    each.flatten().collect()
}

#[test]
fn files_in_parts_of_every_architecture_compute_the_golden() {
    let (Some(python), Some(device)) = (python(), device()) else { return };
    for (name, architecture) in FIXTURES {
        let folder = tempfile::tempdir().unwrap();
        let fixture = golden::fixture(name);
        let out = folder.path().join("model.gguf");
        write(&python, &fixture.join("bf16"), &out, &["--parts", "3"]);
        let files = Checkpoint::open(folder.path()).unwrap();
        assert_eq!((files.name(), files.files().unwrap().len()), ("model", 3), "{name}");
        let golden = Golden::open(&fixture);
        let cut = if name == "glm-moe-dsa" { [0, 1, 4] } else { [0, 4, 4] };
        let mut pipeline = Pipeline::of(device.as_ref().unwrap(), &files, &cut);
        let error = worst(&pipeline.logits_of(&golden), &golden_logits(&golden));
        assert!(error < LOGITS_TOLERANCE, "{name} as {architecture}: {error}");
        let source = files.tokenizer().unwrap();
        let TokenizerSource::Gguf { pre, .. } = &source else { panic!("{name}") };
        assert_eq!(pre, "glm4");
        let tokenizer = Tokenizer::from_source(&source).unwrap();
        for case in golden.json["chat"].as_array().unwrap() {
            let found = tokenizer.encode(case["rendered"].as_str().unwrap(), false).unwrap();
            let found: Vec<u32> = found.into_iter().map(|token| token.0).collect();
            assert_eq!(found, golden::numbers(&case["ids"]), "{name}");
        }
    }
}

/// Goal: what a rounded file holds is what is computed with. Method: the same values in f32.
#[test]
fn rounded_files_of_every_architecture_compute_what_their_values_say() {
    let (Some(python), Some(device)) = (python(), device()) else { return };
    let device = device.as_ref().unwrap();
    for ((name, _), (kind, format)) in FIXTURES.into_iter().zip(
        [
            ("Q8_0", Format::Int8),
            ("Q4_1", Format::Int4),
            ("Q4_0", Format::Int4),
            ("F16", Format::F16),
            ("IQ4_NL", Format::Iq4Nl),
        ]
        .into_iter()
        .cycle(),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let fixture = golden::fixture(name);
        let [out, values] = ["model.gguf", "values"].map(|it| folder.path().join(it));
        let more = ["--type", kind, "--values", values.to_str().unwrap()];
        write(&python, &fixture.join("bf16"), &out, &more);
        let [files, floats] = [&out, &values].map(|path| Checkpoint::open(path).unwrap());
        let format_of = |files: &Checkpoint| files.matrix(Matrix::GateUp(0)).unwrap().format();
        assert_eq!((format_of(&files), format_of(&floats)), (format, Format::F32), "{name}");
        let golden = Golden::open(&fixture);
        let logits = |files| Pipeline::of(device, files, &[0, 2, 4]).logits_of(&golden);
        let (found, expected) = (logits(&files), logits(&floats));
        let error = worst(&found, &expected);
        assert!(error < LOGITS_TOLERANCE, "{name} {kind}: {error}");
        let rounded = worst(&found, &golden_logits(&golden));
        assert!(kind == "F16" || rounded > 100.0 * LOGITS_TOLERANCE, "{name} {kind}: {rounded}");
    }
}

/// Goal: layers that take another's choice are told by the key, and what they hold besides is of no
/// concern. Method: published files have what makes a choice in all layers.
#[test]
fn layers_of_a_file_share_choices_as_it_says() {
    let (Some(python), Some(device)) = (python(), device()) else { return };
    let device = device.as_ref().unwrap();
    let source = golden::fixture("glm-moe-dsa").join("bf16");
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().join("shared");
    std::fs::create_dir(&directory).unwrap();
    sharing_model(&directory);
    let weights = "model.safetensors";
    std::fs::copy(source.join(weights), directory.join(weights)).unwrap();
    let out = folder.path().join("model.gguf");
    write(&python, &directory, &out, &[]);
    let golden = Golden::open(&golden::fixture("glm-moe-dsa"));
    let logits = |path: &Path| {
        let files = Checkpoint::open(path).unwrap();
        Pipeline::of(device, &files, &[0, 2, 4]).logits_of(&golden)
    };
    let (found, expected) = (logits(&out), logits(&directory));
    assert!(worst(&found, &expected) < LOGITS_TOLERANCE);
    assert!(worst(&found, &logits(&source)) > LOGITS_TOLERANCE, "the choices matter");
}

#[test]
fn a_part_that_is_missing_or_of_another_model_is_named() {
    let Some(python) = python() else { return };
    let folder = tempfile::tempdir().unwrap();
    let written = |name: &str| {
        let directory = folder.path().join(name);
        std::fs::create_dir(&directory).unwrap();
        let source = golden::fixture(name).join("bf16");
        write(&python, &source, &directory.join("model.gguf"), &["--parts", "3"]);
        directory
    };
    let (of_glm, of_glm4) = (written("glm"), written("glm4"));
    let part = "model-00002-of-00003.gguf";
    let says = || Checkpoint::open(&of_glm).unwrap_err().to_string();
    std::fs::copy(of_glm4.join(part), of_glm.join(part)).unwrap();
    let foreign = says();
    assert!(!foreign.contains('\n') && foreign.contains("tensor"), "{foreign}");
    std::fs::remove_file(of_glm.join(part)).unwrap();
    assert!(says().ends_with("model-00002-of-00003.gguf: part 2 of 3 is missing"), "{}", says());
}
