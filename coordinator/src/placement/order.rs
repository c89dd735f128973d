//! Who takes part, and in which order: the search for the sequence of places whose slowest stage
//! is fastest.
//!
//! For a bound on every stage's time, all sequences over the same places with the same last one
//! are one: what counts is after how many layers they may end. So a bound is tried over sets of
//! places, not over orders, and halved down to the least that can be kept. Where layers are unequal
//! whoever has come furthest isn't always best: a slow place may need a small layer that is left
//! for it. Places that are alike are one class of which only the number counts; where there are too
//! many sets still, places that are nearly alike are taken for one class, and the sequence that is
//! found is good, not best.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::rc::Rc;

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
    let takes = |place: &usize| costs.compute(*place, 0..1, 1.0);
    for class in &mut found {
        // Stable: those alike stay in the order in which they came.
        class.sort_by(|a, b| takes(a).total_cmp(&takes(b)));
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
            && near(one.speed.narrow.int8_ps, other.speed.narrow.int8_ps)
            && near(one.speed.narrow.int4_ps, other.speed.narrow.int4_ps)
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

/// Numbers of layers after which some places may have ended, in ascending order.
type Ends = Vec<Range<usize>>;

/// An order of `num_stages` places none of which takes longer than `at_most`, if there is one.
fn within(
    costs: &Costs<'_>,
    classes: &[Class],
    num_stages: usize,
    at_most: f64,
) -> Option<Vec<usize>> {
    let mut bound = Bound { costs, at_most, furthest: HashMap::new() };
    let last_of =
        |(used, class): &Used| Some(classes[*class][usize::from(used[*class]).checked_sub(1)?]);
    let start = (vec![0; classes.len()], 0);
    let mut levels: Vec<BTreeMap<Used, Ends>> = vec![BTreeMap::from([(start, only(0))])];
    for stage in 0..num_stages {
        let allowed = costs.ends(stage, num_stages);
        let mut next: BTreeMap<Used, Ends> = BTreeMap::new();
        for (before, firsts) in &levels[stage] {
            for (number, class) in classes.iter().enumerate() {
                let mut used = before.0.clone();
                let Some(&place) = class.get(usize::from(used[number])) else { continue };
                let ends = bound.ends((last_of(before), place), firsts, allowed.clone());
                if !ends.is_empty() {
                    used[number] += 1;
                    join(next.entry((used, number)).or_default(), ends);
                }
            }
        }
        levels.push(next);
    }
    // Back from the end, by whichever way led there.
    let (mut at, _) = levels[num_stages].first_key_value()?;
    let mut end = costs.num_layers();
    let mut order = Vec::with_capacity(num_stages);
    for level in levels[..num_stages].iter().rev() {
        let place = last_of(at).expect("every stage has a place");
        order.push(place);
        let mut used = at.0.clone();
        used[at.1] -= 1;
        let led_here = level.iter().filter(|(before, _)| before.0 == used).find_map(|it| {
            let (before, firsts) = it;
            let first = bound.first((last_of(before), place), firsts, end)?;
            Some((before, first))
        });
        (at, end) = led_here.expect("some way led here");
    }
    order.reverse();
    Some(order)
}

/// What a place can do where no stage may take longer.
struct Bound<'a> {
    costs: &'a Costs<'a>,
    at_most: f64,
    // By who comes before a place and the place: where a stage ends at most that begins at each
    // layer and isn't the last.
    furthest: HashMap<(Option<usize>, usize), Rc<[usize]>>,
}

impl Bound<'_> {
    fn may(&self, (from, place): (Option<usize>, usize), layers: Range<usize>) -> bool {
        self.costs.stage(from, place, layers.clone()) <= self.at_most
            && self.costs.fits(place, layers)
    }

    fn furthest(&mut self, at: (Option<usize>, usize)) -> Rc<[usize]> {
        if let Some(known) = self.furthest.get(&at) {
            return Rc::clone(known);
        }
        let before_last = self.costs.num_layers() - 1;
        let mut end = 0;
        let furthest = (0..before_last).map(|first| {
            // Whoever begins later comes as far at least: more layers take more.
            end = end.max(first);
            while end < before_last && self.may(at, first..end + 1) {
                end += 1;
            }
            end
        });
        let furthest: Rc<[usize]> = furthest.collect();
        self.furthest.insert(at, Rc::clone(&furthest));
        furthest
    }

    /// Where a stage may end that begins at one of `firsts`, of those that are allowed.
    fn ends(
        &mut self,
        at: (Option<usize>, usize),
        firsts: &Ends,
        allowed: std::ops::RangeInclusive<usize>,
    ) -> Ends {
        let num_layers = self.costs.num_layers();
        let (least, most) = allowed.into_inner();
        if most == num_layers {
            let is_there = self.first(at, firsts, num_layers).is_some();
            return if is_there { only(num_layers) } else { Ends::new() };
        }
        let furthest = self.furthest(at);
        let mut ends = Ends::new();
        for first in firsts.iter().cloned().flatten() {
            let reached = (first + 1).max(least)..furthest[first].min(most) + 1;
            match ends.last_mut() {
                _ if reached.is_empty() => {}
                Some(last) if reached.start <= last.end => last.end = reached.end.max(last.end),
                _ => ends.push(reached),
            }
        }
        ends
    }

    /// Where, of `firsts`, a stage may begin that ends there.
    fn first(&mut self, at: (Option<usize>, usize), firsts: &Ends, end: usize) -> Option<usize> {
        let mut firsts = firsts.iter().cloned().flatten().take_while(|first| *first < end);
        if end == self.costs.num_layers() {
            // The latest has the least to do.
            return firsts.last().filter(|first| self.may(at, *first..end));
        }
        let furthest = self.furthest(at);
        firsts.find(|first| furthest[*first] >= end)
    }
}

/// No end but this.
fn only(end: usize) -> Ends {
    std::iter::once(end..end + 1).collect()
}

/// Takes in further ends.
fn join(ends: &mut Ends, others: Ends) {
    ends.extend(others);
    ends.sort_unstable_by_key(|range| range.start);
    ends.dedup_by(|range, before| {
        let touches = range.start <= before.end;
        if touches {
            before.end = before.end.max(range.end);
        }
        touches
    });
}
