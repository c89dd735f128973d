//! What a run has shown.

use std::fmt;
use std::time::Duration;

use super::course::{Course, Parts};
use super::streams::{Ended, Gaps};
use super::{Fault, Options};

/// Everything that was counted.
#[derive(Debug)]
pub struct Report {
    replay: String,
    faults: Vec<Happened>,
    ended: Ended,
    took: Duration,
}

/// One fault.
#[derive(Debug)]
struct Happened {
    fault: Fault,
    what: String,
    parts: Option<Parts>,
    gaps: Gaps,
}

impl Report {
    pub(super) fn new(options: &Options) -> Self {
        let faults: Vec<_> = options.faults.iter().map(|fault| fault.name()).collect();
        let faults = if options.faults == Fault::ALL { "mix".to_owned() } else { faults.join(",") };
        let replay = format!(
            "cargo run -p tests --bin chaos -- --seed {} --kills {} --streams {} --fault {faults} \
             --model {} --stages {} --spares {}{}",
            options.seed,
            options.num_faults,
            options.num_streams,
            options.model.display(),
            options.stages,
            options.spares,
            if options.is_hasty { " --hasty" } else { "" },
        );
        Self { replay, faults: Vec::new(), ended: Ended::default(), took: Duration::ZERO }
    }

    pub(super) fn fault(
        &mut self,
        (number, fault, what): (usize, Fault, String),
        course: &Course,
        gaps: Gaps,
    ) {
        let parts = course.parts();
        let longest = gaps.longest.iter().max().copied().unwrap_or_default();
        let said = parts.map_or("nothing was lost".to_owned(), |it| {
            let Parts { noticed, placed, loaded, num_lost } = it;
            format!(
                "noticed {noticed:.2} s, placed {placed:.2} s, loaded and linked {loaded:.2} s, \
                 {num_lost} lost"
            )
        });
        println!("{number}: {} {what}: {said}; longest pause {longest:.2?}", fault.name());
        if longest > Duration::from_secs(5) || gaps.num_stuck > 0 {
            println!("{}", course.lines());
        }
        self.faults.push(Happened { fault, what, parts, gaps });
    }

    pub(super) fn end(&mut self, ended: Ended, took: Duration) {
        (self.ended, self.took) = (ended, took);
    }

    /// Whether every answer came, and was what it would have been.
    pub fn is_good(&self) -> bool {
        let is_stuck = |it: &Happened| it.gaps.num_stuck > 0;
        self.ended.lost.is_empty()
            && self.ended.different.is_empty()
            && !self.faults.iter().any(is_stuck)
    }

    /// Pipelines that were lost.
    pub fn num_lost(&self) -> usize {
        self.faults.iter().filter_map(|it| it.parts).map(|it| it.num_lost).sum()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Ended { num_answers, lost, different } = &self.ended;
        for (number, it) in self.faults.iter().enumerate().filter(|(_, it)| it.gaps.num_stuck > 0) {
            let num = it.gaps.num_stuck;
            writeln!(
                f,
                "after fault {number}, {} {}, {num} streams are stuck",
                it.fault.name(),
                it.what
            )?;
        }
        for (what, examples) in [("lost", lost), ("different", different)] {
            examples.iter().take(3).try_for_each(|it| writeln!(f, "{what}: {it}"))?;
        }
        for fault in Fault::ALL {
            let of_kind: Vec<_> = self.faults.iter().filter(|it| it.fault == fault).collect();
            if of_kind.is_empty() {
                continue;
            }
            let gaps = of_kind.iter().flat_map(|it| &it.gaps.longest).map(Duration::as_secs_f64);
            let parts: Vec<_> = of_kind.iter().filter_map(|it| it.parts).collect();
            let part = |of: fn(&Parts) -> f64| Line::of(parts.iter().map(of));
            let recomputed: usize = of_kind.iter().map(|it| it.gaps.num_recomputed).sum();
            writeln!(f, "{} x {}", of_kind.len(), fault.name())?;
            writeln!(f, "  next token        {}", Line::of(gaps))?;
            writeln!(f, "  noticed           {}", part(|it| it.noticed))?;
            writeln!(f, "  placed            {}", part(|it| it.placed))?;
            writeln!(f, "  loaded and linked {}", part(|it| it.loaded))?;
            writeln!(f, "  computed again    {recomputed} tokens")?;
        }
        let (num_faults, took) = (self.faults.len(), self.took.as_secs());
        let (num_lost, num_different) = (lost.len(), different.len());
        writeln!(
            f,
            "{num_faults} faults in {took} s, {num_answers} answers: {num_lost} lost, \
             {num_different} different"
        )?;
        write!(f, "again: {}", self.replay)
    }
}

/// Seconds, in order.
struct Line(Vec<f64>);

impl Line {
    fn of(seconds: impl Iterator<Item = f64>) -> Self {
        let mut seconds: Vec<_> = seconds.collect();
        seconds.sort_by(f64::total_cmp);
        Self(seconds)
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = |share: f64| {
            let last = self.0.len().saturating_sub(1);
            self.0.get((last as f64 * share).round() as usize).copied().unwrap_or(f64::NAN)
        };
        write!(f, "p50 {:.2} s, p99 {:.2} s, max {:.2} s", at(0.5), at(0.99), at(1.0))
    }
}
