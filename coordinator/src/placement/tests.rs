//! Cuts, orders and predictions, against all there are where these are few.

use checkpoint::PartCost;
use proptest::prelude::*;
use protocol::{LinkSpeed, Narrow};

use super::*;

fn model(num_layers: usize) -> ModelCost {
    let mut model = ModelCost {
        tied: true,
        activations: 5,
        ..ModelCost::of_bytes(&vec![10; num_layers], 40, 40)
    };
    // What isn't read, as a cache is.
    model.layers.iter_mut().for_each(|layer| layer.bytes += 1);
    model
}

/// The search, with no cut that is given.
fn place(
    model: &ModelCost,
    places: &[Place],
    num_stages: usize,
    links: &Links,
    keep: f64,
) -> Result<Vec<Placed>, PlacementError> {
    super::place(model, places, links, Wish { num_stages, lengths: &[], keep })
}

fn places(memory: &[u64]) -> Vec<Place> {
    let place = |(number, &memory): (usize, &u64)| Place {
        node: NodeId(number as u64 + 1),
        memory,
        max_cache_bytes: None,
        speed: Speed { weight_bytes_per_s: 1e3, ..Speed::default() },
        row_share: None,
        host_s: 0.0,
        held: Vec::new(),
    };
    memory.iter().enumerate().map(place).collect()
}

/// Ways that cost nothing.
fn free(places: &[Place]) -> Links {
    let mut links = Links::default();
    for place in places {
        let none = LinkSpeed { rtt_us: 0.0, bytes_per_s: 1e14 };
        links.set((None, Some(place.node)), none);
    }
    links
}

fn lengths(model: &ModelCost, memory: &[u64]) -> Result<Vec<usize>, PlacementError> {
    let places = places(memory);
    let stages = place(model, &places, places.len(), &free(&places), 0.0)?;
    Ok(stages.into_iter().map(|stage| stage.layers.len()).collect())
}

#[test]
fn the_head_counts_as_layers() {
    // 12 layers of 10 and a head of 40: 80 each.
    assert_eq!(lengths(&model(12), &[1000, 1000]), Ok(vec![8, 4]));
    assert_eq!(lengths(&model(12), &[1000]), Ok(vec![12]));
}

#[test]
fn memory_moves_the_cut_and_the_order() {
    // 240 of weights with the head. As a middle the small one has room for 5 layers of 11, and the
    // last would take 100; as the last it has 2 layers and the head, and the others 90 each.
    let places = places(&[70, 1000, 1000]);
    let stages = place(&model(20), &places, 3, &free(&places), 0.0).unwrap();
    let found: Vec<_> = stages.iter().map(|it| (it.place, it.layers.len())).collect();
    assert_eq!(found, [(1, 9), (2, 9), (0, 2)]);
}

#[test]
fn a_node_twice_as_fast_gets_twice_as_much() {
    let mut places = places(&[1000; 3]);
    places[1].speed = places[1].speed.slowed(0.5);
    let stages = place(&model(24), &places, 3, &free(&places), 0.0).unwrap();
    // 280 of weights: 140 for the fast one, 70 for each of the others.
    for stage in &stages {
        let head = if stage.layers.end == 24 { 4 } else { 0 };
        let expected = if stage.place == 1 { 14 } else { 7 };
        assert_eq!(stage.layers.len() + head, expected, "{stages:?}");
    }
}

/// Goal: whoever has come furthest isn't always best. Method: a slow node can take the one small
/// layer only, which comes in the middle.
#[test]
fn a_slow_node_gets_the_small_layer_wherever_it_is() {
    let mut places = places(&[1000; 3]);
    places[0].speed = places[0].speed.slowed(10.0);
    let model = ModelCost::of_bytes(&[30, 30, 5, 30, 30], 0, 0);
    let stages = place(&model, &places, 3, &free(&places), 0.0).unwrap();
    let found: Vec<_> = stages.iter().map(|it| (it.place, it.layers.to_string())).collect();
    assert_eq!(found[1], (0, "2..3".to_owned()), "{found:?}");
}

/// Goal: a cut that is given is kept, and one of another model refused.
#[test]
fn layers_of_each_stage_may_be_given() {
    let mut places = places(&[1000; 3]);
    places[1].speed = places[1].speed.slowed(0.5);
    fn wish(lengths: &[u32]) -> Wish<'_> {
        Wish { num_stages: 3, lengths, keep: 0.0 }
    }
    let given = |lengths: &[u32]| super::place(&model(12), &places, &free(&places), wish(lengths));
    let stages = given(&[2, 6, 4]).unwrap();
    let found: Vec<_> = stages.iter().map(|it| it.layers.len()).collect();
    assert_eq!(found, [2, 6, 4]);
    // Who takes which is still found: the last has the head, too.
    assert_eq!(stages[2].place, 1, "{stages:?}");
    for wrong in [&[2, 10][..], &[4, 4, 5], &[12, 0, 0], &[u32::MAX, 12, 1]] {
        let error = given(wrong).unwrap_err().to_string();
        assert!(error.contains("3 stages, 12 together"), "{error}");
    }
}

/// Goal: the cache that is wanted counts, and where it doesn't fit, the largest half of it that
/// does. Method: a fast node that has memory for its layers and little more.
#[test]
fn the_cache_of_all_sequences_moves_the_cut() {
    let mut model = ModelCost {
        kv_value_bytes: 1,
        least_cache_tokens: 10,
        cache_tokens: 10,
        ..ModelCost::of_bytes(&[10; 12], 0, 0)
    };
    model.layers.iter_mut().for_each(|layer| layer.kv_values = 1);
    let mut places = places(&[240, 10_000]);
    places[0].speed = places[0].speed.slowed(0.2);
    let on_fast = |model: &ModelCost| {
        let stages = place(model, &places, 2, &free(&places), 0.0).unwrap();
        stages.iter().find(|it| it.place == 0).unwrap().layers.len()
    };
    assert_eq!(on_fast(&model), 10);
    // Each layer takes 90: two have room.
    model.cache_tokens = 80;
    assert_eq!(on_fast(&model), 2);
    model.cache_tokens = 300;
    places[0].memory = 100;
    assert!(caches(&model).eq([300, 150, 75, 37, 18, 10]));
    let predicted = |stages: &[Placed]| {
        predict::Prediction::new(&model, &places, &Links::default(), stages, 4).cache
    };
    let stages = place(&model, &places, 2, &free(&places), 0.0).unwrap();
    let room = predicted(&stages);
    assert!(room.num_tokens < 300 && room.to_string().contains("of 30.0 sequences"), "{room}");
}

#[test]
fn a_node_behind_a_slow_link_is_left_out_where_others_do() {
    let places = places(&[1000; 3]);
    let mut links = free(&places);
    links.set((None, Some(places[0].node)), LinkSpeed { rtt_us: 1e6, bytes_per_s: 1e14 });
    let stages = place(&model(8), &places, 2, &links, 0.0).unwrap();
    assert_eq!(stages.iter().map(|it| it.place).collect::<Vec<_>>(), [1, 2]);
}

#[test]
fn those_who_are_left_keep_what_they_hold_and_only_the_missing_moves() {
    let mut places = places(&[1000; 4]);
    let mut hold = |place: usize, parts: Range<usize>| {
        places[place].held = (0..14).map(|part| parts.contains(&part)).collect();
    };
    // Two of three stages of four layers are left; the head counts as four layers.
    hold(2, 0..6);
    hold(0, 11..14);
    let links = free(&places);
    let stages = place(&model(12), &places, 3, &links, 0.2).unwrap();
    let found: Vec<_> = stages.iter().map(|it| (it.place, it.layers.to_string())).collect();
    let expected = [(2, "0..5".to_owned()), (1, "5..10".into()), (0, "10..12".into())];
    assert_eq!(found, expected);
    // Where it would cost too much, they don't.
    let mut slow = places.clone();
    slow[0].speed = slow[0].speed.slowed(10.0);
    let stages = place(&model(12), &slow, 3, &links, 0.2).unwrap();
    assert!(stages.iter().all(|it| it.place != 0), "{stages:?}");
}

#[test]
fn what_is_missing_is_said_with_the_number_of_nodes_that_would_do() {
    let error = lengths(&model(12), &[100]).unwrap_err().to_string();
    assert_eq!(
        error,
        "the model doesn't fit: it needs 0 KiB of memory, 0 KiB of it for the KV cache of one \
         sequence (model.max_model_len), and 1 stages offer 0 KiB; 0 KiB are missing; with 0 KiB \
         per node it would fit on 3 nodes"
    );
    assert!(lengths(&model(12), &[5]).unwrap_err().to_string().contains("no number of nodes"));
}

#[test]
fn a_large_model_that_fits_on_no_number_of_nodes_is_told_at_once() {
    let started = std::time::Instant::now();
    let error = lengths(&model(200), &[50; 3]).unwrap_err().to_string();
    assert!(error.contains("no number of nodes"), "{error}");
    // As many layers as a checkpoint may have: all fit, the head nowhere.
    let mut model = model(4096);
    model.head.bytes = 100_000;
    assert!(lengths(&model, &[90_000; 3]).is_err());
    assert!(started.elapsed().as_secs() < 20, "{:?}", started.elapsed());
}

#[test]
fn more_stages_than_layers_are_refused() {
    let error = lengths(&model(2), &[1000; 3]).unwrap_err();
    assert_eq!(error, PlacementError::TooManyStages { num_stages: 3, num_layers: 2 });
}

/// Goal: placing takes no time that anybody would notice. Method: as many nodes as a pipeline may
/// have here, no two alike, and the layers of the largest models; built without optimisation.
#[test]
fn thirty_two_unequal_nodes_and_as_many_layers_as_there_are_take_seconds() {
    let mut places = places(&[100_000; 32]);
    for (number, place) in places.iter_mut().enumerate() {
        place.speed = place.speed.slowed(1.0 + 0.1 * number as f64);
    }
    let links = free(&places);
    let started = std::time::Instant::now();
    let model = model(128);
    let stages = place(&model, &places, 32, &links, 0.0).unwrap();
    assert_eq!(stages.iter().map(|it| it.layers.len()).sum::<usize>(), 128);
    // All together do (1280 + 40) bytes at this rate; whole layers leave some of it unused.
    let rate: f64 = places.iter().map(|it| it.speed.weight_bytes_per_s).sum();
    let slowest = slowest_of(&model, &places, &links, &stages);
    assert!(slowest < 1.45 * 1320.0 / rate, "{slowest} against {}", 1320.0 / rate);
    for (number, place) in places.iter_mut().enumerate().take(16) {
        place.held = (0..130).map(|part| part / 8 == number).collect();
    }
    place(&model, &places, 32, &links, 0.2).unwrap();
    assert!(started.elapsed().as_secs() < 30, "{:?}", started.elapsed());
}

#[test]
fn stages_that_share_an_adapter_share_its_memory_and_its_time() {
    let places = places(&[120, 1000]);
    let stages = place(&model(12), &places, 4, &free(&places), 0.0).unwrap();
    let found: Vec<_> = stages.iter().map(|it| it.place).collect();
    assert_eq!(found, [0, 0, 1, 1]);
    // 60 for each of the first two: the table and a layer fill 56 of the first.
    assert!(place(&model(12), &self::places(&[80, 1000]), 4, &Links::default(), 0.0).is_err());
}

#[test]
fn a_prediction_is_the_sum_of_its_stages_and_grows_with_those_at_once() {
    let places = places(&[1000; 2]);
    let mut links = free(&places);
    let way = LinkSpeed { rtt_us: 2000.0, bytes_per_s: 1e14 };
    links.set((Some(places[0].node), Some(places[1].node)), way);
    let model = model(12);
    let stages = place(&model, &places, 2, &links, 0.0).unwrap();
    let alone = predict::Prediction::new(&model, &places, &links, &stages, 1);
    // 160 bytes at 1000 a second, and a millisecond between them.
    assert!((alone.token_s - 0.161).abs() < 1e-6, "{alone:?}");
    assert!((alone.tokens_per_s_alone() - 1.0 / 0.161).abs() < 1e-6);
    assert!((alone.stages[1].hop_s - 0.001).abs() < 1e-9);
    let crowd = predict::Prediction::new(&model, &places, &links, &stages, 16);
    // Two groups of eight: a step of each reads the weights once.
    assert_eq!(crowd.concurrency, 16);
    assert!((crowd.tokens_per_s - 16.0 / 0.161).abs() < 1.0, "{crowd:?}");
}

fn slowest_of(model: &ModelCost, places: &[Place], links: &Links, stages: &[Placed]) -> f64 {
    let costs = Costs::new(model, places, links);
    let mut from = None;
    let mut slowest = 0f64;
    for stage in stages {
        let layers = stage.layers.first as usize..stage.layers.end as usize;
        assert!(costs.fits(stage.place, layers.clone()), "{stages:?}");
        slowest = slowest.max(costs.stage(from, stage.place, layers));
        from = Some(stage.place);
    }
    slowest
}

/// What the slowest stage of the best placement takes, by trying all.
fn by_trying(costs: &Costs<'_>, order: &mut Vec<usize>, num_stages: usize) -> Option<f64> {
    if order.len() == num_stages {
        return cut_by_trying(costs, order, 0, 0);
    }
    let mut best: Option<f64> = None;
    for place in 0..costs.places.len() {
        if order.contains(&place) {
            continue;
        }
        order.push(place);
        let found = by_trying(costs, order, num_stages);
        order.pop();
        best = [best, found].into_iter().flatten().reduce(f64::min);
    }
    best
}

fn cut_by_trying(costs: &Costs<'_>, order: &[usize], stage: usize, first: usize) -> Option<f64> {
    let num_layers = costs.num_layers();
    if stage == order.len() {
        return (first == num_layers).then_some(0.0);
    }
    let from = stage.checked_sub(1).map(|it| order[it]);
    let mut best: Option<f64> = None;
    for end in first + 1..=num_layers {
        if (end == num_layers) != (stage + 1 == order.len())
            || !costs.fits(order[stage], first..end)
        {
            continue;
        }
        let Some(rest) = cut_by_trying(costs, order, stage + 1, end) else { continue };
        let slowest = rest.max(costs.stage(from, order[stage], first..end));
        best = Some(best.map_or(slowest, |best| best.min(slowest)));
    }
    best
}

fn a_node() -> impl Strategy<Value = (u64, f64, f64)> {
    let memory = prop_oneof![Just(1000u64), 60u64..300];
    let slower = prop_oneof![Just(1.0), Just(2.0), 0.3f64..4.0];
    (memory, slower, prop_oneof![Just(0.0), 0.0f64..50_000.0])
}

proptest! {
    /// The slowest stage is as fast as in the best of all placements, and one is found where there
    /// is one, whether layers weigh alike or not.
    #[test]
    fn no_placement_is_better(
        layers in prop_oneof![
            proptest::collection::vec(5u64..60, 1..8),
            // Dense layers first.
            (0usize..3, 5u64..20, 1usize..5, 20u64..90).prop_map(|(dense, small, rest, large)| {
                [vec![small; dense], vec![large; rest]].concat()
            }),
        ],
        kv_values in 0u64..3,
        nodes in proptest::collection::vec(a_node(), 1..5),
        num_stages in 1usize..5,
        far in proptest::collection::vec(0.0f64..80_000.0, 10),
    ) {
        let num_stages = num_stages.min(nodes.len()).min(layers.len());
        let mut cost = ModelCost {
            kv_value_bytes: 1,
            least_cache_tokens: 3,
            cache_tokens: 3,
            activations: 5,
            row_bytes: 16,
            ..ModelCost::of_bytes(&layers, 40, 35)
        };
        cost.layers.iter_mut().step_by(2).for_each(|layer| layer.kv_values = kv_values);
        let memory: Vec<_> = nodes.iter().map(|node| node.0).collect();
        let mut places = places(&memory);
        let mut links = Links::default();
        for (place, (_, slower, rtt_us)) in places.iter_mut().zip(&nodes) {
            place.speed = place.speed.slowed(*slower);
            let way = LinkSpeed { rtt_us: *rtt_us, bytes_per_s: 1e4 };
            links.set((None, Some(place.node)), way);
        }
        for (number, rtt_us) in far.iter().enumerate() {
            let (a, b) = (number % places.len(), number / 3 % places.len());
            let way = LinkSpeed { rtt_us: *rtt_us, bytes_per_s: 1e5 };
            links.set((Some(places[a].node), Some(places[b].node)), way);
        }
        let costs = Costs::new(&cost, &places, &links);
        let least = by_trying(&costs, &mut Vec::new(), num_stages);
        match place(&cost, &places, num_stages, &links, 0.0) {
            Err(_) => prop_assert_eq!(least, None),
            Ok(stages) => {
                let found = slowest_of(&cost, &places, &links, &stages);
                let least = least.expect("what is found is there");
                prop_assert!(found <= least * 1.004, "{found} is above {least}: {stages:?}");
            }
        }
    }

    #[test]
    fn every_layer_is_placed_once_within_memory(
        num_layers in 1usize..40,
        memory in proptest::collection::vec(50u64..400, 1..6),
    ) {
        let model = model(num_layers);
        let most = *memory.iter().max().unwrap();
        let fits = |num: usize| {
            let places = places(&vec![most; num]);
            place(&model, &places, num, &Links::default(), 0.0).is_ok()
        };
        prop_assert_eq!(fewest_stages(&model, most), (1..=num_layers).find(|&num| fits(num)));
        if let Ok(lengths) = lengths(&model, &memory) {
            prop_assert_eq!(lengths.iter().sum::<usize>(), num_layers);
            prop_assert!(lengths.iter().all(|len| *len > 0));
        }
    }

    /// Whatever nodes hold, all layers are placed, and the slowest stage isn't slower than allowed.
    #[test]
    fn keeping_costs_no_more_than_it_may(
        held in proptest::collection::vec(proptest::collection::vec(any::<bool>(), 10), 4),
        slower in proptest::collection::vec(1.0f64..3.0, 4),
        num_stages in 1usize..5,
    ) {
        let cost = model(8);
        let mut places = places(&[1000; 4]);
        for (place, (held, slower)) in places.iter_mut().zip(held.iter().zip(&slower)) {
            place.held.clone_from(held);
            place.speed = place.speed.slowed(*slower);
        }
        let links = free(&places);
        let costs = Costs::new(&cost, &places, &links);
        let least = by_trying(&costs, &mut Vec::new(), num_stages).unwrap();
        let stages = place(&cost, &places, num_stages, &links, 0.3).unwrap();
        let found = slowest_of(&cost, &places, &links, &stages);
        prop_assert!(found <= least * 1.3 * 1.004, "{found} is above {least}");
        prop_assert_eq!(stages.last().unwrap().layers.end, 8);
    }
}

#[test]
fn a_part_that_asks_for_more_products_takes_longer_with_many_rows() {
    let part = PartCost {
        bytes: 10,
        read_bytes: 10,
        multiply_adds: 1_000_000,
        num_kernels: 5,
        kv_values: 0,
    };
    let model = ModelCost { layers: vec![part; 2], ..ModelCost::default() };
    let speed = Speed {
        weight_bytes_per_s: 1e3,
        narrow: Narrow::default(),
        multiply_adds_per_s: 1e9,
        kernel_us: 100.0,
        step_us: 1000.0,
    };
    let place = Place { speed, ..places(&[1000]).remove(0) };
    let stage = Placed { place: 0, layers: layers(0..2) };
    let seconds = |rows| predict::step_seconds(&model, &place, stage, rows);
    assert!((seconds(1.0) - 0.022).abs() < 1e-9);
    assert!((seconds(100.0) - 0.202).abs() < 1e-9);
    // What narrow weights take counts for one row; many are as fast as before.
    let narrow = Narrow { int8_ps: 9e3, int4_ps: 6e3 };
    let place = Place { speed: Speed { narrow, ..speed }, ..place };
    let seconds = |rows| predict::step_seconds(&model, &place, stage, rows);
    assert!((seconds(1.0) - 0.014).abs() < 1e-9);
    assert!((seconds(100.0) - 0.202).abs() < 1e-9);
}
