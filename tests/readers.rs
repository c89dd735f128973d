//! What reads bytes from a network or a file, each as a function of such bytes. Whatever they are,
//! nothing here may panic or take memory without bound. `tests/fuzz` makes up bytes, and an
//! ordinary test reads again what it found worth keeping in `tests/corpora`.

use std::cell::OnceCell;
use std::fs;
use std::path::Path;

use bytes::Bytes;
use checkpoint::{Checkpoint, Part, TokenizerSource};
use coordinator::batch_job::row_plan::{self, RowFormat, RowPlan};
use coordinator::chat_template::ChatTemplate;
use coordinator::openai::Style;
use coordinator::tokenizer::Tokenizer;
use protocol::config::Http;
use protocol::message::{
    Drain, FetchProgress, Leaving, LoadProgress, Measure, Sources, StageFailed, Unload, Ways,
};
use protocol::{
    Ask, Config, Frame, LayerRange, Manifest, NodeReport, PieceSet, StageEcho, StagePlan, codec,
};
use rows::Record;
use tempfile::TempDir;

/// Reads bytes, whatever they are.
type Read = fn(&[u8]);

/// A reader by its name, which is that of its folder in `tests/corpora`.
pub const READERS: [(&str, Read); 8] = [
    ("frame", frame),
    ("message", message),
    ("safetensors", safetensors),
    ("gguf", gguf),
    ("tokenizer", tokenizer),
    ("template", template),
    ("config", config),
    ("rows", rows),
];

/// What is read is written again, and is the same when it is read once more.
fn frame(bytes: &[u8]) {
    if let Ok(frame) = Frame::decode(&Bytes::copy_from_slice(bytes)) {
        let again = Bytes::from(frame.encode().concat());
        let again = Frame::decode(&again).expect("a frame of ours is read");
        // Floats that are no numbers differ from themselves.
        assert_eq!(frame.encode().concat(), again.encode().concat());
    }
}

fn message(bytes: &[u8]) {
    let Some((kind, bytes)) = bytes.split_first() else { return };
    macro_rules! read {
        ($message:ty) => {
            if let Ok(value) = codec::decode::<$message>(bytes) {
                let again: $message = codec::decode(&codec::encode(&value)).expect("it is ours");
                assert_eq!(codec::encode(&again), codec::encode(&value));
            }
        };
    }
    match kind % 15 {
        0 => read!(StagePlan),
        1 => read!(NodeReport),
        2 => read!(StageEcho),
        3 => read!(StageFailed),
        4 => read!(LoadProgress),
        5 => read!(Unload),
        6 => read!(Leaving),
        7 => read!(Drain),
        8 => read!(FetchProgress),
        9 => read!(Measure),
        10 => read!(Sources),
        11 => read!(Ways),
        12 => read!(Ask),
        13 => read!(PieceSet),
        _ => {
            read!(Manifest);
            manifest(bytes);
        }
    }
}

/// What a node asks for that is to load all of it.
fn manifest(bytes: &[u8]) {
    let Ok(manifest) = codec::decode::<Manifest>(bytes) else { return };
    if manifest.check().is_err() {
        return;
    }
    let end = manifest.parts.len().saturating_sub(2) as u32;
    let layers = LayerRange { first: 0, end };
    let plan = StagePlan { num_stages: 1, layers, ..StagePlan::default() };
    if let Ok(needed) = manifest.needed(&plan) {
        let all = manifest.files.iter().map(|file| file.num_bytes).sum::<u64>();
        assert!(manifest.num_bytes(&needed) <= all);
    }
}

/// Beside a config.json that goes before it, and a zero byte.
fn safetensors(bytes: &[u8]) {
    let at = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    let (config, file) = bytes.split_at(at);
    in_folder(&[("config.json", config), ("model.safetensors", file.get(1..).unwrap_or(&[]))]);
}

fn gguf(bytes: &[u8]) {
    in_folder(&[("model.gguf", bytes)]);
}

/// Opens a model of these files and reads all that a stage would.
fn in_folder(files: &[(&str, &[u8])]) {
    thread_local!(static FOLDER: OnceCell<TempDir> = const { OnceCell::new() });
    FOLDER.with(|folder| {
        let folder = folder.get_or_init(|| {
            // A disk would take most of the time.
            let memory = Path::new("/dev/shm");
            let parent = if memory.is_dir() { memory } else { Path::new("/tmp") };
            TempDir::new_in(parent).unwrap()
        });
        for (name, bytes) in files {
            // Another file each time: the last one may still be mapped.
            let _ = fs::remove_file(folder.path().join(name));
            fs::write(folder.path().join(name), bytes).unwrap();
        }
        let Ok(model) = Checkpoint::open(folder.path()) else { return };
        let layers = (0..model.config().num_layers()).map(Part::Layer);
        for part in [Part::Embedding].into_iter().chain(layers).chain([Part::Head]) {
            let _ = (model.bytes(part), model.digest(part));
        }
        let _ = model.sampling_defaults();
        if let Ok(source) = model.tokenizer() {
            let _ = Tokenizer::from_source(&source);
        }
    });
}

/// A tokenizer.json.
fn tokenizer(bytes: &[u8]) {
    let (special, chat_template) = Default::default();
    let source = TokenizerSource::Json { tokenizer: bytes.to_owned(), special, chat_template };
    if let Ok(tokenizer) = Tokenizer::from_source(&source) {
        for text in ["", "Hello, world: <|user|>\n ﬁ 漢字 \u{301}", "    \t\u{0}"] {
            if let Ok(tokens) = tokenizer.encode(text, true) {
                tokenizer.decode(&tokens, true);
            }
        }
    }
}

/// A template, and messages for it.
fn template(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let source = TokenizerSource::Json {
        tokenizer: Vec::new(),
        special: Default::default(),
        chat_template: Some(text.to_owned()),
    };
    let limits = Http { max_template_fuel: 20_000, max_rendered_bytes: 1 << 16, ..Http::default() };
    let Some(template) = ChatTemplate::from_source(&source, &limits) else { return };
    let messages = serde_json::json!([
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": [{"type": "text", "text": "What is \u{1f980}?"}]},
        {"role": "assistant", "content": null, "tool_calls": [{"id": "1", "type": "function",
            "function": {"name": "look", "arguments": {"what": ["a", 1.5, true]}}}]},
        {"role": "tool", "tool_call_id": "1", "content": "a crab"},
    ]);
    let _ = template.render(&messages, true, &serde_json::Map::new());
}

/// A cluster.toml.
fn config(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = Config::parse(text);
    }
}

/// What a batch says of its rows, and after a zero byte a file of them.
fn rows(bytes: &[u8]) {
    let at = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    let (said, file) = bytes.split_at(at);
    let Ok(said) = serde_json::from_slice(said) else { return };
    let Ok(kept) = row_plan::complete(said, "in.csv", Style::Chat, "m") else { return };
    let plan = RowPlan::parse(&kept).expect("what is kept is read");
    let file = file.get(1..).unwrap_or(&[]);
    let mut out = Vec::new();
    let mut ask = |record: Record| {
        let Ok(cells) = record.cells else { return };
        if let Ok(asks) = plan.asks(&cells, 1, 1 << 12) {
            serde_json::from_str::<serde_json::Value>(&asks.body).expect("it is JSON");
        }
        plan.write(&mut out, cells, "{}").expect("there is memory");
    };
    match plan.format {
        RowFormat::Jsonl => {
            let mut records = rows::jsonl::Records::new(file, 256, 0, 0);
            while let Ok(Some(record)) = records.next_row() {
                ask(record);
            }
        }
        RowFormat::Csv => {
            let Ok(mut records) = rows::csv::Records::open(file, 256) else { return };
            while let Ok(Some(record)) = records.next_row() {
                ask(record);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What fuzzing kept: one input for each way through a reader.
    #[test]
    fn whatever_was_made_up_once_is_read_or_refused() {
        for (name, read) in READERS {
            let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/corpora/");
            let mut num_read = 0;
            for file in fs::read_dir(Path::new(folder).join(name)).unwrap() {
                read(&fs::read(file.unwrap().path()).unwrap());
                num_read += 1;
            }
            assert!(num_read > 0, "corpora/{name} is empty");
        }
    }
}
