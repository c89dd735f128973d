//! What steps teach, and what they don't.

use protocol::{AdapterReport, Digest, LinkSpeed, SessionId, StageIndex};

use super::*;
use crate::placement;
use crate::placement::predict::Prediction;

fn report(node: u64) -> NodeReport {
    NodeReport {
        node: NodeId(node),
        session: SessionId(node),
        hostname: String::new(),
        pid: 0,
        data_addr: ([127, 0, 0, 1], 0).into(),
        pool: Default::default(),
        labels: Default::default(),
        adapters: vec![AdapterReport {
            name: String::new(),
            driver: String::new(),
            memory_bytes: 1 << 20,
            max_cache_bytes: None,
            fingerprint: Digest::default(),
            speed: Speed { weight_bytes_per_s: 1e6, ..Default::default() },
        }],
        held: Vec::new(),
    }
}

fn placed(
    model: &ModelCost,
    places: &[Place],
    num_stages: usize,
    links: &Links,
) -> Result<Vec<Placed>, placement::PlacementError> {
    placement::place(model, places, links, placement::Wish { num_stages, lengths: &[], keep: 0.0 })
}

/// Goal: what was measured moves the next cut. Method: two nodes of which both say the same,
/// and one takes three times as long.
#[test]
fn measured_steps_correct_what_a_probe_said() {
    let model = ModelCost::of_bytes(&[1000; 8], 0, 0);
    let reports = [report(1), report(2)];
    let nodes: Vec<_> = reports.iter().collect();
    let mut known = Known::default();
    let cut = |known: &Known| {
        let places: Vec<_> = known.candidates(&nodes).into_iter().map(|it| it.place).collect();
        let stages = placed(&model, &places, 2, &Links::default()).unwrap();
        let mut found = [0; 2];
        stages.iter().for_each(|it| found[it.place] = it.layers.len());
        found
    };
    assert_eq!(cut(&known), [4, 4]);
    let stage = |number: u32, node: u64| crate::pipeline::testing_stage(node, number, 4);
    let stages = [stage(0, 1), stage(1, 2)];
    let timing = |number, compute_us| StageTiming {
        stage: StageIndex(number),
        compute_us,
        rtt_us: 70,
        ..StageTiming::default()
    };
    // Four layers of 1000 bytes at 1e6 a second.
    let timings = [timing(0, 4000), timing(1, 12_000)];
    for _ in 0..20 {
        known.learn(&model, &reports, &stages, &timings, (1, true));
    }
    let takes = |known: &Known, node: u64| {
        let Correction { factor, extra_s } = known.correction((NodeId(node), 0), Digest::default());
        factor * 4e-3 + extra_s
    };
    assert!((takes(&known, 1) - 4e-3).abs() < 1e-5);
    assert!((takes(&known, 2) - 12e-3).abs() < 1e-4);
    assert_eq!(cut(&known), [6, 2]);
    let way = known.links.measured((Some(NodeId(2)), Some(NodeId(1))));
    assert_eq!(way.map(|way| way.rtt_us), Some(70.0));
    // Of which nothing was measured, it is as wrong as others of its class are; the rest aren't.
    let of = |node, class| known.correction((NodeId(node), 0), Digest([class; 32])).factor;
    assert!((of(3, 0) - (of(1, 0) + of(2, 0)) / 2.0).abs() < 1e-9 && of(3, 0) > 1.3);
    assert_eq!(known.correction((NodeId(3), 0), Digest([1; 32])), Correction::NONE);
    // A node that comes back is as slow as it was, and nothing is known of its links.
    known.forget(NodeId(2));
    assert_eq!(cut(&known), [6, 2]);
    assert_eq!(known.links.measured((Some(NodeId(1)), Some(NodeId(2)))), None);
}

/// Goal: what sequences cost beside their products counts where there are several, and only there.
/// Method: steps that take a millisecond more for each of them, at two numbers of them.
#[test]
fn several_sequences_are_as_slow_as_they_turned_out_to_be() {
    let model = ModelCost::of_bytes(&[1000; 4], 0, 0);
    let (reports, mut known) = ([report(1)], Known::default());
    let stages = [crate::pipeline::testing_stage(1, 0, 4)];
    for rows in [1, 4, 16] {
        let compute_us = 4000 + 1000 * (rows - 1);
        let timing = StageTiming { compute_us, ..StageTiming::default() };
        (0..20).for_each(|_| {
            known.learn(&model, &reports, &stages, &[timing], (rows as usize, rows == 1))
        });
    }
    let places: Vec<_> = known.candidates(&[&reports[0]]).into_iter().map(|it| it.place).collect();
    let stage = Placed { place: 0, layers: stages[0].plan.layers };
    let seconds = |rows| step_seconds(&model, &places[0], stage, rows);
    assert!((seconds(1.0) - 4e-3).abs() < 1e-4, "{}", seconds(1.0));
    for rows in [4.0, 16.0] {
        let law = 4e-3 + 1e-3 * (rows - 1.0);
        assert!((seconds(rows) / law - 1.0).abs() < 0.02, "{rows}: {}", seconds(rows));
    }
    // Others of its class are taken for alike, and whoever plans elsewhere is told.
    assert_eq!(known.row_share((NodeId(2), 0), Digest::default()), places[0].row_share);
    assert_eq!(known.row_share((NodeId(2), 0), Digest([1; 32])), None);
    let mut other = Known::default();
    other.set_row_share((NodeId(1), 0), 0.25);
    assert_eq!(other.candidates(&[&reports[0]])[0].place.row_share, Some(0.25));
}

/// Goal: one shape's tokens say what those of another take. Method: two stages of which each
/// is busy for 4 ms, and 9 ms that nobody accounts for; a third of it for each of three ways.
#[test]
fn what_no_stage_accounts_for_is_the_hosts_and_counts_for_other_shapes() {
    let model = ModelCost::of_bytes(&[1000; 8], 0, 0);
    let (reports, mut known) = ([report(1), report(2)], Known::default());
    for node in [1, 2] {
        let none = LinkSpeed { rtt_us: 0.0, bytes_per_s: 1e14 };
        known.links.set((None, Some(NodeId(node))), none);
    }
    let predict = |known: &Known, num_stages: usize| {
        let nodes: Vec<_> = reports.iter().take(num_stages).collect();
        let places: Vec<_> = known.candidates(&nodes).into_iter().map(|it| it.place).collect();
        let stages = placed(&model, &places, num_stages, &known.links).unwrap();
        Prediction::new(&model, &places, &known.links, &stages, 1)
    };
    let stages = [(1, 0), (2, 1)].map(|(node, at)| crate::pipeline::testing_stage(node, at, 4));
    let timings = [0, 1].map(|number| StageTiming {
        stage: StageIndex(number),
        compute_us: 4000,
        ..StageTiming::default()
    });
    assert!((predict(&known, 2).token_s - 0.0095).abs() < 1e-5, "before anything was measured");
    (0..20).for_each(|_| known.learn_host(&stages, &timings, Duration::from_millis(17)));
    assert!((predict(&known, 2).token_s - 0.017).abs() < 1e-5);
    // Two ways, and all layers on one.
    assert!((predict(&known, 1).token_s - 0.014).abs() < 1e-5);
    assert!((predict(&known, 1).tokens_per_s - 1.0 / 0.014).abs() < 0.1);
    assert_eq!(known.host_s(NodeId(3)), known.host_s(NodeId(1)), "as others are");
    // It is the machine's: who comes back has it still.
    known.forget(NodeId(2));
    assert!((known.host_s(NodeId(2)) - 0.003).abs() < 1e-6);
    // The ways turn out to be faster than they seemed.
    let slow = LinkSpeed { rtt_us: 10_000.0, bytes_per_s: 1e14 };
    known.links.set((None, Some(NodeId(1))), slow);
    (0..200).for_each(|_| known.learn_host(&stages, &timings, Duration::from_millis(9)));
    assert!(known.host_s(NodeId(1)) < 0.0);
    assert!((predict(&known, 2).token_s - 0.009).abs() < 1e-4);
}

/// Goal: what small shapes take beside their weights isn't taken for slowness of the weights,
/// nor the other way round. Method: an adapter that takes 0.4 ms more, and half as much again.
#[test]
fn two_shapes_tell_what_hangs_on_the_shape_and_one_is_taken_as_is_likely() {
    let law = |x: f64| 0.4e-3 + 1.5 * x;
    let at = |fit: &Fit, x: f64| {
        let Correction { factor, extra_s } = fit.correction().unwrap();
        (factor * x + extra_s) / law(x)
    };
    let mut small = Fit::default();
    (0..50).for_each(|_| small.add(0.3e-3, law(0.3e-3)));
    assert!((at(&small, 0.3e-3) - 1.0).abs() < 0.02);
    assert!(small.correction().unwrap().factor < 1.3, "{small:?}");
    let mut large = Fit::default();
    (0..50).for_each(|_| large.add(30e-3, law(30e-3)));
    assert!((at(&large, 60e-3) - 1.0).abs() < 0.02);
    assert!((large.correction().unwrap().factor - 1.5).abs() < 0.03, "{large:?}");
    let mut both = small;
    (0..20).for_each(|_| both.add(3e-3, law(3e-3)));
    for x in [0.3e-3, 1e-3, 3e-3, 6e-3] {
        assert!((at(&both, x) - 1.0).abs() < 0.1, "{x}: {}", at(&both, x));
    }
    // A step that had to wait for something else changes little.
    both.add(3e-3, 1.0);
    assert!((at(&both, 3e-3) - 1.0).abs() < 0.2);
}

#[test]
fn a_measurement_that_cannot_be_true_counts_for_nothing() {
    let model = ModelCost::of_bytes(&[1000; 4], 0, 0);
    let (reports, mut known) = ([report(1)], Known::default());
    let stages = [crate::pipeline::testing_stage(1, 0, 4)];
    for compute_us in [0, u32::MAX] {
        let timing = StageTiming { compute_us, ..StageTiming::default() };
        (0..20).for_each(|_| known.learn(&model, &reports, &stages, &[timing], (1, true)));
    }
    assert_eq!(known.correction((NodeId(1), 0), Digest::default()), Correction::NONE);
}

/// Goal: what a lone sequence takes is learnt of lone sequences. Method: a thousand steps of one
/// among others, of which each takes twice as long.
#[test]
fn one_sequence_among_others_says_nothing_of_one_alone() {
    let model = ModelCost::of_bytes(&[1000; 4], 0, 0);
    let (reports, mut known) = ([report(1)], Known::default());
    let stages = [crate::pipeline::testing_stage(1, 0, 4)];
    for (is_alone, compute_us, num) in [(true, 4000, 20), (false, 8000, 1000)] {
        let timing = StageTiming { compute_us, ..StageTiming::default() };
        let rows = (1, is_alone);
        (0..num).for_each(|_| known.learn(&model, &reports, &stages, &[timing], rows));
    }
    let places: Vec<_> = known.candidates(&[&reports[0]]).into_iter().map(|it| it.place).collect();
    let stage = Placed { place: 0, layers: stages[0].plan.layers };
    let alone = step_seconds(&model, &places[0], stage, 1.0);
    assert!((alone - 4e-3).abs() < 1e-4, "{alone}");
}
