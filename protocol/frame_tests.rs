use super::*;
use crate::{Begin, BlockId, Input, Logprobs, SamplingParams, Slice, TokenId, TokenLogprob};
use proptest::prelude::*;

fn frame(body: Body) -> Frame {
    Frame {
        model: ModelId([7; 16]),
        stage: StageId {
            pipeline: PipelineId(3),
            epoch: Epoch { start: 9, counter: 4 },
            stage: StageIndex(1),
        },
        step: StepId(1 << 40),
        body,
    }
}

fn bytes(frame: &Frame) -> Vec<u8> {
    frame.encode().concat()
}

fn decode(bytes: &[u8]) -> Result<Frame, FrameError> {
    Frame::decode(&Bytes::copy_from_slice(bytes))
}

fn step() -> Step {
    let slice = Slice {
        sequence: crate::SequenceId(5),
        start: 2,
        input: Input::Tokens(vec![TokenId(1), TokenId(2)]),
        first_block: 0,
        blocks: vec![BlockId(8)],
        begin: Some(Box::new(Begin {
            sampling: SamplingParams::default(),
            num_prompt_tokens: 4,
            skipped: vec![TokenId(0), TokenId(9)],
            copy_from: Some(BlockId(3)),
        })),
        sample: true,
        next: None,
    };
    Step {
        batch: Batch { finished: vec![crate::SequenceId(4)], slices: vec![slice] }.into(),
        hidden: [1.5, -0.0, f32::MIN_POSITIVE / 2.0, f32::MAX].into_iter().collect(),
        side: None,
        masks: Masks::with(&[(0, &[5, 1 << 31])]),
        awaits_masks: true,
        tells_hidden: vec![0],
        timings: vec![StageTiming { compute_us: 5, ..StageTiming::default() }],
        traces: vec![TraceContext {
            trace: crate::TraceId([3; 16]),
            span: crate::SpanId(8),
            sampled: true,
        }],
    }
}

fn sampled() -> Sampled {
    let top = TokenLogprob { token: TokenId(3), logprob: -0.25 };
    let logprobs = Logprobs { chosen: top, top: vec![top] };
    let output = SliceOutput {
        sequence: crate::SequenceId(5),
        position: 4,
        token: Some(TokenId(3)),
        logprobs: Some(logprobs.clone()),
        prompt_logprobs: vec![logprobs],
    };
    Sampled {
        outputs: vec![output],
        hidden: vec![HiddenRow { slice: 0, values: vec![1.5, -0.0] }],
        timings: vec![],
    }
}

#[test]
fn every_kind_comes_back_bit_for_bit() {
    let failed = Failed { cause: "device lost".into(), fatal: true, blame: Blame::Next };
    let masks = Body::Masks(Masks::with(&[(3, &[7])]));
    for body in [Body::Step(step()), Body::Sampled(sampled()), Body::Failed(failed), masks] {
        let sent = frame(body);
        assert_eq!(decode(&bytes(&sent)).unwrap(), sent);
    }
}

/// Where the contents of a frame's sections are, by their kinds.
fn sections(bytes: &[u8]) -> Vec<(u16, std::ops::Range<usize>)> {
    let mut at = HEADER_BYTES;
    let mut found = Vec::new();
    while at < bytes.len() {
        let length = u32::from_le_bytes(*bytes[at + 4..].first_chunk().unwrap()) as usize;
        found.push((u16::from_le_bytes([bytes[at], bytes[at + 1]]), at + 8..at + 8 + length));
        at += 8 + length;
    }
    found
}

/// Method: a batch whose first number is written longer than need be. Decoded and encoded
/// again it would be shorter.
#[test]
fn a_batch_is_sent_on_in_the_bytes_that_it_came_in_unless_it_was_changed() {
    let sent = frame(Body::Step(step()));
    let shortest = bytes(&sent);
    let (kind, batch) = sections(&shortest)[0].clone();
    assert_eq!((kind, shortest[batch.start]), (Section::Batch as u16, 1), "one has finished");
    let mut came = shortest.clone();
    came.splice(batch.start..=batch.start, [251, 1, 0]);
    for (at, added) in [(batch.start - 4, 2), (60, 2)] {
        let length = u32::from_le_bytes(*came[at..].first_chunk().unwrap()) + added;
        came[at..at + 4].copy_from_slice(&length.to_le_bytes());
    }
    let received = Bytes::from(came);
    let mut got = Frame::decode(&received).unwrap();
    assert_eq!(got, sent);
    let pieces = got.encode();
    assert_eq!(pieces.concat(), received);
    let within = received.as_ptr_range();
    assert!(within.contains(&pieces[1].as_ptr()), "the hidden state is the one that came");

    let Body::Step(step) = &mut got.body else { panic!() };
    step.batch.slices[0].input = Input::Tokens(vec![TokenId(3)]);
    let changed = decode(&bytes(&got)).unwrap();
    assert_eq!(changed, got);
    assert_ne!(changed, sent);
}

#[test]
fn a_hidden_state_that_ends_within_a_value_is_refused() {
    for left_off in 1..4 {
        let mut bytes = bytes(&frame(Body::Step(step())));
        let (kind, hidden) = sections(&bytes).pop().unwrap();
        assert_eq!(kind, Section::Hidden as u16, "it comes last");
        bytes.truncate(bytes.len() - left_off);
        for (at, length) in
            [(hidden.start - 4, hidden.len() - left_off), (60, bytes.len() - HEADER_BYTES)]
        {
            bytes[at..at + 4].copy_from_slice(&(length as u32).to_le_bytes());
        }
        assert_eq!(decode(&bytes), Err(FrameError::WrongLengths));
    }
}

#[test]
fn an_unknown_section_is_skipped_unless_it_is_critical() {
    let sent = frame(Body::Sampled(sampled()));
    // 3 is what a sender of the first timings would say.
    let unknown = |kind| Err(FrameError::UnknownSection(kind));
    for (kind, flags, expected) in
        [(99u16, 0u16, Ok(())), (99, 1, unknown(99)), (3, 0, Ok(())), (3, 1, unknown(3))]
    {
        let mut bytes = bytes(&sent);
        bytes.extend(kind.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(2u32.to_le_bytes());
        bytes.extend([1, 2]);
        bytes[NUM_SECTIONS_AT] += 1;
        let length = (bytes.len() - HEADER_BYTES) as u32;
        bytes[60..64].copy_from_slice(&length.to_le_bytes());
        assert_eq!(decode(&bytes).map(|got| assert_eq!(got, sent)), expected);
    }
}

#[test]
fn a_frame_of_another_version_is_refused_by_name() {
    let mut bytes = bytes(&frame(Body::Step(step())));
    for theirs in [FRAMES_SINCE - 1, WIRE_VERSION + 1] {
        bytes[4] = theirs as u8;
        let error = decode(&bytes).unwrap_err();
        let expected = format!(
            "frame speaks wire version {theirs}, this process {FRAMES_SINCE} to {WIRE_VERSION}"
        );
        assert_eq!(error.to_string(), expected);
    }
}

#[test]
fn a_length_beyond_the_limit_is_refused_before_it_is_read() {
    let mut header = [0; HEADER_BYTES];
    header.copy_from_slice(&bytes(&frame(Body::Step(step())))[..HEADER_BYTES]);
    header[60..64].copy_from_slice(&u32::MAX.to_le_bytes());
    assert_eq!(
        Frame::payload_bytes(&header, 1000),
        Err(FrameError::TooLong { bytes: u32::MAX as usize, max: 1000 })
    );
}

proptest! {
    /// What a frame holds hangs on no alignment of its bytes.
    #[test]
    fn frames_come_back_from_wherever_they_lie(
        offset in 0usize..16,
        values in proptest::collection::vec(any::<u32>(), 0..40),
    ) {
        let values: Vec<_> = values.into_iter().map(f32::from_bits).collect();
        let hidden: Hidden = values.iter().copied().collect();
        let sent = frame(Body::Step(Step { hidden, ..step() }));
        let mut there = vec![0; offset];
        there.extend(bytes(&sent));
        let got = Frame::decode(&Bytes::from(there).slice(offset..)).unwrap();
        let Body::Step(step) = &got.body else { panic!() };
        let bits = |value: f32| value.to_bits();
        prop_assert!(step.hidden.values().map(bits).eq(values.into_iter().map(bits)));
        prop_assert_eq!(step.hidden.len() * 4, step.hidden.bytes().len());
        prop_assert_eq!(got, sent);
    }

    /// A section that says it is longer or shorter than it is takes no more memory than its
    /// frame, and is refused, or leaves a frame that says the same when it is sent on.
    #[test]
    fn lengths_that_lie_never_panic(
        section in 0usize..4, lie in any::<u32>(), near in -9i64..9,
    ) {
        let bytes = bytes(&frame(Body::Step(step())));
        let (_, content) = sections(&bytes)[section].clone();
        for length in [lie, (content.len() as i64 + near).max(0) as u32] {
            let mut bytes = bytes.clone();
            bytes[content.start - 4..content.start].copy_from_slice(&length.to_le_bytes());
            if let Ok(got) = decode(&bytes) {
                prop_assert_eq!(decode(&self::bytes(&got)), Ok(got));
            }
        }
    }

    #[test]
    fn damaged_frames_never_panic(at in 0usize..400, value in any::<u8>(), cut in 0usize..400) {
        let mut bytes = bytes(&frame(Body::Step(step())));
        let at = at % bytes.len();
        bytes[at] = value;
        let _ = decode(&bytes);
        bytes.truncate(cut);
        let _ = decode(&bytes);
    }
}

#[test]
fn a_tensor_beside_the_hidden_state_goes_with_it_and_must_be_understood() {
    let side = Some(Side { name: "chosen".to_owned(), words: vec![2, 0, 7, u32::MAX] });
    let body = Body::Step(Step { side: side.clone(), ..step() });
    let frame = Frame { body, ..frame(Body::Step(step())) };
    let bytes: Bytes = frame.encode().concat().into();
    assert_eq!(Frame::decode(&bytes).unwrap(), frame);
    // Its section is critical: who doesn't know it would compute something else.
    let kind = (Section::Side as u16).to_le_bytes();
    let flag = CRITICAL.to_le_bytes();
    let header = [kind, flag].concat();
    assert!(bytes.windows(4).any(|four| four == header));
}
