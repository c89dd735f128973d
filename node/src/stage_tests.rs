//! What a step waits for.

use std::path::Path;
use std::sync::mpsc::{channel, sync_channel};
use std::thread;

use checkpoint::Part;
use protocol::{Begin, BlockId, Input, SamplingParams, SequenceId, Slice, TokenId};
use shaders::gpu::GpuOptions;

use super::*;

/// Goal: a step whose masks are late holds up nobody else's on the adapter. Method: another of the
/// adapter's processes takes a turn meanwhile, for which it would wait in vain.
#[test]
fn who_waits_for_masks_lets_others_have_their_turns() {
    let folder = tempfile::tempdir().unwrap();
    let options = GpuOptions {
        cache_dir: Some(folder.path().to_owned()),
        takes_turns: Some(true),
        ..GpuOptions::default()
    };
    let other = match Gpu::open_with(None, options.clone()) {
        Ok(other) => other,
        Err(cause) => return println!("skipped: no adapter ({cause})"),
    };
    let (give, masks) = sync_channel(1);
    let (tell, loaded) = channel();
    let stepping = thread::spawn(move || {
        let gpu = Gpu::open_with(None, options).unwrap();
        let kernels = Kernels::new(&gpu).unwrap();
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/models/glass-en");
        let files = Checkpoint::open(Path::new(path)).unwrap();
        let model = files.config();
        let last = model.num_layers() as u32 - 1;
        let mut plan = crate::kept::tests::plan(&files, last..last + 1);
        plan.digests.push(Digest(files.digest(Part::Head).unwrap()));
        (plan.num_stages, plan.memory_bytes) = (2, 1 << 30);
        let mut stage = Stage::load(&gpu, &kernels, &files, &plan, &mut |_| ()).unwrap();
        let begin = Begin {
            sampling: SamplingParams { temperature: 0.0, ..SamplingParams::default() },
            num_prompt_tokens: 1,
            skipped: Vec::new(),
            copy_from: None,
        };
        let slice = Slice {
            sequence: SequenceId(1),
            start: 0,
            input: Input::Tokens(vec![TokenId(5)]),
            first_block: 0,
            blocks: vec![BlockId(0)],
            begin: Some(Box::new(begin)),
            sample: true,
            next: None,
        };
        let batch = Batch { finished: Vec::new(), slices: vec![slice] };
        let hidden = std::iter::repeat_n(0.5, model.row_values()).collect();
        let step = Step { batch: batch.into(), hidden, ..Step::default() };
        tell.send(model.vocab_size).unwrap();
        stage.masked_step(&gpu, &step, Some(masks)).unwrap()
    });
    let vocab_size = loaded.recv().unwrap();
    thread::sleep(Duration::from_millis(300));
    let began = Instant::now();
    let turn = other.turn();
    assert!(began.elapsed() < Duration::from_millis(400), "{:?}", began.elapsed());
    let mut words = vec![0; vocab_size.div_ceil(32)];
    words[0] = 1 << 7;
    give.send(Masks::with(&[(0, &words)])).unwrap();
    drop(turn);
    let StepOutput::Sampled(outputs, _) = stepping.join().unwrap() else { panic!() };
    assert_eq!(outputs[0].token, Some(TokenId(7)));
}
