//! A plot as SVG: lines over two axes, limits across, events down. It has no size of its own, its
//! colours and letters are those of the page, and each point tells its values.

use std::fmt::Write as _;

use super::markup::escape;
use super::scale::{Range, Scale};
use crate::numbers;

const WIDTH: f64 = 460.0;
const HEIGHT: f64 = 260.0;
const LEFT: f64 = 48.0;
const RIGHT: f64 = 10.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 40.0;
/// Points of a line that are drawn; of more, those that spread most evenly.
const MAX_POINTS: usize = 160;
/// Up to so many points each is drawn as a dot.
const MAX_DOTS: usize = 24;
/// A limit so many times above everything measured isn't drawn: it would flatten the lines.
const MAX_LIMIT: f64 = 4.0;

/// Lines over two axes.
#[derive(Clone, Debug)]
pub(super) struct Plot {
    pub(super) title: String,
    pub(super) x: Axis,
    pub(super) y: Axis,
    pub(super) lines: Vec<Line>,
    /// Values of y that should not be passed.
    pub(super) limits: Vec<(f64, String)>,
    /// Values of x at which something happened.
    pub(super) events: Vec<(f64, String)>,
    /// Whether it says below what each line is.
    pub(super) legend: bool,
}

#[derive(Clone, Debug)]
pub(super) struct Axis {
    pub(super) title: String,
    pub(super) scale: Scale,
    pub(super) unit: Unit,
}

/// What a value is, for its tooltip.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Unit {
    Milliseconds,
    Seconds,
    Percentile,
    /// A number of what the axis says.
    Number,
}

#[derive(Clone, Debug)]
pub(super) struct Line {
    pub(super) name: String,
    /// In CSS.
    pub(super) colour: String,
    pub(super) dashed: bool,
    pub(super) points: Vec<(f64, f64)>,
}

/// One of the colours that are told apart.
pub(super) fn colour(index: usize) -> String {
    format!("var(--series-{})", index % 8)
}

/// A colour of `num` that follow each other, for what is ordered.
pub(super) fn ramp(index: usize, num: usize) -> String {
    const STOPS: [[f64; 3]; 3] = [[2.0, 132.0, 199.0], [124.0, 58.0, 237.0], [225.0, 29.0, 72.0]];
    let place = index as f64 / num.saturating_sub(1).max(1) as f64 * 2.0;
    let stop = (place as usize).min(1);
    let mixed: Vec<String> = (0..3)
        .map(|channel| {
            let (from, to) = (STOPS[stop][channel], STOPS[stop + 1][channel]);
            format!("{:02x}", (from + (to - from) * (place - stop as f64)) as u8)
        })
        .collect();
    format!("#{}", mixed.concat())
}

impl Plot {
    pub(super) fn svg(&self) -> String {
        let points = || self.lines.iter().flat_map(|line| &line.points);
        let highest = points().map(|point| point.1).fold(0.0, f64::max);
        let limits = || self.limits.iter().filter(|(limit, _)| *limit <= highest * MAX_LIMIT);
        let x = Range::around(self.x.scale, points().map(|point| point.0));
        let values = points().map(|point| point.1).chain(limits().map(|(limit, _)| *limit));
        let y = Range::around(self.y.scale, values);

        let mut svg = format!(
            "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\">\n",
            escape(&self.described(highest)),
        );
        self.draw_axes(&mut svg, &x, &y);
        if points().next().is_none() {
            let (middle, centre) = ((LEFT + WIDTH - RIGHT) / 2.0, (TOP + HEIGHT - BOTTOM) / 2.0);
            let _ = writeln!(
                svg,
                "<text class=\"nothing\" x=\"{middle}\" y=\"{centre}\">nothing was measured</text>"
            );
        }
        for line in &self.lines {
            self.draw_line(&mut svg, line, &x, &y);
        }
        for (limit, title) in limits() {
            let Some(at) = y.place(*limit).map(down) else { continue };
            let _ = writeln!(
                svg,
                "<g class=\"limit\"><line x1=\"{LEFT}\" x2=\"{}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
                 <text x=\"{}\" y=\"{:.1}\">{}</text></g>",
                WIDTH - RIGHT,
                WIDTH - RIGHT,
                at - 3.0,
                escape(title),
            );
        }
        for (index, (event, title)) in self.events.iter().enumerate() {
            let Some(at) = x.place(*event).map(across) else { continue };
            // Titles of events that are close must not be written over each other.
            let line = TOP + 8.0 + 11.0 * (index % 4) as f64;
            let anchor = if at > WIDTH * 0.6 { "end" } else { "start" };
            let beside = if at > WIDTH * 0.6 { at - 3.0 } else { at + 3.0 };
            let _ = writeln!(
                svg,
                "<g class=\"event\"><line x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{TOP}\" y2=\"{}\"/>\
                 <text x=\"{beside:.1}\" y=\"{line}\" text-anchor=\"{anchor}\">{}</text></g>",
                HEIGHT - BOTTOM,
                escape(title),
            );
        }
        svg.push_str("</svg>\n");
        svg
    }

    fn draw_axes(&self, svg: &mut String, x: &Range, y: &Range) {
        let (right, floor) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        svg.push_str("<g class=\"axes\">");
        for (value, text) in y.ticks(5) {
            let Some(at) = y.place(value).map(down) else { continue };
            let _ = write!(
                svg,
                "<line x1=\"{LEFT}\" x2=\"{right}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
                 <text class=\"y\" x=\"{}\" y=\"{:.1}\">{text}</text>",
                LEFT - 5.0,
                at + 4.0,
            );
        }
        for (value, text) in x.ticks(6) {
            let Some(at) = x.place(value).map(across) else { continue };
            let _ = write!(
                svg,
                "<line x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{floor}\" y2=\"{}\"/>\
                 <text class=\"x\" x=\"{at:.1}\" y=\"{}\">{text}</text>",
                floor + 4.0,
                floor + 16.0,
            );
        }
        let _ = writeln!(
            svg,
            "<line class=\"floor\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{floor}\" y2=\"{floor}\"/>\
             <text class=\"title\" x=\"{}\" y=\"{}\">{}</text>\
             <text class=\"title\" transform=\"translate(11 {}) rotate(-90)\">{}</text></g>",
            (LEFT + right) / 2.0,
            HEIGHT - 6.0,
            escape(&self.x.title),
            (TOP + floor) / 2.0,
            escape(&self.y.title),
        );
    }

    fn draw_line(&self, svg: &mut String, line: &Line, x: &Range, y: &Range) {
        let placed: Vec<_> = line
            .points
            .iter()
            .filter_map(|point| Some((across(x.place(point.0)?), down(y.place(point.1)?), *point)))
            .collect();
        let drawn = spread(&placed);
        let class = if line.dashed { "line dashed" } else { "line" };
        let _ = write!(
            svg,
            "<g class=\"{class}\" style=\"--c:{}\" data-name=\"{}\"><path d=\"",
            line.colour,
            escape(&line.name),
        );
        for (index, (across, down, _)) in drawn.iter().enumerate() {
            let _ = write!(svg, "{}{across:.1} {down:.1}", if index == 0 { 'M' } else { 'L' });
        }
        svg.push_str("\"/>\n");
        let class = if drawn.len() <= MAX_DOTS { "hit dot" } else { "hit" };
        for (across, down, (x, y)) in &drawn {
            let _ = write!(
                svg,
                "<circle class=\"{class}\" cx=\"{across:.1}\" cy=\"{down:.1}\" r=\"3\">\
                 <title>{}: {} at {}</title></circle>",
                escape(&line.name),
                escape(&self.y.value(*y)),
                escape(&self.x.value(*x)),
            );
        }
        svg.push_str("</g>\n");
    }

    /// What it shows, for those who can't see it.
    fn described(&self, highest: f64) -> String {
        let names: Vec<&str> = self.lines.iter().map(|line| line.name.as_str()).collect();
        let mut text = format!("{}: {} over {}", self.title, self.y.title, self.x.title);
        if !names.is_empty() {
            let _ = write!(text, "; {}; at most {}", names.join(", "), self.y.value(highest));
        }
        text
    }
}

impl Axis {
    pub(super) fn new(title: &str, scale: Scale, unit: Unit) -> Self {
        Self { title: title.to_string(), scale, unit }
    }

    fn value(&self, value: f64) -> String {
        match self.unit {
            Unit::Milliseconds => numbers::time(value),
            Unit::Seconds => format!("{value} s"),
            Unit::Percentile if value >= 100.0 => "the maximum".to_string(),
            Unit::Percentile => {
                format!("p{}", format!("{value:.4}").trim_end_matches('0').trim_end_matches('.'))
            }
            Unit::Number => format!("{} {}", numbers::decimal(value), self.title),
        }
    }
}

fn across(place: f64) -> f64 {
    LEFT + place * (WIDTH - LEFT - RIGHT)
}

fn down(place: f64) -> f64 {
    HEIGHT - BOTTOM - place * (HEIGHT - TOP - BOTTOM)
}

/// Of too many points those that leave no gap, with the first and the last.
fn spread<T: Copy>(points: &[(f64, f64, T)]) -> Vec<(f64, f64, T)> {
    if points.len() <= MAX_POINTS {
        return points.to_vec();
    }
    // Equal lengths of the line itself: steep parts keep their shape.
    let step = |two: &[(f64, f64, T)]| (two[1].0 - two[0].0).hypot(two[1].1 - two[0].1);
    let length: f64 = points.windows(2).map(step).sum();
    let (mut kept, mut gone) = (vec![points[0]], 0.0);
    for two in points.windows(2) {
        gone += step(two);
        if gone >= length * kept.len() as f64 / MAX_POINTS as f64 {
            kept.push(two[1]);
        }
    }
    let last = points[points.len() - 1];
    if kept.last().is_some_and(|kept| (kept.0, kept.1) != (last.0, last.1)) {
        kept.push(last);
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plot(points: Vec<(f64, f64)>) -> Plot {
        let line = Line { name: "a<b".into(), colour: colour(0), dashed: false, points };
        Plot {
            title: "Tokens".into(),
            x: Axis::new("seconds", Scale::Linear, Unit::Seconds),
            y: Axis::new("tokens/s", Scale::Linear, Unit::Number),
            lines: vec![line],
            limits: vec![(5.0, "limit".into()), (1e9, "far".into())],
            events: vec![(1.0, "kill".into())],
            legend: true,
        }
    }

    #[test]
    fn a_point_is_where_its_values_say() {
        let svg = plot(vec![(0.0, 0.0), (1.0, 10.0)]).svg();
        // 10 of 10.4, and 1 of 1.04.
        assert!(svg.contains("M48.0 220.0L434.5 20.0\""), "{svg}");
        assert!(svg.contains("<title>a&lt;b: 10.0 tokens/s at 1 s</title>"), "{svg}");
        assert!(svg.contains(">limit</text>") && !svg.contains(">far</text>"), "{svg}");
        assert!(svg.contains(">kill</text>"), "{svg}");
    }

    #[test]
    fn values_that_are_no_numbers_draw_nothing() {
        let svg = plot(vec![(0.0, f64::NAN), (f64::INFINITY, 1.0)]).svg();
        assert!(!svg.contains("NaN") && !svg.contains("inf\""), "{svg}");
        assert!(plot(Vec::new()).svg().contains("nothing was measured"));
    }

    #[test]
    fn many_points_keep_their_ends_and_their_peak() {
        let mut points: Vec<_> = (0..5000).map(|x| (f64::from(x), 1.0, x)).collect();
        points[2500].1 = 200.0;
        let kept = spread(&points);
        assert!(kept.len() <= MAX_POINTS + 2, "{}", kept.len());
        assert!(kept.iter().any(|point| point.1 == 200.0));
        assert_eq!((kept[0].2, kept[kept.len() - 1].2), (0, 4999));
        let few: Vec<_> = points[..10].to_vec();
        assert_eq!(spread(&few).len(), 10);
    }

    #[test]
    fn a_ramp_begins_and_ends_where_it_should() {
        assert_eq!((ramp(0, 3), ramp(2, 3)), ("#0284c7".into(), "#e11d48".into()));
        assert_eq!(ramp(0, 1), "#0284c7");
    }
}
