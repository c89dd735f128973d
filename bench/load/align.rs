//! Tells in how few edits a reference becomes what was received: what was lost, came twice, or came
//! otherwise.

/// Beyond as many edits an answer is compared place by place: nobody reads further than "it is
/// another answer", and the memory of an alignment grows with the square of its edits.
pub const MAX_EDITS: usize = 1000;

/// How an answer differs from its reference, in tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// Tokens of the reference that did not come.
    pub lost: u64,
    /// Tokens that came twice.
    pub repeated: u64,
    /// Tokens that came otherwise, or that the reference doesn't have at all.
    pub differing: u64,
}

/// The fewest losses, additions and changes that make `received` of `reference`. Of a stream that
/// was cut, `whole` is false: what the reference has after the cut isn't lost.
///
/// An addition is a repetition when each of its tokens stands a second time at one distance, at
/// most its own length, before or behind it. With more than [`MAX_EDITS`] edits the tokens are
/// compared place by place, which gives at least the fewest edits.
///
/// The algorithm is Landau's and Vishkin's: for each number of edits and each diagonal (tokens
/// received less tokens of the reference) the furthest place that can be reached. Time and memory
/// are linear in what is equal.
pub fn align<T: PartialEq>(reference: &[T], received: &[T], whole: bool) -> Difference {
    let pair = Pair { reference, received };
    let mut reached: Vec<Vec<Option<usize>>> = Vec::new();
    loop {
        let num_edits = reached.len();
        if num_edits > MAX_EDITS {
            return pair.place_by_place(whole);
        }
        let furthest = (0..=2 * num_edits).map(|index| {
            let diagonal = index as isize - num_edits as isize;
            let start = match reached.last() {
                None => Some(0),
                Some(last) => pair.step(last, diagonal).map(|(_, place)| place),
            };
            start.map(|place| pair.slide(place, diagonal))
        });
        let furthest: Vec<_> = furthest.collect();
        // The last: a token that came twice right before a cut came twice.
        let end = (0..furthest.len()).rev().find(|&index| {
            furthest[index].is_some_and(|place| {
                let diagonal = index as isize - num_edits as isize;
                place.wrapping_add_signed(diagonal) == received.len()
                    && (place == reference.len() || !whole)
            })
        });
        reached.push(furthest);
        if let Some(index) = end {
            return pair.trace(&reached, index as isize - num_edits as isize);
        }
    }
}

/// What leads from one token to the next, other than that they are equal.
#[derive(Clone, Copy, PartialEq)]
enum Edit {
    Lost,
    Added,
    Changed,
}

struct Pair<'a, T> {
    reference: &'a [T],
    received: &'a [T],
}

impl<T: PartialEq> Pair<'_, T> {
    /// From what was reached with one edit less, the edit that gets furthest on a diagonal, and
    /// the place in the reference where it gets.
    fn step(&self, last: &[Option<usize>], diagonal: isize) -> Option<(Edit, usize)> {
        let at = |diagonal: isize| {
            let index = (last.len() / 2) as isize + diagonal;
            usize::try_from(index).ok().and_then(|index| *last.get(index)?)
        };
        let changed = at(diagonal).map(|place| (Edit::Changed, place + 1));
        let added = at(diagonal - 1).map(|place| (Edit::Added, place));
        let lost = at(diagonal + 1).map(|place| (Edit::Lost, place + 1));
        let steps = [lost, added, changed].into_iter().flatten();
        let steps = steps.filter(|(_, place)| {
            let received = place.checked_add_signed(diagonal);
            *place <= self.reference.len()
                && received.is_some_and(|received| received <= self.received.len())
        });
        steps.max_by_key(|(_, place)| *place)
    }

    /// As far as tokens are equal.
    fn slide(&self, place: usize, diagonal: isize) -> usize {
        let reference = &self.reference[place..];
        let received = &self.received[place.wrapping_add_signed(diagonal)..];
        place + reference.iter().zip(received).take_while(|(one, other)| one == other).count()
    }

    /// Walks back from where the last edits ended, counting.
    fn trace(&self, reached: &[Vec<Option<usize>>], end: isize) -> Difference {
        let mut difference = Difference::default();
        let mut diagonal = end;
        // The run of additions that is being walked through, in received tokens.
        let mut run = 0..0;
        for last in reached[..reached.len() - 1].iter().rev() {
            let Some((edit, place)) = self.step(last, diagonal) else { break };
            // Where in the received tokens the edit ends.
            let received = place.wrapping_add_signed(diagonal);
            if edit == Edit::Added && received == run.start {
                run.start -= 1;
            } else {
                self.count_added(run, &mut difference);
                run = 0..0;
            }
            match edit {
                Edit::Added if run.is_empty() => run = received - 1..received,
                Edit::Added => {}
                Edit::Lost => difference.lost += 1,
                Edit::Changed => difference.differing += 1,
            }
            diagonal += match edit {
                Edit::Lost => 1,
                Edit::Added => -1,
                Edit::Changed => 0,
            };
        }
        self.count_added(run, &mut difference);
        difference
    }

    fn count_added(&self, run: std::ops::Range<usize>, difference: &mut Difference) {
        let num = run.len() as u64;
        let repeated = (1..=run.len()).any(|distance| {
            run.clone().all(|index| {
                let token = Some(&self.received[index]);
                let before = index.checked_sub(distance).and_then(|at| self.received.get(at));
                token == before || token == self.received.get(index + distance)
            })
        });
        *(if repeated { &mut difference.repeated } else { &mut difference.differing }) += num;
    }

    fn place_by_place(&self, whole: bool) -> Difference {
        let pairs = self.reference.iter().zip(self.received);
        let differing = pairs.filter(|(one, other)| one != other).count();
        let lost = self.reference.len().saturating_sub(self.received.len());
        let added = self.received.len().saturating_sub(self.reference.len());
        Difference {
            lost: if whole { lost as u64 } else { 0 },
            repeated: 0,
            differing: (differing + added) as u64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn difference(lost: u64, repeated: u64, differing: u64) -> Difference {
        Difference { lost, repeated, differing }
    }

    fn aligned(reference: &str, received: &str, whole: bool) -> Difference {
        align(reference.as_bytes(), received.as_bytes(), whole)
    }

    #[test]
    fn each_kind_of_edit_is_told_apart() {
        for (reference, received, expected) in [
            ("", "", difference(0, 0, 0)),
            ("abcdef", "abcdef", difference(0, 0, 0)),
            ("abcdef", "abdef", difference(1, 0, 0)),
            ("abcdef", "abccdef", difference(0, 1, 0)),
            ("abcdef", "abxdef", difference(0, 0, 1)),
            ("abcdef", "bcdef", difference(1, 0, 0)),
            ("abcdef", "abcde", difference(1, 0, 0)),
            ("abcdef", "aabcdef", difference(0, 1, 0)),
            ("abcdef", "abcdeff", difference(0, 1, 0)),
            ("abcdef", "", difference(6, 0, 0)),
            ("", "ab", difference(0, 0, 2)),
            // A token that is changed to its neighbour is one change, not a loss and a repetition.
            ("abcdef", "abbdef", difference(0, 0, 1)),
            // What comes in between, but never came before, isn't a repetition.
            ("abcdef", "abcxdef", difference(0, 0, 1)),
            // A packet of three that came twice, a token that came three times.
            ("abcdefgh", "abcdecdefgh", difference(0, 3, 0)),
            ("abcdef", "abcccdef", difference(0, 2, 0)),
            ("aaaa", "aaaaaa", difference(0, 2, 0)),
            ("abcdef", "abcdefabcdef", difference(0, 6, 0)),
        ] {
            assert_eq!(aligned(reference, received, true), expected, "{reference} {received}");
        }
    }

    #[test]
    fn nothing_is_lost_behind_a_cut() {
        for (received, expected) in [
            ("", difference(0, 0, 0)),
            ("abc", difference(0, 0, 0)),
            ("abcdef", difference(0, 0, 0)),
            ("acd", difference(1, 0, 0)),
            ("axcd", difference(0, 0, 1)),
            ("abx", difference(0, 0, 1)),
            ("abb", difference(0, 1, 0)),
            ("abbcd", difference(0, 1, 0)),
            ("abcdefx", difference(0, 0, 1)),
        ] {
            assert_eq!(aligned("abcdef", received, false), expected, "{received}");
        }
    }

    #[test]
    fn another_answer_costs_no_more_memory_than_the_limit() {
        let reference: Vec<u32> = (0..50_000).collect();
        let other: Vec<u32> = (100_000..140_000).collect();
        assert_eq!(align(&reference, &other, true), difference(10_000, 0, 40_000));
        assert_eq!(align(&reference, &other, false), difference(0, 0, 40_000));
        assert_eq!(align(&other, &reference, true), difference(0, 0, 50_000));
    }

    /// What is done to one token.
    #[derive(Clone, Copy, Debug)]
    enum Harm {
        Drop,
        Double,
        Alter,
    }

    fn harm() -> impl Strategy<Value = Harm> {
        prop_oneof![Just(Harm::Drop), Just(Harm::Double), Just(Harm::Alter)]
    }

    /// `reference` after harm to the token that follows each gap of equal ones, and what should be
    /// found.
    fn harmed(reference: &[u32], harms: &[(usize, Harm)]) -> (Vec<u32>, Difference) {
        let (mut received, mut expected) = (Vec::new(), Difference::default());
        let mut rest = reference.iter().copied();
        for (number, (gap, harm)) in harms.iter().enumerate() {
            received.extend(rest.by_ref().take(*gap));
            let Some(token) = rest.next() else { return (received, expected) };
            match harm {
                Harm::Drop => expected.lost += 1,
                Harm::Double => {
                    received.extend([token, token]);
                    expected.repeated += 1;
                }
                Harm::Alter => {
                    received.push(1_000_000 + number as u32);
                    expected.differing += 1;
                }
            }
        }
        received.extend(rest);
        (received, expected)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2048))]

        /// Edits of known kinds and number, apart from each other, are found exactly.
        #[test]
        fn edits_that_stand_apart_are_found_exactly(
            length in 0u32..400,
            harms in prop::collection::vec((3usize..20, harm()), 0..24),
            cut in prop::option::of(4usize..20),
        ) {
            // All tokens are different, as tokens with all digits of their logprobs are.
            let reference: Vec<u32> = (0..length).collect();
            let (mut received, expected) = harmed(&reference, &harms);
            // The cut comes in what is left equal, if there is enough of it.
            let equal = received.iter().rev().zip(reference.iter().rev());
            let equal = equal.take_while(|(one, other)| one == other).count();
            let cut = cut.filter(|&cut| equal > cut + 3);
            received.truncate(received.len() - cut.unwrap_or(0));
            prop_assert_eq!(align(&reference, &received, cut.is_none()), expected);
        }

        /// Whatever comes, few different tokens as well: the counts explain the lengths, nothing
        /// is found where nothing differs, and there are no more edits than were made.
        #[test]
        fn counts_explain_lengths_and_are_fewest(
            reference in prop::collection::vec(0u32..3, 0..60),
            harms in prop::collection::vec((0usize..12, harm()), 0..12),
        ) {
            let (received, made) = harmed(&reference, &harms);
            let found = align(&reference, &received, true);
            let total = |of: Difference| of.lost + of.repeated + of.differing;
            prop_assert!(total(found) <= total(made), "{:?} {:?}", found, made);
            prop_assert_eq!(found == Difference::default(), reference == received);
            let longer = received.len() as i64 - reference.len() as i64;
            prop_assert!(longer >= found.repeated as i64 - found.lost as i64);
            prop_assert!(longer <= (found.repeated + found.differing) as i64 - found.lost as i64);
            let expected = edit_distance(&reference, &received);
            prop_assert_eq!(total(found), expected);
        }
    }

    /// Levenshtein's distance from its definition, row by row.
    fn edit_distance(one: &[u32], other: &[u32]) -> u64 {
        let mut row: Vec<u64> = (0..=other.len() as u64).collect();
        for (i, left) in one.iter().enumerate() {
            let mut corner = std::mem::replace(&mut row[0], i as u64 + 1);
            for (j, right) in other.iter().enumerate() {
                let changed = corner + u64::from(left != right);
                corner = row[j + 1];
                row[j + 1] = changed.min(corner + 1).min(row[j] + 1);
            }
        }
        row[other.len()]
    }
}
