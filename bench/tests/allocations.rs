//! A steady decode step takes no memory: none of the device's, and of the host's none that isn't
//! the driver library's own, but for the answer, which leaves for another thread.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::path::Path;

use bench::engine::{Engine, EngineOptions};
use protocol::config::{KvCacheDtype, Quantize};
use serde_json::Value;
use shaders::matmul::Products;

#[global_allocator]
static ALLOC: dhat::Alloc = dhat::Alloc;

/// Whether our part of a step begins here, as debug information names it.
fn is_step(frame: &str) -> bool {
    frame.contains(": masked_step") && frame.contains("(node/src/stage.rs:")
}

/// What may allocate within: the driver library, and the answer.
fn may_allocate(frame: &str) -> bool {
    frame.contains("wgpu") || (frame.contains(": outputs") && frame.contains("(node/src/rows.rs:"))
}

#[test]
fn a_steady_step_allocates_nothing() {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/glm-edge/bf16");
    // The dispatches of plain products, and others before them.
    let options = EngineOptions {
        adapter: None,
        quantize: Quantize::Int8,
        products: Products::PackedDot,
        kv_cache_dtype: KvCacheDtype::Auto,
        max_batched_tokens: 64,
        max_num_seqs: 4,
        max_model_len: 64,
        profile: false,
    };
    let mut engine = match Engine::load(&model, &options) {
        Ok(engine) => engine,
        Err(cause) => {
            eprintln!("skipped: allocations ({cause:#})");
            return;
        }
    };
    let mut sequences = [engine.begin(None), engine.begin(None), engine.begin(None)];
    // Into the second block, with room for all tokens of this test.
    engine.step(&mut sequences, 17).unwrap();
    for _ in 0..4 {
        engine.step(&mut sequences, 1).unwrap();
    }

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("heap.json");
    let before = engine.gpu().usage();
    let profiler = dhat::Profiler::builder().file_name(&file).trim_backtraces(None).build();
    for _ in 0..8 {
        engine.step(&mut sequences, 1).unwrap();
    }
    drop(profiler);
    let after = engine.gpu().usage();
    assert_eq!(before.allocated_bytes, after.allocated_bytes, "bytes on the device");
    assert_eq!(after.num_encoded - before.num_encoded, 8, "one pass a step");

    let heap: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let frames = heap["ftbl"].as_array().unwrap();
    let (mut num_in_step, mut ours) = (0, Vec::new());
    for point in heap["pps"].as_array().unwrap() {
        let stack = point["fs"].as_array().unwrap().iter();
        let stack: Vec<_> = stack
            .map(|frame| frames[frame.as_u64().unwrap() as usize].as_str().unwrap())
            .take_while(|frame| !frame.contains("bench/engine.rs:"))
            .collect();
        if stack.iter().any(|frame| is_step(frame)) {
            num_in_step += 1;
            if !stack.iter().any(|frame| may_allocate(frame)) {
                let near = stack.into_iter().filter(|frame| !frame.contains("???"));
                ours.push(near.collect::<Vec<_>>().join("\n  "));
            }
        }
    }
    assert!(num_in_step > 0, "the driver library allocates, and so must be seen to");
    assert!(ours.is_empty(), "{} places of ours allocate:\n{}", ours.len(), ours.join("\n\n"));
}
