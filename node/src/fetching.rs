//! Which pieces are asked of whom: all sources give what they have at once, what one fails at is
//! asked of another, and what takes too long is asked of whoever is free, too.
//!
//! Pure: sources are numbers, and time is told.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use protocol::{PieceId, PieceSet};

/// A piece that takes so many times as long as others did is asked of somebody else, too.
const LATE: u32 = 3;

/// But not before it was waited for as long.
const PATIENCE: Duration = Duration::from_millis(100);

/// Pieces that somebody else was faster at, after which a source is asked no more.
const MAX_LATE: u32 = 2;

/// What a source is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    Ask(PieceId),
    /// Nothing, until something changes, or until then.
    Wait(Option<Instant>),
    /// Nothing more: all is there, or nobody has what isn't.
    End,
}

/// Pieces on their way.
#[derive(Debug)]
pub(crate) struct Fetching {
    // In the order in which they are asked for.
    order: Vec<PieceId>,
    missing: HashSet<PieceId>,
    asked: Vec<Asked>,
    sources: Vec<Source>,
    max_pieces: usize,
    // What a piece takes, the newest counting most.
    took: Option<Duration>,
}

#[derive(Debug)]
struct Asked {
    piece: PieceId,
    source: usize,
    since: Instant,
}

#[derive(Debug)]
struct Source {
    // None: all of the model.
    has: Option<PieceSet>,
    // What it has that was missing when that was last looked at, the first at the end.
    turn: Vec<PieceId>,
    num_late: u32,
    is_gone: bool,
}

impl Source {
    fn has(&self, piece: PieceId) -> bool {
        !self.is_gone && self.has.as_ref().is_none_or(|has| has.contains(piece))
    }
}

impl Fetching {
    /// Nobody is asked yet. At most `max_pieces` are on their way at once; `start` says where in
    /// the list to begin, so that nodes that need the same come to have something for each other.
    pub(crate) fn new(mut missing: Vec<PieceId>, start: usize, max_pieces: usize) -> Self {
        let start = start.checked_rem(missing.len()).unwrap_or(0);
        missing.rotate_left(start);
        Self {
            missing: missing.iter().copied().collect(),
            order: missing,
            asked: Vec::new(),
            sources: Vec::new(),
            max_pieces,
            took: None,
        }
    }

    /// Another source, that has these pieces, or the whole model: its number.
    pub(crate) fn add(&mut self, has: Option<PieceSet>) -> usize {
        let (turn, num_late, is_gone) = (Vec::new(), 0, false);
        self.sources.push(Source { has, turn, num_late, is_gone });
        let number = self.sources.len() - 1;
        self.queue(number);
        number
    }

    pub(crate) fn has_now(&mut self, source: usize, has: PieceSet) {
        self.sources[source].has = Some(has);
        self.queue(source);
    }

    fn queue(&mut self, source: usize) {
        let it = &self.sources[source];
        let due = self.order.iter().rev().filter(|piece| self.missing.contains(piece));
        let turn = due.copied().filter(|piece| it.has(*piece)).collect();
        self.sources[source].turn = turn;
    }

    /// What a source is to be asked for.
    pub(crate) fn next(&mut self, source: usize, now: Instant) -> Next {
        let num_live = self.sources.iter().filter(|it| !it.is_gone).count().max(1);
        let num_asked = self.asked.iter().filter(|it| it.source == source).count();
        if self.missing.is_empty() || self.sources[source].is_gone || self.is_hopeless() {
            return Next::End;
        }
        if num_asked >= self.max_pieces.div_ceil(num_live) {
            return Next::Wait(None);
        }
        while let Some(piece) = self.sources[source].turn.pop() {
            let is_asked = self.asked.iter().any(|it| it.piece == piece);
            if self.missing.contains(&piece) && !is_asked {
                self.asked.push(Asked { piece, source, since: now });
                return Next::Ask(piece);
            }
        }
        let Some(patience) = self.took.map(|took| (LATE * took).max(PATIENCE)) else {
            return Next::Wait(None);
        };
        let num_asking = |piece| self.asked.iter().filter(|it| it.piece == piece).count();
        let others = self.asked.iter().filter(|it| {
            it.source != source && self.sources[source].has(it.piece) && num_asking(it.piece) == 1
        });
        match others.map(|it| (it.since + patience, it.piece)).min() {
            Some((due, piece)) if due <= now => {
                self.asked.push(Asked { piece, source, since: now });
                Next::Ask(piece)
            }
            late => Next::Wait(late.map(|(due, _)| due)),
        }
    }

    /// A piece has come. False when it had come of another source before.
    pub(crate) fn came(&mut self, piece: PieceId, source: usize, now: Instant) -> bool {
        if !self.missing.remove(&piece) {
            return false;
        }
        let own = self.asked.iter().find(|it| (it.piece, it.source) == (piece, source));
        if let Some(since) = own.map(|it| it.since) {
            let took = now.saturating_duration_since(since);
            self.took = Some(self.took.map_or(took, |before| (7 * before + took) / 8));
            for late in self.asked.iter().filter(|it| it.piece == piece && it.since < since) {
                self.sources[late.source].num_late += 1;
            }
        }
        self.asked.retain(|it| it.piece != piece);
        true
    }

    /// A source is asked no more: others are, for what it was asked for.
    pub(crate) fn gone(&mut self, source: usize) {
        self.sources[source].is_gone = true;
        let (of_it, rest) = std::mem::take(&mut self.asked).into_iter().partition(|it| {
            let Asked { source: asked, .. } = it;
            *asked == source
        });
        self.asked = rest;
        let left: Vec<Asked> = of_it;
        for Asked { piece, .. } in left {
            for other in self.sources.iter_mut().filter(|it| it.has(piece)) {
                other.turn.push(piece);
            }
        }
    }

    /// Whether a piece is still to come.
    pub(crate) fn is_missing(&self, piece: PieceId) -> bool {
        self.missing.contains(&piece)
    }

    /// Whether a source holds others up. Whoever has everything is the last resort.
    pub(crate) fn is_slow(&self, source: usize) -> bool {
        let it = &self.sources[source];
        it.num_late >= MAX_LATE && it.has.is_some()
    }

    pub(crate) fn num_sources(&self) -> usize {
        self.sources.iter().filter(|it| !it.is_gone).count()
    }

    /// Whether nobody is left who has what is missing.
    fn is_hopeless(&self) -> bool {
        let mut live = self.sources.iter().filter(|it| !it.is_gone);
        !live.any(|it| it.has.is_none())
            && self.asked.is_empty()
            && !self.missing.iter().any(|piece| self.sources.iter().any(|it| it.has(*piece)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(index: u32) -> PieceId {
        PieceId { file: 0, index }
    }

    fn set(pieces: &[u32]) -> Option<PieceSet> {
        Some(pieces.iter().copied().map(piece).collect())
    }

    fn fetching(num: u32, max_pieces: usize) -> Fetching {
        Fetching::new((0..num).map(piece).collect(), 0, max_pieces)
    }

    #[test]
    fn pieces_are_spread_over_those_who_have_them() {
        let (mut fetching, now) = (fetching(6, 4), Instant::now());
        let (all, some) = (fetching.add(None), fetching.add(set(&[1, 4])));
        let mut next = |source| fetching.next(source, now);
        assert_eq!(next(all), Next::Ask(piece(0)));
        assert_eq!(next(some), Next::Ask(piece(1)));
        assert_eq!(next(all), Next::Ask(piece(2)));
        assert_eq!(next(all), Next::Wait(None), "half of four are its share");
        assert_eq!(next(some), Next::Ask(piece(4)));
        assert!(fetching.came(piece(0), all, now));
        assert_eq!(fetching.next(all, now), Next::Ask(piece(3)));
        assert_eq!(fetching.missing.len(), 5);
    }

    #[test]
    fn what_a_source_fails_at_is_asked_of_another_which_waits_until_all_is_there() {
        let (mut fetching, now) = (fetching(1, 2), Instant::now());
        let (all, some) = (fetching.add(None), fetching.add(set(&[0])));
        assert_eq!(fetching.next(some, now), Next::Ask(piece(0)));
        // It would have ended here, and nobody would have been left for what failed afterwards.
        assert_eq!(fetching.next(all, now), Next::Wait(None));
        fetching.gone(some);
        assert_eq!(fetching.next(some, now), Next::End);
        assert_eq!(fetching.next(all, now), Next::Ask(piece(0)));
        assert_eq!(fetching.num_sources(), 1);
        assert!(fetching.came(piece(0), all, now));
        assert_eq!(fetching.next(all, now), Next::End);
    }

    #[test]
    fn what_takes_too_long_is_asked_of_another_and_who_is_slow_is_left() {
        let (mut fetching, start) = (fetching(6, 4), Instant::now());
        let (all, slow) = (fetching.add(None), fetching.add(set(&[0, 1, 2, 3, 4, 5])));
        let at = |millis| start + Duration::from_millis(millis);
        assert_eq!(fetching.next(slow, start), Next::Ask(piece(0)));
        assert_eq!(fetching.next(slow, start), Next::Ask(piece(1)));
        for index in 2..6 {
            assert_eq!(fetching.next(all, start), Next::Ask(piece(index)));
            assert!(fetching.came(piece(index), all, at(50)));
        }
        let due = at(150);
        assert_eq!(fetching.next(all, at(50)), Next::Wait(Some(due)));
        assert_eq!(fetching.next(all, due), Next::Ask(piece(0)));
        assert_eq!(fetching.next(all, due), Next::Ask(piece(1)));
        assert!(!fetching.is_slow(slow));
        for index in 0..2 {
            assert!(fetching.came(piece(index), all, at(200)));
            assert!(!fetching.came(piece(index), slow, at(201)), "it has come");
        }
        assert!(fetching.is_slow(slow) && !fetching.is_slow(all));
        assert_eq!(fetching.missing.len(), 0);
    }

    #[test]
    fn it_ends_when_nobody_is_left_who_has_what_is_missing() {
        let (mut fetching, now) = (fetching(3, 4), Instant::now());
        let (all, some) = (fetching.add(None), fetching.add(set(&[0])));
        assert_eq!(fetching.next(some, now), Next::Ask(piece(0)));
        fetching.gone(all);
        assert!(fetching.came(piece(0), some, now));
        fetching.has_now(some, set(&[0, 2]).unwrap());
        assert_eq!(fetching.next(some, now), Next::Ask(piece(2)));
        assert!(fetching.came(piece(2), some, now));
        assert_eq!(fetching.next(some, now), Next::End);
        assert_eq!(fetching.missing.len(), 1);
    }

    #[test]
    fn nodes_that_need_the_same_begin_at_different_pieces() {
        let mut fetching = Fetching::new((0..5).map(piece).collect(), 8, 5);
        let all = fetching.add(None);
        let asked = (0..5).map(|_| match fetching.next(all, Instant::now()) {
            Next::Ask(piece) => piece.index,
            other => panic!("{other:?}"),
        });
        assert_eq!(asked.collect::<Vec<_>>(), [3, 4, 0, 1, 2]);
        let mut none = Fetching::new(Vec::new(), 8, 5);
        let all = none.add(None);
        assert_eq!(none.next(all, Instant::now()), Next::End);
    }
}
