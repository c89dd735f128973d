//! The sampler as a whole: its gate, groups, rows among others, and numbers at the end of their
//! range.

use std::mem::offset_of;

use super::testing::{assert_struct, realistic, run, sampling};
use super::*;
use crate::testing::{self as common, Random};

#[test]
fn row_params_are_the_shader_s() {
    let [parts, .., filtering] = crate::sample::sources(LANES);
    let [apply, restore] = penalize::sources();
    for source in [parts, filtering, apply, restore, crate::logprobs::source(LANES)] {
        assert_struct::<RowParams>(
            &source,
            "RowParams",
            &[
                ("scale", offset_of!(RowParams, scale)),
                ("top_k", offset_of!(RowParams, top_k)),
                ("top_p", offset_of!(RowParams, top_p)),
                ("min_exponent", offset_of!(RowParams, min_exponent)),
                ("repetition_penalty", offset_of!(RowParams, repetition_penalty)),
                ("frequency_penalty", offset_of!(RowParams, frequency_penalty)),
                ("presence_penalty", offset_of!(RowParams, presence_penalty)),
                ("seed_lo", offset_of!(RowParams, seed_lo)),
                ("seed_hi", offset_of!(RowParams, seed_hi)),
                ("choice", offset_of!(RowParams, choice)),
                ("position", offset_of!(RowParams, position)),
                ("samples", offset_of!(RowParams, samples)),
                ("wants_logprobs", offset_of!(RowParams, wants_logprobs)),
                ("scored", offset_of!(RowParams, scored)),
                ("num_top", offset_of!(RowParams, num_top)),
                ("result_at", offset_of!(RowParams, result_at)),
            ],
        );
    }
}

#[test]
fn impossible_rows_are_refused() {
    let limits = SamplerLimits { vocab_size: 10, max_rows: 2, max_logprobs: 3 };
    let adjust = |token| Adjustment { token, ..Adjustment::default() };
    let adjustments = [adjust(2), adjust(9)];
    let good = Row {
        sampling: Some(Sampling::default()),
        adjustments: &adjustments,
        mask: Some(&[1]),
        score: Some(9),
        num_logprobs: Some(3),
    };
    assert_eq!(limits.check([good, Row::default()].into_iter()), Ok(()));
    assert!(limits.check([good; 3].into_iter()).is_err());
    let unknown = [adjust(10)];
    let twice = [adjust(3), adjust(3)];
    let no_number = [Adjustment { bias: f32::NAN, ..adjust(3) }];
    let plain = Sampling::default();
    let sampled = |sampling| Row { sampling: Some(sampling), ..good };
    let bad = [
        Row { score: Some(10), ..good },
        Row { num_logprobs: Some(4), ..good },
        Row { num_logprobs: Some(1), ..Row::default() },
        Row { adjustments: &unknown, ..good },
        Row { adjustments: &twice, ..good },
        Row { adjustments: &no_number, ..good },
        Row { mask: Some(&[]), ..good },
        Row { mask: Some(&[1, 1]), ..good },
        Row { sampling: None, ..good },
        sampled(Sampling { temperature: -1.0, ..plain }),
        sampled(Sampling { temperature: f32::INFINITY, ..plain }),
        sampled(Sampling { top_p: 1.1, ..plain }),
        sampled(Sampling { top_p: f32::NAN, ..plain }),
        sampled(Sampling { min_p: -0.1, ..plain }),
        sampled(Sampling { repetition_penalty: 0.0, ..plain }),
        sampled(Sampling { frequency_penalty: f32::NAN, ..plain }),
        sampled(Sampling { presence_penalty: f32::INFINITY, ..plain }),
    ];
    for (index, row) in bad.iter().enumerate() {
        assert!(limits.check([*row].into_iter()).is_err(), "case {index}");
    }
}

/// Parameters of all kinds.
fn varied(random: &mut Random, index: usize) -> Sampling {
    Sampling {
        temperature: [0.0, 0.7, 1.0, 1.5][random.below(4)],
        top_k: [0, 40][random.below(2)],
        top_p: [1.0, 0.9][random.below(2)],
        min_p: [0.0, 0.02][random.below(2)],
        repetition_penalty: 1.1,
        frequency_penalty: 0.1,
        presence_penalty: 0.2,
        ..sampling(index)
    }
}

fn some_adjustments(random: &mut Random, vocab_size: usize, len: usize) -> Vec<Adjustment> {
    let mut tokens = random.permutation(vocab_size);
    tokens.truncate(len);
    tokens.sort_unstable();
    tokens
        .iter()
        .map(|&token| Adjustment {
            token: token as u32,
            num_in_answer: random.below(3) as u32,
            in_prompt: random.below(2) == 1,
            bias: random.below(3) as f32,
        })
        .collect()
}

#[test]
fn a_row_is_the_same_among_others_and_in_groups() {
    let Some(gpu) = common::gpu() else { return };
    let (vocab_size, num_rows) = (1757, 64);
    let mut random = Random::new(1);
    let logits = realistic(&mut random, num_rows * vocab_size);
    let adjustments: Vec<Vec<Adjustment>> =
        (0..num_rows).map(|row| some_adjustments(&mut random, vocab_size, row)).collect();
    let rows: Vec<Row<'_>> = (0..num_rows)
        .map(|row| Row {
            sampling: (row % 5 > 0).then(|| varied(&mut random, row)),
            adjustments: &adjustments[row],
            mask: None,
            score: (row % 5 == 0).then_some(row as u32),
            num_logprobs: (row % 3 > 0).then_some(row as u32 % 8),
        })
        .collect();
    let together = run(&gpu, vocab_size, &logits, &rows);
    // Adjustments don't show in logprobs, and the same question has the same answer.
    assert_eq!(bits(&together), bits(&run(&gpu, vocab_size, &logits, &rows)));
    for row in 0..num_rows {
        let alone =
            run(&gpu, vocab_size, &logits[row * vocab_size..][..vocab_size], &rows[row..=row]);
        assert_eq!(bits(&alone), bits(&together[row..=row]), "row {row}");
    }

    // The same rows seven at a time, each group's logits written over those of the last. The first
    // step has few adjustments, so the second makes the sampler grow.
    let tensor = gpu.alloc_f32(7 * vocab_size).unwrap();
    let limits = SamplerLimits { vocab_size, max_rows: num_rows, max_logprobs: 8 };
    let mut sampler = Sampler::new(&gpu, limits, &tensor).unwrap();
    assert_eq!(sampler.group_rows(), 7);
    for rows in [&rows[..10], &rows[..]] {
        let mut step = SampleStep::default();
        sampler.write(&gpu, rows.iter().copied(), &mut step).unwrap();
        let mut bytes = vec![0; step.num_bytes()];
        for (group, range) in step.groups().enumerate() {
            gpu.write(&tensor, 0, &logits[range.start * vocab_size..range.end * vocab_size]);
            let mut pass = Pass::new();
            sampler.record(&mut pass, &step, group);
            let submission = gpu.submit(&pass, Some(sampler.readback(&step))).unwrap();
            bytes = gpu.wait(submission, <[u8]>::to_vec).unwrap();
        }
        assert_eq!(bits(&step.results(&bytes).collect::<Vec<_>>()), bits(&together[..rows.len()]));
    }
    assert!(sampler.max_adjustments > MIN_ADJUSTMENTS);
    let last = &logits[63 * vocab_size..];
    common::assert_bits_eq(&gpu.read_f32(&tensor).unwrap()[..vocab_size], last);
}

/// Results, comparable bit by bit.
fn bits(results: &[RowResult]) -> Vec<[Vec<u32>; 3]> {
    let of = |result: &RowResult| {
        let top = result.top.iter().flat_map(|(token, logprob)| [*token, logprob.to_bits()]);
        let logprob = result.logprob.map(f32::to_bits);
        [Vec::from_iter(result.token), Vec::from_iter(logprob), top.collect()]
    };
    results.iter().map(of).collect()
}

#[test]
fn only_what_is_wanted_is_dispatched() {
    let Some(gpu) = common::gpu() else { return };
    let tensor = gpu.alloc_f32(20).unwrap();
    let limits = SamplerLimits { vocab_size: 10, max_rows: 4, max_logprobs: 1 };
    let mut sampler = Sampler::new(&gpu, limits, &tensor).unwrap();
    let adjustments = [Adjustment::default()];
    let greedy = Row {
        sampling: Some(Sampling { temperature: 0.0, ..Sampling::default() }),
        ..Row::default()
    };
    let filtered =
        Row { sampling: Some(Sampling { top_k: 2, ..Sampling::default() }), ..Row::default() };
    let cases = [
        (Row::default(), 0),
        (greedy, 2),
        (filtered, 4),
        (Row { adjustments: &adjustments, ..greedy }, 4),
        (Row { score: Some(0), ..Row::default() }, 2),
        (Row { num_logprobs: Some(0), ..greedy }, 4),
    ];
    let mut step = SampleStep::default();
    for (row, num_dispatches) in cases {
        sampler.write(&gpu, [row].into_iter(), &mut step).unwrap();
        let mut pass = Pass::new();
        sampler.record(&mut pass, &step, 0);
        assert_eq!(pass.num_dispatches(), num_dispatches);
    }
    sampler.write(&gpu, std::iter::empty(), &mut step).unwrap();
    assert_eq!(step.groups().len(), 0);
}

#[test]
fn the_lowest_of_equal_tokens_is_greedy_s() {
    let Some(gpu) = common::gpu() else { return };
    let greedy = Sampling { temperature: 0.0, ..Sampling::default() };
    let row = Row { sampling: Some(greedy), num_logprobs: Some(3), ..Row::default() };
    for (first, second) in [(1, 2), (3, 700), (300, 299), (256, 0), (1023, 255)] {
        let mut logits = vec![-1.0; 1024];
        (logits[first], logits[second]) = (0.0, -0.0);
        let result = run(&gpu, 1024, &logits, &[row]).remove(0);
        let (low, high) = (first.min(second) as u32, first.max(second) as u32);
        assert_eq!(result.token, Some(low));
        let top: Vec<u32> = result.top.iter().map(|(token, _)| *token).collect();
        assert_eq!(top, [low, high, u32::from(low == 0)]);
    }
}

#[test]
fn numbers_at_the_end_of_their_range() {
    let Some(gpu) = common::gpu() else { return };
    let (inf, nan, max) = (f32::INFINITY, f32::NAN, f32::MAX);
    let plain = Sampling::default();
    let mut filters = vec![
        plain,
        Sampling { temperature: 0.0, ..plain },
        Sampling { temperature: 1e-6, ..plain },
        Sampling { temperature: 1e-40, ..plain },
        Sampling { temperature: 100.0, ..plain },
        Sampling { temperature: max, ..plain },
        Sampling { top_p: 1e-30, ..plain },
        Sampling { top_p: 0.0, ..plain },
        Sampling { top_k: u32::MAX, ..plain },
        Sampling { top_k: 1, ..plain },
        Sampling { min_p: 1.0, ..plain },
        Sampling { min_p: 1e-45, ..plain },
    ];
    let all = Sampling { temperature: 1e-6, top_k: 3, top_p: 0.9999999, min_p: 1e-30, ..plain };
    filters.push(all);
    let logits: [&[f32]; 9] = [
        &[nan, nan, nan],
        &[-inf, nan, -inf],
        &[-inf, nan, 0.0, -inf],
        &[inf, 0.0, nan, inf],
        &[-1e30, 1e30, 1e30],
        &[-max, max, -inf],
        &[-max, -max, -max],
        &[max, inf, 1.0],
        &[1e-45, -1e-45, 0.0],
    ];
    let forbid = [Adjustment { token: 0, bias: -inf, ..Adjustment::default() }];
    for logits in logits {
        let sampled =
            |sampling| Row { sampling: Some(sampling), num_logprobs: Some(2), ..Row::default() };
        // Each filter at eight positions, with and without token 0.
        let rows: Vec<Row<'_>> = filters
            .iter()
            .flat_map(|filter| (0..8).map(|position| sampled(Sampling { position, ..*filter })))
            .flat_map(|row| [row, Row { adjustments: &forbid, ..row }])
            .collect();
        let results = run(&gpu, logits.len(), &logits.repeat(rows.len()), &rows);
        let possible = |token: u32| logits[token as usize] > -inf;
        let some = (0..logits.len() as u32).any(possible);
        let others = (1..logits.len() as u32).any(possible);
        for (rows, results) in rows.chunks(2).zip(results.chunks(2)) {
            let case = format!("{logits:?} {:?}: {results:?}", rows[0].sampling);
            let (free, forbidden) = (&results[0], &results[1]);
            let token = free.token.unwrap();
            assert!(if some { possible(token) } else { token == 0 }, "{case}");
            assert_eq!(free.logprob.unwrap() > -inf, some, "{case}");
            assert!(free.top.iter().all(|(_, logprob)| *logprob <= 0.0), "{case}");
            let token = forbidden.token.unwrap();
            assert!(if others { token > 0 && possible(token) } else { token == 0 }, "{case}");
        }
    }
}
