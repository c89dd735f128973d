//! Row invariance from end to end: whatever else is computed with it, in whatever pieces and
//! blocks, over whatever stages, however much of it was in the cache already, and however often it
//! gave way, a sequence gets the same bits.

use std::path::Path;

use checkpoint::{Checkpoint, Quantize};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use protocol::config::KvCacheDtype;
use protocol::{
    BLOCK_TOKENS, Batch, Begin, BlockId, Input, Logprobs, SamplingParams, SequenceId, Slice,
    TokenId,
};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use tests::{fp8, golden};

use crate::stages::{Device, LIMITS, Pipeline, device, sharing_model};

/// Sequences with different tokens. Those that share a text share what is in the cache.
const NUM_TEXTS: usize = 6;
const TEXT_LEN: usize = 100;

/// One sequence of a trial.
#[derive(Clone, Debug)]
struct Plan {
    text: usize,
    /// Tokens computed, of the text's.
    len: usize,
    /// How many are computed at a time, in turn.
    chunks: Vec<usize>,
    /// Steps that begin before it does.
    starts_at: usize,
    /// Blocks that it takes from the cache, if they are there when it starts.
    cached_blocks: usize,
    /// Tokens of the block after those that it copies, if that is there and not all that it has.
    copied: usize,
    /// Computed tokens after which it gives way, once, and is computed anew.
    gives_way_at: Option<usize>,
}

fn plan() -> impl Strategy<Value = Plan> {
    (
        0..NUM_TEXTS,
        1..=TEXT_LEN,
        // Decoding, short chunks that cross blocks, long ones.
        prop::collection::vec(prop_oneof![Just(1), 1..20usize, 1..=TEXT_LEN], 1..4),
        0..8usize,
        0..=TEXT_LEN / BLOCK_TOKENS,
        0..BLOCK_TOKENS,
        prop::option::of(1..TEXT_LEN),
    )
        .prop_map(|(text, len, chunks, starts_at, cached_blocks, copied, gives_way_at)| Plan {
            text,
            len,
            chunks,
            starts_at,
            cached_blocks,
            copied,
            gives_way_at,
        })
}

/// From 1 to 64 sequences, and the order in which blocks are handed out.
fn trial() -> impl Strategy<Value = (Vec<Plan>, Vec<u32>)> {
    let blocks = (0..LIMITS.max_blocks).collect::<Vec<_>>();
    let num_sequences = prop_oneof![1..4usize, 1..=LIMITS.max_num_seqs as usize];
    let plans = num_sequences.prop_flat_map(|num| prop::collection::vec(plan(), num));
    (plans, Just(blocks).prop_shuffle())
}

fn token(text: usize, position: usize, vocab_size: usize) -> TokenId {
    TokenId(((text * 7919 + position * 104_729 + 13) % vocab_size) as u32)
}

fn slice(sequence: u64, start: usize, tokens: Vec<TokenId>, blocks: Vec<BlockId>) -> Slice {
    Slice {
        sequence: SequenceId(sequence),
        start: start as u32,
        input: Input::Tokens(tokens),
        first_block: 0,
        blocks,
        begin: None,
        sample: true,
        next: None,
    }
}

fn begin(skipped: Vec<TokenId>, copy_from: Option<BlockId>) -> Option<Box<Begin>> {
    // The log-probabilities of a token hang on every logit.
    let num_logprobs = Some(LIMITS.max_logprobs);
    let sampling = SamplingParams { num_logprobs, seed: 5, ..SamplingParams::default() };
    Some(Box::new(Begin { sampling, num_prompt_tokens: 1, skipped, copy_from }))
}

/// What is sampled after each position of each text, alone and token by token.
fn references(pipeline: &mut Pipeline<'_>, vocab_size: usize) -> Vec<Vec<Logprobs>> {
    let reference = |text: usize| {
        let at = |position| {
            let first = position == 0;
            let num_blocks = if first { TEXT_LEN.div_ceil(BLOCK_TOKENS) as u32 } else { 0 };
            let blocks = (0..num_blocks).map(BlockId).collect();
            let id = 1_000_000 + text as u64;
            let tokens = vec![token(text, position, vocab_size)];
            let mut slice = slice(id, position, tokens, blocks);
            slice.begin = begin(Vec::new(), None).filter(|_| first);
            let finished = if first { vec![SequenceId(id - 1)] } else { Vec::new() };
            let (_, outputs) = pipeline.step(Batch { finished, slices: vec![slice] });
            outputs[0].logprobs.clone().unwrap()
        };
        (0..TEXT_LEN).map(at).collect()
    };
    (0..NUM_TEXTS).map(reference).collect()
}

/// A sequence of a trial, as far as it is computed.
struct Running {
    id: u64,
    plan: Plan,
    blocks: Vec<BlockId>,
    /// Blocks of it that were in the cache.
    shared: usize,
    copy_from: Option<BlockId>,
    computed: usize,
    chunk: usize,
}

/// Runs a trial as a scheduler would that is short of tokens: sequences take their turn with what
/// room the step has left.
fn run(
    pipeline: &mut Pipeline<'_>,
    (plans, mut free): (Vec<Plan>, Vec<u32>),
    references: &[Vec<Logprobs>],
    vocab_size: usize,
) {
    // Blocks of each text that are in the cache, whole.
    let mut cache: Vec<Vec<BlockId>> = vec![Vec::new(); NUM_TEXTS];
    let mut waiting: Vec<_> = (1..).zip(plans).collect();
    let mut running: Vec<Running> = Vec::new();
    let mut finished = vec![SequenceId(1_000_000 + NUM_TEXTS as u64 - 1)];
    for number in 0.. {
        let mut room = LIMITS.max_batched_tokens as usize;
        let mut slices = Vec::new();
        waiting.retain(|(id, plan): &(u64, Plan)| {
            if plan.starts_at <= number {
                // At least one token is computed.
                let most = (plan.len - 1) / BLOCK_TOKENS;
                let hits = plan.cached_blocks.min(most).min(cache[plan.text].len());
                let copied = if hits < plan.cached_blocks { 0 } else { plan.copied };
                let computed = hits * BLOCK_TOKENS + copied;
                let next = cache[plan.text].get(hits);
                let copy_from = next.filter(|_| copied > 0 && computed < plan.len).copied();
                running.push(Running {
                    id: *id,
                    plan: plan.clone(),
                    blocks: cache[plan.text][..hits].to_vec(),
                    shared: hits,
                    copy_from,
                    computed: if copy_from.is_some() { computed } else { hits * BLOCK_TOKENS },
                    chunk: 0,
                });
            }
            plan.starts_at > number
        });
        for sequence in &mut running {
            let Running { plan, blocks, copy_from, computed, chunk, .. } = sequence;
            let start = *computed;
            let num_tokens = plan.chunks[*chunk % plan.chunks.len()];
            let num_tokens = num_tokens.min(plan.len - start).min(room);
            if num_tokens == 0 {
                continue;
            }
            room -= num_tokens;
            let end = start + num_tokens;
            let tokens = |range: std::ops::Range<usize>| {
                range.map(|position| token(plan.text, position, vocab_size)).collect::<Vec<_>>()
            };
            let held = blocks.len();
            while blocks.len() * BLOCK_TOKENS < end {
                blocks.push(BlockId(free.pop().unwrap()));
            }
            let is_new = *chunk == 0;
            let first_block = if is_new { 0 } else { held };
            let mut slice =
                slice(sequence.id, start, tokens(start..end), blocks[first_block..].to_vec());
            slice.first_block = first_block as u32;
            slice.begin = begin(tokens(0..start), *copy_from).filter(|_| is_new);
            slices.push(slice);
            *computed = end;
            *chunk += 1;
        }
        if slices.is_empty() && waiting.is_empty() {
            return;
        }
        let turn = usize::from(!running.is_empty());
        running.rotate_left(turn);
        if slices.is_empty() {
            continue;
        }
        let batch = Batch { finished: std::mem::take(&mut finished), slices };
        for output in pipeline.step(batch).1 {
            let sequence = running.iter().find(|running| running.id == output.sequence.0).unwrap();
            let found = output.logprobs.unwrap();
            let expected = &references[sequence.plan.text][output.position as usize - 1];
            assert!(
                bits(&found) == bits(expected),
                "{:?} at {}: {found:?}, alone {expected:?}",
                sequence.plan,
                output.position
            );
        }
        running.retain(|sequence| {
            let Running { id, plan, blocks, computed, shared, .. } = sequence;
            let gives_way = plan.gives_way_at.is_some_and(|at| (at..plan.len).contains(computed));
            if gives_way {
                // Its own blocks are anybody's now; it comes back as somebody else.
                free.extend(blocks[*shared..].iter().map(|block| block.0));
                finished.push(SequenceId(*id));
                waiting.push((id + 1000, Plan { gives_way_at: None, ..plan.clone() }));
                return false;
            }
            let ended = *computed == plan.len;
            if ended {
                let whole = &sequence.blocks[..sequence.computed / BLOCK_TOKENS];
                let cached = &mut cache[sequence.plan.text];
                if whole.len() > cached.len() {
                    *cached = whole.to_vec();
                }
                finished.push(SequenceId(sequence.id));
            }
            !ended
        });
    }
}

fn bits(logprobs: &Logprobs) -> Vec<(TokenId, u32)> {
    let all = logprobs.top.iter().chain([&logprobs.chosen]);
    all.map(|one| (one.token, one.logprob.to_bits())).collect()
}

fn is_invariant(files: &Checkpoint, name: &str) {
    let Some(device) = device() else { return };
    for kv in [KvCacheDtype::F32, KvCacheDtype::F16] {
        is_invariant_on(device.as_ref().unwrap(), files, kv, &format!("{name}, cache {kv}"));
    }
}

pub(crate) fn is_invariant_on(device: &Device, files: &Checkpoint, kv: KvCacheDtype, name: &str) {
    let vocab_size = files.config().vocab_size;
    let references = references(&mut Pipeline::with_cache(device, files, &[0, 4], kv), vocab_size);
    let pipeline = Pipeline::with_cache(device, files, &[0, 2, 4], kv);
    let different = references.iter().flatten().map(bits).collect::<std::collections::HashSet<_>>();
    assert!(different.len() > NUM_TEXTS * TEXT_LEN / 2, "{name}: the reference tells texts apart");
    let config = Config { cases: 6, failure_persistence: None, ..Config::default() };
    let pipeline = std::cell::RefCell::new(pipeline);
    let trials = TestRunner::new(config).run(&trial(), |trial| {
        run(&mut pipeline.borrow_mut(), trial, &references, vocab_size);
        Ok(())
    });
    if let Err(cause) = trials {
        panic!("{name}: {cause}");
    }
}

/// A copy of the fixture `glm` whose weights are f16.
fn f16_model(folder: &Path) {
    let source = golden::fixture("glm").join("bf16");
    std::fs::copy(source.join("config.json"), folder.join("config.json")).unwrap();
    let bytes = std::fs::read(source.join("model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let converted: Vec<_> = tensors
        .iter()
        .map(|(name, tensor)| {
            let values = tensor.data().chunks_exact(2).flat_map(|value| {
                let value = half::bf16::from_le_bytes([value[0], value[1]]);
                half::f16::from_f32(value.to_f32()).to_le_bytes()
            });
            (name.to_owned(), tensor.shape().to_vec(), values.collect::<Vec<u8>>())
        })
        .collect();
    let views = converted.iter().map(|(name, shape, values)| {
        (name, TensorView::new(Dtype::F16, shape.clone(), values).unwrap())
    });
    safetensors::serialize_to_file(views, None, &folder.join("model.safetensors")).unwrap();
}

#[test]
fn bits_hang_on_nothing_but_the_sequence_in_f32() {
    let files = Checkpoint::open(&golden::fixture("glm4").join("f32")).unwrap();
    is_invariant(&files, "f32");
}

#[test]
fn bits_hang_on_nothing_but_the_sequence_in_f16() {
    let folder = tempfile::tempdir().unwrap();
    f16_model(folder.path());
    is_invariant(&Checkpoint::open(folder.path()).unwrap(), "f16");
}

#[test]
fn bits_hang_on_nothing_but_the_sequence_in_fp8() {
    let folder = tempfile::tempdir().unwrap();
    let (model, _) = fp8::models(&golden::fixture("glm").join("bf16"), folder.path());
    is_invariant(&Checkpoint::open(&model).unwrap(), "fp8");
}

#[test]
fn bits_hang_on_nothing_but_the_sequence_in_bf16_int8_and_int4() {
    for quantize in [Quantize::None, Quantize::Int8, Quantize::Int4] {
        let files = Checkpoint::open(&golden::fixture("glm").join("bf16")).unwrap();
        is_invariant(&files.quantized(quantize), &format!("{quantize:?}"));
    }
}

#[test]
fn bits_hang_on_nothing_but_the_sequence_with_experts() {
    for (name, quantize) in [
        ("glm4-moe", Quantize::None),
        ("glm4-moe-groups", Quantize::Int8),
        ("glm4-moe", Quantize::Int4),
    ] {
        let files = Checkpoint::open(&golden::fixture(name).join("bf16")).unwrap();
        is_invariant(&files.quantized(quantize), &format!("{name} {quantize:?}"));
    }
}

#[test]
fn bits_hang_on_nothing_but_the_sequence_with_latent_attention() {
    for (name, quantize) in [("glm4-moe-lite", Quantize::Int8), ("glm-moe-dsa", Quantize::None)] {
        let files = Checkpoint::open(&golden::fixture(name).join("bf16")).unwrap();
        is_invariant(&files.quantized(quantize), &format!("{name} {quantize:?}"));
    }
}

/// The stages are cut between a layer that chooses and one that takes its choice.
#[test]
fn bits_hang_on_nothing_but_the_sequence_where_a_choice_is_shared() {
    let folder = tempfile::tempdir().unwrap();
    sharing_model(folder.path());
    is_invariant(&Checkpoint::open(folder.path()).unwrap(), "glm-moe-dsa, shared");
}
