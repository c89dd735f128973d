//! Who takes part, and in which order: the search for the sequence of places whose slowest stage
//! is fastest.
//!
//! For a bound on every stage's time, the best of all sequences over the same places with the same
//! last one is that which has come furthest in the layers: whoever takes more leaves less. (Of
//! layers that weigh alike, that is: else a slow place may lack a small one to take, and what is
//! found is good, not best.) So a
//! bound is tried over sets of places, not over orders, and halved down to the least that can be
//! kept. Places that are alike are one class of which only the number counts; where there are too
//! many sets still, places that are nearly alike are taken for one class, and the sequence that is
//! found is good, not best.

use std::collections::BTreeMap;

use protocol::LinkSpeed;

use super::cost::Costs;

/// Sets of places with a last one that are looked at for one bound. Ten places of as many kinds
/// have half as many.
const MAX_STATES: usize = 12_000;

/// How near the bound comes to the least.
pub(super) const PRECISION: f64 = 1e-3;

/// How unlike places may be that are taken for one class: as little as the bound on states allows.
const UNLIKE: [f64; 6] = [1.0, 1.05, 1.25, 2.0, 8.0, f64::INFINITY];

/// Places that are taken for alike, the fastest first.
type Class = Vec<usize>;

/// The order of `num_stages` of the places whose slowest stage is fastest, if they hold the model.
pub(super) fn best(costs: &Costs<'_>, num_stages: usize) -> Option<Vec<usize>> {
    let classes = classes(costs, num_stages);
    let mut best = within(costs, &classes, num_stages, f64::INFINITY)?;
    // Everybody's time is below that of the slowest of any cut that fits.
    let mut high = super::cut::slowest(costs, &best)?;
    let mut low = 0.0;
    while high - low > high * PRECISION {
        let middle = f64::midpoint(low, high);
        match within(costs, &classes, num_stages, middle) {
            Some(order) => {
                best = order;
                // It may do even better.
                high = middle.min(super::cut::slowest(costs, &best).unwrap_or(middle));
            }
            None => low = middle,
        }
    }
    Some(best)
}

fn classes(costs: &Costs<'_>, num_stages: usize) -> Vec<Class> {
    let mut found = Vec::new();
    for unlike in UNLIKE {
        found = grouped(costs, unlike);
        // Sets of at most so many places.
        let sets = found.iter().fold(1.0, |sets, class| sets * (class.len() + 1) as f64);
        let is_small = num_stages == 1 || sets * found.len() as f64 <= MAX_STATES as f64;
        if is_small {
            break;
        }
    }
    let speed = |place: &usize| costs.places[*place].speed.weight_bytes_per_s;
    for class in &mut found {
        // Stable: those alike stay in the order in which they came.
        class.sort_by(|a, b| speed(b).total_cmp(&speed(a)));
    }
    found
}

/// Each place joins the first class to whose first member it is alike.
fn grouped(costs: &Costs<'_>, unlike: f64) -> Vec<Class> {
    let near = |a: f64, b: f64| a == b || (a.max(b) <= a.min(b) * unlike);
    let alike = |a: usize, b: usize| {
        let (one, other) = (&costs.places[a], &costs.places[b]);
        let links_alike = |x: LinkSpeed, y: LinkSpeed| {
            near(x.rtt_us, y.rtt_us) && near(x.bytes_per_s, y.bytes_per_s)
        };
        let same_ways = || {
            // Few kinds of ways stand for all, once places aren't exactly alike.
            let others = (0..costs.places.len()).filter(|it| *it != a && *it != b);
            links_alike(costs.link(None, a), costs.link(None, b))
                && (unlike > 1.0
                    || others
                        .into_iter()
                        .all(|it| links_alike(costs.link(Some(it), a), costs.link(Some(it), b))))
        };
        near(one.memory as f64, other.memory as f64)
            && near(one.speed.weight_bytes_per_s, other.speed.weight_bytes_per_s)
            && near(one.speed.step_us, other.speed.step_us)
            && near(one.speed.kernel_us, other.speed.kernel_us)
            && same_ways()
    };
    let mut classes: Vec<Class> = Vec::new();
    for place in 0..costs.places.len() {
        match classes.iter_mut().find(|class| alike(class[0], place)) {
            Some(class) => class.push(place),
            None => classes.push(vec![place]),
        }
    }
    classes
}

/// How many of each class are used, and of which the last is.
type Used = (Vec<u8>, usize);

/// How far a set of places has come, and from which other it did.
#[derive(Clone)]
struct Reached {
    num_layers: usize,
    before: Option<usize>,
}

/// An order of `num_stages` places none of which takes longer than `at_most`, if there is one.
fn within(
    costs: &Costs<'_>,
    classes: &[Class],
    num_stages: usize,
    at_most: f64,
) -> Option<Vec<usize>> {
    let num_layers = costs.num_layers();
    let mut levels: Vec<Vec<(Used, Reached)>> = Vec::with_capacity(num_stages);
    let start = ((vec![0; classes.len()], 0), Reached { num_layers: 0, before: None });
    let mut last = vec![start];
    for stage in 0..num_stages {
        let behind = num_stages - stage - 1;
        let mut next: BTreeMap<Used, Reached> = BTreeMap::new();
        for (at, ((used, last_class), reached)) in last.iter().enumerate() {
            let from =
                (stage > 0).then(|| classes[*last_class][usize::from(used[*last_class]) - 1]);
            for (number, class) in classes.iter().enumerate() {
                let Some(&place) = class.get(usize::from(used[number])) else { continue };
                let first = reached.num_layers;
                let Some(end) = furthest(costs, (from, place), first, behind, at_most) else {
                    continue;
                };
                let mut used = used.clone();
                used[number] += 1;
                let found = Reached { num_layers: end, before: Some(at) };
                let known = next.entry((used, number)).or_insert_with(|| found.clone());
                if known.num_layers < end {
                    *known = found;
                }
            }
        }
        levels.push(std::mem::replace(&mut last, next.into_iter().collect()));
    }
    levels.push(last);
    let mut at = levels[num_stages].iter().position(|(_, it)| it.num_layers == num_layers)?;
    let mut order = Vec::with_capacity(num_stages);
    for level in levels[1..].iter().rev() {
        let ((used, class), reached) = &level[at];
        order.push(classes[*class][usize::from(used[*class]) - 1]);
        at = reached.before.expect("every stage has one before it");
    }
    order.reverse();
    Some(order)
}

/// Where a stage ends that begins at layer `first` and takes as many as time and memory allow, so
/// that `behind` stages after it have one each.
fn furthest(
    costs: &Costs<'_>,
    (from, place): (Option<usize>, usize),
    first: usize,
    behind: usize,
    at_most: f64,
) -> Option<usize> {
    let may = |end: usize| {
        costs.stage(from, place, first..end) <= at_most && costs.fits(place, first..end)
    };
    let most = costs.num_layers().checked_sub(behind)?;
    if first >= most {
        return None;
    }
    if behind == 0 {
        return may(most).then_some(most);
    }
    if !may(first + 1) {
        return None;
    }
    // More layers take more.
    let (mut low, mut high) = (first + 1, most);
    while low < high {
        let middle = (low + high).div_ceil(2);
        if may(middle) {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    Some(low)
}
