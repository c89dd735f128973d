//! Where the model is cut, once it is known who comes in which order.

use super::cost::Costs;
use super::{Placed, layers};

/// Two cuts whose slowest stages differ by less are alike.
const ALIKE: f64 = 1.0 + 1e-9;

/// What the slowest stage of the best cut takes, where these places come in this order.
pub(super) fn slowest(costs: &Costs<'_>, order: &[usize]) -> Option<f64> {
    let (num_layers, num_stages) = (costs.num_layers(), order.len());
    // Of the stages so far, when they hold so many layers.
    let mut before = vec![None::<f64>; num_layers + 1];
    before[0] = Some(0.0);
    for (stage, &place) in order.iter().enumerate() {
        let from = stage.checked_sub(1).map(|before| order[before]);
        let mut after = vec![None::<f64>; num_layers + 1];
        for end in costs.ends(stage, num_stages) {
            for first in (stage..end).rev() {
                if !costs.fits(place, first..end) {
                    // More layers take more.
                    break;
                }
                let Some(so_far) = before[first] else { continue };
                let slowest = so_far.max(costs.stage(from, place, first..end));
                if after[end].is_none_or(|best| slowest < best) {
                    after[end] = Some(slowest);
                }
            }
        }
        before = after;
    }
    before[num_layers]
}

/// How good a cut is: seconds until everybody has what it lacks, then seconds of a token; or,
/// where somebody holds something, their squares, so that what is missing is shared out evenly.
type Goodness = (f64, f64);

/// What the search knows of a way to begin a pipeline.
#[derive(Clone, Copy)]
struct Begun {
    goodness: Goodness,
    // The state before it: whether its last stage was one of the holders, and where that ended.
    from: (bool, usize),
}

/// The cut that moves least and then is best otherwise, of those none of whose stages takes longer
/// than `at_most`. `holders` and `others` keep their orders, and are mixed as is best.
pub(super) fn best(
    costs: &Costs<'_>,
    (holders, others): (&[usize], &[usize]),
    at_most: f64,
) -> Option<Vec<Placed>> {
    let (num_layers, num_stages) = (costs.num_layers(), holders.len() + others.len());
    let at_most = at_most * ALIKE;
    let power = if holders.is_empty() { 1 } else { 2 };
    let index = |held: usize, other: usize, is_holder: bool, end: usize| {
        ((held * (others.len() + 1) + other) * 2 + usize::from(is_holder)) * (num_layers + 1) + end
    };
    let size = index(holders.len(), others.len(), true, num_layers) + 1;
    let mut begun = vec![None::<Begun>; size];
    begun[index(0, 0, false, 0)] = Some(Begun { goodness: (0.0, 0.0), from: (false, 0) });
    for held in 0..=holders.len() {
        for other in 0..=others.len() {
            let Some(stage) = (held + other).checked_sub(1) else { continue };
            for is_holder in [true, false] {
                // What comes last, and the state before.
                let (place, held_before, other_before) = match is_holder {
                    true if held > 0 => (holders[held - 1], held - 1, other),
                    false if other > 0 => (others[other - 1], held, other - 1),
                    _ => continue,
                };
                for was_holder in [true, false] {
                    let from = match was_holder {
                        _ if stage == 0 && !was_holder => None,
                        true if held_before > 0 => Some(holders[held_before - 1]),
                        false if other_before > 0 => Some(others[other_before - 1]),
                        _ => continue,
                    };
                    for end in costs.ends(stage, num_stages) {
                        let here = index(held, other, is_holder, end);
                        for first in (stage..end).rev() {
                            let seconds = costs.stage(from, place, first..end);
                            if seconds > at_most || !costs.fits(place, first..end) {
                                break;
                            }
                            let before = begun[index(held_before, other_before, was_holder, first)];
                            let Some(before) = before else { continue };
                            let goodness = (
                                before.goodness.0 + costs.moved(place, first..end),
                                before.goodness.1 + seconds.powi(power),
                            );
                            if begun[here].is_none_or(|best| goodness < best.goodness) {
                                let from = (was_holder, first);
                                begun[here] = Some(Begun { goodness, from });
                            }
                        }
                    }
                }
            }
        }
    }
    let end = |is_holder: bool| {
        let state = begun[index(holders.len(), others.len(), is_holder, num_layers)]?;
        let last = if is_holder { holders.last() } else { others.last() };
        // The way back to the coordinator.
        let back = costs.hop(last.copied(), None, 1.0).powi(power);
        Some((state.goodness.0, state.goodness.1 + back))
    };
    let mut is_holder = match (end(true), end(false)) {
        (None, None) => return None,
        (held, other) => other.is_none() || held.is_some_and(|held| Some(held) < other),
    };
    let (mut held, mut other, mut last) = (holders.len(), others.len(), num_layers);
    let mut stages = Vec::with_capacity(num_stages);
    while held + other > 0 {
        let state = begun[index(held, other, is_holder, last)].expect("the way that was found");
        let place = if is_holder {
            held -= 1;
            holders[held]
        } else {
            other -= 1;
            others[other]
        };
        let (was_holder, first) = state.from;
        stages.push(Placed { place, layers: layers(first..last) });
        (is_holder, last) = (was_holder, first);
    }
    stages.reverse();
    Some(stages)
}
