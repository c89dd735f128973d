//! Sampled tokens against the reference, one by one and as a distribution.

use std::mem::offset_of;

use super::*;
use crate::penalize::{self, Adjustment};
use crate::sampler::testing::{ODD_SIZES, realistic, run, run_with_lanes, sampling};
use crate::sampler::{LANES, Row, RowResult};
use crate::testing;

#[test]
fn params_are_the_shader_s() {
    for source in [sources(LANES), sources(16)].concat() {
        testing::assert_kernel(&source);
        testing::assert_params(
            &source,
            &[
                ("vocab_size", offset_of!(Params, vocab_size)),
                ("first_row", offset_of!(Params, first_row)),
                ("is_raw", offset_of!(Params, is_raw)),
            ],
        );
    }
}

#[test]
fn references_by_hand() {
    let ln = f32::ln;
    let logits = [ln(0.1), ln(0.4), f32::NAN, ln(0.4), ln(0.1)];
    let of = |sampling| {
        let survivors = survivors(&sampling, &logits);
        survivors.iter().map(|(token, _)| *token).collect::<Vec<_>>()
    };
    let plain = Sampling::default();
    assert_eq!(of(Sampling { temperature: 0.0, ..plain }), [1]);
    assert_eq!(of(plain), [1, 3, 0, 4]);
    assert_eq!(of(Sampling { top_k: 3, ..plain }), [1, 3, 0]);
    assert_eq!(of(Sampling { top_p: 0.3, ..plain }), [1]);
    assert_eq!(of(Sampling { top_p: 0.5, ..plain }), [1, 3]);
    assert_eq!(of(Sampling { min_p: 0.5, ..plain }), [1, 3]);
    let survivors = survivors(&plain, &logits);
    let at = |uniform| reference(LANES, &survivors, uniform);
    assert_eq!([at(0.0), at(0.09), at(0.11), at(0.6), at(0.95)], [0, 0, 1, 3, 4]);
}

/// Tokens that the reference may choose: rounding moves the borders of the filters, and those
/// between tokens, by as much as 1e-5 of all weight.
fn allowed(sampling: &Sampling, logits: &[f32]) -> Vec<u32> {
    let uniform = f64::from(rng::uniform(sampling.seed, sampling.choice, sampling.position));
    let mut tokens = Vec::new();
    for nudge in [0.0, -1e-5, 1e-5] {
        let top_p = (sampling.top_p * (1.0 + nudge)).min(1.0);
        let nudged = Sampling { top_p, min_p: sampling.min_p * (1.0 + nudge), ..*sampling };
        let survivors = survivors(&nudged, logits);
        for nudge in [0.0, -1e-5, 1e-5] {
            let uniform = (uniform + nudge).clamp(0.0, 1.0 - 1e-9);
            tokens.push(reference(LANES, &survivors, uniform));
        }
    }
    tokens
}

#[test]
fn agrees_with_the_reference() {
    let Some(gpu) = testing::gpu() else { return };
    let mut random = testing::Random::new(1);
    let mut num_exact = 0;
    let mut num_rows = 0;
    for vocab_size in ODD_SIZES {
        for ties in [false, true] {
            let mut params = Vec::new();
            for index in 0..48 {
                let pick = |random: &mut testing::Random, values: [f32; 4]| values[random.below(4)];
                params.push(Sampling {
                    temperature: pick(&mut random, [0.0, 0.3, 1.0, 1.7]),
                    top_k: pick(&mut random, [0.0, 1.0, 20.0, 700.0]) as u32,
                    top_p: pick(&mut random, [1.0, 0.3, 0.9, 0.99]),
                    min_p: pick(&mut random, [0.0, 0.0, 0.01, 0.2]),
                    ..sampling(index)
                });
            }
            let mut logits = realistic(&mut random, params.len() * vocab_size);
            if ties {
                logits.iter_mut().for_each(|logit| *logit = (*logit / 2.0).round() * 2.0);
            }
            let rows: Vec<Row<'_>> = params
                .iter()
                .map(|sampling| Row { sampling: Some(*sampling), ..Row::default() })
                .collect();
            let results = run(&gpu, vocab_size, &logits, &rows);
            for (index, (sampling, result)) in params.iter().zip(&results).enumerate() {
                let logits = &logits[index * vocab_size..][..vocab_size];
                let (token, allowed) = (result.token.unwrap(), allowed(sampling, logits));
                assert!(allowed.contains(&token), "{vocab_size} {sampling:?}: {token}");
                num_exact += usize::from(token == allowed[0]);
                num_rows += 1;
            }
        }
    }
    eprintln!("{num_exact} of {num_rows} tokens are those of the reference without any nudge");
}

#[test]
fn filters_keep_exactly_what_the_reference_keeps() {
    let Some(gpu) = testing::gpu() else { return };
    // Ties across the borders, which lie far from where rounding could move them.
    let logits: Vec<f32> = (0..300).map(|token| ((token * 7) % 5) as f32).collect();
    let plain = Sampling { temperature: 2.0, ..Sampling::default() };
    for filter in [
        Sampling { top_k: 1, ..plain },
        Sampling { top_k: 7, ..plain },
        Sampling { top_k: 60, ..plain },
        Sampling { top_k: 61, ..plain },
        Sampling { top_p: 0.1003, ..plain },
        Sampling { min_p: 0.5, ..plain },
        Sampling { top_k: 70, top_p: 0.9003, ..plain },
        Sampling { top_k: 100, min_p: 0.5, top_p: 0.2503, ..plain },
    ] {
        let params: Vec<Sampling> =
            (0..3000).map(|position| Sampling { position, ..filter }).collect();
        let mut drawn: Vec<u32> = tokens(&run_repeated(&gpu, &logits, &[], &params));
        drawn.sort_unstable();
        drawn.dedup();
        let mut expected: Vec<u32> = survivors(&filter, &logits).iter().map(|(t, _)| *t).collect();
        expected.sort_unstable();
        assert_eq!(drawn, expected, "{filter:?}");
    }
}

/// The largest vocabulary of a GLM: all filters, penalties and masks together, with logprobs, of
/// rows that have a winner and of rows that are nearly flat.
#[test]
fn many_partitions_agree_with_the_reference() {
    let Some(gpu) = testing::gpu() else { return };
    let vocab_size = 151_552;
    let mut random = testing::Random::new(7);
    let plain = Sampling { repetition_penalty: 1.3, presence_penalty: 0.5, ..sampling(12) };
    let cases = [
        Sampling { temperature: 0.0, ..plain },
        plain,
        Sampling { top_k: 40, ..plain },
        Sampling { top_p: 0.9, ..plain },
        Sampling { top_p: 0.95, temperature: 30.0, ..plain },
        Sampling { min_p: 0.02, ..plain },
        Sampling { top_k: 3000, top_p: 0.7, min_p: 1e-4, temperature: 1.7, ..plain },
    ];
    let logits = realistic(&mut random, cases.len() * vocab_size);
    let mut mask = vec![u32::MAX; vocab_size.div_ceil(32)];
    mask.iter_mut().step_by(3).for_each(|word| *word = 0x5555_5555);
    let adjustments: Vec<Adjustment> = (0..vocab_size as u32)
        .step_by(97)
        .map(|token| Adjustment { token, num_in_answer: token % 3, in_prompt: true, bias: 0.25 })
        .collect();
    let rows: Vec<Row<'_>> = (0..)
        .zip(&cases)
        .map(|(row, sampling)| Row {
            sampling: Some(*sampling),
            adjustments: &adjustments,
            mask: (row % 2 == 1).then_some(&mask),
            num_logprobs: Some(5),
            ..Row::default()
        })
        .collect();
    let results = run(&gpu, vocab_size, &logits, &rows);
    for (index, (row, result)) in rows.iter().zip(&results).enumerate() {
        let sampling = row.sampling.unwrap();
        let raw = &logits[index * vocab_size..][..vocab_size];
        let mut changed = raw.to_vec();
        for adjustment in row.adjustments {
            let z = &mut changed[adjustment.token as usize];
            *z = penalize::reference(&sampling, adjustment, *z);
        }
        if let Some(mask) = row.mask {
            let masked = |(token, z): (usize, f32)| crate::mask::reference(mask, token, z);
            changed = changed.into_iter().enumerate().map(masked).collect();
        }
        let (token, allowed) = (result.token.unwrap(), allowed(&sampling, &changed));
        assert!(allowed.contains(&token), "{sampling:?}: {token} of {allowed:?}");
        let expected = crate::logprobs::reference(raw);
        let mut best: Vec<usize> = (0..vocab_size).collect();
        best.sort_by(|&a, &b| raw[b].total_cmp(&raw[a]));
        let top: Vec<usize> = result.top.iter().map(|(token, _)| *token as usize).collect();
        assert_eq!(top, best[..5]);
        let own = (token, result.logprob.unwrap());
        for (token, logprob) in result.top.iter().chain([&own]) {
            assert!((f64::from(*logprob) - expected[*token as usize]).abs() < 1e-5);
        }
        // Alone, it is the same.
        let alone = run(&gpu, vocab_size, raw, &rows[index..=index]);
        assert_eq!(alone[0], *result);
    }
}

/// Samples with each of `params` from the same logits.
fn run_repeated(
    gpu: &Gpu,
    logits: &[f32],
    adjustments: &[Adjustment],
    params: &[Sampling],
) -> Vec<RowResult> {
    let rows: Vec<Row<'_>> = params
        .iter()
        .map(|sampling| Row { sampling: Some(*sampling), adjustments, ..Row::default() })
        .collect();
    let lanes = if logits.len() > 64 { 64 } else { 16 };
    run_with_lanes(gpu, lanes, logits.len(), &logits.repeat(rows.len()), &rows)
}

fn tokens(results: &[RowResult]) -> Vec<u32> {
    results.iter().map(|result| result.token.unwrap()).collect()
}

/// Draws 100,000 tokens, at many positions of three choices of many seeds, and asserts that their
/// counts are as likely as not below a chance of 1e-4.
#[track_caller]
fn assert_distribution(logits: &[f32], adjustments: &[Adjustment], filter: Sampling) {
    let Some(gpu) = testing::gpu() else { return };
    let mut counts = vec![0.0; logits.len()];
    const NUM_DRAWS: usize = 100_000;
    for first in (0..NUM_DRAWS).step_by(20_000) {
        let params: Vec<Sampling> = (first..first + 20_000)
            .map(|index| {
                let Sampling { seed, choice, position, .. } = sampling(index);
                Sampling { seed, choice, position, ..filter }
            })
            .collect();
        for token in tokens(&run_repeated(&gpu, logits, adjustments, &params)) {
            counts[token as usize] += 1.0;
        }
    }
    let mut changed = logits.to_vec();
    for adjustment in adjustments {
        let logit = &mut changed[adjustment.token as usize];
        *logit = penalize::reference(&filter, adjustment, *logit);
    }
    let survivors = survivors(&filter, &changed);
    let kept: f64 = survivors.iter().map(|(token, _)| counts[*token as usize]).sum();
    assert_eq!(kept, NUM_DRAWS as f64, "what was filtered out isn't drawn");
    let chi_square: f64 = survivors
        .iter()
        .map(|(token, probability)| {
            let expected = probability * NUM_DRAWS as f64;
            assert!(expected > 5.0, "the test draws often enough for each token");
            (counts[*token as usize] - expected).powi(2) / expected
        })
        .sum();
    // Wilson and Hilferty: the cube root of chi-square is nearly normal. 3.72 is exceeded with a
    // chance of 1e-4.
    let degrees = survivors.len() as f64 - 1.0;
    let variance = 2.0 / (9.0 * degrees);
    let normal = ((chi_square / degrees).cbrt() - (1.0 - variance)) / variance.sqrt();
    eprintln!("{} tokens: chi-square {chi_square:.1}, normal {normal:.2}", survivors.len());
    assert!(normal < 3.72, "{filter:?}: chi-square {chi_square} of {degrees}");
}

/// Sixteen logits, two of them equal, within 5 of the best.
const LOGITS: [f32; 16] =
    [1.0, -0.5, 2.0, 0.0, 3.0, 3.0, -1.0, 0.25, 1.5, 2.5, -2.0, 0.75, 0.1, -0.2, 1.2, -1.4];

fn seen(token: u32, num_in_answer: u32, in_prompt: bool) -> Adjustment {
    Adjustment { token, num_in_answer, in_prompt, bias: 0.0 }
}

#[test]
fn distribution_of_temperatures() {
    for temperature in [0.6, 1.0, 2.0] {
        assert_distribution(&LOGITS, &[], Sampling { temperature, ..Sampling::default() });
    }
    // More tokens than lanes.
    let mut random = testing::Random::new(3);
    assert_distribution(&random.normal(300), &[], Sampling::default());
}

#[test]
fn distribution_of_top_k() {
    assert_distribution(&LOGITS, &[], Sampling { top_k: 5, ..Sampling::default() });
}

#[test]
fn distribution_of_top_p() {
    assert_distribution(&LOGITS, &[], Sampling { top_p: 0.8, ..Sampling::default() });
}

#[test]
fn distribution_of_min_p() {
    assert_distribution(&LOGITS, &[], Sampling { min_p: 0.11, ..Sampling::default() });
}

#[test]
fn distribution_of_logit_bias() {
    let bias = |token, bias| Adjustment { token, bias, ..Adjustment::default() };
    let biases = [bias(0, 2.0), bias(4, -100.0), bias(9, -1.0), bias(10, 3.5)];
    assert_distribution(&LOGITS, &biases, Sampling { top_k: 15, ..Sampling::default() });
}

#[test]
fn distribution_of_repetition_penalty() {
    let seen = [seen(1, 0, true), seen(4, 2, false), seen(9, 1, true), seen(12, 0, false)];
    let sampling = Sampling { repetition_penalty: 1.5, ..Sampling::default() };
    assert_distribution(&LOGITS, &seen, sampling);
}

#[test]
fn distribution_of_frequency_penalty() {
    let seen = [seen(1, 0, true), seen(4, 3, false), seen(9, 1, true)];
    assert_distribution(&LOGITS, &seen, Sampling { frequency_penalty: 0.7, ..Sampling::default() });
}

#[test]
fn distribution_of_presence_penalty() {
    let seen = [seen(1, 0, true), seen(4, 3, false), seen(9, 1, true)];
    assert_distribution(&LOGITS, &seen, Sampling { presence_penalty: 0.7, ..Sampling::default() });
}

#[test]
fn distribution_of_everything() {
    let biased = Adjustment { bias: 1.0, ..seen(3, 1, false) };
    let seen = [seen(1, 0, true), biased, seen(4, 3, false), seen(9, 1, true)];
    let sampling = Sampling {
        temperature: 1.3,
        top_k: 12,
        top_p: 0.9,
        min_p: 0.05,
        repetition_penalty: 1.2,
        frequency_penalty: 0.2,
        presence_penalty: 0.3,
        ..Sampling::default()
    };
    assert_distribution(&LOGITS, &seen, sampling);
}
